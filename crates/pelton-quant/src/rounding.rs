//! The small conversions that encoders share, each with its edge cases decided once.

use half::f16;

/// `x` as an f16 scale, rounded to nearest even; `None` past the largest finite f16.
pub(crate) fn scale_f16(x: f32) -> Option<f16> {
    let rounded = f16::from_f32(x);
    rounded.is_finite().then_some(rounded)
}

/// `1 / d`, and 0 where `d` is 0.
pub(crate) fn inverse_or_zero(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The integers that `numbers` begin with, at most `high`; `numbers` lie between 0 and 2²². All 0 where `inverse`, by which
/// they were made, is infinite.
///
/// That is where `d` is so small that `1 / d` has no f32. Its f16 is 0 then and the codes without effect, but the bytes
/// shall be those that the reference encoders write.
#[inline]
pub(crate) fn cut_codes<const N: usize>(numbers: &[f32; N], high: f32, inverse: f32) -> [u8; N] {
    if inverse.is_infinite() {
        return [0; N];
    }
    numbers.map(|x| {
        let x = if x < high { x } else { high };
        let nearest = (x + NO_FRACTION) - NO_FRACTION;
        let cut = if nearest > x { nearest - 1.0 } else { nearest };
        (cut + NO_FRACTION).to_bits() as u8
    })
}

/// The integers nearest to `numbers` (magnitudes below 2⁷), halves away from zero. All 0 where `inverse`, by which they
/// were made, is infinite: see [`cut_codes`].
#[inline]
pub(crate) fn round_codes<const N: usize>(numbers: &[f32; N], inverse: f32) -> [i8; N] {
    if inverse.is_infinite() {
        return [0; N];
    }
    numbers.map(|x| {
        let even = (x + NO_FRACTION) - NO_FRACTION;
        // Exact: a half is left over where the even neighbour was the one towards zero.
        let left = x - even;
        let up = if left == 0.5 && x > 0.0 { 1.0 } else { 0.0 };
        let down = if left == -0.5 && x < 0.0 { 1.0 } else { 0.0 };
        (even + up - down + NO_FRACTION).to_bits() as i8
    })
}

/// The first element of the largest magnitude, with its sign.
#[inline]
pub(crate) fn first_extreme(x: &[f32]) -> f32 {
    // Magnitudes of finite numbers are ordered as their bits are, and the largest of integers is found in vectors.
    let magnitude = |v: f32| (v.to_bits() & 0x7FFF_FFFF) as i32;
    let largest = x.iter().fold(0, |largest: i32, v| largest.max(magnitude(*v)));
    x.iter().copied().find(|v| magnitude(*v) == largest).unwrap_or(0.0)
}

/// The smallest and the largest element.
#[inline]
pub(crate) fn extremes(x: &[f32]) -> (f32, f32) {
    let (lanes, rest) = x.as_chunks::<LANES>();
    let (mut lows, mut highs) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    for x in lanes {
        for lane in 0..LANES {
            lows[lane] = if x[lane] < lows[lane] { x[lane] } else { lows[lane] };
            highs[lane] = if x[lane] > highs[lane] { x[lane] } else { highs[lane] };
        }
    }
    let low = lows.iter().chain(rest).fold(f32::INFINITY, |low, &v| if v < low { v } else { low });
    let high = highs.iter().chain(rest).fold(f32::NEG_INFINITY, |high, &v| if v > high { v } else { high });
    // Of zeros of both signs, the first.
    let first = |of: f32| if of == 0.0 { x.iter().copied().find(|v| *v == 0.0).unwrap_or(of) } else { of };
    (first(low), first(high))
}

/// Packs 32 codes below 16 as nibbles: element `i` low and element `i + 16` high in byte `i`.
pub(crate) fn pack_nibbles(codes: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|i| (codes[i] & 15) | (codes[i + 16] << 4))
}

/// The inverse of [`pack_nibbles`].
#[inline]
pub(crate) fn unpack_nibbles(packed: &[u8; 16], codes: &mut [u8; 32]) {
    for (i, byte) in packed.iter().enumerate() {
        codes[i] = byte & 15;
        codes[i + 16] = byte >> 4;
    }
}

/// The f16 stored little-endian at byte `at`.
#[inline]
pub(crate) fn f16_at<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> f16 {
    f16::from_le_bytes([block[at], block[at + 1]])
}

/// Independent partial sums of the searches, so that the compiler can keep them in vector registers.
pub(crate) const LANES: usize = 8;

/// The total of partial sums, in a fixed order.
pub(crate) fn sum_lanes(sums: &[f32; LANES]) -> f32 {
    let [a, b, c, d, e, f, g, h] = *sums;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// 1.5 · 2²³: adding it leaves no bits below 1. The same as `round_ties_even`, in two instructions of any CPU; the low bits
/// of the sum are the integer.
const NO_FRACTION: f32 = 12_582_912.0;

/// The integer nearest to `x` in `low..=high` (magnitudes below 2²²), ties to even; `low` for NaN.
#[inline]
pub(crate) fn nearest_code(x: f32, low: f32, high: f32) -> f32 {
    let x = if x > low { x } else { low };
    let x = if x < high { x } else { high };
    (x + NO_FRACTION) - NO_FRACTION
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_cut_and_rounded_as_the_standard_library_does() {
        let around = |at: f32| [at.next_down().next_down(), at.next_down(), at, at.next_up(), at.next_up().next_up()];
        for half in -254i16..=254 {
            for x in around(f32::from(half) / 2.0) {
                assert_eq!(round_codes(&[x], 1.0), [x.round() as i8], "{x:?}");
                if x >= 0.0 {
                    assert_eq!(cut_codes(&[x], 31.0, 1.0), [x.min(31.0) as u8], "{x:?}");
                }
            }
        }
        assert_eq!(round_codes(&[f32::NAN, f32::INFINITY], f32::INFINITY), [0, 0]);
        assert_eq!(cut_codes(&[f32::NAN, f32::INFINITY], 31.0, f32::INFINITY), [0, 0]);
    }

    #[test]
    fn extremes_are_the_first_of_their_kind() {
        let mut x = [0.5f32; 32];
        (x[3], x[9], x[20], x[30]) = (-2.0, 2.0, -2.0, 1.5);
        assert_eq!((first_extreme(&x), extremes(&x)), (-2.0, (-2.0, 2.0)));
        let zeros: [f32; 32] = std::array::from_fn(|i| if i % 2 == 0 { -0.0 } else { 0.0 });
        for found in [first_extreme(&zeros), extremes(&zeros).0, extremes(&zeros).1] {
            assert_eq!(found.to_bits(), (-0.0f32).to_bits());
        }
        assert_eq!(extremes(&[3.0, -1.0, 7.0]), (-1.0, 7.0));
        assert_eq!((first_extreme(&[]), first_extreme(&[1e-45, -3e-45])), (0.0, -3e-45));
    }
}

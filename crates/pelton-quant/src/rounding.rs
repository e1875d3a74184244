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

/// The integer part of `x`; 0 for infinity and NaN.
///
/// These arise where `d` is so small that `1 / d` is infinite. Its f16 is 0 then and the code without effect, but the
/// bytes shall be those that the reference encoders write.
pub(crate) fn truncated(x: f32) -> i32 {
    if x.is_finite() { x as i32 } else { 0 }
}

/// The first element of the largest magnitude, with its sign.
pub(crate) fn first_extreme(x: &[f32]) -> f32 {
    let largest = x.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
    x.iter().copied().find(|v| v.abs() == largest).unwrap_or(0.0)
}

/// The smallest and the largest element.
pub(crate) fn extremes(x: &[f32]) -> (f32, f32) {
    x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), &v| {
        (if v < min { v } else { min }, if v > max { v } else { max })
    })
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

/// The integer nearest to `x` in `low..=high` (magnitudes below 2²²), ties to even; `low` for NaN.
#[inline]
pub(crate) fn nearest_code(x: f32, low: f32, high: f32) -> f32 {
    /// 1.5 · 2²³: adding it leaves no bits below 1. The same as `round_ties_even`, in two instructions of any CPU.
    const NO_FRACTION: f32 = 12_582_912.0;
    let x = if x > low { x } else { low };
    let x = if x < high { x } else { high };
    (x + NO_FRACTION) - NO_FRACTION
}

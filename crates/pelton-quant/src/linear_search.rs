//! The search for scales where `value = scale · level`: least weighted squared error.
//!
//! ```text
//! value = (d · scales[s]) · level               levels: what the format has, `Codes`;  scales: integers;  d: f16
//!
//! for each sub-block s: scale = fit(s)          a real number of either sign, the best of many
//! d = the scale of largest magnitude / the largest integer;  scales = rounded
//! repeat:  scales[s] = the best of its neighbours, for each s
//!          d = least squares over the whole block for these codes
//! until the error falls no more
//! ```
//!
//! The sign of a scale is free, so a sub-block can use the one level more that the negative side has. Formats with one
//! f16 scale a block stop after `fit`. Errors are weighted as `weights.rs` says.
//! Invariant: plain f32 arithmetic in a fixed order, so that every machine writes the same bytes.

use half::f16;

use crate::iq4_nl;
use crate::rounding::{LANES, first_extreme, inverse_or_zero, nearest_code, scale_f16, sum_lanes};

/// Rounds of refinement over the whole block; more lower the error by less than a thousandth.
const MAX_ROUNDS: usize = 1;
/// Refits of the scale of a sub-block after the best candidate.
const MAX_REFITS: usize = 1;

/// The levels of a format.
pub(crate) trait Codes {
    /// The candidates of [`SubBlock::fit`] put the extreme element on levels from this …
    const FROM: f32;
    /// … in this many steps …
    const STEPS: u8;
    /// … of this size.
    const STEP: f32;
    /// The largest magnitude of a level.
    const LARGEST: f32;

    /// The level nearest to `x`.
    fn nearest(x: f32) -> f32;
}

macro_rules! integers {
    ($($(#[$doc:meta])* $name:ident: $low:literal to $high:literal, from $from:literal, $steps:literal of $step:literal;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $name;

        impl Codes for $name {
            const FROM: f32 = $from;
            const STEPS: u8 = $steps;
            const STEP: f32 = $step;
            const LARGEST: f32 = -$low;

            #[inline]
            fn nearest(x: f32) -> f32 {
                nearest_code(x, $low, $high)
            }
        }
    )*};
}

integers! {
    /// Of Q6_K.
    SixBits: -32.0 to 31.0, from -30.6, 8 of -0.4;
    /// Of Q5_0.
    FiveBits: -16.0 to 15.0, from -14.4, 8 of -0.35;
    /// Of Q4_0.
    FourBits: -8.0 to 7.0, from -6.7, 8 of -0.3;
    /// Of Q3_K.
    ThreeBits: -4.0 to 3.0, from -2.95, 4 of -0.45;
    /// Of TQ1_0 and TQ2_0.
    Ternary: -1.0 to 1.0, from -1.0, 8 of -0.4;
}

/// The uneven levels of IQ4_NL and IQ4_XS.
pub(crate) struct Uneven;

/// The level nearest to the numbers from `h / 2 − 128` to `(h + 1) / 2 − 128`: it changes at multiples of a half alone.
static NEAREST_UNEVEN: [f32; 512] = nearest_uneven();

const fn nearest_uneven() -> [f32; 512] {
    let mut nearest = [0.0; 512];
    let mut h = 0;
    while h < 512 {
        // In quarters: the middle of the interval.
        let middle = 2 * h as i32 - 511;
        let (mut least, mut i) = (i32::MAX, 0);
        while i < 16 {
            let distance = (4 * iq4_nl::LEVELS[i] as i32 - middle).abs();
            if distance < least {
                least = distance;
                nearest[h] = iq4_nl::LEVELS[i] as f32;
            }
            i += 1;
        }
        h += 1;
    }
    nearest
}

impl Codes for Uneven {
    const FROM: f32 = -90.0;
    const STEPS: u8 = 14;
    const STEP: f32 = -4.4;
    const LARGEST: f32 = 127.0;

    #[inline]
    fn nearest(x: f32) -> f32 {
        /// 1.5 · 2²³: the sum with it has an integer in its low bits.
        const NO_FRACTION: f32 = 12_582_912.0;
        let x = if x > -128.0 { x } else { -128.0 };
        let x = if x < 127.5 { x } else { 127.5 };
        let h = ((2.0 * x + 255.5) + NO_FRACTION).to_bits() & 511;
        NEAREST_UNEVEN[h as usize]
    }
}

/// The index of a level of [`Uneven`].
pub(crate) fn uneven_index(level: i8) -> u8 {
    iq4_nl::LEVELS.iter().position(|&l| l == level).unwrap_or(0) as u8
}

/// The integers and the scale of one block of `N` sub-blocks, not yet packed.
pub(crate) struct LinearBlock<const N: usize> {
    pub(crate) d: f16,
    pub(crate) scales: [i8; N],
    /// Levels, in element order.
    pub(crate) codes: [i8; 256],
}

/// Searches a block of `N` sub-blocks of `LEN`, with integer scales from `low` to −`low` − 1; `None` if the scale exceeds f16.
pub(crate) fn search<C: Codes, const LEN: usize, const N: usize>(
    x: &[f32; 256],
    w: &[f32; 256],
    low: i8,
) -> Option<LinearBlock<N>> {
    // Nothing past this can be held, and the squares of all below it are finite.
    let largest = f16::MAX.to_f32() * -f32::from(low) * C::LARGEST;
    if x.iter().any(|x| x.abs() > largest) {
        return None;
    }
    let (x, w) = (x.as_chunks().0, w.as_chunks().0);
    let subs: &[SubBlock<LEN>; N] = &std::array::from_fn(|s| SubBlock { x: x[s], w: w[s] });
    let mut levels = Levels::nearest(&subs.each_ref().map(SubBlock::fit::<C>), low)?;
    let mut sums = levels.improve::<C, LEN>(subs);
    for _ in 0..MAX_ROUNDS {
        let Some(mut next) = sums.d().map(|d| Levels { d, ..levels }) else { break };
        let next_sums = next.improve::<C, LEN>(subs);
        if next_sums.cost >= sums.cost {
            break;
        }
        (levels, sums) = (next, next_sums);
    }
    Some(levels.with_codes::<C, LEN>(subs))
}

/// Searches a block with one f16 scale; `None` if it exceeds f16.
pub(crate) fn search_one<C: Codes, const LEN: usize>(x: &[f32; LEN], w: &[f32; LEN]) -> Option<(f16, [i8; LEN])> {
    let largest = f16::MAX.to_f32() * C::LARGEST;
    if x.iter().any(|x| x.abs() > largest) {
        return None;
    }
    let sub = SubBlock { x: *x, w: *w };
    let d = scale_f16(sub.fit::<C>())?;
    let inverse = inverse_or_zero(d.to_f32());
    Some((d, x.map(|x| C::nearest(x * inverse) as i8)))
}

/// The elements of a sub-block with their weights `w`.
struct SubBlock<const LEN: usize> {
    x: [f32; LEN],
    w: [f32; LEN],
}

impl<const LEN: usize> SubBlock<LEN> {
    /// Elements and weights, [`LANES`] at a time.
    fn lanes(&self) -> impl Iterator<Item = (&[f32; LANES], &[f32; LANES])> {
        self.x.as_chunks().0.iter().zip(self.w.as_chunks().0)
    }

    /// `Σwq²` and `Σwqx` of the codes `q` = `x · inverse`, rounded.
    fn code_sums<C: Codes>(&self, inverse: f32) -> (f32, f32) {
        let (mut qq_sums, mut qx_sums) = ([0.0; LANES], [0.0; LANES]);
        for (x, w) in self.lanes() {
            for lane in 0..LANES {
                let q = C::nearest(x[lane] * inverse);
                let wq = w[lane] * q;
                qq_sums[lane] += wq * q;
                qx_sums[lane] += wq * x[lane];
            }
        }
        (sum_lanes(&qq_sums), sum_lanes(&qx_sums))
    }

    /// [`SubBlock::code_sums`] of several inverses at once, one a lane: no sum is taken across lanes.
    #[inline(never)]
    fn code_sums_of<C: Codes, const N: usize>(&self, inverses: &[f32; N]) -> [[f32; N]; 2] {
        let mut sums = [[0.0; N]; 2];
        for (&x, &w) in self.x.iter().zip(&self.w) {
            let scaled = inverses.map(|inverse| x * inverse);
            let q = scaled.map(C::nearest);
            let wq = q.map(|q| w * q);
            for (sum, wq) in sums[1].iter_mut().zip(wq) {
                *sum += wq * x;
            }
            for ((sum, wq), q) in sums[0].iter_mut().zip(wq).zip(q) {
                *sum += wq * q;
            }
        }
        sums
    }

    /// The best real scale of the candidates' least-squares refits.
    fn fit<C: Codes>(&self) -> f32 {
        let extreme = first_extreme(&self.x);
        // The inverse of a subnormal number can be infinite; f16 scales vanish long before.
        if extreme.abs() < f32::MIN_POSITIVE {
            return 0.0;
        }
        let (mut best, mut explained) = (0.0, 0.0);
        let mut consider = |qq: f32, qx: f32| {
            // The least-squares scale qx / qq explains qx² / qq of Σwx².
            let better = qx * qx > explained * qq;
            if better {
                (best, explained) = (qx / qq, qx * qx / qq);
            }
            (best, better)
        };
        let mut scale = 0.0;
        let inverse = 1.0 / extreme;
        // Half of the lanes for each sign.
        for first in (0..C::STEPS).step_by(LANES / 2) {
            let inverses: [f32; LANES] = std::array::from_fn(|lane| {
                // Past the last step the lanes repeat it.
                let step = (first + lane as u8 / 2).min(C::STEPS - 1);
                let sign = if lane % 2 == 0 { inverse } else { -inverse };
                sign * (C::FROM + C::STEP * f32::from(step))
            });
            let [qq, qx] = self.code_sums_of::<C, LANES>(&inverses);
            for lane in 0..LANES {
                scale = consider(qq[lane], qx[lane]).0;
            }
        }
        for _ in 0..MAX_REFITS {
            let (qq, qx) = self.code_sums::<C>(inverse_or_zero(scale));
            let (next, better) = consider(qq, qx);
            scale = next;
            if !better {
                break;
            }
        }
        scale
    }
}

/// What least squares needs of a block, with the scales as integers.
#[derive(Clone, Copy, Default)]
struct BlockSums {
    /// The weighted squared error, less Σwx².
    cost: f64,
    /// `Σw(scale·q)²`
    qq: f64,
    /// `Σw(scale·q)x`
    qx: f64,
}

impl BlockSums {
    fn add(&mut self, (cost, qq, qx): (f32, f32, f32), scale: f64) {
        self.cost += f64::from(cost);
        self.qq += scale * scale * f64::from(qq);
        self.qx += scale * f64::from(qx);
    }

    /// The `d` of least squared error for these codes; `None` if it is 0 or past f16.
    fn d(self) -> Option<f32> {
        scale_f16((self.qx / self.qq) as f32).map(f16::to_f32).filter(|d| *d != 0.0)
    }
}

/// Scales as stored; `d` is an f16 value, held as f32.
#[derive(Clone, Copy)]
struct Levels<const N: usize> {
    d: f32,
    low: i8,
    scales: [i8; N],
}

impl<const N: usize> Levels<N> {
    /// Rounds real scales; `None` if `d` exceeds f16.
    fn nearest(fits: &[f32; N], low: i8) -> Option<Levels<N>> {
        let (low_f, high_f) = (f32::from(low), -f32::from(low) - 1.0);
        let d = scale_f16(first_extreme(fits) / low_f)?.to_f32();
        let inverse = inverse_or_zero(d);
        let scales = fits.map(|scale| nearest_code(scale * inverse, low_f, high_f) as i8);
        Some(Levels { d, low, scales })
    }

    /// Moves each scale to the best of itself and its neighbours.
    fn improve<C: Codes, const LEN: usize>(&mut self, subs: &[SubBlock<LEN>; N]) -> BlockSums {
        let mut total = BlockSums::default();
        for (sub, scale) in subs.iter().zip(&mut self.scales) {
            let from = *scale;
            // Itself first: it stays where a neighbour is only as good. The fourth lane repeats it.
            let below = from.saturating_sub(1).max(self.low);
            let above = from.saturating_add(1).min(-(self.low + 1));
            let near = [from, below, above, from];
            let reals = near.map(|scale| self.d * f32::from(scale));
            let [qq, qx] = sub.code_sums_of::<C, 4>(&reals.map(inverse_or_zero));
            // The weighted squared error, less Σwx², which no scale changes.
            let sums_of = |i: usize| ((reals[i] * qq[i] - 2.0 * qx[i]) * reals[i], qq[i], qx[i]);
            let mut least = sums_of(0);
            for (i, near) in [(1, below), (2, above)] {
                let sums = sums_of(i);
                if sums.0 < least.0 {
                    (*scale, least) = (near, sums);
                }
            }
            total.add(least, f64::from(*scale));
        }
        total
    }

    fn with_codes<C: Codes, const LEN: usize>(&self, subs: &[SubBlock<LEN>; N]) -> LinearBlock<N> {
        let mut codes = [0; 256];
        for ((sub, codes), scale) in subs.iter().zip(codes.as_chunks_mut::<LEN>().0).zip(self.scales) {
            let inverse = inverse_or_zero(self.d * f32::from(scale));
            for (code, x) in codes.iter_mut().zip(&sub.x) {
                *code = C::nearest(x * inverse) as i8;
            }
        }
        LinearBlock { d: f16::from_f32(self.d), scales: self.scales, codes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_uneven_level_is_found_for_every_quarter_and_beyond_the_ends() {
        for quarter in -600i16..600 {
            let x = f32::from(quarter) / 4.0 + 0.125;
            let nearest =
                iq4_nl::LEVELS.iter().map(|&l| f32::from(l)).min_by(|a, b| (a - x).abs().total_cmp(&(b - x).abs()));
            assert_eq!(Some(Uneven::nearest(x)), nearest, "{x}");
        }
        assert_eq!(Uneven::nearest(f32::NAN), -127.0);
        assert_eq!(iq4_nl::LEVELS.map(uneven_index), std::array::from_fn(|i| i as u8));
    }
}

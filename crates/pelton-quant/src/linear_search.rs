//! The search for scales of Q6_K: least weighted squared error over a block of 16 sub-blocks of 16.
//!
//! ```text
//! value = (d · scales[s]) · code                    scales: −128 … 127;  code: −32 … 31;  d: f16
//!
//! for each sub-block s: scale = fit(s)              a real number of either sign, the best of many
//! d = the scale of largest magnitude / −128;  scales = rounded
//! repeat:  scales[s] = the best of its neighbours, for each s
//!          d = least squares over the whole block for these codes
//! until the error falls no more
//! ```
//!
//! The sign of a scale is free, so a sub-block can use the one code more that the negative side has. Errors are
//! weighted as `weights.rs` says.
//! Invariant: plain f32 arithmetic in a fixed order, so that every machine writes the same bytes.

use half::f16;

use crate::rounding::{LANES, first_extreme, inverse_or_zero, nearest_code, scale_f16, sum_lanes};
use crate::weights;

const SUB_LEN: usize = 16;
const N_SUBS: usize = 16;
/// Rounds of refinement over the whole block; more lower the error by less than a thousandth.
const MAX_ROUNDS: usize = 2;
const CODE_MIN: f32 = -32.0;
const CODE_MAX: f32 = 31.0;
/// The candidates of [`fit`] put the extreme element on codes from this …
const STRETCH_FROM: f32 = -30.5;
/// … in this many steps …
const STRETCH_STEPS: u8 = 20;
/// … of this size.
const STRETCH_STEP: f32 = -0.15;

/// The integers and the scale of one block, not yet packed.
pub(crate) struct LinearBlock {
    pub(crate) d: f16,
    pub(crate) scales: [i8; N_SUBS],
    /// −32 to 31, in element order.
    pub(crate) codes: [i8; 256],
}

/// Searches a block; `None` if the scale exceeds f16.
pub(crate) fn search(x: &[f32; 256]) -> Option<LinearBlock> {
    // Nothing past this can be held, and the squares of all below it are finite.
    let largest = f16::MAX.to_f32() * 128.0 * 32.0;
    if x.iter().any(|x| x.abs() > largest) {
        return None;
    }
    let subs = &SubBlock::split(x);
    let mut levels = Levels::nearest(&subs.each_ref().map(SubBlock::fit))?;
    let mut error = levels.improve(subs);
    for _ in 0..MAX_ROUNDS {
        let Some(mut next) = levels.refit(subs) else { break };
        let next_error = next.improve(subs);
        if next_error >= error {
            break;
        }
        (levels, error) = (next, next_error);
    }
    Some(levels.with_codes(subs))
}

/// The elements of a sub-block with their weights `w`.
struct SubBlock {
    x: [f32; SUB_LEN],
    w: [f32; SUB_LEN],
}

impl SubBlock {
    fn split(x: &[f32; 256]) -> [SubBlock; N_SUBS] {
        let w = weights::of_block(x);
        let (x, w) = (x.as_chunks().0, w.as_chunks().0);
        std::array::from_fn(|s| SubBlock { x: x[s], w: w[s] })
    }

    /// Elements and weights, [`LANES`] at a time.
    fn lanes(&self) -> impl Iterator<Item = (&[f32; LANES], &[f32; LANES])> {
        self.x.as_chunks().0.iter().zip(self.w.as_chunks().0)
    }

    /// `Σwq²` and `Σwqx` of the codes `q` = `x · inverse`, rounded.
    fn code_sums(&self, inverse: f32) -> (f32, f32) {
        let (mut qq_sums, mut qx_sums) = ([0.0; LANES], [0.0; LANES]);
        for (x, w) in self.lanes() {
            for lane in 0..LANES {
                let q = nearest_code(x[lane] * inverse, CODE_MIN, CODE_MAX);
                let wq = w[lane] * q;
                qq_sums[lane] += wq * q;
                qx_sums[lane] += wq * x[lane];
            }
        }
        (sum_lanes(&qq_sums), sum_lanes(&qx_sums))
    }

    /// The weighted sum of squared errors with the nearest codes.
    fn error(&self, scale: f32) -> f32 {
        let inverse = inverse_or_zero(scale);
        let mut sums = [0.0; LANES];
        for (x, w) in self.lanes() {
            for lane in 0..LANES {
                let error = scale * nearest_code(x[lane] * inverse, CODE_MIN, CODE_MAX) - x[lane];
                sums[lane] += w[lane] * (error * error);
            }
        }
        sum_lanes(&sums)
    }

    /// The best real scale of the candidates' least-squares refits.
    fn fit(&self) -> f32 {
        let extreme = first_extreme(&self.x);
        // The inverse of a subnormal number can be infinite; f16 scales vanish long before.
        if extreme.abs() < f32::MIN_POSITIVE {
            return 0.0;
        }
        let (mut best, mut explained) = (0.0, 0.0);
        for sign in [1.0, -1.0] {
            for step in 0..STRETCH_STEPS {
                let inverse = sign * (STRETCH_FROM + STRETCH_STEP * f32::from(step)) / extreme;
                let (qq, qx) = self.code_sums(inverse);
                // The least-squares scale qx / qq explains qx² / qq of Σwx².
                if qx * qx > explained * qq {
                    (best, explained) = (qx / qq, qx * qx / qq);
                }
            }
        }
        best
    }
}

/// Scales as stored; `d` is an f16 value, held as f32.
#[derive(Clone, Copy)]
struct Levels {
    d: f32,
    scales: [i8; N_SUBS],
}

impl Levels {
    /// Rounds real scales; `None` if `d` exceeds f16.
    fn nearest(fits: &[f32; N_SUBS]) -> Option<Levels> {
        let d = scale_f16(first_extreme(fits) / -128.0)?.to_f32();
        let inverse = inverse_or_zero(d);
        let scales = fits.map(|scale| nearest_code(scale * inverse, -128.0, 127.0) as i8);
        Some(Levels { d, scales })
    }

    /// Moves each scale to the best of itself and its neighbours; returns the error of the block.
    fn improve(&mut self, subs: &[SubBlock; N_SUBS]) -> f32 {
        let mut total = 0.0;
        for (sub, scale) in subs.iter().zip(&mut self.scales) {
            let from = *scale;
            let mut least = sub.error(self.d * f32::from(from));
            for near in [from.saturating_sub(1), from.saturating_add(1)] {
                let error = sub.error(self.d * f32::from(near));
                if error < least {
                    (*scale, least) = (near, error);
                }
            }
            total += least;
        }
        total
    }

    /// The `d` of least squared error over the block, for the codes that are nearest now; `None` if it is 0 or past f16.
    fn refit(&self, subs: &[SubBlock; N_SUBS]) -> Option<Levels> {
        let (mut aa, mut ax) = (0.0f64, 0.0f64);
        for (sub, scale) in subs.iter().zip(self.scales) {
            let (qq, qx) = sub.code_sums(inverse_or_zero(self.d * f32::from(scale)));
            aa += f64::from(scale) * f64::from(scale) * f64::from(qq);
            ax += f64::from(scale) * f64::from(qx);
        }
        let d = scale_f16((ax / aa) as f32).filter(|d| d.to_f32() != 0.0)?;
        Some(Levels { d: d.to_f32(), ..*self })
    }

    fn with_codes(&self, subs: &[SubBlock; N_SUBS]) -> LinearBlock {
        let mut codes = [0; 256];
        for ((sub, codes), scale) in subs.iter().zip(codes.as_chunks_mut::<SUB_LEN>().0).zip(self.scales) {
            let inverse = inverse_or_zero(self.d * f32::from(scale));
            for (code, x) in codes.iter_mut().zip(&sub.x) {
                *code = nearest_code(x * inverse, CODE_MIN, CODE_MAX) as i8;
            }
        }
        LinearBlock { d: f16::from_f32(self.d), scales: self.scales, codes }
    }
}

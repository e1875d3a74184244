//! The search for scales and minima where `value = scale · code − min`: least weighted squared error.
//!
//! ```text
//! value = (d · scales[s]) · code − (dmin · mins[s])        scales, mins: 0 … 63 (Q2_K: 15);  d, dmin: f16
//!
//! for each sub-block s: (scale, min) = fit(s)              real numbers, the best of many
//! d, dmin = largest scale / 63, largest min / 63;  scales, mins = rounded
//! repeat:  scales[s], mins[s] = the best of their neighbours, for each s
//!          d, dmin = least squares over the whole block for these codes
//! until the error falls no more
//! ```
//!
//! Q4_1 and Q5_1, with an f16 scale and an f16 minimum of either sign a block, stop after `fit`. Errors are weighted as
//! `weights.rs` says.
//! Invariant: plain f32 arithmetic in a fixed order, so that every machine writes the same bytes.

use half::f16;

use crate::rounding::{LANES, extremes, inverse_or_zero, nearest_code, scale_f16, sum_lanes};

/// Rounds of refinement over the whole block; more lower the error by less than a thousandth.
const MAX_ROUNDS: usize = 2;
/// Refits of the scale and min of a sub-block after the best candidate.
const MAX_REFITS: usize = 3;
/// How far the candidates of [`SubBlock::fit`] stretch the codes over the range of a sub-block, in codes: from this much
/// less …
const STRETCH_FROM: f32 = -1.0;
/// … in this many steps …
const STRETCH_STEPS: u8 = 10;
/// … of this size. Stretching past the range clips the extremes, which pays where they are rare.
const STRETCH_STEP: f32 = 0.3;

/// The integers and scales of one block of `N` sub-blocks, not yet packed.
pub(crate) struct AffineBlock<const N: usize> {
    pub(crate) d: f16,
    pub(crate) dmin: f16,
    pub(crate) scales: [u8; N],
    pub(crate) mins: [u8; N],
    /// 0 to `code_max`, in element order.
    pub(crate) codes: [u8; 256],
}

/// Searches codes from 0 to `code_max` for a block of `N` sub-blocks of `LEN`, with scales and minima from 0 to
/// `level_max`; `None` if a scale exceeds f16.
pub(crate) fn search<const LEN: usize, const N: usize>(
    x: &[f32; 256],
    w: &[f32; 256],
    code_max: u8,
    level_max: u8,
) -> Option<AffineBlock<N>> {
    let code_max = f32::from(code_max);
    // Nothing past this can be held, and the squares of all below it are finite.
    let largest = f16::MAX.to_f32() * f32::from(level_max) * code_max;
    if x.iter().any(|x| x.abs() > largest) {
        return None;
    }
    let (x, w) = (x.as_chunks::<LEN>().0, w.as_chunks::<LEN>().0);
    let subs: &[SubBlock<LEN>; N] = &std::array::from_fn(|s| SubBlock::new(x[s], w[s], false));
    let mut levels = Levels::nearest(&subs.each_ref().map(|sub| sub.fit(code_max)), level_max)?;
    let mut error = levels.improve(subs, code_max);
    for _ in 0..MAX_ROUNDS {
        let Some(mut next) = levels.refit(subs, code_max) else { break };
        let next_error = next.improve(subs, code_max);
        if next_error >= error {
            break;
        }
        (levels, error) = (next, next_error);
    }
    Some(levels.with_codes(subs, code_max))
}

/// Searches codes from 0 to `code_max` for a block with one scale and one minimum, as `d`, `m` and codes of
/// `d · code + m`; `None` if one exceeds f16.
pub(crate) fn search_one(x: &[f32; 32], w: &[f32; 32], code_max: u8) -> Option<(f16, f16, [u8; 32])> {
    let code_max = f32::from(code_max);
    // The squares of all below this are finite.
    if x.iter().any(|x| x.abs() > f16::MAX.to_f32() * code_max) {
        return None;
    }
    let sub = SubBlock::new(*x, *w, true);
    let fit = sub.fit(code_max);
    let (d, m) = (scale_f16(fit.scale)?, scale_f16(-fit.min)?);
    let stored = Fit { scale: d.to_f32(), min: -m.to_f32() };
    let inverse = inverse_or_zero(stored.scale);
    Some((d, m, x.map(|x| stored.code(inverse, x, code_max) as u8)))
}

/// `value = scale · code − min`; the scale is not negative.
#[derive(Clone, Copy)]
struct Fit {
    scale: f32,
    min: f32,
}

impl Fit {
    fn code(self, inverse: f32, x: f32, code_max: f32) -> f32 {
        nearest_code((x + self.min) * inverse, 0.0, code_max)
    }
}

/// The elements of a sub-block with their weights `w`.
struct SubBlock<const LEN: usize> {
    x: [f32; LEN],
    w: [f32; LEN],
    w_sum: f32,
    wx_sum: f32,
    /// Whether the min may be negative.
    free_min: bool,
}

impl<const LEN: usize> SubBlock<LEN> {
    fn new(x: [f32; LEN], w: [f32; LEN], free_min: bool) -> SubBlock<LEN> {
        let wx_sum = x.iter().zip(&w).map(|(x, w)| w * x).sum();
        SubBlock { x, w, w_sum: w.iter().sum(), wx_sum, free_min }
    }

    /// Elements and weights, [`LANES`] at a time.
    fn lanes(&self) -> impl Iterator<Item = (&[f32; LANES], &[f32; LANES])> {
        self.x.as_chunks().0.iter().zip(self.w.as_chunks().0)
    }

    /// The weighted sum of squared errors with the codes that are nearest under `fit`.
    fn error(&self, fit: Fit, code_max: f32) -> f32 {
        let inverse = inverse_or_zero(fit.scale);
        let mut sums = [0.0; LANES];
        for (x, w) in self.lanes() {
            for lane in 0..LANES {
                let error = fit.scale * fit.code(inverse, x[lane], code_max) - fit.min - x[lane];
                sums[lane] += w[lane] * (error * error);
            }
        }
        sum_lanes(&sums)
    }

    /// The best real scale and min that the candidates and their least-squares refits reach.
    fn fit(&self, code_max: f32) -> Fit {
        let (low, high) = extremes(&self.x);
        let low = if self.free_min { low } else { low.min(0.0) };
        let range = high - low;
        let whole_range = Fit { scale: range / code_max, min: -low };
        if range <= 0.0 {
            return whole_range;
        }
        let (mut best, mut explained) = (whole_range, f32::NEG_INFINITY);
        for step in 0..STRETCH_STEPS {
            let inverse = (code_max + STRETCH_FROM + STRETCH_STEP * f32::from(step)) / range;
            let sums = CodeSums::new(self, whole_range, inverse, code_max);
            if let Some((fit, gain)) = sums.least_squares(self)
                && gain > explained
            {
                (best, explained) = (fit, gain);
            }
        }
        for _ in 0..MAX_REFITS {
            let sums = CodeSums::new(self, best, inverse_or_zero(best.scale), code_max);
            match sums.least_squares(self) {
                Some((fit, gain)) if gain > explained => (best, explained) = (fit, gain),
                _ => break,
            }
        }
        best
    }
}

/// Weighted sums over the codes `q` of a sub-block: what least squares needs.
struct CodeSums {
    q: f32,
    qq: f32,
    qx: f32,
}

impl CodeSums {
    /// Of the codes `(x + fit.min) · inverse`, rounded.
    fn new<const LEN: usize>(sub: &SubBlock<LEN>, fit: Fit, inverse: f32, code_max: f32) -> CodeSums {
        let (mut q_sums, mut qq_sums, mut qx_sums) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for (x, w) in sub.lanes() {
            for lane in 0..LANES {
                let q = fit.code(inverse, x[lane], code_max);
                let wq = w[lane] * q;
                q_sums[lane] += wq;
                qq_sums[lane] += wq * q;
                qx_sums[lane] += wq * x[lane];
            }
        }
        CodeSums { q: sum_lanes(&q_sums), qq: sum_lanes(&qq_sums), qx: sum_lanes(&qx_sums) }
    }

    /// The scale and min of least squared error for these codes, and how much of `Σwx²` they explain.
    ///
    /// `None` where no positive scale helps.
    fn least_squares<const LEN: usize>(&self, sub: &SubBlock<LEN>) -> Option<(Fit, f32)> {
        let determinant = sub.w_sum * self.qq - self.q * self.q;
        // Below this share the codes are all equal but for rounding.
        if determinant > 1e-6 * sub.w_sum * self.qq {
            let scale = (sub.w_sum * self.qx - sub.wx_sum * self.q) / determinant;
            let min = (self.q * self.qx - self.qq * sub.wx_sum) / determinant;
            if min >= 0.0 || sub.free_min {
                return (scale > 0.0).then_some((Fit { scale, min }, scale * self.qx - min * sub.wx_sum));
            }
        }
        // The best min would be negative, which the format does not hold: the best scale without one.
        let scale = self.qx / self.qq;
        (scale > 0.0).then_some((Fit { scale, min: 0.0 }, scale * self.qx))
    }
}

/// Scales and mins as stored; `d` and `dmin` are f16 values, held as f32.
#[derive(Clone, Copy)]
struct Levels<const N: usize> {
    d: f32,
    dmin: f32,
    scales: [u8; N],
    mins: [u8; N],
    level_max: u8,
}

impl<const N: usize> Levels<N> {
    /// Rounds real scales and mins; `None` if `d` or `dmin` exceed f16.
    fn nearest(fits: &[Fit; N], level_max: u8) -> Option<Levels<N>> {
        let largest = |of: fn(&Fit) -> f32| fits.iter().map(of).fold(0.0, f32::max);
        let most = f32::from(level_max);
        let d = scale_f16(largest(|fit| fit.scale) / most)?.to_f32();
        let dmin = scale_f16(largest(|fit| fit.min) / most)?.to_f32();
        let round = |value: f32, unit: f32| nearest_code(value * inverse_or_zero(unit), 0.0, most) as u8;
        let scales = fits.map(|fit| round(fit.scale, d));
        let mins = fits.map(|fit| round(fit.min, dmin));
        Some(Levels { d, dmin, scales, mins, level_max })
    }

    fn fit(&self, scale: u8, min: u8) -> Fit {
        Fit { scale: self.d * f32::from(scale), min: self.dmin * f32::from(min) }
    }

    /// Moves each scale and min to the best of itself and its neighbours; returns the error of the block.
    fn improve<const LEN: usize>(&mut self, subs: &[SubBlock<LEN>; N], code_max: f32) -> f32 {
        let mut total = 0.0;
        for (s, sub) in subs.iter().enumerate() {
            let (scale, min) = (self.scales[s], self.mins[s]);
            let mut least = sub.error(self.fit(scale, min), code_max);
            for near_scale in scale.saturating_sub(1)..=(scale + 1).min(self.level_max) {
                for near_min in min.saturating_sub(1)..=(min + 1).min(self.level_max) {
                    let error = sub.error(self.fit(near_scale, near_min), code_max);
                    if error < least {
                        least = error;
                        (self.scales[s], self.mins[s]) = (near_scale, near_min);
                    }
                }
            }
            total += least;
        }
        total
    }

    /// The `d` and `dmin` of least squared error over the block, for the codes that are nearest now.
    ///
    /// `None` where they are not determined, not positive, or past f16.
    fn refit<const LEN: usize>(&self, subs: &[SubBlock<LEN>; N], code_max: f32) -> Option<Levels<N>> {
        // x ≈ d · (scale · q) − dmin · min: the normal equations of two unknowns. A block has 256 equations; f64
        // because sums of squares of integers up to 63 · 31 leave f32 few digits for the determinant.
        let (mut aa, mut ab, mut bb, mut ax, mut bx) = (0.0f64, 0.0f64, 0.0f64, 0.0f64, 0.0f64);
        for (s, sub) in subs.iter().enumerate() {
            let fit = self.fit(self.scales[s], self.mins[s]);
            let sums = CodeSums::new(sub, fit, inverse_or_zero(fit.scale), code_max);
            let (scale, min) = (f64::from(self.scales[s]), f64::from(self.mins[s]));
            aa += scale * scale * f64::from(sums.qq);
            ab += scale * min * f64::from(sums.q);
            bb += min * min * f64::from(sub.w_sum);
            ax += scale * f64::from(sums.qx);
            bx += min * f64::from(sub.wx_sum);
        }
        let determinant = aa * bb - ab * ab;
        let (d, dmin) = if determinant > 0.0 {
            ((ax * bb - bx * ab) / determinant, (ax * ab - bx * aa) / determinant)
        } else {
            (ax / aa, 0.0)
        };
        let d = scale_f16(d as f32).filter(|d| d.to_f32() > 0.0)?;
        let dmin = scale_f16(dmin as f32).filter(|dmin| dmin.to_f32() >= 0.0)?;
        Some(Levels { d: d.to_f32(), dmin: dmin.to_f32(), ..*self })
    }

    fn with_codes<const LEN: usize>(&self, subs: &[SubBlock<LEN>; N], code_max: f32) -> AffineBlock<N> {
        let mut codes = [0; 256];
        for (s, (sub, codes)) in subs.iter().zip(codes.as_chunks_mut::<LEN>().0).enumerate() {
            let fit = self.fit(self.scales[s], self.mins[s]);
            let inverse = inverse_or_zero(fit.scale);
            for (code, &x) in codes.iter_mut().zip(&sub.x) {
                *code = fit.code(inverse, x, code_max) as u8;
            }
        }
        let (d, dmin) = (f16::from_f32(self.d), f16::from_f32(self.dmin));
        AffineBlock { d, dmin, scales: self.scales, mins: self.mins, codes }
    }
}

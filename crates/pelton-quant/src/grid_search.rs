//! The search for scales, points and shifts of the codebook formats: least weighted squared error over a block of 256.
//!
//! ```text
//! value = (d · unit) · (2 · scales[s] + 1) · level          scales: 0 … 15 (IQ1: 7);  d: f16, not negative
//!
//! for each sub-block s:
//!     for a few starts, shares of the root mean square: nearest points, then the scale that suits them best
//!     the best of them, refitted while it improves          → a real scale, and how much an error of it costs
//! d = of some candidates the one whose odd multiples are nearest to the real scales, by that cost
//! for each s:  scales[s] = the better of the two integers around;  points = the nearest
//! d = least squares over the block for these points;  points once more
//! ```
//!
//! Signs are the elements' own; where a format stores seven of eight, an odd number of minuses is mended by turning the
//! element that costs least, `w·|x|`, which then is searched with its wrong sign.
//! Invariant: plain f32 arithmetic in a fixed order, so that every machine writes the same bytes.

use half::f16;

use crate::grids;
use crate::nearest_point::{Found, Grid};
use crate::rounding::scale_f16;

/// Refits of a sub-block's scale after the best start.
const MAX_REFITS: usize = 2;
/// The candidates for `d` put the largest real scale on shares of the largest odd multiple from this …
const SHARE_FROM: f32 = 0.70;
/// … in this many steps …
const SHARE_STEPS: u8 = 24;
/// … of this size.
const SHARE_STEP: f32 = 0.02;

/// Over which elements a shift of all levels is common.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shift {
    /// There is none.
    None,
    /// A sub-block.
    SubBlock,
    /// The eight elements of a point.
    Point,
}

/// Where the signs of elements are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signs {
    /// In the points.
    Points,
    /// Apart, one for each element.
    Each,
    /// Apart, seven for eight elements: the number of minuses is even.
    Even,
}

/// What the search needs to know of a format.
pub(crate) trait Codebook {
    /// Elements of a point.
    const POINT_LEN: usize;
    /// Elements that share a scale.
    const SUB_LEN: usize;
    /// The largest stored scale.
    const SCALE_MAX: u8;
    /// Where scales are looked for, as shares of the root mean square of a sub-block …
    const STARTS: &[f32];
    /// … and as shares of what puts its largest magnitude on the largest level.
    const EXTREME_STARTS: &[f32];
    /// Where a shift is common.
    const SHIFT: Shift;
    /// Where the signs are.
    const SIGNS: Signs;
    /// `value = d · UNIT · (2s + 1) · level`.
    const UNIT: f32;
    /// The largest level.
    const LARGEST: f32;

    /// The point nearest to `x` over `scale`, each `POINT_LEN` long, with levels shifted down (1) or not (0).
    fn nearest(x: &[f32], w: &[f32], scale: f32, shift: usize) -> Found;
}

macro_rules! codebooks {
    ($($(#[$doc:meta])* $name:ident: $points:literal points of $len:literal, $nearest:ident, scales to $scale_max:literal per $sub:literal,
        signs $signs:ident, shift $shift:ident, unit $unit:literal, levels $levels:expr, starts $starts:expr, of extreme $extremes:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $name;

        impl Codebook for $name {
            const POINT_LEN: usize = $len;
            const SUB_LEN: usize = $sub;
            const SCALE_MAX: u8 = $scale_max;
            const STARTS: &[f32] = &$starts;
            const EXTREME_STARTS: &[f32] = &$extremes;
            const SIGNS: Signs = Signs::$signs;
            const SHIFT: Shift = Shift::$shift;
            const UNIT: f32 = $unit;
            const LARGEST: f32 = $levels[0][$levels[0].len() - 1];

            #[inline]
            fn nearest(x: &[f32], w: &[f32], scale: f32, shift: usize) -> Found {
                static GRID: Grid<$points> = codebooks!(@grid $name);
                let (x, w) = (x.first_chunk().expect("a whole point"), w.first_chunk().expect("a whole point"));
                GRID.$nearest(x, w, scale, &$levels[shift])
            }
        }
    )*};
    (@grid Iq1S) => { Grid::new(&grids::IQ1_S, 2) };
    (@grid Iq1M) => { Grid::new(&grids::IQ1_S, 2) };
    (@grid Iq2Xxs) => { Grid::new(&grids::IQ2_XXS, 2) };
    (@grid Iq2Xs) => { Grid::new(&grids::IQ2_XS, 2) };
    (@grid Iq2S) => { Grid::new(&grids::IQ2_S, 2) };
    (@grid Iq3Xxs) => { Grid::new(&grids::IQ3_XXS, 3) };
    (@grid Iq3S) => { Grid::new(&grids::IQ3_S, 3) };
}

const DIGITS: [[f32; 3]; 2] = [[-7.0, 1.0, 9.0], [-9.0, -1.0, 7.0]];
const MAGNITUDES_2: [[f32; 3]; 1] = [[8.0, 25.0, 43.0]];
const MAGNITUDES_3_XXS: [[f32; 8]; 1] = [[2.0, 6.0, 10.0, 14.0, 18.0, 22.0, 26.0, 31.0]];
const MAGNITUDES_3_S: [[f32; 8]; 1] = [[1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0]];

codebooks! {
    /// [`crate::iq1_s`].
    Iq1S: 2048 points of 8, nearest_8, scales to 7 per 32, signs Points, shift SubBlock, unit 0.125, levels DIGITS, starts [0.137], of extreme [];
    /// [`crate::iq1_m`].
    Iq1M: 2048 points of 8, nearest_8, scales to 7 per 16, signs Points, shift Point, unit 0.125, levels DIGITS, starts [0.137], of extreme [];
    /// [`crate::iq2_xxs`].
    Iq2Xxs: 256 points of 8, nearest_8, scales to 15 per 32, signs Even, shift None, unit 0.125, levels MAGNITUDES_2, starts [0.048, 0.06], of extreme [];
    /// [`crate::iq2_xs`].
    Iq2Xs: 512 points of 8, nearest_8, scales to 15 per 16, signs Even, shift None, unit 0.125, levels MAGNITUDES_2, starts [0.048, 0.06], of extreme [];
    /// [`crate::iq2_s`].
    Iq2S: 1024 points of 8, nearest_8, scales to 15 per 16, signs Each, shift None, unit 0.125, levels MAGNITUDES_2, starts [0.044, 0.052, 0.061], of extreme [];
    /// [`crate::iq3_xxs`].
    Iq3Xxs: 256 points of 4, nearest_4, scales to 15 per 32, signs Even, shift None, unit 0.5, levels MAGNITUDES_3_XXS, starts [0.075], of extreme [0.8, 1.0];
    /// [`crate::iq3_s`].
    Iq3S: 512 points of 4, nearest_4, scales to 15 per 32, signs Each, shift None, unit 1.0, levels MAGNITUDES_3_S, starts [0.145], of extreme [0.8, 1.0];
}

/// The integers and the scale of one block, not yet packed.
pub(crate) struct GridBlock {
    pub(crate) d: f16,
    /// Of each sub-block, 0 to `SCALE_MAX`.
    pub(crate) scales: [u8; 16],
    /// Of each point, its index in the grid.
    pub(crate) points: [u16; 64],
    /// Of each point, whether its levels are shifted down.
    pub(crate) shifts: [u8; 64],
    /// Of each eight elements, where the format keeps signs apart: bit `i` set for a minus.
    pub(crate) signs: [u8; 32],
}

/// The signs of the elements in eights (bit `i` set: minus) and the magnitudes that go with them.
///
/// With `even`, the number of minuses of each eight is made even: one magnitude may be negative then.
fn split_signs(x: &[f32; 256], w: &[f32; 256], even: bool) -> ([u8; 32], [f32; 256]) {
    let (mut signs, mut magnitudes) = ([0; 32], x.map(f32::abs));
    for (k, x) in x.as_chunks::<8>().0.iter().enumerate() {
        signs[k] = x.iter().enumerate().fold(0, |signs, (i, x)| signs | u8::from(*x < 0.0) << i);
        if even && signs[k].count_ones() % 2 == 1 {
            let loss = |i: &usize| w[8 * k + i] * magnitudes[8 * k + i];
            let turned = (0..8).min_by(|a, b| loss(a).total_cmp(&loss(b))).unwrap_or(0);
            signs[k] ^= 1 << turned;
            magnitudes[8 * k + turned] = -magnitudes[8 * k + turned];
        }
    }
    (signs, magnitudes)
}

/// Searches a block; `None` if the scale exceeds f16.
pub(crate) fn search<B: Codebook>(x: &[f32; 256], w: &[f32; 256]) -> Option<GridBlock> {
    match B::SIGNS {
        Signs::Points => search_points::<B>(x, w),
        Signs::Each | Signs::Even => {
            let (signs, magnitudes) = split_signs(x, w, B::SIGNS == Signs::Even);
            Some(GridBlock { signs, ..search_points::<B>(&magnitudes, w)? })
        }
    }
}

/// Searches a block of what the points stand for: elements, or magnitudes where signs are apart.
fn search_points<B: Codebook>(x: &[f32; 256], w: &[f32; 256]) -> Option<GridBlock> {
    let most = f32::from(2 * B::SCALE_MAX + 1);
    let largest = f16::MAX.to_f32() * B::UNIT * most * B::LARGEST;
    if x.iter().any(|x| x.abs() > largest) {
        return None;
    }
    let mut block = Block::<B> {
        x,
        w,
        found: GridBlock { d: f16::ZERO, scales: [0; 16], points: [0; 64], shifts: [0; 64], signs: [0; 32] },
        of: std::marker::PhantomData,
    };
    let n_subs = 256 / B::SUB_LEN;
    let mut fits = [Fit::default(); 16];
    for (s, fit) in fits[..n_subs].iter_mut().enumerate() {
        *fit = block.fit(s);
    }
    let fits = &fits[..n_subs];
    let d = scale_f16(best_unit(fits, most) / B::UNIT)?;
    if d == f16::ZERO {
        return Some(block.found);
    }
    let (mut unit, mut sums) = (d.to_f32() * B::UNIT, [Sums::default(); 16]);
    for (s, sums) in sums[..n_subs].iter_mut().enumerate() {
        *sums = block.better_of_two(s, fits[s].scale / unit, unit);
    }
    // d of least squares over the block for these points.
    let (mut ll, mut lx) = (0.0f64, 0.0f64);
    for (sums, scale) in sums.iter().zip(block.found.scales) {
        let odd = f64::from(2 * scale + 1);
        ll += odd * odd * f64::from(sums.ll);
        lx += odd * f64::from(sums.lx);
    }
    block.found.d = d;
    if let Some(better) = scale_f16((lx / ll) as f32 / B::UNIT).filter(|d| d.to_f32() > 0.0) {
        block.found.d = better;
        unit = better.to_f32() * B::UNIT;
        for s in 0..n_subs {
            block.assign(s, unit * f32::from(2 * block.found.scales[s] + 1), true);
        }
    }
    Some(block.found)
}

/// What least squares needs of the points of a sub-block.
#[derive(Clone, Copy, Default)]
struct Sums {
    ll: f32,
    lx: f32,
}

impl Sums {
    fn add(&mut self, found: Found) {
        self.ll += found.ll;
        self.lx += found.lx;
    }

    /// The squared error at this scale, less `Σwx²`.
    fn cost(self, scale: f32) -> f32 {
        (scale * self.ll - 2.0 * self.lx) * scale
    }
}

/// The real scale that suits a sub-block, and the weight of a deviation from it.
#[derive(Clone, Copy, Default)]
struct Fit {
    scale: f32,
    weight: f32,
}

struct Block<'a, B> {
    x: &'a [f32; 256],
    w: &'a [f32; 256],
    found: GridBlock,
    of: std::marker::PhantomData<B>,
}

impl<B: Codebook> Block<'_, B> {
    /// The points of sub-block `s` that are nearest at a real scale, written to `found`. Shifts are chosen anew, or kept.
    fn assign(&mut self, s: usize, scale: f32, keep_shifts: bool) -> Sums {
        let points = s * B::SUB_LEN / B::POINT_LEN..(s + 1) * B::SUB_LEN / B::POINT_LEN;
        let nearest = |p: usize, shift: usize| {
            let at = p * B::POINT_LEN..(p + 1) * B::POINT_LEN;
            B::nearest(&self.x[at.clone()], &self.w[at], scale, shift)
        };
        let mut sums = Sums::default();
        match B::SHIFT {
            _ if keep_shifts || B::SHIFT == Shift::None => {
                for p in points {
                    let found = nearest(p, usize::from(self.found.shifts[p]));
                    self.found.points[p] = found.index;
                    sums.add(found);
                }
            }
            Shift::None | Shift::Point => {
                for p in points {
                    let both = [nearest(p, 0), nearest(p, 1)];
                    let costs = both.map(|found| Sums { ll: found.ll, lx: found.lx }.cost(scale));
                    let shift = usize::from(costs[1] < costs[0]);
                    (self.found.points[p], self.found.shifts[p]) = (both[shift].index, shift as u8);
                    sums.add(both[shift]);
                }
            }
            Shift::SubBlock => {
                let mut both = [(Sums::default(), [0; 4]); 2];
                for (shift, (sums, indices)) in both.iter_mut().enumerate() {
                    for (p, index) in points.clone().zip(indices) {
                        let found = nearest(p, shift);
                        *index = found.index;
                        sums.add(found);
                    }
                }
                let shift = usize::from(both[1].0.cost(scale) < both[0].0.cost(scale));
                self.found.points[points.clone()].copy_from_slice(&both[shift].1);
                self.found.shifts[points].fill(shift as u8);
                sums = both[shift].0;
            }
        }
        sums
    }

    /// The best real scale of the starts and their refits.
    fn fit(&mut self, s: usize) -> Fit {
        let at = s * B::SUB_LEN..(s + 1) * B::SUB_LEN;
        let (mut wxx, mut w_sum, mut extreme) = (0.0, 0.0, 0.0f32);
        for (x, w) in self.x[at.clone()].iter().zip(&self.w[at]) {
            wxx += w * x * x;
            w_sum += w;
            extreme = extreme.max(x.abs());
        }
        let rms = (wxx / w_sum).sqrt();
        // f16 scales vanish long before.
        if rms < 1e-20 {
            return Fit::default();
        }
        let (mut best, mut explained) = (Fit::default(), 0.0);
        let mut keep_shifts = false;
        let mut consider = |scale: f32| {
            let Sums { ll, lx } = self.assign(s, scale, keep_shifts);
            keep_shifts = true;
            // The least-squares scale lx / ll explains lx² / ll of Σwx².
            let better = lx > 0.0 && lx * lx > explained * ll;
            if better {
                (best, explained) = (Fit { scale: lx / ll, weight: ll }, lx * lx / ll);
            }
            (best, better)
        };
        let mut fit = Fit::default();
        let starts = B::STARTS.iter().map(|start| start * rms);
        for start in starts.chain(B::EXTREME_STARTS.iter().map(|start| start * extreme / B::LARGEST)) {
            fit = consider(start).0;
        }
        for _ in 0..MAX_REFITS {
            let (next, better) = consider(fit.scale);
            fit = next;
            if !better {
                break;
            }
        }
        fit
    }

    /// Tries the odd multiples of `unit` around a real one, or one where it is clearly the nearer; leaves the better in
    /// `found`.
    fn better_of_two(&mut self, s: usize, real: f32, unit: f32) -> Sums {
        /// Closer to an odd number than this, of at most 1, it is not worth to try the other.
        const CLEAR: f32 = 0.25;
        let low = ((real - 1.0) / 2.0).clamp(0.0, f32::from(B::SCALE_MAX)) as u8;
        let above = real - f32::from(2 * low + 1);
        let (near, other) = if above <= 1.0 { (low, low + 1) } else { (low + 1, low) };
        let (near, other) = (near.min(B::SCALE_MAX), other.min(B::SCALE_MAX));
        let scale_of = |scale: u8| unit * f32::from(2 * scale + 1);
        let sums = self.assign(s, scale_of(near), true);
        self.found.scales[s] = near;
        if other == near || above <= CLEAR || above >= 2.0 - CLEAR {
            return sums;
        }
        let points = self.found.points;
        let other_sums = self.assign(s, scale_of(other), true);
        if other_sums.cost(scale_of(other)) < sums.cost(scale_of(near)) {
            self.found.scales[s] = other;
            return other_sums;
        }
        self.found.points = points;
        sums
    }
}

/// The unit whose odd multiples up to `most` suit the scales best; 0 for a block of zeros.
fn best_unit(fits: &[Fit], most: f32) -> f32 {
    let largest = fits.iter().fold(0.0f32, |largest, fit| largest.max(fit.scale));
    let loss = |unit: f32| {
        let losses = fits.iter().map(|fit| {
            let odd = (2.0 * ((fit.scale / unit - 1.0) / 2.0).round() + 1.0).clamp(1.0, most);
            let error = fit.scale - unit * odd;
            fit.weight * error * error
        });
        losses.sum::<f32>()
    };
    let mut best = (largest / most, f32::INFINITY);
    if largest == 0.0 {
        return 0.0;
    }
    for step in 0..SHARE_STEPS {
        let unit = largest / (most * (SHARE_FROM + SHARE_STEP * f32::from(step)));
        let loss = loss(unit);
        if loss < best.1 {
            best = (unit, loss);
        }
    }
    best.0
}

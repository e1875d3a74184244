//! RMSNorm, plain and fused with the addition before it, and addition itself.
//!
//! Invariant: a row's sum of squares is taken in an order that depends on its length alone.

use crate::simd::{Kernel, Simd};

/// `sum(x^2)`: four vectors take turns, then one tree, then the tail.
#[inline(always)]
fn sum_of_squares<S: Simd>(s: S, x: &[f32]) -> f32 {
    let mut sums = [s.splat(0.0); 4];
    let blocks = x.chunks_exact(4 * S::LANES);
    let vectors = blocks.remainder().chunks_exact(S::LANES);
    let tail = vectors.remainder();
    for block in blocks {
        for (i, sum) in sums.iter_mut().enumerate() {
            let v = s.load(&block[i * S::LANES..]);
            *sum = s.fma(v, v, *sum);
        }
    }
    for (v, sum) in vectors.zip(&mut sums) {
        let v = s.load(v);
        *sum = s.fma(v, v, *sum);
    }
    let v = s.load_part(tail);
    sums[3] = s.fma(v, v, sums[3]);
    s.sum(s.add(s.add(sums[0], sums[2]), s.add(sums[1], sums[3])))
}

/// `1 / sqrt(mean(x^2) + eps)`.
#[inline(always)]
pub(crate) fn inverse_rms<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
    1.0 / (sum_of_squares(s, x) / x.len() as f32 + eps).sqrt()
}

/// `x = x / rms(x) * weight`, in place.
#[inline(always)]
pub(crate) fn norm_in_place<S: Simd>(s: S, x: &mut [f32], weight: &[f32], eps: f32) {
    let scale = inverse_rms(s, x, eps);
    let whole = x.len() - x.len() % S::LANES;
    for at in (0..whole).step_by(S::LANES) {
        let v = s.mul(s.mul(s.load(&x[at..]), s.splat(scale)), s.load(&weight[at..]));
        s.store(v, &mut x[at..]);
    }
    for (x, w) in x[whole..].iter_mut().zip(&weight[whole..]) {
        *x = *x * scale * w;
    }
}

/// `out = x / rms(x) * weight` for rows of `weight.len()`.
pub(crate) struct RmsNorm<'a> {
    pub x: &'a [f32],
    pub weight: &'a [f32],
    pub eps: f32,
    pub out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let cols = self.weight.len();
        for (x, out) in self.x.chunks_exact(cols).zip(self.out.chunks_exact_mut(cols)) {
            out.copy_from_slice(x);
            norm_in_place(s, out, self.weight, self.eps);
        }
    }
}

/// `x += y`.
pub(crate) struct Add<'a> {
    pub x: &'a mut [f32],
    pub y: &'a [f32],
}

impl Kernel for Add<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        // Compiled for the ISA's vectors without help.
        self.x.iter_mut().zip(self.y).for_each(|(x, y)| *x += y);
    }
}

/// `x += y; out = x / rms(x) * weight`, a row at a time while it is in the cache.
pub(crate) struct AddRmsNorm<'a> {
    pub x: &'a mut [f32],
    pub y: &'a [f32],
    pub weight: &'a [f32],
    pub eps: f32,
    pub out: &'a mut [f32],
}

impl Kernel for AddRmsNorm<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let cols = self.weight.len();
        let rows = self.x.chunks_exact_mut(cols).zip(self.y.chunks_exact(cols));
        for ((x, y), out) in rows.zip(self.out.chunks_exact_mut(cols)) {
            Add { x, y }.run(s);
            RmsNorm { x, weight: self.weight, eps: self.eps, out }.run(s);
        }
    }
}

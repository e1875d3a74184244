//! BF16 and F16 weights on machines with AMX: sums of products of bf16, on vectors here, on tiles in `tiles/terms.rs`.
//!
//! The tile product of floats takes bf16 alone, so activations, and half-precision weights, are cut into *terms*:
//!
//! ```text
//! x = x0 + x1      x0 = bf16(x), x1 = bf16(x - x0)       off by at most 2^-17 of x
//! w = w0 (+ w1)    exact: bf16 is its own only term, 11 bits of half precision are 8 and 3
//!
//! sum = 0
//! for each group of 32 input features, in order
//!     for each of the products x0 w0, x1 w0 (, x0 w1, x1 w1), in order
//!         even, odd = 0
//!         for each pair of the group:  even = fma(x[2i], w[2i], even);  odd = fma(x[2i + 1], w[2i + 1], odd)
//!         sum = sum + (even + odd)
//! out = sum + bias
//! ```
//!
//! That is what `tdpbf16ps` computes (as in attention, see there), if no denormal number comes up, which it takes as
//! zero: so terms of activations below 2^-62 and bf16 weights below 2^-50 are 0. A product is then a multiple of 2^-126,
//! and so is every sum.
//!
//! Against float32 throughout: a chain of float32 multiply-adds over 1,000 features is off by some 2^-19 of the sum of
//! magnitudes, and this by less. Machines without AMX have nothing to gain from terms and keep `floats.rs`.
//!
//! Invariant: these vectors and tiles give the same bits, for any number of rows.

#![allow(clippy::needless_range_loop, reason = "m and p number rows and panels, in several arrays at once")]

use half::{bf16, f16};
use pelton_backend::Weight;

use super::activations::{PARALLEL, Shared, tiles};
use super::blocks::Panels;
use super::floats;
use super::kernel::pack_floats;
use super::lanes::{Lanes, Scalar};
#[cfg(target_arch = "x86_64")]
use super::tiles::terms::TiledTerms;
use crate::isa::Isa;
use crate::pool::Pool;

/// Input features of a group.
pub(super) const GROUP: usize = 32;

/// Bytes of a group of a panel: a tile.
pub(super) const GROUP_BYTES: usize = 16 * GROUP * 2;

/// Terms of activations below are 0.
const SMALLEST: f32 = f32::from_bits((127 - 62) << 23);

/// Weights below are 0.
const SMALLEST_WEIGHT: f32 = f32::from_bits((127 - 50) << 23);

/// Bytes of a panel of `k` input features.
pub(super) const fn panel_bytes(k: usize) -> usize {
    k.div_ceil(GROUP) * GROUP_BYTES
}

/// The bits of `x` as bf16, rounded to nearest even, in the upper half.
#[inline(always)]
fn rounded(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

/// The bf16 nearest to `x`, ties away from zero; anything where `x` is no number.
#[inline(always)]
fn nearest(x: f32) -> f32 {
    f32::from_bits(x.to_bits().wrapping_add(0x8000) & 0xffff_0000)
}

/// The terms of an activation, both bf16. Without branches, for vectors.
#[inline(always)]
pub(super) fn split(x: f32) -> [f32; 2] {
    let most = bf16::MAX.to_f32();
    let magnitude = x.abs();
    let near = if magnitude <= most { rounded(x) } else { most.copysign(x) };
    let first = if magnitude < SMALLEST { 0.0 } else { near };
    // Infinity is itself, and what is no number stays so when its lower half is cut off.
    let first = if magnitude == f32::INFINITY { x } else { first };
    let first = if x.is_nan() { f32::NAN } else { first };
    let rest = x - first;
    let second = if rest.abs() < SMALLEST || !first.is_finite() { 0.0 } else { rounded(rest) };
    [first, second]
}

/// Activations in terms, for vectors and for tiles.
#[derive(Debug, Default)]
pub(super) struct Terms {
    /// `(row, term, k rounded up)`, zeros past `k`.
    rows: Vec<f32>,
    #[cfg(target_arch = "x86_64")]
    pub(super) tiles: TiledTerms,
}

impl Terms {
    /// Cuts `x`, `(rows, k)`.
    pub(super) fn split(&mut self, x: &[f32], rows: usize, isa: Isa, pool: &Pool) {
        let k = x.len() / rows;
        let width = k.next_multiple_of(GROUP);
        self.rows.clear();
        self.rows.resize(rows * 2 * width, 0.0);
        let all = Shared(self.rows.as_mut_ptr());
        let task = |row: usize| {
            // SAFETY: each row belongs to one task.
            let out = unsafe { std::slice::from_raw_parts_mut(all.get().add(row * 2 * width), 2 * width) };
            let x = &x[row * k..(row + 1) * k];
            match isa {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the token proves the instructions.
                Isa::Amx(_) => unsafe { split_row_avx512(x, out) },
                _ => split_row(x, out),
            }
        };
        if x.len() < PARALLEL { (0..rows).for_each(task) } else { pool.run(rows, &task) }
    }
}

/// The terms of a row: all of the first, then all of the second.
#[inline(always)]
fn split_row(x: &[f32], out: &mut [f32]) {
    let (first, second) = out.split_at_mut(out.len() / 2);
    for ((x, first), second) in x.iter().zip(first).zip(second) {
        [*first, *second] = split(*x);
    }
}

/// # Safety
/// The machine must have AVX-512 F, BW, DQ and VL.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn split_row_avx512(x: &[f32], out: &mut [f32]) {
    split_row(x, out);
}

/// What the vectors of terms need besides [`Lanes`]; safe to call under the same condition.
pub(super) trait TermLanes: Lanes {
    /// 16 pairs of bf16, 64 bytes: the first of each, and the second.
    unsafe fn load_bf16_pairs(p: *const u8) -> [Self::F; 2];
    /// The nearest bf16, ties away from zero; anything where there is no number.
    unsafe fn nearest(v: Self::F) -> Self::F;
}

impl TermLanes for Scalar {
    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u8) -> [[f32; 16]; 2] {
        // SAFETY: the caller's.
        let pairs = unsafe { p.cast::<[[u8; 4]; 16]>().read() }.map(u32::from_le_bytes);
        [pairs.map(|v| f32::from_bits(v << 16)), pairs.map(|v| f32::from_bits(v & 0xffff_0000))]
    }
    #[inline(always)]
    unsafe fn nearest(v: [f32; 16]) -> [f32; 16] {
        v.map(nearest)
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::lanes_x86::Zmm;
    use super::TermLanes;

    impl TermLanes for Zmm {
        #[inline(always)]
        unsafe fn load_bf16_pairs(p: *const u8) -> [__m512; 2] {
            // SAFETY: the caller's.
            unsafe {
                let pairs = _mm512_loadu_si512(p.cast());
                let odd = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
                [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(odd)]
            }
        }
        #[inline(always)]
        unsafe fn nearest(v: __m512) -> __m512 {
            // SAFETY: the caller's.
            unsafe {
                let up = _mm512_add_epi32(_mm512_castps_si512(v), _mm512_set1_epi32(0x8000));
                _mm512_castsi512_ps(_mm512_and_si512(up, _mm512_set1_epi32(0xffff_0000_u32 as i32)))
            }
        }
    }
}

/// A type of weights of 16 bits.
pub(super) trait Halves: 'static {
    /// Terms of a weight: 1 or 2.
    const TERMS: usize;

    /// Packs rows `16 i..` of the weight as panel `i`, which is all zero before. A group of a panel is [`GROUP_BYTES`].
    fn pack(weight: &Weight, panel: usize, out: &mut [u8]);

    /// The terms of 16 pairs of weights, each term the first of each pair and the second; the first `TERMS` count.
    ///
    /// # Safety
    /// As [`Lanes`]; `p` points to 64 bytes of a group.
    unsafe fn pairs<S: TermLanes>(p: *const u8) -> [[S::F; 2]; 2];
}

/// bfloat16: a pair of features of 16 rows side by side, as tiles read them.
pub(super) struct Bf16;

impl Halves for Bf16 {
    const TERMS: usize = 1;

    fn pack(weight: &Weight, panel: usize, out: &mut [u8]) {
        let (row_bytes, rows) = (weight.row_bytes(), 16 * panel..weight.rows().min(16 * panel + 16));
        let file = weight.row_range(rows);
        let large = |v: [u8; 2]| {
            let v = bf16::from_le_bytes(v);
            if v.to_f32().abs() < SMALLEST_WEIGHT { [0; 2] } else { v.to_le_bytes() }
        };
        for (group, out) in out.chunks_exact_mut(GROUP_BYTES).enumerate() {
            for (row, file) in file.chunks_exact(row_bytes).enumerate() {
                let part = &file[2 * GROUP * group..row_bytes.min(2 * GROUP * (group + 1))];
                for (i, v) in part.as_chunks::<2>().0.iter().enumerate() {
                    out[64 * (i / 2) + 4 * row + 2 * (i % 2)..][..2].copy_from_slice(&large(*v));
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn pairs<S: TermLanes>(p: *const u8) -> [[S::F; 2]; 2] {
        // SAFETY: the caller's.
        unsafe {
            let pairs = S::load_bf16_pairs(p);
            [pairs, pairs]
        }
    }
}

/// IEEE half precision: one feature of 16 rows after the other, as `floats.rs` has them.
pub(super) struct F16;

impl Halves for F16 {
    const TERMS: usize = 2;

    fn pack(weight: &Weight, panel: usize, out: &mut [u8]) {
        pack_floats::<floats::F16>(weight, panel, &mut out[..16 * size_of::<f16>() * weight.cols()]);
    }

    #[inline(always)]
    unsafe fn pairs<S: TermLanes>(p: *const u8) -> [[S::F; 2]; 2] {
        // SAFETY: the caller's.
        unsafe {
            let (even, odd) = (S::load_f16(p), S::load_f16(p.add(32)));
            let (first_even, first_odd) = (S::nearest(even), S::nearest(odd));
            let minus = S::splat(-1.0);
            [[first_even, first_odd], [S::fma(first_even, minus, even), S::fma(first_odd, minus, odd)]]
        }
    }
}

/// How far ahead of the multiplication weights are prefetched, in bytes.
const AHEAD: usize = 1024;

/// Runs a task, all panels for a few rows before the next.
///
/// # Safety
/// As [`Lanes`]; `weights` are panels of `W`, the terms are of `rows` rows, and the task owns its columns of `out`.
#[inline(always)]
pub(super) unsafe fn run<W: Halves, S: TermLanes>(task: &Panels<'_>) {
    let x = &task.scratch.terms.rows;
    let width = task.k.next_multiple_of(GROUP);
    assert_eq!(x.len(), task.rows * 2 * width);
    for (row, group) in tiles(task.rows) {
        let m = group.min(if S::HAS_4 { 4 } else { 1 });
        for row in (row..row + group).step_by(m) {
            let x = x[row * 2 * width..].as_ptr();
            // SAFETY: the caller's; there are `m` rows from here on.
            unsafe {
                match m {
                    4 if S::HAS_4 => panels::<W, S, 4, 1>(task, row, x),
                    // More terms leave room for fewer panels.
                    2 if S::HAS_2 && W::TERMS == 2 => panels::<W, S, 2, 1>(task, row, x),
                    _ if S::HAS_2 && W::TERMS == 2 => panels::<W, S, 1, 2>(task, row, x),
                    2 if S::HAS_2 => panels::<W, S, 2, 2>(task, row, x),
                    _ if S::HAS_2 => panels::<W, S, 1, 4>(task, row, x),
                    _ => panels::<W, S, 1, 1>(task, row, x),
                }
            }
        }
    }
}

/// All panels of a task times `M` rows: `P` runs of panels side by side, and the remainder one by one.
///
/// # Safety
/// As [`run`]; `x` points to `M` rows.
#[inline(always)]
unsafe fn panels<W: Halves, S: TermLanes, const M: usize, const P: usize>(
    task: &Panels<'_>,
    row: usize,
    x: *const f32,
) {
    let run = task.n_panels / P;
    // SAFETY: the caller's.
    unsafe {
        for first in 0..run {
            let w = task.weights.add(first * task.panel_bytes);
            let sums = sums::<W, S, M, P>(w, run * task.panel_bytes, task.k, x);
            for m in 0..M {
                for p in 0..P {
                    task.store::<S>(sums[m][p], first + p * run, row + m);
                }
            }
        }
        for panel in run * P..task.n_panels {
            let sums = sums::<W, S, M, 1>(task.weights.add(panel * task.panel_bytes), 0, task.k, x);
            for m in 0..M {
                task.store::<S>(sums[m][0], panel, row + m);
            }
        }
    }
}

/// `W x`: `w` is the first of `P` panels, `stride` bytes apart, `x` the first of `M` rows.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn sums<W: Halves, S: TermLanes, const M: usize, const P: usize>(
    w: *const u8,
    stride: usize,
    k: usize,
    x: *const f32,
) -> [[S::F; P]; M] {
    let width = k.next_multiple_of(GROUP);
    // SAFETY: the caller's: `w` and `x` walk over the panels and the rows.
    unsafe {
        let mut sums = [[S::splat(0.0); P]; M];
        for pairs in (0..width / 2).step_by(GROUP / 2) {
            // Of each product the even and the odd chain.
            let mut chains = [[[[S::splat(0.0); 2]; 4]; P]; M];
            for pair in pairs..pairs + GROUP / 2 {
                for p in 0..P {
                    let w = w.add(p * stride + 64 * pair);
                    S::prefetch(w.wrapping_add(AHEAD));
                    let w = W::pairs::<S>(w);
                    for m in 0..M {
                        let first = x.add(2 * m * width + 2 * pair);
                        let second = first.add(width);
                        let chains = &mut chains[m][p];
                        for odd in 0..2 {
                            let (x0, x1) = (S::splat(*first.add(odd)), S::splat(*second.add(odd)));
                            chains[0][odd] = S::fma(w[0][odd], x0, chains[0][odd]);
                            chains[1][odd] = S::fma(w[0][odd], x1, chains[1][odd]);
                            if W::TERMS == 2 {
                                chains[2][odd] = S::fma(w[1][odd], x0, chains[2][odd]);
                                chains[3][odd] = S::fma(w[1][odd], x1, chains[3][odd]);
                            }
                        }
                    }
                }
            }
            for m in 0..M {
                for p in 0..P {
                    for product in 0..2 * W::TERMS {
                        let [even, odd] = chains[m][p][product];
                        sums[m][p] = S::add(sums[m][p], S::add(even, odd));
                    }
                }
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_terms_are_bf16_and_near_the_number() {
        let mut bits = 1u32;
        for _ in 0..20_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let x = f32::from_bits(bits);
            let [first, second] = split(x);
            assert!([first, second].iter().all(|t| t.to_bits() & 0xffff == 0), "{x:e}: {first:e} {second:e}");
            if x.is_finite() && x.abs() >= 2.0 * SMALLEST * 65536.0 {
                let off = (f64::from(x) - f64::from(first) - f64::from(second)).abs();
                assert!(off <= f64::from(x.abs()) * 2f64.powi(-17), "{x:e} is off by {off:e}");
            }
            for term in [first, second] {
                assert!(term == 0.0 || term.abs() >= SMALLEST || term.is_nan());
            }
        }
    }

    #[test]
    fn extremes_are_kept() {
        let inf = f32::INFINITY;
        assert_eq!(split(inf), [inf, 0.0]);
        assert_eq!(split(-inf), [-inf, 0.0]);
        assert!(split(f32::from_bits(0x7f80_0001))[0].is_nan() && split(-f32::NAN)[0].is_nan());
        let [first, second] = split(f32::MAX);
        assert!(first.is_finite() && second.is_finite() && first + second > 3.4028e38);
        assert_eq!(split(f32::from_bits(3)), [0.0; 2]);
        assert_eq!(split(-0.0), [0.0; 2]);
        assert_eq!(split(1.0), [1.0, 0.0]);
    }

    #[test]
    fn half_precision_is_two_terms_exactly() {
        for bits in (0..0x7c00).chain(0x8000..0xfc00) {
            let w = f16::from_bits(bits).to_f32();
            let first = nearest(w);
            let second = w - first;
            assert_eq!((second.to_bits() & 0xffff, first + second), (0, w), "{bits:x}");
        }
    }
}

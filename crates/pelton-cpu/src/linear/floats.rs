//! The kernel of F32, F16 and BF16 weights, once for every type and instruction set.
//!
//! ```text
//! panel  │ k = 0: w of 16 rows │ k = 1: w of 16 rows │ …
//!
//! acc = 0;  for k in order: acc = fma(w[n][k], x[m][k], acc);  out = acc + bias[n]
//! ```
//!
//! Departures from the plain loop: 16 output features run side by side in lanes, so the order along `k` is the
//! plain loop's. One such chain waits for its own result (4 cycles) at every step; so that the multipliers are busy
//! all the same, several rows, and where there are few rows several panels, are walked at once.

#![allow(clippy::needless_range_loop, reason = "m and p number rows and panels, in several arrays at once")]

use super::activations::tiles;
use super::blocks::Panels;
use super::lanes::Lanes;

/// A float type of weights.
pub(super) trait Element: 'static {
    /// Bytes of an element.
    const BYTES: usize;

    /// 16 elements as f32, exact.
    ///
    /// # Safety
    /// As [`Lanes`]; `p` points to `16 * BYTES` readable bytes.
    unsafe fn load<S: Lanes>(p: *const u8) -> S::F;
}

/// 32-bit floats.
pub(super) struct F32;

impl Element for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Lanes>(p: *const u8) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::load(p) }
    }
}

/// IEEE half precision.
pub(super) struct F16;

impl Element for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Lanes>(p: *const u8) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::load_f16(p) }
    }
}

/// bfloat16.
pub(super) struct Bf16;

impl Element for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Lanes>(p: *const u8) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::load_bf16(p) }
    }
}

/// How far ahead of the multiplication weights are prefetched, in bytes.
const AHEAD: usize = 768;

/// Runs a task, all panels for a tile of rows before the next tile.
///
/// # Safety
/// As [`Lanes`]; `weights` are panels of `E`, `floats` are `rows` rows in tiles, and the task owns its columns of
/// `out`.
#[inline(always)]
pub(super) unsafe fn run<E: Element, S: Lanes>(task: &Panels<'_>) {
    assert_eq!(task.floats.len(), task.rows * task.k);
    for (row, group) in tiles(task.rows) {
        let x = task.floats[row * task.k..].as_ptr();
        let m = group.min(S::MAX_ROWS);
        for i in (0..group).step_by(m) {
            // SAFETY: the caller's; a group is as long as `tiles` says.
            unsafe {
                let (row, x) = (row + i, x.add(i));
                match m {
                    8 if S::HAS_8 => panels::<E, S, 8, 2>(task, row, x, group),
                    4 if S::WIDE_TILES => panels::<E, S, 4, 4>(task, row, x, group),
                    4 if S::HAS_4 => panels::<E, S, 4, 1>(task, row, x, group),
                    2 if S::WIDE_TILES => panels::<E, S, 2, 4>(task, row, x, group),
                    2 if S::HAS_2 => panels::<E, S, 2, 2>(task, row, x, group),
                    _ if S::HAS_2 => panels::<E, S, 1, 4>(task, row, x, group),
                    _ => panels::<E, S, 1, 1>(task, row, x, group),
                }
            }
        }
    }
}

/// All panels of a task times `M` rows of a group: `P` runs of panels side by side, and the remainder one by one.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn panels<E: Element, S: Lanes, const M: usize, const P: usize>(
    task: &Panels<'_>,
    row: usize,
    x: *const f32,
    group: usize,
) {
    let run = task.n_panels / P;
    // SAFETY: the caller's.
    unsafe {
        for first in 0..run {
            let w = task.weights.add(first * task.panel_bytes);
            let mut acc = [[S::splat(0.0); P]; M];
            accumulate::<E, S, M, P>(w, run * task.panel_bytes, task.k, x, group, &mut acc);
            for m in 0..M {
                for p in 0..P {
                    task.store::<S>(acc[m][p], first + p * run, row + m);
                }
            }
        }
        for panel in run * P..task.n_panels {
            let w = task.weights.add(panel * task.panel_bytes);
            let mut acc = [[S::splat(0.0); 1]; M];
            accumulate::<E, S, M, 1>(w, 0, task.k, x, group, &mut acc);
            for m in 0..M {
                task.store::<S>(acc[m][0], panel, row + m);
            }
        }
    }
}

/// `acc[m][p] += W x` over `len` input features: `w` is the first of `P` panels, `stride` bytes apart, `x` the first
/// of `M` rows of a group of `group`.
///
/// # Safety
/// As [`run`].
#[inline(always)]
pub(super) unsafe fn accumulate<E: Element, S: Lanes, const M: usize, const P: usize>(
    mut w: *const u8,
    stride: usize,
    len: usize,
    mut x: *const f32,
    group: usize,
    acc: &mut [[S::F; P]; M],
) {
    let mut sums = *acc;
    for _ in 0..len {
        // SAFETY: the caller's: `w` and `x` walk over the panels and the rows.
        unsafe {
            for p in 0..P {
                let w = w.add(p * stride);
                S::prefetch(w.wrapping_add(AHEAD));
                let w = E::load::<S>(w);
                for m in 0..M {
                    sums[m][p] = S::fma(w, S::splat(*x.add(m)), sums[m][p]);
                }
            }
        }
        w = w.wrapping_add(16 * E::BYTES);
        x = x.wrapping_add(group);
    }
    *acc = sums;
}

//! The kernel of all formats with superblocks of 256 elements, once for every format and instruction set.
//!
//! A *panel* is 16 output features, walked along the input in superblocks, each of them cut into units of 32:
//!
//! ```text
//! panel  │ block 0                                                       │ block 1 │ …
//! block  │ head: d of 16 rows (, -dmin, minima) │ unit 0 │ unit 1 │ … 7
//! unit   │ codes of 16 rows, see codes.rs │ integer scales of 16 rows
//! ```
//!
//! The plain loop, for output feature `n` and activation row `m`:
//!
//! ```text
//! acc = 0
//! for each superblock:
//!     total = sum over its sub-blocks (16 or 32 elements) of scale[n] * dot         exact, in i32
//!             where dot = sum of (code[n][k] - offset) * xcode[m][k]
//!     least = sum over its sub-blocks of min[n] * sum of xcode[m]                   exact, in i32
//!     acc = fma(float(total), d[n] * xscale[m], acc)
//!     acc = fma(float(least), -dmin[n] * xscale[m], acc)                            formats with minima
//! out = acc + bias[n]
//! ```
//!
//! All but two operations of a superblock are exact, so they may be done in any order: tiles of AMX take others, see
//! `tiles/`. `total` is largest for `q6_k`: 16 sub-blocks of 16 * 32 * 127 * 128, which is 133 million. The departures
//! are those of `blocks.rs`.

#![allow(clippy::needless_range_loop, reason = "m and p number rows and panels, in several arrays at once")]

use super::activations::{ActBlock, BLOCK, UNIT, tiles};
use super::blocks::{Packed, Panels, Rows, STREAMS, ahead, dots};
use super::codes::Codes;
use super::lanes::Lanes;

/// Units of a superblock.
pub(super) const UNITS: usize = 8;

/// Bytes of `d` and of `-dmin` of 16 rows.
pub(super) const HALVES: usize = 32;

/// How tiles hold `scale * code`, see `tiles/supers.rs`.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only AMX has tiles"))]
pub(super) enum Planes {
    /// It fits a byte.
    One,
    /// Codes below 32 and scales below 64: two planes of unsigned digits.
    Unsigned,
    /// At most 13 bits with the sign: two planes of signed digits.
    Signed,
}

/// A format of 256 elements a block.
pub(super) trait SuperFormat: Packed {
    /// Parts of a unit with their own scale: 1 or 2.
    const PARTS: usize;
    /// Bytes of a unit's scales, for 16 rows.
    const SCALES: usize;
    /// Minima of a superblock: 0, 8 or 16.
    const MINS: usize;
    /// Bytes of a pair of minima, for 16 rows.
    const PAIR: usize;
    /// How tiles hold it.
    const PLANES: Planes;

    /// Bytes of a block's head, for 16 rows.
    const HEAD: usize = if Self::MINS > 0 { 2 * HALVES + Self::MINS / 2 * Self::PAIR } else { HALVES };
    /// Bytes of a unit, for 16 rows.
    const UNIT: usize = Self::Codes::BYTES + Self::SCALES;

    /// The integer scales of part `part` of a unit.
    ///
    /// # Safety
    /// As [`Lanes`]; `p` points behind the unit's codes.
    unsafe fn scale<S: Lanes>(p: *const u8, part: usize) -> S::I;

    /// Minima `2 * i` and `2 * i + 1` of a superblock as pairs of i16.
    ///
    /// # Safety
    /// As [`Lanes`]; `p` points to the head's minima.
    #[inline(always)]
    unsafe fn min_pair<S: Lanes>(_p: *const u8, _i: usize) -> S::I {
        // SAFETY: the caller's.
        unsafe { S::splat_i(0) }
    }
}

/// Runs a task: all panels for a tile of rows before the next tile, so that both stay in the second-level cache.
///
/// # Safety
/// As [`Lanes`]; `weights` are panels of `F`, the superblocks are `rows` rows in tiles, and the task owns its columns of
/// `out`.
#[inline(always)]
pub(super) unsafe fn run<F: SuperFormat, S: Lanes>(task: &Panels<'_>) {
    let blocks = task.k / BLOCK;
    assert_eq!(task.scratch.blocks.len(), task.rows * blocks);
    for (row, group) in tiles(task.rows) {
        let x = task.scratch.blocks[row * blocks..].as_ptr();
        // As in `blocks.rs`.
        let m = group.min(S::MAX_ROWS);
        for i in (0..group).step_by(m) {
            // SAFETY: the caller's; a group is as long as `tiles` says.
            unsafe {
                let (row, x) = (row + i, x.add(i));
                match m {
                    8 if S::HAS_8 => tile::<F, S, 8, 1>(task, row, x, group),
                    4 if S::HAS_8 => tile::<F, S, 4, 2>(task, row, x, group),
                    4 if S::HAS_4 => tile::<F, S, 4, 1>(task, row, x, group),
                    2 if S::HAS_2 => tile::<F, S, 2, STREAMS>(task, row, x, group),
                    _ => tile::<F, S, 1, STREAMS>(task, row, x, group),
                }
            }
        }
    }
}

/// All panels times `M` rows, `P` of them side by side, superblock by superblock: as in `blocks.rs`.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn tile<F: SuperFormat, S: Lanes, const M: usize, const P: usize>(
    task: &Panels<'_>,
    row: usize,
    x: *const ActBlock,
    group: usize,
) {
    let run = task.n_panels.div_ceil(P);
    for first in 0..run {
        let n = if P == 1 { 1 } else { (task.n_panels - first).div_ceil(run) };
        // SAFETY: the caller's; `block` and `x` walk over exactly the panels and the group's blocks.
        unsafe {
            let mut acc = [[S::splat(0.0); M]; P];
            let mut block = task.weights.add(first * task.panel_bytes);
            let mut x = x;
            for _ in 0..task.k / BLOCK {
                let mut totals = [[S::splat_i(0); M]; P];
                for u in 0..UNITS {
                    for (j, total) in totals[..n].iter_mut().enumerate() {
                        let codes = block.add(j * run * task.panel_bytes + F::HEAD + u * F::UNIT);
                        for line in 0..const { F::PANEL_BYTES.div_ceil(64 * UNITS) } {
                            S::prefetch(codes.wrapping_add(const { ahead(P) } + 64 * line));
                        }
                        unit::<F, S, M>(codes, x, u, total);
                    }
                }
                for (j, acc) in acc[..n].iter_mut().enumerate() {
                    scale::<F, S, M>(block.add(j * run * task.panel_bytes), x, &totals[j], acc);
                }
                // Wrapping: where a group has more rows than a tile, its last step ends past the blocks.
                x = x.wrapping_add(group);
                block = block.add(F::PANEL_BYTES);
            }
            for (j, acc) in acc[..n].iter().enumerate() {
                for m in 0..M {
                    task.store::<S>(acc[m], first + j * run, row + m);
                }
            }
        }
    }
}

/// Unit `u` of a superblock of one panel times `M` rows.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn unit<F: SuperFormat, S: Lanes, const M: usize>(
    codes: *const u8,
    x: *const ActBlock,
    u: usize,
    total: &mut [S::I; M],
) {
    // SAFETY: the caller's.
    unsafe {
        let scales = codes.add(F::Codes::BYTES);
        let rows = Rows {
            codes: (*x).codes.as_ptr().add(UNIT * u),
            neg_sums: (*x).neg_32.as_ptr().add(u),
            stride: size_of::<ActBlock>(),
        };
        if F::PARTS == 1 {
            let sums = dots::<F, S, M, 0, 4>(codes, rows);
            let scale = F::scale::<S>(scales, 0);
            for m in 0..M {
                total[m] = S::mul_add_i(sums[m], scale, total[m]);
            }
        } else {
            let neg_sums = (*x).neg_16.as_ptr().add(2 * u);
            let sums = dots::<F, S, M, 0, 2>(codes, Rows { neg_sums, ..rows });
            let scale = F::scale::<S>(scales, 0);
            for m in 0..M {
                total[m] = S::mul_add_i(sums[m], scale, total[m]);
            }
            let sums = dots::<F, S, M, 2, 4>(codes, Rows { neg_sums: neg_sums.add(1), ..rows });
            let scale = F::scale::<S>(scales, 1);
            for m in 0..M {
                total[m] = S::mul_add_i(sums[m], scale, total[m]);
            }
        }
    }
}

/// Scales the totals of a superblock of one panel and adds them, and the minima, to the sums of `M` rows.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn scale<F: SuperFormat, S: Lanes, const M: usize>(
    head: *const u8,
    x: *const ActBlock,
    total: &[S::I; M],
    acc: &mut [S::F; M],
) {
    // SAFETY: the caller's.
    unsafe {
        let d = S::load_f16(head);
        for m in 0..M {
            acc[m] = S::fma(S::to_f(total[m]), S::mul(d, S::splat((*x.add(m)).scale)), acc[m]);
        }
        if F::MINS > 0 {
            let mut least = [S::splat_i(0); M];
            for i in 0..F::MINS / 2 {
                let pair = F::min_pair::<S>(head.add(2 * HALVES), i);
                for m in 0..M {
                    let x = &*x.add(m);
                    let sums = if F::MINS == 8 { x.sum_32.as_ptr() } else { x.sum_16.as_ptr() };
                    least[m] = S::dot_pair(least[m], pair, sums.add(2 * i));
                }
            }
            let dmin = S::load_f16(head.add(HALVES));
            for m in 0..M {
                acc[m] = S::fma(S::to_f(least[m]), S::mul(dmin, S::splat((*x.add(m)).scale)), acc[m]);
            }
        }
    }
}

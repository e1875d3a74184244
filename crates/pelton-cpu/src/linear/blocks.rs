//! The kernel of all formats of 32 elements a block, once for every format and instruction set.
//!
//! A *panel* is 16 output features, walked along the input in units of 32:
//!
//! ```text
//! panel  │ unit 0 │ unit 1 │ …
//! unit   │ codes of 16 rows, see codes.rs │ scales of 16 rows (, minima)
//! ```
//!
//! The plain loop, for output feature `n` and activation row `m`:
//!
//! ```text
//! acc = 0
//! for each block of 256 activations, or what is left of a row:
//!     part = 0
//!     for each unit of it:
//!         dot = sum of (code[n][k] - offset) * xcode[m][k]            exact, in i32
//!         part = fma(float(dot), scale[n], part)
//!         part = fma(min[n], sum of xcode[m], part)                   formats with a minimum
//!     acc = fma(part, xscale[m], acc)
//! out = acc + bias[n]
//! ```
//!
//! Departures from it, each with its reason:
//!
//! - 16 output features run side by side in lanes, so no sum over `k` is ever taken across lanes, and the order of
//!   the f32 operations is the plain loop's on every machine and for any number of rows: the same bits.
//! - A tile of up to 8 activation rows shares each unpacked code vector, so few rows cost little more than one.
//! - `offset * sum of xcode` starts the integer sum instead of being subtracted from every code.
//! - Few rows are bound by memory, and a core keeps more reads in flight when they come from several places: so
//!   [`STREAMS`] panels are walked side by side (measured: 28 GB/s instead of 21 on two cores), and weights are
//!   asked for [`ahead`] of time. Eight rows are bound by arithmetic: their accumulators stay in
//!   registers, which leaves room for one panel.

#![allow(clippy::needless_range_loop, reason = "m and p number rows and panels, in several arrays at once")]

use super::activations::{ActBlock, BLOCK, LinearScratch, UNIT, tiles};
use super::codes::{Codes, UnitCodes};
use super::lanes::Lanes;

/// How far ahead of the multiplication the weights of `streams` panels are prefetched, in bytes.
pub(super) const fn ahead(streams: usize) -> usize {
    if streams == 1 { 3072 } else { 1024 }
}

/// Panels that a tile of few rows walks side by side.
pub(super) const STREAMS: usize = 4;

/// A block-quantized format as panels hold it.
pub(super) trait Packed: 'static {
    /// How the codes of a unit are stored.
    type Codes: Codes;
    /// Codes stand for themselves minus `2^OFFSET_SHIFT`.
    const OFFSET_SHIFT: Option<u32>;
    /// Bytes of a block in the file.
    const FILE_BYTES: usize;
    /// Bytes of a block of 16 rows in a panel.
    const PANEL_BYTES: usize;

    /// Units of a block.
    const UNITS: usize = 1;

    /// Where the codes of a unit lie in a block of a panel.
    #[inline(always)]
    fn codes_at(_unit: usize) -> usize {
        0
    }

    /// Takes one block of the file apart: the codes of each unit become row `row` of `codes[unit]`, and the scales
    /// row `row` of a block of a panel, which was all zero there.
    fn put(file: &[u8], row: usize, codes: &mut [UnitCodes], panel: &mut [u8]);
}

/// A format of 32 elements a block: a block of a panel is a unit's codes, its scales, its minima.
pub(super) trait Format: Packed {
    /// Whether there is a minimum to add.
    const HAS_MIN: bool;

    /// The scales of a unit.
    ///
    /// # Safety
    /// As [`Lanes`]; `p` points behind the unit's codes.
    unsafe fn scale<S: Lanes>(p: *const u8) -> S::F;

    /// The minima of a unit, to be added.
    ///
    /// # Safety
    /// As [`Format::scale`].
    #[inline(always)]
    unsafe fn min<S: Lanes>(_p: *const u8) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::splat(0.0) }
    }
}

/// One task of a linear call: some panels times all activation rows.
pub(super) struct Panels<'a> {
    /// The first panel.
    pub(super) weights: *const u8,
    /// Bytes of a panel.
    pub(super) panel_bytes: usize,
    /// Number of panels.
    pub(super) n_panels: usize,
    /// Input features.
    pub(super) k: usize,
    /// Activation rows.
    pub(super) rows: usize,
    /// Quantized activations, in tiles.
    pub(super) scratch: &'a LinearScratch,
    /// Activations of float formats, in tiles.
    pub(super) floats: &'a [f32],
    /// `(16 n_panels,)` or empty.
    pub(super) bias: &'a [f32],
    /// First output of row 0.
    pub(super) out: *mut f32,
    /// From a row's outputs to the next's.
    pub(super) out_stride: usize,
    /// Output features that exist: the last panel may be part padding.
    pub(super) cols: usize,
}

impl Panels<'_> {
    /// Adds the bias and stores the results of one panel for one row.
    ///
    /// # Safety
    /// As [`Lanes`]; this task owns its columns of `out`.
    #[inline(always)]
    pub(super) unsafe fn store<S: Lanes>(&self, acc: S::F, panel: usize, row: usize) {
        let col = 16 * panel;
        // SAFETY: `out` has `cols` columns from its first on in each of `rows` rows; `bias` is empty or whole panels.
        unsafe {
            let acc = match self.bias.get(col..col + 16) {
                Some(bias) => S::add(acc, S::load(bias.as_ptr().cast())),
                None => acc,
            };
            let out = self.out.add(row * self.out_stride + col);
            if col + 16 <= self.cols {
                S::store(acc, out);
            } else {
                let mut whole = [0.0; 16];
                S::store(acc, whole.as_mut_ptr());
                std::ptr::copy_nonoverlapping(whole.as_ptr(), out, self.cols - col);
            }
        }
    }
}

/// Runs a task: all panels for a tile of rows before the next tile, so that both stay in the second-level cache.
///
/// # Safety
/// As [`Lanes`]; `weights` are panels of `F`, the blocks are `rows` rows in tiles, and the task owns its columns of
/// `out`.
#[inline(always)]
pub(super) unsafe fn run<F: Format, S: Lanes>(task: &Panels<'_>) {
    let blocks = task.k.div_ceil(BLOCK);
    assert_eq!(task.scratch.blocks.len(), task.rows * blocks);
    for (row, group) in tiles(task.rows) {
        let x = task.scratch.blocks[row * blocks..].as_ptr();
        // At most MAX_ROWS of a group at a time. (A loop, not a closure: a closure is a function of its own, which
        // would not be compiled for the instruction set. The constants keep tiles that are too large for the
        // registers from being compiled at all.)
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

/// All panels times `M` rows: `x` is the first row's first block, the next block is `group` blocks on. The panels are
/// cut into `P` runs that are walked side by side; each run is one stream of memory from its first
/// panel to its last, so that what is prefetched past a panel's end is what comes next.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn tile<F: Format, S: Lanes, const M: usize, const P: usize>(
    task: &Panels<'_>,
    row: usize,
    x: *const ActBlock,
    group: usize,
) {
    let run = task.n_panels.div_ceil(P);
    for first in 0..run {
        // Panels `first`, `first + run`, … as far as there are; spelled out for the compiler that one is one: then
        // its accumulators stay in registers.
        let n = if P == 1 { 1 } else { (task.n_panels - first).div_ceil(run) };
        // SAFETY: the caller's; `codes` and `x` walk over exactly the panels and the group's blocks.
        unsafe {
            let mut acc = [[S::splat(0.0); M]; P];
            let mut codes = task.weights.add(first * task.panel_bytes);
            let mut x = x;
            let mut left = task.k / UNIT;
            while left > 0 {
                let units = left.min(BLOCK / UNIT);
                let mut parts = [[S::splat(0.0); M]; P];
                for u in 0..units {
                    for (j, part) in parts[..n].iter_mut().enumerate() {
                        let codes = codes.add(j * run * task.panel_bytes);
                        for line in 0..F::PANEL_BYTES.div_ceil(64) {
                            S::prefetch(codes.wrapping_add(const { ahead(P) } + 64 * line));
                        }
                        unit::<F, S, M>(codes, x, u, part);
                    }
                    codes = codes.add(F::PANEL_BYTES);
                }
                for (part, acc) in parts[..n].iter().zip(&mut acc) {
                    for m in 0..M {
                        acc[m] = S::fma(part[m], S::splat((*x.add(m)).scale), acc[m]);
                    }
                }
                // Wrapping: where a group has more rows than a tile, its last step ends past the blocks.
                x = x.wrapping_add(group);
                left -= units;
            }
            for (j, acc) in acc[..n].iter().enumerate() {
                for m in 0..M {
                    task.store::<S>(acc[m], first + j * run, row + m);
                }
            }
        }
    }
}

/// Unit `u` of a block of activations and one panel times `M` rows.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn unit<F: Format, S: Lanes, const M: usize>(
    codes: *const u8,
    x: *const ActBlock,
    u: usize,
    part: &mut [S::F; M],
) {
    // SAFETY: the caller's.
    unsafe {
        let (row, neg_sums) = ((*x).codes.as_ptr().add(UNIT * u), (*x).neg_32.as_ptr().add(u));
        let sums = dots::<F, S, M, 0, 4>(codes, Rows { codes: row, neg_sums, stride: size_of::<ActBlock>() });
        let scales = codes.add(F::Codes::BYTES);
        let scale = F::scale::<S>(scales);
        for m in 0..M {
            part[m] = S::fma(S::to_f(sums[m]), scale, part[m]);
        }
        if F::HAS_MIN {
            let min = F::min::<S>(scales);
            for m in 0..M {
                part[m] = S::fma(min, S::splat(*(*x.add(m)).float_32.get_unchecked(u)), part[m]);
            }
        }
    }
}

/// Rows of activations of one unit.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// 32 codes of the first row.
    pub(super) codes: *const i8,
    /// Minus the sum of those that are multiplied, of the first row.
    pub(super) neg_sums: *const i32,
    /// Bytes from a row to the next, of both.
    pub(super) stride: usize,
}

/// The exact integer dot products of `M` rows with pairs of dwords `FROM..TO` of a unit.
///
/// # Safety
/// As [`Lanes`]; `codes` points to a unit's codes, and `x` has `M` rows.
#[inline(always)]
pub(super) unsafe fn dots<F: Packed, S: Lanes, const M: usize, const FROM: usize, const TO: usize>(
    codes: *const u8,
    x: Rows,
) -> [S::I; M] {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [S::splat_i(0); M];
        let shift = if F::Codes::WIDE && F::OFFSET_SHIFT.is_none() {
            if S::WIDE_IS_BIASED { Some(7) } else { None }
        } else {
            F::OFFSET_SHIFT
        };
        if let Some(shift) = shift {
            for m in 0..M {
                sums[m] = S::splat_i(*x.neg_sums.byte_add(m * x.stride) << shift);
            }
        }
        for t in FROM..TO {
            let [a, b] = F::Codes::pair::<S>(codes, t);
            for m in 0..M {
                let dwords = x.codes.add(m * x.stride + 8 * t);
                if F::Codes::WIDE {
                    sums[m] = S::dot_wide(S::dot_wide(sums[m], a, dwords), b, dwords.add(4));
                } else {
                    sums[m] = S::dot(S::dot(sums[m], a, dwords), b, dwords.add(4));
                }
            }
        }
        sums
    }
}

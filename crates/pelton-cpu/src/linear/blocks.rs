//! The kernel of all block-quantized formats, once for every format and instruction set.
//!
//! A *panel* is 16 output features, walked along the input in superblocks of 256 features, each of them cut into units
//! of 32. A row's last superblock may have fewer units.
//!
//! ```text
//! panel  │ superblock 0                                                  │ superblock 1 │ …
//! block  │ head: d of 16 rows (, minima) │ unit 0 │ unit 1 │ … 7
//! unit   │ codes of 16 rows, see codes.rs │ integer scales of 16 rows
//! ```
//!
//! Within a superblock a weight is a 16-bit *fixed-point* number `w`, in units of `d`:
//!
//! ```text
//! weight = d[n] * w      w = scale[n] * (code[n][k] - offset) * 2^SHIFT + min[n]       most formats
//!                        w = ((scale[n] * code[n][k] + 64) >> 7) + min[n]              FINE ones: 8-bit codes
//!                        w = (scale[n] * level[code[n][k]] + 2^14) >> 15               … with levels of 16 bits
//! ```
//!
//! so that all products of a superblock are summed exactly, in i32, and only the sum is scaled. The plain loop, for
//! output feature `n` and activation row `m`:
//!
//! ```text
//! acc = 0
//! for each superblock:
//!     total = sum of w * xcode[m][k]                                exact
//!     acc = fma(float(total), d[n] * xscale[m], acc)
//! out = acc + bias[n]
//! ```
//!
//! What is exact may be done in any order: one row sums codes first and multiplies a unit's sum by its scale; tiles of
//! AMX multiply first, see `tiles/`. `|w|` is at most 2^15, so `total` is at most 2^15 * 127 * 256, which is 2^30.
//!
//! Departures from the plain loop, each with its reason:
//!
//! - 16 output features run side by side in lanes, so no sum over `k` is ever taken across lanes, and the order of
//!   the f32 operations is the plain loop's on every machine and for any number of rows: the same bits.
//! - A tile of up to 8 activation rows shares each unpacked code vector, so few rows cost little more than one.
//! - `offset * sum of xcode` starts the integer sum instead of being subtracted from every code, and minima are
//!   multiplied by sums of xcode.
//! - Few rows are bound by memory, and a core keeps more reads in flight when they come from several places: so
//!   [`STREAMS`] panels are walked side by side (measured: 28 GB/s instead of 21 on two cores), and weights are
//!   asked for [`ahead`] of time. Eight rows are bound by arithmetic: their accumulators stay in
//!   registers, which leaves room for one panel.

#![allow(clippy::needless_range_loop, reason = "m and p number rows and panels, in several arrays at once")]

use std::ops::Range;

use pelton_backend::Gate;

use super::activations::{ActBlock, BLOCK, LinearScratch, UNIT, tiles};
use super::codes::{Codes, UnitCodes};
use super::lanes::Lanes;
use super::products::{self, Rows};

/// Units of a superblock.
pub(super) const UNITS: usize = BLOCK / UNIT;

/// Bytes of a half-precision number or an i16 of each of 16 rows.
pub(super) const HALVES: usize = 32;

/// The most that a fixed-point weight may be, so that its high byte, rounded, is a signed byte.
pub(super) const WEIGHT_MAX: i32 = 32_639;

/// The least that a fixed-point weight may be.
pub(super) const WEIGHT_MIN: i32 = -32_768;

/// How far ahead of the multiplication the weights of `streams` panels are prefetched, in bytes.
pub(super) const fn ahead(streams: usize) -> usize {
    if streams == 1 { 3072 } else { 1024 }
}

/// Panels that a tile of few rows walks side by side.
pub(super) const STREAMS: usize = 4;

/// A block-quantized format as panels hold it.
pub(super) trait Format: 'static {
    /// How the codes of a unit are stored.
    type Codes: Codes;
    /// Codes stand for themselves minus `2^OFFSET_SHIFT`.
    const OFFSET_SHIFT: Option<u32> = None;
    /// Whether codes are signed bytes or levels of 16 bits, and scales have 15 bits: the product is rounded to 16, see
    /// the module.
    const FINE: bool = false;
    /// Elements of a block in the file.
    const FILE_LEN: usize;
    /// Bytes of a block in the file.
    const FILE_BYTES: usize;
    /// Parts of a unit with their own scale: 1 or 2.
    const PARTS: usize = 1;
    /// Bytes of a unit's scales, for 16 rows.
    const SCALES: usize;
    /// Bytes of `d`, for 16 rows.
    const D: usize = HALVES;
    /// Minima of a superblock: 0, 8 or 16.
    const MINS: usize = 0;
    /// Bytes of what the minima are made from, for 16 rows.
    const MIN_BYTES: usize = 0;
    /// Products of scale and code are multiplied by `2^SHIFT`, so that minima are finer than they.
    const SHIFT: u32 = 0;

    /// Bytes of a superblock's head, for 16 rows.
    const HEAD: usize = Self::D + Self::MIN_BYTES;
    /// Bytes of a unit, for 16 rows.
    const UNIT: usize = Self::Codes::BYTES + Self::SCALES;
    /// Bytes of a superblock, for 16 rows.
    const BYTES: usize = Self::HEAD + UNITS * Self::UNIT;

    /// Takes the blocks of one superblock of the file apart (of formats with small blocks, 1 to 8 of them): the codes of
    /// each unit become row `row` of `codes[unit]`, and scales and minima row `row` of `panel`, a superblock of a
    /// panel, which was all zero there.
    fn put(file: &[u8], row: usize, codes: &mut [UnitCodes], panel: &mut [u8]);

    /// `d * 2^SHIFT`.
    ///
    /// # Safety
    /// As [`Lanes`]; `head` points to a superblock.
    #[inline(always)]
    unsafe fn d<S: Lanes>(head: *const u8) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::load_f16(head) }
    }

    /// The integer scales of part `part` of a unit.
    ///
    /// # Safety
    /// As [`Lanes`]; `p` points behind the unit's codes.
    unsafe fn scale<S: Lanes>(p: *const u8, part: usize) -> S::I;

    /// The minima of a superblock, the `i`-th pair of i16 minima `2 i` and `2 i + 1`; the first `MINS / 2` count.
    ///
    /// # Safety
    /// As [`Lanes`]; `head` points to a superblock.
    #[inline(always)]
    unsafe fn minima<S: Lanes>(_head: *const u8) -> [S::I; 8] {
        // SAFETY: the caller's.
        unsafe { [S::splat_i(0); 8] }
    }
}

/// Bytes of a panel of `k` input features.
pub(super) const fn panel_bytes<F: Format>(k: usize) -> usize {
    let left = k % BLOCK / UNIT;
    k / BLOCK * F::BYTES + if left > 0 { F::HEAD + left * F::UNIT } else { 0 }
}

/// `d`, of which `w` is a multiple.
///
/// # Safety
/// As [`Format::d`].
#[inline(always)]
pub(super) unsafe fn unit_of<F: Format, S: Lanes>(head: *const u8) -> S::F {
    // SAFETY: the caller's.
    unsafe {
        let d = F::d::<S>(head);
        if F::SHIFT > 0 { S::mul(d, S::splat(const { 1.0 / (1u32 << F::SHIFT) as f32 })) } else { d }
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
    /// Those to multiply: all of them, or on tiles whole row blocks.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only tiles take some of the rows"))]
    pub(super) row_range: Range<usize>,
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
    /// Where the panels are gates: what they are multiplied by.
    pub(super) gated: Option<Gated<'a>>,
}

/// The panels whose results are multiplied by a gate's.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only tiles take both at once"))]
pub(super) struct Gated<'a> {
    pub(super) gate: Gate,
    /// The first panel.
    pub(super) weights: *const u8,
    /// `(16 n_panels,)` or empty.
    pub(super) bias: &'a [f32],
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
        // SAFETY: the caller's; `block` and `x` walk over exactly the panels and the group's blocks.
        unsafe {
            let mut acc = [[S::splat(0.0); M]; P];
            let mut block = task.weights.add(first * task.panel_bytes);
            let mut x = x;
            let mut left = task.k / UNIT;
            while left > 0 {
                let units = left.min(UNITS);
                let mut totals = [[S::splat_i(0); M]; P];
                for u in 0..units {
                    for (j, total) in totals[..n].iter_mut().enumerate() {
                        let codes = block.add(j * run * task.panel_bytes + F::HEAD + u * F::UNIT);
                        for line in 0..const { F::BYTES.div_ceil(64 * UNITS) } {
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
                block = block.add(F::HEAD + units * F::UNIT);
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

/// Unit `u` of a superblock of one panel times `M` rows.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn unit<F: Format, S: Lanes, const M: usize>(
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
        if F::FINE && S::HAS_DIGITS {
            return products::fine_digits::<F, S, M>(codes, rows, total);
        }
        if F::FINE {
            return fine_dots::<F, S, M>(codes, (*x).words.as_ptr().add(UNIT * u), total);
        }
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

/// Scales the totals of a superblock of one panel and adds them to the sums of `M` rows.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn scale<F: Format, S: Lanes, const M: usize>(
    head: *const u8,
    x: *const ActBlock,
    total: &[S::I; M],
    acc: &mut [S::F; M],
) {
    // SAFETY: the caller's.
    unsafe {
        let mut total = *total;
        if F::MINS > 0 {
            let minima = F::minima::<S>(head);
            for m in 0..M {
                let x = &*x.add(m);
                let sums = if F::MINS == 8 { x.sum_32.as_ptr() } else { x.sum_16.as_ptr() };
                total[m] = S::shift_left(total[m], F::SHIFT);
                for i in 0..F::MINS / 2 {
                    total[m] = S::dot_pair(total[m], minima[i], sums.add(2 * i));
                }
            }
        }
        let d = unit_of::<F, S>(head);
        for m in 0..M {
            acc[m] = S::fma(S::to_f(total[m]), S::mul(d, S::splat((*x.add(m)).scale)), acc[m]);
        }
    }
}

/// The exact integer dot products of `M` rows with pairs of dwords `FROM..TO` of a unit.
///
/// # Safety
/// As [`Lanes`]; `codes` points to a unit's codes, and `x` has `M` rows.
#[inline(always)]
unsafe fn dots<F: Format, S: Lanes, const M: usize, const FROM: usize, const TO: usize>(
    codes: *const u8,
    x: Rows,
) -> [S::I; M] {
    // SAFETY: the caller's.
    unsafe {
        let mut first = [0; M];
        let shift = if F::Codes::WIDE { if S::WIDE_IS_BIASED { Some(7) } else { None } } else { F::OFFSET_SHIFT };
        if let Some(shift) = shift {
            for m in 0..M {
                first[m] = *x.neg_sums.byte_add(m * x.stride) << shift;
            }
        }
        let mut sums = products::begin::<S, M>(first);
        for t in FROM..TO {
            let pair = F::Codes::pair::<S>(codes, t);
            if F::Codes::WIDE {
                products::add::<S, M, true>(&mut sums, pair, x, t);
            } else {
                products::add::<S, M, false>(&mut sums, pair, x, t);
            }
        }
        products::end::<S, M>(sums)
    }
}

/// The fixed-point weights of a dword of a `FINE` format, but for its minimum: of codes 0 and 2, and of 1 and 3.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(super) unsafe fn fine_weights<F: Format, S: Lanes>(dword: S::B, upper: S::B, scale: S::I) -> [S::I; 2] {
    // SAFETY: the caller's.
    unsafe {
        if F::Codes::TWO_BYTES {
            S::mul_round_wide(dword, upper, scale)
        } else if F::Codes::E4M3 {
            S::mul_round_e4m3(dword, scale)
        } else {
            S::mul_round(dword, scale)
        }
    }
}

/// Adds the exact integer dot products of `M` rows with the fixed-point weights of a unit of a `FINE` format.
///
/// # Safety
/// As [`Lanes`]; `codes` points to a unit's codes, `words` to the first row's, of a whole [`ActBlock`].
#[inline(always)]
unsafe fn fine_dots<F: Format, S: Lanes, const M: usize>(codes: *const u8, words: *const i16, total: &mut [S::I; M]) {
    // SAFETY: the caller's.
    unsafe {
        let scale =
            S::pair_i(F::scale::<S>(codes.add(F::Codes::BYTES), 0), F::scale::<S>(codes.add(F::Codes::BYTES), 0));
        // Two chains of sums: the first one's last result need not be waited for.
        let mut others = [S::splat_i(0); M];
        for t in 0..4 {
            let pair = F::Codes::pair::<S>(codes, t);
            let upper = if F::Codes::TWO_BYTES { F::Codes::upper::<S>(codes, t) } else { pair };
            for (i, (dword, upper)) in pair.into_iter().zip(upper).enumerate() {
                let [even, odd] = fine_weights::<F, S>(dword, upper, scale);
                for m in 0..M {
                    let words = words.byte_add(m * size_of::<ActBlock>()).add(8 * t + 4 * i);
                    total[m] = S::dot_pair(total[m], even, words);
                    others[m] = S::dot_pair(others[m], odd, words.add(2));
                }
            }
        }
        for m in 0..M {
            total[m] = S::add_i(total[m], others[m]);
        }
    }
}

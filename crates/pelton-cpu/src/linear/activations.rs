//! Activations, made ready for the kernels once per linear call.
//!
//! Rows are grouped into *tiles* of 8 and, for what is left, 4, 2 and 1 ([`tiles`]). Within a tile of `g` rows the
//! data of all rows lie side by side for each step along the input, so that a kernel reads it in one stream:
//!
//! ```text
//! quantized formats:  tile │ block 0: row 0, row 1, … row g-1 │ block 1: row 0, … │ …     one ActBlock each
//! float formats:      tile │ k = 0:   row 0, row 1, … row g-1 │ k = 1:   row 0, … │ …     one f32 each
//! ```
//!
//! The recipe of a block of 256 values (the last one of a row may have fewer: zeros follow), the same on every
//! instruction set:
//!
//! - `amax = max |x|`; where it is not finite: scale NaN, all codes 0, so that the row's outputs are NaN;
//! - where `amax / 127` is below the smallest normal float: all zero;
//! - otherwise `scale = amax / 127` and `code = round(x * (127 / amax))`, ties to even; codes are in -127..=127.
//!
//! Invariant: a row's blocks depend on that row alone.

use super::normed::Normed;
use super::terms::Terms;
#[cfg(target_arch = "x86_64")]
use super::tiles::activations::TiledRows;
use crate::isa::Isa;
use crate::pool::Pool;
use crate::tensor;

/// Values that share a scale.
pub(super) const BLOCK: usize = 256;

/// Values of a unit, the step of the kernels.
pub(super) const UNIT: usize = 32;

/// 256 activations as signed bytes, with what every format needs to know of them.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(super) struct ActBlock {
    /// Codes, in -127..=127.
    pub(super) codes: [i8; BLOCK],
    /// `-(sum of the codes)` of each 32.
    pub(super) neg_32: [i32; 8],
    /// `-(sum of the codes)` of each 16.
    pub(super) neg_16: [i32; 16],
    /// Sum of the codes of each 32.
    pub(super) sum_32: [i16; 8],
    /// Sum of the codes of each 16.
    pub(super) sum_16: [i16; 16],
    /// The codes as i16; of each four the first, the third, the second and the last.
    pub(super) words: [i16; BLOCK],
    /// Value of code 1.
    pub(super) scale: f32,
}

pub(super) const ZERO: ActBlock = ActBlock {
    codes: [0; BLOCK],
    neg_32: [0; 8],
    neg_16: [0; 16],
    sum_32: [0; 8],
    sum_16: [0; 16],
    words: [0; BLOCK],
    scale: 0.0,
};

/// The tiles of `rows` rows: `(first row, rows in the tile)`.
pub(super) fn tiles(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut row = 0;
    std::iter::from_fn(move || {
        let left = rows - row;
        let tile = (row, if left >= 8 { 8 } else { (left + 1).next_power_of_two() / 2 });
        row += tile.1;
        (left > 0).then_some(tile)
    })
}

/// Buffers that linear calls reuse.
#[derive(Debug, Default)]
pub struct LinearScratch {
    pub(super) blocks: Vec<ActBlock>,
    pub(super) floats: Vec<f32>,
    /// Rows with their columns in another order.
    pub(super) dealt: Vec<f32>,
    /// Rows in terms of bf16.
    pub(super) terms: Terms,
    /// Rows for tiles.
    #[cfg(target_arch = "x86_64")]
    pub(super) tiles: TiledRows,
    /// What is known of rows that came from a norm.
    pub(super) normed: Normed,
}

/// Values below which a call's activations are made ready by the caller alone.
pub(super) const PARALLEL: usize = 32 * 1024;

impl LinearScratch {
    /// Empty buffers.
    pub fn new() -> LinearScratch {
        LinearScratch::default()
    }

    /// Quantizes `x`, `(rows, k)`, with `k` a multiple of [`UNIT`].
    pub(super) fn quantize(&mut self, x: &[f32], rows: usize, isa: Isa, pool: &Pool) {
        let k = x.len() / rows;
        assert_eq!(x.len() % rows, 0, "whole rows");
        let to = self.begin_blocks(rows, k, isa);
        let tiles: Vec<(usize, usize)> = tiles(rows).collect();
        let task = |i: usize| {
            let (first, g) = tiles[i];
            for (r, x) in x[first * k..(first + g) * k].chunks_exact(k).enumerate() {
                // SAFETY: tiles are disjoint, and each is taken by one task.
                unsafe { to.row_of(first, g, r, x) };
            }
        };
        if x.len() < PARALLEL { (0..tiles.len()).for_each(task) } else { pool.run(tiles.len(), &task) }
    }

    /// Makes room for `rows` rows of `k` values, `k` a multiple of [`UNIT`], to be filled one by one.
    pub(super) fn begin_blocks(&mut self, rows: usize, k: usize, isa: Isa) -> BlocksTo<'_> {
        assert_eq!(k % UNIT, 0, "rows are whole units of {UNIT}");
        let per_row = k.div_ceil(BLOCK);
        self.blocks.resize(rows * per_row, ZERO);
        BlocksTo { rows, per_row, isa, blocks: tensor::Shared::new(&mut self.blocks) }
    }

    /// Lays `x`, `(rows, k)`, out in tiles of floats.
    pub(super) fn interleave(&mut self, x: &[f32], rows: usize, pool: &Pool) {
        let k = x.len() / rows;
        self.floats.clear();
        self.floats.resize(x.len(), 0.0);
        for_each_tile(&mut self.floats, k, rows, pool, &|row, g, floats| {
            for (r, x) in x[row * k..(row + g) * k].chunks_exact(k).enumerate() {
                for (x, out) in x.iter().zip(floats[r..].iter_mut().step_by(g)) {
                    *out = *x;
                }
            }
        });
    }
}

/// Calls `fill(first row, rows, the tile's data)` for every tile; a row has `per_row` items of `data`.
fn for_each_tile<T: Send>(
    data: &mut [T],
    per_row: usize,
    rows: usize,
    pool: &Pool,
    fill: &(dyn Fn(usize, usize, &mut [T]) + Sync),
) {
    let base = Shared(data.as_mut_ptr());
    let len = data.len();
    let tiles: Vec<(usize, usize)> = tiles(rows).collect();
    let task = |i: usize| {
        let (row, g) = tiles[i];
        assert!((row + g) * per_row <= len);
        // SAFETY: tiles are disjoint row ranges within `data`, and each is taken by one task.
        let tile = unsafe { std::slice::from_raw_parts_mut(base.get().add(row * per_row), g * per_row) };
        fill(row, g, tile);
    };
    if len < PARALLEL / size_of::<T>() { (0..tiles.len()).for_each(task) } else { pool.run(tiles.len(), &task) }
}

/// Where rows of blocks go.
pub(super) struct BlocksTo<'a> {
    rows: usize,
    per_row: usize,
    isa: Isa,
    blocks: tensor::Shared<'a, ActBlock>,
}

impl BlocksTo<'_> {
    /// Quantizes a row.
    ///
    /// # Safety
    /// Each row is one caller's.
    pub(super) unsafe fn row(&self, row: usize, x: &[f32]) {
        let whole = self.rows / 8 * 8;
        let (first, g) = if row < whole {
            (row / 8 * 8, 8)
        } else {
            let mut rest = tiles(self.rows - whole).map(|(first, g)| (whole + first, g));
            rest.find(|&(first, g)| row < first + g).expect("a row among the rows")
        };
        // SAFETY: the caller's.
        unsafe { self.row_of(first, g, row - first, x) }
    }

    /// Quantizes row `r` of the tile of `g` rows that begins with row `first`.
    ///
    /// # Safety
    /// Each row is one caller's.
    unsafe fn row_of(&self, first: usize, g: usize, r: usize, x: &[f32]) {
        for (i, x) in x.chunks(BLOCK).enumerate() {
            let at = first * self.per_row + i * g + r;
            // SAFETY: a row's blocks are no other row's.
            let block = &mut unsafe { self.blocks.part(at..at + 1) }[0];
            match self.isa {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the tokens prove the instructions.
                Isa::Avx2(_) => unsafe { quantize_avx2(x, block) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the tokens prove the instructions.
                Isa::Avx512(_) | Isa::Amx(_) => unsafe { quantize_avx512(x, block) },
                _ => quantize_part(x, block),
            }
        }
    }
}

/// A pointer that tasks share; each task uses another part of what it points to.
pub(super) struct Shared<T>(pub(super) *mut T);

// SAFETY: users access disjoint parts, as each use states.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(super) fn get(&self) -> *mut T {
        self.0
    }
}

/// # Safety
/// The machine must have AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn quantize_avx2(x: &[f32], block: &mut ActBlock) {
    quantize_part(x, block);
}

/// Quantizes at most 256 values: [`quantize_block`], sixteen by sixteen.
///
/// # Safety
/// The machine must have AVX-512 F, BW, DQ and VL.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn quantize_avx512(x: &[f32], block: &mut ActBlock) {
    // SAFETY: the caller's.
    block.scale = unsafe {
        let [a, b, c, d] = block.codes.as_chunks_mut::<64>().0 else { unreachable!("256 codes are four lines") };
        codes_avx512(x, [a, b, c, d])
    };
    sum_codes(block);
}

/// The codes, 64 to each of four lines, and the scale of at most 256 values.
///
/// # Safety
/// The machine must have AVX-512 F.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn codes_avx512(x: &[f32], lines: [&mut [i8]; 4]) -> f32 {
    use std::arch::x86_64::*;
    let mut whole = [0.0; BLOCK];
    let x = match <&[f32; BLOCK]>::try_from(x) {
        Ok(x) => x,
        Err(_) => {
            whole[..x.len()].copy_from_slice(x);
            &whole
        }
    };
    let x = x.as_chunks::<16>().0;
    let mut tops = _mm512_setzero_si512();
    for x in x {
        // SAFETY: 16 floats.
        let bits = _mm512_castps_si512(unsafe { _mm512_loadu_ps(x.as_ptr()) });
        tops = _mm512_max_epu32(tops, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fff_ffff)));
    }
    let amax = f32::from_bits(_mm512_reduce_max_epu32(tops));
    let scale = amax / 127.0;
    if !amax.is_finite() || scale < f32::MIN_POSITIVE {
        lines.into_iter().for_each(|line| line.fill(0));
        return if amax.is_finite() { 0.0 } else { f32::NAN };
    }
    let inverse = _mm512_set1_ps(127.0 / amax);
    for (x, line) in x.as_chunks::<4>().0.iter().zip(lines) {
        for (x, codes) in x.iter().zip(line.as_chunks_mut::<16>().0) {
            // SAFETY: 16 floats, and 16 codes.
            unsafe {
                // Rounds to nearest, ties to even: the mode that Rust code runs in.
                let rounded = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x.as_ptr()), inverse));
                _mm_storeu_si128(codes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(rounded));
            }
        }
    }
    scale
}

/// Quantizes at most 256 values.
#[inline(always)]
pub(super) fn quantize_part(x: &[f32], block: &mut ActBlock) {
    match x.try_into() {
        Ok(x) => quantize_block(x, block),
        Err(_) => {
            let mut whole = [0.0; BLOCK];
            whole[..x.len()].copy_from_slice(x);
            quantize_block(&whole, block);
        }
    }
}

/// Plain loops without branches, which the compiler turns into vectors of whatever it compiles for. Nothing in them
/// is reassociated or fused (the only sums are of integers), so the bits are the same everywhere.
#[inline(always)]
fn quantize_block(x: &[f32; BLOCK], block: &mut ActBlock) {
    // The bits of |x| order as integers like the values, with infinity and NaN above all.
    let mut tops = [0; 16];
    for x in x.as_chunks::<16>().0 {
        for (top, x) in tops.iter_mut().zip(x) {
            *top = (x.to_bits() & 0x7fff_ffff).max(*top);
        }
    }
    let amax = f32::from_bits(tops.into_iter().fold(0, u32::max));
    let scale = amax / 127.0;
    if !amax.is_finite() {
        *block = ActBlock { scale: f32::NAN, ..ZERO };
        return;
    }
    if scale < f32::MIN_POSITIVE {
        *block = ZERO;
        return;
    }
    let inverse = 127.0 / amax;
    block.scale = scale;
    // Adding 1.5 * 2^23 leaves the value, rounded to an integer with ties to even, in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    for (x, codes) in x.as_chunks::<16>().0.iter().zip(block.codes.as_chunks_mut::<16>().0) {
        for (code, x) in codes.iter_mut().zip(x) {
            *code = (x * inverse + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i8;
        }
    }
    sum_codes(block);
}

/// What follows from the codes.
#[inline(always)]
fn sum_codes(block: &mut ActBlock) {
    for (codes, words) in block.codes.as_chunks::<4>().0.iter().zip(block.words.as_chunks_mut::<4>().0) {
        *words = [codes[0], codes[2], codes[1], codes[3]].map(i16::from);
    }
    for (i, codes) in block.codes.as_chunks::<16>().0.iter().enumerate() {
        let sum = codes.iter().map(|&code| i16::from(code)).sum::<i16>();
        (block.neg_16[i], block.sum_16[i]) = (-i32::from(sum), sum);
    }
    for i in 0..8 {
        let neg = block.neg_16[2 * i] + block.neg_16[2 * i + 1];
        (block.neg_32[i], block.sum_32[i]) = (neg, -neg as i16);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantized(x: &[f32]) -> ActBlock {
        let mut block = ActBlock { sum_32: [7; 8], ..ZERO };
        quantize_part(x, &mut block);
        #[cfg(target_arch = "x86_64")]
        if crate::isa::Avx512::new().is_some() {
            let mut other = ActBlock { sum_32: [7; 8], ..ZERO };
            // SAFETY: the token proves the instructions.
            unsafe { quantize_avx512(x, &mut other) };
            let bits = |b: &ActBlock| (b.codes, b.neg_32, b.neg_16, b.sum_32, b.sum_16, b.words, b.scale.to_bits());
            assert_eq!(bits(&other), bits(&block), "both ways are one recipe");
        }
        block
    }

    #[test]
    fn tiles_cover_all_rows_in_order() {
        assert_eq!(tiles(7).collect::<Vec<_>>(), [(0, 4), (4, 2), (6, 1)]);
        assert_eq!(tiles(17).collect::<Vec<_>>(), [(0, 8), (8, 8), (16, 1)]);
        assert_eq!(tiles(0).count(), 0);
        for rows in 0..100 {
            let mut next = 0;
            for (row, g) in tiles(rows) {
                assert_eq!(row, next);
                next += g;
            }
            assert_eq!(next, rows);
        }
    }

    #[test]
    fn the_largest_value_gets_code_127_and_ties_go_to_even() {
        let mut x = [0.0; BLOCK];
        (x[0], x[17], x[40], x[255]) = (-127.0, 2.5, 3.5, 40.4);
        let b = quantized(&x);
        assert_eq!(b.scale, 1.0);
        assert_eq!((b.codes[0], b.codes[17], b.codes[40], b.codes[255]), (-127, 2, 4, 40));
        assert_eq!((b.sum_16[0], b.sum_16[1], b.sum_16[2], b.sum_16[15]), (-127, 2, 4, 40));
        assert_eq!((b.sum_32[0], b.sum_32[1], b.sum_32[7]), (-125, 4, 40));
        assert!(b.sum_16.iter().zip(b.neg_16).all(|(&s, n)| i32::from(s) == -n));
        assert!(b.sum_32.iter().zip(b.neg_32).all(|(&s, n)| i32::from(s) == -n));
        assert_eq!((b.words[0], b.words[16], b.words[18], b.words[253], b.words[255]), (-127, 0, 2, 0, 40));
    }

    #[test]
    fn odd_values_are_rounded_alike() {
        let mut bits = 1u32;
        for _ in 0..200 {
            let x: Vec<f32> = std::iter::repeat_with(|| {
                bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (bits >> 8) as f32 / 65_536.0 - 128.0
            })
            .take(BLOCK)
            .collect();
            quantized(&x);
        }
    }

    #[test]
    fn a_short_block_is_one_with_zeros() {
        let x: Vec<f32> = (0..BLOCK).map(|i| if i < 96 { i as f32 - 50.0 } else { 0.0 }).collect();
        assert_eq!(quantized(&x[..96]), quantized(&x));
    }

    #[test]
    fn extremes_are_defined() {
        let mut x = [1.0; BLOCK];
        assert_eq!(quantized(&[0.0; BLOCK]), ZERO);
        assert_eq!(quantized(&[f32::from_bits(1); BLOCK]), ZERO);
        assert_eq!(quantized(&[f32::MAX; BLOCK]).codes, [127; BLOCK]);
        assert_eq!(quantized(&[-f32::MAX; BLOCK]).codes, [-127; BLOCK]);
        // The least block that is not flushed: no overflow of the inverse.
        let least = quantized(&[f32::MIN_POSITIVE * 127.1; BLOCK]);
        assert_eq!(least.codes, [127; BLOCK]);
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            x[9] = bad;
            let b = quantized(&x);
            assert!(b.scale.is_nan());
            assert_eq!((b.codes, b.sum_32), ([0; BLOCK], [0; 8]));
        }
    }
}

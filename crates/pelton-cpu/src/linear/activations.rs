//! Activations, made ready for the kernels once per linear call.
//!
//! Rows are grouped into *tiles* of 8 and, for what is left, 4, 2 and 1 ([`tiles`]). Within a tile of `g` rows the
//! data of all rows lie side by side for each step along the input, so that a kernel reads it in one stream:
//!
//! ```text
//! block formats:  tile │ unit 0: row 0, row 1, … row g-1 │ unit 1: row 0, … │ …       one ActBlock each
//! float formats:  tile │ k = 0:  row 0, row 1, … row g-1 │ k = 1:  row 0, … │ …       one f32 each
//! ```
//!
//! The recipe of a block of 32 values, the same on every instruction set:
//!
//! - `amax = max |x|`; where it is not finite: scale NaN, all codes 0, so that the row's outputs are NaN;
//! - where `amax / 127` is below the smallest normal float: all zero;
//! - otherwise `scale = amax / 127` and `code = round(x * (127 / amax))`, ties to even; codes are in -127..=127.
//!
//! Invariant: a row's blocks depend on that row alone.

use crate::isa::Isa;
use crate::pool::Pool;

/// Values that share a scale.
pub(super) const UNIT: usize = 32;

/// 32 activations as signed bytes, with what every format needs to know of them: one cache line.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(super) struct ActBlock {
    /// Codes, in -127..=127.
    pub(super) codes: [i8; UNIT],
    /// Value of code 1.
    pub(super) scale: f32,
    /// `-(sum of all codes)`.
    pub(super) neg_sum: i32,
    /// `-(sum of the codes)` of each half.
    pub(super) neg_half: [i32; 2],
    /// `scale * sum of all codes`.
    pub(super) scaled_sum: f32,
    /// `scale * sum of the codes` of each half.
    pub(super) scaled_half: [f32; 2],
}

const ZERO: ActBlock =
    ActBlock { codes: [0; UNIT], scale: 0.0, neg_sum: 0, neg_half: [0; 2], scaled_sum: 0.0, scaled_half: [0.0; 2] };

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
}

/// Values below which a call's activations are made ready by the caller alone.
const PARALLEL: usize = 32 * 1024;

impl LinearScratch {
    /// Empty buffers.
    pub fn new() -> LinearScratch {
        LinearScratch::default()
    }

    /// Quantizes `x`, `(rows, k)`, with `k` a multiple of [`UNIT`].
    pub(super) fn quantize(&mut self, x: &[f32], rows: usize, isa: Isa, pool: &Pool) {
        let k = x.len() / rows;
        assert_eq!((x.len() % rows, k % UNIT), (0, 0), "rows are whole blocks of {UNIT}");
        self.blocks.clear();
        self.blocks.resize(x.len() / UNIT, ZERO);
        for_each_tile(&mut self.blocks, k / UNIT, rows, pool, &|row, g, blocks| {
            let x = &x[row * k..(row + g) * k];
            match isa {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the tokens prove the instructions.
                Isa::Avx2(_) => unsafe { quantize_tile_avx2(x, g, blocks) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the tokens prove the instructions.
                Isa::Avx512(_) | Isa::Amx(_) => unsafe { quantize_tile_avx512(x, g, blocks) },
                _ => quantize_tile(x, g, blocks),
            }
        });
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

/// A pointer that tasks share; each task uses another part of what it points to.
pub(super) struct Shared<T>(pub(super) *mut T);

// SAFETY: users access disjoint parts, as each use states.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(super) fn get(&self) -> *mut T {
        self.0
    }
}

/// Quantizes a tile of `g` rows.
#[inline(always)]
fn quantize_tile(x: &[f32], g: usize, blocks: &mut [ActBlock]) {
    let k = x.len() / g;
    for (r, x) in x.chunks_exact(k).enumerate() {
        for (x, block) in x.as_chunks::<UNIT>().0.iter().zip(blocks[r..].iter_mut().step_by(g)) {
            quantize_block(x, block);
        }
    }
}

/// # Safety
/// The machine must have AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn quantize_tile_avx2(x: &[f32], g: usize, blocks: &mut [ActBlock]) {
    quantize_tile(x, g, blocks);
}

/// # Safety
/// The machine must have AVX-512 F, BW, DQ and VL.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn quantize_tile_avx512(x: &[f32], g: usize, blocks: &mut [ActBlock]) {
    quantize_tile(x, g, blocks);
}

/// Plain loops without branches, which the compiler turns into vectors of whatever it compiles for. Nothing in them
/// is reassociated or fused (the only sums are of integers), so the bits are the same everywhere.
#[inline(always)]
fn quantize_block(x: &[f32; UNIT], block: &mut ActBlock) {
    // The bits of |x| order as integers like the values, with infinity and NaN above all.
    let top = x.iter().map(|x| x.to_bits() & 0x7fff_ffff).fold(0, u32::max);
    let amax = f32::from_bits(top);
    let scale = amax / 127.0;
    if !amax.is_finite() {
        *block = ActBlock { scale: f32::NAN, scaled_sum: f32::NAN, scaled_half: [f32::NAN; 2], ..ZERO };
        return;
    }
    if scale < f32::MIN_POSITIVE {
        *block = ZERO;
        return;
    }
    let inverse = 127.0 / amax;
    // Adding 1.5 * 2^23 leaves the value, rounded to an integer with ties to even, in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    let mut codes = [0; UNIT];
    for (code, x) in codes.iter_mut().zip(x) {
        *code = (x * inverse + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i32;
    }
    let (low, high) = codes.split_at(UNIT / 2);
    let half = [low.iter().sum::<i32>(), high.iter().sum::<i32>()];
    let sum = half[0] + half[1];
    *block = ActBlock {
        codes: codes.map(|c| c as i8),
        scale,
        neg_sum: -sum,
        neg_half: half.map(|h| -h),
        scaled_sum: scale * sum as f32,
        scaled_half: half.map(|h| scale * h as f32),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantized(x: &[f32; UNIT]) -> ActBlock {
        let mut block = ZERO;
        quantize_block(x, &mut block);
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
        let mut x = [0.0; UNIT];
        (x[0], x[1], x[2], x[20]) = (-127.0, 2.5, 3.5, 40.4);
        let b = quantized(&x);
        assert_eq!(b.scale, 1.0);
        assert_eq!((b.codes[0], b.codes[1], b.codes[2], b.codes[20]), (-127, 2, 4, 40));
        assert_eq!((b.neg_sum, b.neg_half), (81, [121, -40]));
        assert_eq!((b.scaled_sum, b.scaled_half), (-81.0, [-121.0, 40.0]));
    }

    #[test]
    fn extremes_are_defined() {
        let mut x = [1.0; UNIT];
        assert_eq!(quantized(&[0.0; UNIT]), ZERO);
        assert_eq!(quantized(&[f32::from_bits(1); UNIT]), ZERO);
        assert_eq!(quantized(&[f32::MAX; UNIT]).codes, [127; UNIT]);
        assert_eq!(quantized(&[-f32::MAX; UNIT]).codes, [-127; UNIT]);
        // The least block that is not flushed: no overflow of the inverse.
        let least = quantized(&[f32::MIN_POSITIVE * 127.1; UNIT]);
        assert_eq!(least.codes, [127; UNIT]);
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            x[9] = bad;
            let b = quantized(&x);
            assert!(b.scale.is_nan() && b.scaled_sum.is_nan() && b.scaled_half[0].is_nan());
            assert_eq!(b.codes, [0; UNIT]);
        }
    }
}

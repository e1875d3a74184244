//! Activations, made ready for the kernels once per linear call.
//!
//! Rows are grouped into *tiles* of 8 and, for what is left, 4, 2 and 1 ([`tiles`]). Within a tile of `g` rows the
//! data of all rows lie side by side for each step along the input, so that a kernel reads it in one stream:
//!
//! ```text
//! block formats:  tile │ unit 0: row 0, row 1, … row g-1 │ unit 1: row 0, … │ …       one ActBlock each
//! superblocks:    tile │ block 0: row 0, row 1, … row g-1 │ block 1: row 0, … │ …     one ActSuper each
//! float formats:  tile │ k = 0:  row 0, row 1, … row g-1 │ k = 1:  row 0, … │ …       one f32 each
//! ```
//!
//! The recipe of a block of 32 values (of 256 for the formats whose superblocks have 256), the same on every
//! instruction set:
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

/// Values that share a scale where a format has superblocks.
pub(super) const SUPER: usize = 256;

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
    /// `scale * sum of all codes`.
    pub(super) scaled_sum: f32,
}

/// 256 activations as signed bytes that share a scale, for formats of superblocks.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(super) struct ActSuper {
    /// Codes, in -127..=127.
    pub(super) codes: [i8; SUPER],
    /// `-(sum of the codes)` of each 32.
    pub(super) neg_32: [i32; 8],
    /// `-(sum of the codes)` of each 16.
    pub(super) neg_16: [i32; 16],
    /// Sum of the codes of each 32.
    pub(super) sum_32: [i16; 8],
    /// Sum of the codes of each 16.
    pub(super) sum_16: [i16; 16],
    /// Value of code 1.
    pub(super) scale: f32,
}

/// What a tile of quantized activations is made of.
pub(super) trait Quantized: Copy + Send + 'static {
    /// Values that share a scale.
    const LEN: usize;
    /// Of zeros.
    const ZERO: Self;
    /// Quantizes [`Quantized::LEN`] values.
    fn quantize(x: &[f32], out: &mut Self);
}

impl Quantized for ActBlock {
    const LEN: usize = UNIT;
    const ZERO: ActBlock = ZERO;

    #[inline(always)]
    fn quantize(x: &[f32], out: &mut ActBlock) {
        quantize_block(x.try_into().expect("a block of 32"), out);
    }
}

impl Quantized for ActSuper {
    const LEN: usize = SUPER;
    const ZERO: ActSuper =
        ActSuper { codes: [0; SUPER], neg_32: [0; 8], neg_16: [0; 16], sum_32: [0; 8], sum_16: [0; 16], scale: 0.0 };

    #[inline(always)]
    fn quantize(x: &[f32], out: &mut ActSuper) {
        quantize_super(x.try_into().expect("a block of 256"), out);
    }
}

const ZERO: ActBlock = ActBlock { codes: [0; UNIT], scale: 0.0, neg_sum: 0, scaled_sum: 0.0 };

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
    pub(super) supers: Vec<ActSuper>,
    pub(super) floats: Vec<f32>,
}

/// Values below which a call's activations are made ready by the caller alone.
const PARALLEL: usize = 32 * 1024;

impl LinearScratch {
    /// Empty buffers.
    pub fn new() -> LinearScratch {
        LinearScratch::default()
    }

    /// Quantizes `x`, `(rows, k)`, in blocks of 32.
    pub(super) fn quantize(&mut self, x: &[f32], rows: usize, isa: Isa, pool: &Pool) {
        quantize_tiles(&mut self.blocks, x, rows, isa, pool);
    }

    /// Quantizes `x`, `(rows, k)`, in blocks of 256.
    pub(super) fn quantize_supers(&mut self, x: &[f32], rows: usize, isa: Isa, pool: &Pool) {
        quantize_tiles(&mut self.supers, x, rows, isa, pool);
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

/// Quantizes `x`, `(rows, k)`, with `k` a multiple of `Q::LEN`.
fn quantize_tiles<Q: Quantized>(tiles: &mut Vec<Q>, x: &[f32], rows: usize, isa: Isa, pool: &Pool) {
    let k = x.len() / rows;
    assert_eq!((x.len() % rows, k % Q::LEN), (0, 0), "rows are whole blocks of {}", Q::LEN);
    tiles.clear();
    tiles.resize(x.len() / Q::LEN, Q::ZERO);
    for_each_tile(tiles, k / Q::LEN, rows, pool, &|row, g, blocks| {
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

/// Quantizes a tile of `g` rows.
#[inline(always)]
fn quantize_tile<Q: Quantized>(x: &[f32], g: usize, blocks: &mut [Q]) {
    let k = x.len() / g;
    for (r, x) in x.chunks_exact(k).enumerate() {
        for (x, block) in x.chunks_exact(Q::LEN).zip(blocks[r..].iter_mut().step_by(g)) {
            Q::quantize(x, block);
        }
    }
}

/// # Safety
/// The machine must have AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn quantize_tile_avx2<Q: Quantized>(x: &[f32], g: usize, blocks: &mut [Q]) {
    quantize_tile(x, g, blocks);
}

/// # Safety
/// The machine must have AVX-512 F, BW, DQ and VL.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn quantize_tile_avx512<Q: Quantized>(x: &[f32], g: usize, blocks: &mut [Q]) {
    quantize_tile(x, g, blocks);
}

/// Adding 1.5 * 2^23 leaves a value, rounded to an integer with ties to even, in the low bits.
const MAGIC: f32 = 12_582_912.0;

/// [`quantize_block`]'s recipe for 256 values.
#[inline(always)]
fn quantize_super(x: &[f32; SUPER], block: &mut ActSuper) {
    let top = x.iter().map(|x| x.to_bits() & 0x7fff_ffff).fold(0, u32::max);
    let amax = f32::from_bits(top);
    let scale = amax / 127.0;
    *block = ActSuper::ZERO;
    if !amax.is_finite() {
        block.scale = f32::NAN;
        return;
    }
    if scale < f32::MIN_POSITIVE {
        return;
    }
    let inverse = 127.0 / amax;
    block.scale = scale;
    for (i, x) in x.as_chunks::<16>().0.iter().enumerate() {
        let mut codes = [0; 16];
        for (code, x) in codes.iter_mut().zip(x) {
            *code = (x * inverse + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i32;
        }
        let sum = codes.iter().sum::<i32>();
        (block.neg_16[i], block.sum_16[i]) = (-sum, sum as i16);
        block.neg_32[i / 2] -= sum;
        block.sum_32[i / 2] += sum as i16;
        for (out, code) in block.codes[16 * i..16 * i + 16].iter_mut().zip(codes) {
            *out = code as i8;
        }
    }
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
        *block = ActBlock { scale: f32::NAN, scaled_sum: f32::NAN, ..ZERO };
        return;
    }
    if scale < f32::MIN_POSITIVE {
        *block = ZERO;
        return;
    }
    let inverse = 127.0 / amax;
    let mut codes = [0; UNIT];
    for (code, x) in codes.iter_mut().zip(x) {
        *code = (x * inverse + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i32;
    }
    let sum = codes.iter().sum::<i32>();
    *block = ActBlock { codes: codes.map(|c| c as i8), scale, neg_sum: -sum, scaled_sum: scale * sum as f32 };
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
        assert_eq!((b.neg_sum, b.scaled_sum), (81, -81.0));
    }

    #[test]
    fn a_superblock_shares_a_scale_and_knows_its_sums() {
        let mut x = [0.0; SUPER];
        (x[0], x[17], x[40], x[255]) = (-127.0, 2.5, 3.5, 40.4);
        let mut b = ActSuper::ZERO;
        quantize_super(&x, &mut b);
        assert_eq!(b.scale, 1.0);
        assert_eq!((b.codes[0], b.codes[17], b.codes[40], b.codes[255]), (-127, 2, 4, 40));
        assert_eq!((b.sum_16[0], b.sum_16[1], b.sum_16[2], b.sum_16[15]), (-127, 2, 4, 40));
        assert_eq!((b.sum_32[0], b.sum_32[1], b.sum_32[7]), (-125, 4, 40));
        assert!(b.sum_16.iter().zip(b.neg_16).all(|(&s, n)| i32::from(s) == -n));
        assert!(b.sum_32.iter().zip(b.neg_32).all(|(&s, n)| i32::from(s) == -n));
        x[3] = f32::NAN;
        quantize_super(&x, &mut b);
        assert!(b.scale.is_nan() && b.codes == [0; SUPER]);
        quantize_super(&[f32::from_bits(1); SUPER], &mut b);
        assert_eq!(b, ActSuper::ZERO);
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
            assert!(b.scale.is_nan() && b.scaled_sum.is_nan());
            assert_eq!(b.codes, [0; UNIT]);
        }
    }
}

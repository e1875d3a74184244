//! Activations as the products of tiles read them.
//!
//! ```text
//! codes    half-deep   [row block][block][tile][8 units][16 rows][32]
//!          whole       [row block][block][tile][4 steps][16 rows][64]
//! scales, sums         [row block][block][tile][16 rows]
//! ```
//!
//! A row block is [`row_block`] tiles (the last one may have fewer): what is read for one block of input features is
//! one run of memory, which the processor fetches ahead of the products.
//!
//! A row's last block is padded with zeros; rows that are missing in the last tile hold anything, since no row's
//! products reach another.
//!
//! Invariant: codes, scales and sums are those of [`ActBlock`].

use super::super::activations::{ActBlock, BLOCK, PARALLEL, ZERO, quantize_avx512};
use super::{ROWS, row_block};
use crate::pool::Pool;
use crate::tensor::Shared;

/// Bytes of a row of a tile for half-deep products.
pub(in super::super) const HALF: usize = 32;

/// Bytes of a row of a tile for whole products.
pub(in super::super) const WHOLE: usize = 64;

/// Bytes of a block of 16 rows.
pub(super) const BLOCK_TILE: usize = BLOCK * ROWS;

/// A cache line, for alignment.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([i8; 64]);

/// What minima are multiplied by: sums of the codes of each 32 and of each 16.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(in super::super) struct CodeSums {
    pub(super) sum_16: [i16; 16],
    pub(super) sum_32: [i16; 8],
    pub(super) float_32: [f32; 8],
}

/// Quantized rows, 16 a tile.
#[derive(Debug, Default)]
pub(in super::super) struct TiledRows {
    /// Blocks of a row.
    blocks: usize,
    /// Tiles of a row block.
    row_block: usize,
    codes: Vec<Line>,
    scales: Vec<[f32; ROWS]>,
    sums: Vec<[CodeSums; ROWS]>,
}

/// One block of one tile of rows.
#[derive(Clone, Copy)]
pub(in super::super) struct TileRows<'a> {
    pub(super) codes: *const i8,
    pub(super) scales: &'a [f32; ROWS],
    pub(super) sums: &'a [CodeSums; ROWS],
}

impl TiledRows {
    /// Quantizes `x`, `(rows, k)`, for tiles of `depth` ([`HALF`] or [`WHOLE`]) bytes a row.
    pub(in super::super) fn quantize(&mut self, x: &[f32], rows: usize, depth: usize, pool: &Pool) {
        let k = x.len() / rows;
        let (tiles, blocks) = (rows.div_ceil(ROWS), k.div_ceil(BLOCK));
        let lines = BLOCK_TILE / 64;
        (self.blocks, self.row_block) = (blocks, row_block(k));
        let row_block = self.row_block;
        self.codes.resize(tiles * blocks * lines, Line([0; 64]));
        self.scales.resize(tiles * blocks, [0.0; ROWS]);
        self.sums.resize(tiles * blocks, [CodeSums { sum_16: [0; 16], sum_32: [0; 8], float_32: [0.0; 8] }; ROWS]);
        let codes = Shared::new(&mut self.codes);
        let (scales, sums) = (Shared::new(&mut self.scales), Shared::new(&mut self.sums));
        let task = |tile: usize| {
            for (r, x) in x[tile * ROWS * k..].chunks_exact(k).take(ROWS).enumerate() {
                for (b, x) in x.chunks(BLOCK).enumerate() {
                    let at = place(tiles, row_block, blocks, tile, b);
                    // SAFETY: each tile belongs to one task; tiles are used where AVX-512 is.
                    unsafe {
                        let codes = bytes(codes.part(at * lines..(at + 1) * lines));
                        let (scale, code_sums) = quantize_row(x, depth, r, codes);
                        scales.part(at..at + 1)[0][r] = scale;
                        sums.part(at..at + 1)[0][r] = code_sums;
                    }
                }
            }
        };
        if x.len() < PARALLEL { (0..tiles).for_each(task) } else { pool.run(tiles, &task) }
    }

    /// Block `block` of tile `tile`.
    pub(super) fn tile(&self, tile: usize, block: usize) -> TileRows<'_> {
        let at = place(self.tiles(), self.row_block, self.blocks, tile, block);
        let codes = self.codes[at * (BLOCK_TILE / 64)..].as_ptr().cast();
        TileRows { codes, scales: &self.scales[at], sums: &self.sums[at] }
    }

    /// Tiles of rows.
    pub(super) fn tiles(&self) -> usize {
        self.scales.len() / self.blocks
    }
}

/// Lines as bytes.
fn bytes(lines: &mut [Line]) -> &mut [i8] {
    // SAFETY: a line is 64 bytes and nothing else.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 64) }
}

/// Where block `block` of tile `tile` is, in blocks of tiles.
fn place(tiles: usize, row_block: usize, blocks: usize, tile: usize, block: usize) -> usize {
    let first = tile / row_block * row_block;
    first * blocks + block * row_block.min(tiles - first) + tile - first
}

/// Quantizes a block of row `r` of a tile; returns its scale and sums.
///
/// # Safety
/// The machine must have AVX-512 F, BW, DQ and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn quantize_row(x: &[f32], depth: usize, r: usize, tile: &mut [i8]) -> (f32, CodeSums) {
    let mut block: ActBlock = ZERO;
    // SAFETY: the caller's.
    unsafe { quantize_avx512(x, &mut block) };
    if depth == HALF {
        for (u, codes) in block.codes.as_chunks::<HALF>().0.iter().enumerate() {
            tile[(u * ROWS + r) * HALF..][..HALF].copy_from_slice(codes);
        }
    } else {
        for (step, codes) in block.codes.as_chunks::<WHOLE>().0.iter().enumerate() {
            tile[(step * ROWS + r) * WHOLE..][..WHOLE].copy_from_slice(codes);
        }
    }
    (block.scale, CodeSums { sum_16: block.sum_16, sum_32: block.sum_32, float_32: block.float_32 })
}

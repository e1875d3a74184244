//! Activations as the products of tiles read them.
//!
//! ```text
//! codes    [row block][block][tile][4 steps][16 rows][64]
//! scales   [row block][block][tile][16 rows]
//! ```
//!
//! A row block is [`row_block`] tiles (the last one may have fewer): what is read for one block of input features is
//! one run of memory, which the processor fetches ahead of the products.
//!
//! A row's last block is padded with zeros; rows that are missing in the last tile hold anything, since no row's
//! products reach another.
//!
//! Invariant: codes and scales are those of [`super::super::activations::ActBlock`].

use super::super::activations::{BLOCK, PARALLEL, codes_avx512};
use super::{ROWS, row_block};
use crate::pool::Pool;
use crate::tensor::Shared;

/// Bytes of a row of a tile.
const DEPTH: usize = 64;

/// Bytes of a block of 16 rows.
pub(super) const BLOCK_TILE: usize = BLOCK * ROWS;

/// A cache line, for alignment.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([i8; 64]);

/// Quantized rows, 16 a tile.
#[derive(Debug, Default)]
pub(in super::super) struct TiledRows {
    /// Blocks of a row.
    blocks: usize,
    /// Tiles of a row block.
    row_block: usize,
    codes: Vec<Line>,
    scales: Vec<[f32; ROWS]>,
}

impl TiledRows {
    /// Quantizes `x`, `(rows, k)`.
    pub(in super::super) fn quantize(&mut self, x: &[f32], rows: usize, pool: &Pool) {
        let k = x.len() / rows;
        let to = self.begin(rows, k);
        let task = |tile: usize| {
            for (r, x) in x[tile * ROWS * k..].chunks_exact(k).take(ROWS).enumerate() {
                // SAFETY: each tile belongs to one task; tiles are used where AVX-512 is.
                unsafe { to.row(tile * ROWS + r, x) };
            }
        };
        let tiles = rows.div_ceil(ROWS);
        if x.len() < PARALLEL { (0..tiles).for_each(task) } else { pool.run(tiles, &task) }
    }

    /// Makes room for `rows` rows of `k` values, to be filled one by one.
    pub(in super::super) fn begin(&mut self, rows: usize, k: usize) -> RowsTo<'_> {
        let (tiles, blocks) = (rows.div_ceil(ROWS), k.div_ceil(BLOCK));
        (self.blocks, self.row_block) = (blocks, row_block(tiles, blocks));
        self.codes.resize(tiles * blocks * (BLOCK_TILE / 64), Line([0; 64]));
        self.scales.resize(tiles * blocks, [0.0; ROWS]);
        RowsTo {
            tiles,
            blocks,
            row_block: self.row_block,
            codes: Shared::new(bytes(&mut self.codes)),
            scales: Shared::new(self.scales.as_flattened_mut()),
        }
    }

    /// The codes and the scales of block `block` of tile `tile`, followed by those of the next tiles of its row block.
    pub(super) fn block(&self, tile: usize, block: usize) -> (*const i8, &[[f32; ROWS]]) {
        let at = place(self.tiles(), self.row_block, self.blocks, tile, block);
        (self.codes[at * (BLOCK_TILE / 64)..].as_ptr().cast(), &self.scales[at..])
    }

    /// Tiles of rows.
    pub(super) fn tiles(&self) -> usize {
        self.scales.len() / self.blocks
    }
}

/// Where rows go.
pub(in super::super) struct RowsTo<'a> {
    tiles: usize,
    blocks: usize,
    row_block: usize,
    codes: Shared<'a, i8>,
    scales: Shared<'a, f32>,
}

impl RowsTo<'_> {
    /// Quantizes a row.
    ///
    /// # Safety
    /// The machine must have AVX-512 F, and each row is one caller's.
    pub(in super::super) unsafe fn row(&self, row: usize, x: &[f32]) {
        let (tile, r) = (row / ROWS, row % ROWS);
        for (b, x) in x.chunks(BLOCK).enumerate() {
            let at = place(self.tiles, self.row_block, self.blocks, tile, b);
            let first = at * BLOCK_TILE + r * DEPTH;
            // Of each of the tile's steps the row has one line.
            let lines = [0, 1, 2, 3].map(|step| first + step * ROWS * DEPTH);
            // SAFETY: a row's lines and scales are no other row's.
            unsafe {
                let lines = lines.map(|line| self.codes.part(line..line + DEPTH));
                self.scales.part(at * ROWS + r..at * ROWS + r + 1)[0] = codes_avx512(x, lines);
            }
        }
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

//! Linear layers of many rows on tiles (AMX).
//!
//! ```text
//! x ── quantize ─▶ 16 rows a tile, as the products read them                    activations.rs
//! for each row block, some tiles of rows                          their codes stay in the second-level cache
//!     for each panel of 16 output features
//!         for each CHUNK of input features
//!             expand the chunk of the panel                    once for all rows; stays in the first-level cache
//!             for each two tiles of rows: products on tiles, then scales on vectors     units.rs, supers.rs
//!         store the sums of each PANELS panels
//! ```
//!
//! A core does not overlap its tiles with its vectors, and going from one to the other costs it some 25 ns (measured
//! on Sapphire Rapids). So some 16 products are taken in one go, their integer sums stored, and then scaled.
//!
//! Invariant: for an output, the integer sums and the f32 operations with their order are those of `blocks.rs` and
//! `superblocks.rs`: the same bits as a row alone gets there.

#![allow(clippy::needless_range_loop, reason = "r numbers rows, in several arrays at once")]

pub(super) mod activations;
pub(super) mod supers;
pub(super) mod units;

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::activations::{BLOCK, LinearScratch};
use super::blocks::Panels;
use crate::amx::{TileShapes, Tiles};
use crate::isa::Amx;
use activations::{TileRows, TiledRows};

/// Rows of activations of a tile.
const ROWS: usize = 16;

/// From this many rows on tiles are used: below, the vector kernels take no longer.
pub(super) const FROM_ROWS: usize = 9;

/// Tiles of rows at most whose activations are kept in the cache together.
const ROW_BLOCK: usize = 16;

/// Bytes of activations that may stay in the second-level cache, beside weights, sums and outputs.
const ROW_BLOCK_BYTES: usize = 1600 << 10;

/// Tiles of rows of `k` features whose activations are kept in the cache together.
fn row_block(k: usize) -> usize {
    // A code a feature, and 96 bytes of sums for 256 of them.
    let tile = ROWS * (k + k * 96 / 256);
    ROW_BLOCK.min(ROW_BLOCK_BYTES / tile.max(1)).max(2) / 2 * 2
}

/// Input features of a chunk: a block of activations. Longer ones push each other out of the first-level cache
/// (measured: 512 features are a third slower at 32 rows).
const CHUNK: usize = BLOCK;

/// Panels whose sums are stored together: runs of 256 bytes of a row of the output.
const PANELS: usize = 4;

/// The sums of a tile of rows and 16 output features.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Sums([[f32; 16]; ROWS]);

/// A chunk of a panel.
pub(super) struct Chunk<E> {
    /// As it is stored.
    packed: *const u8,
    /// And expanded.
    expanded: *const E,
    /// Units of 32 features.
    units: usize,
    /// Whether its sums are the first: they replace what was there.
    first: bool,
}

/// How a format is multiplied on tiles.
pub(super) trait OnTiles {
    /// A chunk of a panel, expanded.
    type Expanded;
    /// Integer sums on their way from the tiles to the vectors.
    type Products;
    /// Bytes of 256 input features of a panel.
    const BLOCK_BYTES: usize;

    /// The shapes of its tiles.
    fn shapes() -> &'static TileShapes;

    /// Where its activations are.
    fn rows(scratch: &LinearScratch) -> &TiledRows;

    /// Expands a chunk of `units` units.
    ///
    /// # Safety
    /// AVX-512; the chunk is of this format.
    unsafe fn expand(packed: *const u8, units: usize, out: *mut Self::Expanded);

    /// Adds the products of a chunk with `T` (1 or 2) tiles of rows to their sums.
    ///
    /// # Safety
    /// AVX-512; the chunk is of this format, `x` has as many features, `sums` points to `T` tiles.
    unsafe fn multiply<const T: usize>(
        tiles: &Tiles,
        x: [TileRows<'_>; T],
        chunk: &Chunk<Self::Expanded>,
        products: *mut Self::Products,
        sums: *mut Sums,
    );
}

/// Runs a task on tiles.
///
/// # Safety
/// The panels are of this format, its activations are the task's rows, the task owns its columns of `out`, and this
/// thread's tiles are not configured.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn run<W: OnTiles>(task: &Panels<'_>, amx: Amx) {
    let x = W::rows(task.scratch);
    assert_eq!(x.tiles(), task.rows.div_ceil(ROWS));
    let tiles = Tiles::new(amx, W::shapes());
    let mut expanded = MaybeUninit::<W::Expanded>::uninit();
    let mut products = MaybeUninit::<W::Products>::uninit();
    let mut all_sums = MaybeUninit::<[[Sums; ROW_BLOCK]; PANELS]>::uninit();
    let row_block = row_block(task.k);
    for first in (0..x.tiles()).step_by(row_block) {
        let n = row_block.min(x.tiles() - first);
        for panel in 0..task.n_panels {
            // SAFETY: within the array; the first chunk writes it.
            let sums: *mut Sums = unsafe { (&raw mut (*all_sums.as_mut_ptr())[panel % PANELS]).cast() };
            for from in (0..task.k).step_by(CHUNK) {
                let block = from / CHUNK;
                let units = CHUNK.min(task.k - from) / 32;
                // SAFETY: the caller's; a chunk lies within a panel, and `expanded` is written before it is read.
                unsafe {
                    let packed = task.weights.add(panel * task.panel_bytes + block * W::BLOCK_BYTES);
                    W::expand(packed, units, expanded.as_mut_ptr());
                    let chunk = Chunk { packed, expanded: expanded.as_ptr(), units, first: from == 0 };
                    let products = products.as_mut_ptr();
                    let mut tile = 0;
                    while tile + 2 <= n {
                        let rows = [x.tile(first + tile, block), x.tile(first + tile + 1, block)];
                        W::multiply::<2>(&tiles, rows, &chunk, products, sums.add(tile));
                        tile += 2;
                    }
                    if tile < n {
                        W::multiply::<1>(&tiles, [x.tile(first + tile, block)], &chunk, products, sums.add(tile));
                    }
                }
            }
            let ready = panel % PANELS + 1;
            if ready == PANELS || panel + 1 == task.n_panels {
                for tile in 0..n {
                    // SAFETY: the caller's; the sums of these panels and tiles were written.
                    unsafe { store(task, first + tile, panel + 1 - ready, ready, all_sums.as_ptr().cast(), tile) }
                }
            }
        }
    }
}

/// Adds the bias and stores the sums of tile `at` of a row block and of `n` panels, as far as there are rows and
/// columns.
///
/// # Safety
/// AVX-512; the task owns its columns of `out`; `sums` are `n` times [`ROW_BLOCK`] tiles.
#[inline(always)]
unsafe fn store(task: &Panels<'_>, tile: usize, panel: usize, n: usize, sums: *const Sums, at: usize) {
    for r in 0..ROWS.min(task.rows - ROWS * tile) {
        for p in 0..n {
            let col = 16 * (panel + p);
            let mask = ((1u32 << (task.cols - col).min(16)) - 1) as __mmask16;
            // SAFETY: within `out`, see `Panels`; masked lanes are not accessed; `bias` is empty or whole panels.
            unsafe {
                let mut v = _mm512_load_ps((*sums.add(p * ROW_BLOCK + at)).0[r].as_ptr());
                if !task.bias.is_empty() {
                    v = _mm512_add_ps(v, _mm512_loadu_ps(task.bias.as_ptr().add(col)));
                }
                _mm512_mask_storeu_ps(task.out.add((ROWS * tile + r) * task.out_stride + col), mask, v);
            }
        }
    }
}

//! Linear layers of many rows on tiles (AMX): block formats here, floats in `terms.rs`.
//!
//! ```text
//! x ── quantize ─▶ 16 rows a tile, as the products read them                    activations.rs
//! for each row block, some tiles of rows
//!     for each chunk of input features                            their codes stay in the second-level cache
//!         for each two panels of 16 output features
//!             for each superblock of 256 input features of the chunk
//!                 expand it to planes of bytes                     once for all rows; stays in the first-level cache
//!                 for each tile of rows: products on tiles, with the scales of the one before  expand.rs, here
//!             store the sums of each PANELS panels; the next chunk goes on from there
//! ```
//!
//! A fixed-point weight `w` (see `blocks.rs`) has 16 bits, a tile's weight 8: so it is cut into two digits, each a *plane*
//! of bytes, `w = 256 * high + low` with a signed high and an unsigned low one, whose sums are put together again.
//!
//! A core works on tiles and on vectors at once as far as its instruction window reaches, which is some 30 products. So
//! the sums of a tile of rows are scaled between the products of the next one. A tile of activations, which comes from
//! the second-level cache, serves four products. The lines of the next superblock are asked for between products, too, a few
//! at a time: a core waits for sixteen at once, and all of them while a superblock is expanded would stall it.
//!
//! Where a layer's outputs are gates and what they are multiplied by, the two panels of a visit are one of each, and only
//! the products are stored.
//!
//! Invariant: for an output, the integer sums are exact, and the f32 operations and their order are those of
//! `blocks.rs`: the same bits as a row alone gets there.

#![allow(clippy::needless_range_loop, reason = "r numbers rows, in several arrays at once")]

pub(super) mod activations;
mod expand;
pub(super) mod terms;

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::activations::{BLOCK, UNIT};
use super::blocks::{Format, Panels, UNITS, unit_of};
use super::lanes::Lanes;
use super::lanes_x86::Zmm;
use crate::amx::{FULL_TILES, STEPS, Tiles, WHOLE_TILE, product_step, store_products};
use crate::gate::activate;
use crate::isa::Amx;
use activations::BLOCK_TILE;
use expand::{Planes, expand};

/// Rows of activations of a tile.
const ROWS: usize = 16;

/// From this many rows on tiles are used: below, the vector kernels take no longer.
pub(super) const FROM_ROWS: usize = 9;

/// Tiles of rows at most that a superblock is expanded for.
const ROW_BLOCK: usize = 32;

/// Bytes of activations that may stay in the second-level cache, beside weights, sums and outputs.
const ROW_BLOCK_BYTES: usize = 1280 << 10;

/// Bytes of outputs from which on they are not kept in a cache: they would push out what is needed again.
const STREAM_BYTES: usize = 6 << 20;

/// Tiles of rows in a row block, of `tiles`: equal ones. `blocks` is the length of a row.
fn row_block(tiles: usize, blocks: usize) -> usize {
    // Rather expand twice than cut rows in two.
    let most = if ROW_BLOCK * ROWS * BLOCK * blocks <= ROW_BLOCK_BYTES { ROW_BLOCK } else { ROW_BLOCK / 2 };
    tiles.div_ceil(tiles.div_ceil(most).max(1)).min(most)
}

/// Superblocks in a chunk, of `blocks` and of row blocks of `tiles`: equal ones.
fn chunk(blocks: usize, tiles: usize) -> usize {
    let most = (ROW_BLOCK_BYTES / (tiles * ROWS * BLOCK)).max(1);
    blocks.div_ceil(blocks.div_ceil(most).max(1))
}

/// Panels whose sums are stored together: runs of 256 bytes of a row of the output. Even.
const PANELS: usize = 4;

/// Elements of a tile of sums.
const TILE: usize = 16 * ROWS;

/// The sums of a tile of rows and 16 output features.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Sums([[f32; 16]; ROWS]);

/// Integer sums on their way from the tiles to the vectors: of a tile of rows, two panels, two planes.
#[repr(C, align(64))]
struct Products([[[i32; TILE]; 2]; 2]);

/// Rows that a task should multiply, of `rows` rows of `k` features: all, or a row block where it would read
/// the activations of several.
pub(super) fn rows_of_task(rows: usize, k: usize) -> usize {
    ROWS * row_block(rows.div_ceil(ROWS), k.div_ceil(BLOCK))
}

/// Whether gates may be multiplied here: the sums of a whole row must be there at once.
pub(super) fn gates(rows: usize, k: usize) -> bool {
    let blocks = k.div_ceil(BLOCK);
    chunk(blocks, row_block(rows.div_ceil(ROWS), blocks)) == blocks
}

/// Runs a task on tiles; `GATED` says that it is one with gates.
///
/// # Safety
/// The panels are of this format, its activations are the task's rows, the task owns its columns of `out`, and this
/// thread's tiles are not configured.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn run<F: Format, const GATED: bool>(task: &Panels<'_>, amx: Amx) {
    let x = &task.scratch.tiles;
    assert_eq!(x.tiles(), task.rows.div_ceil(ROWS));
    let tiles = Tiles::new(amx, &FULL_TILES);
    let mut planes = MaybeUninit::<[Planes; 2]>::uninit();
    let mut products = MaybeUninit::<[Products; 2]>::uninit();
    let mut all_sums = MaybeUninit::<[[Sums; ROW_BLOCK]; PANELS]>::uninit();
    let planes: *mut Planes = planes.as_mut_ptr().cast();
    let sums: *mut [Sums; ROW_BLOCK] = all_sums.as_mut_ptr().cast();
    let stream = task.rows * task.out_stride * size_of::<f32>() >= STREAM_BYTES;
    let blocks = task.k.div_ceil(BLOCK);
    let row_block = row_block(x.tiles(), blocks);
    let chunk = chunk(blocks, row_block);
    assert!(!GATED || chunk == blocks && task.gated.is_some());
    // Panels of a visit, and where the second one is.
    let panels_each = if GATED { 1 } else { 2 };
    let task_tiles = task.row_range.start / ROWS..task.row_range.end.div_ceil(ROWS);
    assert!(task_tiles.start % row_block == 0 && task_tiles.end <= x.tiles());
    for first in task_tiles.clone().step_by(row_block) {
        let n = row_block.min(task_tiles.end - first);
        // Of the next superblock's lines so many are asked for at each step.
        let lines = F::BYTES.div_ceil(64);
        let each = lines.div_ceil(STEPS * n);
        for from in (0..blocks).step_by(chunk) {
            let to = blocks.min(from + chunk);
            for panel in (0..task.n_panels).step_by(panels_each) {
                // The last panel may be alone: then its products are taken twice, and the second ones go nowhere.
                let two = usize::from(GATED || panel + 1 < task.n_panels);
                // SAFETY: within the task's panels.
                let weights = unsafe {
                    let at = task.weights.add(panel * task.panel_bytes);
                    match &task.gated {
                        Some(up) if GATED => [at, up.weights.add(panel * task.panel_bytes)],
                        _ => [at, at.add(two * task.panel_bytes)],
                    }
                };
                // Of the sums of some panels, those of this visit.
                let slot = panel / panels_each % (PANELS / 2) * 2;
                if from > 0 {
                    for p in 0..1 + two {
                        // SAFETY: the caller's; an earlier chunk stored these sums.
                        unsafe { load(task, first, panel + p, n, (*sums.add(slot + p)).as_mut_ptr()) }
                    }
                }
                let mut pending = None;
                for block in from..to {
                    let units = UNITS.min((task.k - block * BLOCK) / UNIT);
                    // SAFETY: the caller's; a superblock lies within a panel, planes are written before they are read
                    // (steps of a short superblock that were never written are multiplied by zeros, all bytes being
                    // numbers), and the first superblock writes the sums.
                    unsafe {
                        let mut d = [_mm512_setzero_ps(); 2];
                        for p in 0..1 + two {
                            let weights = weights[p].add(block * F::BYTES);
                            expand::<F>(weights, units, planes.add(p));
                            d[p] = unit_of::<F, Zmm>(weights);
                        }
                        // The first superblocks of the next panels follow the last ones of these.
                        let next = if block + 1 < to {
                            (block + 1) * F::BYTES
                        } else {
                            panels_each * task.panel_bytes + from * F::BYTES
                        };
                        let mut ahead =
                            Ahead { at: [weights[0].wrapping_add(next), weights[two].wrapping_add(next)], lines, each };
                        let b = [planes.cast_const().cast(), planes.add(two).cast_const().cast()];
                        let (codes, scales) = x.block(first, block);
                        for (t, scales) in scales[..n].iter().enumerate() {
                            let sums = [0, 1].map(|p| (*sums.add(slot + p)).as_mut_ptr().add(t));
                            let products = products.as_mut_ptr().cast::<Products>().add((block * n + t) % 2);
                            let visit = Visit { products, d, scales, sums, first: block == 0 };
                            multiply(&tiles, codes.add(t * BLOCK_TILE), b, products, &mut ahead, pending.as_ref());
                            pending = Some(visit);
                        }
                    }
                }
                if let Some(visit) = pending {
                    for step in 0..STEPS {
                        // SAFETY: the visit's products were stored.
                        unsafe { scale(&visit, step) }
                    }
                }
                let done = if GATED { panel + 1 } else { panel + 1 + two };
                if slot + 2 == PANELS || done == task.n_panels {
                    let last = to == blocks;
                    for tile in 0..n {
                        // SAFETY: the caller's; the sums of these panels and tiles were written.
                        unsafe {
                            let sums = all_sums.as_ptr().cast::<Sums>().add(tile);
                            if GATED {
                                let n = slot / 2 + 1;
                                store_gated(task, amx, first + tile, done - n, n, sums, stream);
                            } else {
                                let n = slot + 1 + two;
                                store(task, first + tile, done - n, n, sums, (last, last && stream));
                            }
                        }
                    }
                }
            }
        }
    }
    if stream {
        // Streamed stores are seen by other threads only after this.
        _mm_sfence();
    }
}

/// A tile of rows and two panels whose integer sums wait to be scaled.
struct Visit<'a> {
    products: *const Products,
    /// Unit of the weights of each panel's rows.
    d: [__m512; 2],
    /// Unit of each row's activations.
    scales: &'a [f32; ROWS],
    /// Where the sums of each panel are; the second's are nobody's where there is but one.
    sums: [*mut Sums; 2],
    /// Whether these are the first sums: what is there is not read.
    first: bool,
}

/// The next superblocks of weights, which are asked for while others are multiplied.
struct Ahead {
    at: [*const u8; 2],
    /// Lines left to ask for, of each.
    lines: usize,
    /// Lines of each at a step.
    each: usize,
}

impl Ahead {
    /// Asks for some lines.
    #[inline(always)]
    fn step(&mut self) {
        if self.lines > 0 {
            for _ in 0..self.each {
                for at in &mut self.at {
                    // SAFETY: a hint, whatever is there.
                    unsafe { Zmm::prefetch(*at) }
                    *at = at.wrapping_add(64);
                }
            }
            self.lines = self.lines.saturating_sub(self.each);
        }
    }
}

/// Takes the products of a tile of rows and a superblock, and meanwhile scales those of the visit before and asks for what
/// comes next.
///
/// # Safety
/// AVX-512; `a` is a tile of rows, `b` are [`Planes`], `out` is not what `before` reads.
#[inline(always)]
unsafe fn multiply(
    tiles: &Tiles,
    a: *const i8,
    b: [*const i8; 2],
    out: *mut Products,
    ahead: &mut Ahead,
    before: Option<&Visit<'_>>,
) {
    // SAFETY: the caller's.
    unsafe {
        for step in 0..STEPS {
            let b = [b[0].add(2 * WHOLE_TILE * step), b[1].add(2 * WHOLE_TILE * step)];
            product_step(tiles, a.add(WHOLE_TILE * step), b, step == 0);
            ahead.step();
            if let Some(visit) = before {
                scale(visit, step);
            }
        }
        store_products(tiles, out.cast());
    }
}

/// Puts the integer sums of two planes together, scales them and adds them to the sums of a tile of rows: of the rows
/// of one of [`STEPS`] steps.
///
/// # Safety
/// AVX-512; the visit's products are stored, and its sums hold something but where these are the first.
#[inline(always)]
unsafe fn scale(visit: &Visit<'_>, step: usize) {
    const PART: usize = ROWS / STEPS;
    for r in PART * step..PART * (step + 1) {
        for p in 0..2 {
            // SAFETY: the caller's.
            unsafe {
                let dots: *const __m512i = (&raw const (*visit.products).0[p]).cast();
                let high = _mm512_slli_epi32::<8>(_mm512_load_si512(dots.add(r)));
                let total = _mm512_add_epi32(high, _mm512_load_si512(dots.add(ROWS + r)));
                let place: *mut f32 = (&raw mut (*visit.sums[p]).0[r]).cast();
                let sum = if visit.first { _mm512_setzero_ps() } else { _mm512_load_ps(place) };
                let scale = _mm512_mul_ps(visit.d[p], _mm512_set1_ps(visit.scales[r]));
                _mm512_store_ps(place, _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), scale, sum));
            }
        }
    }
}

/// Which of 16 output features of panel `panel` exist.
fn mask(task: &Panels<'_>, panel: usize) -> __mmask16 {
    ((1u32 << (task.cols - 16 * panel).min(16)) - 1) as __mmask16
}

/// Loads what an earlier chunk stored of `n` tiles from tile `first` on, and a panel.
///
/// # Safety
/// AVX-512; the task owns its columns of `out`.
#[inline(always)]
unsafe fn load(task: &Panels<'_>, first: usize, panel: usize, n: usize, sums: *mut Sums) {
    for row in ROWS * first..task.rows.min(ROWS * (first + n)) {
        // SAFETY: within `out`, see `Panels`; masked lanes are not accessed.
        unsafe {
            let v = _mm512_maskz_loadu_ps(mask(task, panel), task.out.add(row * task.out_stride + 16 * panel));
            _mm512_store_ps((*sums.add(row / ROWS - first)).0[row % ROWS].as_mut_ptr(), v);
        }
    }
}

/// Stores the sums of a tile and of `n` panels, as far as there are rows and columns; those of the `last` chunk with
/// the bias, past the caches where they are to `stream`.
///
/// # Safety
/// AVX-512; the task owns its columns of `out`; `sums` are those of the first panel, [`ROW_BLOCK`] before the next's.
#[inline(always)]
unsafe fn store(
    task: &Panels<'_>,
    tile: usize,
    panel: usize,
    n: usize,
    sums: *const Sums,
    (last, stream): (bool, bool),
) {
    for r in 0..ROWS.min(task.rows - ROWS * tile) {
        for p in 0..n {
            let bias = if last { task.bias } else { &[] };
            // SAFETY: the caller's.
            unsafe {
                let v = with_bias((*sums.add(p * ROW_BLOCK)).0[r].as_ptr(), bias, panel + p);
                put(task, ROWS * tile + r, panel + p, v, stream);
            }
        }
    }
}

/// Multiplies gates by what they gate and stores that, as [`store`].
///
/// # Safety
/// As [`store`]; the sums of a gate's panel are followed by those of what it gates.
#[inline(always)]
unsafe fn store_gated(
    task: &Panels<'_>,
    amx: Amx,
    tile: usize,
    panel: usize,
    n: usize,
    sums: *const Sums,
    stream: bool,
) {
    let Some(gated) = &task.gated else { return };
    for r in 0..ROWS.min(task.rows - ROWS * tile) {
        for p in 0..n {
            // SAFETY: the caller's.
            unsafe {
                let gate = with_bias((*sums.add(2 * p * ROW_BLOCK)).0[r].as_ptr(), task.bias, panel + p);
                let up = with_bias((*sums.add((2 * p + 1) * ROW_BLOCK)).0[r].as_ptr(), gated.bias, panel + p);
                let v = _mm512_mul_ps(activate(amx.avx512(), gated.gate, gate), up);
                put(task, ROWS * tile + r, panel + p, v, stream);
            }
        }
    }
}

/// Sums of a row and a panel with their bias.
///
/// # Safety
/// AVX-512; `sums` are 16 floats at the start of a cache line; `bias` is empty or whole panels.
#[inline(always)]
unsafe fn with_bias(sums: *const f32, bias: &[f32], panel: usize) -> __m512 {
    // SAFETY: the caller's.
    unsafe {
        let v = _mm512_load_ps(sums);
        if bias.is_empty() { v } else { _mm512_add_ps(v, _mm512_loadu_ps(bias.as_ptr().add(16 * panel))) }
    }
}

/// Stores the outputs of a row and a panel as far as there are columns.
///
/// # Safety
/// AVX-512; the task owns its columns of `out`.
#[inline(always)]
unsafe fn put(task: &Panels<'_>, row: usize, panel: usize, v: __m512, stream: bool) {
    let mask = mask(task, panel);
    // SAFETY: within `out`, see `Panels`; masked lanes are not accessed.
    unsafe {
        let out = task.out.add(row * task.out_stride + 16 * panel);
        if stream && mask == 0xffff && out.addr().is_multiple_of(64) {
            _mm512_stream_ps(out, v);
        } else {
            _mm512_mask_storeu_ps(out, mask, v);
        }
    }
}

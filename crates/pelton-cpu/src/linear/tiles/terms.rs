//! BF16 and F16 weights of many rows on tiles: the products of `../terms.rs`.
//!
//! ```text
//! x ── cut in terms ─▶ 16 rows a tile:   [tile][group of 32 features][2 terms][16 rows][32]
//! for each row block, some tiles of rows
//!     for each chunk of input features                            its terms stay in the second-level cache
//!         for each four panels of 16 output features
//!             for each few groups of the chunk
//!                 for each tile of rows: products, on top of its sums
//!             store the sums; the next chunk goes on from there
//! ```
//!
//! Panels of bf16 are tiles of weights as they lie in memory, read in four streams, which the processor fetches ahead of
//! the products by itself (asking for them took longer); half precision is cut into its terms first.
//!
//! Invariant: for an output, the f32 operations and their order are those of `../terms.rs`; where sums are stored and
//! loaded again changes no bit.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use half::bf16;

use super::super::activations::PARALLEL;
use super::super::blocks::Panels;
use super::super::lanes_x86::Zmm;
use super::super::terms::{GROUP, GROUP_BYTES, Halves, split};
use super::{ROW_BLOCK, ROW_BLOCK_BYTES, ROWS, STREAM_BYTES, put, with_bias};
use crate::amx::{FULL_TILES, Tiles, WHOLE_TILE, term_products};
use crate::gate::activate;
use crate::isa::Amx;
use crate::pool::Pool;
use crate::tensor::Shared;

/// From this many rows on tiles are used: below, the vectors take no longer.
pub(in super::super) const FROM_ROWS: usize = 3;

/// Panels whose sums a visit makes.
const PANELS: usize = 4;

/// Groups whose products are summed in one go, so that sums are seldom stored: of weights as they lie in memory, and of
/// those that are cut into terms first.
const FEW: usize = 48;
const FEW_CUT: usize = 16;

/// Bytes of a tile of rows' terms of a group.
const STEP_BYTES: usize = 2 * WHOLE_TILE;

/// 32 numbers of a row.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([bf16; 32]);

/// Rows in terms, 16 a tile. Rows that are missing in the last tile hold anything, since no row's products reach
/// another.
#[derive(Debug, Default)]
pub(in super::super) struct TiledTerms {
    /// Groups of a row.
    groups: usize,
    lines: Vec<Line>,
}

impl TiledTerms {
    /// Cuts `x`, `(rows, k)`.
    pub(in super::super) fn split(&mut self, x: &[f32], rows: usize, pool: &Pool) {
        let k = x.len() / rows;
        let (tiles, groups) = (rows.div_ceil(ROWS), k.div_ceil(GROUP));
        let lines = STEP_BYTES / size_of::<Line>();
        self.groups = groups;
        self.lines.resize(tiles * groups * lines, Line([bf16::ZERO; 32]));
        let all = Shared::new(&mut self.lines);
        let task = |tile: usize| {
            // SAFETY: each tile belongs to one task.
            let out = unsafe { all.part(tile * groups * lines..(tile + 1) * groups * lines) };
            for (r, x) in x[tile * ROWS * k..].chunks_exact(k).take(ROWS).enumerate() {
                for (x, step) in x.chunks(GROUP).zip(out.chunks_exact_mut(lines)) {
                    let (first, second) = step.split_at_mut(ROWS);
                    // SAFETY: tiles are used where AVX-512 is.
                    unsafe { split_group(x, &mut first[r], &mut second[r]) }
                }
            }
        };
        if x.len() < PARALLEL { (0..tiles).for_each(task) } else { pool.run(tiles, &task) }
    }

    /// Tiles of rows.
    fn tiles(&self) -> usize {
        self.lines.len() / (self.groups * (STEP_BYTES / size_of::<Line>()))
    }

    /// The terms of a tile from group `group` on.
    fn from(&self, tile: usize, group: usize) -> *const bf16 {
        self.lines[(tile * self.groups + group) * (STEP_BYTES / size_of::<Line>())..].as_ptr().cast()
    }
}

/// The terms of at most 32 numbers, zeros past them.
///
/// # Safety
/// The machine must have AVX-512 F.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn split_group(x: &[f32], first: &mut Line, second: &mut Line) {
    let mut whole = [0.0; GROUP];
    let x = match <&[f32; GROUP]>::try_from(x) {
        Ok(x) => x,
        Err(_) => {
            whole[..x.len()].copy_from_slice(x);
            &whole
        }
    };
    for ((x, first), second) in x.iter().zip(&mut first.0).zip(&mut second.0) {
        [*first, *second] = split(*x).map(|term| bf16::from_bits((term.to_bits() >> 16) as u16));
    }
}

/// Tiles of rows in a row block, of `tiles`: equal ones.
fn row_block(tiles: usize, groups: usize) -> usize {
    let most = (ROW_BLOCK_BYTES / (groups * STEP_BYTES)).clamp(ROW_BLOCK / 4, ROW_BLOCK);
    tiles.div_ceil(tiles.div_ceil(most).max(1))
}

/// Groups in a chunk, of `groups` and of row blocks of `tiles`: equal ones.
fn chunk(groups: usize, tiles: usize) -> usize {
    let most = (ROW_BLOCK_BYTES / (tiles * STEP_BYTES)).max(1);
    groups.div_ceil(groups.div_ceil(most).max(1))
}

/// Rows that a task should multiply, of `rows` rows of `k` features: a row block.
pub(in super::super) fn rows_of_task(rows: usize, k: usize) -> usize {
    ROWS * row_block(rows.div_ceil(ROWS), k.div_ceil(GROUP))
}

/// Whether gates may be multiplied here: the sums of a whole row must be there at once.
pub(in super::super) fn gates(rows: usize, k: usize) -> bool {
    let groups = k.div_ceil(GROUP);
    chunk(groups, row_block(rows.div_ceil(ROWS), groups)) == groups
}

/// The sums of a tile of rows and 4 panels.
#[repr(C, align(64))]
struct Sums([[[f32; 16]; ROWS]; PANELS]);

/// Weights of 4 panels in terms.
#[repr(C, align(64))]
struct Weights([[[bf16; 2 * WHOLE_TILE / 2]; FEW_CUT]; PANELS]);

/// Runs a task on tiles; `GATED` says that it is one with gates.
///
/// # Safety
/// The panels are of this type, its terms are the task's rows, the task owns its columns of `out`, and this
/// thread's tiles are not configured.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(in super::super) unsafe fn run<W: Halves, const GATED: bool>(task: &Panels<'_>, amx: Amx) {
    let x = &task.scratch.terms.tiles;
    assert_eq!(x.tiles(), task.rows.div_ceil(ROWS));
    let tiles = Tiles::new(amx, &FULL_TILES);
    let mut sums = MaybeUninit::<[Sums; ROW_BLOCK]>::uninit();
    let sums: *mut Sums = sums.as_mut_ptr().cast();
    let mut weights = MaybeUninit::<Weights>::uninit();
    let stream = task.rows * task.out_stride * size_of::<f32>() >= STREAM_BYTES;
    let groups = task.k.div_ceil(GROUP);
    let row_block = row_block(x.tiles(), groups);
    let chunk = chunk(groups, row_block);
    assert!(!GATED || chunk == groups && task.gated.is_some());
    let panels_each = if GATED { PANELS / 2 } else { PANELS };
    let task_tiles = task.row_range.start / ROWS..task.row_range.end.div_ceil(ROWS);
    assert!(task_tiles.end <= x.tiles());
    for first in task_tiles.clone().step_by(row_block) {
        let n = row_block.min(task_tiles.end - first);
        for from in (0..groups).step_by(chunk) {
            let to = groups.min(from + chunk);
            for panel in (0..task.n_panels).step_by(panels_each) {
                let visit = Visit::<GATED>::new(task, panel);
                if from > 0 {
                    for t in 0..n {
                        // SAFETY: the caller's; an earlier chunk stored these sums.
                        unsafe { visit.load(task, first + t, sums.add(t)) }
                    }
                }
                let most = if W::TERMS == 1 { FEW } else { FEW_CUT };
                for at in (from..to).step_by(most) {
                    let few = most.min(to - at);
                    // SAFETY: the caller's: groups `at..at + few` are within the panels and the terms; the first ones
                    // write the sums.
                    unsafe {
                        let b = visit.panels.map(|p| p.add(at * GROUP_BYTES));
                        let b =
                            if W::TERMS == 1 { b.map(|b| b.cast()) } else { cut::<W>(b, few, weights.as_mut_ptr()) };
                        for t in 0..n {
                            let a = x.from(first + t, at);
                            let sums = sums.add(t).cast();
                            if W::TERMS == 1 {
                                term_products::<1>(&tiles, a, b, sums, (few, at == 0));
                            } else {
                                term_products::<2>(&tiles, a, b, sums, (few, at == 0));
                            }
                        }
                    }
                }
                for t in 0..n {
                    // SAFETY: the caller's; the sums of these panels and tiles were written.
                    unsafe { visit.store(task, amx, first + t, sums.add(t), (to == groups, stream)) }
                }
            }
        }
    }
    if stream {
        // Streamed stores are seen by other threads only after this.
        _mm_sfence();
    }
}

/// Cuts the weights of `few` groups of 4 panels into terms.
///
/// # Safety
/// AVX-512; `b` point to as many groups, at most [`FEW_CUT`].
#[inline(always)]
unsafe fn cut<W: Halves>(b: [*const u8; PANELS], few: usize, out: *mut Weights) -> [*const bf16; PANELS] {
    let mut places = [out.cast_const().cast(); PANELS];
    for (p, b) in b.into_iter().enumerate() {
        // SAFETY: the caller's; as many groups have room.
        unsafe {
            let panel: *mut bf16 = (*out).0[p].as_mut_ptr().cast();
            places[p] = panel.cast_const();
            for group in 0..few {
                for pair in 0..GROUP / 2 {
                    let terms = W::pairs::<Zmm>(b.add(group * GROUP_BYTES + 64 * pair));
                    for (term, [even, odd]) in terms.into_iter().enumerate() {
                        let even = _mm512_srli_epi32::<16>(_mm512_castps_si512(even));
                        let pair_of = _mm512_or_si512(even, _mm512_castps_si512(odd));
                        let at = (2 * group + term) * WHOLE_TILE / 2 + 32 * pair;
                        _mm512_store_si512(panel.add(at).cast(), pair_of);
                    }
                }
            }
        }
    }
    places
}

/// The panels of a visit: 4, or 2 gates and the 2 that they gate. Where there are fewer, the last one is there again.
struct Visit<const GATED: bool> {
    /// Number of the first.
    panel: usize,
    /// Panels, or pairs of them, that exist.
    n: usize,
    panels: [*const u8; PANELS],
}

impl<const GATED: bool> Visit<GATED> {
    fn new(task: &Panels<'_>, panel: usize) -> Visit<GATED> {
        let each = if GATED { PANELS / 2 } else { PANELS };
        let n = each.min(task.n_panels - panel);
        let of = |weights: *const u8, i: usize| weights.wrapping_add((panel + i.min(n - 1)) * task.panel_bytes);
        let panels = match &task.gated {
            Some(up) if GATED => std::array::from_fn(|i| of([task.weights, up.weights][i / each], i % each)),
            _ => std::array::from_fn(|i| of(task.weights, i)),
        };
        Visit { panel, n, panels }
    }

    /// Loads what an earlier chunk stored of a tile.
    ///
    /// # Safety
    /// AVX-512; the task owns its columns of `out`.
    #[inline(always)]
    unsafe fn load(&self, task: &Panels<'_>, tile: usize, sums: *mut Sums) {
        for r in 0..ROWS.min(task.rows - ROWS * tile) {
            for p in 0..self.n {
                let panel = self.panel + p;
                // SAFETY: within `out`, see `Panels`; masked lanes are not accessed.
                unsafe {
                    let out = task.out.add((ROWS * tile + r) * task.out_stride + 16 * panel);
                    let v = _mm512_maskz_loadu_ps(super::mask(task, panel), out);
                    _mm512_store_ps((*sums).0[p][r].as_mut_ptr(), v);
                }
            }
        }
    }

    /// Stores the sums of a tile, as far as there are rows and columns; those of the `last` chunk with the bias, past
    /// the caches where they are to `stream`.
    ///
    /// # Safety
    /// AVX-512; the task owns its columns of `out`.
    #[inline(always)]
    unsafe fn store(&self, task: &Panels<'_>, amx: Amx, tile: usize, sums: *const Sums, (last, stream): (bool, bool)) {
        for r in 0..ROWS.min(task.rows - ROWS * tile) {
            for p in 0..self.n {
                let panel = self.panel + p;
                // SAFETY: the caller's.
                unsafe {
                    let sums = &(*sums).0;
                    let v = match &task.gated {
                        Some(gated) if GATED => {
                            let gate = with_bias(sums[p][r].as_ptr(), task.bias, panel);
                            let up = with_bias(sums[PANELS / 2 + p][r].as_ptr(), gated.bias, panel);
                            _mm512_mul_ps(activate(amx.avx512(), gated.gate, gate), up)
                        }
                        _ => with_bias(sums[p][r].as_ptr(), if last { task.bias } else { &[] }, panel),
                    };
                    put(task, ROWS * tile + r, panel, v, stream && last);
                }
            }
        }
    }
}

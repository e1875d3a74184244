//! Paged attention: fixed chunks of positions, each with its own softmax, folded in the order of positions.
//!
//! A *tile* is some consecutive rows of one span times the query heads that share one KV head, so that a page is
//! read once for all of them. Its queries are worked on in *strips* of 32. A *chunk* is [`CHUNK`] positions that start
//! at a multiple of [`CHUNK`].
//!
//! ```text
//! for each chunk, in the order of positions
//!     score[q, slot] = (query[q] · K[slot]) scale, softcap; what the row must not see := -inf
//!     score in powers of two (times log2 e)
//!     m = max score; p = 2^(score - m); l = sum p; part[q] = sum over slots of p[slot] V[slot]
//!     M' = max(M, m); L = L 2^(M - M') + l 2^(m - M'); out[q] = out[q] 2^(M - M') + part[q] 2^(m - M')
//! out[q] /= L
//! ```
//!
//! The two products are the [`Products`] of the storage type: f32 and f16 multiply in float32 (`floats.rs`); bf16, int8
//! and fp8 as pairs of bf16, on tiles where there is AMX (`paired.rs`).
//!
//! Invariant: what is computed for a row, and in which order, depends on its position and the pages before it alone.
//! Chunks start at multiples of [`CHUNK`] whatever the tile, the threads or the part of the prompt; a chunk's (m, l,
//! part) come from that chunk alone, and they are folded in order, by one thread or after several have left them in
//! memory ([`Parts`]). A slot that a row does not see has the weight 0 and changes no sum; a chunk in which it
//! sees nothing is not folded. So a row has the same bits in a prefill chunk and in a decode step, and (but for
//! the scalar fallback, which does not fuse) on every instruction set.

mod floats;
mod paired;
mod run;
mod scratch;
mod split;

use std::ops::Range;

use pelton_backend::{Attention, PAGE_LEN};

pub(crate) use run::{AttentionScratch, Operands};
use scratch::{Scratch, ScratchPool};
use split::{Part, Parts, fold_parts, split, tiles};

use crate::gate;
use crate::isa::{Amx, Isa};
use crate::kv::paired::SMALLEST;
use crate::kv::{Format, Geometry};
use crate::math;
use crate::simd::{Kernel, Simd, load_from};
use crate::tensor::Shared;

/// Positions with a softmax of their own.
pub(crate) const CHUNK: usize = 256;

const CHUNK_PAGES: usize = CHUNK / PAGE_LEN;

/// Largest `rows * heads` of a tile.
pub(crate) const TILE: usize = 256;

/// Queries that are worked on together: the rows of two tile registers.
pub(crate) const STRIP: usize = 32;

/// Sums of weights of a chunk, whatever the width of a vector.
const SUMS: usize = 16;

/// Widest head for which tile registers are used.
const MOST_TILED: usize = 512;

/// A tile of queries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Tile {
    /// First row in the batch.
    pub row: usize,
    pub n_rows: usize,
    /// Position of the first row.
    pub position: usize,
    /// First query head.
    pub head: usize,
    pub n_heads: usize,
    /// The sequence's page table: start and length in the batch's pages.
    pub page_start: usize,
    pub n_pages: usize,
}

impl Tile {
    fn n_queries(&self) -> usize {
        self.n_rows * self.n_heads
    }

    /// Chunks that a row of the tile sees something of.
    fn chunks(&self, window: Option<usize>) -> Range<usize> {
        first_seen(self.position, window) / CHUNK..(self.position + self.n_rows - 1) / CHUNK + 1
    }

    /// Score and value products that the tile needs at most.
    fn cost(&self, window: Option<usize>) -> usize {
        let context = self.position + self.n_rows;
        context.min(window.unwrap_or(usize::MAX).saturating_add(self.n_rows)) * self.n_queries()
    }
}

/// First position that the query at `position` sees.
#[inline(always)]
fn first_seen(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |w| (position + 1).saturating_sub(w))
}

/// What all tasks of one attention share.
pub(crate) struct Work<'a, F: Format> {
    pub isa: Isa,
    pub attention: &'a Attention,
    pub geometry: Geometry,
    /// The layer's pool.
    pub pool: &'a [F::Element],
    /// The batch's page tables.
    pub pages: &'a [u32],
    /// `(rows, qkv_dim)` of the batch.
    pub qkv: &'a [f32],
    /// `(rows, q_dim)` of the batch; the rows and heads of a tile belong to its task.
    pub out: &'a Shared<'a, f32>,
    /// Where chunks are left that another task folds.
    pub parts: &'a Parts<'a>,
}

impl<'a, F: Products> Work<'a, F> {
    fn head_dim(&self) -> usize {
        self.attention.heads.head_dim
    }

    /// The tile registers, where they are used for this format.
    #[inline(always)]
    fn amx(&self) -> Option<Amx> {
        match self.isa {
            Isa::Amx(token) if F::ROUNDED && self.head_dim() <= MOST_TILED => Some(token),
            _ => None,
        }
    }

    /// Query `m` of a tile: `(head_dim,)`. Queries are numbered row by row.
    #[inline(always)]
    fn query(&self, tile: &Tile, m: usize) -> &'a [f32] {
        let heads = &self.attention.heads;
        let (row, head) = (tile.row + m / tile.n_heads, tile.head + m % tile.n_heads);
        let at = row * heads.qkv_dim() + head * heads.head_dim;
        &self.qkv[at..at + heads.head_dim]
    }

    /// Output of query `m`.
    #[inline(always)]
    fn out_row(&self, tile: &Tile, m: usize) -> &'a mut [f32] {
        let heads = &self.attention.heads;
        let (row, head) = (tile.row + m / tile.n_heads, tile.head + m % tile.n_heads);
        let at = row * heads.q_dim() + head * heads.head_dim;
        // SAFETY: rows and heads of a tile belong to one task, which uses one query's output at a time.
        unsafe { self.out.part(at..at + heads.head_dim) }
    }
}

/// The pages of one chunk of a tile's sequence.
pub(crate) struct ChunkPages<'a, F: Format> {
    /// The chunk's first position.
    start: usize,
    /// Pages of the chunk that a row of the tile sees something of.
    seen: Range<usize>,
    /// Their blocks; elsewhere those of the nearest seen page.
    blocks: [&'a [F::Element]; CHUNK_PAGES],
    /// Blocks of the chunk that comes next, as far as there are any: to be asked for in time.
    next: [&'a [F::Element]; CHUNK_PAGES],
}

impl<'a, F: Products> ChunkPages<'a, F> {
    #[inline(always)]
    fn new(work: &Work<'a, F>, tile: &Tile, chunk: usize) -> ChunkPages<'a, F> {
        let heads = &work.attention.heads;
        let kv_head = tile.head / (heads.n_heads / heads.n_kv_heads);
        let table = &work.pages[tile.page_start..tile.page_start + tile.n_pages];
        let first = first_seen(tile.position, work.attention.window) / PAGE_LEN;
        let last = (tile.position + tile.n_rows - 1) / PAGE_LEN;
        let page = chunk * CHUNK_PAGES;
        let seen = first.saturating_sub(page)..(last + 1 - page).min(CHUNK_PAGES);
        let empty: &[F::Element] = &[];
        let (mut blocks, mut next) = ([empty; CHUNK_PAGES], [empty; CHUNK_PAGES]);
        for i in 0..CHUNK_PAGES {
            let near = page + i.clamp(seen.start, seen.end - 1);
            let at = work.geometry.block(table[near], kv_head);
            blocks[i] = &work.pool[at..at + work.geometry.block_len];
            if page + CHUNK_PAGES + i <= last {
                let at = work.geometry.block(table[page + CHUNK_PAGES + i], kv_head);
                next[i] = &work.pool[at..at + work.geometry.block_len];
            }
        }
        ChunkPages { start: page * PAGE_LEN, seen, blocks, next }
    }
}

/// Some queries of a tile against one chunk.
pub(crate) struct Strip {
    /// First query of the tile.
    first: usize,
    n: usize,
    /// Pages of the chunk that one of the queries sees something of.
    pages: Range<usize>,
    /// Slots of the chunk that each query sees.
    slots: [(usize, usize); STRIP],
    /// Whether this strip should ask for the memory that is read next.
    prefetch: bool,
}

impl Strip {
    #[inline(always)]
    fn new(tile: &Tile, first: usize, window: Option<usize>, start: usize) -> Strip {
        let n = STRIP.min(tile.n_queries() - first);
        let mut slots = [(0, 0); STRIP];
        let (mut from, mut to) = (CHUNK, 0);
        for (i, slots) in slots[..n].iter_mut().enumerate() {
            let position = tile.position + (first + i) / tile.n_heads;
            let begin = first_seen(position, window).saturating_sub(start).min(CHUNK);
            let end = (position + 1).saturating_sub(start).clamp(begin, CHUNK);
            *slots = (begin, end);
            if begin < end {
                (from, to) = (from.min(begin), to.max(end));
            }
        }
        let pages = if from < to { from / PAGE_LEN..to.div_ceil(PAGE_LEN) } else { 0..0 };
        Strip { first, n, pages, slots, prefetch: first == 0 }
    }
}

/// The two products of attention over pages of one format.
pub(crate) trait Products: Format {
    /// Whether weights are rounded to bf16.
    const ROUNDED: bool;
    /// Whether each token has a scale of its key and one of its value.
    const SCALED: bool;
    /// What lasts as long as a task.
    type Task;

    /// Elements of a block that the scores read: asked for while the chunk before is worked on.
    fn ahead_len(head_dim: usize) -> usize;

    /// Makes a tile's queries ready.
    fn start<S: Simd>(s: S, work: &Work<'_, Self>, tile: &Tile, scratch: &mut Scratch) -> Self::Task;

    /// Makes the pages of a chunk ready.
    fn open<S: Simd>(s: S, work: &Work<'_, Self>, pages: &ChunkPages<'_, Self>, scratch: &mut Scratch);

    /// `scratch.scores[i][slot]`, unscaled, of the strip's queries and at least the slots of its pages.
    fn scores<S: Simd>(
        s: S,
        work: &Work<'_, Self>,
        tile: &Tile,
        task: &Self::Task,
        pages: &ChunkPages<'_, Self>,
        strip: &Strip,
        scratch: &mut Scratch,
    );

    /// `scratch.part[i] = sum over slots of weights[i][slot] V[slot]`; the weights of slots of the strip's pages that a
    /// query does not see are 0.
    fn weigh<S: Simd>(
        s: S,
        work: &Work<'_, Self>,
        task: &Self::Task,
        pages: &ChunkPages<'_, Self>,
        strip: &Strip,
        scratch: &mut Scratch,
    );
}

/// One task: some chunks of one tile.
struct TileAttention<'a, F: Format> {
    pub work: &'a Work<'a, F>,
    pub part: &'a Part,
    pub scratch: &'a mut Scratch,
}

impl<F: Products> Kernel for TileAttention<'_, F> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let TileAttention { work, part, scratch } = self;
        let tile = &part.tile;
        let n = tile.n_queries();
        assert!(n <= TILE);
        scratch.fit(n, work.head_dim());
        let task = F::start(s, work, tile, scratch);
        let leave = part.parts_at.is_some();
        if !leave {
            for m in 0..n {
                (scratch.max[m], scratch.sum[m]) = (f32::NEG_INFINITY, 0.0);
                work.out_row(tile, m).fill(0.0);
            }
        }
        for chunk in part.chunks.clone() {
            let pages = ChunkPages::new(work, tile, chunk);
            F::open(s, work, &pages, scratch);
            for first in (0..n).step_by(STRIP) {
                let strip = Strip::new(tile, first, work.attention.window, pages.start);
                if strip.pages.is_empty() && !leave {
                    continue;
                }
                attend(s, work, tile, &task, &pages, &strip, scratch);
                for i in 0..strip.n {
                    let (m, state) = (first + i, scratch.state[i]);
                    let at = i * scratch.part_stride;
                    let values = &scratch.part.as_slice()[at..at + work.head_dim()];
                    match part.parts_at {
                        Some(at) => work.parts.leave(at, chunk - part.chunks.start, tile, m, state, values),
                        None => {
                            let (max, sum) = (&mut scratch.max[m], &mut scratch.sum[m]);
                            fold(s, (max, sum, work.out_row(tile, m)), state, values);
                        }
                    }
                }
            }
        }
        if !leave {
            for m in 0..n {
                finish(s, scratch.sum[m], work.out_row(tile, m));
            }
        }
    }
}

/// One strip against one chunk: (m, l) and the weighted sum of each query.
#[inline(always)]
fn attend<S: Simd, F: Products>(
    s: S,
    work: &Work<'_, F>,
    tile: &Tile,
    task: &F::Task,
    pages: &ChunkPages<'_, F>,
    strip: &Strip,
    scratch: &mut Scratch,
) {
    if strip.pages.is_empty() {
        scratch.state[..strip.n].fill((f32::NEG_INFINITY, 0.0));
        scratch.part.as_mut_slice().fill(0.0);
        return;
    }
    F::scores(s, work, tile, task, pages, strip, scratch);
    let tiles = work.amx().is_some();
    for i in 0..strip.n {
        scratch.state[i] = softmax::<S, F>(s, work.attention, strip, i, tiles, scratch);
        if strip.prefetch {
            // Spread over the softmax, which leaves the memory idle.
            let len = F::ahead_len(work.head_dim());
            for block in &pages.next[i * CHUNK_PAGES / strip.n..(i + 1) * CHUNK_PAGES / strip.n] {
                prefetch(s, &block[..len.min(block.len())]);
            }
        }
    }
    F::weigh(s, work, task, pages, strip, scratch);
}

/// Asks for the beginning of each 4 KiB of a run of memory that will be read from front to back. The rest comes by
/// itself: the processor's own prefetchers follow a run within 4 KiB with more loads in flight than a core can ask for.
/// (Reading blocks in no order, one core: 12 GB/s unasked, 11 with every line asked for, 18 with these.)
#[inline(always)]
fn prefetch<S: Simd, T>(s: S, memory: &[T]) {
    const LINES: usize = 8;
    for run in (0..memory.len()).step_by(4096 / size_of::<T>()) {
        for line in 0..LINES {
            s.prefetch_far(memory, run + line * (64 / size_of::<T>()));
        }
    }
}

/// Vectors of a page, at most.
const PAGE_VECTORS: usize = PAGE_LEN / 8;

/// Turns the scores of query `i` of a strip into weights relative to their maximum; returns the maximum, in powers of
/// two, and the sum. Weights go to `weights` where tiles multiply by them, else over the scores.
#[inline(always)]
fn softmax<S: Simd, F: Products>(
    s: S,
    attention: &Attention,
    strip: &Strip,
    i: usize,
    tiles: bool,
    scratch: &mut Scratch,
) -> (f32, f32) {
    let (from, to) = strip.slots[i];
    let range = strip.pages.start * PAGE_LEN..strip.pages.end * PAGE_LEN;
    let scores = &mut scratch.scores.as_mut_slice()[i * CHUNK..(i + 1) * CHUNK];
    let weights = &mut scratch.weights.as_mut_slice()[i * CHUNK..(i + 1) * CHUNK];
    if from == to {
        scores[range.clone()].fill(0.0);
        weights[range].fill(half::bf16::ZERO);
        return (f32::NEG_INFINITY, 0.0);
    }
    let factor = finish_scores::<S, F>(s, attention, range.clone(), &scratch.key_scales, scores);
    scores[range.start..from].fill(f32::NEG_INFINITY);
    scores[to..range.end].fill(f32::NEG_INFINITY);
    let mut tops = [s.splat(f32::NEG_INFINITY); PAGE_VECTORS];
    for page in range.clone().step_by(PAGE_LEN) {
        for v in 0..PAGE_LEN / S::LANES {
            tops[v] = s.max(tops[v], s.load(&scores[page + v * S::LANES..]));
        }
    }
    for v in 1..PAGE_LEN / S::LANES {
        tops[0] = s.max(tops[0], tops[v]);
    }
    let max = s.top(tops[0]) * factor;
    let (factor, shift) = (s.splat(factor), s.splat(-max));
    let mut sums = [s.splat(0.0); 2];
    for page in range.step_by(PAGE_LEN) {
        let mut p = [s.splat(0.0); PAGE_VECTORS];
        for v in 0..PAGE_LEN / S::LANES {
            let at = page + v * S::LANES;
            let t = s.fma(s.load(&scores[at..]), factor, shift);
            let weight =
                if F::ROUNDED { math::exp2(s, t, math::POW2_SHORT) } else { math::exp2(s, t, math::POW2_LONG) };
            let sum = &mut sums[v % (SUMS / S::LANES)];
            *sum = s.add(*sum, weight);
            p[v] = weight;
            if F::SCALED {
                let scaled = s.mul(weight, s.load(&scratch.value_scales[at..]));
                // Not seen: whatever the scale. Otherwise NaN stays, and what is too small becomes 0.
                let scaled = s.if_less(scaled, s.splat(SMALLEST), s.splat(0.0), scaled);
                p[v] = s.if_less(s.splat(0.0), weight, scaled, weight);
            }
            if F::ROUNDED {
                p[v] = s.round_weight(p[v]);
            }
        }
        for v in (0..PAGE_LEN / S::LANES).step_by(2) {
            let at = page + v * S::LANES;
            if tiles {
                s.store_two_bf16(p[v], p[v + 1], &mut weights[at..]);
            } else {
                s.store(p[v], &mut scores[at..]);
                s.store(p[v + 1], &mut scores[at + S::LANES..]);
            }
        }
    }
    let sum = if S::LANES == SUMS { s.sum(sums[0]) } else { s.sum(s.add(sums[0], sums[1])) };
    (max, sum)
}

/// Applies scales of keys and the soft cap; returns the factor that is left to be applied, powers of two included.
#[inline(always)]
fn finish_scores<S: Simd, F: Products>(
    s: S,
    attention: &Attention,
    range: Range<usize>,
    key_scales: &[f32; CHUNK],
    scores: &mut [f32],
) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    let scale = attention.scale;
    // The maximum is taken before the factor is applied, which keeps the order only where the factor is positive.
    let later = attention.softcap.is_none() && scale > 0.0;
    if later && !F::SCALED {
        return scale * LOG2_E;
    }
    for at in range.step_by(S::LANES) {
        let mut v = s.load(&scores[at..]);
        if F::SCALED {
            v = s.mul(v, s.load(&key_scales[at..]));
        }
        if !later {
            v = s.mul(v, s.splat(scale));
        }
        if let Some(cap) = attention.softcap {
            v = gate::softcap(s, v, cap);
        }
        s.store(v, &mut scores[at..]);
    }
    if later { scale * LOG2_E } else { LOG2_E }
}

/// Adds a chunk to what was summed before it.
#[inline(always)]
fn fold<S: Simd>(s: S, (max, sum, out): (&mut f32, &mut f32, &mut [f32]), (m, l): (f32, f32), part: &[f32]) {
    // The largest weight is about 1: only where nothing is seen is the sum 0.
    if l == 0.0 {
        return;
    }
    let top = if m > *max { m } else { *max };
    let old = s.top(math::exp2(s, s.splat(*max - top), math::POW2_LONG));
    let new = s.top(math::exp2(s, s.splat(m - top), math::POW2_LONG));
    (*max, *sum) = (top, *sum * old + l * new);
    let (old, new) = (s.splat(old), s.splat(new));
    for at in (0..out.len()).step_by(S::LANES) {
        let v = s.fma(load_from(s, part, at), new, s.mul(load_from(s, out, at), old));
        let left = out.len() - at;
        if left >= S::LANES { s.store(v, &mut out[at..]) } else { s.store_part(v, &mut out[at..]) }
    }
}

/// Divides by the sum of the weights.
#[inline(always)]
fn finish<S: Simd>(s: S, sum: f32, out: &mut [f32]) {
    let scale = 1.0 / sum;
    let n = out.len() - out.len() % S::LANES;
    for at in (0..n).step_by(S::LANES) {
        s.store(s.mul(s.load(&out[at..]), s.splat(scale)), &mut out[at..]);
    }
    for o in &mut out[n..] {
        *o *= scale;
    }
}

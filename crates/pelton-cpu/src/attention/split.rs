//! How attention is divided into tasks, and the chunks that several tasks leave for one to fold.
//!
//! Rows and heads make tiles. Where a tile is more than its share of the work (one long sequence, few KV heads), its
//! chunks go to several tasks, which leave each chunk's maximum, sum and weighted values in memory; when all are done
//! they are folded in the order of positions, as one task would have done.
//!
//! Invariant: the division never shows in a bit: a chunk's numbers do not depend on who works them out.

use std::cmp::Reverse;
use std::ops::Range;

use pelton_backend::{Attention, Batch};

use super::{Products, TILE, Tile, Work, finish, fold};
use crate::kv::Format;
use crate::simd::{Kernel, Simd};
use crate::tensor::Shared;

/// Tasks a thread, so that they end at about the same time.
const TASKS_PER_THREAD: usize = 4;

/// Floats that parts take at most: 32 MiB. Beyond that a tile stays whole.
const MOST_PARTS: usize = 8 << 20;

/// Some chunks of a tile.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    pub tile: Tile,
    pub chunks: Range<usize>,
    /// Where its chunks are left, one after the other; `None` where the tile is whole and its task folds them.
    pub parts_at: Option<usize>,
}

/// Chunks that were left, `(chunk, query, head_dim + 2)` for each tile: maximum, sum, weighted values.
pub(crate) struct Parts<'a> {
    floats: Shared<'a, f32>,
    head_dim: usize,
}

impl<'a> Parts<'a> {
    pub(crate) fn new(floats: &'a mut [f32], head_dim: usize) -> Parts<'a> {
        Parts { floats: Shared::new(floats), head_dim }
    }

    /// Where query `m` of the chunk `index` chunks after `at` lies.
    fn place(&self, at: usize, index: usize, tile: &Tile, m: usize) -> Range<usize> {
        let len = self.head_dim + 2;
        let start = at + (index * tile.n_queries() + m) * len;
        start..start + len
    }

    #[inline(always)]
    pub(super) fn leave(&self, at: usize, index: usize, tile: &Tile, m: usize, state: (f32, f32), values: &[f32]) {
        // SAFETY: the chunks of a part are its task's own.
        let to = unsafe { self.floats.part(self.place(at, index, tile, m)) };
        (to[0], to[1]) = state;
        to[2..].copy_from_slice(values);
    }
}

/// Cuts a batch into tiles.
pub(crate) fn tiles(batch: &Batch, attention: &Attention, tiles: &mut Vec<Tile>) {
    let heads = &attention.heads;
    let group = heads.n_heads / heads.n_kv_heads;
    assert_eq!(group * heads.n_kv_heads, heads.n_heads, "whole groups of query heads");
    tiles.clear();
    let n_heads = group.min(TILE);
    let n_rows = TILE / n_heads;
    for span in &batch.spans {
        for first in (0..span.len).step_by(n_rows) {
            for kv_head in 0..heads.n_kv_heads {
                for head in (0..group).step_by(n_heads) {
                    tiles.push(Tile {
                        row: span.row + first,
                        n_rows: n_rows.min(span.len - first),
                        position: span.cached_len + first,
                        head: kv_head * group + head,
                        n_heads: n_heads.min(group - head),
                        page_start: span.page_start,
                        n_pages: span.n_pages,
                    });
                }
            }
        }
    }
}

/// Cuts tiles into parts for `threads` threads, the longest work first; returns the floats that parts are left in.
pub(crate) fn split(tiles: &[Tile], attention: &Attention, threads: usize, parts: &mut Vec<Part>) -> usize {
    let window = attention.window;
    let total = tiles.iter().fold(0usize, |sum, t| sum.saturating_add(t.cost(window)));
    let share = (total / (threads * TASKS_PER_THREAD)).max(1);
    parts.clear();
    let mut floats = 0;
    for &tile in tiles {
        let chunks = tile.chunks(window);
        let left = chunks.len() * tile.n_queries() * (attention.heads.head_dim + 2);
        let wanted = tile.cost(window).div_ceil(share).min(chunks.len());
        let n = if threads == 1 || floats + left > MOST_PARTS { 1 } else { wanted };
        if n == 1 {
            parts.push(Part { tile, chunks, parts_at: None });
            continue;
        }
        let per_chunk = left / chunks.len();
        for i in 0..n {
            let bound = |i: usize| chunks.start + chunks.len() * i / n;
            let parts_at = Some(floats + (bound(i) - chunks.start) * per_chunk);
            parts.push(Part { tile, chunks: bound(i)..bound(i + 1), parts_at });
        }
        floats += left;
    }
    let cost = |p: &Part| p.tile.cost(window) / p.tile.chunks(window).len() * p.chunks.len();
    parts.sort_by_key(|p| Reverse(cost(p)));
    floats
}

/// Folds the parts that were left of one tile.
pub(crate) struct FoldParts<'a, F: Format> {
    work: &'a Work<'a, F>,
    tile: Tile,
    at: usize,
}

/// The folding that remains to be done for a part that is the first of its tile.
pub(crate) fn fold_parts<'a, F: Products>(work: &'a Work<'a, F>, part: &Part) -> Option<FoldParts<'a, F>> {
    let first = part.chunks.start == part.tile.chunks(work.attention.window).start;
    let at = part.parts_at.filter(|_| first)?;
    Some(FoldParts { work, tile: part.tile, at })
}

impl<F: Products> Kernel for FoldParts<'_, F> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let FoldParts { work, tile, at } = self;
        let n_chunks = tile.chunks(work.attention.window).len();
        for m in 0..tile.n_queries() {
            let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0);
            let out = work.out_row(&tile, m);
            out.fill(0.0);
            for chunk in 0..n_chunks {
                // SAFETY: all parts are written, and the parts of a tile are read by one task.
                let part = unsafe { work.parts.floats.part(work.parts.place(at, chunk, &tile, m)) };
                let (state, part) = part.split_at(2);
                fold(s, (&mut max, &mut sum, &mut *out), (state[0], state[1]), part);
            }
            finish(s, sum, out);
        }
    }
}

//! Paged attention, flash style: one walk over the pages of a sequence, with a running maximum and sum.
//!
//! A task is a *tile*: some consecutive rows of one span times the query heads that share one KV head, so that a
//! page is read once for all of them.
//!
//! ```text
//! for each page, in the order of positions
//!     score[row, 32 slots] = q[row] · K            K is transposed: a sum over head_dim, in order, per lane
//!     softcap; slots that the row must not see := -inf
//!     m' = max(m, max score); c = e^(m - m'); p = e^(score - m'); l = l c + sum p
//!     out[row] = out[row] c + sum over slots of p[slot] V[slot]              a sum over slots, in order, per lane
//! out[row] /= l
//! ```
//!
//! Invariant: what is computed for a row, and in which order, depends on its position and the pages before it,
//! never on the tile around it: a slot that the row does not see enters no sum. So a row has the same bits in a
//! prefill chunk and in a decode step. (Splitting one row's pages over threads would need the same split for both:
//! it is left for later.)

use std::ops::Range;

use pelton_backend::{Attention, PAGE_LEN};

use crate::gate;
use crate::kv::{Element, Geometry, PANEL};
use crate::math;
use crate::rope::v_index;
use crate::simd::{Kernel, Simd};
use crate::tensor::Shared;

/// Largest `rows * heads` of a tile.
pub(crate) const TILE: usize = 64;

/// Scores of one row against one page.
type Scores = [f32; PAGE_LEN];

/// A tile of queries.
#[derive(Clone, Copy, Debug)]
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
    /// Score and value products that the tile needs at most.
    pub(crate) fn cost(&self, window: Option<usize>) -> usize {
        let context = self.position + self.n_rows;
        context.min(window.unwrap_or(usize::MAX)) * self.n_rows * self.n_heads
    }
}

/// One tile's attention.
pub(crate) struct TileAttention<'a, E> {
    pub tile: Tile,
    pub attention: &'a Attention,
    pub geometry: Geometry,
    /// The layer's pool.
    pub pool: &'a [E],
    /// The batch's page tables.
    pub pages: &'a [u32],
    /// `(rows, qkv_dim)` of the batch.
    pub qkv: &'a [f32],
    /// `(rows, q_dim)` of the batch; the tile's rows and heads are this task's own.
    pub out: &'a Shared<'a, f32>,
}

/// Running softmax of a tile's queries.
struct Running {
    max: [f32; TILE],
    sum: [f32; TILE],
    scores: [Scores; TILE],
}

impl<E: Element> Kernel for TileAttention<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let tile = self.tile;
        let n = tile.n_rows * tile.n_heads;
        assert!(n <= TILE);
        let mut running = Running { max: [f32::NEG_INFINITY; TILE], sum: [0.0; TILE], scores: [[0.0; PAGE_LEN]; TILE] };
        for m in 0..n {
            self.out_row(m).fill(0.0);
        }
        let first = self.first_seen(tile.position) / PAGE_LEN;
        let last = (tile.position + tile.n_rows - 1) / PAGE_LEN;
        for page in first..=last {
            self.page(s, page, &mut running);
        }
        for m in 0..n {
            let scale = 1.0 / running.sum[m];
            for o in self.out_row(m) {
                *o *= scale;
            }
        }
    }
}

impl<'a, E: Element> TileAttention<'a, E> {
    /// First position that the query at `position` sees.
    #[inline(always)]
    fn first_seen(&self, position: usize) -> usize {
        self.attention.window.map_or(0, |w| (position + 1).saturating_sub(w))
    }

    /// Query `m` of the tile: `(head_dim,)`. Queries are numbered row by row.
    #[inline(always)]
    fn query(&self, m: usize) -> &[f32] {
        let heads = &self.attention.heads;
        let (row, head) = (self.tile.row + m / self.tile.n_heads, self.tile.head + m % self.tile.n_heads);
        let at = row * heads.qkv_dim() + head * heads.head_dim;
        &self.qkv[at..at + heads.head_dim]
    }

    /// Output of query `m`.
    #[inline(always)]
    fn out_row(&self, m: usize) -> &'a mut [f32] {
        let heads = &self.attention.heads;
        let (row, head) = (self.tile.row + m / self.tile.n_heads, self.tile.head + m % self.tile.n_heads);
        let at = row * heads.q_dim() + head * heads.head_dim;
        // SAFETY: rows and heads of a tile belong to its task, which borrows one query's output at a time or
        // several distinct ones.
        unsafe { self.out.part(at..at + heads.head_dim) }
    }

    /// All queries of the tile against one page: runs of rows that see the same slots, in register tiles.
    #[inline(always)]
    fn page<S: Simd>(&self, s: S, page: usize, running: &mut Running) {
        let tile = &self.tile;
        let table = &self.pages[tile.page_start..tile.page_start + tile.n_pages];
        let kv_head = tile.head / (self.attention.heads.n_heads / self.attention.heads.n_kv_heads);
        let block = |page: u32| {
            let at = self.geometry.block(page, kv_head);
            self.pool[at..at + self.geometry.block_len()].split_at(self.geometry.k_len())
        };
        let (k, v) = block(table[page]);
        let next = block(table[(page + 1).min(tile.n_pages - 1)]);
        let start = page * PAGE_LEN;
        let seen = |row: usize| {
            let position = tile.position + row;
            let from = self.first_seen(position).saturating_sub(start).min(PAGE_LEN);
            (from, (position + 1).saturating_sub(start).clamp(from, PAGE_LEN))
        };
        let mut row = 0;
        while row < tile.n_rows {
            let slots = seen(row);
            let first = row;
            while row < tile.n_rows && seen(row) == slots {
                row += 1;
            }
            if slots.0 == slots.1 {
                continue;
            }
            let (mut m, end) = (first * tile.n_heads, row * tile.n_heads);
            while m < end {
                let n = register_rows::<S>(end - m);
                self.register_tile(s, m..m + n, slots, (k, v), next, running);
                m += n;
            }
        }
    }

    /// Some queries against one page. The sizes are few, and the softmax is no part of them, since each size is code
    /// of its own for every instruction set and element type.
    #[inline(always)]
    fn register_tile<S: Simd>(
        &self,
        s: S,
        range: Range<usize>,
        slots: (usize, usize),
        (k, v): (&[E], &[E]),
        (next_k, next_v): (&[E], &[E]),
        running: &mut Running,
    ) {
        let (m, n) = (range.start, range.len());
        let scores = &mut running.scores[range.clone()];
        match n {
            7 => dots::<S, E, 7>(s, self.queries(m), k, next_k, scores),
            4 => dots::<S, E, 4>(s, self.queries(m), k, next_k, scores),
            2 => dots::<S, E, 2>(s, self.queries(m), k, next_k, scores),
            _ => dots::<S, E, 1>(s, self.queries(m), k, next_k, scores),
        }
        let mut scale = [0.0; 7];
        for i in range {
            let (max, sum) = (&mut running.max[i], &mut running.sum[i]);
            scale[i - m] = softmax(s, self.attention, slots, &mut scores[i - m], max, sum);
        }
        match n {
            7 => weigh::<S, E, 7>(s, self, m, &scale, scores, slots, v, next_v),
            4 => weigh::<S, E, 4>(s, self, m, &scale, scores, slots, v, next_v),
            2 => weigh::<S, E, 2>(s, self, m, &scale, scores, slots, v, next_v),
            _ => weigh::<S, E, 1>(s, self, m, &scale, scores, slots, v, next_v),
        }
    }

    #[inline(always)]
    fn queries<const M: usize>(&self, m: usize) -> [&[f32]; M] {
        let mut queries: [&[f32]; M] = [&[]; M];
        for (i, query) in queries.iter_mut().enumerate() {
            *query = self.query(m + i);
        }
        queries
    }
}

/// Queries of the next register tile when `left` are left: 7, 4, 2 or 1, as the instruction set has registers.
#[inline(always)]
fn register_rows<S: Simd>(left: usize) -> usize {
    match left.min(S::TILE_ROWS) {
        1 => 1,
        2 | 3 => 2,
        4..7 => 4,
        _ => 7,
    }
}

/// `scores[i][slot] = queries[i] · k[.., slot]`, a register tile of M queries by two vectors of slots.
#[inline(always)]
fn dots<S: Simd, E: Element, const M: usize>(s: S, queries: [&[f32]; M], k: &[E], next_k: &[E], scores: &mut [Scores]) {
    if M > S::TILE_ROWS {
        unreachable!("larger than a register tile of this instruction set");
    }
    let dim = queries[0].len();
    assert!(k.len() == dim * PAGE_LEN);
    for query in queries {
        assert_eq!(query.len(), dim);
    }
    for slot in (0..PAGE_LEN).step_by(2 * S::LANES) {
        let mut sums = [[s.splat(0.0); 2]; M];
        for (d, k_row) in k.chunks_exact(PAGE_LEN).enumerate() {
            s.prefetch(next_k, d * PAGE_LEN + slot);
            let a = E::load(s, &k_row[slot..]);
            let b = E::load(s, &k_row[slot + S::LANES..]);
            for i in 0..M {
                // SAFETY: d < dim = queries[i].len(), asserted above.
                let q = s.splat(unsafe { *queries[i].get_unchecked(d) });
                sums[i] = [s.fma(q, a, sums[i][0]), s.fma(q, b, sums[i][1])];
            }
        }
        for i in 0..M {
            s.store(sums[i][0], &mut scores[i][slot..]);
            s.store(sums[i][1], &mut scores[i][slot + S::LANES..]);
        }
    }
}

/// Turns scores into weights relative to the running maximum; returns the factor for what was summed before.
#[inline(always)]
fn softmax<S: Simd>(
    s: S,
    attention: &Attention,
    (from, to): (usize, usize),
    scores: &mut Scores,
    max: &mut f32,
    sum: &mut f32,
) -> f32 {
    let vectors = || (0..PAGE_LEN).step_by(S::LANES);
    for at in vectors() {
        let mut v = s.mul(s.load(&scores[at..]), s.splat(attention.scale));
        if let Some(cap) = attention.softcap {
            v = gate::softcap(s, v, cap);
        }
        s.store(v, &mut scores[at..]);
    }
    scores[..from].fill(f32::NEG_INFINITY);
    scores[to..].fill(f32::NEG_INFINITY);
    let mut top = s.splat(*max);
    for at in vectors() {
        top = s.max(top, s.load(&scores[at..]));
    }
    let top = s.top(top);
    let mut total = s.splat(0.0);
    for at in vectors() {
        let p = math::exp(s, s.sub(s.load(&scores[at..]), s.splat(top)));
        total = s.add(total, p);
        s.store(p, &mut scores[at..]);
    }
    let factor = if *max == top { 1.0 } else { s.top(math::exp(s, s.splat(*max - top))) };
    *max = top;
    *sum = *sum * factor + s.sum(total);
    factor
}

/// `out[m + i] = out[m + i] * scale[i] + sum over slots of weights[i][slot] * v[slot]` for M queries, by two vectors of
/// columns. Plain loops: a closure inside a library function may be compiled apart, without the instruction set.
#[allow(clippy::too_many_arguments, clippy::needless_range_loop, reason = "the inner loop: registers by index")]
#[inline(always)]
fn weigh<S: Simd, E: Element, const M: usize>(
    s: S,
    tile: &TileAttention<'_, E>,
    m: usize,
    scale: &[f32],
    weights: &[Scores],
    (from, to): (usize, usize),
    v: &[E],
    next_v: &[E],
) {
    if M > S::TILE_ROWS {
        unreachable!("larger than a register tile of this instruction set");
    }
    let dim = tile.attention.heads.head_dim;
    assert!(weights.len() == M && scale.len() >= M && from <= to && to <= PAGE_LEN);
    assert!(v.len() > v_index(dim - 1, PAGE_LEN - 1) && v.len().is_multiple_of(PAGE_LEN * PANEL));
    let mut col = 0;
    while dim - col >= 2 * S::LANES {
        let mut sums = [[s.splat(0.0); 2]; M];
        for i in 0..M {
            let (out, scale) = (&tile.out_row(m + i)[col..], s.splat(scale[i]));
            sums[i] = [s.mul(s.load(out), scale), s.mul(s.load(&out[S::LANES..]), scale)];
        }
        for slot in from..to {
            let (at, bt) = (v_index(col, slot), v_index(col + S::LANES, slot));
            s.prefetch(next_v, at);
            if S::LANES == PANEL {
                s.prefetch(next_v, bt);
            }
            let (a, b) = (E::load(s, &v[at..]), E::load(s, &v[bt..]));
            for i in 0..M {
                // SAFETY: i < M = weights.len() and slot < to <= PAGE_LEN, asserted above.
                let p = s.splat(unsafe { *weights.get_unchecked(i).get_unchecked(slot) });
                sums[i] = [s.fma(p, a, sums[i][0]), s.fma(p, b, sums[i][1])];
            }
        }
        for i in 0..M {
            let out = &mut tile.out_row(m + i)[col..];
            s.store(sums[i][0], out);
            s.store(sums[i][1], &mut out[S::LANES..]);
        }
        col += 2 * S::LANES;
    }
    while col < dim {
        let n = S::LANES.min(dim - col);
        for i in 0..M {
            let out = &mut tile.out_row(m + i)[col..col + n];
            let mut sum = s.mul(if n == S::LANES { s.load(out) } else { s.load_part(out) }, s.splat(scale[i]));
            for slot in from..to {
                sum = s.fma(s.splat(weights[i][slot]), E::load(s, &v[v_index(col, slot)..]), sum);
            }
            if n == S::LANES { s.store(sum, out) } else { s.store_part(sum, out) }
        }
        col += n;
    }
}

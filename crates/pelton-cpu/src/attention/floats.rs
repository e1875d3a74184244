//! The products of attention over f32 and f16 pages: float32, one chain of fused multiply-adds for each number.
//!
//! ```text
//! score[q, slot] = sum over head_dim, in order, of query[q, d] K[d, slot]            a lane for each slot
//! part[q, d] = sum over the slots that the row sees, in order, of p[slot] V[slot, d]   a lane for each d
//! ```
//!
//! Queries and weights are not rounded. Invariant: slots that a row does not see enter no sum.

use pelton_backend::PAGE_LEN;

use super::{CHUNK, ChunkPages, Products, STRIP, Scratch, Strip, Tile, Work, prefetch};
use crate::kv::PANEL;
use crate::kv::wide::{Float, Wide, v_index};
use crate::simd::Simd;

impl<E: Float> Products for Wide<E> {
    const ROUNDED: bool = false;
    const SCALED: bool = false;
    type Task = ();

    fn ahead_len(head_dim: usize) -> usize {
        Wide::<E>::k_len(head_dim)
    }

    #[inline(always)]
    fn start<S: Simd>(_: S, _: &Work<'_, Self>, _: &Tile, _: &mut Scratch) {}

    #[inline(always)]
    fn open<S: Simd>(_: S, _: &Work<'_, Self>, _: &ChunkPages<'_, Self>, _: &mut Scratch) {}

    #[inline(always)]
    fn scores<S: Simd>(
        s: S,
        work: &Work<'_, Self>,
        tile: &Tile,
        _: &(),
        pages: &ChunkPages<'_, Self>,
        strip: &Strip,
        scratch: &mut Scratch,
    ) {
        let k_len = Wide::<E>::k_len(work.head_dim());
        for page in strip.pages.clone() {
            let (k, v) = pages.blocks[page].split_at(k_len);
            if strip.prefetch {
                prefetch(s, v);
            }
            let scores = scratch.scores.as_mut_slice();
            let mut i = 0;
            while i < strip.n {
                let n = register_rows::<S>(strip.n - i);
                let out = &mut scores[i * CHUNK + page * PAGE_LEN..];
                let m = strip.first + i;
                match n {
                    7 => dots::<S, E, 7>(s, queries(work, tile, m), k, out),
                    4 => dots::<S, E, 4>(s, queries(work, tile, m), k, out),
                    2 => dots::<S, E, 2>(s, queries(work, tile, m), k, out),
                    _ => dots::<S, E, 1>(s, queries(work, tile, m), k, out),
                }
                i += n;
            }
        }
    }

    #[inline(always)]
    fn weigh<S: Simd>(
        s: S,
        work: &Work<'_, Self>,
        _: &(),
        pages: &ChunkPages<'_, Self>,
        strip: &Strip,
        scratch: &mut Scratch,
    ) {
        let dim = work.head_dim();
        let stride = scratch.part_stride;
        let part = scratch.part.as_mut_slice();
        part[..strip.n * stride].fill(0.0);
        for page in strip.pages.clone() {
            let v = &pages.blocks[page][Wide::<E>::k_len(dim)..];
            let seen = |i: usize| {
                let (from, to) = strip.slots[i];
                let start = page * PAGE_LEN;
                let from = from.saturating_sub(start).min(PAGE_LEN);
                (from, to.saturating_sub(start).clamp(from, PAGE_LEN))
            };
            let mut i = 0;
            while i < strip.n {
                // A run of queries that see the same slots.
                let slots = seen(i);
                let mut end = i + 1;
                while end < strip.n && seen(end) == slots {
                    end += 1;
                }
                while i < end {
                    let n = register_rows::<S>(end - i);
                    let weights = &scratch.scores.as_slice()[i * CHUNK + page * PAGE_LEN..];
                    let out = &mut part[i * stride..];
                    match n {
                        7 => weigh::<S, E, 7>(s, dim, weights, slots, v, out, stride),
                        4 => weigh::<S, E, 4>(s, dim, weights, slots, v, out, stride),
                        2 => weigh::<S, E, 2>(s, dim, weights, slots, v, out, stride),
                        _ => weigh::<S, E, 1>(s, dim, weights, slots, v, out, stride),
                    }
                    i += n;
                }
            }
        }
    }
}

#[inline(always)]
fn queries<'a, E: Float, const M: usize>(work: &Work<'a, Wide<E>>, tile: &Tile, m: usize) -> [&'a [f32]; M] {
    let mut queries: [&[f32]; M] = [&[]; M];
    for (i, query) in queries.iter_mut().enumerate() {
        *query = work.query(tile, m + i);
    }
    queries
}

/// Queries of the next register tile when `left` are left: 7, 4, 2 or 1, as the instruction set has registers. The
/// sizes are few, since each is code of its own for every instruction set and element type.
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
fn dots<S: Simd, E: Float, const M: usize>(s: S, queries: [&[f32]; M], k: &[E], scores: &mut [f32]) {
    if M > S::TILE_ROWS {
        unreachable!("larger than a register tile of this instruction set");
    }
    let dim = queries[0].len();
    assert!(k.len() == dim * PAGE_LEN && M <= STRIP);
    for query in queries {
        assert_eq!(query.len(), dim);
    }
    for slot in (0..PAGE_LEN).step_by(2 * S::LANES) {
        let mut sums = [[s.splat(0.0); 2]; M];
        for (d, k_row) in k.chunks_exact(PAGE_LEN).enumerate() {
            let a = E::load(s, &k_row[slot..]);
            let b = E::load(s, &k_row[slot + S::LANES..]);
            for i in 0..M {
                // SAFETY: d < dim = queries[i].len(), asserted above.
                let q = s.splat(unsafe { *queries[i].get_unchecked(d) });
                sums[i] = [s.fma(q, a, sums[i][0]), s.fma(q, b, sums[i][1])];
            }
        }
        for i in 0..M {
            s.store(sums[i][0], &mut scores[i * CHUNK + slot..]);
            s.store(sums[i][1], &mut scores[i * CHUNK + slot + S::LANES..]);
        }
    }
}

/// `out[i] += sum over slots of weights[i][slot] * v[slot]` for M queries, by two vectors of columns, then by one.
/// Plain loops: a closure inside a library function may be compiled apart, without the instruction set.
#[allow(clippy::needless_range_loop, reason = "the inner loop: registers by index")]
#[inline(always)]
fn weigh<S: Simd, E: Float, const M: usize>(
    s: S,
    dim: usize,
    weights: &[f32],
    (from, to): (usize, usize),
    v: &[E],
    out: &mut [f32],
    stride: usize,
) {
    if M > S::TILE_ROWS {
        unreachable!("larger than a register tile of this instruction set");
    }
    assert!(weights.len() >= (M - 1) * CHUNK + PAGE_LEN && from <= to && to <= PAGE_LEN);
    assert!(v.len() > v_index(dim - 1, PAGE_LEN - 1) && v.len().is_multiple_of(PAGE_LEN * PANEL));
    // Columns of padding are computed too: they are zeros, and `out` has room.
    let vectors = dim.div_ceil(S::LANES);
    let mut col = 0;
    while vectors * S::LANES - col >= 2 * S::LANES {
        let mut sums = [[s.splat(0.0); 2]; M];
        for i in 0..M {
            let out = &out[i * stride + col..];
            sums[i] = [s.load(out), s.load(&out[S::LANES..])];
        }
        for slot in from..to {
            let (a, b) = (E::load(s, &v[v_index(col, slot)..]), E::load(s, &v[v_index(col + S::LANES, slot)..]));
            for i in 0..M {
                // SAFETY: i < M and slot < to <= PAGE_LEN: within the length asserted above.
                let p = s.splat(unsafe { *weights.get_unchecked(i * CHUNK + slot) });
                sums[i] = [s.fma(p, a, sums[i][0]), s.fma(p, b, sums[i][1])];
            }
        }
        for i in 0..M {
            let out = &mut out[i * stride + col..];
            s.store(sums[i][0], out);
            s.store(sums[i][1], &mut out[S::LANES..]);
        }
        col += 2 * S::LANES;
    }
    if col < dim {
        for i in 0..M {
            let mut sum = s.load(&out[i * stride + col..]);
            for slot in from..to {
                sum = s.fma(s.splat(weights[i * CHUNK + slot]), E::load(s, &v[v_index(col, slot)..]), sum);
            }
            s.store(sum, &mut out[i * stride + col..]);
        }
    }
}

//! The products of attention over bf16, int8 and fp8 pages: pairs of bf16, on tile registers or on vectors.
//!
//! Queries and weights are rounded to bf16 (a weight after its token's scale); what is multiplied is bf16 (codes are
//! exact in it) and what is summed is float32, in this order, which is that of `tdpbf16ps`:
//!
//! ```text
//! for each group of 32 of the summed dimension (elements of a head; slots of a page), in order
//!     first, second = 0
//!     for each of its 16 pairs, in order:  first = fma(a[2i], b[2i], first);  second = fma(a[2i + 1], b[2i + 1], second)
//!     sum = sum + (first + second)
//! ```
//!
//! So a tile register and a vector give the same bits, if no denormal number comes up, which the tiles take as zero:
//! numbers below 2^-50 are rounded to 0 beforehand, keys and values when they are stored, queries and weights here.
//! A product is then a multiple of 2^-114, and so is every sum of them: never denormal. And no sum is -0, since each
//! starts from +0: adding a product with a weight of 0, or a whole group of them, changes no bit.
//!
//! Invariant: that is why a strip may multiply by whole pages though a row sees only some of their slots. The one thing
//! that would show is a value that is no number (0 times NaN is NaN), a later row's or left from another sequence:
//! where such a page holds one, each query of the strip gets a copy without the slots that it does not see.

#[cfg(target_arch = "x86_64")]
use crate::amx;
use half::bf16;
use pelton_backend::PAGE_LEN;

use super::{CHUNK, CHUNK_PAGES, ChunkPages, Products, STRIP, Scratch, Strip, Tile, Work, prefetch};
use crate::isa::Amx;
use crate::kv::paired::{Code, Coded, DEPTH, Pairs, TILE_LEN, Tile as PairTile, k_tiles, v_tiles};
use crate::kv::{Format, PANEL};
use crate::simd::{Simd, load_from};

/// Most groups of 32 that tile registers are used for.
#[cfg(target_arch = "x86_64")]
const MOST_GROUPS: usize = super::MOST_TILED / DEPTH;

/// How a task multiplies.
pub(crate) enum Engine {
    /// With vectors.
    Vectors,
    /// With the tile registers, which are configured as long as this lives.
    #[cfg(target_arch = "x86_64")]
    Tiles {
        tiles: amx::Tiles,
        /// Rows that they are shaped for.
        rows: usize,
    },
}

impl Engine {
    #[inline(always)]
    fn new(token: Option<Amx>, tile: &Tile) -> Engine {
        #[cfg(target_arch = "x86_64")]
        if let Some(token) = token {
            let rows = tile.n_queries().min(amx::TILE_ROWS);
            return Engine::Tiles { tiles: amx::Tiles::new(token, &amx::PAIR_SHAPES[rows - 1]), rows };
        }
        let _ = (token, tile);
        Engine::Vectors
    }
}

/// Formats that become tiles of bf16.
trait Paired: Products {
    /// Keys and values of `page` of the chunk.
    fn tiles<'a>(pages: &'a ChunkPages<'_, Self>, page: usize, tiles: &'a [bf16], head_dim: usize) -> &'a [PairTile];
}

impl Paired for Pairs {
    #[inline(always)]
    fn tiles<'a>(pages: &'a ChunkPages<'_, Self>, page: usize, _: &'a [bf16], _: usize) -> &'a [PairTile] {
        pages.blocks[page].as_chunks().0
    }
}

impl<C: Code> Paired for Coded<C> {
    #[inline(always)]
    fn tiles<'a>(pages: &'a ChunkPages<'_, Self>, page: usize, tiles: &'a [bf16], dim: usize) -> &'a [PairTile] {
        let n = Coded::<C>::codes_len(dim);
        let page = page.clamp(pages.seen.start, pages.seen.end - 1);
        tiles[page * n..(page + 1) * n].as_chunks().0
    }
}

impl Products for Pairs {
    const ROUNDED: bool = true;
    const SCALED: bool = false;
    type Task = Engine;

    fn ahead_len(head_dim: usize) -> usize {
        k_tiles(head_dim) * TILE_LEN
    }

    #[inline(always)]
    fn start<S: Simd>(s: S, work: &Work<'_, Self>, tile: &Tile, scratch: &mut Scratch) -> Engine {
        start(s, work, tile, scratch)
    }

    #[inline(always)]
    fn open<S: Simd>(_: S, _: &Work<'_, Self>, _: &ChunkPages<'_, Self>, _: &mut Scratch) {}

    #[inline(always)]
    fn scores<S: Simd>(
        s: S,
        work: &Work<'_, Self>,
        _: &Tile,
        task: &Engine,
        pages: &ChunkPages<'_, Self>,
        strip: &Strip,
        scratch: &mut Scratch,
    ) {
        scores(s, work, task, pages, strip, scratch);
    }

    #[inline(always)]
    fn weigh<S: Simd>(
        s: S,
        work: &Work<'_, Self>,
        task: &Engine,
        pages: &ChunkPages<'_, Self>,
        strip: &Strip,
        scratch: &mut Scratch,
    ) {
        let mut is_odd = false;
        for page in strip.pages.clone() {
            let start = page * PAGE_LEN;
            let mut hidden = false;
            for &(from, to) in &strip.slots[..strip.n] {
                hidden |= from > start || to < start + PAGE_LEN;
            }
            let values = &pages.blocks[page][k_tiles(work.head_dim()) * TILE_LEN..];
            is_odd |= hidden && holds_no_number(values);
        }
        if is_odd {
            weigh_one_by_one(s, work, task, pages, strip, scratch);
        } else {
            weigh(s, work, task, pages, strip, scratch);
        }
    }
}

impl<C: Code> Products for Coded<C> {
    const ROUNDED: bool = true;
    const SCALED: bool = true;
    type Task = Engine;

    fn ahead_len(head_dim: usize) -> usize {
        Self::block_len(head_dim)
    }

    #[inline(always)]
    fn start<S: Simd>(s: S, work: &Work<'_, Self>, tile: &Tile, scratch: &mut Scratch) -> Engine {
        start(s, work, tile, scratch)
    }

    #[inline(always)]
    fn open<S: Simd>(s: S, work: &Work<'_, Self>, pages: &ChunkPages<'_, Self>, scratch: &mut Scratch) {
        let n = Coded::<C>::codes_len(work.head_dim());
        scratch.tiles.fit(CHUNK_PAGES * n);
        for page in pages.seen.clone() {
            let tiles = &mut scratch.tiles.as_mut_slice()[page * n..(page + 1) * n];
            let slots = page * PAGE_LEN..(page + 1) * PAGE_LEN;
            let (keys, values) = (&mut scratch.key_scales[slots.clone()], &mut scratch.value_scales[slots]);
            Coded::<C>::open(s, pages.blocks[page], tiles, keys, values);
        }
    }

    #[inline(always)]
    fn scores<S: Simd>(
        s: S,
        work: &Work<'_, Self>,
        _: &Tile,
        task: &Engine,
        pages: &ChunkPages<'_, Self>,
        strip: &Strip,
        scratch: &mut Scratch,
    ) {
        scores(s, work, task, pages, strip, scratch);
    }

    #[inline(always)]
    fn weigh<S: Simd>(
        s: S,
        work: &Work<'_, Self>,
        task: &Engine,
        pages: &ChunkPages<'_, Self>,
        strip: &Strip,
        scratch: &mut Scratch,
    ) {
        // Codes are always numbers.
        weigh(s, work, task, pages, strip, scratch);
    }
}

/// Rounds the queries of a tile.
#[inline(always)]
fn start<S: Simd, F: Paired>(s: S, work: &Work<'_, F>, tile: &Tile, scratch: &mut Scratch) -> Engine {
    let engine = Engine::new(work.amx(), tile);
    let stride = scratch.query_stride;
    for m in 0..tile.n_queries() {
        let query = work.query(tile, m);
        let rounded = &mut scratch.queries.as_mut_slice()[m * stride..(m + 1) * stride];
        #[cfg(target_arch = "x86_64")]
        let for_tiles = &mut scratch.tile_queries.as_mut_slice()[m * stride..(m + 1) * stride];
        for at in (0..stride).step_by(S::LANES) {
            let v = if at < query.len() { s.round_bf16(load_from(s, query, at)) } else { s.splat(0.0) };
            match engine {
                Engine::Vectors => s.store(v, &mut rounded[at..]),
                #[cfg(target_arch = "x86_64")]
                Engine::Tiles { .. } => s.store_bf16(v, &mut for_tiles[at..]),
            }
        }
    }
    engine
}

/// Scores of a strip, two pages (four columns of tiles) at a time.
#[inline(always)]
fn scores<S: Simd, F: Paired>(
    s: S,
    work: &Work<'_, F>,
    engine: &Engine,
    pages: &ChunkPages<'_, F>,
    strip: &Strip,
    scratch: &mut Scratch,
) {
    let dim = work.head_dim();
    let groups = dim.div_ceil(DEPTH);
    let stride = scratch.query_stride;
    let tiles = scratch.tiles.as_slice();
    let at = strip.first * stride;
    for pair in (strip.pages.start & !1..strip.pages.end).step_by(2) {
        let both = [F::tiles(pages, pair, tiles, dim), F::tiles(pages, pair + 1, tiles, dim)];
        if strip.prefetch && !F::SCALED {
            for page in both {
                prefetch(s, page[k_tiles(dim)..].as_flattened());
            }
        }
        let out = &mut scratch.scores.as_mut_slice()[pair * PAGE_LEN..];
        let a = Rows {
            vectors: &scratch.queries.as_slice()[at..],
            tiles: &scratch.tile_queries.as_slice()[at..],
            stride,
            n: strip.n,
        };
        // Columns: the two halves of the slots of each page.
        multiply(s, engine, a, groups, |k, c| &both[c / 2][c % 2 * groups + k], out, CHUNK);
    }
}

/// Weighted sums of a strip, four panels of columns at a time.
#[inline(always)]
fn weigh<S: Simd, F: Paired>(
    s: S,
    work: &Work<'_, F>,
    engine: &Engine,
    pages: &ChunkPages<'_, F>,
    strip: &Strip,
    scratch: &mut Scratch,
) {
    let dim = work.head_dim();
    let tiles = scratch.tiles.as_slice();
    let mut blocks: [&[PairTile]; CHUNK_PAGES] = [&[]; CHUNK_PAGES];
    for page in strip.pages.clone() {
        blocks[page] = &F::tiles(pages, page, tiles, dim)[k_tiles(dim)..];
    }
    let (first, n_pages) = (strip.pages.start, strip.pages.len());
    let stride = scratch.part_stride;
    let last = v_tiles(dim) - 1;
    for panel in (0..=last).step_by(4) {
        let a = Rows {
            vectors: &scratch.scores.as_slice()[first * PAGE_LEN..],
            tiles: &scratch.weights.as_slice()[first * PAGE_LEN..],
            stride: CHUNK,
            n: strip.n,
        };
        let out = &mut scratch.part.as_mut_slice()[panel * PANEL..];
        multiply(s, engine, a, n_pages, |k, c| &blocks[first + k][(panel + c).min(last)], out, stride);
    }
}

/// Whether any is a NaN or an infinity.
#[inline(always)]
fn holds_no_number(values: &[bf16]) -> bool {
    let mut found = 0u16;
    for v in values {
        found |= u16::from(v.to_bits() & 0x7fff >= 0x7f80);
    }
    found != 0
}

/// [`weigh`] where a page holds a value that is no number in a slot that some query does not see: each query by
/// itself, over pages without such slots. For models that have gone wrong.
#[inline(never)]
fn weigh_one_by_one<S: Simd>(
    s: S,
    work: &Work<'_, Pairs>,
    engine: &Engine,
    pages: &ChunkPages<'_, Pairs>,
    strip: &Strip,
    scratch: &mut Scratch,
) {
    let dim = work.head_dim();
    let n = v_tiles(dim) * TILE_LEN;
    scratch.masked.fit(CHUNK_PAGES * n);
    for i in 0..strip.n {
        let (from, to) = strip.slots[i];
        for page in strip.pages.clone() {
            let copy = &mut scratch.masked.as_mut_slice()[page * n..(page + 1) * n];
            copy.copy_from_slice(&pages.blocks[page][k_tiles(dim) * TILE_LEN..]);
            for (at, v) in copy.iter_mut().enumerate() {
                // See `kv/paired.rs` for the place of a slot.
                let slot = page * PAGE_LEN + at % TILE_LEN / (2 * PANEL) * 2 + at % 2;
                if slot < from || slot >= to {
                    *v = bf16::ZERO;
                }
            }
        }
        let (first, last) = (strip.pages.start, v_tiles(dim) - 1);
        let stride = scratch.part_stride;
        let tiles: &[PairTile] = scratch.masked.as_slice().as_chunks().0;
        // Tile registers are shaped for the strip: all its rows are computed, and one is kept.
        let mut strip_out = vec![0.0; STRIP * stride];
        for panel in (0..=last).step_by(4) {
            let a = Rows {
                vectors: &scratch.scores.as_slice()[first * PAGE_LEN..],
                tiles: &scratch.weights.as_slice()[first * PAGE_LEN..],
                stride: CHUNK,
                n: strip.n,
            };
            let tile = |k: usize, c: usize| &tiles[(first + k) * (last + 1) + (panel + c).min(last)];
            multiply(s, engine, a, strip.pages.len(), tile, &mut strip_out[panel * PANEL..], stride);
        }
        scratch.part.as_mut_slice()[i * stride..(i + 1) * stride]
            .copy_from_slice(&strip_out[i * stride..(i + 1) * stride]);
    }
}

/// The rows that tiles are multiplied by: `n` rows, `stride` numbers apart, bf16 in value; in one of two forms.
#[derive(Clone, Copy)]
struct Rows<'a> {
    vectors: &'a [f32],
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "tile registers alone read it"))]
    tiles: &'a [bf16],
    stride: usize,
    n: usize,
}

/// `out[i][16 c..][..16] = sum over k < depth of rows[i][32 k..][..32] · tile(k, c)` for 4 columns `c`; `out` has rows
/// `out_stride` apart.
#[inline(always)]
fn multiply<'t, S: Simd>(
    s: S,
    engine: &Engine,
    rows: Rows<'_>,
    depth: usize,
    tile: impl Fn(usize, usize) -> &'t PairTile + Copy,
    out: &mut [f32],
    out_stride: usize,
) {
    assert!(rows.n >= 1 && out.len() >= (rows.n - 1) * out_stride + 4 * PANEL);
    #[cfg(target_arch = "x86_64")]
    if let Engine::Tiles { tiles, rows: shape } = engine {
        // The last strip may have fewer rows than the registers are shaped for: its buffers have room for them.
        let needed = if rows.n > amx::TILE_ROWS { STRIP } else { *shape };
        assert!(rows.n <= needed && rows.tiles.len() >= (needed - 1) * rows.stride + depth * DEPTH);
        assert!(out.len() >= (needed - 1) * out_stride + 4 * PANEL);
        // SAFETY: the rows are there, as just asserted.
        unsafe { multiply_tiles(tiles, rows, depth, tile, out, out_stride) };
        return;
    }
    let _ = engine;
    assert!(rows.vectors.len() >= (rows.n - 1) * rows.stride + depth * DEPTH);
    let mut i = 0;
    while i < rows.n {
        let n = (rows.n - i).min(S::PAIR_ROWS);
        let a = &rows.vectors[i * rows.stride..];
        for c in 0..4 {
            for at in (0..PANEL).step_by(S::LANES) {
                let out = &mut out[i * out_stride + c * PANEL + at..];
                match n {
                    8 => column::<S, 8>(s, a, rows.stride, depth, |k| &tile(k, c)[2 * at..], out, out_stride),
                    7 => column::<S, 7>(s, a, rows.stride, depth, |k| &tile(k, c)[2 * at..], out, out_stride),
                    6 => column::<S, 6>(s, a, rows.stride, depth, |k| &tile(k, c)[2 * at..], out, out_stride),
                    5 => column::<S, 5>(s, a, rows.stride, depth, |k| &tile(k, c)[2 * at..], out, out_stride),
                    4 => column::<S, 4>(s, a, rows.stride, depth, |k| &tile(k, c)[2 * at..], out, out_stride),
                    3 => column::<S, 3>(s, a, rows.stride, depth, |k| &tile(k, c)[2 * at..], out, out_stride),
                    2 => column::<S, 2>(s, a, rows.stride, depth, |k| &tile(k, c)[2 * at..], out, out_stride),
                    _ => column::<S, 1>(s, a, rows.stride, depth, |k| &tile(k, c)[2 * at..], out, out_stride),
                }
            }
        }
        i += n;
    }
}

/// One vector of columns of M rows.
#[inline(always)]
fn column<'t, S: Simd, const M: usize>(
    s: S,
    a: &[f32],
    stride: usize,
    depth: usize,
    tile: impl Fn(usize) -> &'t [bf16],
    out: &mut [f32],
    out_stride: usize,
) {
    if M > S::PAIR_ROWS {
        unreachable!("larger than a register tile of this instruction set");
    }
    assert!(a.len() >= (M - 1) * stride + depth * DEPTH);
    let mut sums = [s.splat(0.0); M];
    for k in 0..depth {
        let tile = tile(k);
        let (mut first, mut second) = ([s.splat(0.0); M], [s.splat(0.0); M]);
        for pair in 0..DEPTH / 2 {
            let (b, c) = s.load_pairs(&tile[pair * 2 * PANEL..]);
            for i in 0..M {
                let at = i * stride + k * DEPTH + 2 * pair;
                // SAFETY: i < M, k < depth and pair < DEPTH / 2: within the length asserted above.
                let (p, q) = unsafe { (*a.get_unchecked(at), *a.get_unchecked(at + 1)) };
                first[i] = s.fma(s.splat(p), b, first[i]);
                second[i] = s.fma(s.splat(q), c, second[i]);
            }
        }
        for i in 0..M {
            sums[i] = s.add(sums[i], s.add(first[i], second[i]));
        }
    }
    for i in 0..M {
        s.store(sums[i], &mut out[i * out_stride..]);
    }
}

/// [`multiply`] on the tile registers.
///
/// # Safety
/// `rows.tiles` and `out` have as many rows as `tiles` are shaped for, 32 where `rows` are more than 16.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn multiply_tiles<'t>(
    tiles: &amx::Tiles,
    rows: Rows<'_>,
    depth: usize,
    tile: impl Fn(usize, usize) -> &'t PairTile + Copy,
    out: &mut [f32],
    out_stride: usize,
) {
    assert!((1..=MOST_GROUPS).contains(&depth));
    let a = (rows.tiles.as_ptr(), size_of::<bf16>() * rows.stride);
    let stride = size_of::<f32>() * out_stride;
    let first = tile(0, 0);
    if rows.n <= amx::TILE_ROWS {
        let mut table = [[first; 4]; MOST_GROUPS];
        for (k, row) in table[..depth].iter_mut().enumerate() {
            *row = [tile(k, 0), tile(k, 1), tile(k, 2), tile(k, 3)];
        }
        // SAFETY: the shapes are those of `PAIR_SHAPES`; the rows are the caller's promise.
        unsafe { amx::pair_products(tiles, a, &table[..depth], (out.as_mut_ptr(), stride)) };
        return;
    }
    for half in [0, 2] {
        let mut table = [[first; 2]; MOST_GROUPS];
        for (k, row) in table[..depth].iter_mut().enumerate() {
            *row = [tile(k, half), tile(k, half + 1)];
        }
        let out = (out[half * PANEL..].as_mut_ptr(), stride);
        // SAFETY: as above.
        unsafe { amx::pair_products_32(tiles, a, &table[..depth], out) };
    }
}

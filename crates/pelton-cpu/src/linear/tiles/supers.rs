//! Formats with superblocks on tiles: products over a whole superblock before any scale.
//!
//! `scale * code` needs up to 13 bits, a tile's weight has 8: so it is written with two digits, each a *plane* of
//! bytes, and the planes' sums are put together again:
//!
//! ```text
//! unsigned   scale = 8 * high + low, 3 bits each         planes  high * code, low * code        weights 8, 1
//! signed     v = scale * (code - offset)                 planes  (v + 64) >> 7, v - 128 * that  weights 128, 1
//! one        scale * code fits                           plane   scale * code
//! ```
//!
//! All of it is exact, so the sums are those of `superblocks.rs`.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::super::activations::LinearScratch;
use super::super::codes::Codes;
use super::super::lanes::Lanes;
use super::super::lanes_x86::Zmm;
use super::super::superblocks::{HALVES, Planes, SuperFormat, UNITS};
use super::activations::{TileRows, TiledRows};
use super::{Chunk, OnTiles, ROWS, Sums};
use crate::amx::{TileShapes, Tiles, WHOLE_SHAPES, WHOLE_TILE};
use crate::amx::{
    signed_planes, signed_planes_2, unsigned_plane, unsigned_plane_2, unsigned_planes, unsigned_planes_2,
};

/// The format `F` on tiles.
pub(in super::super) struct Supers<F>(PhantomData<F>);

/// A superblock of a panel, expanded: 4 steps of 64 features, each with its planes.
#[repr(C, align(64))]
pub(in super::super) struct Expanded([i8; 4 * 2 * WHOLE_TILE]);

/// The sums of a superblock for two tiles of rows and two planes.
#[repr(C, align(64))]
pub(in super::super) struct Products([i32; 4 * 16 * ROWS]);

impl<F: SuperFormat> OnTiles for Supers<F> {
    type Expanded = Expanded;
    type Products = Products;
    const BLOCK_BYTES: usize = F::PANEL_BYTES;

    fn shapes() -> &'static TileShapes {
        &WHOLE_SHAPES
    }

    fn rows(scratch: &LinearScratch) -> &TiledRows {
        &scratch.whole_tiles
    }

    #[inline(always)]
    unsafe fn expand(packed: *const u8, units: usize, out: *mut Expanded) {
        let planes = if matches!(F::PLANES, Planes::One) { 1 } else { 2 };
        // SAFETY: the caller's; a unit is half of a step's tile.
        unsafe {
            for u in 0..units {
                let codes = packed.add(F::HEAD + u * F::UNIT);
                // What the next chunk expands.
                for line in 0..const { F::PANEL_BYTES.div_ceil(64 * UNITS) } {
                    Zmm::prefetch(codes.wrapping_add(F::PANEL_BYTES + 64 * line));
                }
                let tile = out.cast::<i8>().add(planes * WHOLE_TILE * (u / 2) + WHOLE_TILE / 2 * (u % 2));
                for part in 0..F::PARTS {
                    let scale = F::scale::<Zmm>(codes.add(F::Codes::BYTES), part);
                    let pairs = 4 / F::PARTS;
                    for t in part * pairs..(part + 1) * pairs {
                        let [a, b] = F::Codes::pair::<Zmm>(codes, t);
                        put_planes::<F>(a, scale, tile.add(128 * t));
                        put_planes::<F>(b, scale, tile.add(128 * t + 64));
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn multiply<const T: usize>(
        tiles: &Tiles,
        x: [TileRows<'_>; T],
        chunk: &Chunk<Expanded>,
        products: *mut Products,
        sums: *mut Sums,
    ) {
        // SAFETY: the caller's.
        unsafe {
            let (weights, out) = (chunk.expanded.cast(), products.cast());
            let a = [x[0].codes, x[T - 1].codes];
            match (&F::PLANES, T) {
                (Planes::One, 2) => unsigned_plane_2(tiles, a, weights, out),
                (Planes::One, _) => unsigned_plane(tiles, a[0], weights, out),
                (Planes::Unsigned, 2) => unsigned_planes_2(tiles, a, weights, out),
                (Planes::Unsigned, _) => unsigned_planes(tiles, a[0], weights, out),
                (Planes::Signed, 2) => signed_planes_2(tiles, a, weights, out),
                (Planes::Signed, _) => signed_planes(tiles, a[0], weights, out),
            }
            let planes = if matches!(F::PLANES, Planes::One) { 1 } else { 2 };
            for i in 0..T {
                scale::<F>(&x[i], chunk, products.cast::<__m512i>().add(planes * ROWS * i), sums.add(i));
            }
        }
    }
}

/// Stores the planes of 16 dwords of codes.
///
/// # Safety
/// AVX-512; `to` is a row of a tile, with the next plane's tile behind it.
#[inline(always)]
unsafe fn put_planes<F: SuperFormat>(codes: __m512i, scale: __m512i, to: *mut i8) {
    // SAFETY: the caller's.
    unsafe {
        match F::PLANES {
            // Two bytes at once: no product of a byte reaches the next one.
            Planes::One => _mm512_store_si512(to.cast(), _mm512_mullo_epi16(codes, both(scale))),
            Planes::Unsigned => {
                let high = both(_mm512_srli_epi32::<3>(scale));
                let low = both(_mm512_and_si512(scale, _mm512_set1_epi32(7)));
                _mm512_store_si512(to.cast(), _mm512_mullo_epi16(codes, high));
                _mm512_store_si512(to.add(WHOLE_TILE).cast(), _mm512_mullo_epi16(codes, low));
            }
            Planes::Signed => {
                let scale = both(_mm512_and_si512(scale, _mm512_set1_epi32(0xffff)));
                let offset = _mm512_set1_epi16(1 << if F::Codes::WIDE { 7 } else { F::OFFSET_SHIFT.unwrap_or(0) });
                let bytes = _mm512_set1_epi16(0xff);
                let half = _mm512_set1_epi16(64);
                // Even and odd codes, in 16 bits: 64 more than the product.
                let even = _mm512_sub_epi16(_mm512_and_si512(codes, bytes), offset);
                let odd = _mm512_sub_epi16(_mm512_srli_epi16::<8>(codes), offset);
                let even = _mm512_add_epi16(_mm512_mullo_epi16(even, scale), half);
                let odd = _mm512_add_epi16(_mm512_mullo_epi16(odd, scale), half);
                let high = join(_mm512_srai_epi16::<7>(even), _mm512_srai_epi16::<7>(odd));
                let low = _mm512_and_si512(join(even, odd), _mm512_set1_epi8(127));
                _mm512_store_si512(to.cast(), high);
                _mm512_store_si512(to.add(WHOLE_TILE).cast(), _mm512_sub_epi8(low, _mm512_set1_epi8(64)));
            }
        }
    }
}

/// The low half of each lane in both halves; the high half must be zero.
///
/// # Safety
/// AVX-512.
#[inline(always)]
unsafe fn both(v: __m512i) -> __m512i {
    // SAFETY: the caller's.
    unsafe { _mm512_or_si512(v, _mm512_slli_epi32::<16>(v)) }
}

/// The low bytes of 16-bit numbers, those of `odd` after those of `even`.
///
/// # Safety
/// AVX-512 BW.
#[inline(always)]
unsafe fn join(even: __m512i, odd: __m512i) -> __m512i {
    // SAFETY: the caller's.
    unsafe { _mm512_or_si512(_mm512_and_si512(even, _mm512_set1_epi16(0xff)), _mm512_slli_epi16::<8>(odd)) }
}

/// Scales the integer sums `dots` of a superblock and adds them to the sums of a tile of rows.
///
/// # Safety
/// AVX-512; all hold that superblock.
#[inline(always)]
unsafe fn scale<F: SuperFormat>(x: &TileRows<'_>, chunk: &Chunk<Expanded>, dots: *const __m512i, sums: *mut Sums) {
    // SAFETY: the caller's.
    unsafe {
        let head = chunk.packed;
        let d = Zmm::load_f16(head);
        let mut dmin = _mm512_setzero_ps();
        let mut pairs = [_mm512_setzero_si512(); 8];
        if F::MINS > 0 {
            dmin = Zmm::load_f16(head.add(HALVES));
            for p in 0..F::MINS / 2 {
                pairs[p] = F::min_pair::<Zmm>(head.add(2 * HALVES), p);
            }
        }
        for r in 0..ROWS {
            let total = match F::PLANES {
                Planes::One => _mm512_load_si512(dots.add(r)),
                Planes::Unsigned => {
                    let high = _mm512_slli_epi32::<3>(_mm512_load_si512(dots.add(r)));
                    _mm512_add_epi32(high, _mm512_load_si512(dots.add(ROWS + r)))
                }
                Planes::Signed => {
                    let high = _mm512_slli_epi32::<7>(_mm512_load_si512(dots.add(r)));
                    _mm512_add_epi32(high, _mm512_load_si512(dots.add(ROWS + r)))
                }
            };
            let place: *mut f32 = (&raw mut (*sums).0[r]).cast();
            let xscale = _mm512_set1_ps(x.scales[r]);
            let mut sum = if chunk.first { _mm512_setzero_ps() } else { _mm512_load_ps(place) };
            sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), _mm512_mul_ps(d, xscale), sum);
            if F::MINS > 0 {
                let xsums = if F::MINS == 8 { x.sums[r].sum_32.as_ptr() } else { x.sums[r].sum_16.as_ptr() };
                let mut least = _mm512_setzero_si512();
                for p in 0..F::MINS / 2 {
                    least = Zmm::dot_pair(least, pairs[p], xsums.add(2 * p));
                }
                sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(least), _mm512_mul_ps(dmin, xscale), sum);
            }
            _mm512_store_ps(place, sum);
        }
    }
}

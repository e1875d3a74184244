//! Formats of 32 elements a block on tiles: half-deep products, each unit's sums scaled on its own.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::super::activations::LinearScratch;
use super::super::blocks::{Format, Packed};
use super::super::codes::Codes;
use super::super::lanes::Lanes;
use super::super::lanes_x86::Zmm;
use super::activations::{TileRows, TiledRows};
use super::{Chunk, OnTiles, ROWS, Sums};
use crate::amx::{HALF_SHAPES, HALF_TILE, TileShapes, Tiles, unit_products, unit_products_2};

/// Units of a block of activations.
const UNITS: usize = 8;

/// The format `F` on tiles.
pub(in super::super) struct Units<F>(PhantomData<F>);

/// A chunk of a panel, expanded.
#[repr(C, align(64))]
pub(in super::super) struct Expanded {
    /// Signed codes, a tile for each unit.
    codes: [[i8; HALF_TILE]; UNITS],
    scales: [[f32; 16]; UNITS],
    mins: [[f32; 16]; UNITS],
}

/// The sums of a block's units for two tiles of rows.
#[repr(C, align(64))]
pub(in super::super) struct Products([[[[i32; 16]; ROWS]; UNITS]; 2]);

impl<F: Format> OnTiles for Units<F> {
    type Expanded = Expanded;
    type Products = Products;
    const BLOCK_BYTES: usize = UNITS * F::PANEL_BYTES;

    fn shapes() -> &'static TileShapes {
        &HALF_SHAPES
    }

    fn rows(scratch: &LinearScratch) -> &TiledRows {
        &scratch.half_tiles
    }

    #[inline(always)]
    unsafe fn expand(mut packed: *const u8, units: usize, out: *mut Expanded) {
        // SAFETY: the caller's.
        unsafe {
            for u in 0..units {
                // What the next chunk expands.
                for line in 0..const { F::PANEL_BYTES.div_ceil(64) } {
                    Zmm::prefetch(packed.wrapping_add(const { UNITS * F::PANEL_BYTES } + 64 * line));
                }
                let tile: *mut __m512i = (&raw mut (*out).codes[u]).cast();
                for t in 0..4 {
                    let [a, b] = F::Codes::pair::<Zmm>(packed, t);
                    _mm512_store_si512(tile.add(2 * t), signed::<F>(a));
                    _mm512_store_si512(tile.add(2 * t + 1), signed::<F>(b));
                }
                let scales = packed.add(F::Codes::BYTES);
                Zmm::store(F::scale::<Zmm>(scales), (&raw mut (*out).scales[u]).cast());
                if F::HAS_MIN {
                    Zmm::store(F::min::<Zmm>(scales), (&raw mut (*out).mins[u]).cast());
                }
                packed = packed.add(F::PANEL_BYTES);
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
        // SAFETY: the caller's. Where the units are odd, one more is multiplied: zeros by what is there.
        unsafe {
            let pairs = chunk.units.div_ceil(2);
            let weights: *const i8 = (&raw const (*chunk.expanded).codes).cast();
            let out = [(&raw mut (*products).0[0]).cast(), (&raw mut (*products).0[1]).cast()];
            if T == 2 {
                unit_products_2(tiles, [x[0].codes, x[T - 1].codes], weights, out, pairs);
            } else {
                unit_products(tiles, x[0].codes, weights, out[0], pairs);
            }
            for i in 0..T {
                scale::<F>(&x[i], chunk, (&raw const (*products).0[i]).cast(), sums.add(i));
            }
        }
    }
}

/// Codes without their offset.
///
/// # Safety
/// AVX-512 BW.
#[inline(always)]
unsafe fn signed<F: Packed>(codes: __m512i) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        match F::OFFSET_SHIFT {
            Some(shift) => _mm512_sub_epi8(codes, _mm512_set1_epi8(1 << shift)),
            None if F::Codes::WIDE => _mm512_xor_si512(codes, _mm512_set1_epi8(-128)),
            None => codes,
        }
    }
}

/// Scales the integer sums `dots` of a chunk and adds them to the sums of a tile of rows.
///
/// # Safety
/// AVX-512; all hold the chunk's units.
#[inline(always)]
unsafe fn scale<F: Format>(x: &TileRows<'_>, chunk: &Chunk<Expanded>, mut dots: *const __m512i, sums: *mut Sums) {
    // SAFETY: the caller's.
    unsafe {
        let mut parts = [_mm512_setzero_ps(); ROWS];
        for u in 0..chunk.units {
            let scale = _mm512_load_ps((&raw const (*chunk.expanded).scales[u]).cast());
            for r in 0..ROWS {
                let dot = _mm512_cvtepi32_ps(_mm512_load_si512(dots.add(r)));
                parts[r] = _mm512_fmadd_ps(dot, scale, parts[r]);
            }
            if F::HAS_MIN {
                let min = _mm512_load_ps((&raw const (*chunk.expanded).mins[u]).cast());
                for r in 0..ROWS {
                    parts[r] = _mm512_fmadd_ps(min, _mm512_set1_ps(*x.sums[r].float_32.get_unchecked(u)), parts[r]);
                }
            }
            dots = dots.add(ROWS);
        }
        for r in 0..ROWS {
            let place: *mut f32 = (&raw mut (*sums).0[r]).cast();
            let sum = if chunk.first { _mm512_setzero_ps() } else { _mm512_load_ps(place) };
            _mm512_store_ps(place, _mm512_fmadd_ps(parts[r], _mm512_set1_ps(x.scales[r]), sum));
        }
    }
}

//! Superblocks of a panel as planes of bytes.
//!
//! Invariant: the planes are the digits of the fixed-point weights of `blocks.rs`, exactly.

use std::arch::x86_64::*;

use super::super::blocks::{Format, fine_weights};
use super::super::codes::Codes;
use super::super::lanes::Lanes;
use super::super::lanes_x86::Zmm;
use crate::amx::{STEPS, WHOLE_TILE};

/// A superblock of a panel, expanded: 4 steps of 64 features, each with its high plane, of signed bytes, and its low one, of
/// unsigned bytes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Planes([i8; STEPS * 2 * WHOLE_TILE]);

/// Expands `units` units of a superblock; a unit is half of a step's tiles.
///
/// # Safety
/// AVX-512; `block` points to a superblock of this format, `out` to [`Planes`].
#[inline(always)]
pub(super) unsafe fn expand<F: Format>(block: *const u8, units: usize, out: *mut Planes) {
    // SAFETY: the caller's.
    unsafe {
        let minima = F::minima::<Zmm>(block);
        for u in 0..units {
            let codes = block.add(F::HEAD + u * F::UNIT);
            let tile = out.cast::<i8>().add(2 * WHOLE_TILE * (u / 2) + WHOLE_TILE / 2 * (u % 2));
            for part in 0..F::PARTS {
                let scale = F::scale::<Zmm>(codes.add(F::Codes::BYTES), part);
                let scale = Zmm::pair_i(Zmm::shift_left(scale, F::SHIFT), Zmm::shift_left(scale, F::SHIFT));
                let min = if F::MINS > 0 { minimum(&minima, u * F::PARTS + part) } else { _mm512_setzero_si512() };
                let pairs = 4 / F::PARTS;
                for t in part * pairs..(part + 1) * pairs {
                    let [a, b] = F::Codes::pair::<Zmm>(codes, t);
                    let [c, d] = if F::Codes::TWO_BYTES { F::Codes::upper::<Zmm>(codes, t) } else { [a, b] };
                    put::<F>([a, c], scale, min, tile.add(128 * t));
                    put::<F>([b, d], scale, min, tile.add(128 * t + 64));
                }
            }
        }
    }
}

/// Minimum `i` of pairs of them, twice in each lane.
///
/// # Safety
/// AVX-512 BW.
#[inline(always)]
unsafe fn minimum(pairs: &[__m512i; 8], i: usize) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        let odd = !i.is_multiple_of(2);
        let low = if odd { _mm512_srli_epi32::<16>(pairs[i / 2]) } else { pairs[i / 2] };
        Zmm::pair_i(low, low)
    }
}

/// Stores the planes of 16 dwords of codes, and of their upper bytes where they have some.
///
/// # Safety
/// AVX-512 BW; `to` is a row of a tile, with the next plane's tile behind it.
#[inline(always)]
unsafe fn put<F: Format>([codes, upper]: [__m512i; 2], scale: __m512i, min: __m512i, to: *mut i8) {
    // SAFETY: the caller's.
    unsafe {
        let bytes = _mm512_set1_epi16(0xff);
        // Weights of even and of odd codes.
        let [mut even, mut odd] = if F::FINE {
            fine_weights::<F, Zmm>(codes, upper, scale)
        } else {
            let (mut even, mut odd) = (_mm512_and_si512(codes, bytes), _mm512_srli_epi16::<8>(codes));
            let shift = if F::Codes::WIDE { Some(7) } else { F::OFFSET_SHIFT };
            if let Some(shift) = shift {
                let offset = _mm512_set1_epi16(1 << shift);
                (even, odd) = (_mm512_sub_epi16(even, offset), _mm512_sub_epi16(odd, offset));
            }
            [_mm512_mullo_epi16(even, scale), _mm512_mullo_epi16(odd, scale)]
        };
        if F::MINS > 0 {
            (even, odd) = (_mm512_add_epi16(even, min), _mm512_add_epi16(odd, min));
        }
        let low = _mm512_mask_blend_epi8(ODD_BYTES, even, _mm512_slli_epi16::<8>(odd));
        let high = _mm512_mask_blend_epi8(ODD_BYTES, _mm512_srli_epi16::<8>(even), odd);
        _mm512_store_si512(to.cast(), high);
        _mm512_store_si512(to.add(WHOLE_TILE).cast(), low);
    }
}

/// Every second byte.
const ODD_BYTES: __mmask64 = 0xaaaa_aaaa_aaaa_aaaa;

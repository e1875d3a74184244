//! Q5_K: 5-bit codes; 8 sub-blocks of 32 elements with 6-bit scales and minima; 5.5 bits per element.
//!
//! ```text
//! byte 0  2    4                    16                  48                     176
//!      │d │dmin│ scales[0] … [11]   │ qh[0] … qh[31]     │ qs[0] … qs[127]       │
//!      f16 f16   8 scales, 8 minima   bit s of qh[l]: the  byte 32·j + l, low nibble: low bits of
//!                in 6 bits each       fifth bit of element element 64·j + l, high nibble: of
//!                                     32·s + l             element 64·j + 32 + l
//! value = (d · scale) · code − (dmin · min)
//! ```
//!
//! The packing of the twelve scale bytes is drawn in `packed_scales.rs`.

use half::f16;

use crate::q4_k::{pack_nibbles, unpack_nibbles};
use crate::rounding::f16_at;
use crate::{affine_search, packed_scales};

/// Elements in a block.
pub const BLOCK_LEN: usize = 256;
/// Bytes of a block.
pub const BLOCK_BYTES: usize = 176;
/// Elements that share a scale and a minimum.
pub const SUB_LEN: usize = 32;

/// The scale of the scales, as stored.
#[inline]
pub fn d(block: &[u8; BLOCK_BYTES]) -> f16 {
    f16_at(block, 0)
}

/// The scale of the minima, as stored.
#[inline]
pub fn dmin(block: &[u8; BLOCK_BYTES]) -> f16 {
    f16_at(block, 2)
}

/// Scales and minima (0 to 63) of the sub-blocks, in element order.
#[inline]
pub fn scales_mins(block: &[u8; BLOCK_BYTES]) -> ([u8; 8], [u8; 8]) {
    packed_scales::unpack(block[4..].first_chunk().expect("a block has 12 bytes of scales"))
}

/// The codes, 0 to 31, in element order.
pub fn codes(block: &[u8; BLOCK_BYTES], out: &mut [u8; BLOCK_LEN]) {
    unpack_nibbles(&block[48..], out);
    for (s, codes) in out.as_chunks_mut::<SUB_LEN>().0.iter_mut().enumerate() {
        for (code, bits) in codes.iter_mut().zip(&block[16..48]) {
            *code |= (bits >> s & 1) << 4;
        }
    }
}

/// The values of a block.
pub fn decode_block(block: &[u8; BLOCK_BYTES], out: &mut [f32; BLOCK_LEN]) {
    let (d, dmin) = (d(block).to_f32(), dmin(block).to_f32());
    let (scales, mins) = scales_mins(block);
    let mut q = [0; BLOCK_LEN];
    codes(block, &mut q);
    let values = out.as_chunks_mut::<SUB_LEN>().0.iter_mut().zip(q.as_chunks::<SUB_LEN>().0);
    for ((values, q), (scale, min)) in values.zip(scales.iter().zip(mins)) {
        let (scale, min) = (d * f32::from(*scale), dmin * f32::from(min));
        for (value, q) in values.iter_mut().zip(q) {
            *value = scale * f32::from(*q) - min;
        }
    }
}

/// Writes the codes, in element order, and leaves the scales.
pub(crate) fn set_codes(codes: &[u8; BLOCK_LEN], block: &mut [u8; BLOCK_BYTES]) {
    block[16..48].fill(0);
    for (s, codes) in codes.as_chunks::<SUB_LEN>().0.iter().enumerate() {
        for (bits, code) in block[16..48].iter_mut().zip(codes) {
            *bits |= (code >> 4) << s;
        }
    }
    pack_nibbles(codes, &mut block[48..]);
}

/// Searches for the scales of least squared error, weighted with `w`; `None` if they exceed f16.
pub(crate) fn encode_searched(x: &[f32; BLOCK_LEN], w: &[f32; BLOCK_LEN]) -> Option<[u8; BLOCK_BYTES]> {
    let found = affine_search::search::<SUB_LEN, 8>(x, w, 31, 63)?;
    let mut block = [0; BLOCK_BYTES];
    block[..2].copy_from_slice(&found.d.to_le_bytes());
    block[2..4].copy_from_slice(&found.dmin.to_le_bytes());
    block[4..16].copy_from_slice(&packed_scales::pack(&found.scales, &found.mins));
    set_codes(&found.codes, &mut block);
    Some(block)
}

//! Q4_K: 4-bit codes; 8 sub-blocks of 32 elements with 6-bit scales and minima; 4.5 bits per element.
//!
//! ```text
//! byte 0  2    4                    16                     144
//!      │d │dmin│ scales[0] … [11]   │ qs[0] … qs[127]       │
//!      f16 f16   8 scales, 8 minima   byte 32·j + l, low nibble: code of element 64·j + l,
//!                in 6 bits each       high nibble: of element 64·j + 32 + l
//! value = (d · scale) · code − (dmin · min)
//! ```
//!
//! The packing of the twelve scale bytes is drawn in `packed_scales.rs`.

use half::f16;

use crate::rounding::f16_at;
use crate::{affine_search, packed_scales};

/// Elements in a block.
pub const BLOCK_LEN: usize = 256;
/// Bytes of a block.
pub const BLOCK_BYTES: usize = 144;
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

/// The codes, 0 to 15, in element order.
pub fn codes(block: &[u8; BLOCK_BYTES], out: &mut [u8; BLOCK_LEN]) {
    unpack_nibbles(&block[16..], out);
}

/// Unpacks the 4-bit planes that Q4_K and Q5_K share: 32 bytes hold two sub-blocks.
pub(crate) fn unpack_nibbles(packed: &[u8], codes: &mut [u8; 256]) {
    for (codes, packed) in codes.as_chunks_mut::<64>().0.iter_mut().zip(packed.as_chunks::<32>().0) {
        for (l, byte) in packed.iter().enumerate() {
            codes[l] = byte & 15;
            codes[32 + l] = byte >> 4;
        }
    }
}

/// The inverse of [`unpack_nibbles`], from the low four bits of each code.
pub(crate) fn pack_nibbles(codes: &[u8; 256], packed: &mut [u8]) {
    for (codes, packed) in codes.as_chunks::<64>().0.iter().zip(packed.as_chunks_mut::<32>().0) {
        for (l, byte) in packed.iter_mut().enumerate() {
            *byte = codes[l] & 15 | codes[32 + l] << 4;
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
    pack_nibbles(codes, &mut block[16..]);
}

/// Searches for the scales of least squared error, weighted with `w`; `None` if they exceed f16.
pub(crate) fn encode_searched(x: &[f32; BLOCK_LEN], w: &[f32; BLOCK_LEN]) -> Option<[u8; BLOCK_BYTES]> {
    let found = affine_search::search::<SUB_LEN, 8>(x, w, 15, 63)?;
    let mut block = [0; BLOCK_BYTES];
    block[..2].copy_from_slice(&found.d.to_le_bytes());
    block[2..4].copy_from_slice(&found.dmin.to_le_bytes());
    block[4..16].copy_from_slice(&packed_scales::pack(&found.scales, &found.mins));
    set_codes(&found.codes, &mut block);
    Some(block)
}

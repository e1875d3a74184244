//! Q2_K: 2-bit codes; 16 sub-blocks of 16 elements with 4-bit scales and minima; 2.625 bits per element.
//!
//! ```text
//! byte 0                     16                    80 82   84
//!      │ scales[0] … [15]     │ qs[0] … qs[63]      │d │dmin│
//!        low nibble: scale,     byte 32·h + l, bits 2k and 2k+1: code of element 128·h + 32·k + l
//!        high nibble: minimum
//! value = (d · scale) · code − (dmin · min)
//! ```

use half::f16;

use crate::affine_search;
use crate::rounding::f16_at;

/// Elements in a block.
pub const BLOCK_LEN: usize = 256;
/// Bytes of a block.
pub const BLOCK_BYTES: usize = 84;
/// Elements that share a scale and a minimum.
pub const SUB_LEN: usize = 16;

/// The scale of the scales, as stored.
#[inline]
pub fn d(block: &[u8; BLOCK_BYTES]) -> f16 {
    f16_at(block, 80)
}

/// The scale of the minima, as stored.
#[inline]
pub fn dmin(block: &[u8; BLOCK_BYTES]) -> f16 {
    f16_at(block, 82)
}

/// Scales and minima (0 to 15) of the sub-blocks, in element order.
#[inline]
pub fn scales_mins(block: &[u8; BLOCK_BYTES]) -> ([u8; 16], [u8; 16]) {
    (std::array::from_fn(|i| block[i] & 15), std::array::from_fn(|i| block[i] >> 4))
}

/// The codes, 0 to 3, in element order.
pub fn codes(block: &[u8; BLOCK_BYTES], out: &mut [u8; BLOCK_LEN]) {
    unpack_pairs(&block[16..80], out);
}

/// Unpacks the 2-bit planes that Q2_K and Q3_K share: two halves of 32 bytes, four planes each.
pub(crate) fn unpack_pairs(packed: &[u8], codes: &mut [u8; 256]) {
    for (half, packed) in codes.as_chunks_mut::<128>().0.iter_mut().zip(packed.as_chunks::<32>().0) {
        for (k, plane) in half.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (code, byte) in plane.iter_mut().zip(packed) {
                *code = byte >> (2 * k) & 3;
            }
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

/// The inverse of [`unpack_pairs`], from the low two bits of each code.
pub(crate) fn pack_pairs(codes: &[u8; 256], packed: &mut [u8]) {
    for (half, packed) in codes.as_chunks::<128>().0.iter().zip(packed.as_chunks_mut::<32>().0) {
        for (l, byte) in packed.iter_mut().enumerate() {
            *byte = (0..4).fold(0, |byte, k| byte | (half[32 * k + l] & 3) << (2 * k));
        }
    }
}

/// Writes the codes, in element order, and leaves the scales.
pub(crate) fn set_codes(codes: &[u8; BLOCK_LEN], block: &mut [u8; BLOCK_BYTES]) {
    pack_pairs(codes, &mut block[16..80]);
}

/// Searches for the scales of least squared error, weighted with `w`; `None` if they exceed f16.
pub(crate) fn encode_searched(x: &[f32; BLOCK_LEN], w: &[f32; BLOCK_LEN]) -> Option<[u8; BLOCK_BYTES]> {
    let found = affine_search::search::<SUB_LEN, 16>(x, w, 3, 15)?;
    let mut block = [0; BLOCK_BYTES];
    for (byte, (scale, min)) in block.iter_mut().zip(found.scales.iter().zip(found.mins)) {
        *byte = scale | min << 4;
    }
    set_codes(&found.codes, &mut block);
    block[80..82].copy_from_slice(&found.d.to_le_bytes());
    block[82..].copy_from_slice(&found.dmin.to_le_bytes());
    Some(block)
}

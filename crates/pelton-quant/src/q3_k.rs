//! Q3_K: 3-bit codes around 4; 16 sub-blocks of 16 elements with 6-bit scales; 3.4375 bits per element.
//!
//! ```text
//! byte 0                     32                    96                  108 110
//!      │ hmask[0] … [31]      │ qs[0] … qs[63]      │ scales[0] … [11]   │d │
//! code  bits 0 and 1 of element 128·h + 32·k + l: bits 2k and 2k+1 of qs[32·h + l];
//!       bit 2 of element 32·i + l: bit i of hmask[l]
//! scale bits 0 to 3 of sub-block s: low (s < 8) or high nibble of scales[s mod 8];
//!       bits 4 and 5: bits 2·(s div 4) and up of scales[8 + s mod 4]; 32 is subtracted
//! value = (d · scale) · (code − 4)
//! ```

use half::f16;

use crate::linear_search::{self, ThreeBits};
use crate::q2_k::{pack_pairs, unpack_pairs};
use crate::rounding::f16_at;

/// Elements in a block.
pub const BLOCK_LEN: usize = 256;
/// Bytes of a block.
pub const BLOCK_BYTES: usize = 110;
/// Elements that share a scale.
pub const SUB_LEN: usize = 16;
/// What is subtracted from a code.
pub const OFFSET: u8 = 4;

/// The scale of the scales, as stored.
#[inline]
pub fn d(block: &[u8; BLOCK_BYTES]) -> f16 {
    f16_at(block, 108)
}

/// The scales (−32 to 31) of the sub-blocks, in element order.
#[inline]
pub fn scales(block: &[u8; BLOCK_BYTES]) -> [i8; 16] {
    let packed = &block[96..108];
    std::array::from_fn(|s| {
        let low = packed[s % 8] >> (4 * (s / 8)) & 15;
        let high = packed[8 + s % 4] >> (2 * (s / 4)) & 3;
        (low | high << 4) as i8 - 32
    })
}

/// The codes, 0 to 7, in element order.
pub fn codes(block: &[u8; BLOCK_BYTES], out: &mut [u8; BLOCK_LEN]) {
    unpack_pairs(&block[32..96], out);
    for (i, codes) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (code, bits) in codes.iter_mut().zip(&block[..32]) {
            *code |= (bits >> i & 1) << 2;
        }
    }
}

/// The values of a block.
pub fn decode_block(block: &[u8; BLOCK_BYTES], out: &mut [f32; BLOCK_LEN]) {
    let d = d(block).to_f32();
    let mut q = [0; BLOCK_LEN];
    codes(block, &mut q);
    let values = out.as_chunks_mut::<SUB_LEN>().0.iter_mut().zip(q.as_chunks::<SUB_LEN>().0);
    for ((values, q), scale) in values.zip(scales(block)) {
        let scale = d * f32::from(scale);
        for (value, q) in values.iter_mut().zip(q) {
            *value = scale * f32::from(*q as i8 - OFFSET as i8);
        }
    }
}

/// Writes the codes, in element order, and leaves the scales.
pub(crate) fn set_codes(codes: &[u8; BLOCK_LEN], block: &mut [u8; BLOCK_BYTES]) {
    block[..32].fill(0);
    for (s, codes) in codes.as_chunks::<32>().0.iter().enumerate() {
        for (bits, code) in block[..32].iter_mut().zip(codes) {
            *bits |= (code >> 2) << s;
        }
    }
    pack_pairs(codes, &mut block[32..96]);
}

/// Searches for the scales of least squared error, weighted with `w`; `None` if they exceed f16.
pub(crate) fn encode_searched(x: &[f32; BLOCK_LEN], w: &[f32; BLOCK_LEN]) -> Option<[u8; BLOCK_BYTES]> {
    let found = linear_search::search::<ThreeBits, SUB_LEN, 16>(x, w, -32)?;
    let codes = found.codes.map(|code| (code + OFFSET as i8) as u8);
    let mut block = [0; BLOCK_BYTES];
    set_codes(&codes, &mut block);
    for (s, scale) in found.scales.iter().enumerate() {
        let scale = (scale + 32) as u8;
        block[96 + s % 8] |= (scale & 15) << (4 * (s / 8));
        block[104 + s % 4] |= (scale >> 4) << (2 * (s / 4));
    }
    block[108..].copy_from_slice(&found.d.to_le_bytes());
    Some(block)
}

//! Q6_K: 6-bit codes around 32; 16 sub-blocks of 16 elements with 8-bit scales; 6.5625 bits per element.
//!
//! ```text
//! byte 0                    128                 192                 208 210
//!      │ ql[0] … ql[127]     │ qh[0] … qh[63]    │ scales[0] … [15]   │d │
//!                                                  i8                  f16
//! element 128·h + 32·k + l (h < 2, k < 4, l < 32):
//!   low 4 bits: nibble k div 2 of ql[64·h + 32·(k mod 2) + l];  high 2 bits: bits 2k and 2k+1 of qh[32·h + l]
//! value = (d · scale) · (code − 32)
//! ```

use half::f16;

use crate::linear_search::{self, SixBits};
use crate::rounding::f16_at;

/// Elements in a block.
pub const BLOCK_LEN: usize = 256;
/// Bytes of a block.
pub const BLOCK_BYTES: usize = 210;
/// Elements that share a scale.
pub const SUB_LEN: usize = 16;
/// What is subtracted from a code.
pub const OFFSET: u8 = 32;

/// The scale of the scales, as stored.
#[inline]
pub fn d(block: &[u8; BLOCK_BYTES]) -> f16 {
    f16_at(block, 208)
}

/// The scales (−128 to 127) of the sub-blocks, in element order.
#[inline]
pub fn scales(block: &[u8; BLOCK_BYTES]) -> [i8; 16] {
    std::array::from_fn(|s| block[192 + s] as i8)
}

/// The codes, 0 to 63, in element order.
pub fn codes(block: &[u8; BLOCK_BYTES], out: &mut [u8; BLOCK_LEN]) {
    for (h, half) in out.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        let low = &block[64 * h..][..64];
        let high = &block[128 + 32 * h..][..32];
        for (k, codes) in half.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let low = &low[32 * (k % 2)..][..32];
            for ((code, low), high) in codes.iter_mut().zip(low).zip(high) {
                *code = low >> (4 * (k / 2)) & 15 | (high >> (2 * k) & 3) << 4;
            }
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
    block[..192].fill(0);
    for (e, code) in codes.iter().enumerate() {
        let (h, k, l) = (e / 128, e / 32 % 4, e % 32);
        block[64 * h + 32 * (k % 2) + l] |= (code & 15) << (4 * (k / 2));
        block[128 + 32 * h + l] |= (code >> 4) << (2 * k);
    }
}

/// Searches for the scales of least squared error, weighted with `w`; `None` if they exceed f16.
pub(crate) fn encode_searched(x: &[f32; BLOCK_LEN], w: &[f32; BLOCK_LEN]) -> Option<[u8; BLOCK_BYTES]> {
    let found = linear_search::search::<SixBits, SUB_LEN, 16>(x, w, -128)?;
    let mut block = [0; BLOCK_BYTES];
    set_codes(&found.codes.map(|code| (code + OFFSET as i8) as u8), &mut block);
    for (byte, scale) in block[192..208].iter_mut().zip(found.scales) {
        *byte = scale as u8;
    }
    block[208..].copy_from_slice(&found.d.to_le_bytes());
    Some(block)
}

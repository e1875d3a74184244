//! IQ4_XS: the levels of IQ4_NL; 8 sub-blocks of 32 elements with 6-bit scales; 4.25 bits per element.
//!
//! ```text
//! byte 0  2        4                   8                      136
//!      │d │scales_h│ scales_l[0] … [3] │ qs[0] … qs[127]        │
//!      f16 u16
//! index of element 32·s + i: low nibble of qs[16·s + i] for i < 16, high nibble of qs[16·s + i − 16] otherwise
//! scale of sub-block s: bits 0–3: nibble s of scales_l (low first), bits 4–5: bits 2s and up of scales_h; minus 32
//! value = (d · scale) · LEVELS[index]
//! ```

use half::f16;

use crate::iq4_nl::{LEVELS, look_up};
use crate::linear_search::{self, Uneven, uneven_index};
use crate::rounding::{f16_at, pack_nibbles, unpack_nibbles};

/// Elements in a block.
pub const BLOCK_LEN: usize = 256;
/// Bytes of a block.
pub const BLOCK_BYTES: usize = 136;
/// Elements that share a scale.
pub const SUB_LEN: usize = 32;

/// The scale of the scales, as stored.
#[inline]
pub fn d(block: &[u8; BLOCK_BYTES]) -> f16 {
    f16_at(block, 0)
}

/// The scales (−32 to 31) of the sub-blocks, in element order.
#[inline]
pub fn scales(block: &[u8; BLOCK_BYTES]) -> [i8; 8] {
    let high = u16::from_le_bytes([block[2], block[3]]);
    std::array::from_fn(|s| {
        let low = block[4 + s / 2] >> (4 * (s % 2)) & 15;
        let high = (high >> (2 * s) & 3) as u8;
        (low | high << 4) as i8 - 32
    })
}

/// The indices into [`LEVELS`], in element order.
#[inline]
pub fn indices(block: &[u8; BLOCK_BYTES], out: &mut [u8; BLOCK_LEN]) {
    let packed = block[8..].as_chunks::<16>().0;
    for (packed, indices) in packed.iter().zip(out.as_chunks_mut::<SUB_LEN>().0) {
        unpack_nibbles(packed, indices);
    }
}

/// The codes (values of [`LEVELS`]) in element order.
#[inline]
pub fn codes(block: &[u8; BLOCK_BYTES], out: &mut [i8; BLOCK_LEN]) {
    let packed = block[8..].as_chunks::<16>().0;
    for (packed, codes) in packed.iter().zip(out.as_chunks_mut::<SUB_LEN>().0) {
        look_up(packed, &LEVELS, codes);
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
            *value = scale * f32::from(*q);
        }
    }
}

/// Searches for the scales of least squared error, weighted with `w`; `None` if they exceed f16.
pub(crate) fn encode_searched(x: &[f32; BLOCK_LEN], w: &[f32; BLOCK_LEN]) -> Option<[u8; BLOCK_BYTES]> {
    let found = linear_search::search::<Uneven, SUB_LEN, 8>(x, w, -32)?;
    let mut block = [0; BLOCK_BYTES];
    block[..2].copy_from_slice(&found.d.to_le_bytes());
    let mut high = 0u16;
    for (s, scale) in found.scales.iter().enumerate() {
        let scale = (scale + 32) as u8;
        block[4 + s / 2] |= (scale & 15) << (4 * (s % 2));
        high |= u16::from(scale >> 4) << (2 * s);
    }
    block[2..4].copy_from_slice(&high.to_le_bytes());
    let packed = block[8..].as_chunks_mut::<16>().0;
    for (packed, codes) in packed.iter_mut().zip(found.codes.as_chunks::<SUB_LEN>().0) {
        *packed = pack_nibbles(&codes.map(uneven_index));
    }
    Some(block)
}

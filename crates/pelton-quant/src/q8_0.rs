//! Q8_0: signed 8-bit codes with one scale per 32 elements; 8.5 bits per element.
//!
//! ```text
//! byte 0  2                    34
//!      │d │ qs[0] … qs[31]      │
//!      f16   i8: code of element i
//! value = code · d
//! ```

use half::f16;

use crate::rounding::{f16_at, first_extreme, inverse_or_zero, round_codes, scale_f16};

/// Elements in a block.
pub const BLOCK_LEN: usize = 32;
/// Bytes of a block.
pub const BLOCK_BYTES: usize = 34;

/// The scale as stored.
#[inline]
pub fn d(block: &[u8; BLOCK_BYTES]) -> f16 {
    f16_at(block, 0)
}

/// The scale: `value = code · scale`.
pub fn scale(block: &[u8; BLOCK_BYTES]) -> f32 {
    d(block).to_f32()
}

/// The codes, −128 to 127, in element order. (Encoders write −127 to 127.)
#[inline]
pub fn codes(block: &[u8; BLOCK_BYTES], out: &mut [i8; BLOCK_LEN]) {
    for (code, byte) in out.iter_mut().zip(&block[2..]) {
        *code = *byte as i8;
    }
}

/// The values of a block.
pub fn decode_block(block: &[u8; BLOCK_BYTES], out: &mut [f32; BLOCK_LEN]) {
    let scale = scale(block);
    for (value, byte) in out.iter_mut().zip(&block[2..]) {
        *value = f32::from(*byte as i8) * scale;
    }
}

/// Puts the element of largest magnitude on ±127 and rounds the others, halves away from zero; `None` if the scale
/// exceeds f16.
pub(crate) fn encode_block(x: &[f32; BLOCK_LEN]) -> Option<[u8; BLOCK_BYTES]> {
    let d = first_extreme(x).abs() / 127.0;
    let inverse = inverse_or_zero(d);
    let mut block = [0; BLOCK_BYTES];
    block[..2].copy_from_slice(&scale_f16(d)?.to_le_bytes());
    let codes = round_codes(&x.map(|x| x * inverse), inverse);
    for (byte, code) in block[2..].iter_mut().zip(codes) {
        *byte = code as u8;
    }
    Some(block)
}

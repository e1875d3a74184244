//! Q4_0: 4-bit codes around 8 with one scale per 32 elements; 4.5 bits per element.
//!
//! ```text
//! byte 0  2                    18
//!      │d │ qs[0] … qs[15]      │
//!      f16   low nibble of qs[i]: code of element i, high nibble: of element i + 16
//! value = d · (code − 8)
//! ```

use half::f16;

use crate::linear_search::{self, FourBits};
use crate::rounding::{cut_codes, f16_at, first_extreme, inverse_or_zero, pack_nibbles, scale_f16, unpack_nibbles};

/// Elements in a block.
pub const BLOCK_LEN: usize = 32;
/// Bytes of a block.
pub const BLOCK_BYTES: usize = 18;
/// What is subtracted from a code.
pub const OFFSET: u8 = 8;

/// The scale as stored.
#[inline]
pub fn d(block: &[u8; BLOCK_BYTES]) -> f16 {
    f16_at(block, 0)
}

/// The scale: `value = scale · (code − 8)`.
pub fn scale(block: &[u8; BLOCK_BYTES]) -> f32 {
    d(block).to_f32()
}

/// The codes, 0 to 15, in element order.
#[inline]
pub fn codes(block: &[u8; BLOCK_BYTES], out: &mut [u8; BLOCK_LEN]) {
    let (_, packed) = block.split_last_chunk::<16>().expect("a block ends with 16 bytes of codes");
    unpack_nibbles(packed, out);
}

/// Writes the codes, in element order, and leaves the scales.
pub(crate) fn set_codes(codes: &[u8; BLOCK_LEN], block: &mut [u8; BLOCK_BYTES]) {
    block[2..].copy_from_slice(&pack_nibbles(codes));
}

/// The values of a block.
pub fn decode_block(block: &[u8; BLOCK_BYTES], out: &mut [f32; BLOCK_LEN]) {
    let scale = scale(block);
    let mut q = [0; BLOCK_LEN];
    codes(block, &mut q);
    for (value, q) in out.iter_mut().zip(q) {
        *value = scale * f32::from(q as i8 - OFFSET as i8);
    }
}

/// Puts the element of largest magnitude on code 0 and rounds the others; `None` if the scale exceeds f16.
pub(crate) fn encode_block(x: &[f32; BLOCK_LEN]) -> Option<[u8; BLOCK_BYTES]> {
    let d = first_extreme(x) / -8.0;
    let inverse = inverse_or_zero(d);
    let q = cut_codes(&x.map(|x| x * inverse + 8.5), 15.0, inverse);
    let mut block = [0; BLOCK_BYTES];
    block[..2].copy_from_slice(&scale_f16(d)?.to_le_bytes());
    set_codes(&q, &mut block);
    Some(block)
}

/// Searches for the scale of least squared error, weighted with `w`; `None` if it exceeds f16.
pub(crate) fn encode_searched(x: &[f32; BLOCK_LEN], w: &[f32; BLOCK_LEN]) -> Option<[u8; BLOCK_BYTES]> {
    let (d, codes) = linear_search::search_one::<FourBits, BLOCK_LEN>(x, w)?;
    let q = codes.map(|code| (code + OFFSET as i8) as u8);
    let mut block = [0; BLOCK_BYTES];
    block[..2].copy_from_slice(&d.to_le_bytes());
    set_codes(&q, &mut block);
    Some(block)
}

//! Q5_1: 5-bit codes above a minimum, scale and minimum per 32 elements; 6 bits per element.
//!
//! ```text
//! byte 0  2  4     8                    24
//!      │d │m │ qh  │ qs[0] … qs[15]      │
//!      f16 f16 u32  low nibble of qs[i]: low bits of element i, high nibble: of element i + 16
//!             bit i of qh: the fifth bit of element i
//! value = d · code + m
//! ```

use half::f16;

use crate::affine_search;
use crate::q5_0::{add_fifth_bits, fifth_bits};
use crate::rounding::{cut_codes, extremes, f16_at, inverse_or_zero, pack_nibbles, scale_f16, unpack_nibbles};

/// Elements in a block.
pub const BLOCK_LEN: usize = 32;
/// Bytes of a block.
pub const BLOCK_BYTES: usize = 24;

/// The scale as stored.
#[inline]
pub fn d(block: &[u8; BLOCK_BYTES]) -> f16 {
    f16_at(block, 0)
}

/// The minimum as stored.
#[inline]
pub fn m(block: &[u8; BLOCK_BYTES]) -> f16 {
    f16_at(block, 2)
}

/// The scale: `value = scale · code + min`.
pub fn scale(block: &[u8; BLOCK_BYTES]) -> f32 {
    d(block).to_f32()
}

/// The minimum: `value = scale · code + min`.
pub fn min(block: &[u8; BLOCK_BYTES]) -> f32 {
    m(block).to_f32()
}

/// The codes, 0 to 31, in element order.
#[inline]
pub fn codes(block: &[u8; BLOCK_BYTES], out: &mut [u8; BLOCK_LEN]) {
    let (head, packed) = block.split_last_chunk::<16>().expect("a block ends with 16 bytes of codes");
    unpack_nibbles(packed, out);
    add_fifth_bits(&head[4..], out);
}

/// Writes the codes, in element order, and leaves the scales.
pub(crate) fn set_codes(codes: &[u8; BLOCK_LEN], block: &mut [u8; BLOCK_BYTES]) {
    block[4..8].copy_from_slice(&fifth_bits(codes));
    block[8..].copy_from_slice(&pack_nibbles(codes));
}

/// The values of a block.
pub fn decode_block(block: &[u8; BLOCK_BYTES], out: &mut [f32; BLOCK_LEN]) {
    let (scale, min) = (scale(block), min(block));
    let mut q = [0; BLOCK_LEN];
    codes(block, &mut q);
    for (value, q) in out.iter_mut().zip(q) {
        *value = scale * f32::from(q) + min;
    }
}

/// Spans the range from smallest to largest element; `None` if scale or minimum exceed f16.
pub(crate) fn encode_block(x: &[f32; BLOCK_LEN]) -> Option<[u8; BLOCK_BYTES]> {
    let (min, max) = extremes(x);
    let d = (max - min) / 31.0;
    let inverse = inverse_or_zero(d);
    let q = cut_codes(&x.map(|x| (x - min) * inverse + 0.5), 31.0, inverse);
    let mut block = [0; BLOCK_BYTES];
    block[..2].copy_from_slice(&scale_f16(d)?.to_le_bytes());
    block[2..4].copy_from_slice(&scale_f16(min)?.to_le_bytes());
    set_codes(&q, &mut block);
    Some(block)
}

/// Searches for the scale and minimum of least squared error, weighted with `w`; `None` if one exceeds f16.
pub(crate) fn encode_searched(x: &[f32; BLOCK_LEN], w: &[f32; BLOCK_LEN]) -> Option<[u8; BLOCK_BYTES]> {
    let (d, m, q) = affine_search::search_one(x, w, 31)?;
    let mut block = [0; BLOCK_BYTES];
    block[..2].copy_from_slice(&d.to_le_bytes());
    block[2..4].copy_from_slice(&m.to_le_bytes());
    set_codes(&q, &mut block);
    Some(block)
}

//! Q5_0: 5-bit codes around 16 with one scale per 32 elements; 5.5 bits per element.
//!
//! ```text
//! byte 0  2     6                    22
//!      │d │ qh  │ qs[0] … qs[15]      │
//!      f16 u32   low nibble of qs[i]: low bits of element i, high nibble: of element i + 16
//!          bit i of qh: the fifth bit of element i
//! value = d · (code − 16)
//! ```

use half::f16;

use crate::linear_search::{self, FiveBits};
use crate::rounding::{cut_codes, f16_at, first_extreme, inverse_or_zero, pack_nibbles, scale_f16, unpack_nibbles};

/// Elements in a block.
pub const BLOCK_LEN: usize = 32;
/// Bytes of a block.
pub const BLOCK_BYTES: usize = 22;
/// What is subtracted from a code.
pub const OFFSET: u8 = 16;

/// The scale as stored.
#[inline]
pub fn d(block: &[u8; BLOCK_BYTES]) -> f16 {
    f16_at(block, 0)
}

/// The scale: `value = scale · (code − 16)`.
pub fn scale(block: &[u8; BLOCK_BYTES]) -> f32 {
    d(block).to_f32()
}

/// The codes, 0 to 31, in element order.
#[inline]
pub fn codes(block: &[u8; BLOCK_BYTES], out: &mut [u8; BLOCK_LEN]) {
    let (head, packed) = block.split_last_chunk::<16>().expect("a block ends with 16 bytes of codes");
    unpack_nibbles(packed, out);
    add_fifth_bits(&head[2..], out);
}

/// Sets bit 4 of code `i` from bit `i` of the four bytes `qh`.
#[inline]
pub(crate) fn add_fifth_bits(qh: &[u8], codes: &mut [u8; 32]) {
    /// Bit `i` in byte `i`.
    const EACH: u64 = 0x8040_2010_0804_0201;
    for (codes, bits) in codes.as_chunks_mut::<8>().0.iter_mut().zip(qh) {
        // Eight codes at once: a byte that is not zero carries into its bit 7, never out of it.
        let spread = (u64::from(*bits) * 0x0101_0101_0101_0101) & EACH;
        let fifth = (spread + 0x7f7f_7f7f_7f7f_7f7f) >> 3 & 0x1010_1010_1010_1010;
        *codes = (u64::from_le_bytes(*codes) | fifth).to_le_bytes();
    }
}

/// The inverse of [`add_fifth_bits`]: bit 4 of 32 codes.
pub(crate) fn fifth_bits(codes: &[u8; 32]) -> [u8; 4] {
    std::array::from_fn(|byte| (0..8).fold(0, |bits, i| bits | (codes[8 * byte + i] >> 4 & 1) << i))
}

/// Writes the codes, in element order, and leaves the scales.
pub(crate) fn set_codes(codes: &[u8; BLOCK_LEN], block: &mut [u8; BLOCK_BYTES]) {
    block[2..6].copy_from_slice(&fifth_bits(codes));
    block[6..].copy_from_slice(&pack_nibbles(codes));
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
    let d = first_extreme(x) / -16.0;
    let inverse = inverse_or_zero(d);
    let q = cut_codes(&x.map(|x| x * inverse + 16.5), 31.0, inverse);
    let mut block = [0; BLOCK_BYTES];
    block[..2].copy_from_slice(&scale_f16(d)?.to_le_bytes());
    set_codes(&q, &mut block);
    Some(block)
}

/// Searches for the scale of least squared error, weighted with `w`; `None` if it exceeds f16.
pub(crate) fn encode_searched(x: &[f32; BLOCK_LEN], w: &[f32; BLOCK_LEN]) -> Option<[u8; BLOCK_BYTES]> {
    let (d, codes) = linear_search::search_one::<FiveBits, BLOCK_LEN>(x, w)?;
    let q = codes.map(|code| (code + OFFSET as i8) as u8);
    let mut block = [0; BLOCK_BYTES];
    block[..2].copy_from_slice(&d.to_le_bytes());
    set_codes(&q, &mut block);
    Some(block)
}

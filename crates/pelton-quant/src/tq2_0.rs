//! TQ2_0: ternary codes of 2 bits, one scale per 256 elements; 2.0625 bits per element.
//!
//! ```text
//! byte 0                64 66
//!      │ qs[0] … qs[63] │d │
//!                        f16
//! code of element 128·h + 32·k + l: bits 2k and 2k+1 of qs[32·h + l]
//! value = d · (code − 1)
//! ```

use half::f16;

use crate::grid::level_format;
use crate::linear_search::{self, Ternary};
use crate::q2_k::{pack_pairs, unpack_pairs};
use crate::rounding::{f16_at, first_extreme, inverse_or_zero, round_codes, scale_f16};

level_format! {
    66 bytes, 256, unit 1.0,
    /// The levels of the codes; the last is no ternary digit, but two bits can say it.
    levels [-1, 0, 1, 2]
}

/// The scale as stored.
#[inline]
pub fn d(block: &[u8; BLOCK_BYTES]) -> f16 {
    f16_at(block, 64)
}

/// No scale but that of the block.
fn scales(_: &[u8; BLOCK_BYTES]) -> [u8; 1] {
    [1]
}

/// The indices into [`LEVELS`], in element order.
pub fn indices(block: &[u8; BLOCK_BYTES], out: &mut [u8; BLOCK_LEN]) {
    unpack_pairs(&block[..64], out);
}

/// Takes the largest magnitude as the scale and rounds, halves away from zero: exact for weights that are ternary. `None`
/// if the scale exceeds f16.
pub(crate) fn encode_block(x: &[f32; BLOCK_LEN]) -> Option<[u8; BLOCK_BYTES]> {
    let (d, codes) = round(x)?;
    Some(pack(d, &codes))
}

/// Searches for the scale of least squared error, weighted with `w`; `None` if it exceeds f16.
pub(crate) fn encode_searched(x: &[f32; BLOCK_LEN], w: &[f32; BLOCK_LEN]) -> Option<[u8; BLOCK_BYTES]> {
    let (d, codes) = linear_search::search_one::<Ternary, BLOCK_LEN>(x, w)?;
    Some(pack(d, &codes))
}

/// The largest magnitude, and each element's share of it as −1, 0 or 1.
pub(crate) fn round(x: &[f32; BLOCK_LEN]) -> Option<(f16, [i8; BLOCK_LEN])> {
    let d = first_extreme(x).abs();
    let inverse = inverse_or_zero(d);
    Some((scale_f16(d)?, round_codes(&x.map(|x| x * inverse), inverse)))
}

fn pack(d: f16, codes: &[i8; BLOCK_LEN]) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    pack_pairs(&codes.map(|code| (code + 1) as u8), &mut block[..64]);
    block[64..].copy_from_slice(&d.to_le_bytes());
    block
}

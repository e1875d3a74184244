//! IQ4_NL: 4-bit indices into 16 uneven levels with one scale per 32 elements; 4.5 bits per element.
//!
//! ```text
//! byte 0  2                    18
//!      │d │ qs[0] … qs[15]      │
//!      f16   low nibble of qs[i]: index of element i, high nibble: of element i + 16
//! value = d · LEVELS[index]
//! ```

use half::f16;

use crate::linear_search::{self, Uneven, uneven_index};
use crate::rounding::{f16_at, pack_nibbles, unpack_nibbles};

/// Elements in a block.
pub const BLOCK_LEN: usize = 32;
/// Bytes of a block.
pub const BLOCK_BYTES: usize = 18;
/// The levels, denser around 0; from the ggml format.
pub const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The scale as stored.
#[inline]
pub fn d(block: &[u8; BLOCK_BYTES]) -> f16 {
    f16_at(block, 0)
}

/// The scale: `value = scale · code`.
pub fn scale(block: &[u8; BLOCK_BYTES]) -> f32 {
    d(block).to_f32()
}

/// The codes (values of [`LEVELS`]) in element order.
#[inline]
pub fn codes(block: &[u8; BLOCK_BYTES], out: &mut [i8; BLOCK_LEN]) {
    let (_, packed) = block.split_last_chunk::<16>().expect("a block ends with 16 bytes of indices");
    look_up(packed, &LEVELS, out);
}

/// The indices into [`LEVELS`], in element order.
#[inline]
pub fn indices(block: &[u8; BLOCK_BYTES], out: &mut [u8; BLOCK_LEN]) {
    let (_, packed) = block.split_last_chunk::<16>().expect("a block ends with 16 bytes of indices");
    unpack_nibbles(packed, out);
}

/// Unpacks 32 nibbles and looks each up in `levels`.
pub(crate) fn look_up(packed: &[u8; 16], levels: &[i8; 16], out: &mut [i8; 32]) {
    let mut indices = [0; 32];
    unpack_nibbles(packed, &mut indices);
    for (code, index) in out.iter_mut().zip(indices) {
        *code = levels[usize::from(index & 15)];
    }
}

/// The values of a block.
pub fn decode_block(block: &[u8; BLOCK_BYTES], out: &mut [f32; BLOCK_LEN]) {
    let scale = scale(block);
    let mut q = [0; BLOCK_LEN];
    codes(block, &mut q);
    for (value, q) in out.iter_mut().zip(q) {
        *value = scale * f32::from(q);
    }
}

/// Searches for the scale of least squared error, weighted with `w`; `None` if it exceeds f16.
pub(crate) fn encode_searched(x: &[f32; BLOCK_LEN], w: &[f32; BLOCK_LEN]) -> Option<[u8; BLOCK_BYTES]> {
    let (d, codes) = linear_search::search_one::<Uneven, BLOCK_LEN>(x, w)?;
    let mut block = [0; BLOCK_BYTES];
    block[..2].copy_from_slice(&d.to_le_bytes());
    block[2..].copy_from_slice(&pack_nibbles(&codes.map(uneven_index)));
    Some(block)
}

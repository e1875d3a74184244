//! IQ3_XXS: points of a grid of 256 in four dimensions, 4-bit scales per 32 elements; 3.0625 bits per element.
//!
//! ```text
//! byte 0  2                66                    98
//!      │d │ qs[0] … qs[63] │ group 0 … 7: a u32  │
//!      f16
//! elements 4·k …: grid index qs[k]
//! group g, elements 32·g …: four times seven signs (bit 7·k + i: element 8·k + i), above them the scale s
//! value = d · (2s + 1) · magnitude / 4, magnitudes 4, 12, 20, 28, 36, 44, 52, 62 (twice those of LEVELS); the eighth sign
//! makes the minuses even
//! ```

use half::f16;

use crate::grid_search::{self, Iq3Xxs};
use crate::rounding::f16_at;
use crate::{grid, grids};

/// Elements in a block.
pub const BLOCK_LEN: usize = 256;
/// Bytes of a block.
pub const BLOCK_BYTES: usize = 98;
/// Elements that share a scale.
pub const SUB_LEN: usize = 32;
/// `value = (d · UNIT) · scale · level`.
pub const UNIT: f32 = 0.5;
/// Half the magnitude in bits 0 to 2 of an index, sign in bit 3.
pub const LEVELS: [i8; 16] = [2, 6, 10, 14, 18, 22, 26, 31, -2, -6, -10, -14, -18, -22, -26, -31];

/// The scale of the scales, as stored.
#[inline]
pub fn d(block: &[u8; BLOCK_BYTES]) -> f16 {
    f16_at(block, 0)
}

/// The scales, odd, in element order.
#[inline]
pub fn scales(block: &[u8; BLOCK_BYTES]) -> [u8; 8] {
    std::array::from_fn(|g| 2 * (block[69 + 4 * g] >> 4) + 1)
}

/// The indices into [`LEVELS`], in element order.
pub fn indices(block: &[u8; BLOCK_BYTES], out: &mut [u8; BLOCK_LEN]) {
    let (points, groups) = (block[2..66].as_chunks::<8>().0, block[66..].as_chunks::<4>().0);
    for ((points, group), out) in points.iter().zip(groups).zip(out.as_chunks_mut::<SUB_LEN>().0) {
        let signs = u32::from_le_bytes(*group);
        for (k, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let pair = [points[2 * k], points[2 * k + 1]].map(|q| grids::IQ3_XXS[usize::from(q)]);
            grid::spread_4_4(pair, grid::even_signs(signs >> (7 * k)), out);
        }
    }
}

/// The codes (values of [`LEVELS`]) in element order.
pub fn codes(block: &[u8; BLOCK_BYTES], out: &mut [i8; BLOCK_LEN]) {
    let mut index = [0; BLOCK_LEN];
    indices(block, &mut index);
    grid::look_up(&index, &LEVELS, out);
}

/// The values of a block.
pub fn decode_block(block: &[u8; BLOCK_BYTES], out: &mut [f32; BLOCK_LEN]) {
    let mut q = [0; BLOCK_LEN];
    codes(block, &mut q);
    grid::decode(d(block), UNIT, &scales(block), &q, out);
}

/// Searches for points and scales of least squared error, weighted with `w`; `None` if the scale exceeds f16.
pub(crate) fn encode_searched(x: &[f32; BLOCK_LEN], w: &[f32; BLOCK_LEN]) -> Option<[u8; BLOCK_BYTES]> {
    let (signs, magnitudes) = grid_search::split_signs(x, w, true);
    let found = grid_search::search::<Iq3Xxs>(&magnitudes, w)?;
    let mut block = [0; BLOCK_BYTES];
    block[..2].copy_from_slice(&found.d.to_le_bytes());
    for (byte, point) in block[2..66].iter_mut().zip(found.points) {
        *byte = point as u8;
    }
    for (g, group) in block[66..].as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let scale = u32::from(found.scales[g]) << 28;
        let packed = (0..4).fold(scale, |packed, k| packed | u32::from(signs[4 * g + k] & 127) << (7 * k));
        *group = packed.to_le_bytes();
    }
    Some(block)
}

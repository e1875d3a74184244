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

use crate::grid::{self, grid_format};
use crate::grid_search::{GridBlock, Iq3Xxs};
use crate::grids;
use crate::rounding::f16_at;

grid_format! {
    Iq3Xxs: 98 bytes,
    /// Half the magnitude in bits 0 to 2 of an index, sign in bit 3.
    levels [2, 6, 10, 14, 18, 22, 26, 31, -2, -6, -10, -14, -18, -22, -26, -31]
}

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

/// The bytes of what the search found.
fn pack(found: &GridBlock) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    block[..2].copy_from_slice(&found.d.to_le_bytes());
    for (byte, point) in block[2..66].iter_mut().zip(found.points) {
        *byte = point as u8;
    }
    for (g, group) in block[66..].as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let scale = u32::from(found.scales[g]) << 28;
        let packed = (0..4).fold(scale, |packed, k| packed | u32::from(found.signs[4 * g + k] & 127) << (7 * k));
        *group = packed.to_le_bytes();
    }
    block
}

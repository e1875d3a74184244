//! IQ2_XXS: points of a grid of 256 in eight dimensions, 4-bit scales per 32 elements; 2.0625 bits per element.
//!
//! ```text
//! byte 0  2                                   66
//!      │d │ group 0: 8 bytes … group 7       │
//!      f16
//! group g, elements 32·g …: u32 of four grid indices, one byte for eight elements;
//!                           u32 of four times seven signs (bit 7·k + i: element 8·k + i), above them the scale s
//! value = d · (2s + 1) · magnitude / 8, magnitudes 8, 25, 43; the eighth sign makes the minuses even
//! ```

use half::f16;

use crate::grid::{self, LEVELS_2, grid_format};
use crate::grid_search::{GridBlock, Iq2Xxs};
use crate::grids;
use crate::rounding::f16_at;

grid_format! {
    Iq2Xxs: 66 bytes,
    /// Magnitude in bits 0 and 1 of an index, sign in bit 2; the zeros never occur.
    levels LEVELS_2
}

/// The scale of the scales, as stored.
#[inline]
pub fn d(block: &[u8; BLOCK_BYTES]) -> f16 {
    f16_at(block, 0)
}

/// The scales, odd, in element order.
#[inline]
pub fn scales(block: &[u8; BLOCK_BYTES]) -> [u8; 8] {
    std::array::from_fn(|g| 2 * (block[9 + 8 * g] >> 4) + 1)
}

/// The indices into [`LEVELS`], in element order.
pub fn indices(block: &[u8; BLOCK_BYTES], out: &mut [u8; BLOCK_LEN]) {
    for (group, out) in block[2..].as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<SUB_LEN>().0) {
        let signs = u32::from_le_bytes([group[4], group[5], group[6], group[7]]);
        for (k, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            grid::spread_8(grids::IQ2_XXS[usize::from(group[k])], grid::even_signs(signs >> (7 * k)), out);
        }
    }
}

/// The bytes of what the search found.
fn pack(found: &GridBlock) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    block[..2].copy_from_slice(&found.d.to_le_bytes());
    for (g, group) in block[2..].as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let packed = (0..4).fold(u32::from(found.scales[g]) << 28, |packed, k| {
            group[k] = found.points[4 * g + k] as u8;
            packed | u32::from(found.signs[4 * g + k] & 127) << (7 * k)
        });
        group[4..].copy_from_slice(&packed.to_le_bytes());
    }
    block
}

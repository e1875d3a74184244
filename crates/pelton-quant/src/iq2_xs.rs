//! IQ2_XS: points of a grid of 512 in eight dimensions, 4-bit scales per 16 elements; 2.3125 bits per element.
//!
//! ```text
//! byte 0  2                    66                74
//!      │d │ qs[0] … qs[31]     │ scales[0] … [7] │
//!      f16  u16                  two nibbles, low first: s of 16 elements
//! qs[k], elements 8·k …: bits 0–8 grid index, bits 9–15 seven signs
//! value = d · (2s + 1) · magnitude / 8, magnitudes 8, 25, 43; the eighth sign makes the minuses even
//! ```

use half::f16;

use crate::grid::{self, LEVELS_2, grid_format};
use crate::grid_search::{GridBlock, Iq2Xs};
use crate::grids;
use crate::rounding::f16_at;

grid_format! {
    Iq2Xs: 74 bytes,
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
pub fn scales(block: &[u8; BLOCK_BYTES]) -> [u8; 16] {
    grid::odd_scales(&block[66..])
}

/// The indices into [`LEVELS`], in element order.
pub fn indices(block: &[u8; BLOCK_BYTES], out: &mut [u8; BLOCK_LEN]) {
    for (qs, out) in block[2..66].as_chunks::<2>().0.iter().zip(out.as_chunks_mut::<8>().0) {
        let qs = u16::from_le_bytes(*qs);
        grid::spread_8(grids::IQ2_XS[usize::from(qs & 511)], grid::even_signs(u32::from(qs >> 9)), out);
    }
}

/// The bytes of what the search found.
fn pack(found: &GridBlock) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    block[..2].copy_from_slice(&found.d.to_le_bytes());
    for (k, qs) in block[2..66].as_chunks_mut::<2>().0.iter_mut().enumerate() {
        *qs = (found.points[k] | u16::from(found.signs[k] & 127) << 9).to_le_bytes();
    }
    grid::pack_nibbles(&found.scales, &mut block[66..]);
    block
}

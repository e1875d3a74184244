//! IQ3_S: points of a grid of 512 in four dimensions, 4-bit scales per 32 elements; 3.4375 bits per element.
//!
//! ```text
//! byte 0  2                66             74                    106              110
//!      │d │ qs[0] … qs[63] │ qh[0] … [7]  │ signs[0] … signs[31] │ scales[0] … [3] │
//!      f16                                                         two nibbles, low first: s of 32 elements
//! elements 4·k …: grid index: qs[k] and above it bit k mod 8 of qh[k div 8]; sign of element 8·j + i: bit i of signs[j]
//! value = d · (2s + 1) · magnitude, magnitudes 1, 3, … 15
//! ```

use half::f16;

use crate::grid::{self, grid_format};
use crate::grid_search::{GridBlock, Iq3S};
use crate::grids;
use crate::rounding::f16_at;

grid_format! {
    Iq3S: 110 bytes,
    /// Magnitude in bits 0 to 2 of an index, sign in bit 3.
    levels [1, 3, 5, 7, 9, 11, 13, 15, -1, -3, -5, -7, -9, -11, -13, -15]
}

/// The scale of the scales, as stored.
#[inline]
pub fn d(block: &[u8; BLOCK_BYTES]) -> f16 {
    f16_at(block, 0)
}

/// The scales, odd, in element order.
#[inline]
pub fn scales(block: &[u8; BLOCK_BYTES]) -> [u8; 8] {
    grid::odd_scales(&block[106..])
}

/// The indices into [`LEVELS`], in element order.
pub fn indices(block: &[u8; BLOCK_BYTES], out: &mut [u8; BLOCK_LEN]) {
    for (j, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let pair = [2 * j, 2 * j + 1].map(|k| {
            let high = block[66 + k / 8] >> (k % 8) & 1;
            grids::IQ3_S[usize::from(block[2 + k]) | usize::from(high) << 8]
        });
        grid::spread_4_4(pair, block[74 + j], out);
    }
}

/// The bytes of what the search found.
fn pack(found: &GridBlock) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    block[..2].copy_from_slice(&found.d.to_le_bytes());
    for (k, point) in found.points.iter().enumerate() {
        block[2 + k] = *point as u8;
        block[66 + k / 8] |= ((point >> 8) as u8) << (k % 8);
    }
    block[74..106].copy_from_slice(&found.signs);
    grid::pack_nibbles(&found.scales[..8], &mut block[106..]);
    block
}

//! IQ2_S: points of a grid of 1024 in eight dimensions, 4-bit scales per 16 elements; 2.5625 bits per element.
//!
//! ```text
//! byte 0  2                34                    66              74                82
//!      │d │ qs[0] … qs[31] │ signs[0] … signs[31] │ qh[0] … qh[7] │ scales[0] … [7] │
//!      f16                                                          two nibbles, low first: s of 16 elements
//! elements 8·k …: grid index: qs[k] and above it bits 2·(k mod 4) and up of qh[k div 4]; sign of element i: bit i of signs[k]
//! value = d · (2s + 1) · magnitude / 8, magnitudes 8, 25, 43
//! ```

use half::f16;

use crate::grid::{self, LEVELS_2, grid_format};
use crate::grid_search::{GridBlock, Iq2S};
use crate::grids;
use crate::rounding::f16_at;

grid_format! {
    Iq2S: 82 bytes,
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
    grid::odd_scales(&block[74..])
}

/// The indices into [`LEVELS`], in element order.
pub fn indices(block: &[u8; BLOCK_BYTES], out: &mut [u8; BLOCK_LEN]) {
    for (k, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = block[66 + k / 4] >> (2 * (k % 4)) & 3;
        let point = usize::from(block[2 + k]) | usize::from(high) << 8;
        grid::spread_8(grids::IQ2_S[point], block[34 + k], out);
    }
}

/// The bytes of what the search found.
fn pack(found: &GridBlock) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    block[..2].copy_from_slice(&found.d.to_le_bytes());
    for k in 0..32 {
        block[2 + k] = found.points[k] as u8;
        block[34 + k] = found.signs[k];
        block[66 + k / 4] |= (found.points[k] >> 8 << (2 * (k % 4))) as u8;
    }
    grid::pack_nibbles(&found.scales, &mut block[74..]);
    block
}

//! IQ1_M: the grid of IQ1_S, 3-bit scales per 16 elements, a shift per 8; 1.75 bits per element.
//!
//! ```text
//! byte 0                32               48                56
//!      │ qs[0] … qs[31] │ qh[0] … qh[15] │ scales[0] … [3] │
//!                                          u16
//! elements 8·k …: grid index: qs[k] and above it bits 0–2 of nibble k of qh (low first); bit 3: the shift is −1/8, not 1/8
//! scales[j]: bits 3·i … : scale s of elements 64·j + 16·i …; bits 12–15: bits 4·j … of the f16 d
//! value = d · (2s + 1) · (digit + shift), digits −1, 0, 1
//! ```

use half::f16;

use crate::grid::{self, LEVELS_1, grid_format};
use crate::grid_search::{GridBlock, Iq1M};
use crate::grids;

grid_format! {
    Iq1M: 56 bytes,
    /// Ternary digit plus 1 in bits 0 and 1 of an index, shift to minus in bit 2; the zeros never occur.
    levels LEVELS_1
}

/// The scale of the scales, gathered from its four nibbles.
#[inline]
pub fn d(block: &[u8; BLOCK_BYTES]) -> f16 {
    let nibble = |j: usize| u16::from(block[49 + 2 * j] >> 4) << (4 * j);
    f16::from_bits(nibble(0) | nibble(1) | nibble(2) | nibble(3))
}

/// The scales, odd, in element order.
#[inline]
pub fn scales(block: &[u8; BLOCK_BYTES]) -> [u8; 16] {
    std::array::from_fn(|s| {
        let packed = u16::from_le_bytes([block[48 + 2 * (s / 4)], block[49 + 2 * (s / 4)]]);
        2 * (packed >> (3 * (s % 4)) & 7) as u8 + 1
    })
}

/// The indices into [`LEVELS`], in element order.
pub fn indices(block: &[u8; BLOCK_BYTES], out: &mut [u8; BLOCK_LEN]) {
    for (k, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let nibble = block[32 + k / 2] >> (4 * (k % 2)) & 15;
        let point = usize::from(block[k]) | usize::from(nibble & 7) << 8;
        grid::spread_8(grids::IQ1_S[point], if nibble & 8 == 8 { 0xFF } else { 0 }, out);
    }
}

/// The bytes of what the search found.
fn pack(found: &GridBlock) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    for k in 0..32 {
        block[k] = found.points[k] as u8;
        block[32 + k / 2] |= ((found.points[k] >> 8) as u8 | found.shifts[k] << 3) << (4 * (k % 2));
    }
    for (j, packed) in block[48..].as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let nibble = (found.d.to_bits() >> (4 * j) & 15) << 12;
        let scales = (0..4).fold(nibble, |packed, i| packed | u16::from(found.scales[4 * j + i]) << (3 * i));
        *packed = scales.to_le_bytes();
    }
    block
}

//! IQ1_S: points of a ternary grid of 2048 in eight dimensions, 3-bit scales per 32 elements; 1.5625 bits per element.
//!
//! ```text
//! byte 0  2                34               50
//!      │d │ qs[0] … qs[31] │ qh[0] … qh[7]  │
//!      f16                   u16
//! elements 8·k …: grid index: qs[k] and above it bits 3·(k mod 4) and up of qh[k div 4]
//! group g, elements 32·g …: bits 12–14 of qh[g]: the scale s; bit 15: the shift is −1/8, not 1/8
//! value = d · (2s + 1) · (digit + shift), digits −1, 0, 1
//! ```

use half::f16;

use crate::grid::{self, LEVELS_1, grid_format};
use crate::grid_search::{GridBlock, Iq1S};
use crate::grids;
use crate::rounding::f16_at;

grid_format! {
    Iq1S: 50 bytes,
    /// Ternary digit plus 1 in bits 0 and 1 of an index, shift to minus in bit 2; the zeros never occur.
    levels LEVELS_1
}

/// The scale of the scales, as stored.
#[inline]
pub fn d(block: &[u8; BLOCK_BYTES]) -> f16 {
    f16_at(block, 0)
}

/// The scales, odd, in element order.
#[inline]
pub fn scales(block: &[u8; BLOCK_BYTES]) -> [u8; 8] {
    std::array::from_fn(|g| 2 * (block[35 + 2 * g] >> 4 & 7) + 1)
}

/// The indices into [`LEVELS`], in element order.
pub fn indices(block: &[u8; BLOCK_BYTES], out: &mut [u8; BLOCK_LEN]) {
    for (g, out) in out.as_chunks_mut::<SUB_LEN>().0.iter_mut().enumerate() {
        let high = u16::from_le_bytes([block[34 + 2 * g], block[35 + 2 * g]]);
        let shift = if high >> 15 == 1 { 0xFF } else { 0 };
        for (k, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let point = usize::from(block[2 + 4 * g + k]) | usize::from(high >> (3 * k) & 7) << 8;
            grid::spread_8(grids::IQ1_S[point], shift, out);
        }
    }
}

/// The bytes of what the search found.
fn pack(found: &GridBlock) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    block[..2].copy_from_slice(&found.d.to_le_bytes());
    for (g, high) in block[34..].as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let head = u16::from(found.scales[g]) << 12 | u16::from(found.shifts[4 * g]) << 15;
        let packed = (0..4).fold(head, |packed, k| packed | found.points[4 * g + k] >> 8 << (3 * k));
        *high = packed.to_le_bytes();
    }
    for (byte, point) in block[2..34].iter_mut().zip(found.points) {
        *byte = point as u8;
    }
    block
}

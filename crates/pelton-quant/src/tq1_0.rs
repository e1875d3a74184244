//! TQ1_0: ternary codes, five to a byte, one scale per 256 elements; 1.6875 bits per element.
//!
//! ```text
//! byte 0                32                  48              52 54
//!      │ qs[0] … qs[31] │ qs[32] … qs[47]   │ qh[0] … qh[3] │d │
//!                                                           f16
//! A byte holds digits t0 t1 … of base 3 as the fraction 0.t0t1… of 256, rounded up: digit n is the integer part of
//! 3 · frac(byte · 3^n / 256).
//! element 32·n + l: digit n of qs[l];  160 + 16·n + l: digit n of qs[32 + l];  240 + 4·n + l: digit n of qh[l]
//! value = d · (digit − 1)
//! ```

use half::f16;

use crate::grid::level_format;
use crate::linear_search::{self, Ternary};
use crate::rounding::f16_at;
use crate::tq2_0;

level_format! {
    54 bytes, 256, unit 1.0,
    /// The levels of the digits; index 3 never occurs.
    levels [-1, 0, 1, 2]
}

/// The scale as stored.
#[inline]
pub fn d(block: &[u8; BLOCK_BYTES]) -> f16 {
    f16_at(block, 52)
}

/// No scale but that of the block.
fn scales(_: &[u8; BLOCK_BYTES]) -> [u8; 1] {
    [1]
}

/// The indices into [`LEVELS`], in element order.
pub fn indices(block: &[u8; BLOCK_BYTES], out: &mut [u8; BLOCK_LEN]) {
    let mut digits = |packed: &[u8], n_digits: usize, first: usize| {
        for (l, &byte) in packed.iter().enumerate() {
            let mut fraction = byte;
            for n in 0..n_digits {
                out[first + packed.len() * n + l] = ((u16::from(fraction) * 3) >> 8) as u8;
                fraction = fraction.wrapping_mul(3);
            }
        }
    };
    digits(&block[..32], 5, 0);
    digits(&block[32..48], 5, 160);
    digits(&block[48..52], 4, 240);
}

/// Takes the largest magnitude as the scale and rounds, halves away from zero: exact for weights that are ternary. `None`
/// if the scale exceeds f16.
pub(crate) fn encode_block(x: &[f32; BLOCK_LEN]) -> Option<[u8; BLOCK_BYTES]> {
    let (d, codes) = tq2_0::round(x)?;
    Some(pack(d, &codes))
}

/// Searches for the scale of least squared error, weighted with `w`; `None` if it exceeds f16.
pub(crate) fn encode_searched(x: &[f32; BLOCK_LEN], w: &[f32; BLOCK_LEN]) -> Option<[u8; BLOCK_BYTES]> {
    let (d, codes) = linear_search::search_one::<Ternary, BLOCK_LEN>(x, w)?;
    Some(pack(d, &codes))
}

fn pack(d: f16, codes: &[i8; BLOCK_LEN]) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    let mut digits = |bytes: std::ops::Range<usize>, n_digits: usize, first: usize| {
        let stride = bytes.len();
        for (l, byte) in block[bytes].iter_mut().enumerate() {
            let digit = |n: usize| if n < n_digits { (codes[first + stride * n + l] + 1) as u16 } else { 0 };
            let number = (0..5).fold(0, |number, n| 3 * number + digit(n));
            // The fraction of 256, rounded up, so that the digits come out whole.
            *byte = (number * 256).div_ceil(243) as u8;
        }
    };
    digits(0..32, 5, 0);
    digits(32..48, 5, 160);
    digits(48..52, 4, 240);
    block[52..].copy_from_slice(&d.to_le_bytes());
    block
}

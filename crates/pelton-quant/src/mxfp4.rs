//! MXFP4: 4-bit floats (E2M1) with a power-of-two scale (E8M0) per 32 elements; 4.25 bits per element.
//!
//! ```text
//! byte 0 1                    17
//!      │e│ qs[0] … qs[15]      │
//!      u8   low nibble of qs[i]: E2M1 float of element i, high nibble: of element i + 16
//! value = scale(e) · LEVELS[nibble],  scale(e) = 2^(e − 128)
//! ```
//!
//! `LEVELS` holds twice the E2M1 values so that they are integers; the scale is halved to make up for it. Source: OCP
//! Microscaling Formats (MX) specification 1.0. As in ggml, `e` = 255 is 2¹²⁷ and not NaN.

use crate::iq4_nl::look_up;
use crate::rounding::{first_extreme, pack_nibbles, unpack_nibbles};

/// Elements in a block.
pub const BLOCK_LEN: usize = 32;
/// Bytes of a block.
pub const BLOCK_BYTES: usize = 17;
/// Twice the value of each E2M1 float; the sign is bit 3.
pub const LEVELS: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The exponent as stored (E8M0, biased by 127).
#[inline]
pub fn exponent(block: &[u8; BLOCK_BYTES]) -> u8 {
    block[0]
}

/// The scale: `value = scale · code`.
pub fn scale(block: &[u8; BLOCK_BYTES]) -> f32 {
    half_power(exponent(block))
}

/// 2^(e − 128), the two smallest as subnormal numbers.
fn half_power(e: u8) -> f32 {
    f32::from_bits(match e {
        0 | 1 => 0x0020_0000 << e,
        _ => u32::from(e - 1) << 23,
    })
}

/// The indices into [`LEVELS`], in element order.
#[inline]
pub fn indices(block: &[u8; BLOCK_BYTES], out: &mut [u8; BLOCK_LEN]) {
    let (_, packed) = block.split_last_chunk::<16>().expect("a block ends with 16 bytes of floats");
    unpack_nibbles(packed, out);
}

/// The codes (values of [`LEVELS`]) in element order.
#[inline]
pub fn codes(block: &[u8; BLOCK_BYTES], out: &mut [i8; BLOCK_LEN]) {
    let (_, packed) = block.split_last_chunk::<16>().expect("a block ends with 16 bytes of floats");
    look_up(packed, &LEVELS, out);
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

/// Takes the exponent of the largest magnitude, then the nearest level for each element (the first of two).
///
/// Never `None`: every finite f32 has a scale.
pub(crate) fn encode_block(x: &[f32; BLOCK_LEN]) -> Option<[u8; BLOCK_BYTES]> {
    Some(with_exponent(x, shared_exponent(first_extreme(x).abs())))
}

/// The exponent of least squared error, weighted with `w`, of the usual one and its neighbours. Never `None`.
pub(crate) fn encode_searched(x: &[f32; BLOCK_LEN], w: &[f32; BLOCK_LEN]) -> Option<[u8; BLOCK_BYTES]> {
    let usual = shared_exponent(first_extreme(x).abs());
    let error = |block: &[u8; BLOCK_BYTES]| {
        let mut values = [0.0; BLOCK_LEN];
        decode_block(block, &mut values);
        let errors = values.iter().zip(x).zip(w).map(|((value, x), w)| {
            let error = f64::from(*value) - f64::from(*x);
            f64::from(*w) * error * error
        });
        errors.sum::<f64>()
    };
    let candidates = [usual, usual.saturating_add(1), usual.saturating_sub(1)].map(|e| with_exponent(x, e));
    candidates.into_iter().min_by(|a, b| error(a).total_cmp(&error(b)))
}

fn with_exponent(x: &[f32; BLOCK_LEN], e: u8) -> [u8; BLOCK_BYTES] {
    // The nearest level changes halfway, where the smaller one is taken; a zero has no sign.
    let scale = half_power(e);
    let halfway = [0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0].map(|level| scale * level);
    let q = x.map(|x| {
        let magnitude = halfway.iter().fold(0, |index, &halfway| index + u8::from(x.abs() > halfway));
        if x < 0.0 && magnitude > 0 { magnitude | 8 } else { magnitude }
    });
    let mut block = [0; BLOCK_BYTES];
    block[0] = e;
    block[1..].copy_from_slice(&pack_nibbles(&q));
    block
}

/// floor(log2(largest)) − 2, biased by 127; 0 for a block of zeros.
///
/// The logarithm is rounded to f32 before the floor, and an exponent below 0 wraps (all codes of such a block, whose
/// elements are below 2⁻¹²⁵, become 0): both as the reference encoder has it.
fn shared_exponent(largest: f32) -> u8 {
    if largest == 0.0 {
        return 0;
    }
    let log = f64::from(largest).log2() as f32;
    (log.floor() - 2.0 + 127.0) as i32 as u8
}

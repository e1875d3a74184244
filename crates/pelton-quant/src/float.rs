//! F32, F16 and BF16: plain little-endian numbers, no blocks.
//!
//! Decoding is exact. Encoding rounds to nearest, ties to even; infinities and NaN stay what they are (a NaN may lose
//! payload bits), and an f16 overflows to infinity.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Elements converted at a time: lets `half` use the machine's conversion instructions.
const RUN: usize = 64;

/// Decodes 4 bytes per element; `bytes` and `out` have matching lengths.
pub(crate) fn decode_f32(bytes: &[u8], out: &mut [f32]) {
    for (bytes, value) in bytes.as_chunks::<4>().0.iter().zip(out) {
        *value = f32::from_le_bytes(*bytes);
    }
}

/// Decodes 2 bytes per element; `bytes` and `out` have matching lengths.
pub(crate) fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    let mut run = [f16::ZERO; RUN];
    for (bytes, values) in bytes.chunks(2 * RUN).zip(out.chunks_mut(RUN)) {
        let run = &mut run[..values.len()];
        for (half, bytes) in run.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *half = f16::from_le_bytes(*bytes);
        }
        run.convert_to_f32_slice(values);
    }
}

/// Decodes 2 bytes per element; `bytes` and `out` have matching lengths.
pub(crate) fn decode_bf16(bytes: &[u8], out: &mut [f32]) {
    for (bytes, value) in bytes.as_chunks::<2>().0.iter().zip(out) {
        *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
    }
}

/// Encodes 4 bytes per element; `src` and `out` have matching lengths.
pub(crate) fn encode_f32(src: &[f32], out: &mut [u8]) {
    for (value, bytes) in src.iter().zip(out.as_chunks_mut::<4>().0) {
        *bytes = value.to_le_bytes();
    }
}

/// Encodes 2 bytes per element; `src` and `out` have matching lengths.
pub(crate) fn encode_f16(src: &[f32], out: &mut [u8]) {
    let mut run = [f16::ZERO; RUN];
    for (values, bytes) in src.chunks(RUN).zip(out.chunks_mut(2 * RUN)) {
        let run = &mut run[..values.len()];
        run.convert_from_f32_slice(values);
        for (half, bytes) in run.iter().zip(bytes.as_chunks_mut::<2>().0) {
            *bytes = half.to_le_bytes();
        }
    }
}

/// Encodes 2 bytes per element; `src` and `out` have matching lengths.
pub(crate) fn encode_bf16(src: &[f32], out: &mut [u8]) {
    for (value, bytes) in src.iter().zip(out.as_chunks_mut::<2>().0) {
        *bytes = bf16::from_f32(*value).to_le_bytes();
    }
}

//! Arrays of numbers that scales are read from.
//!
//! Invariant: an index below [`Numbers::len`] has a number.

use half::{bf16, f16};

use crate::Bytes;

/// Floats, or what becomes floats.
pub(super) enum Numbers {
    F32(Bytes),
    F16(Bytes),
    Bf16(Bytes),
    /// Those of another array, times a factor.
    Times(Box<Numbers>, f32),
    /// `table[code] * scales[i / block] + offset` (bitsandbytes' double quantization).
    Nested {
        codes: Bytes,
        table: Box<[f32; 256]>,
        scales: Box<Numbers>,
        block: usize,
        offset: f32,
    },
}

impl Numbers {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        match self {
            Numbers::F32(bytes) => bytes.len() / 4,
            Numbers::F16(bytes) | Numbers::Bf16(bytes) => bytes.len() / 2,
            Numbers::Times(numbers, _) => numbers.len(),
            Numbers::Nested { codes, .. } => codes.len(),
        }
    }

    /// Number `i`.
    pub(super) fn get(&self, i: usize) -> f32 {
        match self {
            Numbers::F32(bytes) => f32::from_le_bytes(bytes.as_chunks().0[i]),
            Numbers::F16(bytes) => f16::from_le_bytes(bytes.as_chunks().0[i]).to_f32(),
            Numbers::Bf16(bytes) => bf16::from_le_bytes(bytes.as_chunks().0[i]).to_f32(),
            Numbers::Times(numbers, factor) => numbers.get(i) * factor,
            Numbers::Nested { codes, table, scales, block, offset } => {
                table[usize::from(codes[i])] * scales.get(i / block) + offset
            }
        }
    }
}

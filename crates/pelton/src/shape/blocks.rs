//! Random blocks of every storage type, valid and plausible: codes are uniform, scales are such that weights have a
//! standard deviation of some 0.02 about zero, as trained ones have.
//!
//! Invariant: every block decodes to finite values.

use std::num::NonZeroUsize;

use pelton_quant::{DType, f16};

/// Bytes that a thread fills at a time.
const CHUNK: usize = 1 << 20;

/// Where a block's f16 scales lie, and what they are.
fn scales(dtype: DType) -> &'static [(usize, f32)] {
    match dtype {
        DType::Q4_0 => &[(0, 0.0043)],
        DType::Q4_1 => &[(0, 0.0043), (2, -0.032)],
        DType::Q5_0 => &[(0, 0.0022)],
        DType::Q5_1 => &[(0, 0.0022), (2, -0.034)],
        DType::Q8_0 => &[(0, 0.00027)],
        DType::Q2_K => &[(80, 0.002), (82, 0.003)],
        DType::Q3_K => &[(108, 0.00047)],
        DType::Q4_K => &[(0, 0.00008), (2, 0.0006)],
        DType::Q5_K => &[(0, 0.00004), (2, 0.0006)],
        DType::Q6_K => &[(208, 0.000015)],
        DType::IQ4_NL => &[(0, 0.0003)],
        DType::IQ4_XS => &[(0, 0.000015)],
        DType::IQ3_XXS | DType::IQ3_S => &[(0, 0.00014)],
        DType::IQ2_XXS | DType::IQ2_XS | DType::IQ2_S => &[(0, 0.00036)],
        DType::IQ1_S => &[(0, 0.0028)],
        DType::TQ1_0 => &[(52, 0.024)],
        DType::TQ2_0 => &[(64, 0.028)],
        _ => &[],
    }
}

/// `n_blocks` random blocks, made by all processors.
pub(crate) fn random_blocks(dtype: DType, n_blocks: usize) -> Vec<u8> {
    let mut bytes = vec![0; n_blocks * dtype.block_bytes()];
    let chunk = (CHUNK / dtype.block_bytes()).max(1) * dtype.block_bytes();
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let chunks = std::sync::Mutex::new(bytes.chunks_mut(chunk).enumerate());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let next = chunks.lock().expect("no thread panics while it holds the lock").next();
                    let Some((i, chunk)) = next else { return };
                    fill(dtype, i as u64, chunk);
                }
            });
        }
    });
    bytes
}

fn fill(dtype: DType, seed: u64, out: &mut [u8]) {
    // xorshift64* (Vigna, 2016): the codes need only look random.
    let mut state = (seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for word in out.chunks_mut(8) {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let random = state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes();
        word.copy_from_slice(&random[..word.len()]);
    }
    match dtype {
        DType::F32 => floats::<4>(out, |v| v.to_le_bytes()),
        DType::F16 => floats::<2>(out, |v| f16::from_f32(v).to_le_bytes()),
        DType::BF16 => floats::<2>(out, |v| [v.to_le_bytes()[2], v.to_le_bytes()[3]]),
        // A power of two, less 127: the first byte.
        DType::MXFP4 => out.chunks_exact_mut(dtype.block_bytes()).for_each(|block| block[0] = 120),
        // The nibbles of a half-precision 0.0028, lowest first, are the upper halves of the last odd bytes.
        DType::IQ1_M => out.chunks_exact_mut(dtype.block_bytes()).for_each(|block| {
            for (i, nibble) in [0xc, 0xb, 0x9, 0x1].into_iter().enumerate() {
                block[49 + 2 * i] = block[49 + 2 * i] & 15 | nibble << 4;
            }
        }),
        _ => {
            if dtype == DType::TQ2_0 {
                // Two bits that are both set are no ternary digit.
                out.iter_mut().for_each(|b| *b &= !(*b & *b << 1 & 0xaa));
            }
            for block in out.chunks_exact_mut(dtype.block_bytes()) {
                for &(at, scale) in scales(dtype) {
                    block[at..at + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
                }
            }
        }
    }
}

/// Random bytes as floats within ±0.035.
fn floats<const N: usize>(out: &mut [u8], encode: impl Fn(f32) -> [u8; N]) {
    for bytes in out.as_chunks_mut::<N>().0 {
        let random = i16::from_le_bytes([bytes[0], bytes[1]]);
        *bytes = encode(f32::from(random) * (0.035 / 32_768.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_decodes_to_plausible_weights() {
        for &dtype in DType::DECODABLE {
            let n_blocks = 3 * CHUNK / 2 / dtype.block_bytes();
            let bytes = random_blocks(dtype, n_blocks);
            let mut values = vec![0.0f32; n_blocks * dtype.block_len()];
            pelton_quant::decode(dtype, &bytes, &mut values).unwrap();
            let n = values.len() as f64;
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            let deviation = (values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n).sqrt();
            assert!(values.iter().all(|v| v.is_finite()), "{dtype}");
            assert!(mean.abs() < 0.004 && (0.01..0.04).contains(&deviation), "{dtype}: {mean} ± {deviation}");
        }
    }
}

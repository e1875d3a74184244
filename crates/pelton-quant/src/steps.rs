//! The values that the elements of an encoded block may take while its scales stay, and another choice among them.
//!
//! An encoder whose choice for one element depends on the errors of others (GPTQ) encodes a block for its scales, rounds
//! the elements one by one with [`Steps`], and writes its codes with [`set_codes`]. Only formats with evenly spaced levels
//! and a code for each element have steps. Invariant: the codes of a block, through its steps, are its decoded values (to
//! a unit in the last place: a step of these formats is summed in another order).

use crate::{DType, q2_k, q3_k, q4_0, q4_1, q4_k, q5_0, q5_1, q5_k, q6_k};

/// Of each sub-block of a block: `value = scale · code + offset`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Steps {
    /// Elements of a sub-block.
    pub sub_len: usize,
    /// The largest code; the smallest is 0.
    pub code_max: u8,
    scales: [f32; 16],
    offsets: [f32; 16],
}

impl Steps {
    /// Whether blocks of this type have steps.
    pub fn known(dtype: DType) -> bool {
        use DType::*;
        matches!(dtype, Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q2_K | Q3_K | Q4_K | Q5_K | Q6_K)
    }

    /// Of one block; `None` where the type has none, or `block` is not one block.
    pub fn of(dtype: DType, block: &[u8]) -> Option<Steps> {
        Some(match dtype {
            DType::Q4_0 => {
                let d = q4_0::scale(block.try_into().ok()?);
                Steps::new(32, 15, [(d, -8.0 * d)])
            }
            DType::Q5_0 => {
                let d = q5_0::scale(block.try_into().ok()?);
                Steps::new(32, 31, [(d, -16.0 * d)])
            }
            DType::Q4_1 => {
                let block = block.try_into().ok()?;
                Steps::new(32, 15, [(q4_1::scale(block), q4_1::min(block))])
            }
            DType::Q5_1 => {
                let block = block.try_into().ok()?;
                Steps::new(32, 31, [(q5_1::scale(block), q5_1::min(block))])
            }
            DType::Q2_K => {
                let block = block.try_into().ok()?;
                let (scales, mins) = q2_k::scales_mins(block);
                affine(16, 3, q2_k::d(block).to_f32(), q2_k::dmin(block).to_f32(), &scales, &mins)
            }
            DType::Q4_K => {
                let block = block.try_into().ok()?;
                let (scales, mins) = q4_k::scales_mins(block);
                affine(32, 15, q4_k::d(block).to_f32(), q4_k::dmin(block).to_f32(), &scales, &mins)
            }
            DType::Q5_K => {
                let block = block.try_into().ok()?;
                let (scales, mins) = q5_k::scales_mins(block);
                affine(32, 31, q5_k::d(block).to_f32(), q5_k::dmin(block).to_f32(), &scales, &mins)
            }
            DType::Q3_K => {
                let block = block.try_into().ok()?;
                linear(7, q3_k::d(block).to_f32(), 4.0, q3_k::scales(block))
            }
            DType::Q6_K => {
                let block = block.try_into().ok()?;
                linear(63, q6_k::d(block).to_f32(), 32.0, q6_k::scales(block))
            }
            _ => return None,
        })
    }

    fn new(sub_len: usize, code_max: u8, subs: impl IntoIterator<Item = (f32, f32)>) -> Steps {
        let mut steps = Steps { sub_len, code_max, scales: [0.0; 16], offsets: [0.0; 16] };
        for (i, (scale, offset)) in subs.into_iter().enumerate() {
            (steps.scales[i], steps.offsets[i]) = (scale, offset);
        }
        steps
    }

    /// The code whose value is nearest to `x` at an element, and that value.
    ///
    /// # Panics
    /// At an element past the block.
    pub fn nearest(&self, element: usize, x: f32) -> (u8, f32) {
        let (scale, offset) = (self.scales[element / self.sub_len], self.offsets[element / self.sub_len]);
        // A scale of 0 has one value only; what it is divided by does not matter.
        let code = if scale == 0.0 { 0.0 } else { ((x - offset) / scale).round_ties_even() };
        let code = code.clamp(0.0, f32::from(self.code_max));
        (code as u8, scale * code + offset)
    }
}

fn affine(sub_len: usize, code_max: u8, d: f32, dmin: f32, scales: &[u8], mins: &[u8]) -> Steps {
    let subs = scales.iter().zip(mins).map(|(scale, min)| (d * f32::from(*scale), -(dmin * f32::from(*min))));
    Steps::new(sub_len, code_max, subs)
}

fn linear(code_max: u8, d: f32, middle: f32, scales: [i8; 16]) -> Steps {
    let subs = scales.iter().map(|scale| d * f32::from(*scale)).map(|scale| (scale, -middle * scale));
    Steps::new(16, code_max, subs)
}

/// Writes other codes into a block, whose scales stay.
///
/// # Panics
/// For a type without [`Steps`], or where `block` and `codes` are not of one block.
pub fn set_codes(dtype: DType, codes: &[u8], block: &mut [u8]) {
    const WHOLE: &str = "one block and its codes";
    macro_rules! set {
        ($($name:ident = $format:ident),*) => {
            match dtype {
                $(DType::$name => {
                    $format::set_codes(codes.try_into().expect(WHOLE), block.try_into().expect(WHOLE));
                })*
                _ => panic!("{dtype} has no steps"),
            }
        };
    }
    set!(
        Q4_0 = q4_0,
        Q4_1 = q4_1,
        Q5_0 = q5_0,
        Q5_1 = q5_1,
        Q2_K = q2_k,
        Q3_K = q3_k,
        Q4_K = q4_k,
        Q5_K = q5_k,
        Q6_K = q6_k
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{decode, encode};

    const TYPES: [DType; 9] = [
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q2_K,
        DType::Q3_K,
        DType::Q4_K,
        DType::Q5_K,
        DType::Q6_K,
    ];

    #[test]
    fn codes_that_are_written_decode_to_the_values_that_were_chosen() {
        let x: [f32; 256] = std::array::from_fn(|i| ((i * 89 % 257) as f32 - 100.0) / 60.0);
        for dtype in TYPES {
            assert!(Steps::known(dtype));
            let mut bytes = Vec::new();
            encode(dtype, &x[..dtype.block_len()], &mut bytes).unwrap();
            let steps = Steps::of(dtype, &bytes).unwrap();
            // What the encoder chose is not far from nearest, and something else is written as exactly.
            for target in [1.0, -0.3] {
                let chosen: Vec<(u8, f32)> = (0..dtype.block_len()).map(|i| steps.nearest(i, target * x[i])).collect();
                let codes: Vec<u8> = chosen.iter().map(|(code, _)| *code).collect();
                set_codes(dtype, &codes, &mut bytes);
                let mut values = vec![0.0; dtype.block_len()];
                decode(dtype, &bytes, &mut values).unwrap();
                for (i, ((_, chosen), value)) in chosen.iter().zip(&values).enumerate() {
                    assert!((chosen - value).abs() <= 1e-5 * (1.0 + value.abs()), "{dtype} {i}: {chosen}, {value}");
                }
                assert_eq!(Steps::of(dtype, &bytes), Some(steps), "{dtype}: the scales stay");
            }
        }
        assert_eq!((Steps::of(DType::IQ2_S, &[0; 82]), Steps::of(DType::Q4_0, &[0; 17])), (None, None));
    }
}

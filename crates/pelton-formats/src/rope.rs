//! Rotary positions: the row order of Q and K, and the frequency factors that files spell out.
//!
//! Invariant: [`to_half_split`] and [`to_interleaved`] are inverse to each other and move whole rows.

use crate::{RopeScaling, Tensor};

/// Rows stored for pairs `(2j, 2j+1)`, as GGUF files of the `llama` architecture have them, to pairs `(j, j + d/2)`.
///
/// # Panics
/// Unless the rows are `n_heads` heads of an even number of rows.
pub(crate) fn to_half_split(tensor: &Tensor, n_heads: usize) -> Tensor {
    reorder(tensor, n_heads, |row, half| 2 * (row % half) + row / half)
}

/// The way back, for writing such files.
///
/// # Panics
/// As [`to_half_split`].
pub(crate) fn to_interleaved(tensor: &Tensor, n_heads: usize) -> Tensor {
    reorder(tensor, n_heads, |row, half| (row % 2) * half + row / 2)
}

/// Row `r` of each head becomes what row `from(r, half)` was.
fn reorder(tensor: &Tensor, n_heads: usize, from: impl Fn(usize, usize) -> usize) -> Tensor {
    let n_rows = tensor.shape[0];
    assert!(n_heads > 0 && n_rows.is_multiple_of(2 * n_heads), "{n_rows} rows of {n_heads} heads");
    let (head, data) = (n_rows / n_heads, tensor.data());
    let row_bytes = data.len() / n_rows;
    let mut out = Vec::with_capacity(data.len());
    for h in 0..n_heads {
        for row in 0..head {
            let start = (h * head + from(row, head / 2)) * row_bytes;
            out.extend_from_slice(&data[start..start + row_bytes]);
        }
    }
    tensor.clone().with_bytes(out)
}

/// Llama 3.1's scaling as one divisor per frequency, which is how GGUF stores it (`rope_freqs.weight`).
///
/// The formula is that of Llama 3.1's reference code: frequencies whose wavelength is below
/// `original_context / high_freq_factor` stay, those above `original_context / low_freq_factor` are divided by
/// `factor`, and those between are interpolated. Returns `(dim / 2,)` divisors, `None` for another scaling.
pub(crate) fn llama3_factors(scaling: &RopeScaling, theta: f32, dim: usize) -> Option<Vec<f32>> {
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } = scaling else {
        return None;
    };
    let (factor, low, high) = (f64::from(*factor), f64::from(*low_freq_factor), f64::from(*high_freq_factor));
    let context = *original_context as f64;
    let divisor = |i: usize| {
        let frequency = f64::from(theta).powf(-2.0 * i as f64 / dim as f64);
        let wavelength = 2.0 * std::f64::consts::PI / frequency;
        if wavelength < context / high {
            1.0
        } else if wavelength > context / low {
            factor
        } else {
            let smooth = (context / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    #[allow(clippy::cast_possible_truncation, reason = "the file stores f32")]
    Some((0..dim / 2).map(|i| divisor(i) as f32).collect())
}

/// YaRN's default multiplier of cos and sin: `0.1 ln(factor) + 1` (arXiv:2309.00071, equation 22).
pub(crate) fn yarn_attention_factor(factor: f32) -> f32 {
    if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pelton_quant::DType;

    #[test]
    fn interleaving_goes_there_and_back() {
        let rows: Vec<u8> = (0..12u8).flat_map(|r| f32::from(r).to_le_bytes()).collect();
        let t = Tensor::new("test", "t", DType::F32, vec![12, 1], rows.into()).unwrap();
        let order = to_interleaved(&t, 2).to_f32().unwrap();
        assert_eq!(order, [0., 3., 1., 4., 2., 5., 6., 9., 7., 10., 8., 11.]);
        let back = to_half_split(&to_interleaved(&t, 2), 2);
        assert_eq!(back.data(), t.data());
    }

    #[test]
    fn llama3_factors_run_from_one_to_the_factor() {
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
        let f = llama3_factors(&scaling, 500_000.0, 128).unwrap();
        assert_eq!((f.len(), f[0], f[63]), (64, 1.0, 8.0));
        assert!(f.windows(2).all(|w| w[0] <= w[1]) && f.iter().any(|&x| x > 1.0 && x < 8.0));
        assert_eq!(llama3_factors(&RopeScaling::None, 1e4, 64), None);
    }

    #[test]
    fn yarn_factor_is_one_without_extension() {
        assert_eq!(yarn_attention_factor(1.0), 1.0);
        assert!((yarn_attention_factor(4.0) - 1.138_629_4).abs() < 1e-6);
    }
}

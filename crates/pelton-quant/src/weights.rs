//! How much the error of each element counts in the searches for scales.
//!
//! With an importance (the mean square of the input that meets each column, from calibration) that is the weight, scaled
//! to a mean of 1 in each block: the expected squared error of a linear layer's output is the sum of squared errors of its
//! weights times just that, as far as inputs are uncorrelated. Without one, `weight = 1 + |x| / rms`, with the root mean
//! square of the block. Nothing is known then of the activations that an element will meet, which alone would speak for
//! equal weights; but large elements are those that training found worth their size. On normally distributed elements
//! this raises the mean squared error by 1 to 2 percent and lowers the one weighted by x² by 11 to 16.

/// Added to weights of mean 1, so that elements without importance are still rounded to something near.
const FLOOR: f32 = 1e-4;

/// The weights of the elements of a block, at least [`FLOOR`]. `importance` is finite and not negative.
pub(crate) fn of_block<const LEN: usize>(x: &[f32; LEN], importance: Option<&[f32; LEN]>) -> [f32; LEN] {
    match importance {
        Some(importance) => of_importance(importance),
        None => of_magnitude(x),
    }
}

fn of_importance<const LEN: usize>(importance: &[f32; LEN]) -> [f32; LEN] {
    let mean = importance.iter().map(|&i| f64::from(i)).sum::<f64>() / LEN as f64;
    let inverse = (1.0 / mean) as f32;
    if !inverse.is_finite() {
        return [1.0; LEN]; // no importance at all
    }
    importance.map(|i| i * inverse + FLOOR)
}

fn of_magnitude<const LEN: usize>(x: &[f32; LEN]) -> [f32; LEN] {
    let mean_square = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / LEN as f64;
    let rms = mean_square.sqrt() as f32;
    // A subnormal rms has no finite inverse; the f16 scales of such a block are 0 anyway.
    let inverse = if rms < f32::MIN_POSITIVE { 0.0 } else { 1.0 / rms };
    x.map(|x| 1.0 + x.abs() * inverse)
}

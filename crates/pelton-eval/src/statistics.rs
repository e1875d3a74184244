//! Means with their error bars.
//!
//! The standard error of a mean is `sqrt((mean(x²) - mean(x)²) / (n - 1))`, as llama.cpp's `llama-perplexity` has it.

use serde::Serialize;

/// A figure and its standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// Its standard error; 0 where there are too few samples to tell.
    pub error: f64,
}

impl Estimate {
    /// The mean of samples; 0 of none.
    pub fn mean(samples: impl Iterator<Item = f64>) -> Estimate {
        let (mut n, mut sum, mut squares) = (0usize, 0.0, 0.0);
        samples.for_each(|v| (n, sum, squares) = (n + 1, sum + v, squares + v * v));
        if n == 0 {
            return Estimate::default();
        }
        let value = sum / n as f64;
        let variance = (squares / n as f64 - value * value).max(0.0);
        Estimate { value, error: if n > 1 { (variance / (n - 1) as f64).sqrt() } else { 0.0 } }
    }

    /// The share of `n` trials that came out well.
    pub fn share(good: usize, n: usize) -> Estimate {
        Estimate::mean((0..n).map(|i| f64::from(u8::from(i < good))))
    }

    /// `exp` of it, with the error to first order.
    pub fn exp(self) -> Estimate {
        let value = self.value.exp();
        Estimate { value, error: value * self.error }
    }

    /// Its square root, with the error to first order.
    pub fn sqrt(self) -> Estimate {
        let value = self.value.max(0.0).sqrt();
        Estimate { value, error: if value > 0.0 { 0.5 * self.error / value } else { 0.0 } }
    }
}

/// The value below which a share `q` of ascending figures lies, between ranks on a line; 0 of none.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = q.clamp(0.0, 1.0) * last as f64;
    let (low, share) = (at.floor() as usize, at.fract());
    sorted[low] * (1.0 - share) + sorted[(low + 1).min(last)] * share
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_have_the_error_bars_of_the_field() {
        let e = Estimate::mean([1.0, 2.0, 3.0, 6.0].into_iter());
        // Variance 3.5 over four, divided by three.
        assert_eq!((e.value, e.error), (3.0, (3.5f64 / 3.0).sqrt()));
        assert_eq!(Estimate::mean([7.0].into_iter()), Estimate { value: 7.0, error: 0.0 });
        assert_eq!(Estimate::mean(std::iter::empty()), Estimate::default());
        let half = Estimate::share(2, 4);
        assert_eq!(half.value, 0.5);
        assert!((half.error - (0.25f64 / 3.0).sqrt()).abs() < 1e-12);
        let e = Estimate { value: 2.0, error: 0.1 };
        assert_eq!(e.exp().error, 2f64.exp() * 0.1);
        assert!((e.sqrt().error - 0.05 / 2f64.sqrt()).abs() < 1e-12);
        assert_eq!(Estimate { value: 0.0, error: 1.0 }.sqrt(), Estimate::default());
    }

    #[test]
    fn quantiles_lie_between_ranks() {
        let sorted = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(
            [0.0, 0.5, 0.9, 1.0, 2.0].map(|q| (quantile(&sorted, q) * 1e9).round() / 1e9),
            [1.0, 2.5, 3.7, 4.0, 4.0]
        );
        assert_eq!((quantile(&[], 0.5), quantile(&[7.0], 0.99)), (0.0, 7.0));
    }
}

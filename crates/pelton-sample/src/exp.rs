//! `exp` in plain arithmetic, and sums of it in a fixed order.
//!
//! The mathematics libraries of platforms differ in the last bit, and a last bit can choose another token.
//! Here is nothing but IEEE additions and multiplications in a written order, which are the same on all of
//! them (and which the compiler vectorizes, so it is quick as well: once for every machine, and once more for each
//! wider set of vectors, `wide.rs`).
//!
//! Invariant: the same bits in, the same bits out, everywhere.

use crate::wide::{Piece, widest};

/// ln 2 in two parts: the first has few enough bits that its product with `n` is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// 1.5 * 2^23: adding it rounds a small number to an integer, to even at ties.
const ROUND: f32 = 12_582_912.0;
/// exp of less is below the smallest normal number, and given as 0.
const LEAST: f32 = -87.0;

/// `e^x` for `x <= 0`, within 2e-7 of it relatively; 0 below -87.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`; `e^r` by its Taylor series to the seventh power, whose rest is
/// below 6e-9; `2^n` is put together from bits.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let clamped = x.max(LEAST);
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    let mut series = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * r + coefficient;
    }
    // The low bits of `rounded` count from those of ROUND: their difference is n.
    let power = f32::from_bits(rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    if x < LEAST { 0.0 } else { series * power }
}

/// Terms that [`sum_block`] takes at most; the blocks that [`sum_exp`] adds up.
pub(crate) const BLOCK: usize = 1024;

/// `Σ exp((x_i - max) / temperature)` over all logits. `max` is their maximum.
///
/// The order is part of the definition: blocks in order, each by [`sum_block`].
pub(crate) fn sum_exp(logits: &[f32], max: f32, scale: Scale) -> f64 {
    widest(Sum { logits, max, scale })
}

/// [`sum_blocks`].
struct Sum<'a> {
    logits: &'a [f32],
    max: f32,
    scale: Scale,
}

impl Piece for Sum<'_> {
    type Out = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        sum_blocks(self.logits, self.max, self.scale)
    }
}

/// [`sum_exp`], for whatever it is compiled into.
#[inline(always)]
fn sum_blocks(logits: &[f32], max: f32, scale: Scale) -> f64 {
    let blocks = logits.chunks(BLOCK);
    // Dividing by 1 changes nothing, and takes longer than the rest.
    if scale.temperature == 1.0 {
        return blocks.map(|block| sum_of(block, |logit| exp(logit - max))).sum();
    }
    blocks.map(|block| sum_block(block, max, scale)).sum()
}

/// The sum of one block: 16 running sums of at most 64 terms, in f32 (error below 4e-6), added up in f64.
#[inline(always)]
pub(crate) fn sum_block(block: &[f32], max: f32, scale: Scale) -> f64 {
    sum_of(block, |logit| scale.weight(logit, max))
}

/// The sum of one block's weights.
#[inline(always)]
fn sum_of(block: &[f32], weight: impl Fn(f32) -> f32) -> f64 {
    const LANES: usize = 16;
    let mut lanes = [0.0f32; LANES];
    let (rows, rest) = block.as_chunks::<LANES>();
    for row in rows {
        for (lane, &logit) in lanes.iter_mut().zip(row) {
            *lane += weight(logit);
        }
    }
    for (lane, &logit) in lanes.iter_mut().zip(rest) {
        *lane += weight(logit);
    }
    lanes.iter().map(|&lane| f64::from(lane)).sum()
}

/// The greatest of the logits, or the first that is NaN or `+inf`. `-inf` if there are none.
pub(crate) fn finite_max(logits: &[f32]) -> Result<f32, usize> {
    widest(Max(logits))
}

/// [`max_of`].
struct Max<'a>(&'a [f32]);

impl Piece for Max<'_> {
    type Out = Result<f32, usize>;

    #[inline(always)]
    fn run(self) -> Self::Out {
        max_of(self.0)
    }
}

/// [`finite_max`], for whatever it is compiled into.
#[inline(always)]
fn max_of(logits: &[f32]) -> Result<f32, usize> {
    const LANES: usize = 16;
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut finite = true;
    let (rows, rest) = logits.as_chunks::<LANES>();
    for row in rows {
        for (lane, &logit) in lanes.iter_mut().zip(row) {
            *lane = if logit > *lane { logit } else { *lane };
            finite &= logit < f32::INFINITY;
        }
    }
    for (lane, &logit) in lanes.iter_mut().zip(rest) {
        *lane = if logit > *lane { logit } else { *lane };
        finite &= logit < f32::INFINITY;
    }
    if finite {
        return Ok(lanes.into_iter().fold(f32::NEG_INFINITY, f32::max));
    }
    // NaN is not below infinity either.
    Err(logits.iter().position(|&logit| logit.is_nan() || logit == f32::INFINITY).expect("one was met above"))
}

/// A temperature above 0: what makes weights of logits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    temperature: f32,
}

impl Scale {
    pub(crate) const ONE: Self = Self { temperature: 1.0 };

    /// `temperature` is above 0.
    pub(crate) fn new(temperature: f32) -> Self {
        Self { temperature }
    }

    /// Log-probability of a logit relative to that of the greatest, `max`: 0 for that one, less for others.
    /// The maximum is taken off before the division, so that no temperature overflows.
    #[inline(always)]
    pub(crate) fn distance(self, logit: f32, max: f32) -> f32 {
        (logit - max) / self.temperature
    }

    /// The probability of a logit relative to that of the greatest: 1 for that one, less for others.
    #[inline(always)]
    pub(crate) fn weight(self, logit: f32, max: f32) -> f32 {
        exp(self.distance(logit, max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_the_library_over_its_whole_range() {
        let mut worst = 0.0f64;
        for step in 0..=870_000 {
            let x = -(step as f32) * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        println!("worst relative error {worst:.2e}");
        assert!(worst < 2e-7, "{worst:e}");
    }

    #[test]
    fn exp_at_its_ends() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-87.5), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::MIN), 0.0);
    }

    #[test]
    fn sums_of_all_lengths_are_close_to_the_plain_sum() {
        for len in [0, 1, 15, 16, 17, 1023, 1024, 1025, 5000] {
            let logits: Vec<f32> = (0..len).map(|i| ((i * 37) % 101) as f32 * -0.1).collect();
            let plain: f64 = logits.iter().map(|&x| (f64::from(x) / 0.7).exp()).sum();
            let sum = sum_exp(&logits, 0.0, Scale::new(0.7));
            assert!((sum - plain).abs() <= 1e-6 * plain, "{len}: {sum} and {plain}");
        }
    }

    #[test]
    fn wider_vectors_change_no_bit() {
        for len in [0usize, 1, 15, 16, 17, 1023, 1024, 1025, 5000] {
            let logits: Vec<f32> = (0..len).map(|i| ((i * 7919) % 1013) as f32 * -0.031).collect();
            for temperature in [1.0, 0.7, 0.01, 30.0] {
                let scale = Scale::new(temperature);
                let sum = sum_exp(&logits, 0.0, scale);
                assert_eq!(sum.to_bits(), sum_blocks(&logits, 0.0, scale).to_bits(), "{len} at {temperature}");
                let divided: f64 = logits.chunks(BLOCK).map(|block| sum_block(block, 0.0, scale)).sum();
                assert_eq!(sum.to_bits(), divided.to_bits(), "{len} at {temperature}, divided");
            }
            assert_eq!(finite_max(&logits), max_of(&logits));
            for bad in [f32::NAN, f32::INFINITY] {
                for at in [0, len / 2, len.saturating_sub(1)] {
                    let mut logits = logits.clone();
                    logits.iter_mut().skip(at).take(1).for_each(|logit| *logit = bad);
                    assert_eq!(finite_max(&logits), if len == 0 { Ok(f32::NEG_INFINITY) } else { Err(at) });
                }
            }
        }
    }
}

//! From a rope configuration to one frequency per pair.
//!
//! Everything is computed in float32 in the order in which transformers computes it, since at position 30,000 the
//! last bit of a frequency is visible in the logits.

use half::bf16;
use pelton_backend::Rope;
use pelton_formats::{RopeConfig, RopeScaling};

/// Resolves frequencies and scale. `context` is the longest context that the engine will run: LongRoPE picks its
/// set of factors by it.
pub fn resolve_rope(config: &RopeConfig, context: usize) -> Rope {
    let half = config.dim / 2;
    let base: Vec<f32> = (0..half).map(|i| 1.0 / config.theta.powf((2 * i) as f32 / config.dim as f32)).collect();
    match &config.scaling {
        RopeScaling::None => Rope { inv_freq: base, scale: 1.0 },
        RopeScaling::Linear { factor } => Rope { inv_freq: base.iter().map(|f| f / factor).collect(), scale: 1.0 },
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            let scaled = |&f: &f32| llama3(f, *factor, *low_freq_factor, *high_freq_factor, *original_context);
            Rope { inv_freq: base.iter().map(scaled).collect(), scale: 1.0 }
        }
        RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor } => {
            let ramp = YarnRamp::new(config, *original_context, *beta_fast, *beta_slow);
            let blend = |(i, &f): (usize, &f32)| {
                let keep = 1.0 - ramp.at(i);
                f / factor * (1.0 - keep) + f * keep
            };
            Rope { inv_freq: base.iter().enumerate().map(blend).collect(), scale: *attention_factor }
        }
        RopeScaling::Factors { short, long, original_context, attention_factor } => {
            let factors = if context > *original_context { long } else { short };
            let inv_freq = base.iter().zip(factors).map(|(f, d)| f / d).collect();
            Rope { inv_freq, scale: *attention_factor }
        }
    }
}

/// The rotation of a model that was cast to bf16 as a whole, frequencies included, as `module.to(bfloat16)` does.
/// Models loaded from files keep them in float32; this is for comparing with one that did not.
pub fn rounded_to_bf16(rope: &Rope) -> Rope {
    let round = |&f: &f32| bf16::from_f32(f).to_f32();
    Rope { inv_freq: rope.inv_freq.iter().map(round).collect(), scale: rope.scale }
}

/// Llama 3.1's rule: short wavelengths stay, long ones are divided by `factor`, those between are blended.
fn llama3(freq: f32, factor: f32, low: f32, high: f32, original_context: usize) -> f32 {
    let original = original_context as f32;
    let wavelength = 2.0 * std::f32::consts::PI / freq;
    if wavelength < original / high {
        return freq;
    }
    if wavelength > original / low {
        return freq / factor;
    }
    let smooth = (original / wavelength - low) / (high - low);
    (1.0 - smooth) * freq / factor + smooth * freq
}

/// The linear ramp of YaRN between the dimensions that rotate `beta_fast` and `beta_slow` times within the
/// original context.
struct YarnRamp {
    low: f32,
    high: f32,
}

impl YarnRamp {
    fn new(config: &RopeConfig, original_context: usize, beta_fast: f32, beta_slow: f32) -> YarnRamp {
        let dim = config.dim as f64;
        let turns = |rotations: f32| {
            let wave = original_context as f64 / (f64::from(rotations) * 2.0 * std::f64::consts::PI);
            dim * wave.ln() / (2.0 * f64::from(config.theta).ln())
        };
        let low = turns(beta_fast).floor().max(0.0);
        let high = turns(beta_slow).ceil().min(dim - 1.0);
        let high = if low == high { high + 0.001 } else { high };
        YarnRamp { low: low as f32, high: high as f32 }
    }

    /// 0 below the ramp (keep the frequency), 1 above it (divide by the factor).
    fn at(&self, i: usize) -> f32 {
        ((i as f32 - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(scaling: RopeScaling) -> RopeConfig {
        RopeConfig { theta: 10_000.0, dim: 64, scaling }
    }

    #[test]
    fn plain_frequencies_fall_from_one() {
        let rope = resolve_rope(&config(RopeScaling::None), 1024);
        assert_eq!(rope.inv_freq.len(), 32);
        assert_eq!(rope.inv_freq[0], 1.0);
        assert!((rope.inv_freq[16] - 0.01).abs() < 1e-8);
    }

    #[test]
    fn llama3_keeps_fast_and_divides_slow_frequencies() {
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 128 };
        let plain = resolve_rope(&config(RopeScaling::None), 1024);
        let rope = resolve_rope(&config(scaling), 1024);
        assert_eq!(rope.inv_freq[0], plain.inv_freq[0]);
        assert_eq!(rope.inv_freq[31], plain.inv_freq[31] / 8.0);
    }

    #[test]
    fn long_factors_apply_past_the_original_context() {
        let scaling = RopeScaling::Factors {
            short: vec![1.0; 32],
            long: vec![4.0; 32],
            original_context: 512,
            attention_factor: 1.25,
        };
        assert_eq!(resolve_rope(&config(scaling.clone()), 512).inv_freq[0], 1.0);
        let long = resolve_rope(&config(scaling), 513);
        assert_eq!((long.inv_freq[0], long.scale), (0.25, 1.25));
    }
}

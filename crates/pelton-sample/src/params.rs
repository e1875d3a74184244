//! What a request may say about sampling. Each default switches its stage off, so that the defaults
//! together are greedy decoding: the one choice that needs no explanation and gives the same text twice.

use crate::error::SampleError;

/// How to choose tokens. The stages and their order are in the crate's documentation.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; at least 0. 0 (default) is greedy.
    pub temperature: f32,
    /// Keep so many best tokens. 0 (default) is off.
    pub top_k: usize,
    /// Keep the fewest best tokens with so much probability together; above 0, at most 1. 1 (default) is off.
    pub top_p: f32,
    /// Keep tokens with so much of the best one's probability; 0 to 1. 0 (default) is off.
    pub min_p: f32,
    /// Divides the logits of tokens seen in prompt or output if positive, else multiplies; above 0. 1
    /// (default) is off.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of each token in the output. 0 (default) is off.
    pub presence_penalty: f32,
    /// Subtracted from the logit of a token for each time it is in the output. 0 (default) is off.
    pub frequency_penalty: f32,
    /// How many last tokens the penalties look at: of prompt and output for repetition, of the output for
    /// the other two. 0 (default) is all.
    pub penalty_window: usize,
    /// `(token, bias)`, added to the logit; `-inf` bans the token. The biases of a token named twice add up.
    pub logit_bias: Vec<(u32, f32)>,
    /// Same seed, same output. `None` (default) takes the sampler's fallback seed.
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_window: 0,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

impl SamplingParams {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field outside its range, with its value and the range.
    pub fn validate(&self) -> Result<(), SampleError> {
        let in_range = [
            ("temperature", self.temperature, self.temperature >= 0.0, "a finite number of at least 0 (0 is greedy)"),
            ("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1 (1 is off)"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "0 to 1 (0 is off)"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                self.repetition_penalty > 0.0,
                "a finite number above 0 (1 is off)",
            ),
            ("presence_penalty", self.presence_penalty, true, "a finite number (0 is off)"),
            ("frequency_penalty", self.frequency_penalty, true, "a finite number (0 is off)"),
        ];
        for (field, value, ok, expected) in in_range {
            if !ok || !value.is_finite() {
                return Err(SampleError::BadParam { field, value, expected });
            }
        }
        for &(_, value) in &self.logit_bias {
            if !value.is_finite() && value != f32::NEG_INFINITY {
                return Err(SampleError::BadParam { field: "logit_bias", value, expected: "a finite number or -inf" });
            }
        }
        Ok(())
    }

    /// Whether the best token is taken without a draw.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }
}

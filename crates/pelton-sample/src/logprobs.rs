//! Log-probabilities under the model's own distribution: the softmax of the logits as the model gave them.
//!
//! Invariant: logits that are not numbers are an error.

use crate::error::SampleError;
use crate::exp::{Scale, finite_max, sum_exp};
use crate::truncate::{best_first, select_best};

/// The maximum of the logits.
///
/// # Errors
/// No logits, one that is NaN or `+inf`, or none above `-inf`.
pub(crate) fn checked_max(logits: &[f32]) -> Result<f32, SampleError> {
    if logits.is_empty() {
        return Err(SampleError::EmptyVocabulary);
    }
    let max = finite_max(logits).map_err(|id| SampleError::NotFinite { id, value: logits[id] })?;
    if max == f32::NEG_INFINITY {
        return Err(SampleError::NothingAllowed { vocab_size: logits.len() });
    }
    Ok(max)
}

/// `ln Σ exp(x_i)` as `(max, rest)`, of which it is the sum. The last bit of the logarithm may differ
/// between platforms; it is only ever reported, never drawn from.
pub(crate) fn log_sum_exp(logits: &[f32]) -> Result<(f32, f64), SampleError> {
    let max = checked_max(logits)?;
    Ok((max, sum_exp(logits, max, Scale::ONE).ln()))
}

/// The log-probability of a logit, given the logits' [`log_sum_exp`]; never above 0.
pub(crate) fn normalize(logit: f32, (max, rest): (f32, f64)) -> f32 {
    ((f64::from(logit) - f64::from(max)) - rest).min(0.0) as f32
}

/// The log-probability of token `id` (natural logarithm). `logits`: `(vocab_size)`.
///
/// # Errors
/// As [`top_logprobs`]. A token beyond the vocabulary is no error: its log-probability is `-inf`.
pub fn logprob(logits: &[f32], id: u32) -> Result<f32, SampleError> {
    let sum = log_sum_exp(logits)?;
    Ok(logits.get(id as usize).map_or(f32::NEG_INFINITY, |&logit| normalize(logit, sum)))
}

/// The `n` most likely tokens and their log-probabilities, best first (of equals the lowest id); fewer if
/// fewer have any probability. `logits`: `(vocab_size)`, before sampling changed them.
///
/// # Errors
/// No logits, one that is NaN or `+inf`, or none above `-inf`.
pub fn top_logprobs(logits: &[f32], n: usize) -> Result<Vec<(u32, f32)>, SampleError> {
    let sum = log_sum_exp(logits)?;
    Ok(best_of(logits, n, sum))
}

/// The `n` most likely tokens, given the logits' [`log_sum_exp`].
pub(crate) fn best_of(logits: &[f32], n: usize, sum: (f32, f64)) -> Vec<(u32, f32)> {
    let mut best = Vec::new();
    select_best(logits, n, &mut best);
    best.sort_unstable_by(best_first);
    best.iter().map(|candidate| (candidate.id, normalize(candidate.logit, sum))).collect()
}

//! Penalties and bias: the stages that change logits by what was said before or asked for.
//!
//! Invariant: a token's change depends on its counts alone, not on the order of the tokens; a finite
//! logit stays finite unless a bias of `-inf` bans it. Tokens of the prompt beyond the vocabulary (images have such) have no logit
//! and are passed over.

use crate::error::SampleError;
use crate::params::SamplingParams;

/// Counts per token, kept between calls so that a step costs the length of the history, not the vocabulary.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    /// How often each token occurs; all 0 between calls. One per logit.
    counts: Vec<u32>,
}

impl Counts {
    /// Calls `change(logit, count)` once for each distinct token of `histories` that has a logit.
    fn for_each(&mut self, logits: &mut [f32], histories: [&[u32]; 2], change: impl Fn(f32, u32) -> f32) {
        self.counts.resize(logits.len(), 0);
        for &token in histories.iter().copied().flatten() {
            if let Some(count) = self.counts.get_mut(token as usize) {
                *count += 1;
            }
        }
        for &token in histories.iter().copied().flatten() {
            if let Some(count) = self.counts.get_mut(token as usize)
                && *count > 0
            {
                let logit = &mut logits[token as usize];
                *logit = keep_number(*logit, change(*logit, std::mem::take(count)));
            }
        }
    }
}

/// A token that was out stays out; one that was not stays possible, however large the change.
fn keep_number(before: f32, after: f32) -> f32 {
    if before == f32::NEG_INFINITY { before } else { after.clamp(f32::MIN, f32::MAX) }
}

/// The last `window` tokens of two texts in a row (0: all).
fn last<'a>(window: usize, first: &'a [u32], second: &'a [u32]) -> [&'a [u32]; 2] {
    if window == 0 {
        return [first, second];
    }
    let from_second = window.min(second.len());
    let from_first = (window - from_second).min(first.len());
    [&first[first.len() - from_first..], &second[second.len() - from_second..]]
}

/// Repetition, presence and frequency penalties, in place.
pub(crate) fn penalize(
    logits: &mut [f32],
    params: &SamplingParams,
    prompt: &[u32],
    generated: &[u32],
    counts: &mut Counts,
) {
    let repetition = params.repetition_penalty;
    if repetition != 1.0 {
        let seen = last(params.penalty_window, prompt, generated);
        counts.for_each(logits, seen, |logit, _| if logit > 0.0 { logit / repetition } else { logit * repetition });
    }
    let (presence, frequency) = (params.presence_penalty, params.frequency_penalty);
    if presence != 0.0 || frequency != 0.0 {
        let said = last(params.penalty_window, &[], generated);
        counts.for_each(logits, said, |logit, count| logit - (frequency * count as f32 + presence));
    }
}

/// Adds the biases, in place.
///
/// # Errors
/// A bias names a token that has no logit.
pub(crate) fn add_bias(logits: &mut [f32], bias: &[(u32, f32)]) -> Result<(), SampleError> {
    let vocab_size = logits.len();
    for &(id, bias) in bias {
        let logit = logits.get_mut(id as usize).ok_or(SampleError::BiasOutOfVocabulary { id, vocab_size })?;
        *logit = if bias == f32::NEG_INFINITY { bias } else { keep_number(*logit, *logit + bias) };
    }
    Ok(())
}

/// Rules out all tokens whose bit is not set: token `i` is bit `i % 32` of word `i / 32`; tokens beyond the
/// last word are ruled out.
pub(crate) fn mask(logits: &mut [f32], allowed: &[u32]) {
    for (index, block) in logits.chunks_mut(32).enumerate() {
        let word = allowed.get(index).copied().unwrap_or(0);
        if word == u32::MAX {
            continue;
        }
        for (bit, logit) in block.iter_mut().enumerate() {
            if word >> bit & 1 == 0 {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

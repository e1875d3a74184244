//! The sampler of one sequence: runs the stages in their order and draws.
//!
//! Invariant: it remembers nothing between calls but its parameters (the rest is scratch memory), so calling
//! it twice with the same arguments gives the same token twice.

mod short;

use crate::error::SampleError;
use crate::exp::{BLOCK, Scale, sum_block, sum_exp};
use crate::logprobs::{best_of, checked_max, log_sum_exp, normalize};
use crate::params::SamplingParams;
use crate::penalties::{Counts, add_bias, mask, penalize};
use crate::rng;
use crate::truncate::{Candidate, truncate};
pub use short::{Shortlist, Wanted};

/// A token that was chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability in the model's own distribution, before any stage.
    pub logprob: f32,
}

/// Chooses the tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    seed: u64,
    counts: Counts,
    candidates: Vec<Candidate>,
    /// The logits before penalties and bias.
    raw: Vec<f32>,
}

impl Sampler {
    /// A sampler. `fallback_seed` is used if the parameters name no seed.
    ///
    /// # Errors
    /// A parameter is outside its range; see [`SamplingParams::validate`].
    pub fn new(params: SamplingParams, fallback_seed: u64) -> Result<Self, SampleError> {
        params.validate()?;
        let seed = params.seed.unwrap_or(fallback_seed);
        Ok(Self { params, seed, counts: Counts::default(), candidates: Vec::new(), raw: Vec::new() })
    }

    /// The parameters it was made with.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// The seed in use: with it as `seed`, the same output comes again.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The next token. `logits`: `(vocab_size)`, changed by the stages; `prompt` and `generated` are the
    /// sequence so far. The draw is that of position `generated.len()`.
    ///
    /// # Errors
    /// No logits, a logit that is NaN or `+inf`, a bias beyond the vocabulary, or nothing left to choose.
    pub fn sample(&mut self, logits: &mut [f32], prompt: &[u32], generated: &[u32]) -> Result<Sampled, SampleError> {
        self.sample_masked(logits, prompt, generated, None)
    }

    /// Like [`sample`](Self::sample), of the tokens in `allowed` only: token `i` is bit `i % 32` of word
    /// `i / 32`, tokens beyond the last word are not allowed.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn sample_masked(
        &mut self,
        logits: &mut [f32],
        prompt: &[u32],
        generated: &[u32],
        allowed: Option<&[u32]>,
    ) -> Result<Sampled, SampleError> {
        self.sample_beside(logits, prompt, generated, allowed, 0).map(|(sampled, _)| sampled)
    }

    /// Like [`sample_masked`](Self::sample_masked), and tells the `n_top` likeliest tokens of the model's own
    /// distribution beside it: with their log-probabilities, best first, as
    /// [`top_logprobs`](crate::top_logprobs) does.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn sample_beside(
        &mut self,
        logits: &mut [f32],
        prompt: &[u32],
        generated: &[u32],
        allowed: Option<&[u32]>,
        n_top: usize,
    ) -> Result<(Sampled, Vec<(u32, f32)>), SampleError> {
        let sum = log_sum_exp(logits)?;
        let top = if n_top == 0 { Vec::new() } else { best_of(logits, n_top, sum) };
        let changes = self.changes_logits();
        if changes {
            self.raw.clear();
            self.raw.extend_from_slice(logits);
        }
        let is_adjusted = changes || allowed.is_some();
        let max = if is_adjusted { self.adjust(logits, prompt, generated, allowed)? } else { sum.0 };
        let id = if self.params.is_greedy() {
            first_of(logits, max)
        } else {
            let scale = Scale::new(self.params.temperature);
            let point = rng::uniform(self.seed, generated.len() as u64);
            if truncate(logits, max, scale, &self.params, &mut self.candidates) {
                draw_from(&self.candidates, max, scale, point)
            } else {
                draw_from_all(logits, max, scale, point)
            }
        };
        let raw = if changes { &self.raw } else { &*logits };
        Ok((Sampled { id, logprob: normalize(raw[id as usize], sum) }, top))
    }

    /// The distribution that [`sample_masked`](Self::sample_masked) draws from: tokens with their
    /// probabilities, by ascending id; a single token when greedy.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn distribution(
        &mut self,
        logits: &mut [f32],
        prompt: &[u32],
        generated: &[u32],
        allowed: Option<&[u32]>,
    ) -> Result<Vec<(u32, f64)>, SampleError> {
        checked_max(logits)?;
        let max = self.adjust(logits, prompt, generated, allowed)?;
        if self.params.is_greedy() {
            return Ok(vec![(first_of(logits, max), 1.0)]);
        }
        let scale = Scale::new(self.params.temperature);
        if !truncate(logits, max, scale, &self.params, &mut self.candidates) {
            self.candidates.clear();
            let all = logits.iter().enumerate().map(|(id, &logit)| Candidate { id: id as u32, logit });
            self.candidates.extend(all);
        }
        let weights: Vec<(u32, f64)> = self
            .candidates
            .iter()
            .map(|candidate| (candidate.id, f64::from(scale.weight(candidate.logit, max))))
            .filter(|&(_, weight)| weight > 0.0)
            .collect();
        let total: f64 = weights.iter().map(|&(_, weight)| weight).sum();
        Ok(weights.into_iter().map(|(id, weight)| (id, weight / total)).collect())
    }

    /// Whether penalties or bias may change logits of tokens that can still be chosen.
    fn changes_logits(&self) -> bool {
        let params = &self.params;
        params.repetition_penalty != 1.0
            || params.presence_penalty != 0.0
            || params.frequency_penalty != 0.0
            || !params.logit_bias.is_empty()
    }

    /// Penalties, bias and mask, in place; gives the maximum after them.
    fn adjust(
        &mut self,
        logits: &mut [f32],
        prompt: &[u32],
        generated: &[u32],
        allowed: Option<&[u32]>,
    ) -> Result<f32, SampleError> {
        penalize(logits, &self.params, prompt, generated, &mut self.counts);
        add_bias(logits, &self.params.logit_bias)?;
        if let Some(allowed) = allowed {
            mask(logits, allowed);
        }
        checked_max(logits)
    }
}

/// The lowest token whose logit is the maximum.
fn first_of(logits: &[f32], max: f32) -> u32 {
    logits.iter().position(|&logit| logit == max).expect("the maximum is among the logits") as u32
}

/// The token in whose share of the sum of weights `point` (in `[0, 1)`) falls, tokens in order of their ids.
fn draw_from(candidates: &[Candidate], max: f32, scale: Scale, point: f64) -> u32 {
    let weight = |candidate: &Candidate| f64::from(scale.weight(candidate.logit, max));
    let target = point * candidates.iter().map(weight).sum::<f64>();
    let mut passed = 0.0;
    let mut chosen = None;
    for candidate in candidates {
        let weight = weight(candidate);
        passed += weight;
        if weight > 0.0 {
            chosen = Some(candidate.id);
            if passed > target {
                break;
            }
        }
    }
    // Rounding can leave the target at the very end: then it is the last token that has a weight.
    chosen.expect("the best token has weight 1")
}

/// The same over all logits: passes whole blocks by their sums, then goes through the one that is hit.
fn draw_from_all(logits: &[f32], max: f32, scale: Scale, point: f64) -> u32 {
    let target = point * sum_exp(logits, max, scale);
    let mut passed = 0.0;
    let mut chosen = None;
    for (index, block) in logits.chunks(BLOCK).enumerate() {
        let sum = sum_block(block, max, scale);
        let is_hit = passed + sum > target;
        let is_last = (index + 1) * BLOCK >= logits.len();
        if !(is_hit || is_last) {
            passed += sum;
            continue;
        }
        for (offset, &logit) in block.iter().enumerate() {
            let weight = f64::from(scale.weight(logit, max));
            passed += weight;
            if weight > 0.0 {
                chosen = Some((index * BLOCK + offset) as u32);
                if passed > target {
                    return chosen.expect("just set");
                }
            }
        }
        if is_hit {
            break; // rounding: the sum of the block reached the target, its terms one by one did not
        }
    }
    chosen.unwrap_or_else(|| first_of(logits, max))
}

//! Choosing a token where the logits are not at hand, but what was found out about them where they are: the best token, the
//! sums of weights, the likeliest tokens, a token drawn from all.
//!
//! Invariant: the token and its log-probability are the bits that [`Sampler::sample_beside`] gives for the logits. Where a
//! shortlist does not decide, it says so: the logits are needed then.

use super::{Sampled, Sampler, draw_from};
use crate::error::SampleError;
use crate::exp::Scale;
use crate::logprobs::normalize;
use crate::params::SamplingParams;
use crate::rng;
use crate::truncate::{Candidate, FEW, best_first, keep_best, keep_nucleus};

/// What has to be found out about a row of logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wanted {
    /// What weights are made at; 0 where none are needed.
    pub temperature: f32,
    /// Where in the sum of all weights a token is drawn, from 0 to 1; `None` where it is not drawn from all.
    pub point: Option<f64>,
    /// Whether the likeliest tokens are looked at.
    pub likeliest: bool,
}

/// What was found out about a row of logits.
#[derive(Clone, Debug, PartialEq)]
pub struct Shortlist<'a> {
    /// Number of logits.
    pub vocab_size: usize,
    /// The greatest.
    pub max: f32,
    /// The lowest token that has it.
    pub best: u32,
    /// The first token whose logit is NaN or `+inf`, and that logit.
    pub odd: Option<(u32, f32)>,
    /// `Σ exp(logit - max)`, in the order of this crate's sums.
    pub sum: f64,
    /// The same at the temperature wanted.
    pub sum_at: f64,
    /// The token drawn at the point wanted, and its logit.
    pub drawn: (u32, f32),
    /// Tokens with their logits, in any order: none that is missing is likelier than one that is there, or as likely.
    pub likeliest: &'a [(u32, f32)],
    /// Whether all tokens above `-inf` are among them.
    pub is_all: bool,
}

/// Whether truncation leaves tokens out.
fn is_cut(params: &SamplingParams, vocab_size: usize) -> bool {
    (params.top_k > 0 && params.top_k < vocab_size) || params.top_p < 1.0 || params.min_p > 0.0
}

impl Sampler {
    /// What has to be found out to choose the token at `position` (of those generated), and the `n_top` likeliest beside
    /// it; `None` where only the logits themselves will do: penalties and biases change them.
    pub fn wanted(&self, vocab_size: usize, position: usize, n_top: usize) -> Option<Wanted> {
        if self.changes_logits() {
            return None;
        }
        let temperature = self.params.temperature;
        if self.params.is_greedy() {
            return Some(Wanted { temperature, point: None, likeliest: n_top > 0 });
        }
        let is_cut = is_cut(&self.params, vocab_size);
        let point = (!is_cut).then(|| rng::uniform(self.seed, position as u64));
        Some(Wanted { temperature, point, likeliest: is_cut || n_top > 0 })
    }

    /// As [`sample_beside`](Self::sample_beside), for logits of which what is [`wanted`](Self::wanted) was found out.
    /// `None` where that does not decide.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    #[allow(clippy::type_complexity, reason = "what sample_beside gives, if it can be given")]
    pub fn sample_short(
        &mut self,
        short: &Shortlist<'_>,
        position: usize,
        n_top: usize,
    ) -> Result<Option<(Sampled, Vec<(u32, f32)>)>, SampleError> {
        if self.changes_logits() {
            return Ok(None);
        }
        if let Some((id, value)) = short.odd {
            return Err(SampleError::NotFinite { id: id as usize, value });
        }
        if short.max == f32::NEG_INFINITY {
            return Err(SampleError::NothingAllowed { vocab_size: short.vocab_size });
        }
        let sum = (short.max, short.sum.ln());
        let Some(top) = short.top(n_top, sum) else { return Ok(None) };
        let (id, logit) = if self.params.is_greedy() {
            (short.best, short.max)
        } else if is_cut(&self.params, short.vocab_size) {
            let scale = Scale::new(self.params.temperature);
            if !short.truncate(scale, &self.params, &mut self.candidates) {
                return Ok(None);
            }
            let id = draw_from(&self.candidates, short.max, scale, rng::uniform(self.seed, position as u64));
            let at = self.candidates.binary_search_by_key(&id, |candidate| candidate.id);
            (id, self.candidates[at.expect("it was drawn from them")].logit)
        } else {
            short.drawn
        };
        Ok(Some((Sampled { id, logprob: normalize(logit, sum) }, top)))
    }
}

impl Shortlist<'_> {
    fn candidates(&self, out: &mut Vec<Candidate>) {
        out.clear();
        out.extend(self.likeliest.iter().map(|&(id, logit)| Candidate { id, logit }));
    }

    /// The `n` likeliest tokens with their log-probabilities, best first.
    fn top(&self, n: usize, sum: (f32, f64)) -> Option<Vec<(u32, f32)>> {
        if n > self.likeliest.len() && !self.is_all {
            return None;
        }
        let mut best = Vec::new();
        if n > 0 {
            self.candidates(&mut best);
            best.sort_unstable_by(best_first);
            best.truncate(n);
        }
        Some(best.iter().map(|candidate| (candidate.id, normalize(candidate.logit, sum))).collect())
    }

    /// What `truncate` keeps of all logits, by ascending id; `false` where that cannot be said.
    fn truncate(&self, scale: Scale, params: &SamplingParams, kept: &mut Vec<Candidate>) -> bool {
        self.candidates(kept);
        let weight = |candidate: &Candidate| f64::from(scale.weight(candidate.logit, self.max));
        let mut is_cut = false;
        if params.top_k > 0 && params.top_k < self.vocab_size {
            if !self.cut_to(params.top_k, kept) {
                return false;
            }
            is_cut = true;
        }
        if params.top_p < 1.0 {
            let p = f64::from(params.top_p);
            if is_cut {
                kept.sort_unstable_by(best_first);
                let total: f64 = kept.iter().map(weight).sum();
                keep_nucleus(kept, self.max, scale, p * total);
            } else if !self.cut_to_nucleus(p * self.sum_at, scale, kept) {
                return false;
            }
            is_cut = true;
        }
        if params.min_p > 0.0 {
            // Those that are missing are farther from the best than the worst of these.
            let farthest = kept.iter().map(|candidate| scale.distance(candidate.logit, self.max)).fold(0.0, f32::min);
            if !is_cut && !self.is_all && farthest >= params.min_p.ln() - 0.01 {
                return false;
            }
            kept.retain(|candidate| scale.weight(candidate.logit, self.max) >= params.min_p);
        }
        kept.sort_unstable_by_key(|candidate| candidate.id);
        !kept.is_empty()
    }

    /// The `n` best of all tokens.
    fn cut_to(&self, n: usize, kept: &mut Vec<Candidate>) -> bool {
        if kept.len() > n {
            keep_best(kept, n);
        }
        kept.len() == n || self.is_all
    }

    /// The best tokens whose weights reach `target`: among as few as are tried at first where all logits are at hand.
    fn cut_to_nucleus(&self, target: f64, scale: Scale, kept: &mut Vec<Candidate>) -> bool {
        let is_all = self.is_all && kept.len() < FEW;
        kept.sort_unstable_by(best_first);
        kept.truncate(FEW);
        keep_nucleus(kept, self.max, scale, target) || is_all
    }
}

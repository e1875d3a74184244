//! One answer in the making: its grammar, its sampler and the text on its way out.

use std::sync::Arc;

use pelton_backend::{Ask, Weighed};
use pelton_sample::{GrammarError, GrammarState, SampleError, Sampled, Sampler, Shortlist, rng};
use pelton_text::{StopStrings, StreamDecoder, Tokenizer};

use crate::{FinishReason, Request};

/// What one token did to an answer.
pub(crate) struct Advance {
    pub(crate) sampled: Sampled,
    pub(crate) top: Vec<(u32, f32)>,
    pub(crate) text: String,
    pub(crate) finish: Option<FinishReason>,
}

/// Why an answer cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnswerError {
    #[error(transparent)]
    Sample(#[from] SampleError),
    #[error(transparent)]
    Grammar(#[from] GrammarError),
}

/// What ends every answer of an engine.
#[derive(Clone, Copy)]
pub(crate) struct Ends<'a> {
    /// Ids that end a text.
    pub(crate) eos: &'a [u32],
    /// Tokens of prompt and answer together.
    pub(crate) context: usize,
}

pub(crate) struct Answer {
    generated: Vec<u32>,
    sampler: Sampler,
    grammar: Option<GrammarState>,
    /// The grammar begins after this token, which has not come yet.
    grammar_after: Option<u32>,
    text: Option<(Arc<Tokenizer>, StreamDecoder)>,
    stops: StopStrings,
}

impl Answer {
    /// Answer number `choice` to a request. `fallback_seed` is the seed of choice 0 where the request names none.
    ///
    /// # Errors
    /// A sampling parameter is out of range.
    pub(crate) fn new(
        request: &Request,
        choice: usize,
        fallback_seed: u64,
        tokenizer: Option<Arc<Tokenizer>>,
    ) -> Result<Answer, SampleError> {
        let mut sampling = request.sampling.clone();
        let seed = sampling.seed.unwrap_or(fallback_seed);
        // Far from the positions that draws are made for.
        sampling.seed = Some(if choice == 0 { seed } else { rng::bits(seed, u64::MAX - choice as u64) });
        // A grammar speaks of every byte of the answer, so none is dropped from its text.
        let keeps_space = request.continues_text || request.grammar.is_some();
        let decoder = if keeps_space { StreamDecoder::continuing(true) } else { StreamDecoder::new(true) };
        Ok(Answer {
            generated: Vec::new(),
            sampler: Sampler::new(sampling, 0)?,
            grammar: request.grammar.as_ref().map(|grammar| grammar.begin()),
            grammar_after: request.grammar_after.filter(|_| request.grammar.is_some()),
            text: tokenizer.map(|tokenizer| (tokenizer, decoder)),
            stops: StopStrings::new(request.stop.clone()),
        })
    }

    /// Tokens so far.
    pub(crate) fn len(&self) -> usize {
        self.generated.len()
    }

    /// The token that would be chosen behind `generated` if these were the logits; nothing comes of it. The grammar takes
    /// no part in it.
    ///
    /// # Errors
    /// The logits are not numbers, or fewer than the request speaks of.
    pub(crate) fn guess(
        &mut self,
        logits: &mut [f32],
        prompt: &[u32],
        generated: &[u32],
    ) -> Result<Sampled, SampleError> {
        self.sampler.sample(logits, prompt, generated)
    }

    /// What has to be found out about the row of logits `ahead` tokens from now to choose a token from it; `None` where only
    /// the logits will do.
    pub(crate) fn ask(&self, request: &Request, vocab_size: usize, ahead: usize) -> Option<Ask> {
        if self.is_bound() {
            return None;
        }
        let wanted = self.sampler.wanted(vocab_size, self.generated.len() + ahead, request.top_logprobs)?;
        Some(Ask { temperature: wanted.temperature, point: wanted.point, likeliest: wanted.likeliest })
    }

    /// As [`Answer::advance`], from what was found out about the logits; `None` where they themselves are needed.
    ///
    /// # Errors
    /// As [`Answer::advance`].
    pub(crate) fn advance_weighed(
        &mut self,
        request: &Request,
        (weighed, vocab_size): (&Weighed, usize),
        ends: Ends<'_>,
    ) -> Result<Option<Advance>, AnswerError> {
        if self.is_bound() {
            return Ok(None);
        }
        let Weighed { max, best, odd, sum, sum_at, drawn, is_all, .. } = *weighed;
        let likeliest = &weighed.likeliest;
        let short = Shortlist { vocab_size, max, best, odd, sum, sum_at, drawn, likeliest, is_all };
        let chosen = self.sampler.sample_short(&short, self.generated.len(), request.top_logprobs)?;
        chosen.map(|(sampled, top)| self.take(request, sampled, top, ends)).transpose()
    }

    /// Whether a grammar says what comes next.
    fn is_bound(&self) -> bool {
        self.grammar.is_some() && self.grammar_after.is_none()
    }

    /// Chooses the next token from one row of logits and says what became of it.
    ///
    /// # Errors
    /// The logits are not numbers, or the grammar cannot be followed.
    pub(crate) fn advance(
        &mut self,
        request: &Request,
        logits: &mut [f32],
        ends: Ends<'_>,
    ) -> Result<Advance, AnswerError> {
        let mut grammar = self.grammar.as_mut().filter(|_| self.grammar_after.is_none());
        let allowed = grammar.as_mut().map(|grammar| grammar.mask()).transpose()?;
        let (prompt, n_top) = (&request.prompt, request.top_logprobs);
        let (sampled, top) = self.sampler.sample_beside(logits, prompt, &self.generated, allowed, n_top)?;
        self.take(request, sampled, top, ends)
    }

    /// Takes the next token in.
    fn take(
        &mut self,
        request: &Request,
        sampled: Sampled,
        top: Vec<(u32, f32)>,
        ends: Ends<'_>,
    ) -> Result<Advance, AnswerError> {
        self.generated.push(sampled.id);
        let is_bound = self.is_bound();
        let grammar = self.grammar.as_mut().filter(|_| is_bound);
        let complete = grammar.map(|grammar| grammar.push(sampled.id)).transpose()?.unwrap_or(false);
        self.grammar_after = self.grammar_after.filter(|&after| after != sampled.id);
        if ends.eos.contains(&sampled.id) && (!request.ignore_eos || is_bound) {
            return Ok(Advance { sampled, top, text: String::new(), finish: Some(FinishReason::Eos) });
        }
        let piece = match &mut self.text {
            Some((tokenizer, decoder)) => decoder.push(tokenizer, sampled.id),
            None => String::new(),
        };
        let outcome = self.stops.push(&piece);
        let finish = if let Some(index) = outcome.stopped {
            Some(FinishReason::Stop(index))
        } else if complete {
            Some(FinishReason::Grammar)
        } else if self.generated.len() >= request.max_tokens {
            Some(FinishReason::MaxTokens)
        } else if request.prompt.len() + self.generated.len() >= ends.context {
            Some(FinishReason::Context)
        } else {
            None
        };
        Ok(Advance { sampled, top, text: outcome.emit, finish })
    }

    /// The text held back until now, unless a stop string cut it off.
    pub(crate) fn rest(&mut self, reason: FinishReason) -> String {
        let mut text = String::new();
        if !matches!(reason, FinishReason::Stop(_)) {
            if let Some((_, decoder)) = &mut self.text {
                let outcome = self.stops.push(&decoder.finish());
                text.push_str(&outcome.emit);
            }
            text.push_str(&self.stops.finish());
        }
        text
    }
}

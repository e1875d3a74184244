//! One running request: its tokens, its sampler and the text on its way out.

use std::sync::Arc;
use std::time::Instant;

use pelton_sample::{SampleError, Sampled, Sampler};
use pelton_text::{StopStrings, StreamDecoder, Tokenizer};

use crate::{FinishReason, Finished, Request, Timing};

/// What one token did to a sequence.
pub(crate) struct Advance {
    pub(crate) sampled: Sampled,
    pub(crate) text: String,
    pub(crate) finish: Option<FinishReason>,
}

fn decoder_for(request: &Request) -> StreamDecoder {
    match request.continues_text {
        true => StreamDecoder::continuing(true),
        false => StreamDecoder::new(true),
    }
}

pub(crate) struct Sequence {
    pub(crate) request: Request,
    pub(crate) generated: Vec<u32>,
    sampler: Sampler,
    text: Option<(Arc<Tokenizer>, StreamDecoder)>,
    stops: StopStrings,
    submitted: Instant,
    first_token: Option<Instant>,
    pub(crate) cached_tokens: usize,
    pub(crate) preemptions: usize,
}

impl Sequence {
    pub(crate) fn new(request: Request, sampler: Sampler, tokenizer: Option<Arc<Tokenizer>>) -> Sequence {
        Sequence {
            stops: StopStrings::new(request.stop.clone()),
            text: tokenizer.map(|t| (t, decoder_for(&request))),
            request,
            generated: Vec::new(),
            sampler,
            submitted: Instant::now(),
            first_token: None,
            cached_tokens: 0,
            preemptions: 0,
        }
    }

    /// Chooses the next token from one row of logits and says what became of it.
    ///
    /// # Errors
    /// [`SampleError`] where the logits are not numbers.
    pub(crate) fn advance(&mut self, logits: &mut [f32], eos: &[u32], context: usize) -> Result<Advance, SampleError> {
        let sampled = self.sampler.sample(logits, &self.request.prompt, &self.generated)?;
        self.first_token.get_or_insert_with(Instant::now);
        self.generated.push(sampled.id);
        if eos.contains(&sampled.id) && !self.request.ignore_eos {
            return Ok(Advance { sampled, text: String::new(), finish: Some(FinishReason::Eos) });
        }
        let piece = match &mut self.text {
            Some((tokenizer, decoder)) => decoder.push(tokenizer, sampled.id),
            None => String::new(),
        };
        let outcome = self.stops.push(&piece);
        let finish = if let Some(index) = outcome.stopped {
            Some(FinishReason::Stop(index))
        } else if self.generated.len() >= self.request.max_tokens {
            Some(FinishReason::MaxTokens)
        } else if self.request.prompt.len() + self.generated.len() >= context {
            Some(FinishReason::Context)
        } else {
            None
        };
        Ok(Advance { sampled, text: outcome.emit, finish })
    }

    /// Ends the answer: flushes what was held back (unless a stop string cut it off).
    pub(crate) fn finish(mut self, reason: FinishReason) -> Finished {
        let mut text = String::new();
        if !matches!(reason, FinishReason::Stop(_)) {
            if let Some((_, decoder)) = &mut self.text {
                let outcome = self.stops.push(&decoder.finish());
                text.push_str(&outcome.emit);
            }
            text.push_str(&self.stops.finish());
        }
        let total = self.submitted.elapsed();
        let first_token = self.first_token.map_or(total, |t| t - self.submitted);
        let timing = Timing {
            prompt_tokens: self.request.prompt.len(),
            cached_tokens: self.cached_tokens,
            tokens: self.generated.len(),
            first_token,
            total,
            preemptions: self.preemptions,
        };
        Finished { reason, text, timing }
    }
}

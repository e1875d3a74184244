//! What callers ask of the engine, and what they get back.

use std::fmt;
use std::time::Duration;

use pelton_sample::SamplingParams;

/// Names a request within one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// A prompt and how to continue it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// The longest answer, in tokens.
    pub max_tokens: usize,
    /// Strings that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Go on after an end-of-text id (for benchmarks).
    pub ignore_eos: bool,
    /// The answer goes on in the middle of the prompt's text (a raw completion), so a leading space is kept.
    pub continues_text: bool,
    /// Higher goes first.
    pub priority: i32,
}

impl Request {
    /// A request for at most `max_tokens` tokens after `prompt`, with everything else at its default.
    pub fn new(prompt: Vec<u32>, sampling: SamplingParams, max_tokens: usize) -> Request {
        let (stop, ignore_eos, continues_text, priority) = (Vec::new(), false, false, 0);
        Request { prompt, sampling, max_tokens, stop, ignore_eos, continues_text, priority }
    }
}

/// Something that happened to a request.
#[derive(Clone, Debug)]
pub enum Event {
    /// A token was chosen. `text` holds what became complete with it: it may be empty (part of a character, or
    /// text that could still become a stop string) or carry several tokens' worth.
    Token {
        /// The id.
        id: u32,
        /// Log-probability under the model's own distribution, before penalties and temperature.
        logprob: f32,
        /// Newly complete text.
        text: String,
    },
    /// The answer is over; nothing follows.
    Finished(Finished),
    /// The engine could not go on with this request; nothing follows.
    Failed(String),
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it.
    Eos,
    /// A stop string appeared: its index in [`Request::stop`].
    Stop(usize),
    /// [`Request::max_tokens`] was reached.
    MaxTokens,
    /// The context is full.
    Context,
    /// Somebody cancelled it.
    Cancelled,
}

impl fmt::Display for FinishReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FinishReason::Eos => "end of text",
            FinishReason::Stop(_) => "stop string",
            FinishReason::MaxTokens => "token limit",
            FinishReason::Context => "context full",
            FinishReason::Cancelled => "cancelled",
        })
    }
}

/// The end of an answer.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Why.
    pub reason: FinishReason,
    /// Text held back until now.
    pub text: String,
    /// Where the time went.
    pub timing: Timing,
}

/// The ledger of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timing {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, how many were in the prefix cache.
    pub cached_tokens: usize,
    /// Tokens generated, an end-of-text id included.
    pub tokens: usize,
    /// From submission to the first token.
    pub first_token: Duration,
    /// From submission to the end.
    pub total: Duration,
    /// How often the request lost its pages and was computed again.
    pub preemptions: usize,
}

impl Timing {
    /// Generated tokens a second, after the first one; 0 where there was no second token.
    pub fn tokens_per_s(&self) -> f64 {
        let seconds = (self.total.saturating_sub(self.first_token)).as_secs_f64();
        if self.tokens < 2 || seconds <= 0.0 {
            return 0.0;
        }
        (self.tokens - 1) as f64 / seconds
    }
}

impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "[{} tokens in {:.2} s: {:.1} tokens/s · first token {:.0} ms · prompt {} tokens, {} cached",
            self.tokens,
            self.total.as_secs_f64(),
            self.tokens_per_s(),
            self.first_token.as_secs_f64() * 1e3,
            self.prompt_tokens,
            self.cached_tokens,
        )?;
        if self.preemptions > 0 {
            write!(f, " · preempted {} times", self.preemptions)?;
        }
        f.write_str("]")
    }
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SubmitError {
    /// Nothing to continue.
    #[error("the prompt is empty; give it at least one token")]
    EmptyPrompt,
    /// The prompt alone fills the context.
    #[error("the prompt has {tokens} tokens, the context holds {context}; shorten it or raise --context")]
    PromptTooLong {
        /// Its length.
        tokens: usize,
        /// What fits.
        context: usize,
    },
    /// An id that the model does not have.
    #[error("token id {id} is outside the model's vocabulary of {vocab}")]
    BadId {
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// No answer was asked for.
    #[error("max_tokens is 0; ask for at least one token")]
    NoTokens,
    /// A sampling parameter out of range.
    #[error("{0}")]
    Sampling(String),
    /// The scheduler refused.
    #[error("{0}")]
    Scheduler(String),
    /// The engine's thread has ended.
    #[error("the engine has stopped")]
    Stopped,
}

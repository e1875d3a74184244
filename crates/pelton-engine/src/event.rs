//! What the engine tells of a request.
//!
//! Invariant: each choice's events end with one [`Event::Finished`], and [`Event::is_last`] is true of exactly one
//! event of a request, the last.

use std::fmt;
use std::time::Duration;

use crate::SubmitError;

/// Something that happened to a request.
#[derive(Clone, Debug)]
pub enum Event {
    /// A token was chosen. `text` holds what became complete with it: it may be empty (part of a character, or
    /// text that could still become a stop string) or carry several tokens' worth.
    Token {
        /// Which of the answers.
        choice: usize,
        /// The id.
        id: u32,
        /// Log-probability under the model's own distribution, before penalties and temperature.
        logprob: f32,
        /// The likeliest tokens of that distribution with their log-probabilities, best first.
        top: Vec<(u32, f32)>,
        /// Newly complete text.
        text: String,
    },
    /// An answer is over.
    Finished(Finished),
    /// A prompt's vector; nothing follows.
    Embedded(Embedded),
    /// The request was not taken; nothing follows.
    Refused(SubmitError),
    /// The engine could not go on with this request; nothing follows.
    Failed(String),
}

impl Event {
    /// Whether nothing follows.
    pub fn is_last(&self) -> bool {
        match self {
            Event::Token { .. } => false,
            Event::Finished(finished) => finished.last,
            Event::Embedded(_) | Event::Refused(_) | Event::Failed(_) => true,
        }
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it.
    Eos,
    /// A stop string appeared: its index in [`Request::stop`](crate::Request::stop).
    Stop(usize),
    /// The grammar is complete: nothing else could follow.
    Grammar,
    /// [`Request::max_tokens`](crate::Request::max_tokens) was reached.
    MaxTokens,
    /// The context is full.
    Context,
    /// [`Request::time_limit`](crate::Request::time_limit) has passed.
    Deadline,
    /// Somebody cancelled it.
    Cancelled,
}

impl fmt::Display for FinishReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FinishReason::Eos => "end of text",
            FinishReason::Stop(_) => "stop string",
            FinishReason::Grammar => "grammar complete",
            FinishReason::MaxTokens => "token limit",
            FinishReason::Context => "context full",
            FinishReason::Deadline => "time limit",
            FinishReason::Cancelled => "cancelled",
        })
    }
}

/// The end of an answer.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Which of the answers.
    pub choice: usize,
    /// Whether it is the last of them: nothing follows.
    pub last: bool,
    /// Why.
    pub reason: FinishReason,
    /// Text held back until now.
    pub text: String,
    /// Where the time went.
    pub timing: Timing,
    /// Why not more of the prompt was cached; `None` where all of it was that can be, the prefix cache is off, or the
    /// request never ran.
    pub miss: Option<Miss>,
}

/// A prompt's vector.
#[derive(Clone, Debug)]
pub struct Embedded {
    /// `(hidden,)`, of length 1.
    pub values: Vec<f32>,
    /// Where the time went.
    pub timing: Timing,
}

/// Why no more of a prompt came from the prefix cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissCause {
    /// The prompt does not fill a page: only full ones are kept.
    TooShort,
    /// No prompt that begins like this one has been computed.
    NeverSeen,
    /// It was cached and was given up for want of memory.
    Evicted,
    /// What is cached goes on with other tokens.
    Different,
}

impl fmt::Display for MissCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MissCause::TooShort => "shorter than a page",
            MissCause::NeverSeen => "never seen",
            MissCause::Evicted => "evicted",
            MissCause::Different => "different text",
        })
    }
}

/// Where a prompt and the prefix cache part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Miss {
    /// Why.
    pub cause: MissCause,
    /// Position of the first token that is not in the cache.
    pub at: usize,
    /// A few tokens of the prompt before it: the end of what both have.
    pub before: Vec<u32>,
    /// A few tokens of the prompt from there on.
    pub here: Vec<u32>,
    /// What the cache has from there on, where it has something else.
    pub cached: Vec<u32>,
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
    /// From submission to the first step that ran some of the prompt.
    pub queue: Duration,
    /// From then to the first token.
    pub prefill: Duration,
    /// From submission to the first token.
    pub first_token: Duration,
    /// From submission to the end.
    pub total: Duration,
    /// How often the request lost its pages and was computed again.
    pub preemptions: usize,
    /// What speculation did for it.
    pub speculation: Speculated,
}

/// What speculation did for one request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speculated {
    /// Drafts that were run.
    pub drafted: usize,
    /// Of these, how many were accepted.
    pub accepted: usize,
    /// Steps that had drafts.
    pub steps: usize,
    /// Tokens a second over those of plain decoding in the same company, an estimate from what plain steps take; 1
    /// where nothing was drafted.
    pub speedup: f32,
}

impl Default for Speculated {
    /// Nothing drafted.
    fn default() -> Speculated {
        Speculated { drafted: 0, accepted: 0, steps: 0, speedup: 1.0 }
    }
}

impl Speculated {
    /// Drafts accepted in a step that had some; 0 where there was none.
    pub fn mean_accepted(&self) -> f64 {
        if self.steps == 0 { 0.0 } else { self.accepted as f64 / self.steps as f64 }
    }
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
        let s = &self.speculation;
        if s.drafted > 0 {
            let (accepted, drafted, mean, speedup) = (s.accepted, s.drafted, s.mean_accepted(), s.speedup);
            write!(f, " · {accepted} of {drafted} drafts accepted, {mean:.1} a step: about {speedup:.2}×")?;
        }
        if self.preemptions > 0 {
            write!(f, " · preempted {} times", self.preemptions)?;
        }
        f.write_str("]")
    }
}

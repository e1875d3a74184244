//! What callers ask of the engine, and why it may be refused.
//!
//! Invariant: [`Request::check`] refuses everything that can be refused without the scheduler, so a caller learns of
//! it at once; nothing in a request makes the engine hold more than in proportion to it.

use std::time::Duration;

use pelton_sample::{Grammar, SamplingParams};

/// Names a request within one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Most answers to one prompt.
pub const MAX_CHOICES: usize = 128;

/// Most alternatives told with a token.
pub const MAX_TOP_LOGPROBS: usize = 20;

/// What is to be done with a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Task {
    /// Continue it.
    #[default]
    Generate,
    /// Turn it into a vector.
    Embed(Pooling),
}

/// How the final hidden states of a prompt become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The last token's.
    Last,
    /// The mean over all tokens. It needs them all, so the prefix cache does not help.
    Mean,
}

/// A prompt and what to do with it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// Continue it or embed it; an embedding reads `prompt`, `priority`, `time_limit`, `tenant` and `cache_salt`.
    pub task: Task,
    /// How tokens are chosen. Choice 0 draws with the seed given, each other choice with one made of it.
    pub sampling: SamplingParams,
    /// The longest answer, in tokens.
    pub max_tokens: usize,
    /// Answers, at most [`MAX_CHOICES`]; the prompt is computed once.
    pub n: usize,
    /// So many of the likeliest tokens are told with each token; at most [`MAX_TOP_LOGPROBS`].
    pub top_logprobs: usize,
    /// What answers must look like.
    pub grammar: Option<Grammar>,
    /// The grammar speaks of what follows this token (the end of a model's thinking, say); before it everything may
    /// be said. An answer without that token is not held to the grammar.
    pub grammar_after: Option<u32>,
    /// Strings that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Go on after an end-of-text id (for benchmarks); where a grammar ends, so does the answer.
    pub ignore_eos: bool,
    /// The answer goes on in the middle of the prompt's text (a raw completion), so a leading space is kept.
    pub continues_text: bool,
    /// Higher goes first, among requests of the same tenant.
    pub priority: i32,
    /// Answers that are not complete by then, counted from submission, end as they are.
    pub time_limit: Option<Duration>,
    /// Whom it is run for: tenants that wait are served alike.
    pub tenant: u64,
    /// Prefix pages are shared between requests of the same salt only.
    pub cache_salt: u64,
    /// Let drafters propose tokens, where the engine has some. The answer is the same with and without.
    pub speculate: bool,
}

impl Request {
    /// A request for at most `max_tokens` tokens after `prompt`, with everything else at its default.
    pub fn new(prompt: Vec<u32>, sampling: SamplingParams, max_tokens: usize) -> Request {
        Request {
            prompt,
            task: Task::Generate,
            sampling,
            max_tokens,
            n: 1,
            top_logprobs: 0,
            grammar: None,
            grammar_after: None,
            stop: Vec::new(),
            ignore_eos: false,
            continues_text: false,
            priority: 0,
            time_limit: None,
            tenant: 0,
            cache_salt: 0,
            speculate: true,
        }
    }

    /// A request for the vector of `prompt`.
    pub fn embed(prompt: Vec<u32>, pooling: Pooling) -> Request {
        Request { task: Task::Embed(pooling), ..Request::new(prompt, SamplingParams::default(), 1) }
    }

    /// Refuses what an engine with a context of `context` tokens and a vocabulary of `vocab` cannot run.
    ///
    /// # Errors
    /// [`SubmitError`] says what is wrong.
    pub(crate) fn check(&self, context: usize, vocab: usize) -> Result<(), SubmitError> {
        let tokens = self.prompt.len();
        if tokens == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        if self.max_tokens == 0 {
            return Err(SubmitError::NoTokens);
        }
        let counts = [("n", self.n, 1, MAX_CHOICES), ("top_logprobs", self.top_logprobs, 0, MAX_TOP_LOGPROBS)];
        for (field, value, min, max) in counts {
            if value < min || value > max {
                return Err(SubmitError::OutOfRange { field, value, min, max });
            }
        }
        if tokens >= context {
            return Err(SubmitError::PromptTooLong { tokens, context });
        }
        let biased = self.sampling.logit_bias.iter().map(|&(id, _)| id);
        if let Some(id) = self.prompt.iter().copied().chain(biased).find(|&id| id as usize >= vocab) {
            return Err(SubmitError::BadId { id, vocab });
        }
        let grammar_vocab = self.grammar.as_ref().map_or(0, Grammar::vocab_size);
        if grammar_vocab > vocab {
            return Err(SubmitError::ForeignGrammar { grammar_vocab, vocab });
        }
        self.sampling.validate().map_err(|e| SubmitError::Sampling(e.to_string()))
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
    /// A count outside its range.
    #[error("{field} is {value}; it must be {min} to {max}")]
    OutOfRange {
        /// The field of [`Request`].
        field: &'static str,
        /// What it was.
        value: usize,
        /// The least it may be.
        min: usize,
        /// The most it may be.
        max: usize,
    },
    /// A grammar that was compiled for another model.
    #[error("the grammar was compiled for a vocabulary of {grammar_vocab} tokens, the model has {vocab}")]
    ForeignGrammar {
        /// The grammar's.
        grammar_vocab: usize,
        /// The model's.
        vocab: usize,
    },
    /// A sampling parameter out of range.
    #[error("{0}")]
    Sampling(String),
    /// Too many requests wait already: the same one may be taken later.
    #[error("{waiting} answers are waiting already, and at most {max_waiting} may; try again later")]
    QueueFull {
        /// Answers that wait.
        waiting: usize,
        /// How many may.
        max_waiting: usize,
    },
    /// The scheduler refused.
    #[error("{0}")]
    Scheduler(String),
    /// The engine's thread has ended.
    #[error("the engine has stopped")]
    Stopped,
    /// The engine has met what it cannot go on after, such as a lost GPU.
    #[error("the engine has stopped: {0}")]
    Failed(String),
}

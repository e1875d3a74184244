//! Grammars: which tokens may come next, so that an answer is JSON, fits a schema, matches a pattern.
//!
//! The recognizer is llguidance's (an Earley parser over derivatives of regular expressions, walked along a trie of
//! the vocabulary). A [`GrammarCompiler`] is made once for each vocabulary; it turns a [`GrammarSpec`] into a
//! [`Grammar`], and each answer follows that with a [`GrammarState`] of its own.
//!
//! Invariants: a state depends on the grammar and the tokens pushed alone (never on batch, company or preemption);
//! specifications come from strangers, so compiling is bounded in size, nesting, time and work, each step in work,
//! and what goes wrong is an error, not a panic.

mod compile;
mod limits;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::Matcher;
use serde_json::Value;

pub use compile::GrammarCompiler;
pub use limits::GrammarLimits;

/// What an answer must look like.
#[derive(Clone, Debug, PartialEq)]
pub enum GrammarSpec {
    /// Any JSON object.
    JsonObject,
    /// JSON that fits a schema.
    JsonSchema(Value),
    /// The whole answer matches a regular expression (the syntax of the `regex` crate, without anchors).
    Regex(String),
    /// A context-free grammar in llguidance's dialect of Lark; `start` is its first rule.
    Lark(String),
}

/// Why a grammar could not be made or followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// The specification is not valid, or uses what is not supported.
    #[error("{0}")]
    Invalid(String),
    /// The specification is larger or more deeply nested than is taken from strangers.
    #[error("the grammar's {what} is {value}; at most {max} are taken: make it simpler")]
    TooLarge {
        /// What was counted.
        what: &'static str,
        /// How much it is.
        value: usize,
        /// How much it may be.
        max: usize,
    },
    /// Compiling took too long.
    #[error("compiling the grammar took longer than {seconds} s: make it simpler")]
    TooSlow {
        /// The limit.
        seconds: u64,
    },
    /// Too many grammars are compiled at once.
    #[error("too many grammars are being compiled at once; try again later")]
    Busy,
    /// The vocabulary cannot be used for grammars.
    #[error("the vocabulary cannot be used for grammars: {0}")]
    Vocabulary(String),
    /// An answer could not be followed any further: the step was too much work, or the token was not allowed.
    #[error("the grammar could not be followed: {0}")]
    Step(String),
}

/// A compiled grammar; clones are cheap and share it.
#[derive(Clone)]
pub struct Grammar {
    /// Where each answer starts. Locked only to copy it.
    start: Arc<Mutex<Matcher>>,
    eos: Arc<[u32]>,
    vocab_size: usize,
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").field("vocab_size", &self.vocab_size).finish_non_exhaustive()
    }
}

impl Grammar {
    /// The state before the first token.
    pub fn begin(&self) -> GrammarState {
        let matcher = self.start.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
        GrammarState { matcher, eos: Arc::clone(&self.eos), mask: Vec::new() }
    }

    /// Size of the vocabulary that it was compiled for.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }
}

/// Where one answer is in its grammar.
pub struct GrammarState {
    matcher: Matcher,
    eos: Arc<[u32]>,
    mask: Vec<u32>,
}

impl fmt::Debug for GrammarState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarState").field("stopped", &self.matcher.is_stopped()).finish_non_exhaustive()
    }
}

impl GrammarState {
    /// The tokens that may come next, as [`Sampler::sample_masked`](crate::Sampler::sample_masked) takes them: token
    /// `i` is bit `i % 32` of word `i / 32`. The end-of-text tokens are among them where the answer may end here.
    ///
    /// # Errors
    /// [`GrammarError::Step`] where that takes too much work.
    pub fn mask(&mut self) -> Result<&[u32], GrammarError> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(step_error)?;
        self.mask.clear();
        self.mask.extend_from_slice(allowed.as_slice());
        // The recognizer knows one end of text; a model may have several.
        if self.eos.iter().any(|&eos| is_set(&self.mask, eos)) {
            for &eos in self.eos.iter() {
                if let Some(word) = self.mask.get_mut(eos as usize / 32) {
                    *word |= 1 << (eos % 32);
                }
            }
        }
        Ok(&self.mask)
    }

    /// Goes on with a token of the last mask; `true` where the answer is complete: nothing can follow but its end.
    ///
    /// # Errors
    /// [`GrammarError::Step`] where the token is not allowed, or takes too much work.
    pub fn push(&mut self, token: u32) -> Result<bool, GrammarError> {
        if self.eos.contains(&token) {
            return Ok(true);
        }
        self.matcher.consume_token(token).map_err(step_error)?;
        Ok(self.matcher.is_stopped())
    }

    /// Whether the answer may end here.
    pub fn is_accepting(&mut self) -> bool {
        self.matcher.is_accepting().unwrap_or(false)
    }
}

fn is_set(mask: &[u32], token: u32) -> bool {
    mask.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
}

fn step_error(error: impl fmt::Display) -> GrammarError {
    GrammarError::Step(limits::first_line(&error.to_string()))
}

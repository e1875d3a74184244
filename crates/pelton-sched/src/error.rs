//! What can be refused, each with the numbers that decided it. A refused call changes nothing.

use crate::sequence::SeqId;
use std::error::Error;
use std::fmt;

/// A field of [`Limits`](crate::Limits) outside its range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitsError {
    /// The field, or the product of fields.
    pub field: &'static str,
    /// What it was.
    pub value: usize,
    /// The least it may be.
    pub min: usize,
    /// The most it may be.
    pub max: usize,
}

impl fmt::Display for LimitsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, value, min, max } = self;
        write!(f, "scheduler limit `{field}` is {value}; it must be {min} to {max}")
    }
}

impl Error for LimitsError {}

/// Why a sequence was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddError {
    /// The prompt has no token; there is nothing to predict from.
    EmptyPrompt(SeqId),
    /// `max_new_tokens` is 0; there is nothing to generate.
    NoNewTokens(SeqId),
    /// The id is waiting or running already.
    DuplicateId(SeqId),
    /// The prompt leaves no room for one new token.
    PromptTooLong {
        /// The sequence refused.
        seq: SeqId,
        /// Tokens in its prompt.
        prompt_len: usize,
        /// Longest sequence by configuration.
        max_context: usize,
        /// Tokens the whole KV pool holds.
        pool_tokens: usize,
    },
    /// The waiting queue is at its limit.
    QueueFull {
        /// The sequence refused.
        seq: SeqId,
        /// Sequences waiting now.
        waiting: usize,
        /// The limit.
        max_waiting: usize,
    },
}

impl fmt::Display for AddError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyPrompt(seq) => write!(f, "{seq}: the prompt is empty; give at least one token"),
            Self::NoNewTokens(seq) => write!(f, "{seq}: max_new_tokens is 0; ask for at least one"),
            Self::DuplicateId(seq) => write!(f, "{seq} is waiting or running already"),
            Self::PromptTooLong { seq, prompt_len, max_context, pool_tokens } => write!(
                f,
                "{seq}: the prompt has {prompt_len} tokens, and with one new token it must fit the context of \
                 {max_context} tokens and the KV pool of {pool_tokens}; shorten it or enlarge the smaller of the two"
            ),
            Self::QueueFull { seq, waiting, max_waiting } => {
                write!(f, "{seq}: {waiting} sequences are waiting already (limit {max_waiting}); try again later")
            }
        }
    }
}

impl Error for AddError {}

/// Why a sequence was not forked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForkError {
    /// There is no such parent (it may have finished).
    UnknownParent(SeqId),
    /// The child's id is in use.
    DuplicateId(SeqId),
    /// A plan is running: fork after `commit`.
    StepInFlight,
    /// The child cannot begin with so many of the parent's tokens.
    BadLength {
        /// The parent.
        parent: SeqId,
        /// What was asked for.
        n_tokens: usize,
        /// What the parent has; `1..=len` can be asked for.
        len: usize,
    },
    /// The child would have to wait, and the waiting queue is at its limit.
    QueueFull {
        /// Sequences waiting now.
        waiting: usize,
        /// The limit.
        max_waiting: usize,
    },
}

impl fmt::Display for ForkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownParent(seq) => write!(f, "cannot fork {seq}: it is neither waiting nor running"),
            Self::DuplicateId(seq) => write!(f, "cannot fork into {seq}: it is waiting or running already"),
            Self::StepInFlight => write!(f, "cannot fork while a step runs; fork after its commit"),
            Self::BadLength { parent, n_tokens, len } => {
                write!(f, "cannot fork {parent} at {n_tokens} tokens: it has {len}; ask for 1 to {len}")
            }
            Self::QueueFull { waiting, max_waiting } => {
                write!(f, "cannot fork: {waiting} sequences are waiting already (limit {max_waiting})")
            }
        }
    }
}

impl Error for ForkError {}

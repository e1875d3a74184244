//! One sequence: its tokens, how many of them are in the KV cache, and the pages they lie in.
//!
//! Invariant: `n_kv < tokens.len()`: the last token is never in the cache between steps, because it must
//! still be run for its logits. A waiting sequence holds no page.

use crate::prefix::{CacheMiss, chain_root};
use std::fmt;
use std::sync::Arc;

/// The name of a sequence, chosen by the caller; unique among those waiting or running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqId(pub u64);

impl fmt::Display for SeqId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sequence {}", self.0)
    }
}

/// How many steps of waiting outweigh one level of priority.
pub const AGEING_STEPS: i64 = 256;

/// How a sequence wants to be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeqOptions {
    /// Higher goes first. One level is a head start of [`AGEING_STEPS`] steps, so nothing starves: a
    /// sequence is only ever overtaken by those that arrive before its head start is used up. Within one
    /// level, first come first served. (Bound what strangers may ask for: a billion levels are a long wait.)
    pub priority: i32,
    /// Tokens to generate at most; at least 1.
    pub max_new_tokens: usize,
    /// Whether it takes pages from the prefix cache and leaves its own there (where the cache is on).
    pub use_cache: bool,
    /// Prefix pages are shared only between sequences of the same salt (one per tenant, for example).
    pub cache_salt: u64,
    /// Whom the sequence is run for. Tenants that wait are served alike, whatever each asks for; priorities
    /// hold within one.
    pub tenant: u64,
}

impl Default for SeqOptions {
    /// Priority 0, salt 0, tenant 0, with the cache, no limit on new tokens but the context.
    fn default() -> Self {
        Self { priority: 0, max_new_tokens: usize::MAX, use_cache: true, cache_salt: 0, tenant: 0 }
    }
}

/// Importance: the lesser rank goes first and is preempted last. Fixed at arrival, so the order is total
/// and does not change while a plan is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// Step of arrival, minus the priority's head start.
    due: i64,
    /// Count of arrivals; breaks ties.
    arrival: u64,
}

impl Rank {
    pub(crate) fn new(step: u64, priority: i32, arrival: u64) -> Self {
        let head_start = i64::from(priority) * AGEING_STEPS;
        Self { due: i64::try_from(step).unwrap_or(i64::MAX).saturating_sub(head_start), arrival }
    }
}

/// What of a sequence the current plan runs.
#[derive(Clone, Debug)]
pub(crate) struct Flight {
    /// Tokens run, drafts included.
    pub(crate) len: usize,
    /// The draft tokens at the end of them.
    pub(crate) drafts: Vec<u32>,
    /// Whether the outcome reports new tokens.
    pub(crate) sample: bool,
}

/// A sequence that waits (no pages) or runs.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    pub(crate) options: SeqOptions,
    pub(crate) rank: Rank,
    /// Prompt, then generated tokens.
    pub(crate) tokens: Vec<u32>,
    pub(crate) prompt_len: usize,
    /// Tokens whose keys and values are in `pages`.
    pub(crate) n_kv: usize,
    /// The most `n_kv` has been: what lies below was paid for once and is no news to the cache statistics.
    pub(crate) n_kv_high: usize,
    /// Page table; entry `i` holds positions `i * page_len ..`. May reach beyond `n_kv` (reserved).
    /// Plans share it, so that a step copies no tables.
    pub(crate) pages: Arc<Vec<u32>>,
    /// Leading pages that are in the prefix index: all `n_kv / page_len` full ones, once committed.
    pub(crate) n_indexed: usize,
    /// Chain hash of these pages (see `prefix`).
    pub(crate) chain: u64,
    /// Prompt tokens that came from the prefix cache.
    pub(crate) cached: usize,
    /// Why not more, found when the sequence first got pages; taken by its first row.
    pub(crate) miss: Option<CacheMiss>,
    /// Draft tokens for the next plan.
    pub(crate) draft: Vec<u32>,
    /// Set between plan and commit for the sequences in the plan.
    pub(crate) flight: Option<Flight>,
}

impl Sequence {
    pub(crate) fn new(tokens: Vec<u32>, prompt_len: usize, options: SeqOptions, rank: Rank) -> Self {
        Self {
            options,
            rank,
            prompt_len,
            tokens,
            n_kv: 0,
            n_kv_high: 0,
            pages: Arc::default(),
            n_indexed: 0,
            chain: chain_root(options.cache_salt),
            cached: 0,
            miss: None,
            draft: Vec::new(),
            flight: None,
        }
    }

    /// Tokens not yet in the cache; at least 1. Exactly 1 is decoding, more is prefill.
    pub(crate) fn remaining(&self) -> usize {
        self.tokens.len() - self.n_kv
    }

    /// New tokens it may still get under `context` and its own limit; at least 1 while it lives.
    pub(crate) fn room(&self, context: usize) -> usize {
        let generated = self.tokens.len() - self.prompt_len;
        let by_limit = self.options.max_new_tokens.saturating_sub(generated);
        by_limit.min(context.saturating_sub(self.tokens.len()))
    }

    /// The tokens of page `index`, which must be full.
    pub(crate) fn page_tokens(&self, index: usize, page_len: usize) -> &[u32] {
        &self.tokens[index * page_len..(index + 1) * page_len]
    }
}

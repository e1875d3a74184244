//! What the scheduler can tell about itself: the queues and pages now, and counts since it was made.
//!
//! Invariant: `free_pages + cached_pages + used_pages` is the size of the pool.

use crate::prefix::PrefixIndex;
use crate::scheduler::Scheduler;

/// Counts since the scheduler was made; only grow.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) steps: u64,
    pub(crate) computed_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) generated_tokens: u64,
    pub(crate) draft_tokens: u64,
    pub(crate) accepted_tokens: u64,
    pub(crate) preemptions: u64,
}

/// A snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sequences in the queue.
    pub waiting: usize,
    /// Sequences that hold pages.
    pub running: usize,
    /// Pages with nothing in them.
    pub free_pages: usize,
    /// Pages that no sequence uses, kept for their content; given up when pages are needed.
    pub cached_pages: usize,
    /// Pages in at least one page table.
    pub used_pages: usize,
    /// Non-empty plans made.
    pub steps: u64,
    /// Tokens planned to run, drafts and recomputation included.
    pub computed_tokens: u64,
    /// Tokens taken from the prefix cache instead, after preemption too.
    pub cached_tokens: u64,
    /// New tokens reported to `commit`.
    pub generated_tokens: u64,
    /// Draft tokens run.
    pub draft_tokens: u64,
    /// Draft tokens accepted.
    pub accepted_tokens: u64,
    /// Times that a sequence lost its pages to another.
    pub preemptions: u64,
    /// Cached pages given up.
    pub evictions: u64,
}

impl Scheduler {
    /// The state now.
    pub fn stats(&self) -> Stats {
        let (free_pages, cached_pages) = (self.pool.n_free(), self.pool.n_cached());
        let counters = self.counters;
        Stats {
            waiting: self.tenants.n_waiting(),
            running: self.running.len(),
            free_pages,
            cached_pages,
            used_pages: self.pool.n_pages() - free_pages - cached_pages,
            steps: counters.steps,
            computed_tokens: counters.computed_tokens,
            cached_tokens: counters.cached_tokens,
            generated_tokens: counters.generated_tokens,
            draft_tokens: counters.draft_tokens,
            accepted_tokens: counters.accepted_tokens,
            preemptions: counters.preemptions,
            evictions: self.pool.prefix.as_ref().map_or(0, PrefixIndex::n_evicted),
        }
    }
}

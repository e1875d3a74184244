//! The scheduler's state and the calls that change who is in it: `add`, `fork`, `cancel`, `set_draft`.
//! The step itself is in `plan` and `commit`.
//!
//! Invariant: every sequence either waits in `tenants` (without pages) or is in `running`, ordered by rank.

use crate::error::{AddError, ForkError, LimitsError};
use crate::id_map::IdMap;
use crate::limits::Limits;
use crate::page_pool::PagePool;
use crate::pages::IndexedPage;
use crate::sequence::{Rank, SeqId, SeqOptions, Sequence};
use crate::stats::Counters;
use crate::tenants::Tenants;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Decides what runs. See the crate's documentation for the loop it lives in.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) limits: Limits,
    pub(crate) pool: PagePool,
    pub(crate) seqs: IdMap<Sequence>,
    /// The waiting queue, and what was run for whom.
    pub(crate) tenants: Tenants,
    pub(crate) running: BTreeMap<Rank, SeqId>,
    /// The sequences of the plan that runs, in its order; empty between `commit` and `plan`.
    pub(crate) in_flight: Vec<SeqId>,
    pub(crate) arrivals: u64,
    pub(crate) counters: Counters,
    /// Sequences that have drafts for the next plan.
    pub(crate) drafted: Vec<SeqId>,
    /// Sequences that may run now, at most `limits.max_seqs`.
    pub(crate) max_running: usize,
    /// Tokens of prompts in a plan that has decode rows, at most.
    pub(crate) max_prefill: usize,
    /// Pages that entered the prefix index since they were last asked for; `None` where nobody asks.
    pub(crate) indexed: Option<Vec<IndexedPage>>,
}

impl Scheduler {
    /// An empty scheduler.
    ///
    /// # Errors
    /// A limit is zero or too large; see [`Limits::validate`].
    pub fn new(limits: Limits) -> Result<Self, LimitsError> {
        limits.validate()?;
        let n_pages = u32::try_from(limits.n_pages).expect("validated");
        Ok(Self {
            pool: PagePool::new(n_pages, limits.prefix_cache),
            max_running: limits.max_seqs,
            max_prefill: usize::MAX,
            indexed: None,
            limits,
            seqs: IdMap::default(),
            drafted: Vec::new(),
            tenants: Tenants::default(),
            running: BTreeMap::new(),
            in_flight: Vec::new(),
            arrivals: 0,
            counters: Counters::default(),
        })
    }

    /// The limits it was made with.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Queues a sequence. It may be called at any time, also while a plan runs.
    ///
    /// A prompt that fits is always finished in the end: if it outgrows the context or the pool, with
    /// [`FinishReason::Context`](crate::FinishReason::Context).
    ///
    /// # Errors
    /// The prompt is empty or leaves no room for a new token, `max_new_tokens` is 0, the id is in use, or
    /// the queue is full.
    pub fn add(&mut self, seq: SeqId, prompt: Vec<u32>, options: SeqOptions) -> Result<(), AddError> {
        if prompt.is_empty() {
            return Err(AddError::EmptyPrompt(seq));
        }
        if options.max_new_tokens == 0 {
            return Err(AddError::NoNewTokens(seq));
        }
        if self.seqs.contains_key(&seq) {
            return Err(AddError::DuplicateId(seq));
        }
        if prompt.len() >= self.limits.effective_context() {
            return Err(AddError::PromptTooLong {
                seq,
                prompt_len: prompt.len(),
                max_context: self.limits.max_context,
                pool_tokens: self.limits.pool_tokens(),
            });
        }
        let waiting = self.tenants.n_waiting();
        if waiting >= self.limits.max_waiting {
            return Err(AddError::QueueFull { seq, waiting, max_waiting: self.limits.max_waiting });
        }
        let rank = self.next_rank(options.priority);
        let prompt_len = prompt.len();
        self.tenants.join(options.tenant);
        self.tenants.enqueue(options.tenant, rank, seq);
        self.seqs.insert(seq, Sequence::new(prompt, prompt_len, options, rank));
        Ok(())
    }

    /// Makes `child` a copy of `parent` that shares its pages (copied when one of the two writes). Their
    /// next step gives the child the same logits as the parent: sample it differently.
    ///
    /// # Errors
    /// As [`fork_at`](Self::fork_at).
    pub fn fork(&mut self, parent: SeqId, child: SeqId) -> Result<(), ForkError> {
        let len = self.seqs.get(&parent).ok_or(ForkError::UnknownParent(parent))?.tokens.len();
        self.fork_at(parent, child, len)
    }

    /// Like [`fork`](Self::fork), but the child begins with only the first `n_tokens` of the parent's
    /// tokens: the prompt's length gives another answer to the same prompt.
    ///
    /// With a free place among the running, the child shares pages at once; else it waits without pages,
    /// and takes later what the prefix cache then holds.
    ///
    /// # Errors
    /// The parent is unknown, the child is not, a plan is running, `n_tokens` is not within the parent's
    /// length, or the child would have to wait in a full queue.
    pub fn fork_at(&mut self, parent: SeqId, child: SeqId, n_tokens: usize) -> Result<(), ForkError> {
        if !self.in_flight.is_empty() {
            return Err(ForkError::StepInFlight);
        }
        let old = self.seqs.get(&parent).ok_or(ForkError::UnknownParent(parent))?;
        if self.seqs.contains_key(&child) {
            return Err(ForkError::DuplicateId(child));
        }
        if n_tokens == 0 || n_tokens > old.tokens.len() {
            return Err(ForkError::BadLength { parent, n_tokens, len: old.tokens.len() });
        }
        let runs = self.running.contains_key(&old.rank) && self.running.len() < self.max_running;
        let waiting = self.tenants.n_waiting();
        if !runs && waiting >= self.limits.max_waiting {
            return Err(ForkError::QueueFull { waiting, max_waiting: self.limits.max_waiting });
        }
        let old = old.clone();
        let rank = self.next_rank(old.options.priority);
        let prompt_len = old.prompt_len.min(n_tokens);
        let mut new = Sequence::new(old.tokens[..n_tokens].to_vec(), prompt_len, old.options, rank);
        self.tenants.join(old.options.tenant);
        if runs {
            self.share_pages(&old, &mut new);
            self.running.insert(rank, child);
        } else {
            self.tenants.enqueue(old.options.tenant, rank, child);
        }
        self.seqs.insert(child, new);
        Ok(())
    }

    /// Gives `new` the pages of `old` that hold the tokens before its last one.
    fn share_pages(&mut self, old: &Sequence, new: &mut Sequence) {
        let page_len = self.limits.page_len;
        let mut n_kv = old.n_kv.min(new.tokens.len() - 1);
        let last = n_kv / page_len;
        if old.pages.get(last).is_some_and(|&page| self.pool.is_indexed(page)) {
            // The child would write into a page that the index keeps: it recomputes that page instead.
            n_kv = last * page_len;
        }
        new.n_kv = n_kv;
        new.n_kv_high = n_kv;
        new.pages = Arc::new(old.pages[..n_kv.div_ceil(page_len)].to_vec());
        for &page in new.pages.iter() {
            self.pool.retain(page);
        }
        if self.limits.prefix_cache && new.options.use_cache {
            new.n_indexed = n_kv / page_len;
            new.chain = self.chain_over(new, new.n_indexed);
        }
    }

    /// Removes a sequence and frees its pages at once. If a plan with it is running, its outcome will be
    /// ignored. Gives false if there is no such sequence.
    pub fn cancel(&mut self, seq: SeqId) -> bool {
        self.remove(seq).is_some()
    }

    /// Draft tokens that the next plan may run behind the sequence's decode row. Good for one plan; used
    /// as far as budget, pages, context and `max_new_tokens` allow, and not at all during prefill. Gives
    /// false if there is no such sequence.
    pub fn set_draft(&mut self, seq: SeqId, tokens: &[u32]) -> bool {
        let Some(sequence) = self.seqs.get_mut(&seq) else { return false };
        sequence.draft.clear();
        sequence.draft.extend_from_slice(tokens);
        self.drafted.push(seq);
        true
    }

    /// Prompt and generated tokens of a sequence that waits or runs.
    pub fn tokens(&self, seq: SeqId) -> Option<&[u32]> {
        self.seqs.get(&seq).map(|sequence| sequence.tokens.as_slice())
    }

    /// Prompt tokens of a sequence that waits or runs.
    pub fn prompt(&self, seq: SeqId) -> Option<&[u32]> {
        self.seqs.get(&seq).map(|sequence| &sequence.tokens[..sequence.prompt_len])
    }

    /// Generated tokens of a sequence that waits or runs.
    pub fn generated(&self, seq: SeqId) -> Option<&[u32]> {
        self.seqs.get(&seq).map(|sequence| &sequence.tokens[sequence.prompt_len..])
    }

    /// From the next plan on, lets at most `n` sequences (at least one, at most the limits' `max_seqs`) run at once.
    /// Those that run beyond that go on to their end; nobody is driven out.
    pub fn set_max_running(&mut self, n: usize) {
        self.max_running = n.clamp(1, self.limits.max_seqs);
    }

    /// From the next plan on, a plan with decode rows has at most `n` tokens of prompts, so that streams are not held
    /// up by them. Plans without decode rows are as large as ever, so that even with 0 everything ends.
    pub fn set_max_prefill(&mut self, n: usize) {
        self.max_prefill = n;
    }

    /// Whether a sequence waits or runs.
    pub fn has_work(&self) -> bool {
        !self.seqs.is_empty()
    }

    /// Takes a sequence out of everything; its pages are released.
    pub(crate) fn remove(&mut self, seq: SeqId) -> Option<Sequence> {
        let sequence = self.seqs.remove(&seq)?;
        self.pool.release_table(&sequence.pages);
        let tenant = sequence.options.tenant;
        let waited = self.tenants.dequeue(tenant, sequence.rank);
        let ran = self.running.remove(&sequence.rank).is_some();
        assert!(waited != ran, "{seq} was not in exactly one queue");
        self.tenants.leave(tenant);
        Some(sequence)
    }

    fn next_rank(&mut self, priority: i32) -> Rank {
        self.arrivals += 1;
        Rank::new(self.counters.steps, priority, self.arrivals)
    }
}

//! `commit()`: what the step brought. Tokens are appended, rejected drafts rolled back, full pages entered
//! in the prefix index, finished sequences removed.
//!
//! Invariant: a page enters the index only when all its tokens are in the KV cache for good (no drafts), and
//! a chain is there once: a page computed twice is replaced by the one already known.

use crate::pages::IndexedPage;
use crate::prefix::{Parent, chain_next};
use crate::scheduler::Scheduler;
use crate::sequence::{Flight, SeqId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the engine reports for a row with `sample`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepOutcome {
    /// The sequence.
    pub seq: SeqId,
    /// New tokens, at most `1 + n_drafts`: accepted drafts, then the one sampled after them. All but the
    /// last must equal the row's drafts. None means that the same position is run again.
    pub new_tokens: Vec<u32>,
    /// Whether the sequence ends with them (end token, stop string).
    pub finished: bool,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The engine said so.
    Stopped,
    /// It has `max_new_tokens`.
    MaxNewTokens,
    /// It fills the context or the whole pool (see [`Limits::effective_context`](crate::Limits::effective_context)).
    Context,
}

/// A sequence that ended. Its id is free again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The sequence.
    pub seq: SeqId,
    /// Why it ended.
    pub reason: FinishReason,
    /// Prompt and generated tokens.
    pub tokens: Vec<u32>,
    /// How many of them are the prompt.
    pub prompt_len: usize,
}

impl Scheduler {
    /// Takes in what the planned step brought, and gives the sequences that ended, in the plan's order.
    ///
    /// Every row with `sample` reports exactly once; the others advance by themselves. Outcomes of
    /// sequences cancelled since the plan are ignored.
    ///
    /// # Panics
    /// If the outcomes do not fit the plan: one is missing or twice there, is for a row without `sample`,
    /// or has more tokens than the row could give, or drafts that were not planned.
    pub fn commit(&mut self, outcomes: &[StepOutcome]) -> Vec<Finished> {
        let mut reported = BTreeMap::new();
        for outcome in outcomes {
            let twice = reported.insert(outcome.seq, outcome);
            assert!(twice.is_none(), "{} reported twice", outcome.seq);
        }
        let mut finished = Vec::new();
        for id in std::mem::take(&mut self.in_flight) {
            let outcome = reported.remove(&id);
            let Some(sequence) = self.seqs.get_mut(&id) else { continue }; // cancelled meanwhile
            let Some(flight) = sequence.flight.take() else { continue }; // cancelled, and its id taken again
            if !flight.sample {
                assert!(outcome.is_none(), "{id} reported, but its row was not to be sampled");
                sequence.n_kv += flight.len;
                self.index_pages(id);
                continue;
            }
            let outcome = outcome.unwrap_or_else(|| panic!("{id} was to be sampled and did not report"));
            self.advance(id, &flight, &outcome.new_tokens);
            self.index_pages(id);
            if let Some(reason) = self.finish_reason(id, outcome.finished) {
                let sequence = self.remove(id).expect("the sequence runs");
                finished.push(Finished { seq: id, reason, tokens: sequence.tokens, prompt_len: sequence.prompt_len });
            }
        }
        finished
    }

    /// Appends the new tokens; keeps the KV entries of all tokens but the last, gives back the pages of the rest.
    fn advance(&mut self, id: SeqId, flight: &Flight, new_tokens: &[u32]) {
        let sequence = self.seqs.get_mut(&id).expect("the sequence runs");
        let (n_new, n_drafts) = (new_tokens.len(), flight.drafts.len());
        assert!(n_new <= n_drafts + 1, "{id} reported {n_new} tokens after {n_drafts} drafts");
        let accepted = n_new.saturating_sub(1);
        assert!(new_tokens[..accepted] == flight.drafts[..accepted], "{id} accepted drafts that were not planned");
        self.counters.draft_tokens += n_drafts as u64;
        self.counters.accepted_tokens += accepted as u64;
        self.counters.generated_tokens += n_new as u64;
        sequence.tokens.extend_from_slice(new_tokens);
        sequence.n_kv = sequence.tokens.len() - 1;
        let keep = self.limits.pages_for(sequence.n_kv).min(sequence.pages.len());
        if keep < sequence.pages.len() {
            self.pool.release_table(&Arc::make_mut(&mut sequence.pages).split_off(keep));
        }
    }

    /// Enters the pages that became full into the prefix index, or swaps them for the same ones there.
    fn index_pages(&mut self, id: SeqId) {
        let page_len = self.limits.page_len;
        let sequence = self.seqs.get_mut(&id).expect("the sequence runs");
        sequence.n_kv_high = sequence.n_kv_high.max(sequence.n_kv);
        if self.pool.prefix.is_none() || !sequence.options.use_cache {
            return;
        }
        for index in sequence.n_indexed..sequence.n_kv / page_len {
            let tokens = &sequence.tokens[index * page_len..(index + 1) * page_len];
            let chain = chain_next(sequence.chain, tokens);
            let parent = match index.checked_sub(1) {
                None => Parent::Root(sequence.options.cache_salt),
                Some(before) => Parent::Page(sequence.pages[before]),
            };
            let page = sequence.pages[index];
            let prefix = self.pool.prefix.as_mut().expect("checked above");
            match prefix.find(parent, tokens) {
                None => {
                    let tokens = prefix.insert(parent, chain, tokens, page);
                    if let Some(indexed) = &mut self.indexed {
                        let (salt, parent) = (sequence.options.cache_salt, parent.page());
                        indexed.push(IndexedPage { page, parent, salt, tokens });
                    }
                }
                Some(known) => {
                    self.pool.retain(known);
                    self.pool.release(page);
                    Arc::make_mut(&mut sequence.pages)[index] = known;
                }
            }
            sequence.chain = chain;
            sequence.n_indexed = index + 1;
        }
    }

    fn finish_reason(&self, id: SeqId, stopped: bool) -> Option<FinishReason> {
        let sequence = &self.seqs[&id];
        if stopped {
            Some(FinishReason::Stopped)
        } else if sequence.tokens.len() - sequence.prompt_len >= sequence.options.max_new_tokens {
            Some(FinishReason::MaxNewTokens)
        } else if sequence.tokens.len() >= self.limits.effective_context() {
            Some(FinishReason::Context)
        } else {
            None
        }
    }
}

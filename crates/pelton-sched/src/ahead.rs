//! What a drafter needs to know before a plan is made: who decodes next, and which pages lie ahead of a sequence.
//!
//! Invariants: pages reserved ahead belong to their sequence alone and are part of its page table, so whatever frees
//! the table frees them; reserving drives nobody out, and leaves a page for each other sequence that runs.

use crate::scheduler::Scheduler;
use crate::sequence::SeqId;
use std::sync::Arc;

/// The pages of a sequence, up to some tokens beyond those it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// Page table for positions `0 .. len + n`, where `len` counts the sequence's tokens; it may go on.
    pub pages: Arc<Vec<u32>>,
    /// How many tokens beyond its own have a page: at most as many as were asked for.
    pub n: usize,
}

impl Scheduler {
    /// The sequences whose next row has one token, most important first: those that drafts can be set for.
    pub fn decoding(&self) -> impl Iterator<Item = SeqId> + '_ {
        self.running.values().copied().filter(|id| self.seqs[id].remaining() == 1)
    }

    /// How many tokens of prompts the next plan may have, at least where any: those that sequences that run have left,
    /// and those of the next one that waits, if there is a place for it. None where this is 0; of prompts in the prefix
    /// cache fewer than this, of several that wait more.
    pub fn prompt_tokens(&self) -> usize {
        let has_place = self.running.len() < self.max_running;
        let enters = has_place.then(|| self.tenants.first(None)).flatten().map_or(0, |id| self.seqs[&id].remaining());
        let left = self.running.values().map(|id| self.seqs[id].remaining()).filter(|&n| n > 1).sum::<usize>();
        (enters + left).min(self.limits.max_batch_rows)
    }

    /// The page table of a sequence that waits (it is empty then) or runs.
    pub fn pages(&self, seq: SeqId) -> Option<&[u32]> {
        self.seqs.get(&seq).map(|sequence| sequence.pages.as_slice())
    }

    /// Takes back the drafts set for the next plan beyond the first `len`. Gives false if there is no such sequence.
    pub fn shorten_draft(&mut self, seq: SeqId, len: usize) -> bool {
        let Some(sequence) = self.seqs.get_mut(&seq) else { return false };
        sequence.draft.truncate(len);
        true
    }

    /// Tokens that a sequence may still get, at least 1; `None` if there is no such sequence.
    pub fn room(&self, seq: SeqId) -> Option<usize> {
        Some(self.seqs.get(&seq)?.room(self.limits.effective_context()))
    }

    /// Gives a sequence that decodes next pages for up to `n` tokens beyond its own, as far as context and pages
    /// allow; a plan uses them for drafts, and `commit` gives back what is then not needed. `None` where the sequence
    /// does not decode next, or the page that it writes next is shared (the next plan copies it).
    pub fn reserve_ahead(&mut self, seq: SeqId, n: usize) -> Option<Ahead> {
        let page_len = self.limits.page_len;
        let sequence = self.seqs.get(&seq)?;
        if !self.running.contains_key(&sequence.rank) || sequence.remaining() != 1 || sequence.flight.is_some() {
            return None;
        }
        let index = sequence.n_kv / page_len;
        if sequence.pages.get(index).is_some_and(|&page| self.pool.refs(page) > 1) {
            return None;
        }
        let spare = self.pool.n_available().saturating_sub(self.running.len() - 1);
        let backed = (sequence.pages.len() + spare) * page_len;
        let len = sequence.tokens.len();
        let room = sequence.room(self.limits.effective_context());
        let n = n.min(room.saturating_sub(1)).min(backed.checked_sub(len)?);
        let reserved = self.reserve(seq, 1 + n).len;
        let pages = Arc::clone(&self.seqs[&seq].pages);
        Some(Ahead { pages, n: reserved.checked_sub(1)? })
    }
}

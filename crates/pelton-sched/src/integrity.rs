//! `check_integrity()`: the invariants that the other files state, asserted all at once.
//!
//! It costs time in proportion to the pool and to all tokens: for tests, after every call.

use crate::prefix::{Parent, PrefixIndex};
use crate::scheduler::Scheduler;
use crate::sequence::{SeqId, Sequence};
use std::collections::BTreeMap;

impl Scheduler {
    /// Asserts every internal invariant.
    ///
    /// # Panics
    /// If one is broken: that is a mistake in this crate.
    pub fn check_integrity(&self) {
        let n_queued = self.tenants.n_waiting() + self.running.len();
        assert_eq!(n_queued, self.seqs.len(), "a sequence is in no queue, or in two");
        assert!(self.running.len() <= self.limits.max_seqs, "too many sequences run");
        let mut n_seqs = BTreeMap::new();
        self.seqs.values().for_each(|sequence| *n_seqs.entry(sequence.options.tenant).or_insert(0) += 1);
        self.tenants.check_integrity(&n_seqs);
        for (tenant, rank, id) in self.tenants.waiting() {
            let sequence = &self.seqs[&id];
            assert_eq!((sequence.options.tenant, sequence.rank), (tenant, rank), "{id} waits under another's rank");
            assert!(sequence.pages.is_empty() && sequence.n_kv == 0, "{id} waits and holds pages");
            assert!(sequence.flight.is_none(), "{id} waits and is in the plan");
        }
        let mut held = vec![0; self.pool.n_pages()];
        for (rank, id) in &self.running {
            let sequence = &self.seqs[id];
            assert_eq!(sequence.rank, *rank, "{id} runs under another's rank");
            self.check_sequence(*id, sequence);
            for &page in sequence.pages.iter() {
                held[page as usize] += 1;
            }
        }
        let n_flying = self.seqs.values().filter(|sequence| sequence.flight.is_some()).count();
        assert!(n_flying <= self.in_flight.len(), "a sequence is in flight outside the plan");
        self.pool.check_integrity(&held);
    }

    fn check_sequence(&self, id: SeqId, sequence: &Sequence) {
        let page_len = self.limits.page_len;
        let Sequence { n_kv, n_kv_high, n_indexed, .. } = *sequence;
        assert!(n_kv < sequence.tokens.len(), "{id}: no token is left to run");
        assert!(n_kv <= n_kv_high, "{id}: more is in the cache than ever was");
        assert!(sequence.tokens.len() < self.limits.effective_context(), "{id} should have ended at the context");
        assert!(sequence.room(self.limits.effective_context()) > 0, "{id} should have ended");
        assert!(sequence.cached <= sequence.prompt_len, "{id}: more than the prompt came from the cache");
        assert!(sequence.pages.len() * page_len >= n_kv, "{id}: tokens without a page");
        let mut table = sequence.pages.to_vec();
        table.sort_unstable();
        table.dedup();
        assert_eq!(table.len(), sequence.pages.len(), "{id}: a page is twice in its table");
        // Beyond the tokens in the cache, a page is reserved for this sequence alone.
        for &page in &sequence.pages[n_kv.div_ceil(page_len)..] {
            assert_eq!(self.pool.refs(page), 1, "{id}: reserved page {page} is shared");
        }
        if !sequence.options.use_cache {
            assert_eq!(n_indexed, 0, "{id}: it does not use the cache");
            assert!(sequence.pages.iter().all(|&page| !self.pool.is_indexed(page)), "{id}: its pages are in the index");
        } else if let Some(prefix) = &self.pool.prefix {
            assert_eq!(n_indexed, n_kv / page_len, "{id}: full pages and indexed pages differ");
            self.check_indexed(id, sequence, prefix);
        }
    }

    fn check_indexed(&self, id: SeqId, sequence: &Sequence, prefix: &PrefixIndex) {
        let page_len = self.limits.page_len;
        assert_eq!(sequence.chain, self.chain_over(sequence, sequence.n_indexed), "{id}: wrong chain hash");
        let mut parent = Parent::Root(sequence.options.cache_salt);
        for (index, &page) in sequence.pages.iter().enumerate() {
            if index < sequence.n_indexed {
                let found = prefix.find(parent, sequence.page_tokens(index, page_len));
                assert_eq!(found, Some(page), "{id}: page {index} is another in the index");
            } else {
                assert!(!prefix.contains(page), "{id}: page {index} is written to and indexed");
            }
            parent = Parent::Page(page);
        }
    }
}

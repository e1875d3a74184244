//! `plan()`: which tokens of which sequences run in the next step, and in which pages they lie.
//!
//! ```text
//! decode rows, most important first     one token each, plus drafts from the spare budget
//! prefill chunks of running sequences   as much as the budget leaves, the least served tenants first
//! admission from the queue              in strict order; stops at the first that does not fit
//! long prompts, a second time           what they left to shorter ones (`share`) and nobody took
//! ```
//!
//! Invariants: a plan's tokens never exceed the budget; a page that a row writes belongs to that row's
//! sequence alone; a sequence that is already in the plan is never preempted by it. The most important
//! running sequence always gets what it needs (all others can be preempted), so every plan with running
//! sequences makes progress.

use crate::prefix::{CacheMiss, Parent, chain_next, chain_root};
use crate::scheduler::Scheduler;
use crate::sequence::{Flight, SeqId, Sequence};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What one sequence runs in a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanRow {
    /// The sequence.
    pub seq: SeqId,
    /// Token ids to run, at positions `start ..`.
    pub tokens: Vec<u32>,
    /// Position of the first of them; so many tokens are in the KV cache already.
    pub start: usize,
    /// How many of the last `tokens` are drafts.
    pub n_drafts: usize,
    /// Page table for positions `0 .. start + tokens.len()`; it may go on, with pages for later steps.
    pub pages: Arc<Vec<u32>>,
    /// Whether logits are needed: those of the last `1 + n_drafts` tokens. `commit` then expects an outcome.
    pub sample: bool,
    /// Prompt tokens that came from the prefix cache so far; a recomputation after preemption adds none.
    pub cached: usize,
    /// On the sequence's first row: why not more of the prompt was cached. `None` on later rows, when all
    /// full pages were found, and with the prefix cache off.
    pub miss: Option<CacheMiss>,
    /// Pages to copy whole, `(source, destination)`, before any row of the plan runs; over the plan, in order.
    pub copies: Vec<(u32, u32)>,
}

/// One step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// One row per sequence that runs; empty if none can.
    pub rows: Vec<PlanRow>,
    /// Sequences that lost their pages and wait again; nothing of theirs is lost but time.
    pub preempted: Vec<SeqId>,
}

impl Plan {
    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Tokens to run, over all rows.
    pub fn n_tokens(&self) -> usize {
        self.rows.iter().map(|row| row.tokens.len()).sum()
    }
}

/// A plan in the making.
#[derive(Default)]
pub(crate) struct Draft {
    pub(crate) plan: Plan,
    /// Rows left of the token budget.
    pub(crate) budget: usize,
    /// Rows that left some of the budget to others, by place in the plan.
    pub(crate) cut: Vec<usize>,
    /// A running sequence found no page: nobody may be admitted before it.
    starved: bool,
    /// Chain hashes of the prompt pages that this plan computes, whole or in part.
    computing: BTreeSet<u64>,
}

/// Pages made ready for a row.
pub(crate) struct Reserved {
    /// Positions from `n_kv` on that are backed by pages of the sequence's own.
    pub(crate) len: usize,
    /// The page copied on write, if one was.
    copy: Option<(u32, u32)>,
}

impl Scheduler {
    /// Plans the next step. Run its rows, then call [`commit`](Self::commit), before planning again; an
    /// empty plan needs no commit.
    ///
    /// # Panics
    /// If the previous plan was not committed.
    pub fn plan(&mut self) -> Plan {
        assert!(self.in_flight.is_empty(), "plan() was called before the last plan was committed");
        let mut draft = Draft { budget: self.limits.max_batch_rows, ..Draft::default() };
        self.plan_decodes(&mut draft);
        if !draft.plan.is_empty() {
            draft.budget = draft.budget.min(self.max_prefill);
        }
        self.plan_prefills(&mut draft);
        self.admit_waiting(&mut draft, None);
        self.hand_back(&mut draft);
        for id in std::mem::take(&mut self.drafted) {
            if let Some(sequence) = self.seqs.get_mut(&id) {
                sequence.draft.clear();
            }
        }
        self.counters.steps += u64::from(!draft.plan.is_empty());
        draft.plan
    }

    fn plan_decodes(&mut self, draft: &mut Draft) {
        let ready: Vec<SeqId> = self.running.values().copied().filter(|id| self.seqs[id].remaining() == 1).collect();
        // Each decode row has its one token before any gets drafts.
        let n_ready = ready.len();
        let mut spare = draft.budget.saturating_sub(n_ready);
        for (index, id) in ready.into_iter().enumerate() {
            if draft.budget == 0 {
                return;
            }
            if !draft.plan.preempted.is_empty() && !self.is_running(id) {
                continue; // preempted by one before it
            }
            let Some(reserved) = self.reserve_or_preempt(id, draft) else {
                draft.starved = true;
                continue;
            };
            let has_draft = !self.drafted.is_empty() && !self.seqs[&id].draft.is_empty();
            let n_drafts = if has_draft { self.reserve_drafts(id, spare, n_ready - index - 1) } else { 0 };
            spare -= n_drafts;
            self.emit(id, 1, n_drafts, reserved.copy, draft);
        }
    }

    fn plan_prefills(&mut self, draft: &mut Draft) {
        let ready = self.running.values().copied().filter(|id| self.seqs[id].remaining() > 1);
        let mut ready: Vec<(u64, SeqId)> =
            ready.map(|id| (self.tenants.served(self.seqs[&id].options.tenant), id)).collect();
        // Stable: within a tenant, the order of importance stays.
        ready.sort_by_key(|&(served, _)| served);
        for (place, &(served, id)) in ready.iter().enumerate() {
            // A long prompt does not keep out those for whom less was done.
            self.admit_waiting(draft, Some(served));
            if draft.budget == 0 {
                return;
            }
            if !self.is_running(id) {
                continue;
            }
            self.adopt_cached(id);
            if self.awaits_page(&self.seqs[&id], draft) {
                continue;
            }
            let Some(first) = self.reserve_or_preempt(id, draft) else {
                draft.starved = true;
                continue;
            };
            let wanted = self.share_of(id, ready[place + 1..].iter().map(|&(_, id)| id), draft);
            let len = self.reserve(id, wanted).len;
            self.emit(id, len, 0, first.copy, draft);
        }
    }

    /// Lets in who waits; with `below`, only of tenants that were served less than that.
    fn admit_waiting(&mut self, draft: &mut Draft, below: Option<u64>) {
        let may_admit = !draft.starved && draft.plan.preempted.is_empty();
        while may_admit && draft.budget > 0 && self.running.len() < self.max_running {
            let Some(id) = self.tenants.first(below) else { return };
            let sequence = &self.seqs[&id];
            let (rank, tenant) = (sequence.rank, sequence.options.tenant);
            let Some(found) = self.fits(sequence, draft) else { return };
            self.tenants.dequeue(tenant, rank);
            self.running.insert(rank, id);
            self.place(id, &found);
            let len = self.share_of(id, std::iter::empty(), draft);
            self.emit(id, len, 0, None, draft);
        }
    }

    /// The cached pages that a waiting sequence can begin with, if it can be admitted now: there are pages
    /// for all its tokens and, so that it does not drive others out at once, one more for each that runs.
    fn fits(&self, sequence: &Sequence, draft: &Draft) -> Option<Vec<u32>> {
        let found = self.find_cached(sequence);
        let chain = self.chain_over(sequence, found.len());
        if self.will_be_cached(sequence, found.len(), chain, draft) {
            return None;
        }
        let idle = found.iter().filter(|&&page| self.pool.refs(page) == 0).count();
        let new = self.limits.pages_for(sequence.tokens.len()) - found.len();
        let headroom = self.running.len();
        (new + headroom <= self.pool.n_available() - idle).then_some(found)
    }

    /// Gives an admitted sequence its cached pages and new ones for the rest of its tokens.
    fn place(&mut self, id: SeqId, found: &[u32]) {
        let page_len = self.limits.page_len;
        let sequence = &self.seqs[&id];
        let miss = self.explain_miss(sequence, found);
        let chain = self.chain_over(sequence, found.len());
        let n_pages = self.limits.pages_for(sequence.tokens.len());
        for &page in found {
            self.pool.retain(page);
        }
        let mut pages = found.to_vec();
        while pages.len() < n_pages {
            pages.push(self.pool.alloc().expect("admission counted the pages"));
        }
        let sequence = self.seqs.get_mut(&id).expect("the sequence waited");
        let is_first = sequence.n_kv_high == 0;
        sequence.pages = Arc::new(pages);
        sequence.chain = chain;
        sequence.n_indexed = found.len();
        sequence.miss = miss.filter(|_| is_first);
        self.count_cached(id, found.len() * page_len);
    }

    /// A prefilling sequence at a page boundary goes on with what others have computed meanwhile.
    fn adopt_cached(&mut self, id: SeqId) {
        let page_len = self.limits.page_len;
        loop {
            let sequence = &self.seqs[&id];
            let index = sequence.n_kv / page_len;
            if !sequence.n_kv.is_multiple_of(page_len) {
                return;
            }
            let Some(page) = self.find_page(sequence, index, &sequence.pages) else { return };
            let tokens = sequence.page_tokens(index, page_len);
            let chain = chain_next(sequence.chain, tokens);
            self.pool.retain(page);
            let sequence = self.seqs.get_mut(&id).expect("the sequence runs");
            sequence.chain = chain;
            sequence.n_indexed = index + 1;
            // A page reserved for the same tokens is not needed any more.
            let pages = Arc::make_mut(&mut sequence.pages);
            match pages.get_mut(index) {
                Some(slot) => self.pool.release(std::mem::replace(slot, page)),
                None => pages.push(page),
            }
            self.count_cached(id, (index + 1) * page_len);
        }
    }

    /// Moves `n_kv` up to `n_kv`, all of it taken from the prefix cache.
    fn count_cached(&mut self, id: SeqId, n_kv: usize) {
        let sequence = self.seqs.get_mut(&id).expect("the sequence runs");
        self.counters.cached_tokens += (n_kv - sequence.n_kv) as u64;
        let news = n_kv.min(sequence.prompt_len).saturating_sub(sequence.n_kv_high.max(sequence.n_kv));
        sequence.cached += news;
        sequence.n_kv = n_kv;
        sequence.n_kv_high = sequence.n_kv_high.max(n_kv);
    }

    /// Cached pages that a sequence can begin with. The page of its last token is never among them, for
    /// that token must be run.
    fn find_cached(&self, sequence: &Sequence) -> Vec<u32> {
        let mut found = Vec::new();
        while let Some(page) = self.find_page(sequence, found.len(), &found) {
            found.push(page);
        }
        found
    }

    /// The indexed page number `index` of a sequence whose pages before it are `table`.
    fn find_page(&self, sequence: &Sequence, index: usize, table: &[u32]) -> Option<u32> {
        let page_len = self.limits.page_len;
        if (index + 1) * page_len >= sequence.tokens.len() || !sequence.options.use_cache {
            return None;
        }
        let parent = parent_of(sequence, index, table);
        self.pool.prefix.as_ref()?.find(parent, sequence.page_tokens(index, page_len))
    }

    fn explain_miss(&self, sequence: &Sequence, found: &[u32]) -> Option<CacheMiss> {
        let (index, page_len) = (found.len(), self.limits.page_len);
        self.pool.prefix.as_ref().filter(|_| sequence.options.use_cache)?;
        if (index + 1) * page_len >= sequence.tokens.len() {
            return (index == 0).then_some(CacheMiss::TooShort);
        }
        let chain = self.chain_over(sequence, index);
        let tokens = sequence.page_tokens(index, page_len);
        let parent = parent_of(sequence, index, found);
        Some(self.pool.prefix.as_ref()?.explain(parent, chain, tokens, index * page_len))
    }

    /// Chain hash of the first `n_pages` pages of a sequence.
    pub(crate) fn chain_over(&self, sequence: &Sequence, n_pages: usize) -> u64 {
        (0..n_pages)
            .map(|index| sequence.page_tokens(index, self.limits.page_len))
            .fold(chain_root(sequence.options.cache_salt), chain_next)
    }

    fn awaits_page(&self, sequence: &Sequence, draft: &Draft) -> bool {
        let page_len = self.limits.page_len;
        sequence.n_kv.is_multiple_of(page_len)
            && self.will_be_cached(sequence, sequence.n_kv / page_len, sequence.chain, draft)
    }

    /// Whether a row of this plan computes the very page that the sequence would compute next: a step or a few
    /// later it is in the cache. (A hash collision here costs those steps.)
    fn will_be_cached(&self, sequence: &Sequence, index: usize, chain: u64, draft: &Draft) -> bool {
        let page_len = self.limits.page_len;
        let is_reusable = (index + 1) * page_len < sequence.tokens.len() && sequence.options.use_cache;
        is_reusable
            && !draft.computing.is_empty()
            && draft.computing.contains(&chain_next(chain, sequence.page_tokens(index, page_len)))
    }

    /// Makes the next position writable, at the cost of less important sequences that are not in the plan.
    /// `None` if there are none left.
    fn reserve_or_preempt(&mut self, id: SeqId, draft: &mut Draft) -> Option<Reserved> {
        loop {
            let reserved = self.reserve(id, 1);
            if reserved.len > 0 {
                return Some(reserved);
            }
            let rank = self.seqs[&id].rank;
            let victim = self.running.range(rank..).rev().map(|(_, &victim)| victim);
            let victim = victim.take_while(|&victim| victim != id).find(|victim| self.seqs[victim].flight.is_none())?;
            self.preempt(victim);
            draft.plan.preempted.push(victim);
        }
    }

    /// Makes up to `len` positions from `n_kv` on writable, as far as pages are available.
    pub(crate) fn reserve(&mut self, id: SeqId, len: usize) -> Reserved {
        let page_len = self.limits.page_len;
        let sequence = self.seqs.get_mut(&id).expect("the sequence runs");
        let (index, mut copy) = (sequence.n_kv / page_len, None);
        if let Some(&shared) = sequence.pages.get(index)
            && self.pool.refs(shared) > 1
        {
            let Some(page) = self.pool.alloc() else { return Reserved { len: 0, copy } };
            copy = Some((shared, page));
            Arc::make_mut(&mut sequence.pages)[index] = page;
            self.pool.release(shared);
        }
        let end = sequence.n_kv + len;
        while sequence.pages.len() * page_len < end {
            let Some(page) = self.pool.alloc() else { break };
            Arc::make_mut(&mut sequence.pages).push(page);
        }
        Reserved { len: end.min(sequence.pages.len() * page_len) - sequence.n_kv, copy }
    }

    /// How many drafts can run behind the decode token of a sequence. They leave a page for each of the
    /// `n_behind` sequences still to be planned: a guess must not drive out anybody's token.
    fn reserve_drafts(&mut self, id: SeqId, spare: usize, n_behind: usize) -> usize {
        let page_len = self.limits.page_len;
        let sequence = &self.seqs[&id];
        let room = sequence.room(self.limits.effective_context());
        let n_pages = sequence.pages.len() + self.pool.n_available().saturating_sub(n_behind);
        let backed = n_pages * page_len - sequence.n_kv;
        let wanted = sequence.draft.len().min(spare).min(room.saturating_sub(1)).min(backed - 1);
        self.reserve(id, 1 + wanted).len - 1
    }

    fn preempt(&mut self, id: SeqId) {
        let sequence = self.seqs.get_mut(&id).expect("the victim runs");
        self.pool.release_table(&std::mem::take(&mut sequence.pages));
        sequence.n_kv = 0;
        sequence.n_indexed = 0;
        sequence.chain = chain_root(sequence.options.cache_salt);
        self.running.remove(&sequence.rank);
        self.tenants.enqueue(sequence.options.tenant, sequence.rank, id);
        self.counters.preemptions += 1;
    }

    fn is_running(&self, id: SeqId) -> bool {
        self.running.contains_key(&self.seqs[&id].rank)
    }

    /// Takes note of the pages that a sequence computes up to token `end`, the last of them perhaps in part.
    fn note_computing(&self, id: SeqId, end: usize, draft: &mut Draft) {
        let (page_len, sequence) = (self.limits.page_len, &self.seqs[&id]);
        if !self.limits.prefix_cache || !sequence.options.use_cache {
            return;
        }
        let n_full = sequence.tokens.len() / page_len;
        let mut chain = sequence.chain;
        for index in sequence.n_kv / page_len..end.div_ceil(page_len).min(n_full) {
            chain = chain_next(chain, sequence.page_tokens(index, page_len));
            draft.computing.insert(chain);
        }
    }

    /// Puts `len` tokens and `n_drafts` draft tokens of a sequence into the plan; their pages are reserved.
    fn emit(&mut self, id: SeqId, len: usize, n_drafts: usize, copy: Option<(u32, u32)>, draft: &mut Draft) {
        let sequence = &self.seqs[&id];
        let (start, end) = (sequence.n_kv, sequence.n_kv + len);
        let mut tokens = sequence.tokens[start..end].to_vec();
        tokens.extend_from_slice(&sequence.draft[..n_drafts]);
        let sample = end == sequence.tokens.len();
        if len > 1 || !sample {
            self.note_computing(id, end, draft);
        }
        let sequence = self.seqs.get_mut(&id).expect("the sequence runs");
        draft.budget -= tokens.len();
        self.counters.computed_tokens += tokens.len() as u64;
        self.tenants.charge(sequence.options.tenant, tokens.len());
        sequence.flight = Some(Flight { len: tokens.len(), drafts: tokens[len..].to_vec(), sample });
        draft.plan.rows.push(PlanRow {
            seq: id,
            start,
            n_drafts,
            pages: Arc::clone(&sequence.pages),
            sample,
            cached: sequence.cached,
            miss: sequence.miss.take(),
            copies: copy.into_iter().collect(),
            tokens,
        });
        self.in_flight.push(id);
    }

    /// Makes a row of a prompt `len` tokens long; its pages are reserved.
    pub(crate) fn lengthen(&mut self, row: usize, len: usize, draft: &mut Draft) {
        let row = &mut draft.plan.rows[row];
        let sequence = self.seqs.get_mut(&row.seq).expect("the sequence runs");
        let (end, more) = (row.start + len, len - row.tokens.len());
        row.tokens.extend_from_slice(&sequence.tokens[end - more..end]);
        row.pages = Arc::clone(&sequence.pages);
        row.sample = end == sequence.tokens.len();
        let flight = sequence.flight.as_mut().expect("the sequence is in the plan");
        (flight.len, flight.sample) = (len, row.sample);
        draft.budget -= more;
        self.counters.computed_tokens += more as u64;
        self.tenants.charge(sequence.options.tenant, more);
    }
}

/// What page number `index` of a sequence follows, if its pages before it are `table`.
fn parent_of(sequence: &Sequence, index: usize, table: &[u32]) -> Parent {
    match index.checked_sub(1) {
        None => Parent::Root(sequence.options.cache_salt),
        Some(before) => Parent::Page(table[before]),
    }
}

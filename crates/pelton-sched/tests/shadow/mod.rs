//! A shadow engine: it runs plans against a KV cache of hashes and knows what every sequence must say.
//!
//! A KV slot holds the hash of everything the real slot would depend on: salt and all tokens up to its
//! position. Invariant checked at every plan: after the step, each row reads exactly its own history.

use crate::random::Random;
use pelton_sched::{FinishReason, Finished, Limits, Plan, PlanRow, Scheduler, SeqId, SeqOptions, StepOutcome};
use std::collections::{BTreeMap, BTreeSet};

fn mix(hash: u64, value: u64) -> u64 {
    let x = (hash ^ value).wrapping_mul(0xff51_afd7_ed55_8ccd);
    (x ^ (x >> 29)).wrapping_add(0x1234_5678_9abc_def1)
}

/// What the shadow knows of a live sequence.
struct Known {
    options: SeqOptions,
    /// Decides its generated tokens, with the history.
    voice: u64,
    tokens: Vec<u32>,
    prompt_len: usize,
    /// History hash up to and with each token.
    history: Vec<u64>,
    has_run: bool,
}

impl Known {
    fn push(&mut self, token: u32) {
        let before = self.history.last().copied().unwrap_or(mix(0, self.options.cache_salt));
        self.history.push(mix(before, u64::from(token)));
        self.tokens.push(token);
    }

    /// The token that follows `hash`, the end of the sequence's history: a function of nothing else, so
    /// that neither batching nor preemption may change it.
    fn next_token(&self, hash: u64, vocabulary: u32) -> (u32, bool) {
        let draw = mix(hash, self.voice) >> 20;
        ((draw % u64::from(vocabulary)) as u32, (draw >> 20).is_multiple_of(61))
    }
}

/// The scheduler under test with the shadow beside it.
pub(crate) struct Shadow {
    pub(crate) sched: Scheduler,
    limits: Limits,
    vocabulary: u32,
    /// `(page, slot)` → history hash; `None` was never written.
    kv: Vec<Vec<Option<u64>>>,
    known: BTreeMap<SeqId, Known>,
    plan: Option<Plan>,
    cancelled_in_flight: BTreeSet<SeqId>,
    next_id: u64,
    /// Tenants that sequences are drawn from; with one, order is strict.
    n_tenants: usize,
    max_prefill: usize,
    /// Sequences that have said something since they last lost their pages: their next row decodes.
    decoding: BTreeSet<SeqId>,
    /// Pages reported as indexed, and those that came from elsewhere.
    pub(crate) indexed: u64,
    pub(crate) imported: u64,
    pub(crate) finished: u64,
    pub(crate) copied: u64,
    /// Tokens that pages were reserved ahead for.
    pub(crate) looked_ahead: u64,
    pub(crate) operations: u64,
}

impl Shadow {
    pub(crate) fn new(limits: Limits, vocabulary: u32, n_tenants: usize) -> Self {
        let mut sched = Scheduler::new(limits.clone()).expect("limits are valid");
        sched.report_indexed();
        Self {
            sched,
            n_tenants,
            max_prefill: usize::MAX,
            decoding: BTreeSet::new(),
            indexed: 0,
            imported: 0,
            kv: vec![vec![None; limits.page_len]; limits.n_pages],
            limits,
            vocabulary,
            known: BTreeMap::new(),
            plan: None,
            cancelled_in_flight: BTreeSet::new(),
            next_id: 0,
            finished: 0,
            copied: 0,
            looked_ahead: 0,
            operations: 0,
        }
    }

    /// One random call, and the integrity check after it.
    pub(crate) fn random_operation(&mut self, random: &mut Random) {
        match random.below(100) {
            0..=24 => self.add(random),
            25..=30 => self.cancel(random),
            31..=38 => self.fork(random),
            39..=50 => self.draft(random),
            51..=52 => self.look_ahead(random),
            53..=54 => self.import(random),
            55 if random.chance(50) => self.sched.set_max_running(random.below(self.limits.max_seqs + 2)),
            55 => self.set_max_prefill(random),
            _ => self.step(random),
        }
        self.sched.check_integrity();
        self.operations += 1;
    }

    /// Runs until nothing is left; panics if that takes more steps than all work could need.
    pub(crate) fn drain(&mut self, random: &mut Random) {
        let work: usize = self.known.values().map(|known| self.limits.max_context + known.tokens.len()).sum();
        let mut steps_left = 20 * work + 1000;
        while self.sched.has_work() || self.plan.is_some() {
            assert!(steps_left > 0, "no end in sight with {:?}", self.sched.stats());
            steps_left -= 1;
            self.step(random);
            self.sched.check_integrity();
            self.operations += 1;
        }
        assert!(self.known.is_empty(), "sequences got lost: {:?}", self.known.keys());
        let stats = self.sched.stats();
        assert_eq!((stats.used_pages, stats.waiting, stats.running), (0, 0, 0));
        assert_eq!(stats.free_pages + stats.cached_pages, self.limits.n_pages);
    }

    fn any_known(&self, random: &mut Random) -> Option<SeqId> {
        let n = self.known.len();
        if n == 0 { None } else { self.known.keys().nth(random.below(n)).copied() }
    }

    fn add(&mut self, random: &mut Random) {
        let id = SeqId(self.next_id);
        let most_new = if random.chance(30) { 6 } else { 40 };
        let max_new = 1 + random.below(most_new);
        let options = SeqOptions {
            priority: random.below(3) as i32 - 1,
            max_new_tokens: max_new,
            cache_salt: u64::from(random.chance(20)),
            tenant: random.below(self.n_tenants) as u64,
            use_cache: random.chance(90),
        };
        // Mostly short ones: they are admitted easily, grow together and run out of pages.
        let longest = if random.chance(75) { self.limits.page_len + 1 } else { self.limits.effective_context() + 1 };
        let len = 1 + random.below(longest);
        // Runs of one token make prompts share beginnings of all lengths.
        let mut prompt = Vec::new();
        while prompt.len() < len {
            let token = random.below(self.vocabulary as usize) as u32;
            for _ in 0..1 + random.below(len) {
                prompt.push(token);
            }
        }
        prompt.truncate(len);
        let waiting = self.sched.stats().waiting;
        let result = self.sched.add(id, prompt.clone(), options);
        let fits = len < self.limits.effective_context() && waiting < self.limits.max_waiting;
        assert_eq!(result.is_ok(), fits, "{result:?}");
        if fits {
            self.next_id += 1;
            assert!(self.sched.add(id, vec![1], options).is_err(), "a duplicate id was taken");
            let mut known = Known {
                options,
                voice: random.next(),
                tokens: vec![],
                prompt_len: len,
                history: vec![],
                has_run: false,
            };
            prompt.into_iter().for_each(|token| known.push(token));
            self.known.insert(id, known);
        }
    }

    fn cancel(&mut self, random: &mut Random) {
        let Some(id) = self.any_known(random) else { return };
        assert!(self.sched.cancel(id));
        assert!(!self.sched.cancel(id));
        self.known.remove(&id);
        if self.plan.as_ref().is_some_and(|plan| plan.rows.iter().any(|row| row.seq == id)) {
            self.cancelled_in_flight.insert(id);
        }
    }

    fn fork(&mut self, random: &mut Random) {
        let Some(parent) = self.any_known(random) else { return };
        let child = SeqId(self.next_id);
        let known = &self.known[&parent];
        let n_tokens = if random.chance(50) { known.tokens.len() } else { 1 + random.below(known.tokens.len()) };
        let result = if n_tokens == known.tokens.len() && random.chance(50) {
            self.sched.fork(parent, child)
        } else {
            self.sched.fork_at(parent, child, n_tokens)
        };
        if self.plan.is_some() {
            assert!(result.is_err(), "forked in flight");
            return;
        }
        if result.is_ok() {
            self.next_id += 1;
            let mut copy = Known {
                options: known.options,
                voice: random.next(),
                tokens: vec![],
                prompt_len: known.prompt_len.min(n_tokens),
                history: vec![],
                has_run: true,
            };
            known.tokens[..n_tokens].iter().for_each(|&token| copy.push(token));
            self.known.insert(child, copy);
        } else {
            assert!(self.sched.stats().waiting >= self.limits.max_waiting, "{result:?}");
        }
    }

    fn set_max_prefill(&mut self, random: &mut Random) {
        self.max_prefill = if random.chance(50) { usize::MAX } else { random.below(6) };
        self.sched.set_max_prefill(self.max_prefill);
    }

    /// A page from elsewhere: the first that the index lacks of some sequence's tokens.
    fn import(&mut self, random: &mut Random) {
        let Some(id) = self.any_known(random) else { return };
        if self.plan.is_some() {
            return;
        }
        let (known, page_len) = (&self.known[&id], self.limits.page_len);
        let salt = known.options.cache_salt;
        let n_indexed = self.sched.n_indexed(salt, &known.tokens);
        let end = (n_indexed + 1) * page_len;
        if end > known.tokens.len() {
            return;
        }
        let tokens = &known.tokens[..end];
        assert!(n_indexed == 0 || self.sched.import_page(salt, &tokens[..n_indexed * page_len]).is_none(), "twice");
        let Some(page) = self.sched.import_page(salt, tokens) else { return };
        assert!(self.sched.is_indexed(page));
        let history = known.history[end - page_len..end].iter().map(|&hash| Some(hash));
        self.kv[page as usize] = history.collect();
        self.imported += 1;
    }

    /// What was reported as indexed holds what its tokens say, as long as it is not given out again.
    fn check_indexed(&mut self) {
        for new in self.sched.take_indexed() {
            assert_eq!(new.tokens.len(), self.limits.page_len);
            assert!(self.sched.is_indexed(new.page), "page {} was reported, but is not indexed", new.page);
            let mut hash = match new.parent {
                None => mix(0, new.salt),
                Some(parent) => {
                    assert!(self.sched.is_indexed(parent), "page {}: its parent is not indexed", new.page);
                    self.kv[parent as usize][self.limits.page_len - 1].expect("a full page")
                }
            };
            for (slot, &token) in new.tokens.iter().enumerate() {
                hash = mix(hash, u64::from(token));
                assert_eq!(self.kv[new.page as usize][slot], Some(hash), "page {} holds something else", new.page);
            }
            self.indexed += 1;
        }
    }

    /// Drafts that are right, then wrong at a random place.
    fn draft(&mut self, random: &mut Random) {
        let Some(id) = self.any_known(random) else { return };
        let known = &self.known[&id];
        let mut hash = *known.history.last().expect("a sequence has tokens");
        let mut drafts = Vec::new();
        for _ in 0..random.below(7) {
            let (right, _) = known.next_token(hash, self.vocabulary);
            drafts.push(if random.chance(80) { right } else { random.below(self.vocabulary as usize) as u32 });
            hash = mix(hash, u64::from(drafts[drafts.len() - 1]));
        }
        assert!(self.sched.set_draft(id, &drafts));
    }

    /// Pages ahead of a sequence are its own: whatever a drafter writes there, nobody reads.
    fn look_ahead(&mut self, random: &mut Random) {
        let Some(id) = self.any_known(random) else { return };
        let wanted = random.below(9);
        let decodes = self.sched.decoding().any(|other| other == id);
        let Some(ahead) = self.sched.reserve_ahead(id, wanted) else { return };
        assert!(decodes && self.plan.as_ref().is_none_or(|plan| plan.rows.iter().all(|row| row.seq != id)));
        let (len, page_len) = (self.known[&id].tokens.len(), self.limits.page_len);
        assert!(ahead.n <= wanted && len + ahead.n < self.limits.effective_context().max(len + 1));
        assert!(ahead.n < self.sched.room(id).expect("a sequence that lives"), "drafts beyond its limit");
        for at in len - 1..len + ahead.n {
            self.kv[ahead.pages[at / page_len] as usize][at % page_len] = Some(u64::MAX);
        }
        self.looked_ahead += ahead.n as u64;
    }

    /// Plans and checks, or commits what was planned before; other calls come in between.
    fn step(&mut self, random: &mut Random) {
        if let Some(plan) = self.plan.take() {
            return self.commit(&plan, random);
        }
        let running = self.sched.stats().running;
        let (decoding, prompts) = (self.sched.decoding().count(), self.sched.prompt_tokens());
        let plan = self.sched.plan();
        assert!(running == 0 || !plan.is_empty(), "sequences run and the plan is empty");
        assert!(plan.n_tokens() <= self.limits.max_batch_rows, "over budget");
        assert!(prompts > 0 || plan.rows.len() <= decoding, "prompts ran that nobody announced");
        let decodes = plan.rows.first().is_some_and(|row| self.decoding.contains(&row.seq));
        self.check_prefill(&plan, decodes);
        let running_now = self.sched.stats().running;
        if !plan.preempted.is_empty() {
            assert_eq!(running_now, running - plan.preempted.len(), "one was driven out and another let in");
        }
        let has_budget = plan.n_tokens() < self.limits.max_batch_rows && self.max_prefill == usize::MAX;
        if has_budget && plan.rows.len() < running_now && !self.limits.prefix_cache && self.n_tenants == 1 {
            assert!(running_now <= running, "one that runs found no page, and another was let in");
        }
        self.check_order(&plan);
        self.decoding.retain(|id| !plan.preempted.contains(id));
        self.run(&plan);
        for row in &plan.rows {
            self.check_row(row);
        }
        if !plan.is_empty() {
            self.plan = Some(plan);
        }
    }

    /// Beside rows that decode, no more of prompts than is allowed. (The last token of a prompt alone looks like such a
    /// row, so only rows of several tokens are counted.)
    fn check_prefill(&self, plan: &Plan, decodes: bool) {
        let rows = plan.rows.iter().filter(|row| row.tokens.len() - row.n_drafts > 1);
        let n_prefill: usize = rows.map(|row| row.tokens.len()).sum();
        assert!(!decodes || n_prefill <= self.max_prefill, "{n_prefill} tokens of prompts hold up streams");
    }

    /// First come first served: who runs for the first time came before all of its tenant and priority that still
    /// wait for theirs.
    fn check_order(&mut self, plan: &Plan) {
        let mut first_runs = Vec::new();
        for row in &plan.rows {
            let known = self.known.get_mut(&row.seq).expect("only known sequences are planned");
            if !known.has_run {
                known.has_run = true;
                first_runs.push(((known.options.tenant, known.options.priority), row.seq));
            }
        }
        for (class, id) in first_runs {
            let class_of = |other: &Known| (other.options.tenant, other.options.priority);
            let overtaken = self.known.range(..id).find(|(_, other)| class_of(other) == class && !other.has_run);
            assert!(overtaken.is_none(), "{id} overtook {}", overtaken.expect("some").0);
        }
    }

    /// Copies, then writes of all rows: as an engine does.
    fn run(&mut self, plan: &Plan) {
        for (source, destination) in plan.rows.iter().flat_map(|row| &row.copies) {
            self.kv[*destination as usize] = self.kv[*source as usize].clone();
            self.copied += 1;
        }
        let page_len = self.limits.page_len;
        let mut written = BTreeSet::new();
        for row in &plan.rows {
            assert!(!row.tokens.is_empty() && row.n_drafts < row.tokens.len());
            assert!(row.pages.len() >= (row.start + row.tokens.len()).div_ceil(page_len), "page table length");
            let known = &self.known[&row.seq];
            let mut hash = match row.start {
                0 => mix(0, known.options.cache_salt),
                start => known.history[start - 1],
            };
            for (offset, &token) in row.tokens.iter().enumerate() {
                let at = row.start + offset;
                hash = mix(hash, u64::from(token));
                let place = (row.pages[at / page_len], at % page_len);
                assert!(written.insert(place), "two rows write {place:?}");
                self.kv[place.0 as usize][place.1] = Some(hash);
            }
        }
    }

    /// After all writes, the row's pages hold exactly its history.
    fn check_row(&self, row: &PlanRow) {
        let known = &self.known[&row.seq];
        let real = row.tokens.len() - row.n_drafts;
        let end = row.start + real;
        assert_eq!(row.tokens[..real], known.tokens[row.start..end], "{}: wrong tokens", row.seq);
        assert_eq!(row.sample, end == known.tokens.len(), "{}: wrong `sample`", row.seq);
        assert!(row.n_drafts == 0 || row.sample);
        assert!(end + row.n_drafts < self.limits.effective_context() + 1);
        for (at, &hash) in known.history[..end].iter().enumerate() {
            let slot = self.kv[row.pages[at / self.limits.page_len] as usize][at % self.limits.page_len];
            assert_eq!(slot, Some(hash), "{}: position {at} is not its own", row.seq);
        }
    }

    fn commit(&mut self, plan: &Plan, random: &mut Random) {
        let mut outcomes = Vec::new();
        let mut expected = BTreeMap::new();
        for row in plan.rows.iter().filter(|row| row.sample) {
            if self.cancelled_in_flight.contains(&row.seq) {
                if random.chance(50) {
                    outcomes.push(StepOutcome { seq: row.seq, new_tokens: vec![0], finished: false });
                }
                continue;
            }
            let (outcome, reason) = self.sample(row, random);
            if let Some(reason) = reason {
                expected.insert(row.seq, reason);
            }
            if !outcome.new_tokens.is_empty() {
                self.decoding.insert(row.seq);
            }
            outcomes.push(outcome);
        }
        self.cancelled_in_flight.clear();
        for Finished { seq, reason, tokens, prompt_len } in self.sched.commit(&outcomes) {
            assert_eq!(expected.remove(&seq), Some(reason), "{seq} ended for another reason, or too early");
            let known = self.known.remove(&seq).expect("a finished sequence was known");
            assert_eq!((tokens, prompt_len), (known.tokens, known.prompt_len), "{seq} ended with other tokens");
            self.finished += 1;
        }
        assert!(expected.is_empty(), "did not end: {expected:?}");
        self.check_indexed();
        for (&id, known) in &self.known {
            assert_eq!(self.sched.tokens(id), Some(known.tokens.as_slice()), "{id} has other tokens");
        }
    }

    /// Accepts drafts as long as they are what the sequence says, then says one more; now and then fewer.
    fn sample(&mut self, row: &PlanRow, random: &mut Random) -> (StepOutcome, Option<FinishReason>) {
        let known = self.known.get_mut(&row.seq).expect("a planned sequence is known");
        let drafts = &row.tokens[row.tokens.len() - row.n_drafts..];
        let limit = if random.chance(10) { random.below(row.n_drafts + 2) } else { row.n_drafts + 1 };
        let (mut new_tokens, mut stopped) = (Vec::new(), false);
        while new_tokens.len() < limit && !stopped {
            let hash = *known.history.last().expect("a sequence has tokens");
            let (token, stops) = known.next_token(hash, self.vocabulary);
            known.push(token);
            new_tokens.push(token);
            stopped = stops;
            if drafts.get(new_tokens.len() - 1) != Some(&token) {
                break;
            }
        }
        let generated = known.tokens.len() - known.prompt_len;
        assert!(generated <= known.options.max_new_tokens, "{}: too many drafts were planned", row.seq);
        assert!(known.tokens.len() <= self.limits.effective_context(), "{}: drafts beyond the context", row.seq);
        let reason = if stopped {
            Some(FinishReason::Stopped)
        } else if generated == known.options.max_new_tokens {
            Some(FinishReason::MaxNewTokens)
        } else if known.tokens.len() == self.limits.effective_context() {
            Some(FinishReason::Context)
        } else {
            None
        };
        (StepOutcome { seq: row.seq, new_tokens, finished: stopped }, reason)
    }
}

//! The step loop.

mod drafts;
mod ends;
mod siblings;
mod verify;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use pelton_backend::{Backend, BackendError, Batch, BatchBuilder, BatchError, KvType, PAGE_LEN};
use pelton_model::{Decoder, Workspace};
use pelton_sched::{Limits, Plan, Scheduler, SeqId, SeqOptions, Stats};
use pelton_text::Tokenizer;

use crate::answer::Answer;
use crate::pace::Pace;
use crate::pages::Pages;
use crate::pool::Pool;
use crate::queue::{Queue, Ticket};
use crate::sequence::{Body, Sequence};
use crate::speculate::Speculator;
use crate::{DiskOptions, DiskStats, Event, FinishReason, Pooling, Request, RequestId, SubmitError, Task};

/// How much an engine may hold and do at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineLimits {
    /// Longest sequence, prompt and answer, in tokens.
    pub context: usize,
    /// Pages of the KV pool, [`PAGE_LEN`] tokens each.
    pub n_pages: usize,
    /// How keys and values are stored.
    pub kv_type: KvType,
    /// Rows of one step.
    pub max_batch_rows: usize,
    /// Sequences that run at once.
    pub max_seqs: usize,
    /// Answers that may wait.
    pub max_waiting: usize,
    /// Keep the pages of finished sequences for later prompts that begin alike.
    pub prefix_cache: bool,
}

impl EngineLimits {
    /// The context that one sequence can really have.
    pub(crate) fn effective_context(&self) -> usize {
        self.context.min(self.n_pages.saturating_mul(PAGE_LEN))
    }
}

/// Why an engine could not be made or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The backend refused.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A plan that does not fit the pool: a bug in the scheduler.
    #[error("the plan does not fit the KV pool: {0}")]
    Plan(#[from] BatchError),
    /// The limits contradict one another.
    #[error("{0}")]
    Limits(String),
    /// The folder for prefix pages.
    #[error("the folder for prefix pages, {folder}: {source}")]
    Disk {
        /// The folder.
        folder: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A request that has not ended.
struct Group {
    /// Sequences of it that live.
    sequences: Vec<SeqId>,
    /// Answers still to come for it, those that are not sequences yet among them.
    unfinished: usize,
    /// Its places in the queue, until it runs.
    ticket: Option<Ticket>,
    deadline: Option<Instant>,
}

/// A model, its KV pool and the sequences that run on it.
pub struct Engine<B: Backend> {
    backend: B,
    model: Decoder<B>,
    kv: B::Kv,
    work: Workspace<B>,
    logits: Vec<f32>,
    /// Whether the backend weighs logits; true until it was asked.
    weighs: bool,
    /// Tokens chosen where the logits were.
    weighed_tokens: u64,
    hidden: Vec<f32>,
    sched: Scheduler,
    pages: Pages,
    sequences: HashMap<SeqId, Sequence>,
    groups: HashMap<RequestId, Group>,
    deadlines: BTreeSet<(Instant, RequestId)>,
    tokenizer: Option<Arc<Tokenizer>>,
    eos: Vec<u32>,
    limits: EngineLimits,
    queue: Queue,
    /// Measures steps, where streams are to be kept steady.
    pace: Option<Pace>,
    speculator: Option<Speculator<B>>,
    next_id: u64,
    next_seq: u64,
}

impl<B: Backend> Engine<B> {
    /// An engine over a loaded model. Without a tokenizer its events carry ids and no text. `eos` are the ids that
    /// end an answer.
    ///
    /// # Errors
    /// [`EngineError`] where the KV pool does not fit memory or the limits contradict one another.
    pub fn new(
        mut backend: B,
        model: Decoder<B>,
        tokenizer: Option<Arc<Tokenizer>>,
        eos: Vec<u32>,
        limits: EngineLimits,
    ) -> Result<Engine<B>, EngineError> {
        let kv = backend.kv_pool(&model.kv_layout(limits.n_pages, limits.kv_type))?;
        let work = model.workspace(&mut backend);
        let sched = Scheduler::new(Limits {
            page_len: PAGE_LEN,
            n_pages: limits.n_pages,
            max_batch_rows: limits.max_batch_rows,
            max_seqs: limits.max_seqs,
            max_context: limits.context,
            // The engine's own queue bounds what comes in; forks of what runs are never refused.
            max_waiting: u32::MAX as usize,
            prefix_cache: limits.prefix_cache,
        })
        .map_err(|e| EngineError::Limits(e.to_string()))?;
        Ok(Engine {
            backend,
            model,
            kv,
            work,
            logits: Vec::new(),
            weighs: true,
            weighed_tokens: 0,
            hidden: Vec::new(),
            sched,
            pages: Pages::default(),
            sequences: HashMap::new(),
            groups: HashMap::new(),
            deadlines: BTreeSet::new(),
            tokenizer,
            eos,
            queue: Queue::new(limits.max_waiting.max(1)),
            limits,
            pace: None,
            speculator: None,
            next_id: 0,
            next_seq: 0,
        })
    }

    /// Keeps prefix pages in a folder, too, from now on: those there are found, new ones are written in the
    /// background. Without the prefix cache it does nothing.
    ///
    /// # Errors
    /// [`EngineError::Disk`] where the folder cannot be used.
    pub fn keep_pages(&mut self, options: &DiskOptions) -> Result<(), EngineError> {
        if !self.limits.prefix_cache {
            return Ok(());
        }
        let layout = self.model.kv_layout(0, self.limits.kv_type);
        // Frequencies may depend on the context, and keys on them.
        let bits: Vec<u32> = self.model.rope().inv_freq.iter().map(|f| f.to_bits()).collect();
        let layout = format!("{layout:?} {:08x} {bits:x?}", self.model.rope().scale.to_bits());
        let page_bytes = self.backend.page_bytes(&self.kv);
        self.pages
            .open(options, &layout, page_bytes)
            .map_err(|source| EngineError::Disk { folder: options.folder.display().to_string(), source })?;
        self.sched.report_indexed();
        Ok(())
    }

    /// Cuts prompts, from now on, so that running streams hardly feel them; they themselves then take longer. For
    /// those who serve people. Results are the same.
    pub fn keep_streams_steady(&mut self) {
        self.pace.get_or_insert_default();
    }

    /// The limits it was made with.
    pub fn limits(&self) -> &EngineLimits {
        &self.limits
    }

    /// The model.
    pub fn model(&self) -> &Decoder<B> {
        &self.model
    }

    /// What the backend says of itself.
    pub fn describe(&self) -> String {
        self.backend.describe()
    }

    /// Tells the backend that the calling thread runs all steps from now on.
    pub(crate) fn bind_thread(&mut self) {
        self.backend.bind_thread();
    }

    /// The queue that submitters enter.
    pub(crate) fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Counts of sequences and pages.
    pub fn stats(&self) -> Stats {
        self.sched.stats()
    }

    /// Tokens that the backend's device weighed the logits for, so that they were not copied to the host.
    pub fn weighed_tokens(&self) -> u64 {
        self.weighed_tokens
    }

    /// Counts of pages on disk; `None` where none are kept there.
    pub fn disk_stats(&self) -> Option<DiskStats> {
        self.pages.stats()
    }

    /// From the next step on, at most `n` sequences are let in to run at once. What runs goes on to its end.
    pub fn set_max_running(&mut self, n: usize) {
        self.sched.set_max_running(n);
    }

    /// Whether a call to [`Engine::step`] has something to do.
    pub fn has_work(&self) -> bool {
        !self.sequences.is_empty()
    }

    /// Queues a request.
    ///
    /// # Errors
    /// [`SubmitError`] says what is wrong with the request, or that the queue is full.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, SubmitError> {
        request.check(self.limits.effective_context(), self.model.vocab_size())?;
        let ticket = self.queue.enter(request.n)?;
        self.submit_checked(request, ticket, Instant::now())
    }

    /// Queues a request that was checked, and that has its places in the queue, since `submitted`.
    pub(crate) fn submit_checked(
        &mut self,
        request: Request,
        ticket: Ticket,
        submitted: Instant,
    ) -> Result<RequestId, SubmitError> {
        let id = RequestId(self.next_id);
        let body = match request.task {
            Task::Embed(pooling) => Body::Vector(Pool::new(pooling)),
            Task::Generate => {
                let answer = Answer::new(&request, 0, id.0, self.tokenizer.clone());
                Body::Answer(Box::new(answer.map_err(|e| SubmitError::Sampling(e.to_string()))?))
            }
        };
        let seq = self.fresh_seq();
        let request = Arc::new(request);
        let options = self.options_of(&request);
        if !self.pages.fetch(seq, &request.prompt, options, &self.sched) {
            self.add(seq, &request)?;
        }
        let deadline = request.time_limit.and_then(|limit| submitted.checked_add(limit));
        self.deadlines.extend(deadline.map(|deadline| (deadline, id)));
        let unfinished = if matches!(body, Body::Vector(_)) { 1 } else { request.n };
        self.groups.insert(id, Group { sequences: vec![seq], unfinished, ticket: Some(ticket), deadline });
        self.sequences.insert(seq, Sequence::new(id, request, body, submitted));
        self.next_id += 1;
        Ok(id)
    }

    fn fresh_seq(&mut self) -> SeqId {
        self.next_seq += 1;
        SeqId(self.next_seq)
    }

    fn options_of(&self, request: &Request) -> SeqOptions {
        let room = self.limits.context - request.prompt.len();
        let (max_new_tokens, use_cache) = match request.task {
            Task::Generate => (request.max_tokens.min(room), true),
            Task::Embed(pooling) => (1, pooling == Pooling::Last),
        };
        let Request { priority, cache_salt, tenant, .. } = *request;
        SeqOptions { priority, max_new_tokens, use_cache, cache_salt, tenant }
    }

    /// Hands a sequence to the scheduler.
    fn add(&mut self, seq: SeqId, request: &Request) -> Result<(), SubmitError> {
        let options = self.options_of(request);
        let added = self.sched.add(seq, request.prompt.clone(), options);
        added.map_err(|e| SubmitError::Scheduler(e.to_string()))
    }

    /// One step: plans, runs one batch, samples, commits; appends what happened to `events`.
    ///
    /// # Errors
    /// [`EngineError`] is a broken invariant: no request can go on after it.
    pub fn step(&mut self, events: &mut Vec<(RequestId, Event)>) -> Result<(), EngineError> {
        self.end_overdue(events);
        self.take_in_fetched(events);
        self.propose();
        let start = Instant::now();
        if let Some(pace) = &self.pace {
            self.sched.set_max_prefill(pace.max_prefill());
        }
        let plan = self.sched.plan();
        for id in &plan.preempted {
            if let Some(sequence) = self.sequences.get_mut(id) {
                sequence.preemptions += 1;
            }
        }
        if plan.rows.is_empty() {
            return Ok(());
        }
        let batch = self.flatten(&plan)?;
        for (from, to) in plan.rows.iter().flat_map(|row| &row.copies) {
            self.backend.copy_page(&mut self.kv, *from, *to);
        }
        self.model.step(&mut self.backend, &batch, &mut self.kv, &mut self.work);
        self.pool_vectors(&plan);
        let chosen = self.choose(&plan, events);
        for done in self.sched.commit(&chosen.outcomes) {
            // The scheduler's own limits are at least as wide as ours; should it end a sequence first, so do we.
            self.finish(done.seq, FinishReason::Context, events);
        }
        for &(seq, id) in &chosen.begun {
            self.begin_siblings(seq, id, events);
        }
        self.learn(&plan, &chosen, start);
        self.keep_new_pages();
        self.note_pace(&plan, start);
        Ok(())
    }

    /// Takes note of how long a step took that streams waited for.
    fn note_pace(&mut self, plan: &Plan, start: Instant) {
        let Some(pace) = &mut self.pace else { return };
        let lens = plan.rows.iter().map(|row| row.tokens.len() - row.n_drafts);
        let prefill: usize = lens.clone().filter(|&len| len > 1).sum();
        if lens.clone().any(|len| len == 1) && plan.rows.iter().all(|row| row.n_drafts == 0) {
            pace.note(prefill, start.elapsed());
        }
    }

    /// Lets go on who waited for pages from disk.
    fn take_in_fetched(&mut self, events: &mut Vec<(RequestId, Event)>) {
        for seq in self.pages.import(&mut self.sched, &mut self.backend, &mut self.kv) {
            let Some(sequence) = self.sequences.get(&seq) else { continue }; // cancelled meanwhile
            let (id, request) = (sequence.id, Arc::clone(&sequence.request));
            if let Err(e) = self.add(seq, &request) {
                self.sequences.remove(&seq);
                self.forget(id);
                events.push((id, Event::Refused(e)));
            }
        }
    }

    /// The plan as plain arrays.
    fn flatten(&mut self, plan: &Plan) -> Result<Batch, EngineError> {
        let mut batch = BatchBuilder::new(self.limits.n_pages);
        for row in &plan.rows {
            let sequence = self.sequences.get_mut(&row.seq).expect("the scheduler runs what lives");
            sequence.note_row(row);
            if let Some(group) = self.groups.get_mut(&sequence.id) {
                group.ticket = None;
            }
            let has_logits = row.sample && matches!(sequence.body, Body::Answer(_));
            let n_logits = if has_logits { 1 + row.n_drafts } else { 0 };
            batch.push(&row.tokens, row.start, &row.pages, n_logits)?;
        }
        Ok(batch.finish())
    }

    /// Takes hidden states in, for the sequences that become vectors and for drafters that read them.
    fn pool_vectors(&mut self, plan: &Plan) {
        let is_vector = |seq| matches!(self.sequences.get(seq), Some(Sequence { body: Body::Vector(_), .. }));
        let is_read = self.speculator.as_ref().is_some_and(Speculator::reads_hidden);
        if !is_read && !plan.rows.iter().any(|row| is_vector(&row.seq)) {
            return;
        }
        let hidden = self.model.hidden();
        self.model.read_hidden(&mut self.backend, &self.work, &mut self.hidden);
        let mut states = self.hidden.as_slice();
        for row in &plan.rows {
            let (own, rest) = states.split_at(row.tokens.len() * hidden);
            states = rest;
            if let Some(Sequence { body: Body::Vector(pool), .. }) = self.sequences.get_mut(&row.seq) {
                pool.push(row.start, own, hidden);
            }
        }
        if is_read {
            self.show_hidden(plan);
        }
    }

    /// Hands pages that became full to the disk.
    fn keep_new_pages(&mut self) {
        let new = self.sched.take_indexed();
        self.pages.keep(new, &self.sched, &mut self.backend, &self.kv);
    }

    /// Hands pages to the disk as far as it takes them; `true` where some are left.
    pub(crate) fn write_pages(&mut self) -> bool {
        self.pages.keep(Vec::new(), &self.sched, &mut self.backend, &self.kv);
        self.pages.has_unwritten()
    }

    /// Writes what still waits for the disk.
    pub(crate) fn flush_pages(&mut self) {
        self.pages.flush(&self.sched, &mut self.backend, &self.kv);
    }
}

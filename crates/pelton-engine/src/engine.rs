//! The step loop.

use std::collections::HashMap;
use std::sync::Arc;

use pelton_backend::{Backend, BackendError, Batch, BatchBuilder, BatchError, KvType, PAGE_LEN};
use pelton_model::{Decoder, Workspace};
use pelton_sample::Sampler;
use pelton_sched::{Limits, Plan, Scheduler, SeqId, SeqOptions, Stats, StepOutcome};
use pelton_text::Tokenizer;

use crate::sequence::Sequence;
use crate::{Event, FinishReason, Request, RequestId, SubmitError};

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
    /// Requests that may wait.
    pub max_waiting: usize,
    /// Keep the pages of finished sequences for later prompts that begin alike.
    pub prefix_cache: bool,
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
}

/// A model, its KV pool and the sequences that run on it.
pub struct Engine<B: Backend> {
    backend: B,
    model: Decoder<B>,
    kv: B::Kv,
    work: Workspace<B>,
    logits: Vec<f32>,
    sched: Scheduler,
    sequences: HashMap<SeqId, Sequence>,
    tokenizer: Option<Arc<Tokenizer>>,
    eos: Vec<u32>,
    limits: EngineLimits,
    next_id: u64,
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
            max_waiting: limits.max_waiting,
            prefix_cache: limits.prefix_cache,
        })
        .map_err(|e| EngineError::Limits(e.to_string()))?;
        let (sequences, logits) = (HashMap::new(), Vec::new());
        Ok(Engine { backend, model, kv, work, logits, sched, sequences, tokenizer, eos, limits, next_id: 0 })
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

    /// Counts of sequences and pages.
    pub fn stats(&self) -> Stats {
        self.sched.stats()
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
        if request.prompt.is_empty() {
            return Err(SubmitError::EmptyPrompt);
        }
        if request.max_tokens == 0 {
            return Err(SubmitError::NoTokens);
        }
        let (tokens, context, vocab) = (request.prompt.len(), self.limits.context, self.model.vocab_size());
        if tokens >= context {
            return Err(SubmitError::PromptTooLong { tokens, context });
        }
        if let Some(&id) = request.prompt.iter().find(|&&id| id as usize >= vocab) {
            return Err(SubmitError::BadId { id, vocab });
        }
        let id = self.next_id;
        let sampler = Sampler::new(request.sampling.clone(), id).map_err(|e| SubmitError::Sampling(e.to_string()))?;
        let max_new_tokens = request.max_tokens.min(context - tokens);
        let options = SeqOptions { priority: request.priority, max_new_tokens, cache_salt: 0 };
        self.sched
            .add(SeqId(id), request.prompt.clone(), options)
            .map_err(|e| SubmitError::Scheduler(e.to_string()))?;
        self.sequences.insert(SeqId(id), Sequence::new(request, sampler, self.tokenizer.clone()));
        self.next_id += 1;
        Ok(RequestId(id))
    }

    /// Ends a request and frees its pages. `None` where it has ended already.
    pub fn cancel(&mut self, id: RequestId) -> Option<Event> {
        let sequence = self.sequences.remove(&SeqId(id.0))?;
        self.sched.cancel(SeqId(id.0));
        Some(Event::Finished(sequence.finish(FinishReason::Cancelled)))
    }

    /// One step: plans, runs one batch, samples, commits; appends what happened to `events`.
    ///
    /// # Errors
    /// [`EngineError`] is a broken invariant: no request can go on after it.
    pub fn step(&mut self, events: &mut Vec<(RequestId, Event)>) -> Result<(), EngineError> {
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
        self.model.forward(&mut self.backend, &batch, &mut self.kv, &mut self.work, &mut self.logits);
        let outcomes = self.sample(&plan, events);
        for done in self.sched.commit(&outcomes) {
            // The scheduler's own limits are at least as wide as ours; should it end a sequence first, so do we.
            if let Some(sequence) = self.sequences.remove(&done.seq) {
                events.push((RequestId(done.seq.0), Event::Finished(sequence.finish(FinishReason::Context))));
            }
        }
        Ok(())
    }

    /// The plan as plain arrays.
    fn flatten(&mut self, plan: &Plan) -> Result<Batch, EngineError> {
        let mut batch = BatchBuilder::new(self.limits.n_pages);
        for row in &plan.rows {
            batch.push(&row.tokens, row.start, &row.pages, usize::from(row.sample))?;
            if let Some(sequence) = self.sequences.get_mut(&row.seq) {
                sequence.cached_tokens = row.cached;
            }
        }
        Ok(batch.finish())
    }

    /// Chooses a token for each row of the plan that ended its known tokens.
    fn sample(&mut self, plan: &Plan, events: &mut Vec<(RequestId, Event)>) -> Vec<StepOutcome> {
        let vocab = self.model.vocab_size();
        let mut outcomes = Vec::new();
        let sampled_rows = plan.rows.iter().filter(|row| row.sample);
        for (row, logits) in sampled_rows.zip(self.logits.chunks_exact_mut(vocab)) {
            let id = RequestId(row.seq.0);
            let Some(sequence) = self.sequences.get_mut(&row.seq) else { continue };
            let (new_tokens, finished) = match sequence.advance(logits, &self.eos, self.limits.context) {
                Ok(advance) => {
                    let (token, logprob) = (advance.sampled.id, advance.sampled.logprob);
                    events.push((id, Event::Token { id: token, logprob, text: advance.text }));
                    if let Some(reason) = advance.finish {
                        let sequence = self.sequences.remove(&row.seq).expect("it was there above");
                        events.push((id, Event::Finished(sequence.finish(reason))));
                    }
                    (vec![token], advance.finish.is_some())
                }
                Err(e) => {
                    self.sequences.remove(&row.seq);
                    events.push((id, Event::Failed(e.to_string())));
                    (Vec::new(), true)
                }
            };
            outcomes.push(StepOutcome { seq: row.seq, new_tokens, finished });
        }
        outcomes
    }
}

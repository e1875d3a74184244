//! One sequence of the scheduler: an answer to a request, or a vector in the making, and its ledger.

use std::sync::Arc;
use std::time::Instant;

use pelton_sched::{CacheMiss, PlanRow};

use crate::answer::Answer;
use crate::pool::Pool;
use crate::{FinishReason, Finished, Miss, MissCause, Request, RequestId, Speculated, Timing};

/// How many tokens a [`Miss`] shows on each side.
const MISS_CONTEXT: usize = 12;

/// What a sequence makes.
pub(crate) enum Body {
    Answer(Box<Answer>),
    Vector(Pool),
}

pub(crate) struct Sequence {
    pub(crate) id: RequestId,
    pub(crate) choice: usize,
    pub(crate) request: Arc<Request>,
    pub(crate) body: Body,
    submitted: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
    pub(crate) cached_tokens: usize,
    pub(crate) preemptions: usize,
    miss: Option<Miss>,
    pub(crate) speculated: Speculated,
    /// Seconds of its decode steps, and those that plain steps would have taken for the same tokens.
    decoding: (f64, f64),
}

impl Sequence {
    pub(crate) fn new(id: RequestId, request: Arc<Request>, body: Body, submitted: Instant) -> Sequence {
        Sequence {
            id,
            choice: 0,
            request,
            body,
            submitted,
            started: None,
            first_token: None,
            cached_tokens: 0,
            preemptions: 0,
            miss: None,
            speculated: Speculated::default(),
            decoding: (0.0, 0.0),
        }
    }

    /// Answer number `choice` to the same request: its prompt's ledger is this one's.
    pub(crate) fn sibling(&self, choice: usize, answer: Answer) -> Sequence {
        Sequence {
            id: self.id,
            choice,
            request: Arc::clone(&self.request),
            body: Body::Answer(Box::new(answer)),
            submitted: self.submitted,
            started: self.started,
            first_token: None,
            cached_tokens: self.cached_tokens,
            preemptions: 0,
            miss: None,
            speculated: Speculated::default(),
            decoding: (0.0, 0.0),
        }
    }

    /// Takes note of a row that is about to run.
    pub(crate) fn note_row(&mut self, row: &PlanRow) {
        if self.started.is_none() {
            self.started = Some(Instant::now());
        }
        if self.choice == 0 {
            self.cached_tokens = row.cached;
            if let Some(miss) = &row.miss {
                self.miss = Some(miss_of(&self.request.prompt, row.cached, miss));
            }
        }
    }

    /// Takes note of the first result.
    pub(crate) fn note_token(&mut self) {
        self.first_token.get_or_insert_with(Instant::now);
    }

    /// Takes note of drafts that were run.
    pub(crate) fn note_drafts(&mut self, drafted: usize, accepted: usize) {
        self.speculated.drafted += drafted;
        self.speculated.accepted += accepted;
        self.speculated.steps += usize::from(drafted > 0);
    }

    /// Takes note of a decode step of `seconds` that gave `n_new` tokens, where a plain one takes `plain` for each.
    pub(crate) fn note_step(&mut self, n_new: usize, plain: f64, seconds: f64) {
        self.decoding.0 += seconds;
        self.decoding.1 += plain * n_new as f64;
    }

    /// The ledger as of now.
    pub(crate) fn timing(&self) -> Timing {
        let now = Instant::now();
        let since = |then: Option<Instant>| then.unwrap_or(now).saturating_duration_since(self.submitted);
        let (queue, first_token) = (since(self.started), since(self.first_token));
        let tokens = match &self.body {
            Body::Answer(answer) => answer.len(),
            Body::Vector(_) => 0,
        };
        Timing {
            prompt_tokens: self.request.prompt.len(),
            cached_tokens: self.cached_tokens,
            tokens,
            queue,
            prefill: first_token.saturating_sub(queue),
            first_token,
            total: since(None),
            preemptions: self.preemptions,
            speculation: self.speculation(),
        }
    }

    fn speculation(&self) -> Speculated {
        let (seconds, plain) = self.decoding;
        let is_known = self.speculated.drafted > 0 && seconds > 0.0;
        Speculated { speedup: if is_known { (plain / seconds) as f32 } else { 1.0 }, ..self.speculated }
    }

    /// Ends it: gives what was held back. `last` says that nothing of the request follows.
    pub(crate) fn finish(mut self, reason: FinishReason, last: bool) -> Finished {
        let timing = self.timing();
        let text = match &mut self.body {
            Body::Answer(answer) => answer.rest(reason),
            Body::Vector(_) => String::new(),
        };
        Finished { choice: self.choice, last, reason, text, timing, miss: self.miss }
    }
}

/// A few tokens around the place where prompt and cache part.
fn miss_of(prompt: &[u32], cached_tokens: usize, miss: &CacheMiss) -> Miss {
    let (cause, at, cached) = match miss {
        CacheMiss::TooShort => (MissCause::TooShort, cached_tokens, &[][..]),
        CacheMiss::NeverSeen => (MissCause::NeverSeen, cached_tokens, &[][..]),
        CacheMiss::Evicted => (MissCause::Evicted, cached_tokens, &[][..]),
        CacheMiss::Diverged { at, cached } => (MissCause::Different, *at, cached.as_slice()),
    };
    let at = at.min(prompt.len());
    let few = |tokens: &[u32]| tokens[..tokens.len().min(MISS_CONTEXT)].to_vec();
    let before = prompt[at.saturating_sub(MISS_CONTEXT)..at].to_vec();
    Miss { cause, at, before, here: few(&prompt[at..]), cached: few(cached) }
}

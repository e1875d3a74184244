//! The one place that talks to the engine: requests go in with their limits, events come out on a channel.
//!
//! Invariants: the engine's thread never waits for a client: a client that falls too far behind loses its answer; a
//! [`Run`] that is dropped cancels what it asked for within one step.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use pelton::{
    CancelGuard, Chat, Event, FinishReason, Grammar, GrammarSpec, Inspection, Llm, Request, Timing, ToolFormat,
};
use tokio::sync::mpsc;

use crate::access::Caller;
use crate::error::ApiError;
use crate::metrics::Metrics;

/// Events that may wait for a slow client, for each choice: more than most answers have.
const BACKLOG: usize = 1 << 14;

/// A model in memory, and what is known of its text.
pub(crate) struct Loaded {
    pub(crate) id: String,
    pub(crate) llm: Llm,
    /// The chat templates; some models have none.
    pub(crate) chat: Option<Chat>,
    pub(crate) text: pelton::ModelText,
    pub(crate) generation: pelton::GenerationDefaults,
    pub(crate) inspection: Inspection,
    /// How it writes tool calls, where its template says.
    pub(crate) tool_format: Option<ToolFormat>,
    /// Whether its template speaks of thinking.
    pub(crate) thinks: bool,
    /// Control tokens that the parser of answers must see.
    pub(crate) marks: HashMap<u32, &'static str>,
    pub(crate) created: u64,
}

impl Loaded {
    /// Longest sequence, prompt and answer.
    pub(crate) fn context(&self) -> usize {
        self.llm.report().memory.context
    }

    /// Bytes that it takes.
    pub(crate) fn bytes(&self) -> u64 {
        let m = &self.llm.report().memory;
        (m.weight_bytes.saturating_add(m.kv_bytes).saturating_add(m.activation_bytes)) as u64
    }

    /// Compiles a grammar; may take a while, so it runs where waiting is allowed.
    pub(crate) async fn grammar(self: &Arc<Self>, spec: GrammarSpec) -> Result<Grammar, ApiError> {
        let model = self.clone();
        blocking(move || Ok(model.llm.grammar(&spec)?)).await
    }
}

/// Runs work that may take long off the threads that serve connections.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(ApiError::internal("the request could not be worked on: a bug; the log has more")),
    }
}

/// What happened to one choice.
#[derive(Debug)]
pub(crate) enum Happened {
    Token { id: u32, logprob: f32, top: Vec<(u32, f32)>, text: String },
    Finished { reason: FinishReason, text: String, timing: Timing },
}

/// Requests that run, as one stream of events.
pub(crate) struct Run {
    events: mpsc::Receiver<(usize, Event)>,
    _guards: Vec<CancelGuard>,
    model: Arc<Loaded>,
    metrics: Arc<Metrics>,
    /// Choices that have not ended.
    open: usize,
    log_cache: Option<crate::LogSink>,
}

impl Run {
    /// Submits `requests`; the choices of the first come first.
    ///
    /// # Errors
    /// Where the engine refuses one of them; then none runs.
    pub(crate) fn start(
        model: &Arc<Loaded>,
        requests: Vec<Request>,
        metrics: &Arc<Metrics>,
        log_cache: Option<crate::LogSink>,
    ) -> Result<Run, ApiError> {
        let choices: usize = requests.iter().map(|r| r.n).sum();
        let backlog = choices.saturating_mul(BACKLOG).min(1 << 18);
        let (sender, events) = mpsc::channel(backlog);
        let mut guards = Vec::with_capacity(requests.len());
        let mut first = 0;
        for request in requests {
            let n = request.n;
            let sink = sink(first, n, sender.clone(), metrics.clone());
            guards.push(model.llm.submit_to(request, sink)?);
            first += n;
        }
        let (model, metrics) = (model.clone(), metrics.clone());
        Ok(Run { events, _guards: guards, model, metrics, open: choices, log_cache })
    }

    /// The next event, with its choice. `None` once all choices have ended.
    ///
    /// # Errors
    /// Where the engine gave up, or the answers were not taken fast enough.
    pub(crate) async fn next(&mut self) -> Option<Result<(usize, Happened), ApiError>> {
        if self.open == 0 {
            return None;
        }
        let event = self.events.recv().await;
        Some(self.take(event))
    }

    /// An event that is there already.
    pub(crate) fn ready(&mut self) -> Option<Result<(usize, Happened), ApiError>> {
        if self.open == 0 {
            return None;
        }
        let event = self.events.try_recv().ok()?;
        Some(self.take(Some(event)))
    }

    fn take(&mut self, event: Option<(usize, Event)>) -> Result<(usize, Happened), ApiError> {
        let Some((first, event)) = event else {
            self.open = 0;
            self.metrics.abandoned.fetch_add(1, Relaxed);
            return Err(ApiError::unavailable("the answer was not taken fast enough and has been given up"));
        };
        match event {
            Event::Token { choice, id, logprob, top, text } => {
                Ok((first + choice, Happened::Token { id, logprob, top, text }))
            }
            Event::Finished(finished) => {
                self.open -= 1;
                if let Some(log) = &self.log_cache
                    && let Some(line) = self.model.llm.cache_line(&finished)
                {
                    log(&line);
                }
                let choice = first + finished.choice;
                Ok((
                    choice,
                    Happened::Finished { reason: finished.reason, text: finished.text, timing: finished.timing },
                ))
            }
            Event::Refused(refused) => {
                self.open = 0;
                Err(refused.into())
            }
            // Some grammars turn out to be too large only while they are followed.
            Event::Failed(message) if message.starts_with("the grammar") => {
                self.open = 0;
                Err(ApiError::bad(message))
            }
            Event::Failed(message) => {
                self.open = 0;
                Err(ApiError::internal(message))
            }
            Event::Embedded(_) => Err(ApiError::internal("an embedding came where an answer was expected")),
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.open > 0 {
            self.metrics.abandoned.fetch_add(1, Relaxed);
        }
    }
}

/// Counts on the engine's thread, and hands over without waiting.
fn sink(
    first: usize,
    n: usize,
    sender: mpsc::Sender<(usize, Event)>,
    metrics: Arc<Metrics>,
) -> Box<dyn FnMut(Event) + Send> {
    let begun = Instant::now();
    let mut last: Vec<Option<Instant>> = vec![None; n];
    let mut sender = Some(sender);
    Box::new(move |event| {
        match &event {
            Event::Token { choice, .. } => {
                let now = Instant::now();
                if let Some(last) = last.get_mut(*choice) {
                    match last.replace(now) {
                        Some(before) => metrics.inter_token.observe(now - before),
                        None => metrics.first_token.observe(now - begun),
                    }
                }
            }
            Event::Finished(finished) => count_end(&metrics, finished.choice, &finished.timing),
            Event::Embedded(embedded) => count_end(&metrics, 0, &embedded.timing),
            Event::Refused(_) | Event::Failed(_) => {}
        }
        // A full channel closes: the listener learns of it once it has read what is there.
        if sender.as_ref().is_some_and(|s| s.try_send((first, event)).is_err()) {
            sender = None;
        }
    })
}

fn count_end(metrics: &Metrics, choice: usize, timing: &Timing) {
    metrics.end_to_end.observe(timing.total);
    metrics.generated_tokens.fetch_add(timing.tokens as u64, Relaxed);
    if choice == 0 {
        metrics.prompt_tokens.fetch_add(timing.prompt_tokens as u64, Relaxed);
        metrics.cached_tokens.fetch_add(timing.cached_tokens as u64, Relaxed);
    }
}

/// The shorter of what the request and the server allow.
pub(crate) fn time_limit(asked: Option<f64>, server: Option<Duration>) -> Result<Option<Duration>, ApiError> {
    let asked = match asked {
        None => None,
        Some(seconds) if seconds > 0.0 && seconds.is_finite() => {
            Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
        }
        Some(_) => return Err(ApiError::field("timeout", "expected seconds, more than 0")),
    };
    Ok(match (asked, server) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    })
}

/// Prompts that are embedded at once.
const EMBED_AT_ONCE: usize = 32;

/// Embeds prompts, in order; also how many tokens they had.
pub(crate) async fn embed(
    model: &Arc<Loaded>,
    prompts: Vec<Vec<u32>>,
    pooling: pelton::Pooling,
    time_limit: Option<Duration>,
    caller: Caller,
    metrics: &Arc<Metrics>,
) -> Result<(Vec<Vec<f32>>, usize), ApiError> {
    let tokens = prompts.iter().map(Vec::len).sum();
    let mut embedded = Vec::with_capacity(prompts.len());
    for some in prompts.chunks(EMBED_AT_ONCE) {
        let mut waiting = Vec::with_capacity(some.len());
        for prompt in some {
            let mut request = Request::embed(prompt.clone(), pooling);
            (request.time_limit, request.tenant, request.cache_salt) = (time_limit, caller.tenant, caller.salt);
            let (sender, events) = mpsc::channel(2);
            let guard = model.llm.submit_to(request, sink(0, 1, sender, metrics.clone()))?;
            waiting.push((guard, events));
        }
        for (_guard, mut events) in waiting {
            match events.recv().await.map(|(_, event)| event) {
                Some(Event::Embedded(e)) => embedded.push(e.values),
                Some(Event::Refused(refused)) => return Err(refused.into()),
                Some(Event::Failed(message)) => return Err(ApiError::internal(message)),
                Some(Event::Finished(f)) => return Err(ApiError::unavailable(format!("no embedding: {}", f.reason))),
                Some(Event::Token { .. }) | None => return Err(ApiError::internal("no embedding came")),
            }
        }
    }
    Ok((embedded, tokens))
}

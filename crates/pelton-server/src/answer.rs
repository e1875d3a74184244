//! Answers on their way out: the engine's tokens become parts (text, reasoning, tool calls), the parts become a
//! dialect's stream or its one object.
//!
//! Invariants: a client that goes away ends its answer within a step (the stream's receiver closes, and with it the
//! [`Run`]); what waits for a client is bounded.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::response::Response;
use bytes::Bytes;
use pelton::route::{Decision, Sureness};
use pelton::{AnswerParser, FinishReason, Part, Request, Thinking, Timing, ToolFormat};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::body;
use crate::engine::{Happened, Loaded, Run};
use crate::error::ApiError;
use crate::{App, Visit};

/// Pieces that wait for a client before the answer's own task does.
const PIECES: usize = 16;
/// Bytes that are put into one piece before it is sent.
const PIECE: usize = 16 << 10;
/// A sign of life is sent when nothing else was for so long.
const QUIET: Duration = Duration::from_secs(15);

/// How the text of an answer is read.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    pub(crate) thinking: Thinking,
    pub(crate) tools: Option<ToolFormat>,
    pub(crate) names: Vec<String>,
    /// Collect the tokens with their log-probabilities.
    pub(crate) tokens: bool,
}

impl Reading {
    /// Text is text.
    pub(crate) fn plain(tokens: bool) -> Reading {
        Reading { thinking: Thinking::Never, tools: None, names: Vec::new(), tokens }
    }
}

/// A token of an answer.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) id: u32,
    pub(crate) logprob: f32,
    pub(crate) top: Vec<(u32, f32)>,
}

/// Why a choice ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Stop,
    /// The stop string of this number.
    StopString(usize),
    Length,
    ToolCalls,
}

/// The end of a choice.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    pub(crate) end: End,
    pub(crate) reason: FinishReason,
    pub(crate) timing: Timing,
    pub(crate) reasoning_tokens: usize,
}

/// Something that a dialect puts into words.
#[derive(Clone, Debug)]
pub(crate) enum Update {
    /// More of a choice.
    Delta { choice: usize, parts: Vec<Part>, tokens: Vec<Token> },
    /// A choice is over.
    End { choice: usize, ended: Ended },
}

/// Figures of a whole request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) prompt_tokens: usize,
    pub(crate) cached_tokens: usize,
    pub(crate) tokens: usize,
    pub(crate) reasoning_tokens: usize,
    /// Guesses that were run, and those that were right.
    pub(crate) drafted_tokens: usize,
    pub(crate) accepted_tokens: usize,
    /// The choice that took longest.
    pub(crate) timing: Timing,
    pub(crate) ended_by: Option<FinishReason>,
    /// Which of two models answered and why, where rules chose.
    pub(crate) route: Option<Decision>,
    /// How long the small model had taken for an answer that does not stand.
    pub(crate) handed_over_after: Option<Duration>,
}

impl Totals {
    fn add(&mut self, choice: usize, n: usize, ended: &Ended) {
        let timing = &ended.timing;
        // The choices of one prompt share it.
        if choice.is_multiple_of(n.max(1)) {
            self.prompt_tokens += timing.prompt_tokens;
            self.cached_tokens += timing.cached_tokens;
        }
        self.tokens += timing.tokens;
        self.reasoning_tokens += ended.reasoning_tokens;
        self.drafted_tokens += timing.speculation.drafted;
        self.accepted_tokens += timing.speculation.accepted;
        if timing.total >= self.timing.total {
            (self.timing, self.ended_by) = (*timing, Some(ended.reason));
        }
    }

    /// OpenAI's `usage`.
    pub(crate) fn usage(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": self.prompt_tokens + self.tokens,
            "prompt_tokens_details": { "cached_tokens": self.cached_tokens },
            "completion_tokens_details": { "reasoning_tokens": self.reasoning_tokens },
        })
    }

    /// Where the time went: our extension.
    pub(crate) fn timings(&self) -> Value {
        let t = &self.timing;
        let ms = |d: Duration| (d.as_secs_f64() * 1e6).round() / 1e3;
        let predicted = t.total.saturating_sub(t.first_token);
        let mut timings = json!({
            "queue_ms": ms(t.queue),
            "ttft_ms": ms(t.first_token),
            "prompt_ms": ms(t.prefill),
            "predicted_ms": ms(predicted),
            "total_ms": ms(t.total),
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "predicted_tokens": self.tokens,
            "predicted_per_second": t.tokens_per_s(),
            "drafted_tokens": self.drafted_tokens,
            "accepted_tokens": self.accepted_tokens,
            "preemptions": t.preemptions,
            "ended_by": self.ended_by.map(|r| r.to_string()),
        });
        if let Some(route) = &self.route {
            timings["route"] = json!({ "to": route.to.to_string(), "why": route.why });
            if let Some(waited) = self.handed_over_after {
                timings["route"]["handed_over_after_ms"] = json!(ms(waited));
            }
        }
        timings
    }
}

struct Choice {
    parser: AnswerParser,
    reasoning_tokens: usize,
}

/// An answer being made.
pub(crate) struct Answer {
    run: Run,
    /// What happened already and nobody was told.
    held: VecDeque<(usize, Happened)>,
    pub(crate) model: Arc<Loaded>,
    choices: Vec<Choice>,
    reading: Reading,
    n: usize,
    /// Ids that end an answer and are no part of it.
    eos: Vec<u32>,
    /// Tokens of all prompts.
    pub(crate) prompt_tokens: usize,
    pub(crate) totals: Totals,
    visit: Visit,
    /// For `--log-prompts`.
    transcript: Option<String>,
    app: Arc<App>,
}

impl Answer {
    /// Submits the requests of one HTTP request.
    ///
    /// # Errors
    /// Where the engine refuses one of them.
    pub(crate) fn start(
        app: &Arc<App>,
        visit: &Visit,
        model: Arc<Loaded>,
        requests: Vec<Request>,
        reading: Reading,
    ) -> Result<Answer, ApiError> {
        let n = requests.first().map_or(1, |r| r.n);
        let count: usize = requests.iter().map(|r| r.n).sum();
        let prompt_tokens = requests.iter().map(|r| r.prompt.len()).sum();
        let goes_on = requests.iter().any(|r| r.ignore_eos);
        let eos = if goes_on { Vec::new() } else { model.text.eos_ids() };
        let transcript = app.options.log_prompts.then(String::new);
        if transcript.is_some() {
            for request in &requests {
                let prompt = model.text.tokenizer.decode(&request.prompt, false);
                (app.options.log)(&format!("prompt: {prompt:?}"));
            }
        }
        let log_cache = app.options.log_cache.then(|| app.options.log.clone());
        let run = Run::start(&model, requests, &app.metrics, log_cache)?;
        let choice = |_| Choice {
            parser: AnswerParser::new(reading.thinking, reading.tools, reading.names.clone()),
            reasoning_tokens: 0,
        };
        let choices = (0..count).map(choice).collect();
        let (totals, visit, app) = (Totals::default(), visit.clone(), app.clone());
        Ok(Answer {
            run,
            held: VecDeque::new(),
            model,
            choices,
            reading,
            n,
            eos,
            prompt_tokens,
            totals,
            visit,
            transcript,
            app,
        })
    }

    /// Waits for the end of all choices and keeps what happened; gives how sure the model was of them.
    ///
    /// # Errors
    /// Where the engine gave up.
    pub(crate) async fn hold(&mut self) -> Result<Sureness, ApiError> {
        let mut sure = Sureness::default();
        while let Some(event) = self.run.next().await {
            let (choice, happened) = event?;
            match &happened {
                Happened::Token { logprob, .. } => sure.token(*logprob),
                Happened::Finished { reason, .. } => sure.end(*reason),
            }
            self.held.push_back((choice, happened));
        }
        Ok(sure)
    }

    /// What happened next; `None` after the end.
    pub(crate) async fn next(&mut self) -> Option<Result<Vec<Update>, ApiError>> {
        if let Some((choice, happened)) = self.held.pop_front() {
            return Some(Ok(self.take(choice, happened)));
        }
        let event = self.run.next().await?;
        Some(event.map(|(choice, happened)| self.take(choice, happened)))
    }

    /// The same, if it has happened already.
    fn ready(&mut self) -> Option<Result<Vec<Update>, ApiError>> {
        if let Some((choice, happened)) = self.held.pop_front() {
            return Some(Ok(self.take(choice, happened)));
        }
        let event = self.run.ready()?;
        Some(event.map(|(choice, happened)| self.take(choice, happened)))
    }

    fn take(&mut self, index: usize, happened: Happened) -> Vec<Update> {
        let choice = &mut self.choices[index];
        let mut parts = Vec::new();
        match happened {
            Happened::Token { id, logprob, top, mut text } => {
                if let Some(mark) = self.model.marks.get(&id) {
                    text.insert_str(0, mark);
                }
                choice.reasoning_tokens += usize::from(choice.parser.is_thinking());
                choice.parser.push(&text, &mut parts);
                if let Some(transcript) = &mut self.transcript {
                    transcript.push_str(&text);
                }
                let shown = self.reading.tokens && !self.eos.contains(&id);
                let tokens = if shown { vec![Token { id, logprob, top }] } else { Vec::new() };
                if parts.is_empty() && tokens.is_empty() {
                    return Vec::new();
                }
                vec![Update::Delta { choice: index, parts, tokens }]
            }
            Happened::Finished { reason, text, timing } => {
                choice.parser.push(&text, &mut parts);
                choice.parser.finish(&mut parts);
                let end = match reason {
                    _ if choice.parser.calls() > 0 && !matches!(reason, FinishReason::MaxTokens) => End::ToolCalls,
                    FinishReason::Stop(i) => End::StopString(i),
                    FinishReason::MaxTokens | FinishReason::Context | FinishReason::Deadline => End::Length,
                    FinishReason::Eos | FinishReason::Grammar | FinishReason::Cancelled => End::Stop,
                };
                let ended = Ended { end, reason, timing, reasoning_tokens: choice.reasoning_tokens };
                self.totals.add(index, self.n, &ended);
                self.note(index, &text);
                let mut updates = Vec::new();
                if !parts.is_empty() {
                    updates.push(Update::Delta { choice: index, parts, tokens: Vec::new() });
                }
                updates.push(Update::End { choice: index, ended });
                updates
            }
        }
    }

    /// The end of the request's line in the log.
    fn note(&mut self, choice: usize, text: &str) {
        if let Some(transcript) = &mut self.transcript {
            let answer = std::mem::take(transcript) + text;
            (self.app.options.log)(&format!("answer {choice}: {answer:?}"));
        }
        let line = format!("{} {}", self.model.id, self.totals.timing);
        *self.visit.note.lock().unwrap_or_else(PoisonError::into_inner) = line;
    }
}

/// How a dialect streams.
pub(crate) trait Format: Send + 'static {
    /// Content type of the stream.
    const KIND: &'static str;

    /// Before anything has happened.
    fn begin(&mut self, out: &mut Vec<u8>);

    fn update(&mut self, update: Update, out: &mut Vec<u8>);

    /// After all choices have ended.
    fn end(&mut self, totals: &Totals, out: &mut Vec<u8>);

    /// Instead of the end.
    fn error(&mut self, error: &ApiError, out: &mut Vec<u8>);

    /// Nothing happens, and takes long.
    fn sign_of_life(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b": still here\n\n");
    }
}

/// Streams an answer.
pub(crate) fn stream<F: Format>(answer: Answer, format: F) -> Response {
    let (sender, pieces) = mpsc::channel(PIECES);
    tokio::spawn(drive(answer, format, sender));
    body::stream(F::KIND, pieces)
}

async fn drive<F: Format>(mut answer: Answer, mut format: F, sender: mpsc::Sender<Bytes>) {
    let mut out = Vec::new();
    format.begin(&mut out);
    loop {
        if !out.is_empty() && sender.send(std::mem::take(&mut out).into()).await.is_err() {
            return;
        }
        let mut next = tokio::select! {
            biased;
            () = sender.closed() => return,
            next = answer.next() => next,
            () = tokio::time::sleep(QUIET) => {
                format.sign_of_life(&mut out);
                continue;
            }
        };
        loop {
            match next {
                Some(Ok(updates)) => updates.into_iter().for_each(|u| format.update(u, &mut out)),
                Some(Err(error)) => {
                    format.error(&error, &mut out);
                    let _ = sender.send(out.into()).await;
                    return;
                }
                None => {
                    format.end(&answer.totals, &mut out);
                    let _ = sender.send(out.into()).await;
                    return;
                }
            }
            if out.len() >= PIECE {
                break;
            }
            match answer.ready() {
                None => break,
                more => next = more,
            }
        }
    }
}

/// A tool call, whole.
#[derive(Clone, Debug, Default)]
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) arguments: String,
}

impl Call {
    /// The arguments as JSON; what is not JSON (an answer that was cut) stays text.
    pub(crate) fn value(&self) -> Value {
        serde_json::from_str(&self.arguments).unwrap_or_else(|_| Value::from(self.arguments.as_str()))
    }
}

/// A choice, whole.
#[derive(Clone, Debug, Default)]
pub(crate) struct Whole {
    pub(crate) reasoning: String,
    pub(crate) content: String,
    pub(crate) calls: Vec<Call>,
    pub(crate) tokens: Vec<Token>,
    pub(crate) ended: Option<Ended>,
}

impl Whole {
    fn take(&mut self, part: Part) {
        match part {
            Part::Reasoning(text) => self.reasoning += &text,
            Part::Content(text) => self.content += &text,
            Part::Call { name, .. } => self.calls.push(Call { name, arguments: String::new() }),
            Part::Arguments { index, json } => {
                if let Some(call) = self.calls.get_mut(index) {
                    call.arguments += &json;
                }
            }
        }
    }
}

/// Waits for an answer's end.
///
/// # Errors
/// Where the engine gave up.
pub(crate) async fn collect(mut answer: Answer) -> Result<(Vec<Whole>, Totals), ApiError> {
    let mut choices = vec![Whole::default(); answer.choices.len()];
    while let Some(updates) = answer.next().await {
        for update in updates? {
            match update {
                Update::Delta { choice, parts, tokens } => {
                    let whole = &mut choices[choice];
                    parts.into_iter().for_each(|p| whole.take(p));
                    whole.tokens.extend(tokens);
                }
                Update::End { choice, ended } => choices[choice].ended = Some(ended),
            }
        }
    }
    Ok((choices, answer.totals.clone()))
}

/// One server-sent event.
pub(crate) fn event(out: &mut Vec<u8>, name: Option<&str>, data: &Value) {
    if let Some(name) = name {
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(name.as_bytes());
        out.push(b'\n');
    }
    out.extend_from_slice(b"data: ");
    serde_json::to_writer(&mut *out, data).expect("a JSON value is written to memory");
    out.extend_from_slice(b"\n\n");
}

/// A place for the end of a request's line in the log.
pub(crate) type Note = Arc<Mutex<String>>;

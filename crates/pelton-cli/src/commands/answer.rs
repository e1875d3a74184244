//! Asking and answering, as `run` and `chat` share it: sampling from the command line, a stream of text or a whole one
//! that is kept back, the figures.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use pelton::route::Sureness;
use pelton::{Event, FinishReason, Finished, Llm, Model, Request, RequestHandle};
use serde_json::{Value, json};

use crate::Usage;
use crate::args::SamplingArgs;
use crate::progress::Progress;
use crate::setup::Context;

/// A request with the caller's sampling over the model's; says where the context cuts the answer short.
pub(crate) fn build_request(
    ids: Vec<u32>,
    args: &SamplingArgs,
    model: &Model,
    llm: &Llm,
    context: &Context,
) -> anyhow::Result<Request> {
    let room = llm.report().memory.context;
    if ids.len() >= room {
        let tokens = ids.len();
        let hint = match model.files.config.max_context > room {
            true => "shorten it or raise --context",
            false => "shorten it, or choose a model with a longer context",
        };
        return Err(Usage(format!("the prompt has {tokens} tokens, the context holds {room}; {hint}")).into());
    }
    let vocab = model.files.config.vocab_size;
    if let Some((id, _)) = args.logit_bias.iter().find(|(id, _)| *id as usize >= vocab) {
        return Err(Usage(format!("--logit-bias {id}: {} has the tokens 0 to {}", model.name, vocab - 1)).into());
    }
    let left = room - ids.len();
    if let Some(n) = args.max_tokens.filter(|&n| n > left) {
        context.note(&format!("the context of {room} leaves room for {left} tokens, not {n}"));
    }
    let max_tokens = args.max_tokens.unwrap_or(left).min(left);
    let sampling = args.overrides().resolve(&model.files.generation);
    let mut request = Request::new(ids, sampling, max_tokens);
    request.stop = args.stop.clone();
    Ok(request)
}

/// Hands out an answer's text as it comes. `None` where `interrupted` became true before its end.
pub(crate) fn stream(
    handle: &RequestHandle,
    interrupted: &AtomicBool,
    quiet: bool,
    emit: &mut dyn FnMut(&str) -> std::io::Result<()>,
) -> anyhow::Result<Option<Finished>> {
    let mut waiting = Some(Progress::spinner("reading the prompt", quiet));
    follow(handle, interrupted, &mut |text, _| {
        waiting = None;
        emit(text)
    })
}

/// A whole answer, kept back.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) text: String,
    /// How sure the model was of it.
    pub(crate) sure: Sureness,
    pub(crate) finished: Finished,
}

impl Said {
    /// How long it took, in seconds.
    pub(crate) fn seconds(&self) -> f64 {
        self.finished.timing.total.as_secs_f64()
    }
}

/// Waits for an answer's end. `None` where `interrupted` became true before.
pub(crate) fn hold(handle: &RequestHandle, interrupted: &AtomicBool, quiet: bool) -> anyhow::Result<Option<Said>> {
    let _waiting = Progress::spinner("the small model answers", quiet);
    let (mut text, mut sure) = (String::new(), Sureness::default());
    let finished = follow(handle, interrupted, &mut |piece, logprob| {
        text.push_str(piece);
        if let Some(logprob) = logprob {
            sure.token(logprob);
        }
        Ok(())
    })?;
    let Some(finished) = finished else { return Ok(None) };
    sure.end(finished.reason);
    Ok(Some(Said { text, sure, finished }))
}

/// Hands out text with the log-probability of its token; what is held back until the end has none.
fn follow(
    handle: &RequestHandle,
    interrupted: &AtomicBool,
    each: &mut dyn FnMut(&str, Option<f32>) -> std::io::Result<()>,
) -> anyhow::Result<Option<Finished>> {
    loop {
        if interrupted.swap(false, Ordering::Relaxed) {
            return Ok(None);
        }
        match handle.next_event_timeout(Duration::from_millis(50)) {
            Ok(Event::Token { text, logprob, .. }) => each(&text, Some(logprob))?,
            Ok(Event::Finished(finished)) => {
                each(&finished.text, None)?;
                return Ok(Some(finished));
            }
            Ok(Event::Refused(refused)) => anyhow::bail!("{refused}"),
            Ok(Event::Embedded(_)) => anyhow::bail!("a vector came where an answer was expected"),
            Ok(Event::Failed(message)) => anyhow::bail!("{message}"),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                anyhow::bail!("the engine stopped before the answer was complete")
            }
        }
    }
}

/// The performance line, with the reason where the answer was cut off.
pub(crate) fn figures(finished: &Finished) -> String {
    match finished.reason {
        reason @ (FinishReason::Context | FinishReason::MaxTokens | FinishReason::Deadline) => {
            format!("{} ended by: {reason}", finished.timing)
        }
        _ => finished.timing.to_string(),
    }
}

/// Why an answer ended, for programs.
pub(crate) fn reason_word(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Eos => "end_of_text",
        FinishReason::Stop(_) => "stop_string",
        FinishReason::MaxTokens => "max_tokens",
        FinishReason::Context => "context_full",
        FinishReason::Grammar => "grammar_complete",
        FinishReason::Deadline => "time_limit",
        FinishReason::Cancelled => "cancelled",
    }
}

/// The ledger, for programs.
pub(crate) fn timing_json(finished: &Finished) -> Value {
    let t = &finished.timing;
    let s = &t.speculation;
    let speculation = (s.drafted > 0).then(|| {
        json!({ "drafted": s.drafted, "accepted": s.accepted, "mean_accepted": s.mean_accepted(), "speedup": s.speedup })
    });
    json!({
        "prompt_tokens": t.prompt_tokens,
        "cached_tokens": t.cached_tokens,
        "tokens": t.tokens,
        "queue_ms": t.queue.as_secs_f64() * 1e3,
        "first_token_ms": t.first_token.as_secs_f64() * 1e3,
        "total_ms": t.total.as_secs_f64() * 1e3,
        "tokens_per_s": t.tokens_per_s(),
        "preemptions": t.preemptions,
        "speculation": speculation,
    })
}

//! `POST /v1/completions`: text that goes on.
//!
//! Invariant: the prompt is text or ids and nothing else: no template, no control token that it spells.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::Response;
use pelton::{MAX_TOP_LOGPROBS, Special};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::generation::Asked;
use super::{FINGERPRINT, finish_reason, finite, token_text};
use crate::answer::{Answer, Format, Reading, Token, Totals, Update, collect, event, stream};
use crate::engine::{Loaded, blocking};
use crate::error::{ApiError, Dialect};
use crate::knobs::Knobs;
use crate::registry::unix_now;
use crate::{App, Visit, body};

/// The most prompts of one request.
const MAX_PROMPTS: usize = 128;

/// What to continue.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected a string, an array of strings, an array of token ids, or an array of such arrays"
)]
pub(crate) enum CompletionPrompt {
    /// A text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// Token ids.
    Ids(Vec<u32>),
    /// Several times token ids.
    ManyIds(Vec<Vec<u32>>),
}

/// Text to continue.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct CompletionRequest {
    /// What to continue.
    pub(crate) prompt: CompletionPrompt,
    /// Longest answer in tokens; 16 if left out.
    #[schemars(range(min = 1))]
    pub(crate) max_tokens: Option<u64>,
    /// Say how likely each token was, and so many others.
    #[schemars(range(min = 0, max = 20))]
    pub(crate) logprobs: Option<u64>,
    /// Begin the answer with the prompt; not together with `logprobs`.
    pub(crate) echo: Option<bool>,
}

impl Asked<CompletionRequest> {
    /// Whether it can be asked at all.
    pub(crate) fn checks(&self) -> bool {
        self.knobs().is_ok() && self.generation.form().is_ok()
    }

    fn knobs(&self) -> Result<Knobs, ApiError> {
        if let Some(n) = self.own.logprobs.filter(|&n| n > MAX_TOP_LOGPROBS as u64) {
            return Err(ApiError::field("logprobs", format!("{n}; expected 0 to {MAX_TOP_LOGPROBS}")));
        }
        Ok(Knobs {
            // OpenAI's default.
            max_tokens: Some(self.own.max_tokens.unwrap_or(16)),
            max_tokens_name: "max_tokens",
            top_logprobs: self.own.logprobs.unwrap_or(0),
            continues_text: true,
            ..self.generation.knobs()?
        })
    }
}

/// The ids of each prompt.
pub(crate) fn prompt_ids(model: &Loaded, prompt: CompletionPrompt) -> Result<Vec<Vec<u32>>, ApiError> {
    let tokenizer = &model.text.tokenizer;
    let encode = |text: &String| {
        let mut ids: Vec<u32> = tokenizer.bos().filter(|_| tokenizer.add_bos()).into_iter().collect();
        ids.extend(tokenizer.encode(text, Special::AsText));
        ids
    };
    let prompts = match prompt {
        CompletionPrompt::Text(text) => vec![encode(&text)],
        CompletionPrompt::Texts(texts) => texts.iter().take(MAX_PROMPTS + 1).map(encode).collect(),
        CompletionPrompt::Ids(ids) => vec![ids],
        CompletionPrompt::ManyIds(many) => many,
    };
    if prompts.is_empty() || prompts.len() > MAX_PROMPTS {
        return Err(ApiError::field("prompt", format!("expected 1 to {MAX_PROMPTS} prompts")));
    }
    if prompts.iter().any(Vec::is_empty) {
        return Err(ApiError::field("prompt", "it is empty; expected at least one token"));
    }
    Ok(prompts)
}

/// `POST /v1/completions`
pub(crate) async fn completions(
    State(app): State<Arc<App>>,
    Extension(visit): Extension<Visit>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let bytes = app.read(request).await?;
    let asked: Asked<CompletionRequest> = Asked::parse(&bytes)?;
    let (knobs, form) = (asked.knobs()?, asked.generation.form()?);
    let Asked { own: asked, generation } = asked;
    if asked.echo == Some(true) && asked.logprobs.is_some() {
        let message = "it cannot be combined with `logprobs`: the log-probabilities of a prompt are not computed here; \
                       leave one of the two out";
        return Err(ApiError::field("echo", message));
    }
    let model = app.registry.get(generation.model.as_deref()).await?;
    let (encoder, prompt) = (model.clone(), asked.prompt.clone());
    let prompts = blocking(move || prompt_ids(&encoder, prompt)).await?;
    let grammar = match form {
        Some(spec) => Some(model.grammar(spec).await?),
        None => None,
    };
    let n = knobs.n.unwrap_or(1);
    if (prompts.len() as u64).saturating_mul(n) > MAX_PROMPTS as u64 {
        return Err(ApiError::field("n", format!("{} prompts times {n} are more than {MAX_PROMPTS}", prompts.len())));
    }
    let echoes = match asked.echo {
        Some(true) => prompts.iter().map(|ids| model.text.tokenizer.decode(ids, false)).collect(),
        _ => vec![String::new(); prompts.len()],
    };
    let request = |ids| knobs.request(&model, ids, grammar.clone(), app.options.deadline, visit.caller);
    let requests = prompts.into_iter().map(request).collect::<Result<Vec<_>, _>>()?;
    let answer = Answer::start(&app, &visit, model.clone(), requests, Reading::plain(asked.logprobs.is_some()))?;
    let usage = generation.streams_usage();
    let (id, created, n) = (app.serial.name("cmpl-"), unix_now(), n as usize);
    let writer =
        Writer { model, id, created, n, echoes, logprobs: asked.logprobs.is_some(), usage, offsets: Vec::new() };
    if generation.streams() {
        return Ok(stream(answer, writer));
    }
    writer.whole(answer).await
}

/// Writes text completions.
struct Writer {
    model: Arc<Loaded>,
    id: String,
    created: u64,
    /// Choices of each prompt.
    n: usize,
    /// What each prompt's answers begin with.
    echoes: Vec<String>,
    logprobs: bool,
    usage: bool,
    /// Bytes of text so far, of each choice; shorter where none came.
    offsets: Vec<usize>,
}

impl Writer {
    fn object(&self, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model.id,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        })
    }

    /// The older shape of log-probabilities.
    fn logprobs(&self, tokens: &[Token], mut offset: usize) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        let tokenizer = &self.model.text.tokenizer;
        let (mut texts, mut values, mut tops, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for token in tokens {
            let (text, _) = token_text(tokenizer, token.id);
            let top: Map<String, Value> =
                token.top.iter().map(|&(id, p)| (token_text(tokenizer, id).0, json!(finite(p)))).collect();
            offsets.push(json!(offset));
            offset += text.chars().count();
            texts.push(Value::from(text));
            values.push(json!(finite(token.logprob)));
            tops.push(Value::Object(top));
        }
        json!({ "tokens": texts, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets })
    }

    async fn whole(self, answer: Answer) -> Result<Response, ApiError> {
        let (wholes, totals) = collect(answer).await?;
        let choice = |(i, whole): (usize, &crate::answer::Whole)| {
            let echo = &self.echoes[i / self.n];
            let finish = whole.ended.as_ref().map(|e| finish_reason(&e.end));
            let logprobs = self.logprobs(&whole.tokens, echo.chars().count());
            json!({ "index": i, "text": format!("{echo}{}", whole.content), "logprobs": logprobs, "finish_reason": finish })
        };
        let mut object = self.object(wholes.iter().enumerate().map(choice).collect());
        object["usage"] = totals.usage();
        object["timings"] = totals.timings();
        Ok(body::json(&object))
    }

    fn chunk(&self, choice: usize, text: &str, logprobs: Value, finish: Option<&str>, out: &mut Vec<u8>) {
        let choice = json!({ "index": choice, "text": text, "logprobs": logprobs, "finish_reason": finish });
        let mut object = self.object(vec![choice]);
        if self.usage {
            object["usage"] = Value::Null;
        }
        event(out, None, &object);
    }
}

impl Format for Writer {
    const KIND: &'static str = "text/event-stream";

    fn begin(&mut self, out: &mut Vec<u8>) {
        self.offsets = self.echoes.iter().flat_map(|e| vec![e.chars().count(); self.n]).collect();
        for choice in 0..self.offsets.len() {
            let echo = &self.echoes[choice / self.n];
            if !echo.is_empty() {
                self.chunk(choice, echo, Value::Null, None, out);
            }
        }
    }

    fn update(&mut self, update: Update, out: &mut Vec<u8>) {
        match update {
            Update::Delta { choice, parts, tokens } => {
                let text: String =
                    parts.iter().map(|p| if let pelton::Part::Content(t) = p { t } else { "" }).collect();
                let logprobs = self.logprobs(&tokens, self.offsets[choice]);
                self.offsets[choice] += text.chars().count();
                self.chunk(choice, &text, logprobs, None, out);
            }
            Update::End { choice, ended } => {
                self.chunk(choice, "", Value::Null, Some(finish_reason(&ended.end)), out);
            }
        }
    }

    fn end(&mut self, totals: &Totals, out: &mut Vec<u8>) {
        if self.usage {
            let mut object = self.object(Vec::new());
            object["usage"] = totals.usage();
            object["timings"] = totals.timings();
            event(out, None, &object);
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }

    fn error(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        event(out, None, &error.body(Dialect::OpenAi));
    }
}

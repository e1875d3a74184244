//! `POST /v1/chat/completions`.
//!
//! Invariant: a stream's chunks, put together, are the object that the same request gets without streaming.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::chat_stream::ChatStream;
use super::generation::Asked;
use super::messages::{Message, ToolChoiceField, ToolDefinition, choice_of, tools_of};
use super::{FINGERPRINT, finish_reason, logprob_entry};
use crate::answer::{Call, Totals, Whole, collect, stream};
use crate::conversation::Ask;
use crate::engine::Loaded;
use crate::error::ApiError;
use crate::knobs::Knobs;
use crate::registry::unix_now;
use crate::{App, Visit, body};

/// A conversation that asks for an answer.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct ChatRequest {
    /// The conversation.
    #[schemars(length(min = 1))]
    pub(crate) messages: Vec<Message>,
    /// Longest answer in tokens.
    #[schemars(range(min = 1))]
    pub(crate) max_tokens: Option<u64>,
    /// The same, by its newer name.
    #[schemars(range(min = 1))]
    pub(crate) max_completion_tokens: Option<u64>,
    /// Say how likely each token was.
    pub(crate) logprobs: Option<bool>,
    /// And how likely the likeliest others were.
    #[schemars(range(min = 0, max = 20))]
    pub(crate) top_logprobs: Option<u64>,
    /// Tools on offer.
    #[schemars(length(max = 256))]
    pub(crate) tools: Option<Vec<ToolDefinition>>,
    /// Which of them may be called.
    pub(crate) tool_choice: Option<ToolChoiceField>,
    /// Several calls in one answer.
    pub(crate) parallel_tool_calls: Option<bool>,
    /// How much the model thinks: `none` switches it off, the rest is for its template.
    pub(crate) reasoning_effort: Option<String>,
    /// Extension: variables of the chat template, such as `enable_thinking`.
    #[schemars(with = "Option<Map<String, Value>>")]
    pub(crate) chat_template_kwargs: Option<Map<String, Value>>,
}

impl Asked<ChatRequest> {
    /// Whether it can be asked at all.
    pub(crate) fn checks(&self) -> bool {
        self.knobs().is_ok() && self.ask().is_ok()
    }

    fn knobs(&self) -> Result<Knobs, ApiError> {
        let own = &self.own;
        if own.top_logprobs.is_some_and(|n| n > 0) && own.logprobs != Some(true) {
            return Err(ApiError::field("top_logprobs", "it needs `logprobs`: true"));
        }
        let named = if own.max_completion_tokens.is_some() { "max_completion_tokens" } else { "max_tokens" };
        Ok(Knobs {
            max_tokens: own.max_completion_tokens.or(own.max_tokens),
            max_tokens_name: named,
            top_logprobs: own.top_logprobs.unwrap_or(0),
            ..self.generation.knobs()?
        })
    }

    fn ask(&self) -> Result<Ask, ApiError> {
        let own = &self.own;
        let messages = own.messages.iter().enumerate().map(|(i, m)| m.for_template(i)).collect::<Result<_, _>>()?;
        let form = self.generation.form()?;
        let mut extra = own.chat_template_kwargs.clone().unwrap_or_default();
        if let Some(effort) = &own.reasoning_effort {
            extra.entry("reasoning_effort").or_insert_with(|| json!(effort));
            if effort == "none" {
                extra.entry("enable_thinking").or_insert(Value::Bool(false));
            }
        }
        Ok(Ask {
            messages,
            tools: tools_of(own.tools.as_deref().unwrap_or_default())?,
            choice: choice_of(own.tool_choice.as_ref())?,
            parallel: own.parallel_tool_calls != Some(false),
            form,
            extra,
            prefill: None,
        })
    }
}

/// `POST /v1/chat/completions`
pub(crate) async fn chat(
    State(app): State<Arc<App>>,
    Extension(visit): Extension<Visit>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let bytes = app.read(request).await?;
    let asked: Asked<ChatRequest> = Asked::parse(&bytes)?;
    let (knobs, ask) = (asked.knobs()?, asked.ask()?);
    let Asked { own, generation } = asked;
    let logprobs = own.logprobs == Some(true);
    let answer = app.ask(&visit, generation.model.as_deref(), ask, &knobs, logprobs).await?;
    let model = answer.model.clone();
    let id = app.serial.name("chatcmpl-");
    if generation.streams() {
        return Ok(stream(answer, ChatStream::new(id, model, generation.streams_usage(), logprobs, app.clone())));
    }
    let (choices, totals) = collect(answer).await?;
    let choices = choices.iter().enumerate().map(|(i, whole)| choice(&app, &model, i, whole, logprobs)).collect();
    Ok(body::json(&completion(id, &model, choices, &totals)))
}

fn completion(id: String, model: &Loaded, choices: Vec<Value>, totals: &Totals) -> Value {
    json!({
        "id": id,
        "object": "chat.completion",
        "created": unix_now(),
        "model": model.id,
        "system_fingerprint": FINGERPRINT,
        "choices": choices,
        "usage": totals.usage(),
        "timings": totals.timings(),
    })
}

fn choice(app: &App, model: &Loaded, index: usize, whole: &Whole, with_logprobs: bool) -> Value {
    let mut message = json!({ "role": "assistant", "content": whole.content, "refusal": null });
    if !whole.reasoning.is_empty() {
        message["reasoning_content"] = json!(whole.reasoning);
    }
    if !whole.calls.is_empty() {
        if whole.content.is_empty() {
            message["content"] = Value::Null;
        }
        message["tool_calls"] = whole.calls.iter().map(|call| call_object(app, model, call)).collect();
    }
    let logprobs = with_logprobs.then(|| {
        let entries: Vec<Value> = whole.tokens.iter().map(|t| logprob_entry(&model.text.tokenizer, t)).collect();
        json!({ "content": entries, "refusal": null })
    });
    let finish = whole.ended.as_ref().map(|e| finish_reason(&e.end));
    json!({ "index": index, "message": message, "logprobs": logprobs, "finish_reason": finish })
}

fn call_object(app: &App, model: &Loaded, call: &Call) -> Value {
    let arguments = if call.arguments.is_empty() { "{}" } else { &call.arguments };
    let function = json!({ "name": call.name, "arguments": arguments });
    json!({ "id": app.serial.call(model), "type": "function", "function": function })
}

//! `POST /v1/chat/completions`.
//!
//! Invariant: a stream's chunks, put together, are the object that the same request gets without streaming.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::Response;
use pelton::{GrammarSpec, SamplingOverrides};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::chat_stream::ChatStream;
use super::messages::{Message, ResponseFormat, ToolChoiceField, ToolDefinition, choice_of, tools_of};
use super::{FINGERPRINT, finish_reason, logprob_entry};
use crate::answer::{Call, Totals, Whole, collect, stream};
use crate::conversation::Ask;
use crate::engine::Loaded;
use crate::error::ApiError;
use crate::knobs::{Knobs, OneOrMany, biases};
use crate::registry::unix_now;
use crate::{App, Visit, body};

/// A conversation that asks for an answer.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(extend("not" = { "anyOf": [
    { "required": ["response_format", "regex"] },
    { "required": ["response_format", "grammar"] },
    { "required": ["regex", "grammar"] },
] }))]
pub(crate) struct ChatRequest {
    /// The model; the server's first if left out.
    pub(crate) model: Option<String>,
    /// The conversation.
    #[schemars(length(min = 1))]
    pub(crate) messages: Vec<Message>,
    /// Send the answer as it comes.
    pub(crate) stream: Option<bool>,
    /// What a stream holds.
    pub(crate) stream_options: Option<StreamOptions>,
    /// Longest answer in tokens.
    #[schemars(range(min = 1))]
    pub(crate) max_tokens: Option<u64>,
    /// The same, by its newer name.
    #[schemars(range(min = 1))]
    pub(crate) max_completion_tokens: Option<u64>,
    /// Randomness; 0 always takes the likeliest token.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub(crate) temperature: Option<f32>,
    /// Choose among the likeliest tokens that together have this probability.
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0))]
    pub(crate) top_p: Option<f32>,
    /// Choose among so many likeliest tokens; 0 is all.
    pub(crate) top_k: Option<u32>,
    /// Drop tokens less likely than this share of the likeliest.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub(crate) min_p: Option<f32>,
    /// Subtracted from the logits of tokens that were generated.
    #[schemars(range(min = -100.0, max = 100.0))]
    pub(crate) presence_penalty: Option<f32>,
    /// Subtracted from a token's logit each time it was generated.
    #[schemars(range(min = -100.0, max = 100.0))]
    pub(crate) frequency_penalty: Option<f32>,
    /// Divides the logits of tokens that occurred; 1 is off.
    #[schemars(range(max = 100.0), extend("exclusiveMinimum" = 0))]
    pub(crate) repetition_penalty: Option<f32>,
    /// The same seed gives the same answer.
    pub(crate) seed: Option<i64>,
    /// Added to the logits of single tokens, by id; -100 bans one.
    pub(crate) logit_bias: Option<BTreeMap<String, f32>>,
    /// Texts that end the answer.
    pub(crate) stop: Option<OneOrMany>,
    /// How many answers.
    #[schemars(range(min = 1, max = 128))]
    pub(crate) n: Option<u64>,
    /// Say how likely each token was.
    pub(crate) logprobs: Option<bool>,
    /// And how likely the likeliest others were.
    #[schemars(range(min = 0, max = 20))]
    pub(crate) top_logprobs: Option<u64>,
    /// The form of the answer.
    pub(crate) response_format: Option<ResponseFormat>,
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
    /// Extension: a regular expression that the answer has to match.
    pub(crate) regex: Option<String>,
    /// Extension: a Lark grammar that the answer has to obey.
    pub(crate) grammar: Option<String>,
    /// Extension: go on after an end-of-text token.
    pub(crate) ignore_eos: Option<bool>,
    /// Extension: higher goes first.
    pub(crate) priority: Option<i32>,
    /// Extension: seconds after which the answer ends.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(crate) timeout: Option<f64>,
}

/// What a stream holds.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
pub(crate) struct StreamOptions {
    /// A last chunk with the usage.
    pub(crate) include_usage: Option<bool>,
}

impl ChatRequest {
    /// Whether it can be asked at all.
    pub(crate) fn checks(&self) -> bool {
        self.knobs().is_ok() && self.ask().is_ok()
    }

    fn knobs(&self) -> Result<Knobs, ApiError> {
        if self.top_logprobs.is_some_and(|n| n > 0) && self.logprobs != Some(true) {
            return Err(ApiError::field("top_logprobs", "it needs `logprobs`: true"));
        }
        let named = if self.max_completion_tokens.is_some() { "max_completion_tokens" } else { "max_tokens" };
        Ok(Knobs {
            sampling: SamplingOverrides {
                temperature: self.temperature,
                top_k: self.top_k.map(|k| k as usize),
                top_p: self.top_p,
                min_p: self.min_p,
                repetition_penalty: self.repetition_penalty,
                presence_penalty: self.presence_penalty,
                frequency_penalty: self.frequency_penalty,
                logit_bias: biases(self.logit_bias.clone())?,
                seed: self.seed.map(|s| s as u64),
            },
            max_tokens: self.max_completion_tokens.or(self.max_tokens),
            max_tokens_name: named,
            stop: self.stop.clone().map_or_else(Vec::new, OneOrMany::into_vec),
            n: self.n,
            top_logprobs: self.top_logprobs.unwrap_or(0),
            ignore_eos: self.ignore_eos.unwrap_or(false),
            continues_text: false,
            priority: self.priority.unwrap_or(0),
            timeout: self.timeout,
        })
    }

    fn ask(&self) -> Result<Ask, ApiError> {
        let messages = self.messages.iter().enumerate().map(|(i, m)| m.for_template(i)).collect::<Result<_, _>>()?;
        let format = self.response_format.as_ref().map_or(Ok(None), |f| f.spec())?;
        let regex = self.regex.clone().map(GrammarSpec::Regex);
        let lark = self.grammar.clone().map(GrammarSpec::Lark);
        let mut forms = [format, regex, lark].into_iter().flatten();
        let form = forms.next();
        if forms.next().is_some() {
            return Err(ApiError::bad("response_format, regex and grammar exclude each other; give one"));
        }
        let mut extra = self.chat_template_kwargs.clone().unwrap_or_default();
        if let Some(effort) = &self.reasoning_effort {
            extra.entry("reasoning_effort").or_insert_with(|| json!(effort));
            if effort == "none" {
                extra.entry("enable_thinking").or_insert(Value::Bool(false));
            }
        }
        Ok(Ask {
            messages,
            tools: tools_of(self.tools.as_deref().unwrap_or_default())?,
            choice: choice_of(self.tool_choice.as_ref())?,
            parallel: self.parallel_tool_calls != Some(false),
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
    let asked: ChatRequest = body::parse(&bytes)?;
    let (knobs, ask) = (asked.knobs()?, asked.ask()?);
    let answer = app.ask(&visit, asked.model.as_deref(), ask, &knobs, asked.logprobs == Some(true)).await?;
    let model = answer.model.clone();
    let id = app.serial.name("chatcmpl-");
    if asked.stream == Some(true) {
        let usage = asked.stream_options.unwrap_or_default().include_usage == Some(true);
        return Ok(stream(answer, ChatStream::new(id, model, usage, asked.logprobs == Some(true), app.clone())));
    }
    let (choices, totals) = collect(answer).await?;
    let choices = choices.iter().enumerate().map(|(i, whole)| choice(&app, &model, i, whole, &asked)).collect();
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

fn choice(app: &App, model: &Loaded, index: usize, whole: &Whole, asked: &ChatRequest) -> Value {
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
    let logprobs = match asked.logprobs {
        Some(true) => {
            let entries: Vec<Value> = whole.tokens.iter().map(|t| logprob_entry(&model.text.tokenizer, t)).collect();
            json!({ "content": entries, "refusal": null })
        }
        _ => Value::Null,
    };
    let finish = whole.ended.as_ref().map(|e| finish_reason(&e.end));
    json!({ "index": index, "message": message, "logprobs": logprobs, "finish_reason": finish })
}

fn call_object(app: &App, model: &Loaded, call: &Call) -> Value {
    let arguments = if call.arguments.is_empty() { "{}" } else { &call.arguments };
    let function = json!({ "name": call.name, "arguments": arguments });
    json!({ "id": app.serial.call(model), "type": "function", "function": function })
}

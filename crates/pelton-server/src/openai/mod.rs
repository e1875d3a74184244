//! OpenAI's dialect: chat completions, completions, embeddings, models, responses.

mod chat;
mod chat_stream;
mod completions;
mod embeddings;
mod generation;
mod messages;
mod responses;
mod responses_stream;

pub(crate) use chat::{ChatRequest, chat};
pub(crate) use completions::{CompletionRequest, completions};
pub(crate) use embeddings::{EmbeddingRequest, Input, embed, embeddings};
pub(crate) use generation::Asked;
pub(crate) use messages::{Message, ToolDefinition, tool_of};
pub(crate) use responses::{ResponsesRequest, responses};

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use pelton::Tokenizer;
use serde_json::{Value, json};

use crate::App;
use crate::answer::{End, Token};
use crate::body;
use crate::error::ApiError;

/// `GET /v1/models`
pub(crate) async fn models(State(app): State<Arc<App>>) -> Response {
    body::json(&json!({ "object": "list", "data": app.registry.list() }))
}

/// `GET /v1/models/{id}`
pub(crate) async fn model(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    Ok(body::json(&app.registry.describe(&id)?))
}

/// OpenAI's `finish_reason`.
fn finish_reason(end: &End) -> &'static str {
    match end {
        End::Stop | End::StopString(_) => "stop",
        End::Length => "length",
        End::ToolCalls => "tool_calls",
    }
}

/// A token's text and bytes.
fn token_text(tokenizer: &Tokenizer, id: u32) -> (String, Vec<u8>) {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default().into_owned();
    (String::from_utf8_lossy(&bytes).into_owned(), bytes)
}

/// One entry of `logprobs.content`.
fn logprob_entry(tokenizer: &Tokenizer, token: &Token) -> Value {
    let entry = |id: u32, logprob: f32| {
        let (text, bytes) = token_text(tokenizer, id);
        json!({ "token": text, "logprob": finite(logprob), "bytes": bytes })
    };
    let mut object = entry(token.id, token.logprob);
    object["top_logprobs"] = token.top.iter().map(|&(id, logprob)| entry(id, logprob)).collect();
    object
}

/// JSON has no infinity: OpenAI writes -9999 for what cannot be.
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}

/// Identifies what computed an answer.
const FINGERPRINT: &str = concat!("pelton-", env!("CARGO_PKG_VERSION"));

//! Pelton's own routes: tokens, templates, health, metrics.
//!
//! Invariant: `/health` says that the process answers and has what it needs (a GPU that was lost and cannot be opened again
//! is missing), `/ready` that it would answer a question now.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use pelton::{Conversation, Special};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::engine::blocking;
use crate::error::ApiError;
use crate::metrics::EngineFigures;
use crate::openai::{Message, ToolDefinition, tool_of};
use crate::{App, body, registry};

/// Text to turn into token ids: `content`, or `prompt`. One of them has to be there.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct TokenizeRequest {
    /// The model; the server's first if left out.
    pub(crate) model: Option<String>,
    /// The text.
    pub(crate) content: Option<String>,
    /// The same, as other servers call it.
    pub(crate) prompt: Option<String>,
    /// Begin with the token that the model expects there.
    pub(crate) add_special: Option<bool>,
    /// Control tokens that the text spells become those tokens.
    pub(crate) parse_special: Option<bool>,
    /// Also give each token's text.
    pub(crate) with_pieces: Option<bool>,
}

/// Token ids to turn into text.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct DetokenizeRequest {
    /// The model; the server's first if left out.
    pub(crate) model: Option<String>,
    /// The ids.
    pub(crate) tokens: Vec<u32>,
}

/// A conversation to render.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct TemplateRequest {
    /// The model; the server's first if left out.
    pub(crate) model: Option<String>,
    /// The conversation.
    #[schemars(length(min = 1))]
    pub(crate) messages: Vec<Message>,
    /// Tools on offer.
    pub(crate) tools: Option<Vec<ToolDefinition>>,
    /// End with the beginning of the answer.
    pub(crate) add_generation_prompt: Option<bool>,
    /// Variables of the template.
    #[schemars(with = "Option<Map<String, Value>>")]
    pub(crate) chat_template_kwargs: Option<Map<String, Value>>,
}

impl TemplateRequest {
    fn messages(&self) -> Result<Vec<Value>, ApiError> {
        if self.messages.is_empty() {
            return Err(ApiError::field("messages", "expected at least one message"));
        }
        self.messages.iter().enumerate().map(|(i, m)| m.for_template(i)).collect()
    }

    /// Whether it can be rendered at all.
    pub(crate) fn checks(&self) -> bool {
        self.messages().is_ok()
    }
}

/// `POST /tokenize`
pub(crate) async fn tokenize(State(app): State<Arc<App>>, request: Request<Body>) -> Result<Response, ApiError> {
    let bytes = app.read(request).await?;
    let asked: TokenizeRequest = body::parse(&bytes)?;
    let Some(text) = asked.content.or(asked.prompt) else {
        return Err(ApiError::field("content", "it is missing; expected a text"));
    };
    let model = app.registry.get(asked.model.as_deref()).await?;
    blocking(move || {
        let tokenizer = &model.text.tokenizer;
        let special = if asked.parse_special == Some(true) { Special::Parse } else { Special::AsText };
        let begins = asked.add_special == Some(true) && tokenizer.add_bos();
        let mut ids: Vec<u32> = tokenizer.bos().filter(|_| begins).into_iter().collect();
        ids.extend(tokenizer.encode(&text, special));
        let mut object =
            json!({ "model": model.id, "tokens": ids, "count": ids.len(), "max_context": model.context() });
        if asked.with_pieces == Some(true) {
            let piece =
                |&id: &u32| String::from_utf8_lossy(&tokenizer.token_bytes(id).unwrap_or_default()).into_owned();
            object["pieces"] = ids.iter().map(piece).collect::<Vec<_>>().into();
        }
        Ok(body::json(&object))
    })
    .await
}

/// `POST /detokenize`
pub(crate) async fn detokenize(State(app): State<Arc<App>>, request: Request<Body>) -> Result<Response, ApiError> {
    let bytes = app.read(request).await?;
    let asked: DetokenizeRequest = body::parse(&bytes)?;
    let model = app.registry.get(asked.model.as_deref()).await?;
    let vocab = model.llm.config().vocab_size;
    if let Some(id) = asked.tokens.iter().find(|&&id| id as usize >= vocab) {
        return Err(ApiError::field("tokens", format!("{id} is no token; the model has 0 to {}", vocab - 1)));
    }
    blocking(move || {
        let content = model.text.tokenizer.decode(&asked.tokens, false);
        Ok(body::json(&json!({ "model": model.id, "content": content })))
    })
    .await
}

/// `POST /apply-template`
pub(crate) async fn apply_template(State(app): State<Arc<App>>, request: Request<Body>) -> Result<Response, ApiError> {
    let bytes = app.read(request).await?;
    let asked: TemplateRequest = body::parse(&bytes)?;
    let messages = Value::Array(asked.messages()?);
    let model = app.registry.get(asked.model.as_deref()).await?;
    blocking(move || {
        let Some(chat) = &model.chat else {
            return Err(ApiError::field("model", format!("{} has no chat template", model.id)));
        };
        let function = |t: &ToolDefinition| {
            let tool = tool_of(&t.function);
            let function = json!({ "name": tool.name, "description": tool.description, "parameters": tool.parameters });
            json!({ "type": "function", "function": function })
        };
        let tools = asked.tools.as_ref().map(|tools| tools.iter().map(function).collect());
        let (ids, prompt) = chat.encode(&Conversation {
            messages,
            tools,
            add_generation_prompt: asked.add_generation_prompt.unwrap_or(true),
            extra: asked.chat_template_kwargs.unwrap_or_default(),
        })?;
        Ok(body::json(&json!({ "model": model.id, "prompt": prompt, "count": ids.len() })))
    })
    .await
}

/// `GET /health`
pub(crate) async fn health(State(app): State<Arc<App>>) -> Response {
    let (is_well, object) = registry::health(&app.registry.losses());
    let code = if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    body::text(code, "application/json", object.to_string())
}

/// `GET /ready`
pub(crate) async fn ready(State(app): State<Arc<App>>) -> Response {
    let (code, status) = match () {
        () if app.is_draining() => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        () if app.registry.is_ready() => (StatusCode::OK, "ready"),
        () => (StatusCode::SERVICE_UNAVAILABLE, "loading"),
    };
    let progress = app.registry.describe(app.registry.default_id()).map(|m| m["progress"].clone()).unwrap_or_default();
    body::text(code, "application/json", json!({ "status": status, "progress": progress }).to_string())
}

/// `GET /metrics`
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let ceilings = app.options.ceilings.as_ref();
    let engines: Vec<EngineFigures> =
        app.registry.all().into_iter().map(|(id, model)| EngineFigures::new(id, model.as_deref(), ceilings)).collect();
    body::text(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", app.metrics.page(&engines))
}

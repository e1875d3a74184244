//! Which path is answered by what.
//!
//! Invariant: every route is behind the gate, and every one that is here is in the OpenAPI document.

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use serde::de::DeserializeOwned;

use crate::openai::Asked;
use crate::{App, anthropic, body, gate, native, ollama, openai, openapi, page};

/// All routes.
pub(crate) fn router(app: &Arc<App>) -> Router {
    let mut router = Router::new()
        .route("/v1/chat/completions", post(openai::chat))
        .route("/v1/completions", post(openai::completions))
        .route("/v1/embeddings", post(openai::embeddings))
        .route("/v1/responses", post(openai::responses))
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{*id}", get(openai::model))
        .route("/v1/messages", post(anthropic::messages))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
        .route("/api/chat", post(ollama::chat))
        .route("/api/generate", post(ollama::generate))
        .route("/api/embed", post(ollama::embed))
        .route("/api/embeddings", post(ollama::embeddings))
        .route("/api/tags", get(ollama::tags))
        .route("/api/ps", get(ollama::ps))
        .route("/api/show", post(ollama::show))
        .route("/api/version", get(ollama::version))
        .route("/tokenize", post(native::tokenize))
        .route("/detokenize", post(native::detokenize))
        .route("/apply-template", post(native::apply_template))
        .route("/health", get(native::health))
        .route("/ready", get(native::ready))
        .route("/metrics", get(native::metrics))
        .route("/openapi.json", get(openapi::serve));
    if app.options.page {
        router = router
            .route("/", get(page::index))
            .route("/app.js", get(page::script))
            .route("/style.css", get(page::style));
    }
    router.layer(from_fn_with_state(app.clone(), gate::gate)).with_state(app.clone())
}

/// Parses a body as the route at `path` does.
pub(crate) fn parses(path: &str, bytes: &[u8]) -> bool {
    fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
        body::parse(bytes).ok()
    }
    match path {
        "/v1/chat/completions" => Asked::<openai::ChatRequest>::parse(bytes).is_ok_and(|r| r.checks()),
        "/v1/completions" => Asked::<openai::CompletionRequest>::parse(bytes).is_ok_and(|r| r.checks()),
        "/v1/embeddings" => parse::<openai::EmbeddingRequest>(bytes).is_some(),
        "/v1/responses" => parse::<openai::ResponsesRequest>(bytes).is_some_and(|r| r.checks()),
        "/v1/messages" => parse::<anthropic::MessagesRequest>(bytes).is_some_and(|r| r.checks()),
        "/api/chat" => parse::<ollama::ChatRequest>(bytes).is_some_and(|r| r.checks()),
        "/api/generate" => parse::<ollama::GenerateRequest>(bytes).is_some_and(|r| r.checks()),
        "/tokenize" => parse::<native::TokenizeRequest>(bytes).is_some(),
        "/apply-template" => parse::<native::TemplateRequest>(bytes).is_some_and(|r| r.checks()),
        _ => false,
    }
}

//! The OpenAPI document, put together from the types that requests are read with.
//!
//! Invariant: request schemas are generated from the types themselves, so they cannot tell another story than the
//! parsers.

use axum::response::Response;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::openai::Asked;
use crate::{anthropic, body, native, ollama, openai};

/// `GET /openapi.json`
pub(crate) async fn serve() -> Response {
    body::json(&document())
}

/// What an operation answers with, besides errors.
enum Answers {
    Json,
    /// JSON, or a stream of this type.
    Or(&'static str),
    Text,
}

struct Operation {
    path: &'static str,
    summary: &'static str,
    tag: &'static str,
    body: Option<Value>,
    answers: Answers,
    /// Served without a key.
    public: bool,
}

fn posts(generator: &mut SchemaGenerator) -> Vec<Operation> {
    fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Option<Value> {
        Some(generator.subschema_for::<T>().to_value())
    }
    const SSE: Answers = Answers::Or("text/event-stream");
    const LINES: Answers = Answers::Or("application/x-ndjson");
    let g = generator;
    [
        ("/v1/chat/completions", "Answer a conversation", "OpenAI", schema::<Asked<openai::ChatRequest>>(g), SSE),
        ("/v1/completions", "Continue a text", "OpenAI", schema::<Asked<openai::CompletionRequest>>(g), SSE),
        ("/v1/embeddings", "Embed texts", "OpenAI", schema::<openai::EmbeddingRequest>(g), Answers::Json),
        ("/v1/responses", "Answer a conversation", "OpenAI", schema::<openai::ResponsesRequest>(g), SSE),
        ("/v1/messages", "Answer a conversation", "Anthropic", schema::<anthropic::MessagesRequest>(g), SSE),
        ("/v1/messages/count_tokens", "Count tokens", "Anthropic", schema::<anthropic::CountRequest>(g), Answers::Json),
        ("/api/chat", "Answer a conversation", "Ollama", schema::<ollama::ChatRequest>(g), LINES),
        ("/api/generate", "Answer a prompt", "Ollama", schema::<ollama::GenerateRequest>(g), LINES),
        ("/api/embed", "Embed texts", "Ollama", schema::<ollama::EmbedRequest>(g), Answers::Json),
        ("/api/embeddings", "Embed a text", "Ollama", schema::<ollama::OldEmbedRequest>(g), Answers::Json),
        ("/api/show", "Describe a model", "Ollama", schema::<ollama::ShowRequest>(g), Answers::Json),
        ("/tokenize", "Text to token ids", "Pelton", schema::<native::TokenizeRequest>(g), Answers::Json),
        ("/detokenize", "Token ids to text", "Pelton", schema::<native::DetokenizeRequest>(g), Answers::Json),
        ("/apply-template", "Render a conversation", "Pelton", schema::<native::TemplateRequest>(g), Answers::Json),
    ]
    .into_iter()
    .map(|(path, summary, tag, body, answers)| Operation { path, summary, tag, body, answers, public: false })
    .collect()
}

fn gets() -> Vec<Operation> {
    [
        ("/v1/models", "List the models", "OpenAI", Answers::Json, false),
        ("/api/tags", "List the models", "Ollama", Answers::Json, false),
        ("/api/ps", "List the models in memory", "Ollama", Answers::Json, false),
        ("/api/version", "Tell the version", "Ollama", Answers::Json, false),
        ("/health", "Tell whether the process answers", "Pelton", Answers::Json, true),
        ("/ready", "Tell whether a question would be answered now", "Pelton", Answers::Json, true),
        ("/metrics", "Figures for Prometheus", "Pelton", Answers::Text, false),
        ("/openapi.json", "This document", "Pelton", Answers::Json, false),
    ]
    .into_iter()
    .map(|(path, summary, tag, answers, public)| Operation { path, summary, tag, body: None, answers, public })
    .collect()
}

/// The document, OpenAPI 3.1.
pub fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| s.definitions_path = "/components/schemas".into());
    let mut generator = settings.into_generator();
    let mut paths = Map::new();
    for operation in posts(&mut generator) {
        paths.insert(
            operation.path.to_string(),
            json!({ "post": describe(&operation, &[400, 401, 403, 404, 408, 413, 429, 500, 503]) }),
        );
    }
    for operation in gets() {
        let codes: &[u16] = if operation.path == "/ready" { &[403, 503] } else { &[401, 403, 500] };
        paths.insert(operation.path.to_string(), json!({ "get": describe(&operation, codes) }));
    }
    let mut one = describe(
        &Operation {
            path: "/v1/models/{id}",
            summary: "Describe a model",
            tag: "OpenAI",
            body: None,
            answers: Answers::Json,
            public: false,
        },
        &[401, 403, 404, 500],
    );
    one["parameters"] =
        json!([{ "name": "id", "in": "path", "required": true, "schema": { "type": "string", "minLength": 1 } }]);
    paths.insert("/v1/models/{id}".to_string(), json!({ "get": one }));
    let schemas = generator.take_definitions(true);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Pelton",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Language models on this machine, in the dialects of OpenAI, Anthropic and Ollama.",
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer" },
                "header": { "type": "apiKey", "in": "header", "name": "x-api-key" },
            },
        },
        "security": [{}, { "bearer": [] }, { "header": [] }],
    })
}

fn describe(operation: &Operation, errors: &[u16]) -> Value {
    let object = json!({ "schema": { "type": "object" } });
    let content = match operation.answers {
        Answers::Json => json!({ "application/json": object }),
        Answers::Or(kind) => {
            let mut content = json!({ "application/json": object });
            // What one event holds is its dialect's affair; tools disagree on how a schema would apply to a stream.
            content[kind] = json!({});
            content
        }
        Answers::Text => json!({ "text/plain": { "schema": { "type": "string" } } }),
    };
    let mut responses = json!({ "200": { "description": "It worked.", "content": content } });
    for code in errors {
        let reason = axum::http::StatusCode::from_u16(*code).ok().and_then(|s| s.canonical_reason()).unwrap_or("Error");
        responses[code.to_string()] =
            json!({ "description": reason, "content": { "application/json": { "schema": { "type": "object" } } } });
    }
    let id: String = operation.path.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let mut described = json!({
        "operationId": id.trim_matches('_'),
        "summary": operation.summary,
        "tags": [operation.tag],
        "responses": responses,
    });
    if let Some(schema) = &operation.body {
        described["requestBody"] = json!({ "required": true, "content": { "application/json": { "schema": schema } } });
    }
    if operation.public {
        described["security"] = json!([]);
    }
    described
}

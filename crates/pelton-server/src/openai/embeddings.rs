//! `POST /v1/embeddings`: decoder models, pooled.
//!
//! Invariant: vectors have unit length and come in the order of the inputs.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pelton::{Pooling, Special};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::engine::{self, Loaded, blocking, time_limit};
use crate::error::ApiError;
use crate::{App, Visit, body};

/// The most inputs of one request.
const MAX_INPUTS: usize = 2048;

/// What to embed.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected a string, an array of strings, an array of token ids, or an array of such arrays"
)]
pub(crate) enum Input {
    /// A text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// Token ids.
    Ids(Vec<u32>),
    /// Several times token ids.
    ManyIds(Vec<Vec<u32>>),
}

/// How a vector is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Encoding {
    /// Numbers.
    #[default]
    Float,
    /// 32-bit floats, little-endian, in base64.
    Base64,
}

/// How a text's vectors become one.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PoolingField {
    /// Their mean.
    #[default]
    Mean,
    /// The last one.
    Last,
}

impl From<PoolingField> for Pooling {
    fn from(field: PoolingField) -> Pooling {
        match field {
            PoolingField::Mean => Pooling::Mean,
            PoolingField::Last => Pooling::Last,
        }
    }
}

/// Texts to embed.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct EmbeddingRequest {
    /// The model; the server's first if left out.
    pub(crate) model: Option<String>,
    /// What to embed.
    pub(crate) input: Input,
    /// How vectors are written.
    pub(crate) encoding_format: Option<Encoding>,
    /// Only the model's own width, which is the same as leaving it out.
    #[schemars(with = "()")]
    pub(crate) dimensions: Option<u64>,
    /// Extension: how a text's vectors become one.
    pub(crate) pooling: Option<PoolingField>,
}

/// Embeds inputs: the vectors, and how many tokens they had.
pub(crate) async fn embed(
    app: &Arc<App>,
    visit: &Visit,
    model: &Arc<Loaded>,
    input: Input,
    pooling: Pooling,
) -> Result<(Vec<Vec<f32>>, usize), ApiError> {
    let encoder = model.clone();
    let prompts = blocking(move || ids(&encoder, input)).await?;
    let limit = time_limit(None, app.options.deadline)?;
    engine::embed(model, prompts, pooling, limit, visit.caller, &app.metrics).await
}

fn ids(model: &Loaded, input: Input) -> Result<Vec<Vec<u32>>, ApiError> {
    let tokenizer = &model.text.tokenizer;
    let encode = |text: &String| {
        let mut ids: Vec<u32> = tokenizer.bos().filter(|_| tokenizer.add_bos()).into_iter().collect();
        ids.extend(tokenizer.encode(text, Special::AsText));
        ids.extend(tokenizer.eos().filter(|_| tokenizer.add_eos()));
        ids
    };
    let prompts = match input {
        Input::Text(text) => vec![encode(&text)],
        Input::Texts(texts) => texts.iter().take(MAX_INPUTS + 1).map(encode).collect(),
        Input::Ids(ids) => vec![ids],
        Input::ManyIds(many) => many,
    };
    if prompts.is_empty() || prompts.len() > MAX_INPUTS {
        return Err(ApiError::field("input", format!("expected 1 to {MAX_INPUTS} texts")));
    }
    let most = model.context() - 1;
    for (i, ids) in prompts.iter().enumerate() {
        if ids.is_empty() || ids.len() > most {
            let message = format!("text {i} has {} tokens; expected 1 to {most}", ids.len());
            return Err(ApiError::field("input", message));
        }
    }
    Ok(prompts)
}

/// `POST /v1/embeddings`
pub(crate) async fn embeddings(
    State(app): State<Arc<App>>,
    Extension(visit): Extension<Visit>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let bytes = app.read(request).await?;
    let asked: EmbeddingRequest = body::parse(&bytes)?;
    let model = app.registry.get(asked.model.as_deref()).await?;
    let width = model.llm.config().hidden as u64;
    if asked.dimensions.is_some_and(|d| d != width) {
        return Err(ApiError::field("dimensions", format!("the model's vectors have {width}; leave it out")));
    }
    let pooling = asked.pooling.unwrap_or_default().into();
    let (vectors, tokens) = embed(&app, &visit, &model, asked.input, pooling).await?;
    let encoding = asked.encoding_format.unwrap_or_default();
    let entry = |(i, values): (usize, Vec<f32>)| json!({ "object": "embedding", "index": i, "embedding": written(&values, encoding) });
    let data: Vec<Value> = vectors.into_iter().enumerate().map(entry).collect();
    let usage = json!({ "prompt_tokens": tokens, "total_tokens": tokens });
    Ok(body::json(&json!({ "object": "list", "model": model.id, "data": data, "usage": usage })))
}

fn written(values: &[f32], encoding: Encoding) -> Value {
    match encoding {
        Encoding::Float => json!(values),
        Encoding::Base64 => {
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            Value::from(STANDARD.encode(bytes))
        }
    }
}

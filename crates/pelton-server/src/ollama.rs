//! Ollama's dialect: NDJSON streams, options in an object of their own, models by name.
//!
//! Invariants: a stream's last line has `done: true` and the figures; durations are nanoseconds. Source: Ollama's API
//! documentation (docs/api.md of its repository).

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::Response;
use pelton::{GrammarSpec, Part, Pooling, SamplingOverrides, Special, Timing};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::answer::{Answer, End, Ended, Format, Reading, Totals, Update, collect, stream};
use crate::conversation::{Ask, Tool, ToolChoice};
use crate::engine::{Loaded, blocking};
use crate::error::{ApiError, Dialect};
use crate::knobs::{Knobs, OneOrMany};
use crate::openai::{self, Input, ToolDefinition, tool_of};
use crate::registry::unix_now;
use crate::{App, Visit, body};

/// One message.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct OllamaMessage {
    /// Who speaks: `system`, `user`, `assistant` or `tool`.
    pub(crate) role: String,
    /// What they say.
    #[serde(default)]
    pub(crate) content: String,
    /// What the model thought.
    pub(crate) thinking: Option<String>,
    /// Images: refused.
    pub(crate) images: Option<Vec<Value>>,
    /// What the model called.
    pub(crate) tool_calls: Option<Vec<OllamaCall>>,
    /// Whose result this is.
    pub(crate) tool_name: Option<String>,
}

/// A call that the model made.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct OllamaCall {
    /// What was called.
    pub(crate) function: OllamaFunction,
}

/// A call's function.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct OllamaFunction {
    /// Its name.
    pub(crate) name: String,
    /// Its arguments.
    #[serde(default)]
    pub(crate) arguments: Map<String, Value>,
}

/// Sampling and limits; other fields of Ollama are accepted and have no effect here.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub(crate) struct OllamaOptions {
    /// Longest answer in tokens; negative: up to the end of the context.
    pub(crate) num_predict: Option<i64>,
    /// Randomness.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub(crate) temperature: Option<f32>,
    /// Among so many likeliest tokens.
    pub(crate) top_k: Option<u32>,
    /// Among the likeliest that together have this probability.
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0))]
    pub(crate) top_p: Option<f32>,
    /// At least this share of the likeliest.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub(crate) min_p: Option<f32>,
    /// Divides the logits of tokens that occurred.
    #[schemars(range(max = 100.0), extend("exclusiveMinimum" = 0))]
    pub(crate) repeat_penalty: Option<f32>,
    /// Subtracted from tokens that were generated.
    #[schemars(range(min = -100.0, max = 100.0))]
    pub(crate) presence_penalty: Option<f32>,
    /// Subtracted each time a token was generated.
    #[schemars(range(min = -100.0, max = 100.0))]
    pub(crate) frequency_penalty: Option<f32>,
    /// The same seed gives the same answer.
    pub(crate) seed: Option<i64>,
    /// Texts that end the answer.
    pub(crate) stop: Option<OneOrMany>,
}

/// `think`: a switch, or a word for how much.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected true, false, \"low\", \"medium\" or \"high\"")]
pub(crate) enum Think {
    /// On or off.
    Switch(bool),
    /// How much.
    Level(String),
}

/// A conversation that asks for an answer.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct ChatRequest {
    /// The model.
    pub(crate) model: String,
    /// The conversation.
    #[serde(default)]
    pub(crate) messages: Vec<OllamaMessage>,
    /// Send the answer as it comes; true if left out.
    pub(crate) stream: Option<bool>,
    /// `json`, or a JSON schema.
    pub(crate) format: Option<Value>,
    /// Sampling and limits.
    pub(crate) options: Option<OllamaOptions>,
    /// Tools on offer.
    pub(crate) tools: Option<Vec<ToolDefinition>>,
    /// Whether the model may think.
    pub(crate) think: Option<Think>,
}

/// Text to continue, or a single question.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct GenerateRequest {
    /// The model.
    pub(crate) model: String,
    /// The question.
    #[serde(default)]
    pub(crate) prompt: String,
    /// System message.
    pub(crate) system: Option<String>,
    /// Continue the prompt as it is, without the chat template.
    pub(crate) raw: Option<bool>,
    /// Send the answer as it comes; true if left out.
    pub(crate) stream: Option<bool>,
    /// `json`, or a JSON schema.
    pub(crate) format: Option<Value>,
    /// Sampling and limits.
    pub(crate) options: Option<OllamaOptions>,
    /// Whether the model may think.
    pub(crate) think: Option<Think>,
    /// Text after the answer: refused.
    pub(crate) suffix: Option<String>,
    /// Images: refused.
    pub(crate) images: Option<Vec<Value>>,
}

/// Texts to embed.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct EmbedRequest {
    /// The model.
    pub(crate) model: String,
    /// The texts.
    pub(crate) input: OneOrMany,
}

/// A text to embed, as older clients ask.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct OldEmbedRequest {
    /// The model.
    pub(crate) model: String,
    /// The text.
    pub(crate) prompt: String,
}

/// A model to describe.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(extend("anyOf" = [
    { "required": ["model"], "properties": { "model": { "type": "string" } } },
    { "required": ["name"], "properties": { "name": { "type": "string" } } },
]))]
pub(crate) struct ShowRequest {
    /// The model.
    pub(crate) model: Option<String>,
    /// The same, as older clients call it.
    pub(crate) name: Option<String>,
}

fn knobs(options: Option<&OllamaOptions>) -> Knobs {
    let o = options.cloned().unwrap_or_default();
    Knobs {
        sampling: SamplingOverrides {
            temperature: o.temperature,
            top_k: o.top_k.map(|k| k as usize),
            top_p: o.top_p,
            min_p: o.min_p,
            repetition_penalty: o.repeat_penalty,
            presence_penalty: o.presence_penalty,
            frequency_penalty: o.frequency_penalty,
            logit_bias: Vec::new(),
            seed: o.seed.map(|s| s as u64),
        },
        max_tokens: o.num_predict.and_then(|n| u64::try_from(n).ok()),
        max_tokens_name: "options.num_predict",
        stop: o.stop.map_or_else(Vec::new, OneOrMany::into_vec),
        ..Knobs::default()
    }
}

fn form(format: Option<&Value>) -> Result<Option<GrammarSpec>, ApiError> {
    match format {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(word)) if word.is_empty() => Ok(None),
        Some(Value::String(word)) if word == "json" => Ok(Some(GrammarSpec::JsonObject)),
        Some(schema @ Value::Object(_)) => Ok(Some(GrammarSpec::JsonSchema(schema.clone()))),
        Some(_) => Err(ApiError::field("format", "expected \"json\" or a JSON schema")),
    }
}

fn thinking(think: Option<&Think>) -> Map<String, Value> {
    let mut extra = Map::new();
    match think {
        Some(Think::Switch(on)) => drop(extra.insert("enable_thinking".into(), Value::Bool(*on))),
        Some(Think::Level(level)) => drop(extra.insert("reasoning_effort".into(), json!(level))),
        None => {}
    }
    extra
}

impl OllamaMessage {
    fn for_template(&self, index: usize) -> Result<Value, ApiError> {
        let at = format!("messages[{index}]");
        if !["system", "user", "assistant", "tool"].contains(&self.role.as_str()) {
            return Err(ApiError::field(format!("{at}.role"), "expected system, user, assistant or tool"));
        }
        if self.images.as_ref().is_some_and(|images| !images.is_empty()) {
            return Err(ApiError::field(format!("{at}.images"), "images are not supported; this server reads text"));
        }
        let mut message = json!({ "role": self.role, "content": self.content });
        if let Some(thinking) = &self.thinking {
            message["reasoning_content"] = json!(thinking);
        }
        if let Some(name) = &self.tool_name {
            message["name"] = json!(name);
        }
        let calls = self.tool_calls.as_deref().unwrap_or_default();
        if !calls.is_empty() {
            let call = |c: &OllamaCall| json!({ "id": "", "type": "function", "function": { "name": c.function.name, "arguments": c.function.arguments } });
            message["tool_calls"] = calls.iter().map(call).collect();
        }
        Ok(message)
    }
}

impl ChatRequest {
    fn ask(&self) -> Result<Ask, ApiError> {
        let messages = self.messages.iter().enumerate().map(|(i, m)| m.for_template(i)).collect::<Result<_, _>>()?;
        let tools: Vec<Tool> = self.tools.iter().flatten().map(|t| tool_of(&t.function)).collect();
        let (choice, parallel, prefill) = (ToolChoice::Auto, true, None);
        let (form, extra) = (form(self.format.as_ref())?, thinking(self.think.as_ref()));
        Ok(Ask { messages, tools, choice, parallel, form, extra, prefill })
    }

    /// Whether it can be asked at all.
    pub(crate) fn checks(&self) -> bool {
        self.ask().is_ok()
    }
}

impl GenerateRequest {
    fn ask(&self) -> Result<Ask, ApiError> {
        if self.suffix.as_ref().is_some_and(|s| !s.is_empty()) {
            return Err(ApiError::field("suffix", "text after the answer is not supported"));
        }
        if self.images.as_ref().is_some_and(|images| !images.is_empty()) {
            return Err(ApiError::field("images", "images are not supported; this server reads text"));
        }
        let system = self.system.iter().map(|s| json!({ "role": "system", "content": s }));
        let messages = system.chain([json!({ "role": "user", "content": self.prompt })]).collect();
        let (form, extra) = (form(self.format.as_ref())?, thinking(self.think.as_ref()));
        Ok(Ask { messages, form, extra, ..Ask::default() })
    }

    /// Whether it can be asked at all.
    pub(crate) fn checks(&self) -> bool {
        self.ask().is_ok()
    }
}

/// `POST /api/chat`
pub(crate) async fn chat(
    State(app): State<Arc<App>>,
    Extension(visit): Extension<Visit>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let bytes = app.read(request).await?;
    let asked: ChatRequest = body::parse(&bytes)?;
    if asked.messages.is_empty() {
        // Ollama's way to load a model.
        app.registry.get(Some(&asked.model)).await?;
        let message = json!({ "role": "assistant", "content": "" });
        return Ok(body::json(
            &json!({ "model": asked.model, "created_at": now(), "message": message, "done": true, "done_reason": "load" }),
        ));
    }
    let answer = app.ask(&visit, Some(&asked.model), asked.ask()?, &knobs(asked.options.as_ref()), false).await?;
    let name = name_of(&app, asked.model, &answer);
    respond(answer, Writer { name, is_chat: true, calls: Vec::new() }, asked.stream).await
}

/// `POST /api/generate`
pub(crate) async fn generate(
    State(app): State<Arc<App>>,
    Extension(visit): Extension<Visit>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let bytes = app.read(request).await?;
    let asked: GenerateRequest = body::parse(&bytes)?;
    let model = app.registry.get(Some(&asked.model)).await?;
    if asked.prompt.is_empty() {
        return Ok(body::json(
            &json!({ "model": asked.model, "created_at": now(), "response": "", "done": true, "done_reason": "load" }),
        ));
    }
    let ask = asked.ask()?;
    let mut knobs = knobs(asked.options.as_ref());
    let answer = if asked.raw == Some(true) || model.chat.is_none() {
        knobs.continues_text = true;
        raw(&app, &visit, &model, asked.prompt, ask.form, &knobs).await?
    } else {
        app.ask(&visit, Some(&asked.model), ask, &knobs, false).await?
    };
    let name = name_of(&app, asked.model, &answer);
    respond(answer, Writer { name, is_chat: false, calls: Vec::new() }, asked.stream).await
}

/// The name that was asked for, unless two models are behind it.
fn name_of(app: &App, asked: String, answer: &Answer) -> String {
    if app.registry.route(Some(&asked)).is_some() { answer.model.id.clone() } else { asked }
}

/// Continues a prompt as it is.
async fn raw(
    app: &Arc<App>,
    visit: &Visit,
    model: &Arc<Loaded>,
    prompt: String,
    form: Option<GrammarSpec>,
    knobs: &Knobs,
) -> Result<Answer, ApiError> {
    let encoder = model.clone();
    let ids = blocking(move || {
        let tokenizer = &encoder.text.tokenizer;
        let mut ids: Vec<u32> = tokenizer.bos().filter(|_| tokenizer.add_bos()).into_iter().collect();
        ids.extend(tokenizer.encode(&prompt, Special::AsText));
        Ok(ids)
    });
    let ids = ids.await?;
    let grammar = match form {
        Some(spec) => Some(model.grammar(spec).await?),
        None => None,
    };
    let request = knobs.request(model, ids, grammar, app.options.deadline, visit.caller)?;
    Answer::start(app, visit, model.clone(), vec![request], Reading::plain(false))
}

async fn respond(answer: Answer, writer: Writer, streaming: Option<bool>) -> Result<Response, ApiError> {
    if streaming != Some(false) {
        return Ok(stream(answer, writer));
    }
    let (mut wholes, _) = collect(answer).await?;
    let whole = wholes.pop().ok_or_else(|| ApiError::internal("there is no answer"))?;
    let calls = whole.calls.iter().map(|c| json!({ "function": { "name": c.name, "arguments": c.value() } })).collect();
    let mut line = writer.line(&whole.content, &whole.reasoning, calls);
    if let Some(ended) = &whole.ended {
        writer.figures(&mut line, ended);
    }
    Ok(body::json(&line))
}

/// Writes lines.
struct Writer {
    name: String,
    is_chat: bool,
    /// Calls that are not whole yet: Ollama sends them whole.
    calls: Vec<(String, String)>,
}

impl Writer {
    fn line(&self, content: &str, reasoning: &str, calls: Vec<Value>) -> Value {
        let mut line = json!({ "model": self.name, "created_at": now() });
        if !self.is_chat {
            line["response"] = json!(content);
            if !reasoning.is_empty() {
                line["thinking"] = json!(reasoning);
            }
        } else {
            let mut message = json!({ "role": "assistant", "content": content });
            if !reasoning.is_empty() {
                message["thinking"] = json!(reasoning);
            }
            if !calls.is_empty() {
                message["tool_calls"] = Value::Array(calls);
            }
            line["message"] = message;
        }
        line["done"] = Value::Bool(false);
        line
    }

    fn figures(&self, line: &mut Value, ended: &Ended) {
        let t: &Timing = &ended.timing;
        let ns = |d: std::time::Duration| json!(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX));
        line["done"] = Value::Bool(true);
        line["done_reason"] = json!(if ended.end == End::Length { "length" } else { "stop" });
        line["total_duration"] = ns(t.total);
        line["load_duration"] = ns(t.queue);
        line["prompt_eval_count"] = json!(t.prompt_tokens);
        line["prompt_eval_duration"] = ns(t.prefill);
        line["eval_count"] = json!(t.tokens);
        line["eval_duration"] = ns(t.total.saturating_sub(t.first_token));
    }

    fn take_calls(&mut self) -> Vec<Value> {
        let value = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| Value::Object(Map::new()));
        let call = |(name, arguments): (String, String)| json!({ "function": { "name": name, "arguments": value(&arguments) } });
        std::mem::take(&mut self.calls).into_iter().map(call).collect()
    }
}

fn push_line(out: &mut Vec<u8>, line: &Value) {
    serde_json::to_writer(&mut *out, line).expect("a JSON value is written to memory");
    out.push(b'\n');
}

impl Format for Writer {
    const KIND: &'static str = "application/x-ndjson";

    fn begin(&mut self, _: &mut Vec<u8>) {}

    fn update(&mut self, update: Update, out: &mut Vec<u8>) {
        match update {
            Update::Delta { parts, .. } => {
                for part in parts {
                    match part {
                        Part::Content(text) => push_line(out, &self.line(&text, "", Vec::new())),
                        Part::Reasoning(text) => push_line(out, &self.line("", &text, Vec::new())),
                        Part::Call { name, .. } => self.calls.push((name, String::new())),
                        Part::Arguments { json, .. } => {
                            if let Some((_, arguments)) = self.calls.last_mut() {
                                arguments.push_str(&json);
                            }
                        }
                    }
                }
            }
            Update::End { ended, .. } => {
                let calls = self.take_calls();
                if !calls.is_empty() {
                    push_line(out, &self.line("", "", calls));
                }
                let mut line = self.line("", "", Vec::new());
                self.figures(&mut line, &ended);
                push_line(out, &line);
            }
        }
    }

    fn end(&mut self, _: &Totals, _: &mut Vec<u8>) {}

    fn error(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        push_line(out, &error.body(Dialect::Ollama));
    }

    fn sign_of_life(&mut self, _: &mut Vec<u8>) {}
}

/// `POST /api/embed`
pub(crate) async fn embed(
    State(app): State<Arc<App>>,
    Extension(visit): Extension<Visit>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let bytes = app.read(request).await?;
    let asked: EmbedRequest = body::parse(&bytes)?;
    let model = app.registry.get(Some(&asked.model)).await?;
    let input = Input::Texts(asked.input.into_vec());
    let begun = std::time::Instant::now();
    let (vectors, tokens) = openai::embed(&app, &visit, &model, input, Pooling::Mean).await?;
    let ns = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
    Ok(body::json(&json!({
        "model": asked.model, "embeddings": vectors, "total_duration": ns, "load_duration": 0, "prompt_eval_count": tokens,
    })))
}

/// `POST /api/embeddings`
pub(crate) async fn embeddings(
    State(app): State<Arc<App>>,
    Extension(visit): Extension<Visit>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let bytes = app.read(request).await?;
    let asked: OldEmbedRequest = body::parse(&bytes)?;
    let model = app.registry.get(Some(&asked.model)).await?;
    let (vectors, _) = openai::embed(&app, &visit, &model, Input::Text(asked.prompt), Pooling::Mean).await?;
    Ok(body::json(&json!({ "embedding": vectors.first() })))
}

/// `GET /api/tags`
pub(crate) async fn tags(State(app): State<Arc<App>>) -> Response {
    let entry = |m: &Value| {
        let id = &m["id"];
        let details = json!({ "parent_model": "", "format": "gguf", "family": "", "families": [], "parameter_size": "", "quantization_level": "" });
        json!({ "name": id, "model": id, "modified_at": now(), "size": m["bytes"].as_u64().unwrap_or(0), "digest": "", "details": details })
    };
    let models: Vec<Value> = app.registry.list().iter().map(entry).collect();
    body::json(&json!({ "models": models }))
}

/// `GET /api/ps`
pub(crate) async fn ps(State(app): State<Arc<App>>) -> Response {
    let entry = |m: &Arc<Loaded>| json!({ "name": m.id, "model": m.id, "size": m.bytes(), "size_vram": 0, "digest": "", "details": details(m), "expires_at": "9999-12-31T23:59:59Z" });
    let models: Vec<Value> = app.registry.all_loaded().iter().map(entry).collect();
    body::json(&json!({ "models": models }))
}

fn details(model: &Loaded) -> Value {
    let i = &model.inspection;
    let size = format!("{:.1}M", i.parameters as f64 / 1e6);
    json!({
        "parent_model": "", "format": i.format, "family": i.architecture, "families": [i.architecture],
        "parameter_size": size, "quantization_level": format!("{:.1} bits", i.bits_per_weight),
    })
}

/// `POST /api/show`
pub(crate) async fn show(State(app): State<Arc<App>>, request: Request<Body>) -> Result<Response, ApiError> {
    let bytes = app.read(request).await?;
    let asked: ShowRequest = body::parse(&bytes)?;
    let Some(name) = asked.model.or(asked.name) else {
        return Err(ApiError::field("model", "it is missing; expected a model's name"));
    };
    let model = app.registry.get(Some(&name)).await?;
    let i = &model.inspection;
    let family = i.architecture.as_str();
    let mut capabilities = vec!["completion", "embedding"];
    if model.chat.is_some() {
        capabilities.push("tools");
    }
    if model.thinks {
        capabilities.push("thinking");
    }
    let mut info = json!({ "general.architecture": family, "general.parameter_count": i.parameters });
    for (key, value) in [
        ("context_length", i.max_context),
        ("block_count", i.n_layers),
        ("embedding_length", i.hidden),
        ("feed_forward_length", i.ffn),
        ("attention.head_count", i.n_heads),
        ("attention.head_count_kv", i.n_kv_heads),
    ] {
        info[format!("{family}.{key}")] = json!(value);
    }
    Ok(body::json(&json!({
        "modelfile": "", "parameters": "", "license": "", "template": i.chat_template, "modified_at": now(),
        "details": details(&model), "model_info": info, "capabilities": capabilities,
    })))
}

/// `GET /api/version`
pub(crate) async fn version() -> Response {
    body::json(&json!({ "version": env!("CARGO_PKG_VERSION") }))
}

/// The time, as RFC 3339 has it, in UTC.
fn now() -> String {
    rfc3339(unix_now())
}

/// Seconds since 1970 as a date (Howard Hinnant's `civil_from_days`).
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(rfc3339(1_795_000_000), "2026-11-18T11:06:40Z");
    }
}

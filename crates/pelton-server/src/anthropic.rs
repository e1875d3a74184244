//! Anthropic's dialect: `POST /v1/messages` and `/v1/messages/count_tokens`.
//!
//! Invariants: content blocks are numbered from 0 and each ends before the next begins; `input_tokens` leaves cached
//! ones out, as Anthropic counts. Source: Anthropic's API reference (Messages, streaming, tool use).

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::Response;
use pelton::{Part, SamplingOverrides};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::answer::{End, Format, Totals, Update, collect, event, stream};
use crate::conversation::{Ask, Tool, ToolChoice};
use crate::engine::Loaded;
use crate::error::{ApiError, Dialect};
use crate::knobs::Knobs;
use crate::{App, Visit, body};

/// A text, or blocks.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or an array of content blocks")]
pub(crate) enum Blocks {
    /// A text.
    Text(String),
    /// Blocks.
    Blocks(Vec<Block>),
}

/// A text, or blocks of text.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or an array of text blocks")]
pub(crate) enum SystemField {
    /// A text.
    Text(String),
    /// Blocks.
    Blocks(Vec<TextBlock>),
}

/// A block of text.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct TextBlock {
    /// `text`.
    #[serde(rename = "type")]
    pub(crate) _kind: TextKind,
    /// The text.
    pub(crate) text: String,
}

/// There is one kind.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TextKind {
    /// Text.
    Text,
}

impl SystemField {
    fn text(&self) -> String {
        match self {
            SystemField::Text(text) => text.clone(),
            SystemField::Blocks(blocks) => blocks.iter().map(|b| b.text.as_str()).collect::<Vec<_>>().join("\n"),
        }
    }
}

/// A content block.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(extend("anyOf" = [
    { "required": ["text"], "properties": { "type": { "const": "text" }, "text": { "type": "string" } } },
    { "required": ["id", "name"], "properties": { "type": { "const": "tool_use" }, "name": { "type": "string" } } },
    {
        "required": ["tool_use_id"],
        "properties": { "type": { "const": "tool_result" }, "tool_use_id": { "type": "string" } },
    },
    { "properties": { "type": { "enum": ["thinking", "redacted_thinking"] } } },
]))]
pub(crate) struct Block {
    /// `text`, `tool_use`, `tool_result`, `thinking`; images and documents are refused.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// Of `text`.
    pub(crate) text: Option<String>,
    /// Of `thinking`.
    pub(crate) thinking: Option<String>,
    /// Of `tool_use`.
    pub(crate) id: Option<String>,
    /// Of `tool_use`.
    pub(crate) name: Option<String>,
    /// Of `tool_use`.
    #[schemars(with = "Option<Map<String, Value>>")]
    pub(crate) input: Option<Value>,
    /// Of `tool_result`.
    pub(crate) tool_use_id: Option<String>,
    /// Of `tool_result`.
    pub(crate) content: Option<Box<Blocks>>,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Speaker {
    /// The person.
    User,
    /// The model.
    Assistant,
}

/// One turn.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct Turn {
    /// Who speaks.
    pub(crate) role: Speaker,
    /// What they say.
    pub(crate) content: Blocks,
}

/// A tool on offer.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct AnthropicTool {
    /// Its name.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9_.:/\-]+$"))]
    pub(crate) name: String,
    /// What it does.
    pub(crate) description: Option<String>,
    /// JSON schema of its input.
    #[schemars(with = "Map<String, Value>")]
    pub(crate) input_schema: Value,
}

/// Which tools may be called.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct AnthropicChoice {
    /// How free the model is.
    #[serde(rename = "type")]
    pub(crate) kind: ChoiceKind,
    /// Of `tool`: which.
    pub(crate) name: Option<String>,
    /// At most one call.
    pub(crate) disable_parallel_tool_use: Option<bool>,
}

/// How free the model is.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ChoiceKind {
    /// As it likes.
    Auto,
    /// At least one call.
    Any,
    /// This tool.
    Tool,
    /// No call.
    None,
}

/// Whether the model thinks.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct ThinkingField {
    /// `enabled`, `disabled` or `adaptive`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
}

/// A conversation that asks for an answer.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct MessagesRequest {
    /// The model.
    pub(crate) model: String,
    /// Longest answer in tokens.
    #[schemars(range(min = 1))]
    pub(crate) max_tokens: u64,
    /// The conversation; where the assistant speaks last, its words begin the answer.
    #[schemars(length(min = 1))]
    pub(crate) messages: Vec<Turn>,
    /// System message.
    pub(crate) system: Option<SystemField>,
    /// Randomness.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub(crate) temperature: Option<f32>,
    /// Among the likeliest that together have this probability.
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0))]
    pub(crate) top_p: Option<f32>,
    /// Among so many likeliest.
    pub(crate) top_k: Option<u32>,
    /// Texts that end the answer.
    pub(crate) stop_sequences: Option<Vec<String>>,
    /// Send the answer as it comes.
    pub(crate) stream: Option<bool>,
    /// Tools on offer.
    #[schemars(length(max = 256))]
    pub(crate) tools: Option<Vec<AnthropicTool>>,
    /// Which of them may be called.
    pub(crate) tool_choice: Option<AnthropicChoice>,
    /// Whether the model thinks.
    pub(crate) thinking: Option<ThinkingField>,
}

/// A conversation whose tokens are to be counted.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct CountRequest {
    /// The model.
    pub(crate) model: String,
    /// The conversation.
    #[schemars(length(min = 1))]
    pub(crate) messages: Vec<Turn>,
    /// System message.
    pub(crate) system: Option<SystemField>,
    /// Tools on offer.
    #[schemars(length(max = 256))]
    pub(crate) tools: Option<Vec<AnthropicTool>>,
}

impl Blocks {
    /// The text of all blocks; other kinds are refused.
    fn text(&self, at: &str) -> Result<String, ApiError> {
        match self {
            Blocks::Text(text) => Ok(text.clone()),
            Blocks::Blocks(blocks) => {
                let texts = blocks.iter().enumerate().map(|(i, b)| b.text(&format!("{at}[{i}]")));
                Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
            }
        }
    }
}

impl Block {
    fn text(&self, at: &str) -> Result<String, ApiError> {
        match (self.kind.as_str(), &self.text) {
            ("text", Some(text)) => Ok(text.clone()),
            ("text", None) => Err(ApiError::field(format!("{at}.text"), "it is missing")),
            (kind, _) => {
                let kind: String = kind.chars().take(40).collect();
                Err(ApiError::field(format!("{at}.type"), format!("`{kind}` is not supported here; expected text")))
            }
        }
    }
}

impl Turn {
    /// Appends what this turn is to a chat template: a turn with results becomes several messages.
    fn for_template(&self, index: usize, messages: &mut Vec<Value>) -> Result<(), ApiError> {
        let at = format!("messages[{index}].content");
        let role = if self.role == Speaker::User { "user" } else { "assistant" };
        let blocks = match &self.content {
            Blocks::Text(text) => {
                messages.push(json!({ "role": role, "content": text }));
                return Ok(());
            }
            Blocks::Blocks(blocks) => blocks,
        };
        let (mut texts, mut calls, mut thoughts) = (Vec::new(), Vec::new(), Vec::new());
        let missing = |i: usize, field: &str| ApiError::field(format!("{at}[{i}].{field}"), "it is missing");
        for (i, block) in blocks.iter().enumerate() {
            match block.kind.as_str() {
                "tool_use" if self.role == Speaker::Assistant => {
                    let name = block.name.as_ref().ok_or_else(|| missing(i, "name"))?;
                    let input = block.input.clone().unwrap_or_else(|| json!({}));
                    let function = json!({ "name": name, "arguments": input });
                    calls.push(json!({ "id": block.id, "type": "function", "function": function }));
                }
                "tool_result" if self.role == Speaker::User => {
                    let id = block.tool_use_id.as_ref().ok_or_else(|| missing(i, "tool_use_id"))?;
                    let content =
                        block.content.as_ref().map_or(Ok(String::new()), |c| c.text(&format!("{at}[{i}].content")))?;
                    messages.push(json!({ "role": "tool", "tool_call_id": id, "content": content }));
                }
                "thinking" => thoughts.extend(block.thinking.clone()),
                "redacted_thinking" => {}
                _ => texts.push(block.text(&format!("{at}[{i}]"))?),
            }
        }
        if texts.is_empty() && calls.is_empty() && messages.last().is_some_and(|m| m["role"] == "tool") {
            return Ok(());
        }
        let mut message = json!({ "role": role, "content": texts.join("\n") });
        if !thoughts.is_empty() {
            message["reasoning_content"] = json!(thoughts.join("\n"));
        }
        if !calls.is_empty() {
            message["tool_calls"] = Value::Array(calls);
        }
        messages.push(message);
        Ok(())
    }
}

fn conversation(
    system: Option<&SystemField>,
    turns: &[Turn],
    tools: Option<&[AnthropicTool]>,
) -> Result<Ask, ApiError> {
    if turns.is_empty() {
        return Err(ApiError::field("messages", "expected at least one message"));
    }
    let mut messages = Vec::new();
    if let Some(system) = system {
        messages.push(json!({ "role": "system", "content": system.text() }));
    }
    for (i, turn) in turns.iter().enumerate() {
        turn.for_template(i, &mut messages)?;
    }
    // Where the assistant spoke last, the answer goes on from there.
    let speaks_last = |m: &Value| m["role"] == "assistant" && m["tool_calls"].is_null();
    let last = messages.pop_if(|m| speaks_last(m));
    let prefill = last.and_then(|m| m["content"].as_str().map(String::from)).filter(|text| !text.is_empty());
    let tool = |t: &AnthropicTool| Tool {
        name: t.name.clone(),
        description: t.description.clone(),
        parameters: t.input_schema.clone(),
    };
    let tools = tools.unwrap_or_default().iter().map(tool).collect();
    Ok(Ask { messages, tools, prefill, ..Ask::default() })
}

impl MessagesRequest {
    fn ask(&self) -> Result<Ask, ApiError> {
        let mut ask = conversation(self.system.as_ref(), &self.messages, self.tools.as_deref())?;
        if let Some(choice) = &self.tool_choice {
            ask.parallel = choice.disable_parallel_tool_use != Some(true);
            ask.choice = match (choice.kind, &choice.name) {
                (ChoiceKind::Auto, _) => ToolChoice::Auto,
                (ChoiceKind::Any, _) => ToolChoice::Required,
                (ChoiceKind::None, _) => ToolChoice::None,
                (ChoiceKind::Tool, Some(name)) => ToolChoice::Named(name.clone()),
                (ChoiceKind::Tool, None) => return Err(ApiError::field("tool_choice.name", "it is missing")),
            };
        }
        if let Some(thinking) = &self.thinking {
            ask.extra.insert("enable_thinking".into(), Value::Bool(thinking.kind != "disabled"));
        }
        Ok(ask)
    }

    fn knobs(&self) -> Knobs {
        Knobs {
            sampling: SamplingOverrides {
                temperature: self.temperature,
                top_p: self.top_p,
                top_k: self.top_k.map(|k| k as usize),
                ..SamplingOverrides::default()
            },
            max_tokens: Some(self.max_tokens),
            stop: self.stop_sequences.clone().unwrap_or_default(),
            ..Knobs::default()
        }
    }

    /// Whether it can be asked at all.
    pub(crate) fn checks(&self) -> bool {
        self.ask().is_ok()
    }
}

/// `POST /v1/messages`
pub(crate) async fn messages(
    State(app): State<Arc<App>>,
    Extension(visit): Extension<Visit>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let bytes = app.read(request).await?;
    let asked: MessagesRequest = body::parse(&bytes)?;
    let (ask, knobs) = (asked.ask()?, asked.knobs());
    let answer = app.ask(&visit, Some(&asked.model), ask, &knobs, false).await?;
    let model = answer.model.clone();
    let writer = Writer {
        id: app.serial.name("msg_"),
        name: model.id.clone(),
        prompt_tokens: answer.prompt_tokens,
        stops: knobs.stop,
        model,
        app: app.clone(),
        open: None,
        next: 0,
        stop: (Value::Null, Value::Null),
    };
    if asked.stream == Some(true) {
        return Ok(stream(answer, writer));
    }
    let (mut wholes, totals) = collect(answer).await?;
    let whole = wholes.pop().ok_or_else(|| ApiError::internal("there is no answer"))?;
    let mut content = Vec::new();
    if !whole.reasoning.is_empty() {
        content.push(json!({ "type": "thinking", "thinking": whole.reasoning, "signature": "" }));
    }
    if !whole.content.is_empty() || whole.calls.is_empty() {
        content.push(json!({ "type": "text", "text": whole.content }));
    }
    for call in &whole.calls {
        content.push(json!({ "type": "tool_use", "id": writer.call_id(), "name": call.name, "input": call.value() }));
    }
    let (reason, sequence) = whole.ended.as_ref().map_or((Value::Null, Value::Null), |e| writer.stop_reason(&e.end));
    let mut message = writer.message(content);
    message["stop_reason"] = reason;
    message["stop_sequence"] = sequence;
    message["usage"] = usage(&totals);
    message["timings"] = totals.timings();
    Ok(body::json(&message))
}

/// `POST /v1/messages/count_tokens`
pub(crate) async fn count_tokens(State(app): State<Arc<App>>, request: Request<Body>) -> Result<Response, ApiError> {
    let bytes = app.read(request).await?;
    let asked: CountRequest = body::parse(&bytes)?;
    let ask = conversation(asked.system.as_ref(), &asked.messages, asked.tools.as_deref())?;
    let model = app.registry.get(Some(&asked.model)).await?;
    let prompt = ask.prepare(&model).await?;
    Ok(body::json(&json!({ "input_tokens": prompt.ids.len() })))
}

fn usage(totals: &Totals) -> Value {
    json!({
        "input_tokens": totals.prompt_tokens - totals.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": totals.cached_tokens,
        "output_tokens": totals.tokens,
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Thinking,
    Text,
    Tool,
}

/// Writes events.
struct Writer {
    app: Arc<App>,
    model: Arc<Loaded>,
    id: String,
    name: String,
    prompt_tokens: usize,
    stops: Vec<String>,
    /// The block that is being written.
    open: Option<Kind>,
    /// The number of the next block.
    next: usize,
    /// Why it ended, once it has.
    stop: (Value, Value),
}

impl Writer {
    fn message(&self, content: Vec<Value>) -> Value {
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.name, "content": content,
            "stop_reason": null, "stop_sequence": null,
        })
    }

    fn call_id(&self) -> String {
        match self.model.tool_format {
            Some(pelton::ToolFormat::Mistral) => self.app.serial.call(&self.model),
            _ => self.app.serial.name("toolu_"),
        }
    }

    fn stop_reason(&self, end: &End) -> (Value, Value) {
        match end {
            End::Stop => (json!("end_turn"), Value::Null),
            End::StopString(i) => (json!("stop_sequence"), json!(self.stops.get(*i))),
            End::Length => (json!("max_tokens"), Value::Null),
            End::ToolCalls => (json!("tool_use"), Value::Null),
        }
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        if self.open.take().is_some() {
            send(out, json!({ "type": "content_block_stop", "index": self.next - 1 }));
        }
    }

    /// Begins a block, unless one of its kind is open.
    fn open(&mut self, kind: Kind, block: impl FnOnce() -> Value, out: &mut Vec<u8>) {
        if self.open == Some(kind) && kind != Kind::Tool {
            return;
        }
        self.close(out);
        send(out, json!({ "type": "content_block_start", "index": self.next, "content_block": block() }));
        self.open = Some(kind);
        self.next += 1;
    }

    fn delta(&self, delta: Value, out: &mut Vec<u8>) {
        send(out, json!({ "type": "content_block_delta", "index": self.next - 1, "delta": delta }));
    }

    fn part(&mut self, part: Part, out: &mut Vec<u8>) {
        match part {
            Part::Reasoning(text) => {
                self.open(Kind::Thinking, || json!({ "type": "thinking", "thinking": "", "signature": "" }), out);
                self.delta(json!({ "type": "thinking_delta", "thinking": text }), out);
            }
            Part::Content(text) => {
                self.open(Kind::Text, || json!({ "type": "text", "text": "" }), out);
                self.delta(json!({ "type": "text_delta", "text": text }), out);
            }
            Part::Call { name, .. } => {
                let id = self.call_id();
                self.open(Kind::Tool, || json!({ "type": "tool_use", "id": id, "name": name, "input": {} }), out);
            }
            Part::Arguments { json, .. } => {
                self.delta(json!({ "type": "input_json_delta", "partial_json": json }), out);
            }
        }
    }
}

/// An event is named by its type.
fn send(out: &mut Vec<u8>, data: Value) {
    event(out, data["type"].as_str(), &data);
}

impl Format for Writer {
    const KIND: &'static str = "text/event-stream";

    fn begin(&mut self, out: &mut Vec<u8>) {
        let mut message = self.message(Vec::new());
        message["usage"] = json!({ "input_tokens": self.prompt_tokens, "output_tokens": 0 });
        send(out, json!({ "type": "message_start", "message": message }));
    }

    fn update(&mut self, update: Update, out: &mut Vec<u8>) {
        match update {
            Update::Delta { parts, .. } => parts.into_iter().for_each(|part| self.part(part, out)),
            Update::End { ended, .. } => {
                if self.next == 0 {
                    self.open(Kind::Text, || json!({ "type": "text", "text": "" }), out);
                }
                self.close(out);
                self.stop = self.stop_reason(&ended.end);
            }
        }
    }

    fn end(&mut self, totals: &Totals, out: &mut Vec<u8>) {
        let (reason, sequence) = std::mem::take(&mut self.stop);
        let delta = json!({ "stop_reason": reason, "stop_sequence": sequence });
        send(out, json!({ "type": "message_delta", "delta": delta, "usage": usage(totals) }));
        send(out, json!({ "type": "message_stop" }));
    }

    fn error(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        send(out, error.body(Dialect::Anthropic));
    }

    fn sign_of_life(&mut self, out: &mut Vec<u8>) {
        send(out, json!({ "type": "ping" }));
    }
}

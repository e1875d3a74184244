//! `POST /v1/responses`: text, reasoning and function calls.
//!
//! Invariant: nothing is stored: a request carries its whole conversation, and one that refers to an earlier response
//! is refused.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::Response;
use pelton::SamplingOverrides;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::messages::{Content, FunctionDefinition, ResponseFormat, Role, ToolChoiceField, choice_of};
use super::responses_stream::ResponseStream;
use super::tool_of;
use crate::answer::{End, Totals, Whole, collect, stream};
use crate::conversation::{Ask, Tool};
use crate::engine::Loaded;
use crate::error::ApiError;
use crate::knobs::Knobs;
use crate::registry::unix_now;
use crate::{App, Visit, body};

/// A text, or items.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or an array of items")]
pub(crate) enum ResponseInput {
    /// What the person says.
    Text(String),
    /// A conversation.
    Items(Vec<Item>),
}

/// An item of a conversation.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(extend("anyOf" = [
    {
        "required": ["role", "content"],
        "properties": {
            "type": { "enum": ["message", null] },
            "role": { "enum": ["system", "developer", "user", "assistant"] },
            "content": { "type": ["string", "array"] },
        },
    },
    { "required": ["type", "name"], "properties": { "type": { "const": "function_call" }, "name": { "type": "string" } } },
    {
        "required": ["type", "call_id", "output"],
        "properties": {
            "type": { "const": "function_call_output" },
            "call_id": { "type": "string" },
            "output": { "type": ["string", "array"] },
        },
    },
    { "required": ["type"], "properties": { "type": { "const": "reasoning" } } },
]))]
pub(crate) struct Item {
    /// `message` (if left out), `function_call`, `function_call_output` or `reasoning`.
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    /// Of a message: who speaks.
    pub(crate) role: Option<Role>,
    /// Of a message: what they say.
    pub(crate) content: Option<Content>,
    /// Of a call.
    pub(crate) name: Option<String>,
    /// Of a call: a JSON object, written as text.
    pub(crate) arguments: Option<String>,
    /// Of a call and of its result.
    pub(crate) call_id: Option<String>,
    /// Of a result.
    pub(crate) output: Option<Content>,
}

/// A tool on offer.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct ResponseTool {
    /// `function`; there is no other kind here.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "function"))]
    pub(crate) kind: String,
    /// Its name.
    #[schemars(required, length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9_.:/\-]+$"))]
    pub(crate) name: Option<String>,
    /// What it does.
    pub(crate) description: Option<String>,
    /// JSON schema of its arguments.
    #[schemars(with = "Option<Map<String, Value>>")]
    pub(crate) parameters: Option<Value>,
}

/// How the text is written.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct TextField {
    /// Its form.
    pub(crate) format: Option<ResponseFormat>,
}

/// A conversation that asks for an answer.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct ResponsesRequest {
    /// The model; the server's first if left out.
    pub(crate) model: Option<String>,
    /// The conversation.
    pub(crate) input: ResponseInput,
    /// System message.
    pub(crate) instructions: Option<String>,
    /// Send the answer as it comes.
    pub(crate) stream: Option<bool>,
    /// Longest answer in tokens.
    #[schemars(range(min = 1))]
    pub(crate) max_output_tokens: Option<u64>,
    /// Randomness.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub(crate) temperature: Option<f32>,
    /// Among the likeliest that together have this probability.
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0))]
    pub(crate) top_p: Option<f32>,
    /// Tools on offer.
    #[schemars(length(max = 256))]
    pub(crate) tools: Option<Vec<ResponseTool>>,
    /// Which of them may be called.
    pub(crate) tool_choice: Option<ToolChoiceField>,
    /// Several calls in one answer.
    pub(crate) parallel_tool_calls: Option<bool>,
    /// The form of the text.
    pub(crate) text: Option<TextField>,
    /// Refused: nothing is stored.
    #[schemars(with = "()")]
    pub(crate) previous_response_id: Option<String>,
}

impl Item {
    fn for_template(&self, index: usize, messages: &mut Vec<Value>) -> Result<(), ApiError> {
        let at = format!("input[{index}]");
        let missing = |field: &str| ApiError::field(format!("{at}.{field}"), "it is missing");
        match self.kind.as_deref().unwrap_or("message") {
            "message" => {
                let role = match self.role.ok_or_else(|| missing("role"))? {
                    Role::System | Role::Developer => "system",
                    Role::User => "user",
                    Role::Assistant => "assistant",
                    Role::Tool | Role::Function => {
                        return Err(ApiError::field(format!("{at}.role"), "expected a function_call_output"));
                    }
                };
                let content = self.content.as_ref().ok_or_else(|| missing("content"))?.text(&at)?;
                messages.push(json!({ "role": role, "content": content }));
            }
            "function_call" => {
                let name = self.name.as_ref().ok_or_else(|| missing("name"))?;
                let text = self.arguments.as_deref().unwrap_or("{}");
                let arguments: Value = serde_json::from_str(text).unwrap_or_else(|_| json!(text));
                let function = json!({ "name": name, "arguments": arguments });
                let call = json!({ "id": self.call_id, "type": "function", "function": function });
                // Calls of one turn belong together.
                match messages.last_mut() {
                    Some(last) if last["role"] == "assistant" && last["tool_calls"].is_array() => {
                        last["tool_calls"].as_array_mut().expect("it is one").push(call);
                    }
                    Some(last) if last["role"] == "assistant" => last["tool_calls"] = json!([call]),
                    _ => messages.push(json!({ "role": "assistant", "content": "", "tool_calls": [call] })),
                }
            }
            "function_call_output" => {
                let id = self.call_id.as_ref().ok_or_else(|| missing("call_id"))?;
                let content = self.output.as_ref().ok_or_else(|| missing("output"))?.text(&at)?;
                messages.push(json!({ "role": "tool", "tool_call_id": id, "content": content }));
            }
            // Templates leave the thoughts of earlier turns out.
            "reasoning" => {}
            kind => {
                let kind: String = kind.chars().take(40).collect();
                return Err(ApiError::field(format!("{at}.type"), format!("`{kind}` is not supported here")));
            }
        }
        Ok(())
    }
}

impl ResponsesRequest {
    fn ask(&self) -> Result<Ask, ApiError> {
        if self.previous_response_id.is_some() {
            return Err(ApiError::field(
                "previous_response_id",
                "responses are not stored; send the whole conversation",
            ));
        }
        let mut messages = Vec::new();
        if let Some(text) = &self.instructions {
            messages.push(json!({ "role": "system", "content": text }));
        }
        match &self.input {
            ResponseInput::Text(text) => messages.push(json!({ "role": "user", "content": text })),
            ResponseInput::Items(items) => {
                items.iter().enumerate().try_for_each(|(i, item)| item.for_template(i, &mut messages))?;
            }
        }
        let tools = self.tools.iter().flatten().enumerate().map(|(i, t)| t.tool(i)).collect::<Result<_, _>>()?;
        let format = self.text.as_ref().and_then(|t| t.format.as_ref());
        Ok(Ask {
            messages,
            tools,
            choice: choice_of(self.tool_choice.as_ref())?,
            parallel: self.parallel_tool_calls != Some(false),
            form: format.map_or(Ok(None), |f| f.spec())?,
            ..Ask::default()
        })
    }

    fn knobs(&self) -> Knobs {
        let (temperature, top_p) = (self.temperature, self.top_p);
        Knobs {
            sampling: SamplingOverrides { temperature, top_p, ..SamplingOverrides::default() },
            max_tokens: self.max_output_tokens,
            max_tokens_name: "max_output_tokens",
            ..Knobs::default()
        }
    }

    /// Whether it can be asked at all.
    pub(crate) fn checks(&self) -> bool {
        self.ask().is_ok()
    }
}

impl ResponseTool {
    fn tool(&self, index: usize) -> Result<Tool, ApiError> {
        let name = match (self.kind.as_str(), &self.name) {
            ("function", Some(name)) => name.clone(),
            ("function", None) => return Err(ApiError::field(format!("tools[{index}].name"), "it is missing")),
            _ => return Err(ApiError::field(format!("tools[{index}].type"), "expected `function`")),
        };
        let (description, parameters) = (self.description.clone(), self.parameters.clone());
        Ok(tool_of(&FunctionDefinition { name, description, parameters }))
    }
}

/// `POST /v1/responses`
pub(crate) async fn responses(
    State(app): State<Arc<App>>,
    Extension(visit): Extension<Visit>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let bytes = app.read(request).await?;
    let asked: ResponsesRequest = body::parse(&bytes)?;
    let ask = asked.ask()?;
    let answer = app.ask(&visit, asked.model.as_deref(), ask, &asked.knobs(), false).await?;
    let model = answer.model.clone();
    let shell = shell(&app, &model, &asked, &body_value(&bytes));
    if asked.stream == Some(true) {
        return Ok(stream(answer, ResponseStream::new(app.clone(), model, shell)));
    }
    let (mut wholes, totals) = collect(answer).await?;
    let whole = wholes.pop().ok_or_else(|| ApiError::internal("there is no answer"))?;
    let output = output(&app, &model, &whole);
    let end = whole.ended.as_ref().map_or(End::Stop, |e| e.end.clone());
    Ok(body::json(&finished(shell, output, &end, &totals)))
}

/// The request as JSON, for what is given back as it was.
fn body_value(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_default()
}

/// The response before there is an answer.
fn shell(app: &App, model: &Loaded, asked: &ResponsesRequest, body: &Value) -> Value {
    let given = |field: &str, default: Value| body.get(field).filter(|v| !v.is_null()).cloned().unwrap_or(default);
    json!({
        "id": app.serial.name("resp_"),
        "object": "response",
        "created_at": unix_now(),
        "status": "in_progress",
        "error": null,
        "incomplete_details": null,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "model": model.id,
        "output": [],
        "parallel_tool_calls": asked.parallel_tool_calls.unwrap_or(true),
        "previous_response_id": null,
        "reasoning": given("reasoning", json!({ "effort": null, "summary": null })),
        "store": false,
        "temperature": asked.temperature,
        "text": given("text", json!({ "format": { "type": "text" } })),
        "tool_choice": given("tool_choice", json!("auto")),
        "tools": given("tools", json!([])),
        "top_p": asked.top_p,
        "truncation": "disabled",
        "usage": null,
        "user": null,
        "metadata": given("metadata", json!({})),
    })
}

/// The response after its end.
pub(super) fn finished(mut shell: Value, output: Vec<Value>, end: &End, totals: &Totals) -> Value {
    shell["status"] = json!(if *end == End::Length { "incomplete" } else { "completed" });
    if *end == End::Length {
        shell["incomplete_details"] = json!({ "reason": "max_output_tokens" });
    }
    shell["output"] = Value::Array(output);
    shell["usage"] = json!({
        "input_tokens": totals.prompt_tokens,
        "input_tokens_details": { "cached_tokens": totals.cached_tokens },
        "output_tokens": totals.tokens,
        "output_tokens_details": { "reasoning_tokens": totals.reasoning_tokens },
        "total_tokens": totals.prompt_tokens + totals.tokens,
    });
    shell["timings"] = totals.timings();
    shell
}

fn output(app: &App, model: &Loaded, whole: &Whole) -> Vec<Value> {
    let mut items = Vec::new();
    if !whole.reasoning.is_empty() {
        items.push(reasoning_item(&app.serial.name("rs_"), &whole.reasoning));
    }
    if !whole.content.is_empty() || whole.calls.is_empty() {
        items.push(message_item(&app.serial.name("msg_"), &whole.content));
    }
    for call in &whole.calls {
        items.push(call_item(
            &app.serial.name("fc_"),
            &app.serial.call(model),
            &call.name,
            &call.arguments,
            "completed",
        ));
    }
    items
}

pub(super) fn reasoning_item(id: &str, text: &str) -> Value {
    json!({ "id": id, "type": "reasoning", "summary": [], "content": [{ "type": "reasoning_text", "text": text }] })
}

pub(super) fn message_item(id: &str, text: &str) -> Value {
    json!({ "id": id, "type": "message", "status": "completed", "role": "assistant", "content": [text_part(text)] })
}

pub(super) fn text_part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

pub(super) fn call_item(id: &str, call_id: &str, name: &str, arguments: &str, status: &str) -> Value {
    json!({ "id": id, "type": "function_call", "call_id": call_id, "name": name, "arguments": arguments, "status": status })
}

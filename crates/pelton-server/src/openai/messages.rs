//! Messages and tools, as OpenAI writes them and chat templates read them.
//!
//! Invariant: what a template sees has a known role, text (never a list of parts) and arguments of calls as objects.

use pelton::GrammarSpec;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::conversation::{Tool, ToolChoice};
use crate::error::ApiError;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Sets the tone.
    System,
    /// OpenAI's newer word for it.
    Developer,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// A tool's result.
    Tool,
    /// The same, as older clients write it.
    Function,
}

/// A message's text.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or an array of text parts")]
pub(crate) enum Content {
    /// As it is.
    Text(String),
    /// In parts.
    Parts(Vec<ContentPart>),
}

/// A part of a message.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(extend("anyOf" = [
    {
        "required": ["text"],
        "properties": { "type": { "enum": ["text", "input_text", "output_text"] }, "text": { "type": "string" } },
    },
    { "required": ["refusal"], "properties": { "type": { "const": "refusal" }, "refusal": { "type": "string" } } },
]))]
pub(crate) struct ContentPart {
    /// `text`; other kinds (images, audio) are refused.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// The text.
    pub(crate) text: Option<String>,
    /// Of kind `refusal`.
    pub(crate) refusal: Option<String>,
}

/// One message of a conversation.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(extend("anyOf" = [
    { "properties": { "role": { "const": "assistant" } } },
    {
        "required": ["content"],
        "properties": {
            "content": { "type": ["string", "array"] },
            "tool_calls": { "type": ["array", "null"], "maxItems": 0 },
        },
    },
]))]
pub(crate) struct Message {
    /// Who speaks.
    pub(crate) role: Role,
    /// What they say.
    pub(crate) content: Option<Content>,
    /// The speaker's name, or the tool's.
    pub(crate) name: Option<String>,
    /// What the model thought.
    pub(crate) reasoning_content: Option<String>,
    /// What the model called.
    pub(crate) tool_calls: Option<Vec<ToolCall>>,
    /// Which call this is the result of.
    pub(crate) tool_call_id: Option<String>,
}

/// A call that the model made.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct ToolCall {
    /// Names the call.
    pub(crate) id: Option<String>,
    /// What was called.
    pub(crate) function: FunctionCall,
}

/// The function of a call.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct FunctionCall {
    /// Its name.
    pub(crate) name: String,
    /// A JSON object, written as text.
    #[serde(default)]
    pub(crate) arguments: String,
}

/// A tool on offer.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct ToolDefinition {
    /// `function`; there is no other kind here.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "function"))]
    pub(crate) kind: String,
    /// The function.
    pub(crate) function: FunctionDefinition,
}

/// A function on offer.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct FunctionDefinition {
    /// Its name.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9_.:/\-]+$"))]
    pub(crate) name: String,
    /// What it does.
    pub(crate) description: Option<String>,
    /// JSON schema of its arguments.
    #[schemars(with = "Option<serde_json::Map<String, Value>>")]
    pub(crate) parameters: Option<Value>,
}

/// Which tools may be called.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected \"none\", \"auto\", \"required\" or {\"type\": \"function\", \"function\": {\"name\": …}}"
)]
pub(crate) enum ToolChoiceField {
    /// A word.
    Word(ToolChoiceWord),
    /// A tool.
    Named(NamedTool),
}

/// How free the model is.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ToolChoiceWord {
    /// No call.
    None,
    /// As the model likes.
    Auto,
    /// At least one call.
    Required,
}

/// The tool that must be called.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct NamedTool {
    /// Its name, as chat completions write it …
    pub(crate) function: Option<NamedFunction>,
    /// … or as responses do.
    pub(crate) name: Option<String>,
}

/// A function by name.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct NamedFunction {
    /// Its name.
    pub(crate) name: String,
}

/// The form of the answer.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(extend("anyOf" = [
    { "properties": { "type": { "enum": ["text", "json_object"] } } },
    {
        "required": ["json_schema"],
        "properties": {
            "json_schema": { "type": "object", "required": ["schema"], "properties": { "schema": { "type": "object" } } },
        },
    },
    { "required": ["schema"], "properties": { "schema": { "type": "object" } } },
]))]
pub(crate) struct ResponseFormat {
    /// Which.
    #[serde(rename = "type")]
    pub(crate) kind: FormatKind,
    /// For `json_schema`.
    pub(crate) json_schema: Option<JsonSchemaFormat>,
    /// For `json_schema`, as responses write it; with `json_object`, as some clients do.
    #[schemars(with = "Option<serde_json::Map<String, Value>>")]
    pub(crate) schema: Option<Value>,
}

/// The kinds of form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FormatKind {
    /// Any text.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that a schema allows.
    JsonSchema,
}

/// A schema with its name.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct JsonSchemaFormat {
    /// The schema.
    #[schemars(with = "Option<serde_json::Map<String, Value>>")]
    pub(crate) schema: Option<Value>,
}

impl ResponseFormat {
    pub(crate) fn spec(&self) -> Result<Option<GrammarSpec>, ApiError> {
        let inner = self.json_schema.as_ref().and_then(|f| f.schema.as_ref());
        let given = [("response_format.json_schema.schema", inner), ("response_format.schema", self.schema.as_ref())];
        if let Some((field, _)) = given.iter().find(|(_, schema)| schema.is_some_and(|schema| !schema.is_object())) {
            return Err(ApiError::field(*field, "it is no JSON schema (an object)"));
        }
        match (self.kind, inner.or(self.schema.as_ref())) {
            (FormatKind::Text, _) => Ok(None),
            (FormatKind::JsonObject, None) => Ok(Some(GrammarSpec::JsonObject)),
            (_, Some(schema)) => Ok(Some(GrammarSpec::JsonSchema(schema.clone()))),
            (FormatKind::JsonSchema, None) => {
                Err(ApiError::field("response_format.json_schema.schema", "it is missing; expected a JSON schema"))
            }
        }
    }
}

impl Content {
    /// All text, part after part.
    pub(crate) fn text(&self, at: &str) -> Result<String, ApiError> {
        let parts = match self {
            Content::Text(text) => return Ok(text.clone()),
            Content::Parts(parts) => parts,
        };
        let mut all = String::new();
        for (i, part) in parts.iter().enumerate() {
            let text = match (part.kind.as_str(), &part.text, &part.refusal) {
                ("text" | "input_text" | "output_text", Some(text), _) | ("refusal", _, Some(text)) => text,
                ("text" | "input_text" | "output_text" | "refusal", ..) => {
                    return Err(ApiError::field(format!("{at}.content[{i}].text"), "it is missing"));
                }
                (kind, ..) => {
                    let kind: String = kind.chars().take(40).collect();
                    let message = format!("`{kind}` is not supported; this server reads text");
                    return Err(ApiError::field(format!("{at}.content[{i}].type"), message));
                }
            };
            if !all.is_empty() {
                all.push('\n');
            }
            all.push_str(text);
        }
        Ok(all)
    }
}

impl Message {
    /// For a chat template.
    pub(crate) fn for_template(&self, index: usize) -> Result<Value, ApiError> {
        let at = format!("messages[{index}]");
        let role = match self.role {
            Role::System | Role::Developer => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool | Role::Function => "tool",
        };
        let calls = self.tool_calls.as_deref().unwrap_or_default();
        if self.content.is_none() && self.role != Role::Assistant {
            return Err(ApiError::field(format!("{at}.content"), "it is missing"));
        }
        let content = self.content.as_ref().map_or(Ok(String::new()), |c| c.text(&at))?;
        let mut message = json!({ "role": role, "content": content });
        if let Some(name) = &self.name {
            message["name"] = json!(name);
        }
        if let Some(reasoning) = &self.reasoning_content {
            message["reasoning_content"] = json!(reasoning);
        }
        if let Some(id) = &self.tool_call_id {
            message["tool_call_id"] = json!(id);
        }
        if !calls.is_empty() {
            if self.role != Role::Assistant {
                return Err(ApiError::field(format!("{at}.tool_calls"), "only the assistant calls tools"));
            }
            message["tool_calls"] = calls.iter().map(call_for_template).collect();
        }
        Ok(message)
    }
}

/// Templates write the arguments as JSON themselves, so they get an object.
fn call_for_template(call: &ToolCall) -> Value {
    let text = call.function.arguments.as_str();
    let arguments = if text.trim().is_empty() { json!({}) } else { serde_json::from_str(text).unwrap_or(json!(text)) };
    let id = call.id.clone().unwrap_or_default();
    json!({ "id": id, "type": "function", "function": { "name": call.function.name, "arguments": arguments } })
}

/// A tool for the conversation.
pub(crate) fn tool_of(function: &FunctionDefinition) -> Tool {
    let parameters = function.parameters.clone().filter(|p| !p.is_null());
    Tool {
        name: function.name.clone(),
        description: function.description.clone(),
        parameters: parameters.unwrap_or_else(|| json!({ "type": "object", "properties": {} })),
    }
}

/// All tools; only functions exist here.
pub(crate) fn tools_of(definitions: &[ToolDefinition]) -> Result<Vec<Tool>, ApiError> {
    let tool = |(i, definition): (usize, &ToolDefinition)| match definition.kind.as_str() {
        "function" => Ok(tool_of(&definition.function)),
        _ => Err(ApiError::field(format!("tools[{i}].type"), "expected `function`")),
    };
    definitions.iter().enumerate().map(tool).collect()
}

/// The choice; without tools there is none.
pub(crate) fn choice_of(field: Option<&ToolChoiceField>) -> Result<ToolChoice, ApiError> {
    Ok(match field {
        None | Some(ToolChoiceField::Word(ToolChoiceWord::Auto)) => ToolChoice::Auto,
        Some(ToolChoiceField::Word(ToolChoiceWord::None)) => ToolChoice::None,
        Some(ToolChoiceField::Word(ToolChoiceWord::Required)) => ToolChoice::Required,
        Some(ToolChoiceField::Named(tool)) => {
            let name = tool.function.as_ref().map(|f| &f.name).or(tool.name.as_ref());
            match name {
                Some(name) => ToolChoice::Named(name.clone()),
                None => return Err(ApiError::field("tool_choice", "the function's name is missing")),
            }
        }
    })
}

//! From a conversation, in whichever dialect, to a prompt and to how its answer is read.
//!
//! Invariants: what clients write cannot speak the template's control tokens (the façade sees to it); a model whose
//! template knows no tools is told of them in its system message, in the notation that its answers are parsed with.

use std::sync::Arc;

use pelton::{Conversation, GrammarSpec, Special, Thinking, ToolFormat, ToolGrammar};
use serde_json::{Map, Value, json};

use crate::engine::{Loaded, blocking};
use crate::error::ApiError;

/// The most tools of one request.
const MAX_TOOLS: usize = 256;

/// A tool on offer.
#[derive(Clone, Debug)]
pub(crate) struct Tool {
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    /// JSON schema of the arguments.
    pub(crate) parameters: Value,
}

impl Tool {
    /// As chat templates expect it, which is OpenAI's shape.
    fn for_template(&self) -> Value {
        let mut function = json!({ "name": self.name });
        if let Some(description) = &self.description {
            function["description"] = json!(description);
        }
        function["parameters"] = self.parameters.clone();
        json!({ "type": "function", "function": function })
    }
}

/// Which tools the answer may or must call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum ToolChoice {
    None,
    #[default]
    Auto,
    /// At least one.
    Required,
    /// This one.
    Named(String),
}

/// A conversation that asks for an answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ask {
    /// In OpenAI's shape: objects with `role`, `content`, `tool_calls` …
    pub(crate) messages: Vec<Value>,
    pub(crate) tools: Vec<Tool>,
    pub(crate) choice: ToolChoice,
    /// Several calls in one answer that has to call, as is the default of OpenAI and of Anthropic. A small model that
    /// does not know where to end is stopped by the grammar, which knows no more than 16.
    pub(crate) parallel: bool,
    /// The form of the whole answer.
    pub(crate) form: Option<GrammarSpec>,
    /// Variables of the template.
    pub(crate) extra: Map<String, Value>,
    /// Words with which the answer begins.
    pub(crate) prefill: Option<String>,
}

/// A prompt, and how its answer is read.
pub(crate) struct Prompt {
    pub(crate) ids: Vec<u32>,
    pub(crate) thinking: Thinking,
    pub(crate) tools: Option<ToolFormat>,
    pub(crate) names: Vec<String>,
    /// What the answer has to obey.
    pub(crate) grammar: Option<GrammarSpec>,
}

impl Ask {
    /// Renders and encodes; runs where waiting is allowed.
    pub(crate) async fn prepare(self, model: &Arc<Loaded>) -> Result<Prompt, ApiError> {
        let model = model.clone();
        blocking(move || self.prepare_now(&model)).await
    }

    fn prepare_now(mut self, model: &Loaded) -> Result<Prompt, ApiError> {
        let Some(chat) = &model.chat else {
            let message = format!("{} has no chat template; ask /v1/completions", model.id);
            return Err(ApiError::field("messages", message));
        };
        if self.messages.is_empty() {
            return Err(ApiError::field("messages", "expected at least one message"));
        }
        self.check_tools()?;
        if self.choice == ToolChoice::None {
            self.tools.clear();
        }
        let format = model.tool_format.unwrap_or(ToolFormat::Hermes);
        let grammar = self.grammar(model, format)?;
        if grammar.is_some() {
            // An answer of a given form has no room for thoughts.
            self.extra.entry("enable_thinking").or_insert(Value::Bool(false));
        }
        let offered: Vec<Value> = self.tools.iter().map(Tool::for_template).collect();
        let tools = match model.tool_format {
            Some(_) if !offered.is_empty() => Some(Value::Array(offered)),
            Some(_) => None,
            None => {
                self.spell_tools_out(&offered);
                None
            }
        };
        let conversation = Conversation {
            messages: Value::Array(self.messages),
            tools,
            add_generation_prompt: true,
            extra: self.extra,
        };
        let (mut ids, text) = chat.encode(&conversation)?;
        let thinking = match () {
            () if grammar.is_some() || self.prefill.is_some() => Thinking::Never,
            () if text.trim_end().ends_with("<think>") => Thinking::Open,
            () if model.thinks => Thinking::Maybe,
            () => Thinking::Never,
        };
        if let Some(words) = &self.prefill {
            ids.extend(model.text.tokenizer.encode(words, Special::AsText));
        }
        let names: Vec<String> = self.tools.into_iter().map(|t| t.name).collect();
        let tools = (!names.is_empty()).then_some(format);
        Ok(Prompt { ids, thinking, tools, names, grammar })
    }

    fn check_tools(&self) -> Result<(), ApiError> {
        if self.tools.len() > MAX_TOOLS {
            return Err(ApiError::field("tools", format!("{} tools; at most {MAX_TOOLS} are read", self.tools.len())));
        }
        for (i, tool) in self.tools.iter().enumerate() {
            let fits = |c: char| c.is_ascii_alphanumeric() || "_-.:/".contains(c);
            if tool.name.is_empty() || tool.name.len() > 128 || !tool.name.chars().all(fits) {
                let message = "expected a name of 1 to 128 letters, digits, `_`, `-`, `.`, `:` or `/`";
                return Err(ApiError::field(format!("tools[{i}].name"), message));
            }
            if self.tools[..i].iter().any(|t| t.name == tool.name) {
                return Err(ApiError::field(format!("tools[{i}].name"), format!("`{}` is there twice", tool.name)));
            }
            if !tool.parameters.is_object() {
                return Err(ApiError::field(format!("tools[{i}].parameters"), "expected a JSON schema (an object)"));
            }
        }
        match &self.choice {
            ToolChoice::Named(name) if !self.tools.iter().any(|t| t.name == *name) => {
                Err(ApiError::field("tool_choice", format!("`{name}` is none of the tools")))
            }
            ToolChoice::Required if self.tools.is_empty() => {
                Err(ApiError::field("tool_choice", "a tool is required, and `tools` is empty"))
            }
            _ => Ok(()),
        }
    }

    /// What the answer has to obey: forced calls, or a form.
    fn grammar(&self, model: &Loaded, format: ToolFormat) -> Result<Option<GrammarSpec>, ApiError> {
        let forced: Vec<&Tool> = match &self.choice {
            ToolChoice::Required => self.tools.iter().collect(),
            ToolChoice::Named(name) => self.tools.iter().filter(|t| t.name == *name).collect(),
            ToolChoice::None | ToolChoice::Auto => Vec::new(),
        };
        let free = forced.is_empty();
        let (forced, or_json) = match (free, &self.form) {
            (true, form) if self.tools.is_empty() => return Ok(form.clone()),
            (true, None) => return Ok(None),
            (true, Some(GrammarSpec::JsonObject)) => (self.tools.iter().collect(), Some(json!({ "type": "object" }))),
            (true, Some(GrammarSpec::JsonSchema(schema))) => (self.tools.iter().collect(), Some(schema.clone())),
            (true, Some(_)) => {
                let message = "a grammar and free choice of tools exclude each other; set tool_choice to \"none\" or \
                               to \"required\"";
                return Err(ApiError::field("tool_choice", message));
            }
            (false, _) => (forced, None),
        };
        let tools = forced.into_iter().map(|t| (t.name.clone(), t.parameters.clone())).collect();
        // A single named call stays single, as OpenAI has it.
        let parallel = self.parallel && (free || self.choice == ToolChoice::Required);
        let grammar = ToolGrammar { format, tools, parallel, or_json };
        let tokenizer = &model.text.tokenizer;
        let control = |text: &str| tokenizer.id_of(text).filter(|&id| tokenizer.is_special(id));
        Ok(Some(GrammarSpec::Lark(grammar.lark(control))))
    }

    /// For a template that knows no tools: describes them in the system message, and writes calls and results of
    /// earlier turns as text.
    fn spell_tools_out(&mut self, offered: &[Value]) {
        for message in &mut self.messages {
            spell_turn_out(message);
        }
        if offered.is_empty() {
            return;
        }
        let mut text = "You may call functions. To call one, answer with\n<tool_call>\n{\"name\": \"NAME\", \
                        \"arguments\": {}}\n</tool_call>\nFunctions:"
            .to_string();
        for tool in offered {
            text.push('\n');
            text.push_str(&tool["function"].to_string());
        }
        match self.messages.first_mut() {
            Some(first) if first["role"] == "system" => {
                let own = first["content"].as_str().unwrap_or_default();
                first["content"] = Value::String(format!("{own}\n\n{text}"));
            }
            _ => self.messages.insert(0, json!({ "role": "system", "content": text })),
        }
    }
}

/// Writes a turn's calls, or a tool's result, as text.
fn spell_turn_out(message: &mut Value) {
    if message["role"] == "tool" {
        let result = message["content"].as_str().unwrap_or_default();
        *message = json!({ "role": "user", "content": format!("<tool_response>\n{result}\n</tool_response>") });
        return;
    }
    let Some(Value::Array(calls)) = message.as_object_mut().and_then(|m| m.remove("tool_calls")) else { return };
    let mut text = message["content"].as_str().unwrap_or_default().to_string();
    for call in calls {
        if !text.is_empty() {
            text.push('\n');
        }
        let call = json!({ "name": call["function"]["name"], "arguments": call["function"]["arguments"] });
        text.push_str(&format!("<tool_call>\n{call}\n</tool_call>"));
    }
    message["content"] = Value::String(text);
}

//! A grammar for answers that must be tool calls, in the model's own notation.
//!
//! Invariant: whatever the grammar accepts, [`AnswerParser`](super::AnswerParser) takes apart into calls of the tools
//! that were given, each with arguments that its schema allows.

use serde_json::{Value, json};

use super::ToolFormat;

/// Tools that an answer must call.
#[derive(Clone, Debug)]
pub struct ToolGrammar {
    /// The notation.
    pub format: ToolFormat,
    /// Name, and JSON schema of the arguments.
    pub tools: Vec<(String, Value)>,
    /// Whether several calls, up to 16, are allowed.
    pub parallel: bool,
    /// Where this is given, calls are free: an answer may be JSON of this schema instead.
    pub or_json: Option<Value>,
}

impl ToolGrammar {
    /// The grammar, as a Lark text whose `%json` rules hold the schemas. `control` says which id a control token has:
    /// text alone cannot spell one.
    pub fn lark(&self, control: impl Fn(&str) -> Option<u32>) -> String {
        let mark = |text: &str| match control(text) {
            Some(id) => format!("<[{id}]>"),
            None => quote(text),
        };
        let key = self.format.arguments_key();
        let mut lark = match &self.or_json {
            Some(schema) => format!("start: calls | form\nform: %json {schema}\n"),
            None => "start: calls\n".to_string(),
        };
        let (open, close) = match self.format {
            ToolFormat::Hermes => {
                let open = format!("{} \"\\n\"", mark("<tool_call>"));
                (open, format!("\"\\n\" {}", mark("</tool_call>")))
            }
            ToolFormat::Llama | ToolFormat::Mistral => (String::new(), String::new()),
        };
        lark += match (self.format, self.parallel) {
            (ToolFormat::Hermes, false) => "calls: call\n",
            (ToolFormat::Hermes, true) => "calls: call (\"\\n\" call){0,15}\n",
            (ToolFormat::Llama, false) => "calls: call\n",
            (ToolFormat::Llama, true) => "calls: call (\"; \" call){0,15}\n",
            (ToolFormat::Mistral, _) => "",
        };
        if self.format == ToolFormat::Mistral {
            let more = if self.parallel { " (\", \" call){0,15}" } else { "" };
            lark += &format!("calls: {} \"[\" call{more} \"]\"\n", mark("[TOOL_CALLS]"));
        }
        let names: Vec<String> = (0..self.tools.len()).map(|i| format!("call_{i}")).collect();
        lark += &format!("call: {}\n", names.join(" | "));
        for (i, (name, schema)) in self.tools.iter().enumerate() {
            let head = quote(&format!("{{\"name\": {}, \"{key}\": ", Value::from(name.as_str())));
            let schema = if schema.is_object() { schema.clone() } else { json!({ "type": "object" }) };
            lark += &format!("call_{i}: {open} {head} arguments_{i} \"}}\" {close}\n");
            lark += &format!("arguments_{i}: %json {schema}\n");
        }
        lark
    }
}

/// A Lark string.
fn quote(text: &str) -> String {
    Value::from(text).to_string()
}

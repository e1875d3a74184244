//! Answers of chat models, taken apart while they stream: reasoning, text, and tool calls in the notation that the
//! model was trained on.
//!
//! Invariants: the parts do not depend on how the text was cut into pieces; what was handed out is never taken back;
//! text that begins like a call and turns out to be none is handed out as text.
//!
//! Sources: the chat templates of Qwen 2.5 and 3, Hermes 2 Pro, Llama 3.1 and Mistral, which define the notations.

mod call;
mod grammar;
mod parser;

pub use grammar::ToolGrammar;
pub use parser::{AnswerParser, Part, Thinking};

/// How a model writes a tool call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`, one pair of tags for each call.
    Hermes,
    /// The whole answer is `{"name": …, "parameters": …}`, maybe after `<|python_tag|>`, several joined by `;`.
    Llama,
    /// `[TOOL_CALLS]` and then an array of `{"name": …, "arguments": …}`, or `name[ARGS]{…}` once for each call.
    Mistral,
}

impl ToolFormat {
    /// The notation that a chat template describes; `None` where it does not mention tools.
    pub fn of_template(template: &str) -> Option<ToolFormat> {
        if !template.contains("tools") {
            return None;
        }
        if template.contains("[TOOL_CALLS]") {
            return Some(ToolFormat::Mistral);
        }
        if template.contains("<tool_call>") {
            return Some(ToolFormat::Hermes);
        }
        if template.contains("<|python_tag|>") || template.contains("\"parameters\": ") {
            return Some(ToolFormat::Llama);
        }
        // Most others follow Hermes.
        Some(ToolFormat::Hermes)
    }

    /// Control tokens that belong to the notation. A decoder that hides control tokens must show these to the parser.
    pub fn marks(self) -> &'static [&'static str] {
        match self {
            ToolFormat::Hermes => &["<tool_call>", "</tool_call>"],
            ToolFormat::Llama => &["<|python_tag|>"],
            ToolFormat::Mistral => &["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
        }
    }

    /// The key of the arguments in the call's object.
    pub(crate) fn arguments_key(self) -> &'static str {
        match self {
            ToolFormat::Llama => "parameters",
            ToolFormat::Hermes | ToolFormat::Mistral => "arguments",
        }
    }

    /// What begins a call.
    pub(crate) fn opening(self) -> &'static str {
        self.marks()[0]
    }
}

//! The chunks of a streamed chat completion.
//!
//! Invariants: the first chunk of a choice carries its role, the last one its `finish_reason`; a text's chunk is
//! written from a beginning that is made once.

use std::collections::HashMap;
use std::sync::Arc;

use pelton::Part;
use serde_json::{Value, json};

use super::{FINGERPRINT, finish_reason, logprob_entry};
use crate::App;
use crate::answer::{Format, Token, Totals, Update, event};
use crate::engine::Loaded;
use crate::error::{ApiError, Dialect};
use crate::registry::unix_now;

/// Writes chunks.
pub(crate) struct ChatStream {
    app: Arc<App>,
    model: Arc<Loaded>,
    /// Fields that all chunks share.
    head: Value,
    /// The same as text, up to a choice's number.
    text_head: Vec<u8>,
    usage: bool,
    logprobs: bool,
    /// Choices that have begun.
    begun: HashMap<usize, ()>,
}

impl ChatStream {
    pub(crate) fn new(id: String, model: Arc<Loaded>, usage: bool, logprobs: bool, app: Arc<App>) -> ChatStream {
        let head = json!({
            "id": id,
            "object": "chat.completion.chunk",
            "created": unix_now(),
            "model": model.id,
            "system_fingerprint": FINGERPRINT,
        });
        let mut text_head = b"data: ".to_vec();
        text_head.extend_from_slice(head.to_string().trim_end_matches('}').as_bytes());
        text_head.extend_from_slice(b",\"choices\":[{\"index\":");
        ChatStream { app, model, head, text_head, usage, logprobs, begun: HashMap::new() }
    }

    fn chunk(&self, choice: usize, delta: Value, logprobs: Value, finish: Option<&str>) -> Value {
        let mut chunk = self.head.clone();
        chunk["choices"] = json!([{ "index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish }]);
        if self.usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    /// A chunk with text alone: almost all are.
    fn text(&self, choice: usize, field: &str, text: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.text_head);
        out.extend_from_slice(choice.to_string().as_bytes());
        out.extend_from_slice(b",\"delta\":{\"");
        out.extend_from_slice(field.as_bytes());
        out.extend_from_slice(b"\":");
        serde_json::to_writer(&mut *out, text).expect("text is written to memory");
        out.extend_from_slice(b"},\"logprobs\":null,\"finish_reason\":null}]");
        if self.usage {
            out.extend_from_slice(b",\"usage\":null");
        }
        out.extend_from_slice(b"}\n\n");
    }

    fn role(&mut self, choice: usize, out: &mut Vec<u8>) {
        if self.begun.insert(choice, ()).is_none() {
            let delta = json!({ "role": "assistant", "content": "" });
            event(out, None, &self.chunk(choice, delta, Value::Null, None));
        }
    }

    fn part(&self, choice: usize, part: Part, out: &mut Vec<u8>) {
        let call = match part {
            Part::Content(text) => return self.text(choice, "content", &text, out),
            Part::Reasoning(text) => return self.text(choice, "reasoning_content", &text, out),
            Part::Call { index, name } => {
                let function = json!({ "name": name, "arguments": "" });
                json!({ "index": index, "id": self.app.serial.call(&self.model), "type": "function", "function": function })
            }
            Part::Arguments { index, json } => json!({ "index": index, "function": { "arguments": json } }),
        };
        event(out, None, &self.chunk(choice, json!({ "tool_calls": [call] }), Value::Null, None));
    }

    fn logprobs(&self, tokens: &[Token]) -> Value {
        let entries: Vec<Value> = tokens.iter().map(|t| logprob_entry(&self.model.text.tokenizer, t)).collect();
        json!({ "content": entries, "refusal": null })
    }

    fn delta(&mut self, choice: usize, parts: Vec<Part>, tokens: &[Token], out: &mut Vec<u8>) {
        self.role(choice, out);
        if !self.logprobs || tokens.is_empty() {
            return parts.into_iter().for_each(|part| self.part(choice, part, out));
        }
        // The tokens go with the first text that they made, or alone.
        let mut parts = parts.into_iter().peekable();
        let delta = match parts.next_if(|p| matches!(p, Part::Content(_) | Part::Reasoning(_))) {
            Some(Part::Content(text)) => json!({ "content": text }),
            Some(Part::Reasoning(text)) => json!({ "reasoning_content": text }),
            _ => json!({}),
        };
        event(out, None, &self.chunk(choice, delta, self.logprobs(tokens), None));
        parts.for_each(|part| self.part(choice, part, out));
    }
}

impl Format for ChatStream {
    const KIND: &'static str = "text/event-stream";

    fn begin(&mut self, out: &mut Vec<u8>) {
        self.role(0, out);
    }

    fn update(&mut self, update: Update, out: &mut Vec<u8>) {
        match update {
            Update::Delta { choice, parts, tokens } => self.delta(choice, parts, &tokens, out),
            Update::End { choice, ended } => {
                self.role(choice, out);
                let finish = Some(finish_reason(&ended.end));
                event(out, None, &self.chunk(choice, json!({}), Value::Null, finish));
            }
        }
    }

    fn end(&mut self, totals: &Totals, out: &mut Vec<u8>) {
        if self.usage {
            let mut chunk = self.head.clone();
            chunk["choices"] = json!([]);
            chunk["usage"] = totals.usage();
            chunk["timings"] = totals.timings();
            event(out, None, &chunk);
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }

    fn error(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        event(out, None, &error.body(Dialect::OpenAi));
    }
}

//! The events of a streamed response.
//!
//! Invariants: events are numbered without gaps; an item ends before the next begins, and the last event carries the
//! object that the same request gets without streaming.

use std::sync::Arc;

use pelton::Part;
use serde_json::{Value, json};

use super::responses::{call_item, finished, message_item, reasoning_item, text_part};
use crate::App;
use crate::answer::{End, Format, Totals, Update, event};
use crate::engine::Loaded;
use crate::error::ApiError;

/// The item that is being written, and its text so far.
enum Item {
    Reasoning { id: String, text: String },
    Message { id: String, text: String },
    Call { id: String, call_id: String, name: String, arguments: String },
}

/// Writes events.
pub(super) struct ResponseStream {
    app: Arc<App>,
    model: Arc<Loaded>,
    /// The response without its output.
    shell: Value,
    sequence: u64,
    open: Option<Item>,
    done: Vec<Value>,
    end: End,
}

impl ResponseStream {
    pub(super) fn new(app: Arc<App>, model: Arc<Loaded>, shell: Value) -> ResponseStream {
        ResponseStream { app, model, shell, sequence: 0, open: None, done: Vec::new(), end: End::Stop }
    }

    fn send(&mut self, kind: &str, fields: Value, out: &mut Vec<u8>) {
        let mut data = json!({ "type": kind, "sequence_number": self.sequence });
        self.sequence += 1;
        if let (Some(data), Value::Object(fields)) = (data.as_object_mut(), fields) {
            data.extend(fields);
        }
        event(out, Some(kind), &data);
    }

    /// The number of the item that is open, or comes next.
    fn index(&self) -> usize {
        self.done.len()
    }

    fn begin_item(&mut self, item: Item, out: &mut Vec<u8>) {
        self.close(out);
        let index = self.index();
        let added = match &item {
            Item::Reasoning { id, .. } => json!({ "id": id, "type": "reasoning", "summary": [], "content": [] }),
            Item::Message { id, .. } => {
                json!({ "id": id, "type": "message", "status": "in_progress", "role": "assistant", "content": [] })
            }
            Item::Call { id, call_id, name, .. } => call_item(id, call_id, name, "", "in_progress"),
        };
        self.send("response.output_item.added", json!({ "output_index": index, "item": added }), out);
        let part = match &item {
            Item::Message { id, .. } => Some((id.clone(), text_part(""))),
            Item::Reasoning { id, .. } => Some((id.clone(), json!({ "type": "reasoning_text", "text": "" }))),
            Item::Call { .. } => None,
        };
        if let Some((id, part)) = part {
            let fields = json!({ "item_id": id, "output_index": index, "content_index": 0, "part": part });
            self.send("response.content_part.added", fields, out);
        }
        self.open = Some(item);
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        let Some(item) = self.open.take() else { return };
        let index = self.index();
        let whole = match item {
            Item::Reasoning { id, text } => {
                let at = json!({ "item_id": id, "output_index": index, "content_index": 0 });
                self.send("response.reasoning_text.done", with(&at, "text", json!(text)), out);
                let part = json!({ "type": "reasoning_text", "text": text });
                self.send("response.content_part.done", with(&at, "part", part), out);
                reasoning_item(&id, &text)
            }
            Item::Message { id, text } => {
                let at = json!({ "item_id": id, "output_index": index, "content_index": 0, "logprobs": [] });
                self.send("response.output_text.done", with(&at, "text", json!(text)), out);
                self.send("response.content_part.done", with(&at, "part", text_part(&text)), out);
                message_item(&id, &text)
            }
            Item::Call { id, call_id, name, arguments } => {
                let arguments = if arguments.is_empty() { "{}".to_string() } else { arguments };
                let fields = json!({ "item_id": id, "output_index": index, "name": name, "arguments": arguments });
                self.send("response.function_call_arguments.done", fields, out);
                call_item(&id, &call_id, &name, &arguments, "completed")
            }
        };
        self.send("response.output_item.done", json!({ "output_index": index, "item": whole }), out);
        self.done.push(whole);
    }

    fn part(&mut self, part: Part, out: &mut Vec<u8>) {
        match &part {
            Part::Reasoning(_) if !matches!(self.open, Some(Item::Reasoning { .. })) => {
                let id = self.app.serial.name("rs_");
                self.begin_item(Item::Reasoning { id, text: String::new() }, out);
            }
            Part::Content(_) if !matches!(self.open, Some(Item::Message { .. })) => {
                let id = self.app.serial.name("msg_");
                self.begin_item(Item::Message { id, text: String::new() }, out);
            }
            Part::Call { name, .. } => {
                let (id, call_id) = (self.app.serial.name("fc_"), self.app.serial.call(&self.model));
                let (name, arguments) = (name.clone(), String::new());
                self.begin_item(Item::Call { id, call_id, name, arguments }, out);
            }
            _ => {}
        }
        let index = self.index();
        let (kind, id, delta) = match (&mut self.open, part) {
            (Some(Item::Reasoning { id, text }), Part::Reasoning(more)) => {
                text.push_str(&more);
                ("response.reasoning_text.delta", id.clone(), more)
            }
            (Some(Item::Message { id, text }), Part::Content(more)) => {
                text.push_str(&more);
                ("response.output_text.delta", id.clone(), more)
            }
            (Some(Item::Call { id, arguments, .. }), Part::Arguments { json, .. }) => {
                arguments.push_str(&json);
                ("response.function_call_arguments.delta", id.clone(), json)
            }
            _ => return,
        };
        let mut fields = json!({ "item_id": id, "output_index": index, "delta": delta });
        if kind != "response.function_call_arguments.delta" {
            fields["content_index"] = json!(0);
        }
        if kind == "response.output_text.delta" {
            fields["logprobs"] = json!([]);
        }
        self.send(kind, fields, out);
    }
}

/// `object` and one more field.
fn with(object: &Value, field: &str, value: Value) -> Value {
    let mut object = object.clone();
    object[field] = value;
    object
}

impl Format for ResponseStream {
    const KIND: &'static str = "text/event-stream";

    fn begin(&mut self, out: &mut Vec<u8>) {
        let shell = self.shell.clone();
        self.send("response.created", json!({ "response": shell }), out);
        self.send("response.in_progress", json!({ "response": shell }), out);
    }

    fn update(&mut self, update: Update, out: &mut Vec<u8>) {
        match update {
            Update::Delta { parts, .. } => parts.into_iter().for_each(|part| self.part(part, out)),
            Update::End { ended, .. } => {
                if self.open.is_none() && self.done.is_empty() {
                    self.part(Part::Content(String::new()), out);
                }
                self.close(out);
                self.end = ended.end;
            }
        }
    }

    fn end(&mut self, totals: &Totals, out: &mut Vec<u8>) {
        let whole = finished(self.shell.clone(), std::mem::take(&mut self.done), &self.end, totals);
        let kind = if self.end == End::Length { "response.incomplete" } else { "response.completed" };
        self.send(kind, json!({ "response": whole }), out);
    }

    fn error(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        let mut failed = self.shell.clone();
        failed["status"] = json!("failed");
        failed["error"] = json!({ "code": "server_error", "message": error.message });
        self.send("response.failed", json!({ "response": failed }), out);
    }
}

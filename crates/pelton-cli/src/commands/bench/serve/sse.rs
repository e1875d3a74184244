//! The stream of an answer: server-sent events (WHATWG HTML, 9.2) whose data are completion chunks in JSON.
//!
//! Invariant: whatever a server sends is an event, an end or an error; a line is never longer than [`MAX_LINE_BYTES`].

use std::io::{BufRead, Error, ErrorKind, Read};

use serde::Deserialize;
use serde_json::Value;

/// No honest chunk is longer.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Reads the data of one event after the other.
pub(super) struct Events<R>(R);

impl<R: BufRead> Events<R> {
    pub(super) fn new(reader: R) -> Events<R> {
        Events(reader)
    }

    /// The data of the next event that has any; nothing at the end of the stream.
    pub(super) fn next(&mut self) -> std::io::Result<Option<String>> {
        let mut data: Option<String> = None;
        while let Some(line) = self.line()? {
            if let Some(rest) = line.strip_prefix("data:") {
                let rest = rest.strip_prefix(' ').unwrap_or(rest);
                match &mut data {
                    Some(data) if data.len() + rest.len() > MAX_LINE_BYTES as usize => return Err(too_long()),
                    Some(data) => *data = format!("{data}\n{rest}"),
                    None => data = Some(rest.to_string()),
                }
            } else if line.is_empty() && data.is_some() {
                return Ok(data);
            }
        }
        Ok(data)
    }

    fn line(&mut self) -> std::io::Result<Option<String>> {
        let mut line = Vec::new();
        (&mut self.0).take(MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
        match line.last() {
            None => return Ok(None),
            Some(b'\n') => _ = line.pop(),
            Some(_) if line.len() as u64 == MAX_LINE_BYTES => return Err(too_long()),
            Some(_) => {}
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        let text = String::from_utf8(line).map_err(|_| Error::new(ErrorKind::InvalidData, "a line is not UTF-8"))?;
        Ok(Some(text))
    }
}

fn too_long() -> Error {
    Error::new(ErrorKind::InvalidData, format!("an event is longer than {MAX_LINE_BYTES} bytes"))
}

/// What matters of a chunk.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Chunk {
    /// It brought text: of the answer, of its reasoning, or of a tool call.
    pub(super) has_text: bool,
    /// It said that the answer is complete.
    pub(super) finished: bool,
    pub(super) usage: Option<Usage>,
    /// The error that the server reports in place of a chunk.
    pub(super) error: Option<String>,
}

/// The server's own counts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Usage {
    pub(super) prompt_tokens: Option<u64>,
    pub(super) completion_tokens: Option<u64>,
    pub(super) cached_tokens: Option<u64>,
}

impl Chunk {
    /// Reads a chunk of `/v1/chat/completions` or `/v1/completions`.
    pub(super) fn parse(data: &str) -> Result<Chunk, String> {
        let wire: WireChunk = serde_json::from_str(data).map_err(|e| format!("{e}: {}", clip(data, 120)))?;
        let has_text = |text: &Option<String>| text.as_ref().is_some_and(|t| !t.is_empty());
        let choice_has_text = |c: &WireChoice| {
            let delta = c.delta.as_ref();
            let spoken =
                delta.is_some_and(|d| [&d.content, &d.reasoning_content, &d.reasoning].into_iter().any(has_text));
            spoken
                || has_text(&c.text)
                || delta.and_then(|d| d.tool_calls.as_ref()).is_some_and(|calls| !calls.is_null())
        };
        let choices = wire.choices.unwrap_or_default();
        Ok(Chunk {
            has_text: choices.iter().any(choice_has_text),
            finished: choices.iter().any(|c| c.finish_reason.is_some()),
            usage: wire.usage.map(|u| Usage {
                prompt_tokens: u.prompt_tokens,
                completion_tokens: u.completion_tokens,
                cached_tokens: u.prompt_tokens_details.and_then(|d| d.cached_tokens),
            }),
            error: wire.error.map(|e| error_message(&e)),
        })
    }
}

/// The words of an error object: `{"message": …}`, or whatever it is.
pub(super) fn error_message(error: &Value) -> String {
    let message = error.get("message").and_then(Value::as_str).or(error.as_str());
    clip(&message.map_or_else(|| error.to_string(), str::to_string), 300)
}

/// The beginning of a text, at most `max` characters.
pub(super) fn clip(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

#[derive(Deserialize)]
struct WireChunk {
    choices: Option<Vec<WireChoice>>,
    usage: Option<WireUsage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct WireChoice {
    delta: Option<WireDelta>,
    text: Option<String>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct WireDelta {
    content: Option<String>,
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    tool_calls: Option<Value>,
}

#[derive(Deserialize)]
struct WireUsage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<WireDetails>,
}

#[derive(Deserialize)]
struct WireDetails {
    cached_tokens: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(stream: &str) -> Vec<String> {
        let mut events = Events::new(stream.as_bytes());
        std::iter::from_fn(|| events.next().unwrap()).collect()
    }

    #[test]
    fn events_are_separated_by_empty_lines() {
        assert_eq!(
            events("data: a\n\ndata:b\r\n\r\n: comment\n\nevent: x\ndata: c\ndata: d\nid: 3\n\n"),
            ["a", "b", "c\nd"]
        );
        assert_eq!(events("data: last"), ["last"], "a stream may end without the empty line");
        assert!(events("\n\n: nothing\n").is_empty());
    }

    #[test]
    fn endless_lines_and_events_are_errors() {
        let long = "data: ".to_string() + &"x".repeat(MAX_LINE_BYTES as usize);
        assert_eq!(Events::new(long.as_bytes()).next().unwrap_err().kind(), ErrorKind::InvalidData);
        let half = format!("data: {}\n", "x".repeat(MAX_LINE_BYTES as usize / 2));
        assert_eq!(Events::new(half.repeat(3).as_bytes()).next().unwrap_err().kind(), ErrorKind::InvalidData);
        assert_eq!(Events::new(&b"data: \xff\n\n"[..]).next().unwrap_err().kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn chunks_of_both_endpoints_are_read() {
        let chunk = |data: &str| Chunk::parse(data).unwrap();
        assert_eq!(chunk(r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#), Chunk::default());
        assert!(chunk(r#"{"choices":[{"delta":{"content":"x"},"finish_reason":null}]}"#).has_text);
        assert!(chunk(r#"{"choices":[{"delta":{"reasoning_content":"x"}}]}"#).has_text);
        assert!(chunk(r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#).has_text);
        assert!(chunk(r#"{"choices":[{"text":"x"}]}"#).has_text);
        assert!(chunk(r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#).finished);
        let usage = r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":8}}}"#;
        let expected = Usage { prompt_tokens: Some(9), completion_tokens: Some(4), cached_tokens: Some(8) };
        assert_eq!(chunk(usage).usage, Some(expected));
        assert_eq!(chunk(r#"{"error":{"message":"no pages"}}"#).error.as_deref(), Some("no pages"));
    }

    #[test]
    fn what_is_no_chunk_is_an_error() {
        for wrong in [
            "",
            "[]",
            "7",
            "{",
            r#"{"choices":7}"#,
            r#"{"choices":[{"delta":"x"}]}"#,
            r#"{"usage":{"prompt_tokens":-1}}"#,
        ] {
            assert!(Chunk::parse(wrong).is_err(), "{wrong}");
        }
    }
}

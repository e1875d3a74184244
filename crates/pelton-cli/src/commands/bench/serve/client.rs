//! One streamed request to an OpenAI-compatible address, timed.
//!
//! Invariant: whatever the address does, a request ends in a [`Record`]; bodies are read within bounds.

use std::io::{BufReader, ErrorKind, Read};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ureq::http::Response;
use ureq::{Agent, Body};

use super::sse::{Chunk, Events, clip, error_message};
use super::stats::{Fault, FaultKind, Record};

/// Read of answers that are no stream.
const MAX_PLAIN_BYTES: u64 = 4 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections kept open between requests. None: some servers close theirs behind a stream without saying so, and the
/// request that finds out would have to be sent again, which is not a load generator's to decide.
const MAX_IDLE: usize = 0;
/// Of each connection, in each direction.
const BUFFER_BYTES: usize = 16 << 10;

/// Which of the two endpoints that complete text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Chat,
    Completions,
}

/// What all requests of a load have in common.
pub(super) struct Client {
    agent: Agent,
    /// Without `/v1`.
    base: String,
    key: Option<String>,
    pub(super) endpoint: Endpoint,
    pub(super) model: String,
    pub(super) ignore_eos: bool,
}

impl Client {
    /// For `address`, with or without `/v1` at its end; nothing comes from it for longer than `timeout`.
    pub(super) fn new(address: &str, key: Option<String>, endpoint: Endpoint, timeout: Duration) -> Client {
        let base = address.trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base).trim_end_matches('/').to_string();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_per_read(Some(timeout))
            .timeout_per_write(Some(timeout))
            .input_buffer_size(BUFFER_BYTES)
            .output_buffer_size(BUFFER_BYTES)
            .max_idle_connections(MAX_IDLE)
            .max_idle_connections_per_host(MAX_IDLE)
            .build();
        Client { agent: config.new_agent(), base, key, endpoint, model: String::new(), ignore_eos: false }
    }

    /// The names of the models behind the address.
    pub(super) fn models(&self) -> Result<Vec<String>, Fault> {
        let mut request = self.agent.get(format!("{}/v1/models", self.base));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let response = request.call().map_err(|e| transport_fault(&e))?;
        let listing = plain_json(response)?;
        let data = listing["data"].as_array();
        let data = data.ok_or_else(|| Fault::new(FaultKind::Malformed, "/v1/models has no list `data`"))?;
        Ok(data.iter().filter_map(|m| m["id"].as_str()).map(str::to_string).collect())
    }

    /// Asks for a streamed completion of at most `max_tokens` and times what comes back, in seconds since `clock`.
    pub(super) fn stream(&self, prompt: &str, max_tokens: usize, seed: u64, clock: Instant, due: f64) -> Record {
        let mut record = Record { due, ..Record::default() };
        record.fault = self.attempt(prompt, max_tokens, seed, clock, &mut record).err();
        if record.fault.is_some() || record.end == 0.0 {
            record.end = clock.elapsed().as_secs_f64();
        }
        record
    }

    fn attempt(&self, prompt: &str, max_tokens: usize, seed: u64, clock: Instant, r: &mut Record) -> Result<(), Fault> {
        let path = match self.endpoint {
            Endpoint::Chat => "/v1/chat/completions",
            Endpoint::Completions => "/v1/completions",
        };
        let body = self.body(prompt, max_tokens, seed).to_string();
        let mut request = self.agent.post(format!("{}{path}", self.base)).header("content-type", "application/json");
        request = request.header("accept", "text/event-stream");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let response = request.send(body.as_bytes()).map_err(|e| transport_fault(&e))?;
        let kind =
            response.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or("nothing").to_string();
        if !response.status().is_success() {
            return Err(refusal(response));
        }
        if !kind.to_ascii_lowercase().starts_with("text/event-stream") {
            return Err(Fault::new(
                FaultKind::Malformed,
                format!("expected text/event-stream, got {}", clip(&kind, 80)),
            ));
        }
        read_stream(Events::new(BufReader::new(response.into_body().into_reader())), clock, r)
    }

    fn body(&self, prompt: &str, max_tokens: usize, seed: u64) -> Value {
        let mut body = json!({ "model": self.model, "max_tokens": max_tokens, "temperature": 0, "seed": seed,
            "stream": true, "stream_options": { "include_usage": true } });
        match self.endpoint {
            Endpoint::Chat => body["messages"] = json!([{ "role": "user", "content": prompt }]),
            Endpoint::Completions => body["prompt"] = json!(prompt),
        }
        if self.ignore_eos {
            body["ignore_eos"] = json!(true);
        }
        body
    }
}

/// Follows a stream to its end.
fn read_stream<R: std::io::BufRead>(mut events: Events<R>, clock: Instant, r: &mut Record) -> Result<(), Fault> {
    let mut finished = false;
    let mut counted = None;
    loop {
        let event = events.next().map_err(|e| reading_fault(&e))?;
        let now = clock.elapsed().as_secs_f64();
        let Some(data) = event else {
            if !finished {
                return Err(Fault::new(FaultKind::Cut, format!("after {} pieces of text", r.deliveries.len())));
            }
            break;
        };
        if data.trim() == "[DONE]" {
            r.end = now;
            // What is left is the end of the body; reading it lets the connection serve the next request.
            let _rest = events.next();
            break;
        }
        let chunk = Chunk::parse(&data).map_err(|e| Fault::new(FaultKind::Malformed, e))?;
        if let Some(said) = chunk.error {
            return Err(Fault::new(FaultKind::Reported, said));
        }
        if chunk.has_text {
            r.deliveries.push(now);
        }
        if let Some(usage) = chunk.usage {
            (r.prompt_tokens, r.cached_tokens) = (usage.prompt_tokens, usage.cached_tokens);
            counted = usage.completion_tokens.or(counted);
        }
        if chunk.finished || finished {
            finished = true;
            r.end = now;
        }
    }
    if r.deliveries.is_empty() {
        return Err(Fault::new(FaultKind::Empty, "the answer ended before its first token (see --ignore-eos)"));
    }
    r.answer_tokens = counted.unwrap_or(r.deliveries.len() as u64);
    Ok(())
}

/// A JSON body of bounded size.
fn plain_json(response: Response<Body>) -> Result<Value, Fault> {
    if !response.status().is_success() {
        return Err(refusal(response));
    }
    let body = plain_body(response).map_err(|e| reading_fault(&e))?;
    serde_json::from_slice(&body).map_err(|e| Fault::new(FaultKind::Malformed, e.to_string()))
}

/// A status that is not success, with the server's words where it has any.
fn refusal(response: Response<Body>) -> Fault {
    let kind = FaultKind::Status(response.status().as_u16());
    let body = plain_body(response).unwrap_or_default();
    let value: Option<Value> = serde_json::from_slice(&body).ok();
    let said = value.as_ref().map(|v| error_message(v.get("error").unwrap_or(v)));
    Fault::new(kind, said.unwrap_or_else(|| clip(String::from_utf8_lossy(&body).trim(), 200)))
}

fn plain_body(response: Response<Body>) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    response.into_body().into_reader().take(MAX_PLAIN_BYTES).read_to_end(&mut body)?;
    Ok(body)
}

/// What went wrong before an answer began.
fn transport_fault(error: &ureq::Error) -> Fault {
    let kind = match error {
        ureq::Error::Timeout(_) => FaultKind::Timeout,
        ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..) => FaultKind::Malformed,
        _ => FaultKind::Connection,
    };
    Fault::new(kind, error.to_string())
}

/// What went wrong in the midst of an answer.
fn reading_fault(error: &std::io::Error) -> Fault {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<ureq::Error>());
    let kind = match (error.kind(), inner) {
        (ErrorKind::TimedOut, _) | (_, Some(ureq::Error::Timeout(_))) => FaultKind::Timeout,
        (ErrorKind::InvalidData, _) | (_, Some(ureq::Error::Protocol(_))) => FaultKind::Malformed,
        _ => FaultKind::Cut,
    };
    Fault::new(kind, error.to_string())
}

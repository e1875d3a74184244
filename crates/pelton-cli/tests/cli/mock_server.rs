//! An OpenAI-compatible server on the loopback interface that answers as a test says: so many tokens at such delays, or
//! something that no server should send. Connections stay open between requests; reading is bounded in bytes and time.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

const MAX_BODY_BYTES: usize = 4 << 20;
/// How the mock counts: so many tokens a word, so many for the template.
pub(crate) const TOKENS_PER_WORD: usize = 2;
pub(crate) const TEMPLATE_TOKENS: usize = 10;

/// One step of an answer.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    Wait(Duration),
    /// A chunk with this text.
    Token(&'static str),
    /// Something else as it is.
    Raw(String),
    /// The finish chunk, the usage with this many tokens, and the end.
    End(usize),
    /// The connection closes here.
    Hang,
    /// In place of a stream: a status and a body.
    Status(u16, &'static str),
}

type Script = dyn Fn(&Value) -> Vec<Act> + Send + Sync;

struct Shared {
    script: Box<Script>,
    counts_tokens: bool,
    n_connections: AtomicUsize,
    /// The body of each completion, in order of arrival, and the key that came with it.
    requests: Mutex<Vec<(Value, Option<String>)>>,
    stop: AtomicBool,
}

/// A running server.
pub(crate) struct Mock {
    addr: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Mock {
    /// Answers each completion with what the script makes of its body.
    pub(crate) fn start(script: impl Fn(&Value) -> Vec<Act> + Send + Sync + 'static) -> Mock {
        Mock::with(true, script)
    }

    /// One that says nothing about tokens.
    pub(crate) fn without_usage(script: impl Fn(&Value) -> Vec<Act> + Send + Sync + 'static) -> Mock {
        Mock::with(false, script)
    }

    fn with(counts_tokens: bool, script: impl Fn(&Value) -> Vec<Act> + Send + Sync + 'static) -> Mock {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            script: Box::new(script),
            counts_tokens,
            n_connections: AtomicUsize::new(0),
            requests: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let served = shared.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if served.stop.load(Ordering::SeqCst) {
                    return;
                }
                served.n_connections.fetch_add(1, Ordering::SeqCst);
                let served = served.clone();
                std::thread::spawn(move || {
                    let stream = stream.unwrap();
                    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                    stream.set_nodelay(true).unwrap();
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    while answer(&mut reader, &stream, &served).unwrap_or(false) {}
                });
            }
        });
        Mock { addr, shared, thread: Some(thread) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub(crate) fn n_connections(&self) -> usize {
        self.shared.n_connections.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> Vec<(Value, Option<String>)> {
        self.shared.requests.lock().unwrap().clone()
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let _woken = TcpStream::connect(self.addr);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Serves one request; whether the connection stays open.
fn answer(reader: &mut BufReader<TcpStream>, mut out: &TcpStream, shared: &Shared) -> std::io::Result<bool> {
    let mut line = String::new();
    if reader.by_ref().take(8192).read_line(&mut line)? == 0 {
        return Ok(false);
    }
    let path = line.split(' ').nth(1).unwrap_or("").to_string();
    let (mut length, mut key) = (0, None);
    loop {
        let mut header = String::new();
        reader.by_ref().take(8192).read_line(&mut header)?;
        let Some((name, value)) = header.trim_end().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().unwrap(),
            "authorization" => key = Some(value.trim().to_string()),
            _ => {}
        }
    }
    assert!(length <= MAX_BODY_BYTES);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    if path == "/v1/models" {
        let body = json!({ "object": "list", "data": [{ "id": "mock" }, { "id": "other" }] }).to_string();
        write!(
            out,
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        return Ok(true);
    }
    let body: Value = serde_json::from_slice(&body).unwrap();
    shared.requests.lock().unwrap().push((body.clone(), key));
    let acts = (shared.script)(&body);
    if let [Act::Status(status, body)] = acts[..] {
        write!(
            out,
            "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        return Ok(true);
    }
    write!(out, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")?;
    for act in acts {
        let text = match act {
            Act::Wait(time) => {
                std::thread::sleep(time);
                continue;
            }
            Act::Token(text) => event(&json!({ "choices": [{ "delta": { "content": text } }] })),
            Act::Raw(text) => text,
            Act::End(n) => end(&body, n, shared.counts_tokens),
            Act::Hang => return Ok(false),
            Act::Status(..) => panic!("a status stands alone"),
        };
        write!(out, "{:x}\r\n{text}\r\n", text.len())?;
    }
    write!(out, "0\r\n\r\n")?;
    Ok(true)
}

fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}

fn end(body: &Value, completion_tokens: usize, counts_tokens: bool) -> String {
    let finish = event(&json!({ "choices": [{ "delta": {}, "finish_reason": "length" }] }));
    let prompt_tokens = prompt_words(body) * TOKENS_PER_WORD + TEMPLATE_TOKENS;
    let usage = json!({ "choices": [], "usage": { "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens, "prompt_tokens_details": { "cached_tokens": 7 } } });
    let usage = if counts_tokens { event(&usage) } else { String::new() };
    format!("{finish}{usage}data: [DONE]\n\n")
}

/// Words of a request's prompt.
pub(crate) fn prompt_words(body: &Value) -> usize {
    prompt(body).split_whitespace().count()
}

/// A request's prompt.
pub(crate) fn prompt(body: &Value) -> &str {
    body["messages"][0]["content"].as_str().or(body["prompt"].as_str()).unwrap()
}

//! A hub in the test process: the two routes of the public API over plain TCP, on the loopback interface only.
//!
//! Each connection serves one request and is closed. Reading is bounded in bytes and in time, the number of requests is
//! bounded, and the listening thread ends when the [`Hub`] is dropped.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use sha2::{Digest, Sha256};

const MAX_REQUESTS: usize = 500;
const MAX_HEAD_BYTES: usize = 16 << 10;

/// What a client asked.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query, as sent.
    pub(crate) target: String,
    headers: Vec<(String, String)>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The first byte asked for.
    pub(crate) fn range_start(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// What the hub answers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    pub(crate) cut_at: Option<usize>,
    /// Wait between the two halves of the body.
    pub(crate) pause: Duration,
}

impl Answer {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, body: body.into(), ..Self::default() }
    }

    pub(crate) fn redirect(location: impl Into<String>) -> Self {
        Self::status(302).with("location", location)
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn cut(mut self, at: usize) -> Self {
        self.cut_at = Some(at);
        self
    }
}

/// A running server; `log` holds every request in order.
pub(crate) struct Hub {
    addr: SocketAddr,
    log: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Hub {
    pub(crate) fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (log, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (seen, stopped, answer) = (Arc::clone(&log), Arc::clone(&stop), Arc::new(answer));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().take(MAX_REQUESTS) {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(stream), seen, answer) = (stream, Arc::clone(&seen), Arc::clone(&answer)) else { continue };
                std::thread::spawn(move || serve(stream, &seen, &*answer));
            }
        });
        Self { addr, log, stop, thread: Some(thread) }
    }

    /// A hub that serves one repository without faults.
    pub(crate) fn of(repo: Repo) -> Self {
        Self::start(move |request| repo.answer(request))
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// The requests for file contents.
    pub(crate) fn downloads(&self) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.target.contains("/resolve/")).collect()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _wake = TcpStream::connect(self.addr);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

fn serve(mut stream: TcpStream, log: &Mutex<Vec<Request>>, answer: &dyn Fn(&Request) -> Answer) {
    let limit = Some(Duration::from_secs(5));
    stream.set_read_timeout(limit).unwrap();
    stream.set_write_timeout(limit).unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while head.len() < MAX_HEAD_BYTES && !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
        head.push(byte[0]);
    }
    let Some(request) = parse(&head) else { return };
    log.lock().unwrap().push(request.clone());
    let answer = answer(&request);
    let mut text = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", answer.status);
    if !answer.headers.iter().any(|(name, _)| name == "transfer-encoding") {
        text.push_str(&format!("content-length: {}\r\n", answer.body.len()));
    }
    for (name, value) in &answer.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    // A client that hangs up early is part of several tests, so write errors are no failure here.
    let body = &answer.body[..answer.cut_at.unwrap_or(answer.body.len()).min(answer.body.len())];
    let body = if request.method == "HEAD" { &[] } else { body };
    let (first, second) = body.split_at(body.len() / 2);
    let _sent = stream.write_all(text.as_bytes()).and_then(|()| stream.write_all(first)).and_then(|()| {
        std::thread::sleep(answer.pause);
        stream.write_all(second)
    });
    let _closed = stream.shutdown(std::net::Shutdown::Write);
}

fn parse(head: &[u8]) -> Option<Request> {
    let mut lines = std::str::from_utf8(head).ok()?.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
    Some(Request { method, target, headers })
}

/// A repository as the hub describes it.
#[derive(Debug, Clone)]
pub(crate) struct Repo {
    pub(crate) id: String,
    pub(crate) commit: String,
    files: Vec<RepoFile>,
}

#[derive(Debug, Clone)]
struct RepoFile {
    name: String,
    content: Vec<u8>,
    is_lfs: bool,
}

impl Repo {
    /// An empty repository whose commit is forty times `digit`.
    pub(crate) fn new(id: &str, digit: char) -> Self {
        Self { id: id.to_owned(), commit: String::from(digit).repeat(40), files: Vec::new() }
    }

    /// With a small file, which the hub describes by git's SHA-1.
    pub(crate) fn small(mut self, name: &str, content: &str) -> Self {
        self.files.push(RepoFile { name: name.to_owned(), content: content.as_bytes().to_vec(), is_lfs: false });
        self
    }

    /// With a large file, which the hub describes by SHA-256.
    pub(crate) fn large(mut self, name: &str, content: Vec<u8>) -> Self {
        self.files.push(RepoFile { name: name.to_owned(), content, is_lfs: true });
        self
    }

    /// The answer of a faultless hub to a listing or a download, ranges included.
    pub(crate) fn answer(&self, request: &Request) -> Answer {
        let path = request.target.split('?').next().unwrap();
        if path.starts_with(&format!("/api/models/{}/revision/", self.id)) {
            return Answer::ok(self.listing(request.target.ends_with("?blobs=true")));
        }
        let prefix = format!("/{}/resolve/{}/", self.id, self.commit);
        let name = path.strip_prefix(&prefix).map(percent_decode);
        let Some(file) = self.files.iter().find(|file| Some(&file.name) == name.as_ref()) else {
            return Answer::status(404).with("x-error-message", "Entry not found");
        };
        let etag = format!("\"{}\"", file.hash());
        serve_range(request, &file.content).with("etag", etag)
    }

    /// The listing; without `blobs` it lacks sizes and hashes, as the real one does.
    pub(crate) fn listing(&self, blobs: bool) -> String {
        let sibling = |file: &RepoFile| {
            let mut sibling = serde_json::json!({ "rfilename": file.name });
            if blobs {
                sibling["size"] = file.content.len().into();
                sibling["blobId"] = git_hash(&file.content).into();
            }
            if blobs && file.is_lfs {
                let size = file.content.len();
                sibling["lfs"] = serde_json::json!({ "sha256": file.hash(), "size": size, "pointerSize": 134 });
            }
            sibling
        };
        let siblings: Vec<_> = self.files.iter().map(sibling).collect();
        serde_json::json!({ "id": self.id, "sha": self.commit, "siblings": siblings, "gated": false }).to_string()
    }
}

impl RepoFile {
    fn hash(&self) -> String {
        if self.is_lfs { sha256(&self.content) } else { git_hash(&self.content) }
    }
}

/// A body, or the part of it that the request asks for.
pub(crate) fn serve_range(request: &Request, content: &[u8]) -> Answer {
    match request.range_start() {
        None => Answer::ok(content),
        Some(start) if start >= content.len() => Answer::status(416),
        Some(start) => {
            let range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
            Answer { status: 206, ..Answer::ok(&content[start..]) }.with("content-range", range)
        }
    }
}

pub(crate) fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn git_hash(content: &[u8]) -> String {
    let whole = [format!("blob {}\0", content.len()).as_bytes(), content].concat();
    sha1::Sha1::digest(whole).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn percent_decode(text: &str) -> String {
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::new(), 0);
    while at < bytes.len() {
        if bytes[at] == b'%' {
            out.push(u8::from_str_radix(&text[at + 1..at + 3], 16).unwrap());
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(out).unwrap()
}

/// Bytes that differ from each other and between seeds.
pub(crate) fn noise(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    };
    (0..len).map(step).collect()
}

//! A hub on the loopback interface with one repository: the listing and the download routes of the public API, with
//! faults on request. Each connection serves one request; reading is bounded in bytes and time.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const MAX_HEAD_BYTES: usize = 16 << 10;

/// What goes wrong with downloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// The first download ends in the middle.
    CutOnce,
    /// The first download has a wrong byte.
    DamagedOnce,
    /// Every download has a wrong byte.
    Damaged,
}

struct Repo {
    name: String,
    files: Vec<(String, Vec<u8>)>,
    fault: Fault,
    /// The `Range` header of each download, in order.
    ranges: Mutex<Vec<Option<String>>>,
}

/// A running server.
pub(crate) struct Hub {
    addr: SocketAddr,
    repo: Arc<Repo>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Hub {
    pub(crate) fn start(name: &str, files: &[(&str, &[u8])], fault: Fault) -> Hub {
        let files = files.iter().map(|(name, content)| (name.to_string(), content.to_vec())).collect();
        let repo = Arc::new(Repo { name: name.to_string(), files, fault, ranges: Mutex::default() });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (served, stopped) = (repo.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let served = served.clone();
                std::thread::spawn(move || serve(stream.unwrap(), &served));
            }
        });
        Hub { addr, repo, stop, thread: Some(thread) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The `Range` header of each download so far.
    pub(crate) fn downloads(&self) -> Vec<Option<String>> {
        self.repo.ranges.lock().unwrap().clone()
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

fn serve(mut stream: TcpStream, repo: &Repo) {
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let (mut head, mut byte) = (Vec::new(), [0]);
    while head.len() < MAX_HEAD_BYTES && !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let Some(target) = head.split(' ').nth(1) else { return };
    let range = head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("range: ").map(str::to_string));
    let path = target.split('?').next().unwrap();
    let (status, headers, body, sent) = if path.starts_with(&format!("/api/models/{}/revision/", repo.name)) {
        let body = repo.listing().into_bytes();
        let sent = body.len();
        (200, String::new(), body, sent)
    } else {
        repo.download(path, range)
    };
    let head = format!("HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
    // A client that hangs up early has learned what it wanted.
    let _gone = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body[..sent]));
}

impl Repo {
    fn listing(&self) -> String {
        let sibling = |(name, content): &(String, Vec<u8>)| {
            let lfs = serde_json::json!({ "sha256": sha256(content), "size": content.len(), "pointerSize": 134 });
            serde_json::json!({ "rfilename": name, "size": content.len(), "blobId": "0".repeat(40), "lfs": lfs })
        };
        let siblings: Vec<_> = self.files.iter().map(sibling).collect();
        serde_json::json!({ "id": self.name, "sha": COMMIT, "siblings": siblings, "gated": false }).to_string()
    }

    /// Status, further headers, the body as announced, and how much of it is sent.
    fn download(&self, path: &str, range: Option<String>) -> (u16, String, Vec<u8>, usize) {
        let prefix = format!("/{}/resolve/{COMMIT}/", self.name);
        let file = path.strip_prefix(&prefix).and_then(|name| self.files.iter().find(|(n, _)| n == name));
        let Some((_, content)) = file else { return (404, String::new(), Vec::new(), 0) };
        let start = range.as_ref().and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        let nth = {
            let mut ranges = self.ranges.lock().unwrap();
            ranges.push(range);
            ranges.len()
        };
        let mut headers = format!("etag: \"{}\"\r\n", sha256(content));
        let mut body = content[start.unwrap_or(0).min(content.len())..].to_vec();
        if let Some(start) = start {
            headers += &format!("content-range: bytes {start}-{}/{}\r\n", content.len() - 1, content.len());
        }
        if self.fault == Fault::Damaged || (self.fault == Fault::DamagedOnce && nth == 1) {
            let middle = body.len() / 2;
            body[middle] ^= 1;
        }
        let sent = if self.fault == Fault::CutOnce && nth == 1 { body.len() / 3 } else { body.len() };
        (if start.is_some() { 206 } else { 200 }, headers, body, sent)
    }
}

fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

//! `pelton serve` on a card that is lost: what clients, `/health` and the log hear, and that answers go on once the card is
//! back.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::pelton::Sandbox;
use crate::serve::Served;

const PATIENCE: Duration = Duration::from_secs(120);

/// An answer: its status, its head and its object.
struct Reply {
    status: u16,
    head: String,
    object: Value,
}

fn send(address: &str, request: &str, body: &str) -> Reply {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        stream,
        "{request} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text}"));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("{head}"));
    Reply { status, head: head.to_lowercase(), object: serde_json::from_str(body).unwrap_or(Value::Null) }
}

fn complete(served: &Served) -> Reply {
    let body = json!({ "prompt": "def add(a, b):", "max_tokens": 6, "temperature": 0, "ignore_eos": true });
    send(&served.address, "POST /v1/completions", &body.to_string())
}

fn health(served: &Served) -> Reply {
    send(&served.address, "GET /health", "")
}

/// Asks until an answer is as wanted.
fn until(mut ask: impl FnMut() -> Reply, is_wanted: impl Fn(&Reply) -> bool) -> Reply {
    let begun = Instant::now();
    loop {
        let reply = ask();
        if is_wanted(&reply) {
            return reply;
        }
        assert!(begun.elapsed() < PATIENCE, "{} {}", reply.status, reply.object);
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A server on the simulator's card, and the files that take the card from it.
fn start(sandbox: &Sandbox, lose: &Path, gone: &Path) -> Served {
    let driver = pelton_cuda::sim::library();
    let environment = [("PELTON_CUDA_DRIVER", &*driver), ("PELTON_SIM_LOSE", lose), ("PELTON_SIM_GONE", gone)];
    let environment = environment.map(|(name, path)| (name, path.to_str().unwrap()));
    Served::start_with(sandbox, &["--gpu-layers", "all"], &environment)
}

#[test]
fn a_lost_card_is_opened_again_and_answers_go_on() {
    let (sandbox, folder) = (Sandbox::new(), tempfile::tempdir().unwrap());
    let (lose, gone) = (folder.path().join("lose"), folder.path().join("gone"));
    let served = start(&sandbox, &lose, &gone);
    let before = until(|| complete(&served), |reply| reply.status == 200);
    assert_eq!(health(&served).object, json!({ "status": "ok" }));

    std::fs::write(&lose, "").unwrap();
    let failed = until(|| complete(&served), |reply| reply.status != 200);
    let message = failed.object["error"]["message"].as_str().unwrap();
    assert!(failed.status >= 500 && message.contains("LAUNCH_FAILED"), "{} {message}", failed.status);
    let after = until(|| complete(&served), |reply| reply.status == 200);
    assert_eq!(after.object["choices"], before.object["choices"]);
    assert_eq!(health(&served).object, json!({ "status": "ok" }));
    let log: Vec<String> = served.log.try_iter().collect();
    for words in ["its GPU was lost: ", "opened again after"] {
        assert!(log.iter().any(|line| line.contains(words)), "`{words}` is missing: {log:?}");
    }

    // A card that does not come back: no answers, and a reason.
    std::fs::write(&gone, "").unwrap();
    std::fs::write(&lose, "").unwrap();
    until(|| complete(&served), |reply| reply.status != 200);
    let ill = until(|| health(&served), |reply| reply.object["status"] == "unhealthy");
    assert_eq!(ill.status, 503);
    let reason = ill.object["models"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("cannot be opened again") && reason.contains("cuDevicePrimaryCtxRetain"), "{reason}");
    let refused = complete(&served);
    assert_eq!(refused.status, 503, "{}", refused.object);
    assert!(refused.head.contains("retry-after: "), "{}", refused.head);
    assert!(refused.object["error"]["message"].as_str().unwrap().contains("GPU was lost"), "{}", refused.object);
    let log: Vec<String> = served.log.try_iter().collect();
    assert!(log.iter().any(|line| line.contains("cannot be opened again (tries: 1)")), "{log:?}");

    // Once somebody has reset it, it is found.
    std::fs::remove_file(&gone).unwrap();
    let after = until(|| complete(&served), |reply| reply.status == 200);
    assert_eq!(after.object["choices"], before.object["choices"]);
    assert_eq!(health(&served).status, 200);
}

//! `pelton serve` as a process: what is told at the start, and what a `kill -9` under load leaves behind.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::pelton::Sandbox;

/// A server that is killed when dropped.
pub(crate) struct Served {
    child: Child,
    pub(crate) address: String,
    /// Lines of stderr.
    pub(crate) log: Receiver<String>,
}

impl Served {
    fn start(sandbox: &Sandbox, args: &[&str]) -> Served {
        Served::start_with(sandbox, args, &[])
    }

    /// With more in its environment.
    pub(crate) fn start_with(sandbox: &Sandbox, args: &[&str], environment: &[(&str, &str)]) -> Served {
        let mut command = sandbox.command(&[&["serve", "--port", "0"], args].concat());
        command.envs(environment.iter().copied());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let first = lines.next().expect("a first line").unwrap();
        let address = first.rsplit("http://").next().unwrap().to_string();
        let (sender, log) = channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Served { child, address, log }
    }

    /// Asks, and waits for the whole answer; nothing where the connection broke.
    fn try_post(address: &str, body: &Value) -> Option<Value> {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let body = body.to_string();
        let head = format!("POST /v1/completions HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
        write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len()).ok()?;
        read_body(stream)
    }

    fn post(&self, body: &Value) -> Value {
        Served::try_post(&self.address, body).expect("an answer")
    }

    fn metric(&self, name: &str) -> f64 {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(stream, "GET /metrics HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.address).unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        let line = page.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{name}: not in {page}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Ends it as nothing can be prepared for.
    fn kill(mut self) {
        // SIGKILL.
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Gone already, where `kill` was called.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_body(mut stream: TcpStream) -> Option<Value> {
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    serde_json::from_str(text.split_once("\r\n\r\n")?.1).ok()
}

/// A prompt of some 300 tokens, the first 250 or so the same for all.
fn prompt(i: usize) -> Value {
    let shared: String = (0..40).map(|n| format!("Rule {n}: be brief. ")).collect();
    json!({ "prompt": format!("{shared}Describe the function number {i} of the library."),
        "max_tokens": 24, "temperature": 0, "ignore_eos": true })
}

fn text(reply: &Value) -> &str {
    reply["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{reply}"))
}

fn cached(reply: &Value) -> u64 {
    reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

/// What the folder's files must never be: half.
#[test]
fn prefixes_outlive_a_kill_under_load() {
    let sandbox = Sandbox::new();
    let args = ["--prefix-cache-dir", "pages", "--context", "512", "--parallel", "8"];
    // The truth, from a server that keeps nothing.
    let plain = Served::start(&sandbox, &["--no-prefix-cache", "--context", "512"]);
    let truth: Vec<String> = (0..3).map(|i| text(&plain.post(&prompt(i))).to_string()).collect();
    plain.kill();

    let served = Served::start(&sandbox, &args);
    assert_eq!(text(&served.post(&prompt(0))), truth[0]);
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for client in 0..6 {
            let (stop, answered, address) = (&stop, &answered, &served.address);
            scope.spawn(move || {
                for i in (client..).step_by(6).take_while(|_| !stop.load(Ordering::Relaxed)) {
                    let reply = Served::try_post(address, &prompt(i));
                    answered.fetch_add(usize::from(reply.is_some()), Ordering::Relaxed);
                }
            });
        }
        // In the midst of it: pages have been written, and more are on their way.
        let begun = Instant::now();
        // No assertion before the clients are told to stop: they would go on for ever.
        let mut in_the_midst = false;
        while !in_the_midst && begun.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(2));
            in_the_midst = served.metric("pelton_disk_pages_written_total") >= 8.0
                && answered.load(Ordering::Relaxed) >= 6
                && served.metric("pelton_sequences_running") > 0.0;
        }
        let mut child = std::process::Command::new("kill");
        let killed = child.args(["-9", &served.child.id().to_string()]).status();
        stop.store(true, Ordering::Relaxed);
        assert!(in_the_midst && killed.unwrap().success(), "pages were written, answers given, and it was under load");
    });
    drop(served);

    let again = Served::start(&sandbox, &args);
    let first = again.post(&prompt(0));
    let noted = again.log.iter().take(20).any(|line| line.contains("prefix pages on disk"));
    assert!(noted, "the start says how many pages there are");
    assert!(cached(&first) >= 224, "the pages of before are used: {first}");
    for (i, truth) in truth.iter().enumerate() {
        let reply = again.post(&prompt(i));
        assert_eq!(text(&reply), truth, "the same bits as computed anew");
        assert!(cached(&reply) >= 224, "{reply}");
    }
    assert!(again.metric("pelton_disk_pages_read_total") >= 7.0);
    assert_eq!(again.metric("pelton_disk_pages_rejected_total"), 0.0, "whole files or none");
    again.kill();

    // Damage does not go unnoticed, nor does it change an answer.
    let mut damaged = 0;
    for entry in std::fs::read_dir(sandbox.path("pages")).unwrap().flatten().filter(|e| e.path().is_file()) {
        let mut bytes = std::fs::read(entry.path()).unwrap();
        let middle = bytes.len() / 2;
        if let Some(byte) = bytes.get_mut(middle) {
            *byte ^= 1;
            std::fs::write(entry.path(), bytes).unwrap();
            damaged += 1;
        }
    }
    assert!(damaged >= 8, "{damaged}");
    let wary = Served::start(&sandbox, &args);
    let reply = wary.post(&prompt(0));
    assert_eq!((text(&reply), cached(&reply)), (truth[0].as_str(), 0));
    assert!(wary.metric("pelton_disk_pages_rejected_total") >= 1.0);
}

#[test]
fn a_first_model_that_cannot_run_is_one_error() {
    let sandbox = Sandbox::new();
    let wide = sandbox.run(&["serve", "--port", "0", "--context", "99999999"]).usage(&["--context 99999999"]);
    assert_eq!(wide.stderr.matches("99999999").count(), 1, "{}", wide.stderr);
    let broken = sandbox.write("broken.gguf", b"GGUF, but not for long");
    let broken = sandbox.run(&["serve", "--port", "0", "-m", broken.to_str().unwrap()]).failure(&["broken"]);
    assert_eq!(broken.stderr.matches("cannot be loaded").count(), 1, "{}", broken.stderr);
}

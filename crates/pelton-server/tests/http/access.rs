//! Keys, origins, limits, the log, stopping.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use pelton_server::Keys;
use serde_json::{Value, json};

use crate::client::{Site, TINY, read_reply};

fn completion(tokens: u32) -> Value {
    json!({ "model": TINY, "prompt": "A secret prompt", "max_tokens": tokens, "ignore_eos": true })
}

#[test]
fn keys_are_asked_for_in_each_dialect() {
    let site = Site::start(|options, _| options.keys = Keys::new(["open-sesame".to_string()]).unwrap());
    let body = completion(2).to_string();
    let with = |headers: &[(&str, &str)]| site.request("POST", "/v1/completions", headers, body.as_bytes());
    let refused = with(&[]);
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (401, &json!("invalid_api_key")));
    assert_eq!(with(&[("authorization", "Bearer open-sesam")]).status, 401);
    assert_eq!(with(&[("authorization", "Bearer open-sesame")]).status, 200);
    assert_eq!(with(&[("x-api-key", "open-sesame")]).status, 200);
    assert_eq!(site.post("/v1/messages", &json!({})).json()["error"]["type"], "authentication_error");
    assert!(site.post("/api/chat", &json!({})).json()["error"].is_string());
    for open in ["/health", "/", "/app.js", "/style.css"] {
        assert_eq!(site.get(open).status, 200, "{open}");
    }
    for closed in ["/metrics", "/v1/models", "/openapi.json", "/nowhere"] {
        assert_eq!(site.get(closed).status, 401, "{closed}");
    }
    assert!(site.log.lock().unwrap().iter().all(|l| !l.contains("sesame")));
}

#[test]
fn keys_do_not_learn_what_others_asked() {
    let keys = ["the-first-key", "the-second-key"];
    let cached = |share: bool| {
        let site = Site::start(|options, _| {
            options.keys = Keys::new(keys.map(String::from)).unwrap();
            options.share_prefixes = share;
        });
        let body =
            json!({ "model": TINY, "prompt": "A prompt of some length. ".repeat(20), "max_tokens": 2 }).to_string();
        let ask = |key: &str| {
            let reply = site.request("POST", "/v1/completions", &[("x-api-key", key)], body.as_bytes()).ok();
            reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
        };
        [ask(keys[0]), ask(keys[1]), ask(keys[0]), ask(keys[1])].map(|n| n > 0)
    };
    assert_eq!(cached(false), [false, false, true, true]);
    assert_eq!(cached(true), [false, true, true, true]);
}

#[test]
fn a_key_has_its_share() {
    let site = Site::start(|options, _| options.key_concurrency = Some(1));
    let mut first = site.begin("/v1/completions", &completion(400));
    site.wait_for("the first", |s| s.metric("pelton_sequences_running") > 0.0);
    let refused = site.post("/v1/completions", &completion(2));
    assert!(refused.status == 429 && refused.header("retry-after").is_some(), "{}", refused.text());
    first.write_all(b"").unwrap();
    drop(first);
    site.wait_for("the end", |s| s.post("/v1/completions", &completion(2)).status == 200);
}

#[test]
fn pages_of_other_origins_stay_out_unless_let_in() {
    let site = Site::start(|options, _| options.cors_origins = vec!["https://app.example".into()]);
    let body = completion(1).to_string();
    let from = |origin: &str| site.request("POST", "/v1/completions", &[("origin", origin)], body.as_bytes());
    assert_eq!(from("https://evil.example").status, 403);
    let let_in = from("https://app.example");
    assert_eq!(
        (let_in.status, let_in.header("access-control-allow-origin").as_deref()),
        (200, Some("https://app.example"))
    );
    let preflight = [("origin", "https://app.example"), ("access-control-request-method", "POST")];
    let reply = site.request("OPTIONS", "/v1/chat/completions", &preflight, b"");
    assert_eq!(reply.status, 204);
    assert!(reply.header("access-control-allow-headers").unwrap().contains("authorization"));
    let plain = Site::plain();
    let rebound =
        format!("GET /v1/models HTTP/1.1\r\nhost: evil.example:{}\r\nconnection: close\r\n\r\n", plain.address.port());
    assert_eq!(plain.raw(rebound.as_bytes()).status, 403);
}

#[test]
fn the_page_is_served_with_a_strict_policy() {
    let site = Site::plain();
    for (path, kind) in [("/", "text/html"), ("/app.js", "text/javascript"), ("/style.css", "text/css")] {
        let reply = site.get(path);
        assert_eq!(reply.status, 200);
        assert!(reply.header("content-type").unwrap().starts_with(kind), "{path}");
        assert!(reply.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
    }
    let without = Site::start(|options, _| options.page = false);
    assert_eq!(without.get("/").status, 404);
}

#[test]
fn the_log_has_a_line_for_each_request_and_no_prompt() {
    let site = Site::plain();
    site.post("/v1/completions", &completion(3)).ok();
    let found = |s: &Site, text: &str| s.log.lock().unwrap().iter().any(|l| l.contains(text));
    site.wait_for("the line", |s| found(s, "POST /v1/completions 200"));
    let line = site.log.lock().unwrap().iter().find(|l| l.contains("POST /v1/completions")).unwrap().clone();
    assert!(line.contains("tiny") && line.contains("3 tokens") && line.contains(" ms"), "{line}");
    assert!(!found(&site, "secret"));
    let open = Site::start(|options, _| options.log_prompts = true);
    open.post("/v1/completions", &completion(3)).ok();
    open.wait_for("the prompt", |s| found(s, "secret"));
}

#[test]
fn slow_clients_are_given_up() {
    let site = Site::start(|options, _| options.read_timeout = Duration::from_millis(300));
    // Headers that never end.
    let mut slow = site.connect();
    slow.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n").unwrap();
    let begun = Instant::now();
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest);
    assert!(begun.elapsed() < Duration::from_secs(10));
    // A body that never comes.
    let mut slow = site.connect();
    slow.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{").unwrap();
    assert_eq!(read_reply(&mut slow).status, 408);
}

#[test]
fn a_reader_that_takes_nothing_is_given_up() {
    let site = Site::start(|options, models| {
        options.write_timeout = Duration::from_millis(200);
        models.sources[0].options.context = Some(1024);
    });
    // Far more than the buffers of a socket hold: log-probabilities make each token some kilobytes.
    let body = json!({
        "messages": [{ "role": "user", "content": "x" }], "stream": true, "n": 8, "temperature": 1, "ignore_eos": true,
        "logprobs": true, "top_logprobs": 20, "max_tokens": 900,
    });
    let stuck: Vec<_> = (0..2).map(|_| site.begin("/v1/chat/completions", &body)).collect();
    site.wait_for("the count", |s| {
        s.metric("pelton_abandoned_total") >= 1.0 || s.metric("pelton_request_seconds_count") >= 16.0
    });
    assert!(site.metric("pelton_abandoned_total") >= 1.0, "the answers fitted the sockets' buffers");
    drop(stuck);
    assert_eq!(site.post("/v1/completions", &completion(1)).status, 200);
}

#[test]
fn stopping_lets_answers_end_and_takes_no_new_ones() {
    let mut site = Site::plain();
    let mut running = site.begin("/v1/completions", &completion(60));
    site.wait_for("the answer", |s| {
        s.metric("pelton_sequences_running") > 0.0 || s.metric("pelton_generated_tokens_total") > 0.0
    });
    site.tell_to_stop();
    let reply = read_reply(&mut running);
    assert_eq!(reply.ok()["usage"]["completion_tokens"], 60);
    let begun = Instant::now();
    while std::net::TcpStream::connect(site.address).is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(10), "it still listens");
        std::thread::sleep(Duration::from_millis(10));
    }
}

//! What strangers send: each gets an answer in its dialect's shape, and the server goes on.

use std::io::Write;

use serde_json::json;

use crate::client::{Site, TINY};

const ROUTES: [&str; 12] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/tokenize",
    "/detokenize",
    "/apply-template",
];

#[test]
fn bodies_that_are_no_requests() {
    let site = Site::plain();
    let deep = "[".repeat(50_000);
    let nested = format!("{{\"messages\": {}", "[".repeat(1000));
    let bodies: [&[u8]; 14] = [
        b"",
        b"{",
        b"[]",
        b"null",
        b"5",
        b"\"x\"",
        b"{\"model\": \xff\xfe}",
        b"{\"model\": \"\\ud800\"}",
        b"{\"messages\": {}, \"prompt\": {}, \"input\": {}, \"content\": [], \"tokens\": {}}",
        b"{\"messages\": 1e999, \"prompt\": 1e999, \"input\": 1e999, \"content\": 1e999, \"tokens\": [1e999]}",
        b"{\"messages\": [{}], \"prompt\": [{}], \"input\": [{}], \"content\": {}, \"tokens\": [-1]}",
        b"model=x&messages=y",
        deep.as_bytes(),
        nested.as_bytes(),
    ];
    for path in ROUTES {
        for body in bodies {
            let reply = site.request("POST", path, &[], body);
            let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
            assert_eq!(reply.status, 400, "{path} {shown}: {}", reply.text());
            assert!(!reply.json()["error"].is_null(), "{path} {shown}: {}", reply.text());
        }
        let wrong_method = site.get(path);
        assert!(wrong_method.status == 405 && !wrong_method.json()["error"].is_null(), "{path}");
    }
    assert_eq!(site.get("/health").status, 200);
}

#[test]
fn bodies_and_headers_that_are_too_large() {
    let site = Site::start(|options, _| options.max_body = 10_000);
    let body = json!({ "prompt": "x".repeat(20_000) });
    let reply = site.post("/v1/completions", &body);
    assert!(reply.status == 413 && reply.json()["error"]["message"].as_str().unwrap().contains("10000"));
    // Without a length, too.
    let mut stream = site.connect();
    stream.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
    let chunk = format!("{:x}\r\n{}\r\n", 4000, "x".repeat(4000));
    for _ in 0..4 {
        let _ = stream.write_all(chunk.as_bytes());
    }
    let _ = stream.write_all(b"0\r\n\r\n");
    assert_eq!(crate::client::read_reply(&mut stream).status, 413);
    let long = "x".repeat(200_000);
    let reply = site.request("GET", "/health", &[("x-long", &long)], b"");
    assert!((400..500).contains(&reply.status), "{}", reply.head);
    let many: Vec<(String, String)> = (0..500).map(|i| (format!("x-{i}"), "y".to_string())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert!((400..500).contains(&site.request("GET", "/health", &many, b"").status));
    assert_eq!(site.get("/health").status, 200);
}

#[test]
fn connections_that_end_in_the_middle() {
    let site = Site::plain();
    for bytes in
        ["", "G", "GET / HT", "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\n{\"pro"]
    {
        let mut stream = site.connect();
        stream.write_all(bytes.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
    }
    let junk = site.raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n");
    assert_eq!(junk.status, 400);
    site.wait_for("the connections to end", |s| s.metric("pelton_connections") <= 1.0);
}

#[test]
fn schemas_that_explode_or_make_no_sense() {
    let site = Site::plain();
    let mut nested = json!({ "type": "string" });
    for _ in 0..60 {
        nested = json!({ "type": "object", "properties": { "a": nested.clone() }, "required": ["a"] });
    }
    let wide: serde_json::Map<String, serde_json::Value> =
        (0..3000).map(|i| (format!("p{i}"), json!({ "type": "string", "pattern": "^(a|b|c){1,50}$" }))).collect();
    for schema in [
        json!({ "type": "strange" }),
        json!({ "$ref": "#/nowhere" }),
        json!({ "$ref": "https://example.org/schema" }),
        json!({ "type": "string", "pattern": "(a{1000}){1000}" }),
        json!({ "type": "string", "minLength": 100_000_000 }),
        json!({ "type": "object", "properties": wide }),
        nested,
    ] {
        let format = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } });
        let body = json!({ "model": TINY, "messages": [{ "role": "user", "content": "x" }], "max_tokens": 3, "response_format": format });
        let begun = std::time::Instant::now();
        let reply = site.post("/v1/chat/completions", &body);
        let shown: String = schema.to_string().chars().take(80).collect();
        assert!([200, 400].contains(&reply.status), "{shown}: {}", reply.text());
        assert!(begun.elapsed().as_secs() < 20, "{shown}");
    }
    assert_eq!(site.get("/health").status, 200);
}

#[test]
fn paths_that_are_not_there() {
    let site = Site::plain();
    for path in ["/v2", "/v1/chat/completions/", "/%00", "/../../etc/passwd", "/v1/models/%ff", "//", "/api"] {
        let reply = site.get(path);
        assert!([400, 404].contains(&reply.status), "{path}: {}", reply.status);
        assert!(!reply.json()["error"].is_null(), "{path}: {}", reply.text());
    }
}

/// Requests as they should be, from which others are made.
const REQUESTS: [(&str, &str); 7] = [
    (
        "/v1/chat/completions",
        r#"{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"x"}]},{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]},{"role":"tool","tool_call_id":"1","content":"y"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}],"tool_choice":"auto","stop":["a","b"],"logit_bias":{"5":-1.5},"seed":-3,"n":2,"temperature":0.5,"response_format":{"type":"text"},"stream":true,"stream_options":{"include_usage":true}}"#,
    ),
    ("/v1/completions", r#"{"prompt":["a","b"],"max_tokens":5,"logprobs":2,"echo":true,"top_p":0.5,"stop":"x"}"#),
    (
        "/v1/responses",
        r#"{"input":[{"role":"user","content":"x"},{"type":"function_call","call_id":"1","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"1","output":"y"}],"tools":[{"type":"function","name":"f"}],"text":{"format":{"type":"json_object"}}}"#,
    ),
    (
        "/v1/messages",
        r#"{"model":"m","max_tokens":5,"system":"s","messages":[{"role":"user","content":"x"},{"role":"assistant","content":[{"type":"tool_use","id":"1","name":"f","input":{"a":1}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"1","content":"y"}]}],"tools":[{"name":"f","input_schema":{"type":"object"}}],"tool_choice":{"type":"any"}}"#,
    ),
    (
        "/api/chat",
        r#"{"model":"m","messages":[{"role":"user","content":"x"}],"options":{"num_predict":-1,"stop":["x"]},"format":"json","think":true}"#,
    ),
    ("/api/generate", r#"{"model":"m","prompt":"x","system":"s","options":{"seed":1},"raw":false}"#),
    ("/apply-template", r#"{"messages":[{"role":"system","content":"x"}],"tools":[]}"#),
];

#[test]
fn changed_requests_never_panic() {
    let splices: [&[u8]; 16] = [
        b"null",
        b"-1",
        b"1e400",
        b"18446744073709551616",
        b"[]",
        b"{}",
        b"\"",
        b"\\",
        b"\xff",
        b"\\ud800",
        b"true",
        b"0.0",
        b"[[[[",
        b"}",
        b",",
        b":",
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % n as u64) as usize
    };
    let mut accepted = 0;
    for (path, request) in REQUESTS {
        assert!(pelton_server::parses(path, request.as_bytes()), "{path}");
        for _ in 0..3000 {
            let mut bytes = request.as_bytes().to_vec();
            for _ in 0..=draw(3) {
                let at = draw(bytes.len());
                let end = (at + draw(12)).min(bytes.len());
                match draw(3) {
                    0 => drop(bytes.splice(at..end, splices[draw(splices.len())].iter().copied())),
                    1 => drop(bytes.drain(at..end)),
                    _ => bytes[at] = draw(256) as u8,
                }
                if bytes.is_empty() {
                    break;
                }
            }
            accepted += usize::from(pelton_server::parses(path, &bytes));
        }
    }
    assert!(accepted > 100, "{accepted}: the changes are too coarse to reach far");
}

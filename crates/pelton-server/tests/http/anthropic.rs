//! Anthropic's dialect.

use serde_json::{Value, json};

use crate::client::{Site, TINY};

fn ask(extra: Value) -> Value {
    let mut body = json!({
        "model": TINY,
        "max_tokens": 10,
        "temperature": 0,
        "system": [{ "type": "text", "text": "You write documentation." }],
        "messages": [{ "role": "user", "content": [{ "type": "text", "text": "fn add(a: i32, b: i32) -> i32" }] }],
    });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn tools() -> Value {
    let schema = json!({ "type": "object", "properties": { "city": { "enum": ["Oslo"] } }, "required": ["city"], "additionalProperties": false });
    json!([{ "name": "get_weather", "description": "The weather", "input_schema": schema }])
}

#[test]
fn a_message_and_its_stream() {
    let site = Site::plain();
    let reply = site.post("/v1/messages", &ask(json!({}))).ok();
    assert_eq!((&reply["type"], &reply["role"]), (&json!("message"), &json!("assistant")));
    let text = reply["content"][0]["text"].as_str().unwrap();
    assert!(!text.is_empty() && reply["content"][0]["type"] == "text");
    assert!(["end_turn", "max_tokens"].contains(&reply["stop_reason"].as_str().unwrap()));
    assert!(reply["usage"]["output_tokens"].as_u64().unwrap() > 0);
    let stream = site.post("/v1/messages", &ask(json!({ "stream": true })));
    let events = stream.events();
    let kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(kinds[..2], ["message_start", "content_block_start"]);
    assert_eq!(kinds[kinds.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
    let joined: String = events.iter().filter_map(|e| e["delta"]["text"].as_str()).collect();
    assert_eq!(joined, text);
    assert_eq!(events[events.len() - 2]["delta"]["stop_reason"], reply["stop_reason"]);
    for (line, kind) in stream.text().lines().filter_map(|l| l.strip_prefix("event: ")).zip(kinds) {
        assert_eq!(line, kind);
    }
}

#[test]
fn tools_and_their_results() {
    let site = Site::plain();
    let choice = json!({ "tools": tools(), "tool_choice": { "type": "any", "disable_parallel_tool_use": true }, "max_tokens": 100 });
    let reply = site.post("/v1/messages", &ask(choice.clone())).ok();
    assert_eq!(reply["stop_reason"], "tool_use");
    let call = &reply["content"][0];
    assert_eq!(
        (&call["type"], &call["name"], &call["input"]),
        (&json!("tool_use"), &json!("get_weather"), &json!({ "city": "Oslo" }))
    );
    let mut streamed = ask(choice);
    streamed["stream"] = json!(true);
    let events = site.post("/v1/messages", &streamed).events();
    let start = events.iter().find(|e| e["type"] == "content_block_start").unwrap();
    assert_eq!(
        (&start["content_block"]["name"], &start["content_block"]["input"]),
        (&json!("get_weather"), &json!({}))
    );
    let input: String = events.iter().filter_map(|e| e["delta"]["partial_json"].as_str()).collect();
    assert_eq!(serde_json::from_str::<Value>(&input).unwrap(), json!({ "city": "Oslo" }));
    let messages = json!([
        { "role": "user", "content": "Weather?" },
        { "role": "assistant", "content": [{ "type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": { "city": "Oslo" } }] },
        { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "toolu_1", "content": [{ "type": "text", "text": "sunny" }] }] },
    ]);
    site.post("/v1/messages", &ask(json!({ "messages": messages, "tools": tools() }))).ok();
}

#[test]
fn tokens_are_counted_as_they_are_used() {
    let site = Site::plain();
    let mut body = ask(json!({}));
    body.as_object_mut().unwrap().remove("max_tokens");
    let counted = site.post("/v1/messages/count_tokens", &body).ok()["input_tokens"].as_u64().unwrap();
    let usage = site.post("/v1/messages", &ask(json!({}))).ok()["usage"].clone();
    assert_eq!(usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap(), counted);
}

#[test]
fn words_that_begin_the_answer_and_strings_that_end_it() {
    let site = Site::plain();
    let messages = json!([{ "role": "user", "content": "fn add(a: i32)" }, { "role": "assistant", "content": "Adds" }]);
    let reply = site.post("/v1/messages", &ask(json!({ "messages": messages }))).ok();
    let text = reply["content"][0]["text"].as_str().unwrap().to_string();
    assert!(text.starts_with(' ') || text.is_empty(), "{text:?}");
    let word = text.split_whitespace().nth(1).unwrap();
    let reply = site.post("/v1/messages", &ask(json!({ "messages": messages, "stop_sequences": [word] }))).ok();
    assert_eq!((&reply["stop_reason"], &reply["stop_sequence"]), (&json!("stop_sequence"), &json!(word)));
}

#[test]
fn errors_have_anthropics_shape() {
    let site = Site::plain();
    for (extra, status, kind) in [
        (json!({ "max_tokens": 0 }), 400, "invalid_request_error"),
        (json!({ "messages": [] }), 400, "invalid_request_error"),
        (json!({ "messages": [{ "role": "system", "content": "x" }] }), 400, "invalid_request_error"),
        (json!({ "messages": [{ "role": "user", "content": [{ "type": "image" }] }] }), 400, "invalid_request_error"),
        (json!({ "model": "nobody" }), 404, "not_found_error"),
    ] {
        let reply = site.post("/v1/messages", &ask(extra.clone()));
        assert_eq!((reply.status, &reply.json()["error"]["type"]), (status, &json!(kind)), "{extra}: {}", reply.text());
        assert_eq!(reply.json()["type"], "error");
    }
    assert_eq!(site.get("/v1/messages").json()["type"], "error");
}

//! Ollama's dialect.

use serde_json::{Value, json};

use crate::client::{Reply, Site, TINY};

fn lines(reply: &Reply) -> Vec<Value> {
    assert_eq!(
        (reply.status, reply.header("content-type").as_deref()),
        (200, Some("application/x-ndjson")),
        "{}",
        reply.text()
    );
    reply.text().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn a_chat_and_its_stream() {
    let site = Site::plain();
    let mut body = json!({
        "model": "tiny:latest",
        "messages": [{ "role": "user", "content": "fn add(a: i32, b: i32) -> i32" }],
        "options": { "num_predict": 10, "temperature": 0, "num_ctx": 4096 },
    });
    let streamed = lines(&site.post("/api/chat", &body));
    body["stream"] = json!(false);
    let whole = site.post("/api/chat", &body).ok();
    let joined: String = streamed.iter().map(|l| l["message"]["content"].as_str().unwrap()).collect();
    assert_eq!(joined, whole["message"]["content"].as_str().unwrap());
    let last = streamed.last().unwrap();
    assert_eq!((&last["done"], &last["eval_count"]), (&json!(true), &whole["eval_count"]));
    assert!(streamed[..streamed.len() - 1].iter().all(|l| l["done"] == false));
    assert!(whole["total_duration"].as_u64().unwrap() > 0 && whole["done_reason"].is_string());
    assert_eq!(whole["model"], "tiny:latest");
    // No message loads the model.
    assert_eq!(site.post("/api/chat", &json!({ "model": TINY })).ok()["done_reason"], "load");
}

#[test]
fn generate_raw_and_in_a_form() {
    let site = Site::plain();
    let ask = |extra: Value| {
        let mut body = json!({ "model": TINY, "prompt": "Returns the", "stream": false, "options": { "num_predict": 40, "temperature": 0 } });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        site.post("/api/generate", &body)
    };
    let raw = ask(json!({ "raw": true })).ok();
    assert!(!raw["response"].as_str().unwrap().is_empty());
    assert_ne!(raw["prompt_eval_count"], ask(json!({})).ok()["prompt_eval_count"]);
    let schema = json!({ "type": "object", "properties": { "ok": { "type": "boolean" } }, "required": ["ok"], "additionalProperties": false });
    let formed = ask(json!({ "format": schema })).ok();
    let value: Value = serde_json::from_str(formed["response"].as_str().unwrap()).unwrap();
    assert!(value["ok"].is_boolean());
    assert_eq!(ask(json!({ "format": "yaml" })).status, 400);
    assert_eq!(ask(json!({ "suffix": "x" })).status, 400);
}

#[test]
fn tools_are_read() {
    let site = Site::plain();
    let tool = json!({ "type": "function", "function": { "name": "look", "description": "Looks", "parameters": { "type": "object" } } });
    let call = json!({ "function": { "name": "look", "arguments": { "at": "sky" } } });
    let messages = json!([
        { "role": "user", "content": "Look." },
        { "role": "assistant", "content": "", "tool_calls": [call] },
        { "role": "tool", "content": "blue", "tool_name": "look" },
    ]);
    let body = json!({ "model": TINY, "messages": messages, "tools": [tool], "stream": false, "options": { "num_predict": 4 } });
    site.post("/api/chat", &body).ok();
}

#[test]
fn models_are_listed_shown_and_embed() {
    let site = Site::plain();
    let tags = site.get("/api/tags").ok();
    assert_eq!(tags["models"][0]["model"], TINY);
    let shown = site.post("/api/show", &json!({ "model": TINY })).ok();
    assert_eq!(shown["details"]["family"], shown["model_info"]["general.architecture"]);
    assert!(shown["capabilities"].as_array().unwrap().contains(&json!("completion")));
    assert_eq!(site.get("/api/ps").ok()["models"][0]["name"], TINY);
    assert!(site.get("/api/version").ok()["version"].is_string());
    let two = site.post("/api/embed", &json!({ "model": TINY, "input": ["a", "b"] })).ok();
    assert_eq!(two["embeddings"].as_array().unwrap().len(), 2);
    let old = site.post("/api/embeddings", &json!({ "model": TINY, "prompt": "a" })).ok();
    assert_eq!(old["embedding"], two["embeddings"][0]);
}

#[test]
fn errors_have_ollamas_shape() {
    let site = Site::plain();
    for (path, body, status) in [
        ("/api/chat", json!({ "model": "nobody", "messages": [] }), 404),
        ("/api/chat", json!({ "messages": [] }), 400),
        ("/api/chat", json!({ "model": TINY, "messages": [{ "role": "x", "content": "" }] }), 400),
        ("/api/show", json!({}), 400),
        ("/api/nothing", json!({}), 404),
    ] {
        let reply = site.post(path, &body);
        assert!(reply.status == status && reply.json()["error"].is_string(), "{path} {body}: {}", reply.text());
    }
}

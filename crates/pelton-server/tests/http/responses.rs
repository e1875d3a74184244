//! `/v1/responses`.

use serde_json::{Value, json};

use crate::client::{Site, TINY};

#[test]
fn a_response_and_its_stream() {
    let site = Site::plain();
    let mut body = json!({ "model": TINY, "input": "fn add(a: i32, b: i32) -> i32", "max_output_tokens": 10, "temperature": 0, "instructions": "Document it." });
    let whole = site.post("/v1/responses", &body).ok();
    assert_eq!(whole["object"], "response");
    let message = &whole["output"][0];
    assert_eq!((&message["type"], &message["content"][0]["type"]), (&json!("message"), &json!("output_text")));
    let text = message["content"][0]["text"].as_str().unwrap();
    assert!(!text.is_empty());
    let sum = whole["usage"]["input_tokens"].as_u64().unwrap() + whole["usage"]["output_tokens"].as_u64().unwrap();
    assert_eq!(whole["usage"]["total_tokens"], sum);
    body["stream"] = json!(true);
    let events = site.post("/v1/responses", &body).events();
    for (i, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], i);
    }
    let kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(
        kinds[..4],
        ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
    );
    let deltas = events.iter().filter(|e| e["type"] == "response.output_text.delta");
    let joined: String = deltas.map(|e| e["delta"].as_str().unwrap()).collect();
    assert_eq!(joined, text);
    let last = &events.last().unwrap()["response"];
    assert_eq!((&last["status"], &last["output"][0]["content"]), (&whole["status"], &message["content"]));
    if whole["status"] == "incomplete" {
        assert_eq!(whole["incomplete_details"]["reason"], "max_output_tokens");
    }
}

#[test]
fn functions_are_called() {
    let site = Site::plain();
    let schema = json!({ "type": "object", "properties": { "x": { "enum": [1, 2] } }, "required": ["x"], "additionalProperties": false });
    let tools =
        json!([{ "type": "function", "name": "pick", "description": "Picks", "parameters": schema, "strict": true }]);
    let mut body = json!({ "model": TINY, "input": "Pick.", "tools": tools, "tool_choice": { "type": "function", "name": "pick" }, "max_output_tokens": 100 });
    let whole = site.post("/v1/responses", &body).ok();
    let call = &whole["output"][0];
    assert_eq!(
        (&call["type"], &call["name"], &call["status"]),
        (&json!("function_call"), &json!("pick"), &json!("completed"))
    );
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
    assert!([1, 2].contains(&arguments["x"].as_i64().unwrap()));
    body["stream"] = json!(true);
    let events = site.post("/v1/responses", &body).events();
    let done = events.iter().find(|e| e["type"] == "response.function_call_arguments.done").unwrap();
    let deltas = events.iter().filter(|e| e["type"] == "response.function_call_arguments.delta");
    let joined: String = deltas.map(|e| e["delta"].as_str().unwrap()).collect();
    assert_eq!(done["arguments"].as_str().unwrap(), joined);
    // The conversation goes on with the result.
    let input = json!([
        { "role": "user", "content": [{ "type": "input_text", "text": "Pick." }] },
        { "type": "function_call", "call_id": call["call_id"], "name": "pick", "arguments": call["arguments"] },
        { "type": "function_call_output", "call_id": call["call_id"], "output": "done" },
    ]);
    site.post("/v1/responses", &json!({ "input": input, "max_output_tokens": 4 })).ok();
}

#[test]
fn forms_and_errors() {
    let site = Site::plain();
    let format = json!({ "type": "json_schema", "name": "n", "schema": { "type": "boolean" } });
    let body = json!({ "input": "x", "text": { "format": format }, "max_output_tokens": 20 });
    let text = site.post("/v1/responses", &body).ok()["output"][0]["content"][0]["text"].clone();
    assert!(["true", "false"].contains(&text.as_str().unwrap().trim()), "{text}");
    for wrong in [
        json!({ "input": 5 }),
        json!({}),
        json!({ "input": "x", "previous_response_id": "resp_1" }),
        json!({ "input": [] }),
        json!({ "input": [{ "type": "file" }] }),
    ] {
        let reply = site.post("/v1/responses", &wrong);
        assert!(reply.status == 400 && reply.json()["error"]["message"].is_string(), "{wrong}: {}", reply.text());
    }
}

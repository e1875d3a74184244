//! Tools, and answers of a given form.

use serde_json::{Value, json};

use crate::client::{Site, TINY};

fn ask(extra: Value) -> Value {
    let weather = json!({
        "type": "object",
        "properties": { "city": { "enum": ["Oslo", "Rome"] }, "days": { "type": "integer", "minimum": 1, "maximum": 9 } },
        "required": ["city", "days"],
        "additionalProperties": false,
    });
    let tools = json!([
        { "type": "function", "function": { "name": "get_weather", "description": "The weather", "parameters": weather } },
        { "type": "function", "function": { "name": "stop" } },
    ]);
    let mut body = json!({
        "model": TINY,
        "messages": [{ "role": "user", "content": "What is the weather in Oslo?" }],
        "tools": tools,
        "max_tokens": 120,
    });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn check_weather(arguments: &str) {
    let arguments: Value = serde_json::from_str(arguments).unwrap_or_else(|e| panic!("{e}: {arguments}"));
    assert!(["Oslo", "Rome"].contains(&arguments["city"].as_str().unwrap()), "{arguments}");
    assert!((1..=9).contains(&arguments["days"].as_i64().unwrap()), "{arguments}");
}

#[test]
fn a_named_tool_is_called() {
    let site = Site::plain();
    let choice = json!({ "tool_choice": { "type": "function", "function": { "name": "get_weather" } } });
    let reply = site.post("/v1/chat/completions", &ask(choice.clone())).ok();
    let message = &reply["choices"][0]["message"];
    assert_eq!((&message["content"], &reply["choices"][0]["finish_reason"]), (&Value::Null, &json!("tool_calls")));
    let calls = message["tool_calls"].as_array().unwrap();
    assert_eq!(
        (calls.len(), &calls[0]["type"], &calls[0]["function"]["name"]),
        (1, &json!("function"), &json!("get_weather"))
    );
    assert!(calls[0]["id"].as_str().unwrap().starts_with("call_"));
    check_weather(calls[0]["function"]["arguments"].as_str().unwrap());
    // Streamed: the name first, then the arguments in pieces.
    let mut streamed = ask(choice);
    streamed["stream"] = json!(true);
    let events = site.post("/v1/chat/completions", &streamed).events();
    let deltas: Vec<&Value> =
        events.iter().map(|e| &e["choices"][0]["delta"]["tool_calls"][0]).filter(|c| !c.is_null()).collect();
    assert_eq!(deltas[0]["function"], json!({ "name": "get_weather", "arguments": "" }));
    assert!(deltas.len() > 2, "{deltas:?}");
    let arguments: String = deltas.iter().filter_map(|c| c["function"]["arguments"].as_str()).collect();
    check_weather(&arguments);
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    assert!(events.iter().all(|e| e["choices"][0]["delta"]["content"].as_str().unwrap_or("").is_empty()));
}

#[test]
fn one_of_the_tools_is_required() {
    let site = Site::plain();
    let reply = site
        .post("/v1/chat/completions", &ask(json!({ "tool_choice": "required", "parallel_tool_calls": false })))
        .ok();
    let calls = reply["choices"][0]["message"]["tool_calls"].as_array().unwrap();
    assert_eq!(calls.len(), 1);
    assert!(["get_weather", "stop"].contains(&calls[0]["function"]["name"].as_str().unwrap()));
    // Where the request does not say, several are allowed, and no more than 16 come.
    let several = ask(json!({ "tool_choice": "required", "max_tokens": 480 }));
    let several = site.post("/v1/chat/completions", &several).ok();
    let n = several["choices"][0]["message"]["tool_calls"].as_array().unwrap().len();
    assert!((1..=16).contains(&n), "{n} calls");
    let free = site.post("/v1/chat/completions", &ask(json!({ "max_tokens": 8 }))).ok();
    assert!(free["choices"][0]["message"]["content"].is_string());
    let none = site.post("/v1/chat/completions", &ask(json!({ "tool_choice": "none", "max_tokens": 8 }))).ok();
    assert!(none["usage"]["prompt_tokens"].as_u64().unwrap() < free["usage"]["prompt_tokens"].as_u64().unwrap());
}

#[test]
fn a_form_and_tools_together() {
    let site = Site::plain();
    let schema = json!({ "type": "object", "properties": { "ok": { "type": "boolean" } }, "required": ["ok"], "additionalProperties": false });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "n", "schema": schema } });
    let reply = site.post("/v1/chat/completions", &ask(json!({ "response_format": format }))).ok();
    let message = &reply["choices"][0]["message"];
    match message["tool_calls"].as_array() {
        Some(calls) => assert!(!calls.is_empty()),
        None => {
            let value: Value = serde_json::from_str(message["content"].as_str().unwrap()).unwrap();
            assert!(value["ok"].is_boolean());
        }
    }
    let refused = site.post("/v1/chat/completions", &ask(json!({ "regex": "a" })));
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("tool_choice")));
}

#[test]
fn a_conversation_with_calls_is_understood() {
    let site = Site::plain();
    let call = json!({ "id": "call_1", "type": "function", "function": { "name": "get_weather", "arguments": "{\"city\": \"Oslo\"}" } });
    let messages = json!([
        { "role": "user", "content": "Weather?" },
        { "role": "assistant", "content": null, "tool_calls": [call] },
        { "role": "tool", "tool_call_id": "call_1", "content": "sunny" },
    ]);
    site.post("/v1/chat/completions", &ask(json!({ "messages": messages, "max_tokens": 4 }))).ok();
}

#[test]
fn bad_tools_are_refused_by_name() {
    let site = Site::plain();
    let tool = |function: Value| json!([{ "type": "function", "function": function }]);
    for (tools, choice) in [
        (tool(json!({ "name": "" })), json!("auto")),
        (tool(json!({ "name": "a b" })), json!("auto")),
        (tool(json!({ "name": "x", "parameters": [] })), json!("auto")),
        (tool(json!({ "name": 5 })), json!("auto")),
        (json!([{ "type": "magic", "function": { "name": "x" } }]), json!("auto")),
        (tool(json!({ "name": "x" })), json!("sometimes")),
        (tool(json!({ "name": "x" })), json!({ "type": "function", "function": { "name": "y" } })),
        (tool(json!({ "name": "x", "parameters": { "type": "nonsense" } })), json!("required")),
    ] {
        let reply = site.post("/v1/chat/completions", &ask(json!({ "tools": tools, "tool_choice": choice })));
        assert_eq!(reply.status, 400, "{tools} {choice}: {}", reply.text());
    }
}

#[test]
fn answers_of_a_given_form() {
    let site = Site::plain();
    let content = |extra: Value| {
        let mut body = ask(extra);
        body.as_object_mut().unwrap().remove("tools");
        let reply = site.post("/v1/chat/completions", &body).ok();
        reply["choices"][0]["message"]["content"].as_str().unwrap().to_string()
    };
    let schema = json!({
        "type": "object",
        "properties": { "kind": { "enum": ["a", "b"] }, "size": { "type": "boolean" } },
        "required": ["kind", "size"],
        "additionalProperties": false,
    });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "thing", "strict": true, "schema": schema } });
    let value: Value = serde_json::from_str(&content(json!({ "response_format": format }))).unwrap();
    assert!(["a", "b"].contains(&value["kind"].as_str().unwrap()) && value["size"].is_boolean(), "{value}");
    let matched = content(json!({ "regex": "[0-9]{3}-[0-9]{2}" }));
    assert!(matched.len() == 6 && matched.as_bytes()[3] == b'-', "{matched}");
    assert!(["yes", "no"].contains(&content(json!({ "grammar": "start: \"yes\" | \"no\"" })).as_str()));
    let object = content(json!({ "response_format": { "type": "json_object" }, "max_tokens": 300 }));
    assert!(object.trim_start().starts_with('{'), "{object}");
    for wrong in [
        json!({ "response_format": { "type": "json_schema" } }),
        json!({ "response_format": { "type": "json_schema", "json_schema": { "schema": 5 } } }),
        json!({ "response_format": { "type": "xml" } }),
        json!({ "response_format": { "type": "text", "json_schema": { "schema": {} }, "schema": [null] } }),
        json!({ "regex": "(" }),
        json!({ "grammar": "start: nowhere" }),
        json!({ "regex": "a", "grammar": "start: \"a\"" }),
    ] {
        let mut body = ask(wrong.clone());
        body.as_object_mut().unwrap().remove("tools");
        let reply = site.post("/v1/chat/completions", &body);
        assert_eq!(reply.status, 400, "{wrong}: {}", reply.text());
    }
}

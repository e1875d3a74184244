//! `/v1/chat/completions`: shapes, streams, sampling, limits.

use std::io::Read;

use serde_json::{Value, json};

use crate::client::{Site, TINY};

fn question(extra: Value) -> Value {
    let mut body = json!({
        "model": TINY,
        "messages": [{ "role": "user", "content": "fn add(a: i32, b: i32) -> i32" }],
        "max_tokens": 12,
        "temperature": 0,
    });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn content(reply: &Value) -> String {
    reply["choices"][0]["message"]["content"].as_str().unwrap().to_string()
}

#[test]
fn an_answer_has_openais_shape_and_our_timings() {
    let site = Site::plain();
    let reply = site.post("/v1/chat/completions", &question(json!({}))).ok();
    assert_eq!(reply["object"], "chat.completion");
    assert!(reply["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!((&reply["model"], &reply["choices"][0]["index"]), (&json!(TINY), &json!(0)));
    assert_eq!(reply["choices"][0]["message"]["role"], "assistant");
    assert!(!content(&reply).is_empty());
    let usage = &reply["usage"];
    let sum = usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], sum);
    let timings = &reply["timings"];
    assert!(timings["ttft_ms"].as_f64().unwrap() > 0.0);
    // Whether guesses pay is measured, so there may be none; but both counts are told, here and to Prometheus.
    let drafted = timings["drafted_tokens"].as_u64().unwrap();
    assert!(timings["accepted_tokens"].as_u64().unwrap() <= drafted);
    let metrics = site.get("/metrics").text();
    let told = metrics.lines().find_map(|l| l.strip_prefix("pelton_drafted_tokens_total{model=\"tiny\"} "));
    assert!(told.unwrap().parse::<u64>().unwrap() >= drafted, "{told:?}");
    assert!(["stop", "length"].contains(&reply["choices"][0]["finish_reason"].as_str().unwrap()));
    // No model is the first model; the same question again finds its beginning in the cache.
    let mut again = question(json!({}));
    again["messages"][0]["content"] = json!("a long enough beginning ".repeat(12));
    again.as_object_mut().unwrap().remove("model");
    assert_eq!(site.post("/v1/chat/completions", &again).ok()["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let second = site.post("/v1/chat/completions", &again).ok();
    assert!(second["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() >= 32, "{second}");
}

#[test]
fn chunks_put_together_are_the_answer() {
    let site = Site::plain();
    let whole = site.post("/v1/chat/completions", &question(json!({}))).ok();
    let streamed = question(json!({ "stream": true, "stream_options": { "include_usage": true } }));
    let reply = site.post("/v1/chat/completions", &streamed);
    assert!(reply.text().ends_with("data: [DONE]\n\n"));
    let events = reply.events();
    assert_eq!(events[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    let text: String = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, content(&whole));
    let last = &events[events.len() - 1];
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
    assert!(last["timings"]["predicted_per_second"].is_number());
    let end = &events[events.len() - 2]["choices"][0];
    assert_eq!((&end["delta"], &end["finish_reason"]), (&json!({}), &whole["choices"][0]["finish_reason"]));
    for event in &events {
        assert_eq!((&event["object"], &event["id"]), (&json!("chat.completion.chunk"), &events[0]["id"]));
        assert!(event.get("usage").is_some(), "{event}");
    }
    // Without include_usage there is none.
    let plain = site.post("/v1/chat/completions", &question(json!({ "stream": true }))).events();
    assert!(plain.iter().all(|e| e.get("usage").is_none() && e["choices"] != json!([])));
}

#[test]
fn choices_seeds_stops_and_biases() {
    let site = Site::plain();
    let ask = |extra: Value| site.post("/v1/chat/completions", &question(extra)).ok();
    let seeded = json!({ "temperature": 1.2, "seed": 7, "n": 3 });
    let first = ask(seeded.clone());
    assert_eq!(first["choices"].as_array().unwrap().len(), 3);
    assert_eq!(first["choices"], ask(seeded)["choices"]);
    assert_ne!(first["choices"][0]["message"], first["choices"][1]["message"]);
    let whole = content(&ask(json!({})));
    let word = whole.split_whitespace().nth(1).unwrap();
    let cut = ask(json!({ "stop": [word] }));
    assert_eq!(content(&cut), whole[..whole.find(word).unwrap()]);
    assert_eq!(cut["choices"][0]["finish_reason"], "stop");
    // The likeliest first token, banned, is not the first token.
    let with = ask(json!({ "logprobs": true, "top_logprobs": 2 }));
    let entry = &with["choices"][0]["logprobs"]["content"][0];
    let top = entry["top_logprobs"].as_array().unwrap();
    assert_eq!((top.len(), &top[0]["token"]), (2, &entry["token"]));
    assert!(entry["logprob"].as_f64().unwrap() <= 0.0 && entry["bytes"].is_array());
    let text = entry["token"].as_str().unwrap();
    let ids = site.post("/tokenize", &json!({ "content": text })).ok()["tokens"].clone();
    let banned = ask(json!({ "logit_bias": { ids[0].to_string(): -100 }, "logprobs": true }));
    assert_ne!(banned["choices"][0]["logprobs"]["content"][0]["token"], entry["token"]);
}

#[test]
fn streamed_choices_and_logprobs() {
    let site = Site::plain();
    let extra = json!({ "stream": true, "n": 2, "temperature": 1.0, "seed": 3, "logprobs": true, "top_logprobs": 1 });
    let events = site.post("/v1/chat/completions", &question(extra)).events();
    for choice in 0..2 {
        let of = |e: &&Value| e["choices"][0]["index"] == choice;
        let own: Vec<_> = events.iter().filter(of).collect();
        assert_eq!(own[0]["choices"][0]["delta"]["role"], "assistant");
        assert!(own.last().unwrap()["choices"][0]["finish_reason"].is_string());
        let tokens: usize =
            own.iter().filter_map(|e| e["choices"][0]["logprobs"]["content"].as_array()).map(Vec::len).sum();
        assert!(tokens > 0 && tokens <= 12, "{tokens}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let site = Site::plain();
    let wrong = |extra: Value| {
        let reply = site.post("/v1/chat/completions", &question(extra));
        let error = reply.json()["error"].clone();
        assert!(error["message"].is_string() && error["type"].is_string(), "{error}");
        (
            reply.status,
            error["param"].as_str().unwrap_or("").to_string(),
            error["message"].as_str().unwrap().to_string(),
        )
    };
    for (extra, param) in [
        (json!({ "temperature": "hot" }), "temperature"),
        (json!({ "repetition_penalty": 101 }), "repetition_penalty"),
        (json!({ "frequency_penalty": 101.0 }), "frequency_penalty"),
        (json!({ "presence_penalty": -100.5 }), "presence_penalty"),
        (json!({ "temperature": 101 }), "temperature"),
        (json!({ "messages": [{ "role": "wizard", "content": "x" }] }), "messages[0].role"),
        (json!({ "messages": [] }), "messages"),
        (json!({ "messages": [{ "role": "user" }] }), "messages[0].content"),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }] }),
            "messages[0].content[0].type",
        ),
        (json!({ "max_tokens": 0 }), "max_tokens"),
        (json!({ "max_completion_tokens": 0 }), "max_completion_tokens"),
        (json!({ "max_tokens": -1 }), "max_tokens"),
        (json!({ "n": 0 }), "n"),
        (json!({ "n": 1_000_000 }), "n"),
        (json!({ "top_logprobs": 3 }), "top_logprobs"),
        (json!({ "logprobs": true, "top_logprobs": 21 }), "top_logprobs"),
        (json!({ "stop": [""] }), "stop"),
        (json!({ "logit_bias": { "x": 1 } }), "logit_bias"),
        (json!({ "logit_bias": { "999999": 1 } }), "logit_bias"),
        (json!({ "timeout": 0 }), "timeout"),
        (json!({ "tool_choice": "required" }), "tool_choice"),
    ] {
        let (status, named, message) = wrong(extra.clone());
        assert_eq!((status, named.as_str()), (400, param), "{extra}: {message}");
    }
    assert!(wrong(json!({ "top_p": 0 })).2.contains("top_p"));
    assert!(wrong(json!({ "temperature": -1 })).2.contains("temperature"));
    assert_eq!(wrong(json!({ "model": "nobody" })).0, 404);
    let long = json!({ "messages": [{ "role": "user", "content": "word ".repeat(2000) }] });
    let (status, _, message) = wrong(long);
    assert!(status == 400 && message.contains("512"), "{message}");
}

#[test]
fn a_client_that_leaves_ends_its_answer() {
    let site = Site::plain();
    let endless = question(json!({ "max_tokens": 400, "ignore_eos": true, "stream": true, "n": 24, "temperature": 1 }));
    let mut stream = site.begin("/v1/chat/completions", &endless);
    let mut some = [0; 64];
    stream.read_exact(&mut some).unwrap();
    drop(stream);
    site.wait_for("the end of the answer", |s| s.metric("pelton_sequences_running") == 0.0);
    assert!(site.metric("pelton_generated_tokens_total") < 9600.0);
    site.wait_for("the count", |s| s.metric("pelton_abandoned_total") == 1.0);
    // Without streaming, too: so much that a busy machine sees it run.
    let waiting = question(json!({ "max_tokens": 900, "ignore_eos": true, "n": 64, "temperature": 1 }));
    let stream = site.begin("/v1/chat/completions", &waiting);
    site.wait_for("the answer", |s| s.metric("pelton_sequences_running") > 0.0);
    drop(stream);
    site.wait_for("the count", |s| s.metric("pelton_abandoned_total") == 2.0);
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let site = Site::start(|_, models| {
        models.sources[0].options.max_seqs = 1;
        models.sources[0].options.max_waiting = 1;
    });
    let long = question(json!({ "max_tokens": 400, "ignore_eos": true }));
    // One runs and one waits: of six that come at once, some have to be refused.
    let replies: Vec<_> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..6).map(|_| scope.spawn(|| site.post("/v1/chat/completions", &long))).collect();
        asked.into_iter().map(|reply| reply.join().unwrap()).collect()
    });
    let refused = replies.iter().find(|reply| reply.status == 429).expect("one of them is refused");
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
    assert!(refused.header("retry-after").unwrap().parse::<u64>().unwrap() > 0);
    assert!(replies.iter().any(|reply| reply.status == 200));
}

#[test]
fn a_deadline_ends_an_answer() {
    let site = Site::plain();
    let long = question(json!({ "max_tokens": 450, "ignore_eos": true, "timeout": 0.02 }));
    let reply = site.post("/v1/chat/completions", &long).ok();
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    assert!(reply["usage"]["completion_tokens"].as_u64().unwrap() < 450, "{reply}");
}

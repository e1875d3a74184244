//! `/v1/completions`, `/v1/embeddings`, `/v1/models` and Pelton's own routes.

use serde_json::{Value, json};

use crate::client::{Site, TINY};

#[test]
fn text_goes_on() {
    let site = Site::plain();
    let body = json!({ "model": TINY, "prompt": "Returns the", "max_tokens": 8, "temperature": 0, "logprobs": 2 });
    let reply = site.post("/v1/completions", &body).ok();
    let choice = &reply["choices"][0];
    let text = choice["text"].as_str().unwrap();
    assert!(text.starts_with(' ') && text.len() > 1, "{text}");
    let logprobs = &choice["logprobs"];
    assert_eq!(logprobs["text_offset"][0], 0);
    let tokens: String = logprobs["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    assert_eq!(tokens, text);
    let mut echoed = body.clone();
    echoed["echo"] = json!(true);
    let refused = site.post("/v1/completions", &echoed);
    assert_eq!(
        (refused.status, &refused.json()["error"]["param"]),
        (400, &json!("echo")),
        "not computed, so not promised"
    );
    echoed.as_object_mut().unwrap().remove("logprobs");
    let echo = site.post("/v1/completions", &echoed).ok();
    let text = format!("Returns the{text}");
    assert_eq!(echo["choices"][0]["text"], *text);
    let mut streamed = echoed;
    streamed["stream"] = json!(true);
    let events = site.post("/v1/completions", &streamed).events();
    let joined: String = events.iter().filter_map(|e| e["choices"][0]["text"].as_str()).collect();
    assert_eq!(joined, text);
    assert_eq!(events[0]["object"], "text_completion");
}

#[test]
fn several_prompts_and_ids() {
    let site = Site::plain();
    let ids = site.post("/tokenize", &json!({ "content": "Returns the" })).ok()["tokens"].clone();
    let ask = |prompt: Value| {
        let body = json!({ "prompt": prompt, "max_tokens": 4, "temperature": 0 });
        site.post("/v1/completions", &body).ok()
    };
    let two = ask(json!(["Returns the", "Creates a"]));
    assert_eq!(two["choices"].as_array().unwrap().len(), 2);
    assert_eq!(two["choices"][1]["index"], 1);
    assert_eq!(two["choices"][0]["text"], ask(json!(ids))["choices"][0]["text"]);
    assert_eq!(two["choices"][0]["text"], ask(json!([ids]))["choices"][0]["text"]);
    for wrong in [json!(""), json!([]), json!([[]]), json!([99999999]), json!({}), json!(vec!["x"; 200])] {
        let reply = site.post("/v1/completions", &json!({ "prompt": wrong }));
        assert_eq!(reply.status, 400, "{wrong}: {}", reply.text());
    }
}

#[test]
fn embeddings_in_both_encodings() {
    let site = Site::plain();
    let body = json!({ "model": TINY, "input": ["one thing", "another thing", "one thing"] });
    let reply = site.post("/v1/embeddings", &body).ok();
    let vector = |i: usize| -> Vec<f64> {
        reply["data"][i]["embedding"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    };
    let length: f64 = vector(0).iter().map(|v| v * v).sum();
    assert!((length - 1.0).abs() < 1e-3, "{length}");
    assert_eq!(vector(0), vector(2));
    assert_ne!(vector(0), vector(1));
    assert!(reply["usage"]["prompt_tokens"].as_u64().unwrap() >= 6);
    let coded = json!({ "input": "one thing", "encoding_format": "base64" });
    let coded = site.post("/v1/embeddings", &coded).ok()["data"][0]["embedding"].as_str().unwrap().len();
    assert_eq!(coded, (vector(0).len() * 4).div_ceil(3) * 4, "4 bytes a number, 4 letters for 3 bytes");
    for wrong in [json!({ "input": [] }), json!({ "input": "" }), json!({ "input": "x", "dimensions": 3 }), json!({})] {
        assert_eq!(site.post("/v1/embeddings", &wrong).status, 400, "{wrong}");
    }
}

#[test]
fn too_many_logprobs_are_refused_by_their_name() {
    let site = Site::plain();
    let reply = site.post("/v1/completions", &json!({ "prompt": "x", "logprobs": 21 }));
    assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("logprobs")), "{}", reply.text());
}

#[test]
fn models_are_listed() {
    let site = Site::plain();
    let list = site.get("/v1/models").ok();
    assert_eq!((&list["object"], &list["data"][0]["id"]), (&json!("list"), &json!(TINY)));
    assert_eq!((&list["data"][0]["status"], &list["data"][0]["max_context"]), (&json!("loaded"), &json!(512)));
    assert_eq!(site.get("/v1/models/tiny").ok(), list["data"][0]);
    assert_eq!(site.get("/v1/models/other").status, 404);
    assert_eq!(site.get("/health").ok(), json!({ "status": "ok" }));
}

#[test]
fn tokens_there_and_back() {
    let site = Site::plain();
    let text = "naïve <|im_end|> 🚀";
    let reply = site.post("/tokenize", &json!({ "content": text, "with_pieces": true })).ok();
    assert_eq!(reply["count"], reply["tokens"].as_array().unwrap().len());
    let back = site.post("/detokenize", &json!({ "tokens": reply["tokens"] })).ok();
    assert_eq!(back["content"], text);
    let parsed = site.post("/tokenize", &json!({ "content": text, "parse_special": true })).ok();
    assert!(parsed["count"].as_u64() < reply["count"].as_u64());
    assert_eq!(site.post("/detokenize", &json!({ "tokens": [4_000_000_000u32] })).status, 400);
    let messages = json!([{ "role": "user", "content": "hello <|im_end|>" }]);
    let prompt = site.post("/apply-template", &json!({ "messages": messages })).ok();
    let rendered = prompt["prompt"].as_str().unwrap();
    assert!(rendered.contains("<|im_start|>user\nhello <|im_end|><|im_end|>\n<|im_start|>assistant"), "{rendered}");
}

#[test]
fn metrics_count() {
    let site = Site::plain();
    let body = json!({ "prompt": "Returns", "max_tokens": 5, "ignore_eos": true });
    site.post("/v1/completions", &body).ok();
    assert_eq!(site.metric("pelton_generated_tokens_total"), 5.0);
    assert_eq!(site.metric("pelton_time_to_first_token_seconds_count"), 1.0);
    assert_eq!(site.metric("pelton_inter_token_seconds_count"), 4.0);
    assert_eq!(site.metric("vllm:num_requests_running{model_name=\"tiny\"}"), 0.0);
    assert_eq!(site.metric("vllm:num_requests_waiting{model_name=\"tiny\"}"), 0.0);
    assert!((0.0..=1.0).contains(&site.metric("vllm:kv_cache_usage_perc")));
}

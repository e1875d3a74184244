//! Two models behind one name.

use pelton::ModelRef;
use pelton::route::{Confidence, Rules};
use pelton_server::RouteSource;
use serde_json::{Value, json};

use crate::client::{Reply, Site, source};

/// The draft is the small one, the default the large one.
fn site(least_mean_logprob: Option<f64>) -> Site {
    let confidence = least_mean_logprob.map(|least_mean_logprob| Confidence {
        least_mean_logprob,
        learned_from: 1,
        model: "draft".into(),
    });
    let rules = Rules { confidence, ..Rules::default() };
    Site::start(|_, models| {
        models.sources = vec![source("tiny", ModelRef::Embedded), source("draft", ModelRef::EmbeddedDraft)];
        models.route = Some(RouteSource { id: "auto".into(), small: "draft".into(), large: "tiny".into(), rules });
    })
}

fn ask(site: &Site, model: Option<&str>, text: &str, extra: Value) -> Reply {
    let mut body = json!({ "messages": [{ "role": "user", "content": text }], "max_tokens": 8, "temperature": 0 });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    if let Some(model) = model {
        body["model"] = json!(model);
    }
    site.post("/v1/chat/completions", &body)
}

fn answered_by(reply: &Reply) -> (String, String) {
    (reply.ok()["model"].as_str().unwrap().to_string(), reply.header("x-pelton-route").unwrap_or_default())
}

#[test]
fn simple_questions_go_to_the_small_model() {
    let site = site(None);
    for name in [None, Some("auto"), Some("auto:latest")] {
        let (model, why) = answered_by(&ask(&site, name, "What is a list?", json!({})));
        assert_eq!((model.as_str(), why.starts_with("small; ")), ("draft", true), "{why}");
    }
    let reply = ask(&site, None, "Why is a list slow?", json!({}));
    assert_eq!(answered_by(&reply), ("tiny".into(), "large; it says \"why\", which asks for thought".into()));
    assert_eq!(reply.ok()["timings"]["route"]["to"], "large");
    // Named outright, a model answers itself, and no rule speaks.
    assert_eq!(answered_by(&ask(&site, Some("draft"), "Why?", json!({}))), ("draft".into(), String::new()));
    let tools = json!({ "tools": [{ "type": "function", "function": { "name": "stop" } }] });
    assert_eq!(answered_by(&ask(&site, None, "What is a list?", tools)).0, "tiny");
    assert_eq!(site.metric("pelton_routed_total{to=\"small\"}"), 3.0);
    assert_eq!(site.metric("pelton_routed_total{to=\"large\"}"), 2.0);
    let listed = site.get("/v1/models").ok();
    let auto = listed["data"].as_array().unwrap().iter().find(|m| m["id"] == "auto").unwrap();
    assert_eq!((&auto["route"]["small"], &auto["route"]["large"]), (&json!("draft"), &json!("tiny")));
}

#[test]
fn what_is_not_sure_is_handed_over_and_never_seen() {
    let plain = |model| ask(&site(None), Some(model), "What is a list?", json!({})).ok()["choices"].clone();
    // No answer is as sure as that.
    let strict = site(Some(0.0));
    let reply = ask(&strict, None, "What is a list?", json!({}));
    let (model, why) = answered_by(&reply);
    assert!(model == "tiny" && why.starts_with("large; the small model was not sure"), "{model}: {why}");
    assert_eq!(reply.ok()["choices"], plain("tiny"));
    assert_eq!(strict.metric("pelton_handed_over_total"), 1.0);
    // Every answer is as sure as that; streamed, it is the same one.
    let lenient = site(Some(-1e9));
    let reply = ask(&lenient, None, "What is a list?", json!({}));
    assert_eq!(answered_by(&reply).0, "draft");
    assert_eq!(reply.ok()["choices"], plain("draft"));
    let streamed = ask(&lenient, None, "What is a list?", json!({ "stream": true }));
    assert!(streamed.header("x-pelton-route").unwrap().starts_with("small; "));
    let joined: String =
        streamed.events().iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(json!(joined), reply.ok()["choices"][0]["message"]["content"]);
}

#[test]
fn other_dialects_and_routes_know_the_name_too() {
    let site = site(None);
    let user = json!([{ "role": "user", "content": "What is a list?" }]);
    let body = json!({ "model": "auto", "messages": user, "max_tokens": 4 });
    assert_eq!(site.post("/v1/messages", &body).ok()["model"], "draft");
    let body = json!({ "model": "auto", "messages": user, "stream": false, "options": { "num_predict": 4 } });
    assert_eq!(site.post("/api/chat", &body).ok()["model"], "draft");
    let body = json!({ "model": "auto", "input": "Prove it.", "max_output_tokens": 4 });
    assert_eq!(site.post("/v1/responses", &body).ok()["model"], "tiny");
    assert_eq!(site.post("/tokenize", &json!({ "model": "auto", "content": "a" })).ok()["model"], "tiny");
    assert_eq!(site.post("/v1/completions", &json!({ "prompt": "a", "max_tokens": 2 })).ok()["model"], "tiny");
    assert_eq!(site.post("/v1/chat/completions", &json!({ "model": "nobody", "messages": user })).status, 404);
}

#[test]
fn both_models_answer_where_memory_holds_only_one() {
    let pair = |models: &mut pelton_server::ModelOptions, rules: Rules| {
        models.sources = vec![source("tiny", ModelRef::Embedded), source("draft", ModelRef::EmbeddedDraft)];
        for source in &mut models.sources {
            (source.options.max_seqs, source.options.batch_rows) = (1, 16);
        }
        models.route = Some(RouteSource { id: "auto".into(), small: "draft".into(), large: "tiny".into(), rules });
    };
    let roomy = Site::start(|_, models| pair(models, Rules::default()));
    let bytes = ["tiny", "draft"].map(|model| {
        ask(&roomy, Some(model), "x", json!({})).ok();
        roomy.get(&format!("/v1/models/{model}")).ok()["bytes"].as_u64().unwrap()
    });
    drop(roomy);
    let confidence = Some(Confidence { least_mean_logprob: 0.0, learned_from: 1, model: "draft".into() });
    let site = Site::start(|_, models| {
        pair(models, Rules { confidence, ..Rules::default() });
        // Room for either, not for both: the small one goes before the large one comes, not a minute later.
        models.memory = Some(bytes[0].max(bytes[1]) + bytes[0].min(bytes[1]) / 2);
    });
    let begun = std::time::Instant::now();
    for (text, why) in [("What is a list?", "was not sure"), ("Why is it slow?", "\"why\""), ("Is it?", "was not sure")]
    {
        let (model, said) = answered_by(&ask(&site, None, text, json!({})));
        assert!(model == "tiny" && said.contains(why), "{model}: {said}");
    }
    assert!(begun.elapsed() < std::time::Duration::from_secs(50), "nobody waited for a model that he holds himself");
}

#[test]
fn what_routing_cost_is_told() {
    let strict = site(Some(0.0));
    let reply = ask(&strict, None, "What is a list?", json!({})).ok();
    let route = &reply["timings"]["route"];
    assert!(route["handed_over_after_ms"].as_f64().unwrap() > 0.0, "{route}");
    let lenient = ask(&site(Some(-1e9)), None, "What is a list?", json!({})).ok();
    assert!(lenient["timings"]["route"].get("handed_over_after_ms").is_none());
    // Tools that may not be called are not on offer.
    let tools = json!([{ "type": "function", "function": { "name": "stop" } }]);
    let none = json!({ "tools": tools, "tool_choice": "none" });
    assert_eq!(answered_by(&ask(&site(None), None, "What is a list?", none)).0, "draft");
}

#[test]
fn a_request_that_no_model_can_read_is_refused_by_the_large_one() {
    let site = site(None);
    let twice = json!([{ "type": "function", "function": { "name": "a b" } }]);
    let reply = ask(&site, None, "What is a list?", json!({ "tools": twice }));
    assert_eq!(reply.status, 400, "{}", reply.text());
    let error = reply.json()["error"]["message"].as_str().unwrap().to_string();
    assert!(error.starts_with("tools[0].name"), "{error}");
    let empty = site.post("/v1/chat/completions", &json!({ "messages": [] }));
    assert_eq!(empty.status, 400);
}

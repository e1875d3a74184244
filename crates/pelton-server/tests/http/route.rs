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

//! Several models in one server.

use std::time::Duration;

use pelton::ModelRef;
use serde_json::json;

use crate::client::{Site, TINY, source};

fn ask(site: &Site, model: &str) -> u16 {
    site.post("/v1/completions", &json!({ "model": model, "prompt": "x", "max_tokens": 2 })).status
}

fn status(site: &Site, model: &str) -> String {
    site.get(&format!("/v1/models/{model}")).ok()["status"].as_str().unwrap().to_string()
}

#[test]
fn the_second_model_is_loaded_when_asked_for_and_goes_when_idle() {
    let site = Site::start(|_, models| {
        models.sources.push(source("draft", ModelRef::EmbeddedDraft));
        models.idle_unload = Some(Duration::from_millis(500));
    });
    assert_eq!(ask(&site, TINY), 200);
    assert_eq!(status(&site, "draft"), "unloaded");
    for figure in ["vllm:num_requests_running{model_name=\"draft\"}", "pelton_model_loaded{model=\"draft\"}"] {
        assert_eq!(site.metric(figure), 0.0, "there from the start");
    }
    let waiting: Vec<_> = (0..4)
        .map(|_| site.begin("/v1/completions", &json!({ "model": "draft", "prompt": "x", "max_tokens": 2 })))
        .collect();
    assert_eq!(ask(&site, "draft"), 200);
    drop(waiting);
    site.wait_for("the draft to go", |s| status(s, "draft") == "unloaded");
    assert_eq!(status(&site, TINY), "loaded");
    assert_eq!(ask(&site, "draft"), 200);
}

#[test]
fn models_make_room_for_one_another() {
    let site = Site::start(|_, models| {
        models.sources.push(source("draft", ModelRef::EmbeddedDraft));
        for source in &mut models.sources {
            source.options.max_seqs = 1;
            source.options.batch_rows = 16;
        }
        // Room for either, not for both.
        models.memory = Some(20 << 20);
    });
    assert_eq!(ask(&site, TINY), 200);
    let bytes = site.get("/v1/models/tiny").ok()["bytes"].as_u64().unwrap();
    assert!(bytes < 20 << 20, "{bytes}");
    for model in ["draft", TINY, "draft"] {
        assert_eq!(ask(&site, model), 200, "{model}");
        assert_eq!(status(&site, model), "loaded");
    }
}

#[test]
fn a_model_that_cannot_be_loaded_says_why() {
    let site = Site::start(|_, models| {
        models.sources.push(source("gone", ModelRef::Path("/nowhere/gone.gguf".into())));
    });
    let reply = site.post("/v1/completions", &json!({ "model": "gone", "prompt": "x" }));
    assert_eq!(reply.status, 503);
    assert!(reply.json()["error"]["message"].as_str().unwrap().contains("gone.gguf"), "{}", reply.text());
    assert_eq!(status(&site, "gone"), "failed");
    assert_eq!(ask(&site, TINY), 200);
}

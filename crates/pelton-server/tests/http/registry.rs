//! Several models in one server.

use std::time::Duration;

use pelton::ModelRef;
use pelton_server::ModelOptions;
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
    let two = |models: &mut ModelOptions| {
        models.sources.push(source("draft", ModelRef::EmbeddedDraft));
        for source in &mut models.sources {
            source.options.max_seqs = 1;
            source.options.batch_rows = 16;
        }
    };
    let roomy = Site::start(|_, models| two(models));
    let bytes = [TINY, "draft"].map(|model| {
        assert_eq!(ask(&roomy, model), 200);
        roomy.get(&format!("/v1/models/{model}")).ok()["bytes"].as_u64().unwrap()
    });
    drop(roomy);
    // Room for either, not for both.
    let memory = bytes[0].max(bytes[1]) + bytes[0].min(bytes[1]) / 2;
    let site = Site::start(|_, models| {
        two(models);
        models.memory = Some(memory);
    });
    for model in ["draft", TINY, "draft", TINY] {
        assert_eq!(ask(&site, model), 200, "{model}");
        let other = if model == TINY { "draft" } else { TINY };
        assert_eq!((status(&site, model), status(&site, other)), ("loaded".into(), "unloaded".into()));
    }
    // One in use is waited for, and its answer is not cut.
    let long = json!({ "model": TINY, "prompt": "x", "max_tokens": 400, "ignore_eos": true });
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| site.post("/v1/completions", &long).ok());
        site.wait_for("the answer to begin", |s| s.metric("vllm:num_requests_running{model_name=\"tiny\"}") > 0.0);
        assert_eq!(ask(&site, "draft"), 200);
        assert_eq!(answer.join().unwrap()["usage"]["completion_tokens"], 400);
    });
    assert_eq!((status(&site, "draft"), status(&site, TINY)), ("loaded".into(), "unloaded".into()));
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
    assert_eq!(status(&site, TINY), "loaded", "it did not have to go for that");
    assert_eq!(ask(&site, TINY), 200);
}

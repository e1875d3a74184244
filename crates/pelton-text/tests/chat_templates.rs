//! Chat templates against Python: every rendering equal byte for byte, and an error wherever Python
//! raises. The goldens come from golden/make_templates.py; our own templates are checked always, those
//! of real models where the shared data is present.

mod support;

use pelton_text::{ChatTemplate, DateTime, RenderInput, TemplateTokens, TextError};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

fn golden(name: &str) -> Json {
    let path = format!("{}/tests/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn tokens(golden: &Json) -> TemplateTokens {
    let text = |name: &str| golden["tokens"][name].as_str().map(str::to_owned);
    TemplateTokens { bos: text("bos_token"), eos: text("eos_token"), pad: text("pad_token"), unk: text("unk_token") }
}

fn matches(expected: &Json, rendered: &Result<String, TextError>) -> bool {
    match rendered {
        Ok(text) if expected["sha256"].is_string() => {
            let digest = Sha256::digest(text.as_bytes());
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            expected["sha256"] == hex
        }
        Ok(text) => expected["text"] == *text,
        Err(_) => expected["raises"].is_string(),
    }
}

/// Renders every conversation with and without the generation prompt; the number that were equal and
/// the number in all.
fn compare(golden: &Json, name: &str, source: &str) -> (usize, usize) {
    let template = ChatTemplate::new(source, tokens(golden)).unwrap();
    let (mut equal, mut all) = (0, 0);
    for (conversation, expected) in golden["templates"][name].as_object().unwrap() {
        let given = &golden["conversations"][conversation];
        for add_generation_prompt in [false, true] {
            let rendered = template.render(&RenderInput {
                messages: given["messages"].clone(),
                tools: given.get("tools").cloned(),
                add_generation_prompt,
                extra: given["extra"].as_object().cloned().unwrap_or_default(),
                now: golden["now"].as_i64().map(DateTime::from_seconds),
            });
            let expected = if add_generation_prompt { &expected["True"] } else { &expected["False"] };
            all += 1;
            if matches(expected, &rendered) {
                equal += 1;
            } else {
                println!("{name}, {conversation}:\n  is  {rendered:?}\n  not {expected}");
            }
        }
    }
    println!("{name}: {equal} of {all} renderings");
    (equal, all)
}

#[test]
fn our_templates_render_as_in_python() {
    let golden = golden("templates_own");
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");
    let mut wrong = Vec::new();
    for name in golden["templates"].as_object().unwrap().keys() {
        let source = if name == "embedded model" {
            let config = std::fs::read_to_string(format!("{folder}/data/tokenizer_config.json"));
            let config: Json = serde_json::from_str(&config.unwrap()).unwrap();
            ChatTemplate::pick(&config["chat_template"], false).unwrap()
        } else {
            std::fs::read_to_string(format!("{folder}/templates/{name}")).unwrap()
        };
        let (equal, all) = compare(&golden, name, &source);
        assert!(all >= 80);
        if equal != all {
            wrong.push(name);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn templates_of_models_render_as_in_python() {
    let golden = golden("templates_models");
    let mut wrong = Vec::new();
    for name in golden["templates"].as_object().unwrap().keys() {
        let Some(path) = support::shared(&format!("chat_templates/{name}")) else {
            return;
        };
        let (equal, all) = compare(&golden, name, &std::fs::read_to_string(path).unwrap());
        if equal != all {
            wrong.push(name);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

//! `pelton compare` with the built-in models.

use crate::models::fixture;
use crate::pelton::{Sandbox, arg, assert_keys};

#[test]
fn two_models_are_compared_on_the_terminal_as_json_and_as_a_page() {
    let sandbox = Sandbox::new();
    let quick = ["--window", "128", "--windows", "4", "-n", "8", "--repeat", "1"];
    let args = [&["compare", "pelton-tiny", "pelton-draft", "--html", "report.html"], &quick[..]].concat();
    let said = sandbox.run(&args).ok();
    for words in ["quality", "cost", "252 predictions of the built-in text", "pelton-draft", "8 prompts"] {
        assert!(said.stdout.contains(words), "{words}: {}", said.stdout);
    }
    let page = std::fs::read_to_string(sandbox.path("report.html")).unwrap();
    assert!(page.contains("<svg") && !page.contains("http"), "a page needs nothing from elsewhere");
    let json =
        sandbox.run(&[&["compare", "pelton-tiny", "pelton-draft", "--json"], &quick[..6], &["--repeat", "0"]].concat());
    let json = json.ok().json();
    assert_keys(
        &json,
        &["text", "windows", "tokens", "prompts", "prompts_left_out", "context", "candidates", "advice"],
    );
    let candidates = json["candidates"].as_array().unwrap();
    assert_eq!(candidates.len(), 2);
    assert!(candidates[1]["text"]["mean"]["value"].as_f64().unwrap() > 0.05, "{json}");
    assert!(candidates[1]["speed"].is_null() && candidates[1]["parting"]["prompts"].as_u64() == Some(8), "{json}");
}

#[test]
fn kv_types_of_one_model_are_compared_on_the_users_own_text_and_prompts() {
    let sandbox = Sandbox::new();
    sandbox.write("text.txt", "fn main() { println!(\"hello\"); }\n".repeat(40));
    sandbox.write("prompts.txt", "fn add(a: i32) {}\n\nfn sub() {}\n");
    let args = ["compare", "--kv", "bf16,int8", "--text", "text.txt", "--prompts", "prompts.txt", "--window", "64"];
    let json = sandbox.run(&[&args[..], &["-n", "4", "--repeat", "0", "--json"]].concat()).ok().json();
    let kinds: Vec<&str> =
        json["candidates"].as_array().unwrap().iter().map(|c| c["label"].as_str().unwrap()).collect();
    assert_eq!(
        (kinds, json["prompts"].as_u64(), json["text"].as_str()),
        (vec!["bf16", "int8"], Some(2), Some("text.txt"))
    );
    let memory = |i: usize| json["candidates"][i]["memory_bytes"].as_u64().unwrap();
    assert!(memory(1) < memory(0), "{json}");
}

#[test]
fn calls_that_cannot_succeed_are_refused_with_an_example() {
    let sandbox = Sandbox::new();
    let run = |args: &[&str]| sandbox.run(&[&["compare"], args].concat());
    run(&[]).usage(&["pelton compare model-q8_0.gguf", "--kv bf16,int8,fp8"]);
    run(&["pelton-tiny"]).usage(&["name a base"]);
    run(&["--kv", "bf16"]).usage(&["--kv: expected two types"]);
    run(&["--quantizations", "none,5.5bit"]).usage(&["5.5bit", "expected one of"]);
    run(&["--quantizations", "none,4bit"]).usage(&["pelton-tiny is quantized already"]);
    run(&["--kv", "bf16,bf16"]).usage(&["each once"]);
    run(&["a", "b", "--kv", "bf16,int8"]).usage(&["one model"]);
    run(&["pelton-tiny", arg(&fixture("qwen3"))]).usage(&["share their vocabulary"]);
    run(&["pelton-tiny", "none.gguf"]).usage(&["no model `none.gguf`"]);
    run(&["pelton-tiny", "pelton-draft", "--html", "no/report.html"]).usage(&["--html"]);
    sandbox.write("bad.jsonl", "{\"prompt\": \"a\"}\n{}");
    run(&["pelton-tiny", "pelton-draft", "--prompts", "bad.jsonl"]).usage(&["bad.jsonl: line 2"]);
}

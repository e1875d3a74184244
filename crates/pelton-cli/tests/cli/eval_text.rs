//! `pelton eval perplexity | kl | multiple-choice | qa` with the built-in models.

use crate::models::fixture;
use crate::pelton::{Sandbox, arg};

/// Enough words for a few small windows.
const TEXT: &str = include_str!("../../../pelton-eval/src/compare/text.txt");

fn near(a: &serde_json::Value, b: &serde_json::Value, within: f64) {
    let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
    assert!((a / b - 1.0).abs() <= within, "{a} is not {b}");
}

#[test]
fn perplexity_is_printed_with_its_error_bar() {
    let sandbox = Sandbox::new();
    sandbox.write("text.txt", TEXT);
    let run = |more: &[&str]| {
        sandbox.run(&[&["eval", "perplexity", "text.txt", "--window", "128", "--windows", "3"], more].concat()).ok()
    };
    let said = run(&[]);
    assert!(said.stdout.contains("perplexity ") && said.stdout.contains(" ± "), "{said:?}");
    assert!(said.stdout.contains("189 predictions in 3 windows of 128"), "{said:?}");
    let json = run(&["--json", "-q"]).json();
    assert_eq!(
        (json["tokens"].as_u64(), json["windows"].as_u64(), json["window"].as_u64()),
        (Some(189), Some(3), Some(128))
    );
    assert!(json["perplexity"].as_f64().unwrap() > 1.0 && json["error"].as_f64().unwrap() > 0.0);
    let strided = run(&["--json", "--stride", "32"]).json();
    assert_eq!((strided["tokens"].as_u64(), strided["stride"].as_u64()), (Some(96), Some(32)));
    let piped = sandbox.pipe(&["eval", "perplexity", "-", "--window", "128", "--windows", "3", "--json"], TEXT).ok();
    assert_eq!(piped.json()["perplexity"], json["perplexity"]);
}

#[test]
fn divergence_from_a_model_and_from_its_written_predictions_agree() {
    let sandbox = Sandbox::new();
    sandbox.write("text.txt", TEXT);
    let windows = ["--window", "128", "--windows", "3", "--json"];
    let run = |more: &[&str]| sandbox.run(&[&["eval", "kl"], more].concat()).ok();
    let other = ["-m", "pelton-draft"];
    let direct = run(&[&["text.txt", "--base", "pelton-tiny"][..], &other, &windows].concat()).json();
    assert!(direct["mean"]["value"].as_f64().unwrap() > 0.05, "{direct}");
    let written = run(&[&["text.txt", "--write-base", "base.logits"][..], &windows].concat());
    assert_eq!(written.json()["bytes"].as_u64(), Some(std::fs::metadata(sandbox.path("base.logits")).unwrap().len()));
    let by_file = run(&[&["--base-file", "base.logits", "--json"][..], &other].concat()).json();
    for figure in ["mean", "rms_dp", "same_top"] {
        near(&by_file[figure]["value"], &direct[figure]["value"], 0.01);
    }
    near(&by_file["p99"], &direct["p99"], 0.02);
    let itself = run(&["--base-file", "base.logits"]);
    assert!(itself.stdout.contains("same top    100.00"), "{itself:?}");
}

#[test]
fn questions_are_asked_and_counted() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "q.jsonl",
        r#"{"question": "What is fn?", "choices": ["a function", "a fish"], "answer": 0, "decision": "yes"}
           {"question": "What is let?", "choices": ["a house", "a binding"], "answer": "B", "decision": "no"}"#,
    );
    let json = sandbox.run(&["eval", "multiple-choice", "q.jsonl", "--json"]).ok().json();
    assert_eq!((json["questions"].as_u64(), json["chosen"].as_array().unwrap().len()), (Some(2), 2));
    let fixed = ["eval", "multiple-choice", "q.jsonl", "--answer", "decision", "--choices", "yes,no,maybe"];
    let said = sandbox.run(&fixed).ok();
    assert!(said.stdout.contains("by chance       33.33 %"), "{said:?}");
    let json = sandbox.run(&["eval", "qa", "q.jsonl", "--answer", "decision", "-n", "4", "--json"]).ok().json();
    assert_eq!(json["answers"].as_array().unwrap().len(), 2);
    assert!(json["f1"]["value"].as_f64().unwrap() <= 1.0);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.write("empty.txt", "");
    sandbox.write("short.txt", "a few words");
    sandbox.write("bad.jsonl", "{\"question\": \"a\", \"answer\": \"b\"}\nno json\n");
    let run = |args: &[&str]| sandbox.run(&[&["eval"], args].concat());
    run(&["perplexity", "empty.txt"]).usage(&["empty.txt", "empty"]);
    run(&["perplexity", "short.txt"]).usage(&["short.txt", "512"]);
    run(&["perplexity", "none.txt"]).usage(&["none.txt", "no such file"]);
    run(&["perplexity", "short.txt", "--window", "4", "--stride", "4"]).usage(&["--stride 4"]);
    run(&["perplexity", "short.txt", "--window", "4", "-m", arg(&fixture("qwen3"))]).failure(&["no tokenizer"]);
    run(&["kl", "short.txt"]).usage(&["--base"]);
    run(&["kl", "--base-file", "bad.jsonl"]).failure(&["bad.jsonl", "not a file of predictions"]);
    run(&["kl", "short.txt", "--base", arg(&fixture("qwen3"))]).usage(&["share"]);
    run(&["qa", "bad.jsonl"]).usage(&["bad.jsonl: line 2"]);
    run(&["multiple-choice", "bad.jsonl"]).usage(&["line 1", "`choices`"]);
    run(&["qa", "bad.jsonl", "--limit", "1", "--prompt", "nothing"]).usage(&["{question}"]);
}

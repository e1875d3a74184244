//! Drafts on the command line: answers stay the same, figures are told, what cannot draft is refused.

use crate::models::fixture;
use crate::pelton::{Sandbox, arg, assert_keys};

const FIGURE: [&str; 12] = [
    "category",
    "batch",
    "prompts",
    "tokens",
    "plain_tokens_per_second",
    "tokens_per_second",
    "speedup",
    "drafted",
    "accepted",
    "steps_with_drafts",
    "mean_accepted",
    "same_answers",
];

#[test]
fn answers_are_the_same_with_every_kind_of_draft() {
    let question = "Document this Rust function:\n```rust\nfn add(a: u32, b: u32) -> u32 { a + b }\n```";
    let texts = ["none", "ngram", "auto", "pelton-draft"].map(|draft| {
        let outcome = Sandbox::new().run(&["run", question, "--json", "-n", "40", "--draft", draft]).ok();
        let object: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
        if draft == "none" {
            assert!(object["timing"]["speculation"].is_null(), "{object}");
            assert!(!outcome.stderr.contains("drafts by"), "{}", outcome.stderr);
        } else {
            assert!(outcome.stderr.contains("drafts by n-grams"), "{}", outcome.stderr);
        }
        object["text"].as_str().unwrap().to_string()
    });
    assert!(!texts[0].is_empty() && texts.iter().all(|text| *text == texts[0]), "{texts:?}");
}

#[test]
fn what_cannot_draft_is_refused() {
    let other = fixture("qwen2-tied");
    let outcome = Sandbox::new().run(&["run", "x", "--draft", arg(&other)]);
    assert!(outcome.code != Some(0) && outcome.stderr.contains("cannot draft for pelton-tiny"), "{outcome:?}");
    let outcome = Sandbox::new().run(&["run", "x", "--draft", "no/such/model.gguf"]);
    assert!(outcome.code != Some(0) && outcome.stderr.contains("--draft no/such/model.gguf"), "{outcome:?}");
    let outcome = Sandbox::new().run(&["run", "x", "--draft-max", "17"]);
    assert!(outcome.code != Some(0) && outcome.stderr.contains("from 0 to 16"), "{outcome:?}");
}

#[test]
fn the_benchmark_compares_both_by_category() {
    let sandbox = Sandbox::new();
    let lines = r#"{"category": "qa", "turns": ["What is a turbine?", "And then?"]}
{"category": "qa", "prompt": "What is water?"}
{"category": "math", "turns": ["1 + 1 ="]}
"#;
    let file = sandbox.write("prompts.jsonl", lines);
    let args = &["bench", "speculation", "--prompts", arg(&file), "-n", "6", "--batch", "1,2", "--json"];
    let object: serde_json::Value = serde_json::from_str(&sandbox.run(args).ok().stdout).unwrap();
    let results = object["results"].as_array().unwrap();
    assert_eq!(results.len(), 4, "{object}");
    for result in results {
        assert_keys(result, &FIGURE);
        assert_eq!(result["same_answers"], true, "{result}");
    }
    assert_eq!((results[0]["category"].as_str(), results[0]["prompts"].as_u64()), (Some("qa"), Some(2)));
    let some = ["--category", "math", "--prompt-tokens", "4", "-n", "3", "--batch", "1"];
    let args = [&["bench", "speculation", "--prompts", arg(&file)], &some[..]].concat();
    let outcome = sandbox.run(&args).ok();
    assert!(outcome.stdout.contains("math") && !outcome.stdout.contains("qa"), "{outcome:?}");
    assert!(outcome.stderr.contains("only their last 4 are used"), "{outcome:?}");
    let outcome = sandbox.run(&["bench", "speculation", "--prompts", arg(&file), "--category", "maths"]);
    assert!(outcome.code != Some(0) && outcome.stderr.contains("has qa, math"), "{outcome:?}");
    let table = sandbox.run(&["bench", "speculation", "--limit", "2", "-n", "5", "--batch", "1"]).ok().stdout;
    assert!(table.contains("documentation") && table.contains("edits") && table.contains('×'), "{table}");
    let bad = sandbox.write("bad.jsonl", "{\"category\": \"qa\"}\n");
    let outcome = sandbox.run(&["bench", "speculation", "--prompts", arg(&bad)]);
    assert!(outcome.code != Some(0) && outcome.stderr.contains("line 1"), "{outcome:?}");
}

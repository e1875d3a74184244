//! `pelton eval logits` against the checked-in reference logits.

use std::path::PathBuf;

use crate::logits_file::{Tensors, max_error};
use crate::models::fixture;
use crate::pelton::{Outcome, Sandbox, arg};

const FIXTURES: [&str; 10] = [
    "gemma2",
    "llama-mha",
    "llama3-rope",
    "mistral-window",
    "phi3",
    "qwen2-tied",
    "qwen2-untied",
    "qwen3",
    "qwen3-moe",
    "qwen3-yarn",
];

/// Writes the ids of a fixture's prompt into the sandbox.
fn ids_of(name: &str, sandbox: &Sandbox) -> PathBuf {
    let ids = Tensors::open(&fixture(name).join("reference.safetensors")).i64("input_ids");
    sandbox.write("ids.json", serde_json::to_string(&ids).unwrap())
}

fn eval(sandbox: &Sandbox, name: &str, more: &[&str]) -> Outcome {
    let (model, ids) = (fixture(name), ids_of(name, sandbox));
    sandbox.run(&[&["eval", "logits", arg(&model), "--ids", arg(&ids), "--out", "out.safetensors"], more].concat())
}

#[test]
fn the_reference_path_agrees_at_every_position() {
    for name in FIXTURES {
        let sandbox = Sandbox::new();
        let outcome = eval(&sandbox, name, &["--reference"]).ok();
        assert!(outcome.stdout.is_empty() && outcome.stderr.contains("200 positions"), "{outcome:?}");
        let out = Tensors::open(&sandbox.path("out.safetensors"));
        let exact = Tensors::open(&fixture(name).join("exact_rope.safetensors"));
        assert_eq!(out.shape("logits"), exact.shape("logits"), "{name}");
        assert_eq!(out.i64("input_ids").len(), 200, "{name}");
        let error = max_error(&out.f32("logits"), &exact.f32("logits"));
        assert!(error <= 2e-3, "{name}: {error}");
    }
}

#[test]
fn rounded_rotary_frequencies_agree_with_the_model_that_was_cast_as_a_whole() {
    for name in FIXTURES {
        let sandbox = Sandbox::new();
        eval(&sandbox, name, &["--reference", "--rope-bf16", "-q"]).ok();
        let out = Tensors::open(&sandbox.path("out.safetensors"));
        let reference = Tensors::open(&fixture(name).join("reference.safetensors"));
        assert_eq!(out.i64("input_ids"), reference.i64("input_ids"), "{name}");
        let error = max_error(&out.f32("logits"), &reference.f32("logits"));
        assert!(error <= 2e-3, "{name}: {error}");
    }
}

#[test]
fn the_kernels_err_at_most_twice_as_much_as_plain_bf16() {
    for name in FIXTURES {
        let sandbox = Sandbox::new();
        eval(&sandbox, name, &["-q"]).ok();
        let out = Tensors::open(&sandbox.path("out.safetensors"));
        let exact = Tensors::open(&fixture(name).join("exact_rope.safetensors"));
        let (error, plain) = (max_error(&out.f32("logits"), &exact.f32("logits")), exact.f32("bf16_error")[0]);
        assert!(error <= 2.0 * plain, "{name}: {error}, plain bf16 {plain}");
    }
}

#[test]
fn every_instruction_set_keeps_the_bound() {
    let exact = Tensors::open(&fixture("qwen3").join("exact_rope.safetensors"));
    let (exact, plain) = (exact.f32("logits"), exact.f32("bf16_error")[0]);
    let mut measured = 0;
    for isa in ["scalar", "avx2", "avx512"] {
        let sandbox = Sandbox::new();
        let (model, ids) = (fixture("qwen3"), ids_of("qwen3", &sandbox));
        let args = ["eval", "logits", arg(&model), "--ids", arg(&ids), "--out", "out.safetensors"];
        let outcome = sandbox.run_with(&args, &[("PELTON_ISA", isa)], "");
        if outcome.code == Some(2) {
            println!("skipped {isa}: {}", outcome.stderr);
            continue;
        }
        outcome.ok();
        let error = max_error(&Tensors::open(&sandbox.path("out.safetensors")).f32("logits"), &exact);
        assert!(error <= 2.0 * plain, "{isa}: {error}, plain bf16 {plain}");
        measured += 1;
    }
    assert!(measured >= 1);
}

#[test]
fn chunks_do_not_change_the_logits() {
    let sandbox = Sandbox::new();
    let logits = |more: &[&str]| {
        eval(&sandbox, "qwen3", more).ok();
        Tensors::open(&sandbox.path("out.safetensors")).f32("logits")
    };
    let whole = logits(&["--reference"]);
    assert_eq!(max_error(&whole, &logits(&["--reference", "--batch-rows", "7"])), 0.0);
}

#[test]
fn ids_may_come_from_stdin() {
    let sandbox = Sandbox::new();
    let model = fixture("qwen3");
    sandbox.pipe(&["eval", "logits", arg(&model), "--ids", "-", "--out", "out.safetensors"], "[5, 6]").ok();
    let out = Tensors::open(&sandbox.path("out.safetensors"));
    assert_eq!((out.i64("input_ids"), out.shape("logits")), (vec![5, 6], vec![2, 512]));
}

#[test]
fn ids_that_cannot_be_are_refused_and_nothing_is_written() {
    let model = fixture("qwen3");
    let table: &[(&str, &[&str])] = &[
        ("[]", &["0 ids", "512"]),
        ("[1, 2, 512]", &["id 512", "position 2", "vocabulary of 512"]),
        ("[-1]", &["ids.json", "array of token ids"]),
        ("{\"ids\": [1]}", &["ids.json", "array of token ids"]),
        ("[1, 2", &["ids.json", "array of token ids"]),
    ];
    for (ids, words) in table {
        let sandbox = Sandbox::new();
        sandbox.write("ids.json", ids);
        let args = ["eval", "logits", arg(&model), "--ids", "ids.json", "--out", "out.safetensors"];
        sandbox.run(&args).usage(words);
        assert!(!sandbox.path("out.safetensors").exists(), "{ids}");
    }
    let sandbox = Sandbox::new();
    let long = serde_json::to_string(&vec![1; 513]).unwrap();
    sandbox.write("ids.json", long);
    let run = |ids: &str, out: &str, more: &[&str]| {
        sandbox.run(&[&["eval", "logits", arg(&model), "--ids", ids, "--out", out], more].concat())
    };
    run("ids.json", "out.safetensors", &[]).usage(&["513 ids", "512"]);
    run("none.json", "out.safetensors", &[]).usage(&["none.json", "no such file"]);
    run("ids.json", "no/folder/out.safetensors", &[]).usage(&["--out no/folder/out.safetensors"]);
    run("ids.json", ".", &[]).usage(&["--out .", "file"]);
    run("ids.json", "out.safetensors", &["--reference", "--kv-type", "f16"]).usage(&["--kv-type", "--reference"]);
    sandbox.write("bytes.json", b"\xff");
    run("bytes.json", "out.safetensors", &[]).failure(&["bytes.json", "UTF-8"]);
}

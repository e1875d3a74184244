//! `pelton bench`: its table, its JSON and the lengths that it refuses.

use crate::models::{copy_of, fixture, replace};
use crate::pelton::{Sandbox, arg, assert_keys};

#[test]
fn the_table_has_a_line_for_each_length() {
    let outcome = Sandbox::new().run(&["bench", "-m", "pelton-draft", "-p", "4,8", "-n", "3", "-r", "1"]).ok();
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert!(lines[0].contains("GB/s") && lines[1].contains("share of bandwidth"), "{outcome:?}");
    let tests: Vec<String> = lines[2..].iter().map(|l| l.split("  ").next().unwrap().to_string()).collect();
    assert_eq!(tests, ["prompt 4", "prompt 8", "generate 3"]);
    assert!(lines[4].contains('%') && !lines[2].contains('%'), "{outcome:?}");
}

#[test]
fn json_has_a_record_for_each_length() {
    let model = fixture("qwen3");
    let args = ["bench", "-m", arg(&model), "-p", "0", "-n", "4", "-d", "8", "--batch", "2", "-r", "1", "--json"];
    let object = Sandbox::new().run(&args).ok().json();
    assert_keys(&object, &["model", "backend", "read_gb_per_s", "weight_bytes", "tests"]);
    let tests = object["tests"].as_array().unwrap();
    assert_eq!(tests.len(), 1);
    assert_keys(&tests[0], &["test", "tokens_per_s", "least", "most", "step_bytes", "bandwidth_share"]);
    assert_eq!(tests[0]["test"], "generate 4 at depth 8 × 2 sequences");
    assert!(tests[0]["tokens_per_s"].as_f64().unwrap() > 0.0 && object["read_gb_per_s"].as_f64().unwrap() > 0.0);
    assert!(tests[0]["step_bytes"].as_u64() > Some(0));
}

#[test]
fn impossible_lengths_are_refused_before_measuring() {
    let huge = usize::MAX.to_string();
    let table: &[(&[&str], &[&str])] = &[
        (&["-p", "5000"], &["--prompt 5000", "1024"]),
        (&["-p", &huge], &["--prompt", "1024"]),
        (&["-n", &huge], &["--generate", "1024"]),
        (&["-n", "8", "-d", &huge], &["--generate 8", "1024"]),
        (&["-p", "64", "-c", "32"], &["--prompt 64", "32", "--context"]),
        (&["-p", "0", "-n", "0"], &["nothing to measure"]),
        (&["-r", "0"], &["--repeat"]),
        (&["--batch", "0"], &["--batch"]),
        (&["-p", ""], &["--prompt"]),
    ];
    for (args, words) in table {
        Sandbox::new().run(&[&["bench"], *args].concat()).usage(words);
    }
}

#[test]
fn a_context_that_memory_cannot_hold_is_refused_with_one_that_fits() {
    let sandbox = Sandbox::new();
    let model = copy_of("qwen3", &sandbox);
    let positions = "\"max_position_embeddings\": ";
    replace(&model.join("config.json"), &format!("{positions}512"), &format!("{positions}1000000000"));
    let args = ["bench", "-m", "model", "-p", "4", "-n", "0", "-c"];
    sandbox.run(&[&args[..], &["1000000000"]].concat()).usage(&["1000000000 tokens", "does not fit", "--context "]);
}

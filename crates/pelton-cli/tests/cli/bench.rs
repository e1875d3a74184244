//! `pelton bench`: its table, its JSON and CSV, its ledgers, and what it refuses.

use serde_json::Value;

use crate::models::{copy_of, fixture, replace};
use crate::pelton::{Sandbox, arg, assert_keys};

const RESULT: [&str; 13] = [
    "kind",
    "tokens",
    "depth",
    "batch",
    "tokens_per_second",
    "least",
    "most",
    "samples",
    "share_of_ceiling",
    "ceiling_tokens_per_second",
    "bound",
    "memory_bytes",
    "operations",
];
const CEILINGS: [&str; 6] =
    ["read_gb_per_s", "int8_tera_ops", "int8_unit", "bf16_tera_ops", "f32_tera_ops", "f32_unit"];

#[test]
fn the_table_has_a_line_for_each_workload() {
    let args = ["bench", "-m", "pelton-draft", "-p", "4,8", "-n", "3", "-d", "0,5", "-b", "1,2", "-r", "1"];
    let outcome = Sandbox::new().run(&args).ok();
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert!(lines[0].contains("pelton-draft on cpu") && lines[1].contains("GB/s"), "{outcome:?}");
    assert!(lines[2].contains("tokens/s") && lines[2].contains("share"), "{outcome:?}");
    let tests: Vec<String> = lines[3..].iter().map(|l| l.split("  ").next().unwrap().to_string()).collect();
    let at_0 = ["prefill 4", "prefill 8", "decode 3", "decode 3 × 2 sequences"].map(String::from);
    let at_5 = at_0.clone().map(|test| format!("{test} at depth 5"));
    assert_eq!(tests, [at_0, at_5].concat());
    assert!(lines[3..].iter().all(|l| l.contains(" %")), "{outcome:?}");
}

#[test]
fn json_has_a_record_for_each_workload() {
    let model = fixture("qwen3");
    let args = ["bench", "-m", arg(&model), "-p", "6", "-n", "4", "-d", "8", "--batch", "2", "-r", "2", "--json"];
    let object = Sandbox::new().run(&args).ok().json();
    assert_keys(&object, &["model", "backend", "weight_bytes", "ceilings", "results"]);
    assert_keys(&object["ceilings"], &CEILINGS);
    assert!(object["ceilings"]["read_gb_per_s"].as_f64().unwrap() > 0.0);
    let results = object["results"].as_array().unwrap();
    let names = |key: &str| results.iter().map(|r| r[key].clone()).collect::<Vec<_>>();
    assert_eq!(names("kind"), ["prefill", "decode"]);
    assert_eq!(names("tokens"), [6, 4]);
    assert_eq!(names("depth"), [8, 8]);
    assert_eq!(names("batch"), [1, 2]);
    for r in results {
        assert_keys(r, &RESULT);
        assert_eq!(r["samples"].as_array().unwrap().len(), 2);
        let (speed, ceiling) =
            (r["tokens_per_second"].as_f64().unwrap(), r["ceiling_tokens_per_second"].as_f64().unwrap());
        assert!(speed > 0.0 && (speed / ceiling / r["share_of_ceiling"].as_f64().unwrap() - 1.0).abs() < 1e-6);
        assert!(r["least"].as_f64() <= Some(speed) && r["most"].as_f64() >= Some(speed));
    }
}

#[test]
fn csv_has_a_line_for_each_workload() {
    let outcome = Sandbox::new().run(&["bench", "-m", "pelton-draft", "-p", "4", "-n", "2", "-r", "1", "--csv"]).ok();
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert!(lines[0].starts_with("model,backend,kind,tokens,depth,batch,tokens_per_second"), "{outcome:?}");
    assert!(lines[1].contains(",prefill,4,0,1,") && lines[2].contains(",decode,2,0,1,"), "{outcome:?}");
    assert_eq!(lines.len(), 3);
}

#[test]
fn a_profile_is_a_ledger_whose_ops_sum_to_the_step() {
    let args = ["bench", "-m", "pelton-draft", "-p", "8", "-n", "4", "-r", "1", "--profile"];
    let object = Sandbox::new().run(&[&args[..], &["--json"]].concat()).ok().json();
    let ledgers = object["ledgers"].as_array().unwrap();
    assert_eq!(ledgers.len(), 2);
    for ledger in ledgers {
        assert_keys(ledger, &["kind", "tokens", "depth", "batch", "seconds", "ops"]);
        let ops = ledger["ops"].as_array().unwrap();
        let keys = ["op", "calls", "seconds", "share", "bytes", "memory_bytes", "operations", "share_of_ceiling"];
        ops.iter().for_each(|op| assert_keys(op, &keys));
        let sum = |key: &str| ops.iter().map(|op| op[key].as_f64().unwrap()).sum::<f64>();
        let seconds = ledger["seconds"].as_f64().unwrap();
        assert!((sum("seconds") / seconds - 1.0).abs() < 1e-9 && (sum("share") - 1.0).abs() < 1e-9);
        let named = |name: &str| ops.iter().find(|op| op["op"] == name);
        assert!(named("paged_attention").is_some() && named("between ops").is_some(), "{ledger}");
        assert!(named("linear ffn_down").unwrap()["share_of_ceiling"].as_f64() > Some(0.0));
        assert_eq!(named("between ops").unwrap()["share_of_ceiling"], Value::Null);
    }
    let text = Sandbox::new().run(&args).ok().stdout;
    assert!(text.contains("decode 4, a step: ") && text.contains("prefill 8, all its steps: "), "{text}");
    assert!(text.lines().any(|l| l.starts_with("total ")), "{text}");
}

#[test]
fn shapes_are_measured_without_files() {
    let sandbox = Sandbox::new();
    let config = std::fs::read_to_string(fixture("qwen3").join("config.json")).unwrap();
    sandbox.write("config.json", config);
    let args = ["bench", "--shape", "config.json:Q8_0", "-p", "4", "-n", "0", "-r", "1", "--json"];
    let outcome = sandbox.run(&args).ok();
    assert!(outcome.json()["model"].as_str().unwrap().contains("Q8_0 (random)"), "{outcome:?}");
    assert!(outcome.stderr.contains("random weights") && outcome.stderr.contains("of Q8_0"), "{outcome:?}");
    sandbox.run(&["bench", "--shape", "gpt-9"]).usage(&["gpt-9", "qwen2.5-7b", "config.json"]);
    sandbox.run(&["bench", "--shape", "qwen2.5-7b:Q9"]).usage(&["Q9", "Q4_K_M"]);
    sandbox.run(&["bench", "--shape", "qwen2.5-0.5b", "-m", "pelton-draft"]).usage(&["--shape", "--model"]);
}

#[test]
fn kernels_have_a_line_for_each_op() {
    let sandbox = Sandbox::new();
    let model = fixture("qwen3");
    let config = model.join("config.json");
    let args = ["bench", "kernels", "--shape", arg(&config), "--types", "q8_0", "--rows", "64", "-d", "32", "-r", "1"];
    let object = sandbox.run(&[&args[..], &["--json"]].concat()).ok().json();
    assert_keys(&object, &["shape", "ceilings", "results"]);
    let results = object["results"].as_array().unwrap();
    assert_eq!(results.len(), 4 + 4);
    let keys = ["op", "type", "kernel", "shape", "rows", "seconds", "gb_per_s", "tera_ops", "share_of_ceiling"];
    results.iter().for_each(|r| assert_keys(r, &keys));
    assert!(results.iter().any(|r| r["op"] == "linear ffn_down" && r["type"] == "Q8_0"));
    let text = sandbox.run(&args).ok().stdout;
    assert!(text.contains("Top/s") && text.contains("attention, decode"), "{text}");
    sandbox.run(&["bench", "kernels", "--types", "Q9"]).usage(&["--types", "Q4_K"]);
    sandbox.run(&["bench", "kernels", "--rows", "0"]).usage(&["--rows"]);
    sandbox.run(&["bench", "kernels", "--reference"]).usage(&["--reference"]);
}

#[test]
fn impossible_workloads_are_refused_before_measuring() {
    let huge = usize::MAX.to_string();
    let table: &[(&[&str], &[&str])] = &[
        (&["-p", "5000"], &["--prompt 5000", "1024"]),
        (&["-p", &huge], &["--prompt", "1024"]),
        (&["-n", &huge], &["--generate", "1024"]),
        (&["-p", "0", "-n", "8", "-d", &huge], &["--generate 8", "1024"]),
        (&["-p", "0", "-n", "0"], &["nothing to measure"]),
        (&["-r", "0"], &["--repeat"]),
        (&["--batch", "1,0"], &["--batch"]),
        (&["-p", ""], &["--prompt"]),
        (&["-d", "x"], &["--depth"]),
        (&["--csv", "--json"], &["--csv", "--json"]),
    ];
    for (args, words) in table {
        Sandbox::new().run(&[&["bench"], *args].concat()).usage(words);
    }
}

#[test]
fn what_memory_cannot_hold_is_refused() {
    let sandbox = Sandbox::new();
    let model = copy_of("qwen3", &sandbox);
    let positions = "\"max_position_embeddings\": ";
    replace(&model.join("config.json"), &format!("{positions}512"), &format!("{positions}1000000000"));
    let args = ["bench", "-m", "model", "-p", "4", "-n", "0", "-d", "999999000"];
    sandbox.run(&args).usage(&["does not fit", "--depth"]);
}

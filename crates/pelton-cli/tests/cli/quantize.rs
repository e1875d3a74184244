//! `pelton quantize` and `pelton imatrix`, on the embedded model cut down to one layer.

use std::path::Path;

use serde_json::Value;

use crate::models::{draft, fixture, small};
use crate::pelton::{Outcome, Sandbox, arg, assert_keys};

/// Enough words for a few windows.
const TEXT: &str = include_str!("../../../pelton-eval/src/compare/text.txt");

/// A sandbox with `small.gguf` in it.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    small(&sandbox);
    sandbox
}

fn quantize(sandbox: &Sandbox, args: &[&str]) -> Outcome {
    sandbox.run(&[&["quantize", "small.gguf", "out.gguf"], args].concat())
}

/// The type of each matrix in a file, by its role.
fn types(sandbox: &Sandbox, file: &str) -> Vec<(String, String)> {
    let object = sandbox.run(&["inspect", "--json", file]).ok().json();
    let groups = object["tensors"].as_array().unwrap().iter().filter(|g| g["dtype"] != "F32");
    groups.map(|g| (g["role"].as_str().unwrap().to_owned(), g["dtype"].as_str().unwrap().to_owned())).collect()
}

fn type_of(types: &[(String, String)], role: &str) -> String {
    let found = types.iter().find(|(name, _)| name.contains(role));
    found.unwrap_or_else(|| panic!("{role} is not among {types:?}")).1.clone()
}

fn files_in(sandbox: &Sandbox) -> Vec<String> {
    let names = std::fs::read_dir(sandbox.path("")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn a_mix_is_written_and_what_is_printed_is_what_is_in_the_file() {
    let sandbox = sandbox();
    let said = quantize(&sandbox, &["--to", "q4_k_m"]).ok();
    for words in ["Q6_K     × ", "Q4_K     × ", "F32      × ", "out.gguf: ", " bits a weight"] {
        assert!(said.stdout.contains(words), "{words}: {}", said.stdout);
    }
    let written = types(&sandbox, "out.gguf");
    let named = |role| type_of(&written, role);
    assert_eq!((named("token_embd").as_str(), named("attn_q").as_str()), ("Q6_K", "Q4_K"), "{written:?}");
    assert_eq!(files_in(&sandbox), ["out.gguf", "small.gguf"]);
    // It runs, and says nothing else of itself than other models do.
    sandbox.run(&["run", "-m", "out.gguf", "fn main", "-n", "2", "-q"]).ok();
}

#[test]
fn json_says_every_tensor_and_quiet_leaves_stderr_empty() {
    let sandbox = sandbox();
    let outcome = quantize(&sandbox, &["--to", "Q4_0", "--json", "--quiet", "--threads", "1"]).ok();
    assert_eq!(outcome.stderr, "");
    let json = outcome.json();
    assert_keys(
        &json,
        &[
            "out",
            "tensor_bytes",
            "file_bytes",
            "bits_per_weight",
            "resumed_tensors",
            "notes",
            "predicted_kl",
            "tensors",
        ],
    );
    let file = std::fs::metadata(sandbox.path("out.gguf")).unwrap().len();
    assert_eq!((json["file_bytes"].as_u64(), json["resumed_tensors"].as_u64()), (Some(file), Some(0)));
    let sum: u64 = json["tensors"].as_array().unwrap().iter().map(|t| t["bytes"].as_u64().unwrap()).sum();
    assert_eq!(json["tensor_bytes"].as_u64(), Some(sum));
    let q = json["tensors"].as_array().unwrap().iter().find(|t| t["name"] == "blk.0.attn_q.weight").unwrap();
    assert_eq!((q["type"].as_str(), q["importance"].as_bool()), (Some("Q4_0"), Some(false)));
    assert!(json["predicted_kl"].is_null());
}

#[test]
fn one_type_for_all_and_a_folder_as_source() {
    let sandbox = sandbox();
    quantize(&sandbox, &["--to", "IQ4_NL:pure"]).ok();
    let written = types(&sandbox, "out.gguf");
    assert!(written.iter().all(|(_, dtype)| dtype == "IQ4_NL"), "{written:?}");
    // Rows of 128 and 352: no blocks of 256 divide them, and the file says F16 and IQ4_NL where 32 or nothing does.
    let folder = fixture("qwen3");
    let said = sandbox.run(&["quantize", arg(&folder), "folder.gguf", "--to", "Q4_K_S"]).ok();
    assert!(said.stderr.contains("is Q5_0, not Q4_K: its rows of 128 are no multiple of 256"), "{said:?}");
    assert_eq!(type_of(&types(&sandbox, "folder.gguf"), "attn_q"), "Q5_0");
    // What is quantized already is said to keep its errors.
    let said = sandbox.run(&["quantize", arg(&draft()), "again.gguf", "--to", "Q4_0", "--dry-run"]).ok();
    assert!(said.stderr.contains("the model is quantized already (Q8_0)"), "{said:?}");
}

#[test]
fn a_dry_run_writes_nothing() {
    let sandbox = sandbox();
    let said = quantize(&sandbox, &["--to", "Q2_K", "--dry-run"]).ok();
    assert!(said.stdout.contains("Q2_K     × ") && said.stdout.contains("bits a weight"), "{said:?}");
    let json = quantize(&sandbox, &["--to", "Q2_K", "--dry-run", "--json"]).ok().json();
    assert!(json["file_bytes"].is_null() && json["tensor_bytes"].as_u64() > Some(1_000_000), "{json}");
    assert_eq!(files_in(&sandbox), ["small.gguf"]);
}

#[test]
fn an_importance_matrix_is_made_and_used() {
    let sandbox = sandbox();
    sandbox.write("text.txt", TEXT);
    let imatrix = |args: &[&str]| sandbox.run(&[&["imatrix", "small.gguf", "text.txt", "-o"], args].concat());
    let said = imatrix(&["im.gguf", "--chunk", "64", "--chunks", "2", "--threads", "1"]).ok();
    assert!(said.stdout.starts_with("im.gguf: 8 matrices, 2 chunks of 64 tokens"), "{said:?}");
    let json = imatrix(&["other.gguf", "--chunk", "32", "--chunks", "1", "--json", "-q"]).ok();
    assert_eq!(json.stderr, "");
    let json = json.json();
    assert_keys(&json, &["out", "matrices", "chunks", "chunk", "left_out"]);
    assert_eq!((json["matrices"].as_u64(), json["chunks"].as_u64()), (Some(8), Some(1)));

    let blind = quantize(&sandbox, &["--to", "IQ2_XXS", "--dry-run"]).ok();
    assert!(blind.stderr.contains("without an importance matrix: `pelton imatrix`"), "{blind:?}");
    let seeing = quantize(&sandbox, &["--to", "Q4_0", "--imatrix", "im.gguf", "--json"]).ok().json();
    let tensors = seeing["tensors"].as_array().unwrap();
    assert!(tensors.iter().filter(|t| t["type"] != "F32").all(|t| t["importance"] == true), "{seeing}");
    assert_eq!(seeing["notes"].as_array().unwrap().len(), 0);
    let with = std::fs::read(sandbox.path("out.gguf")).unwrap();
    quantize(&sandbox, &["--to", "Q4_0"]).ok();
    assert_ne!(with, std::fs::read(sandbox.path("out.gguf")).unwrap(), "the importance changes what is written");
}

#[test]
fn a_budget_is_kept_and_a_divergence_is_aimed_at() {
    let sandbox = sandbox();
    sandbox.write("text.txt", TEXT);
    let json = quantize(&sandbox, &["--fit", "4.5bpw", "--json", "-q"]).ok().json();
    let bits = json["bits_per_weight"].as_f64().unwrap();
    assert!((4.3..=4.5).contains(&bits) && json["predicted_kl"].is_null(), "{json}");
    let text = ["--text", "text.txt", "--tokens", "512"];
    let fit = [&["--fit", "1500kB", "--dry-run"], &text[..]].concat();
    let said = quantize(&sandbox, &fit).ok();
    assert!(said.stdout.contains("token_embd.weight") && said.stdout.contains("harm"), "{said:?}");
    let within = [&["--fit-quality", "0.01", "--dry-run", "--json"], &text[..]].concat();
    let json = quantize(&sandbox, &within).ok().json();
    let harm = json["predicted_kl"].as_f64().unwrap();
    assert!(harm > 0.001 && harm <= 0.01, "{json}");
    quantize(&sandbox, &["--fit", "100kB"]).usage(&["100000 bytes are less than", "allow more"]);
}

#[test]
fn errors_are_compensated_and_columns_scaled_on_a_text() {
    let sandbox = sandbox();
    sandbox.write("text.txt", TEXT);
    let text = ["--to", "Q2_K", "--text", "text.txt", "--tokens", "1024", "--json"];
    let written = |more: &[&str]| {
        let outcome = quantize(&sandbox, &[&text[..], more].concat()).ok();
        assert!(outcome.json()["predicted_kl"].is_null(), "{outcome:?}");
        (std::fs::read(sandbox.path("out.gguf")).unwrap(), outcome.stderr)
    };
    quantize(&sandbox, &["--to", "Q2_K"]).ok();
    let plain = std::fs::read(sandbox.path("out.gguf")).unwrap();
    let (gptq, _) = written(&["--gptq"]);
    let (awq, said) = written(&["--awq"]);
    assert!(said.contains("inputs of layers are scaled"), "{said}");
    let (both, _) = written(&["--gptq", "--awq", "--threads", "1"]);
    let all = [&plain, &gptq, &awq, &both];
    assert!(all.iter().all(|bytes| bytes.len() == plain.len()), "nothing is added to the file");
    for (i, one) in all.iter().enumerate() {
        assert!(all[i + 1..].iter().all(|other| other != one), "{i} is written twice");
    }
    // A plain file: it runs as any other.
    sandbox.run(&["run", "-m", "out.gguf", "fn main", "-n", "2", "-q"]).ok();
}

#[test]
fn wrong_calls_are_usage_errors() {
    let sandbox = sandbox();
    sandbox.write("text.txt", "Three words only.");
    let run = |args: &[&str]| quantize(&sandbox, args);
    run(&[]).usage(&["--to", "--fit"]);
    run(&["--to", "Q9_K"]).usage(&["--to Q9_K: no such mix", "Q4_K_M", "TYPE:pure"]);
    run(&["--to", "MXFP5:pure"]).usage(&["--to MXFP5:pure"]);
    run(&["--to", "Q4_0", "--fit", "1MB"]).usage(&["cannot be used with"]);
    run(&["--to", "Q4_0", "--text", "text.txt"]).usage(&["--text: nothing uses it", "--gptq"]);
    run(&["--to", "Q4_0", "--gptq"]).usage(&["--text"]);
    run(&["--to", "Q4_0", "--awq", "--text", "text.txt"]).usage(&["not one chunk of 512"]);
    run(&["--fit", "six apples"]).usage(&["six apples", "4.5bpw"]);
    run(&["--fit-quality", "0.01"]).usage(&["--text"]);
    run(&["--fit-quality", "-1", "--text", "text.txt"]).usage(&["--fit-quality"]);
    run(&["--fit", "2MB", "--text", "missing.txt"]).usage(&["missing.txt: cannot read"]);
    run(&["--fit", "2MB", "--text", "text.txt"]).usage(&["tokens", "512"]);
    run(&["--to", "Q4_0", "--threads", "0"]).usage(&["--threads"]);
    sandbox.run(&["quantize", "small.gguf", "small.gguf", "--to", "Q4_0"]).usage(&["is the model that is read"]);
    sandbox.run(&["quantize", "small.gguf", ".", "--to", "Q4_0"]).usage(&["is a folder; name a .gguf file"]);
    sandbox.run(&["quantize", "none.gguf", "out.gguf", "--to", "Q4_0"]).usage(&["none.gguf"]);
    sandbox.run(&["imatrix", "small.gguf", "text.txt", "-o", "."]).usage(&["is a folder"]);
    sandbox.run(&["imatrix", "small.gguf", "text.txt", "-o", "im.gguf"]).usage(&["not one chunk of 512"]);
    sandbox.run(&["imatrix", "small.gguf", "none.txt", "-o", "im.gguf"]).usage(&["none.txt: cannot read"]);
    let long = ["imatrix", "small.gguf", "text.txt", "-o", "im.gguf", "--chunk", "9999"];
    sandbox.run(&long).usage(&["chunks of 9999 tokens", "1 to 1024"]);
    let folder = fixture("qwen3");
    let no_words = ["imatrix", arg(&folder), "text.txt", "-o", "im.gguf"];
    sandbox.run(&no_words).usage(&["has no tokenizer"]);
    assert_eq!(files_in(&sandbox), ["small.gguf", "text.txt"]);
}

#[test]
fn files_that_are_not_what_they_should_be_are_named() {
    let sandbox = sandbox();
    sandbox.write("text.txt", TEXT);
    sandbox.write("noise.gguf", "GGUF and then something else entirely");
    sandbox.run(&["quantize", "noise.gguf", "out.gguf", "--to", "Q4_0"]).failure(&["noise.gguf"]);
    quantize(&sandbox, &["--to", "Q4_0", "--imatrix", "none.gguf"]).failure(&["none.gguf"]);
    quantize(&sandbox, &["--to", "Q4_0", "--imatrix", "text.txt"]).failure(&["text.txt", "importance matrix"]);
    quantize(&sandbox, &["--to", "Q4_0", "--imatrix", "small.gguf"]).failure(&["small.gguf", "no importance matrix"]);
    // Of another model.
    let draft = draft();
    let of_draft = ["imatrix", arg(&draft), "text.txt", "-o", "im.gguf", "--chunk", "32", "--chunks", "1"];
    sandbox.run(&of_draft).ok();
    quantize(&sandbox, &["--to", "Q4_0", "--imatrix", "im.gguf"]).failure(&["it is of another model"]);
    quantize(&sandbox, &["--to", "Q4_0", "--threads", "2", "--json"]).ok();
    // A weight that is no number: the last of the file, in a matrix of F16.
    let mut bytes = std::fs::read(sandbox.path("small.gguf")).unwrap();
    let nan: Vec<u8> = 0x7E00u16.to_le_bytes().repeat(64);
    let middle = bytes.len() / 2;
    let middle = middle - middle % 2;
    bytes[middle..middle + nan.len()].copy_from_slice(&nan);
    sandbox.write("nan.gguf", bytes);
    let refused = sandbox.run(&["quantize", "nan.gguf", "out.gguf", "--to", "Q4_0"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    for words in ["tensor `", "row ", "column ", "is NaN", "repair the source"] {
        assert!(refused.stderr.contains(words), "{words}: {}", refused.stderr);
    }
}

/// Runs `pelton quantize` where files may grow to `most` bytes and no further. `signal`: what the system does then, kill
/// the process (as any kill, in the middle of a write) or refuse to write (as a full disk).
#[cfg(unix)]
fn limited(sandbox: &Sandbox, most: u64, kill: bool, args: &str) -> Outcome {
    let ignore = if kill { "" } else { "trap '' XFSZ; " };
    let pelton = env!("CARGO_BIN_EXE_pelton");
    // In blocks of 512 bytes, as POSIX says.
    let script = format!("{ignore}ulimit -f {}; exec '{pelton}' quantize {args}", most / 512);
    let mut command = std::process::Command::new("sh");
    let output = command.args(["-c", &script]).current_dir(sandbox.path("")).output().unwrap();
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[cfg(unix)]
#[test]
fn a_killed_run_and_a_full_disk_leave_the_good_file_and_the_next_run_goes_on() {
    let sandbox = sandbox();
    let same = |name: &str, other: &str| {
        let read = |name: &str| std::fs::read(sandbox.path(name)).unwrap();
        read(name) == read(other)
    };
    sandbox.run(&["quantize", "small.gguf", "whole.gguf", "--to", "Q8_0"]).ok();
    let len = std::fs::metadata(sandbox.path("whole.gguf")).unwrap().len();
    for (name, kill) in [("killed.gguf", true), ("full.gguf", false)] {
        sandbox.write(name, "a good file");
        let stopped = limited(&sandbox, len * 9 / 10, kill, &format!("small.gguf {name} --to Q8_0 --threads 1"));
        if kill {
            assert_eq!(stopped.code, None, "a signal ends it: {stopped:?}");
        } else {
            assert_eq!((stopped.code, stopped.stdout.contains("full.gguf:")), (Some(1), false), "{stopped:?}");
            for words in ["full.gguf.part", "what was written is kept", "run the same command again"] {
                assert!(stopped.stderr.contains(words), "{words}: {}", stopped.stderr);
            }
        }
        assert_eq!(std::fs::read(sandbox.path(name)).unwrap(), b"a good file");
        assert!(sandbox.path(format!("{name}.part")).exists() && sandbox.path(format!("{name}.part.journal")).exists());
        let json = sandbox.run(&["quantize", "small.gguf", name, "--to", "Q8_0", "--json"]).ok().json();
        assert!(json["resumed_tensors"].as_u64() >= Some(1), "{json}");
        assert!(same(name, "whole.gguf"), "{name} is not what an uninterrupted run writes");
    }
    assert_eq!(files_in(&sandbox), ["full.gguf", "killed.gguf", "small.gguf", "whole.gguf"]);
    // A part file of another choice is not gone on with.
    limited(&sandbox, len / 2, true, "small.gguf killed.gguf --to Q8_0 --threads 1");
    let said = sandbox.run(&["quantize", "small.gguf", "killed.gguf", "--to", "Q5_0"]).ok();
    assert!(!said.stderr.contains("went on after"), "{said:?}");
    let written: Value = sandbox.run(&["inspect", "--json", "killed.gguf"]).ok().json();
    assert!(written["bits_per_weight"].as_f64() < Some(7.0), "{written}");
}

#[test]
fn an_output_that_cannot_be_made_is_an_error_that_names_it() {
    let sandbox = sandbox();
    let away = Path::new("nowhere").join("out.gguf");
    let refused = sandbox.run(&["quantize", "small.gguf", arg(&away), "--to", "Q4_0"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("nowhere") && refused.stderr.contains("cannot open"), "{refused:?}");
}

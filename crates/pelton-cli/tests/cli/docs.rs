//! `pelton docs`: a tiny project in each format, and what it refuses.

use std::process::Command;

use serde_json::Value;

use crate::models::fixture;
use crate::pelton::{Sandbox, arg, assert_keys};

const PYTHON: &str =
    "def add(a, b):\n    return a + b\n\n\nclass Stack:\n    def push(self, x):\n        self.items.append(x)\n";
const RUST: &str = "pub struct Point {\n    pub x: f32,\n}\n\n/// Is done.\npub fn done() {}\n";

/// A project with five items, one of them documented, in a folder named `project`.
fn project() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("project/src/stack.py", PYTHON);
    sandbox.write("project/src/point.rs", RUST);
    sandbox.write("project/notes.txt", "fn no() {}");
    sandbox
}

fn docs(more: &[&str]) -> Vec<String> {
    ["docs", "project", "-n", "12"].iter().chain(more).map(ToString::to_string).collect()
}

fn run(sandbox: &Sandbox, more: &[&str]) -> crate::pelton::Outcome {
    let args = docs(more);
    sandbox.run(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn pages_link_to_file_and_line() {
    let sandbox = project();
    let outcome = run(&sandbox, &[]).ok();
    assert_eq!(outcome.stdout, "");
    for part in
        ["4 items to document in 2 files", "5 items in 2 files", "tokens/s", "items/s", "4 written", "1 from source"]
    {
        assert!(outcome.stderr.contains(part), "`{part}` is missing: {outcome:?}");
    }
    assert!(outcome.stderr.ends_with("read docs-out/index.md\n"), "{outcome:?}");
    let index = std::fs::read_to_string(sandbox.path("docs-out/index.md")).unwrap();
    assert!(index.contains("stack.py.md") && index.contains("point.rs.md") && !index.contains("notes"), "{index}");
    let page = std::fs::read_to_string(sandbox.path("docs-out/src/stack.py.md")).unwrap();
    let link = page.lines().find(|l| l.contains("project/src/stack.py#L6"));
    assert!(link.is_some(), "no link to line 6: {page}");
    let page = std::fs::read_to_string(sandbox.path("docs-out/src/point.rs.md")).unwrap();
    assert!(page.contains("Is done."), "{page}");
}

#[test]
fn records_are_one_json_object_a_line_in_order_of_the_source() {
    let outcome = run(&project(), &["--format", "jsonl"]).ok();
    let records: Vec<Value> = outcome.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let at = |r: &Value| format!("{}:{} {}", r["path"].as_str().unwrap(), r["line_start"], r["name"].as_str().unwrap());
    let expected = [
        "src/point.rs:1 Point",
        "src/point.rs:6 done",
        "src/stack.py:1 add",
        "src/stack.py:5 Stack",
        "src/stack.py:6 push",
    ];
    assert_eq!(records.iter().map(at).collect::<Vec<_>>(), expected);
    let keys = "path language kind name qualified_name line_start line_end signature doc source flags prompt_tokens \
                cached_tokens tokens";
    for record in &records {
        assert_keys(record, &keys.split_whitespace().collect::<Vec<_>>());
        assert!(!record["doc"].as_str().unwrap().is_empty(), "{record}");
    }
    assert_eq!((&records[1]["source"], &records[1]["doc"]), (&"existing".into(), &"Is done.".into()));
    assert_eq!(records[0]["source"], "model");
}

#[test]
fn the_patch_applies_and_only_adds_comments() {
    let sandbox = project();
    let patch = run(&sandbox, &["--format", "patch", "-q"]).ok();
    assert_eq!(patch.stderr, "");
    sandbox.write("docs.patch", &patch.stdout);
    let folder = sandbox.path("project");
    let git = |args: &[&str]| Command::new("git").args(args).current_dir(&folder).output().unwrap();
    let applied = git(&["apply", "--whitespace=error-all", "../docs.patch"]);
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    let python = std::fs::read_to_string(sandbox.path("project/src/stack.py")).unwrap();
    let rust = std::fs::read_to_string(sandbox.path("project/src/point.rs")).unwrap();
    assert_eq!(python.matches("\"\"\"").count(), 6, "{python}");
    assert!(python.starts_with("def add(a, b):\n    \"\"\"") && rust.starts_with("/// "), "{python}{rust}");
    let without =
        |text: &str| text.lines().filter(|l| !l.trim_start().starts_with("///")).collect::<Vec<_>>().join("\n");
    assert_eq!(without(&rust), without(RUST));
    // What is documented now is left alone by a second patch.
    let second = run(&sandbox, &["--format", "patch", "-q"]).ok();
    assert_eq!(second.stdout, "");
}

#[test]
fn out_names_the_file_or_folder() {
    let sandbox = project();
    let to_stdout = run(&sandbox, &["-f", "jsonl"]).ok();
    let to_file = run(&sandbox, &["-f", "jsonl", "-o", "new/records.jsonl"]).ok();
    assert_eq!(to_file.stdout, "");
    let text = |s: &str| {
        let docs = s.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["doc"].clone());
        docs.collect::<Vec<_>>()
    };
    let written = std::fs::read_to_string(sandbox.path("new/records.jsonl")).unwrap();
    assert_eq!(text(&written), text(&to_stdout.stdout));
    run(&sandbox, &["-o", "pages"]).ok();
    assert!(sandbox.path("pages/index.md").exists() && !sandbox.path("docs-out").exists());
}

#[test]
fn the_summary_comes_as_json() {
    let sandbox = project();
    sandbox.write("project/test_stack.py", PYTHON);
    let object = run(&sandbox, &["--json", "--show-skipped"]).ok().json();
    let keys = "files items written existing failed no_answer truncated_code truncated_replies repetitions_cut \
                prompt_tokens cached_tokens tokens seconds scan_seconds left_out skipped";
    assert_keys(&object, &keys.split_whitespace().collect::<Vec<_>>());
    assert_eq!((&object["files"], &object["items"], &object["written"]), (&2.into(), &5.into(), &4.into()));
    let skipped: Vec<_> = object["skipped"].as_array().unwrap().iter().map(|s| s["path"].as_str().unwrap()).collect();
    assert_eq!(skipped, ["notes.txt", "test_stack.py"]);
    let records = run(&sandbox, &["--json", "-f", "jsonl"]).ok();
    assert_eq!(records.stdout.lines().count(), 5);
    let summary: Value = serde_json::from_str(records.stderr.lines().last().unwrap()).unwrap();
    assert_eq!(summary["items"], 5);
}

#[test]
fn what_was_left_out_is_named_on_request() {
    let sandbox = project();
    sandbox.write("project/tests/t.py", PYTHON);
    sandbox.write("project/node_modules/m.js", "function f() {}");
    let outcome = run(&sandbox, &["--show-skipped", "-f", "jsonl"]).ok();
    assert!(outcome.stderr.contains("left out: "), "{outcome:?}");
    assert!(!outcome.stdout.contains("node_modules") && !outcome.stdout.contains("tests/t.py"), "{outcome:?}");
}

#[test]
fn a_single_file_and_a_limit() {
    let sandbox = project();
    let args = ["docs", "project/src/stack.py", "-n", "5", "-f", "jsonl", "--limit", "1"];
    let outcome = sandbox.run(&args).ok();
    assert_eq!(outcome.stdout.lines().count(), 1);
    assert!(outcome.stderr.contains("1 item to document in 1 file"), "{outcome:?}");
    assert!(outcome.stderr.contains("2 items past the limit"), "{outcome:?}");
}

#[test]
fn a_folder_without_code_says_so() {
    let sandbox = Sandbox::new();
    sandbox.write("project/readme.txt", "nothing");
    let outcome = run(&sandbox, &[]).ok();
    assert!(outcome.stderr.contains("project: no functions or types in Rust, Python"), "{outcome:?}");
}

#[test]
fn what_cannot_be_documented_or_written_is_refused() {
    let sandbox = project();
    sandbox.write("file", "");
    sandbox.run(&["docs", "nosuch"]).usage(&["nosuch", "no such file or folder"]);
    sandbox.run(&["docs", "project/notes.txt"]).usage(&["notes.txt", "Rust", "Python"]);
    run(&sandbox, &["-f", "html"]).usage(&["--format", "markdown", "jsonl", "patch"]);
    run(&sandbox, &["-f", "jsonl", "-o", "project"]).usage(&["--out project", "folder"]);
    run(&sandbox, &["-o", "file"]).usage(&["--out file", "file"]);
    run(&sandbox, &["-o", "file/below"]).failure(&["file/below"]);
    run(&sandbox, &["--parallel", "0"]).usage(&["--parallel"]);
    run(&sandbox, &["--parallel", "1000000"]).usage(&["--parallel", "1024"]);
    sandbox.run(&["docs", "project", "-n", "0"]).usage(&["--max-tokens"]);
    run(&sandbox, &["-m", arg(&fixture("qwen3"))]).failure(&["qwen3", "no tokenizer"]);
    assert!(!sandbox.path("docs-out").exists());
}

//! `--cache-packed`: the second start maps what the first one packed, and says the same.

use serde_json::Value;

use crate::models::draft;
use crate::pelton::Sandbox;

/// A sandbox with a model of its own.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("model.gguf", std::fs::read(draft()).unwrap());
    sandbox
}

const RUN: [&str; 8] = ["run", "fn main() {}", "-m", "model.gguf", "-n", "8", "--threads", "2"];

/// Runs with `--cache-packed`: the answer, and what was said of it.
#[track_caller]
fn run(sandbox: &Sandbox) -> (String, String) {
    let outcome = sandbox.run(&[&RUN[..], &["--cache-packed"]].concat()).ok();
    (outcome.stdout, outcome.stderr)
}

/// The one packed file.
fn packed_file(sandbox: &Sandbox) -> std::path::PathBuf {
    let folder = sandbox.path("../home/hub/.pelton-packed");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

#[test]
fn the_second_start_maps_what_the_first_one_packed() {
    let sandbox = sandbox();
    let plain = sandbox.run(&RUN).ok();
    assert!(!plain.stderr.contains("packed weights"), "{}", plain.stderr);
    let (first, said) = run(&sandbox);
    assert!(said.contains("packed weights stored"), "{said}");
    let (second, said) = run(&sandbox);
    assert!(said.contains("packed weights mapped"), "{said}");
    assert_eq!((&first, &second), (&plain.stdout, &plain.stdout));
}

#[test]
fn a_damaged_file_is_reported_and_made_anew() {
    let sandbox = sandbox();
    let (plain, _) = run(&sandbox);
    let file = packed_file(&sandbox);
    let whole = std::fs::read(&file).unwrap();
    let mut bytes = whole.clone();
    bytes[5000] ^= 1;
    for (damaged, why) in [(bytes.as_slice(), "damaged"), (&whole[..whole.len() / 2], "damaged"), (b"junk", "damaged")]
    {
        std::fs::write(&file, damaged).unwrap();
        let (answer, said) = run(&sandbox);
        assert!(said.contains(why) && said.contains("packed weights stored"), "{said}");
        assert_eq!(answer, plain);
        let (_, said) = run(&sandbox);
        assert!(said.contains("packed weights mapped"), "{said}");
    }
}

#[test]
fn a_model_that_has_changed_is_packed_again() {
    let sandbox = sandbox();
    run(&sandbox);
    // The same length and the same time, but for a weight.
    let model = sandbox.path("model.gguf");
    let time = std::fs::metadata(&model).unwrap().modified().unwrap();
    let mut bytes = std::fs::read(&model).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&model, bytes).unwrap();
    std::fs::File::options().write(true).open(&model).unwrap().set_modified(time).unwrap();
    let plain = sandbox.run(&RUN).ok().stdout;
    let (answer, said) = run(&sandbox);
    assert!(said.contains("out of date") && said.contains("stored"), "{said}");
    assert_eq!(answer, plain);
}

#[test]
fn packed_files_are_listed_and_removed() {
    let sandbox = sandbox();
    run(&sandbox);
    let len = std::fs::metadata(packed_file(&sandbox)).unwrap().len();
    let listed = sandbox.run(&["list"]).ok().stdout;
    assert!(listed.contains("packed weights") && listed.contains("model.gguf"), "{listed}");
    let inspected: Value =
        serde_json::from_str(&sandbox.run(&["inspect", "model.gguf", "--json"]).ok().stdout).unwrap();
    assert_eq!(inspected["packed_bytes"], len);
    let other = sandbox.run(&["rm", "--packed", "/nonexistent.gguf"]);
    assert_eq!(other.code, Some(2), "{other:#?}");
    let removed = sandbox.run(&["rm", "--packed", "model.gguf", "--json"]).ok().stdout;
    let removed: Value = serde_json::from_str(&removed).unwrap();
    assert_eq!((&removed["files"], &removed["bytes"]), (&1.into(), &len.into()));
    assert!(sandbox.run(&["rm", "--packed"]).ok().stdout.contains("0 files"));
    let (_, said) = run(&sandbox);
    assert!(said.contains("packed weights stored"), "{said}");
}

#[test]
fn a_model_in_the_binary_has_nothing_to_keep_and_says_so() {
    let sandbox = Sandbox::new();
    let said = sandbox.run(&["run", "fn main() {}", "-n", "2", "--cache-packed"]).ok().stderr;
    assert!(said.contains("not kept"), "{said}");
    assert!(!sandbox.path("../home/hub/.pelton-packed").exists());
}

#[test]
fn threads_for_prompts_may_differ_and_are_shown() {
    let sandbox = sandbox();
    let base = ["run", "fn main() {}", "-m", "model.gguf", "-n", "8", "--threads", "1"];
    let one = sandbox.run(&base).ok();
    let two = sandbox.run(&[&base[..], &["--threads-batch", "3"]].concat()).ok();
    assert!(two.stderr.contains("1 thread (3 for prompts)"), "{}", two.stderr);
    assert_eq!(one.stdout, two.stdout);
    for threads in ["0", "1025", "many"] {
        let refused = sandbox.run(&[&base[..], &["--threads-batch", threads]].concat());
        assert_eq!(refused.code, Some(2), "{refused:#?}");
    }
}

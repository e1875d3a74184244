//! `pelton pull`, `list` and `rm` against a hub on the loopback interface.

use std::path::Path;

use crate::hub::{Fault, Hub};
use crate::models::draft;
use crate::pelton::{Outcome, Sandbox, assert_keys};

const NAME: &str = "acme/draft-GGUF";

/// A sandbox and a hub that has the draft model as Q8_0 and, as Q4_0, something else.
fn hub(fault: Fault) -> (Sandbox, Hub) {
    let model = std::fs::read(draft()).unwrap();
    let hub = Hub::start(NAME, &[("draft-Q8_0.gguf", &model), ("draft-Q4_0.gguf", b"not a model")], fault);
    (Sandbox::new(), hub)
}

fn online(sandbox: &Sandbox, hub: &Hub, args: &[&str]) -> Outcome {
    sandbox.run_with(args, &[("HF_ENDPOINT", &hub.url())], "")
}

fn offline(sandbox: &Sandbox, args: &[&str]) -> Outcome {
    // Nothing listens on port 1: whoever asks the network fails.
    sandbox.run_with(args, &[("HF_ENDPOINT", "http://127.0.0.1:1"), ("HF_HUB_OFFLINE", "1")], "")
}

#[test]
fn pull_run_list_and_remove() {
    let (sandbox, hub) = hub(Fault::None);
    let model = &format!("{NAME}:Q8_0");
    offline(&sandbox, &["run", "x", "-m", model]).failure(&[model, "pelton pull"]);
    let pulled = online(&sandbox, &hub, &["pull", model]).ok();
    let path = pulled.stdout.lines().last().unwrap();
    assert!(Path::new(path).exists() && path.contains("models--acme--draft-GGUF/snapshots"), "{pulled:?}");
    assert!(pulled.stdout.contains("1 file, 2.1 MiB, 2.1 MiB downloaded"), "{pulled:?}");
    assert!(pulled.stderr.contains("pelton run -m acme/draft-GGUF:Q8_0"), "{pulled:?}");
    let again = online(&sandbox, &hub, &["pull", "-q", model]).ok();
    assert!(again.stdout.contains("was here already") && again.stderr.is_empty(), "{again:?}");
    assert_eq!(hub.downloads().len(), 1);

    let answer = offline(&sandbox, &["run", "-q", "x", "-n", "3", "-m", model]).ok();
    assert_eq!(answer.stdout, sandbox.run(&["run", "-q", "x", "-n", "3", "-m", "pelton-draft"]).ok().stdout);

    let list = offline(&sandbox, &["list"]).ok();
    assert!(list.stdout.starts_with("acme/draft-GGUF:Q8_0") && list.stdout.contains("2.1 MiB"), "{list:?}");
    let removed = offline(&sandbox, &["rm", model]).ok();
    assert!(removed.stdout.contains("1 file removed, 2.1 MiB freed"), "{removed:?}");
    let empty = offline(&sandbox, &["list"]).ok();
    assert!(empty.stdout.is_empty() && empty.stderr.contains("pelton pull"), "{empty:?}");
    offline(&sandbox, &["rm", model]).failure(&[model, "is not in"]);
}

#[test]
fn json_of_pull_list_and_remove() {
    let (sandbox, hub) = hub(Fault::None);
    let pulled = online(&sandbox, &hub, &["pull", "--json", NAME]).ok().json();
    let keys = ["model", "revision", "quant", "path", "files", "bytes", "downloaded_bytes"];
    assert_keys(&pulled, &keys);
    assert_eq!(pulled["bytes"], pulled["downloaded_bytes"]);
    let quant = pulled["quant"].as_str().unwrap();
    let listed = offline(&sandbox, &["list", "--json"]).ok().json();
    assert_keys(
        &listed[0],
        &["model", "repo", "quant", "revision", "path", "files", "bytes", "packed_bytes", "modified_unix_s"],
    );
    let name = format!("{NAME}:{quant}");
    assert_eq!((&listed[0]["model"], &listed[0]["revision"]), (&name.as_str().into(), &pulled["revision"]));
    let removed = offline(&sandbox, &["rm", "--json", &name]).ok().json();
    assert_keys(&removed, &["model", "bytes", "files", "packed_bytes"]);
    assert_eq!(offline(&sandbox, &["list", "--json"]).ok().json(), serde_json::json!([]));
}

#[test]
fn a_connection_cut_in_the_middle_is_resumed() {
    let (sandbox, hub) = hub(Fault::CutOnce);
    let model = &format!("{NAME}:Q8_0");
    let pulled = online(&sandbox, &hub, &["pull", model]).ok();
    assert!(pulled.stderr.contains("retry 1"), "{pulled:?}");
    let ranges = hub.downloads();
    assert!(ranges.len() == 2 && ranges[0].is_none(), "{ranges:?}");
    let resumed = ranges[1].as_ref().unwrap();
    assert!(resumed.starts_with("bytes=") && resumed != "bytes=0-", "{resumed}");
    let path = pulled.stdout.lines().last().unwrap();
    assert_eq!(std::fs::read(path).unwrap(), std::fs::read(draft()).unwrap());
}

#[test]
fn a_damaged_file_is_downloaded_again_or_refused() {
    let (sandbox, first) = hub(Fault::DamagedOnce);
    let model = &format!("{NAME}:Q8_0");
    let pulled = online(&sandbox, &first, &["pull", model]).ok();
    assert!(pulled.stderr.contains("draft-Q8_0.gguf: arrived damaged"), "{pulled:?}");
    let (sandbox, always) = hub(Fault::Damaged);
    online(&sandbox, &always, &["pull", model]).failure(&["draft-Q8_0.gguf", "corrupted", "hash"]);
    offline(&sandbox, &["run", "x", "-m", model]).failure(&["pelton pull"]);
}

#[test]
fn names_that_cannot_be_are_usage_errors() {
    let (sandbox, hub) = hub(Fault::None);
    online(&sandbox, &hub, &["pull", &format!("{NAME}:Q2_K")]).usage(&["Q2_K", "Q8_0", "Q4_0"]);
    online(&sandbox, &hub, &["pull", "acme"]).usage(&["acme", "ORG/NAME"]);
    online(&sandbox, &hub, &["pull", "../x/y"]).usage(&["ORG/NAME"]);
    online(&sandbox, &hub, &["rm", "acme"]).usage(&["acme", "ORG/NAME"]);
    online(&sandbox, &hub, &["pull", "acme/other"]).failure(&["acme/other", "404", "spelling"]);
}

#[test]
fn without_a_network_the_error_says_what_to_do() {
    let sandbox = Sandbox::new();
    offline(&sandbox, &["pull", NAME]).failure(&[NAME, "HF_HUB_OFFLINE"]);
    sandbox.run_with(&["list"], &[("HF_ENDPOINT", "ftp://x")], "").failure(&["HF_ENDPOINT"]);
    let mut command = sandbox.command(&["list"]);
    let output = command.env_remove("HOME").env_remove("HF_HUB_CACHE").env_remove("USERPROFILE").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && stderr.contains("HF_HUB_CACHE"), "{stderr}");
}

//! `pelton bench ladder`.

use crate::pelton::{Sandbox, arg};

const KEYS: [&str; 10] = [
    "name",
    "items_per_second",
    "seconds_per_item",
    "tokens_per_second",
    "speedup",
    "speedup_over_previous",
    "memory_bytes",
    "roofline",
    "same_answers",
    "left_off",
];

#[test]
fn rungs_are_measured_and_those_kept_are_faster() {
    let sandbox = Sandbox::new();
    let args = ["bench", "ladder", "--chunks", "4", "-n", "8", "--batch", "2,4", "--rounds", "1"];
    let object = sandbox.run(&[&args[..], &["--json", "--html", "ladder.html"]].concat()).ok().json();
    assert_eq!((&object["items"], &object["model"], &object["rounds"]), (&4.into(), &"pelton-tiny".into(), &1.into()));
    assert!(object["shared_tokens"].as_u64().unwrap() > 200, "the system prompt: {object}");
    let rungs = object["rungs"].as_array().unwrap();
    let names: Vec<&str> = rungs.iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(names[..3], ["sequential, everything off", "+ quantized weights", "+ prefix reuse"]);
    assert_eq!(names[3..6], ["+ 2 at once", "+ 4 at once", "+ int8 keys and values"]);
    let mut kept = 0.0;
    for rung in rungs {
        assert!(KEYS.iter().all(|key| rung.get(key).is_some()), "{rung}");
        let speed = rung["items_per_second"].as_f64().unwrap();
        assert!((rung["seconds_per_item"].as_f64().unwrap() * speed - 1.0).abs() < 1e-9);
        if rung["left_off"].is_null() {
            assert!(speed > kept, "{object}");
            kept = speed;
        }
    }
    let page = std::fs::read_to_string(sandbox.path("ladder.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("+ prefix reuse") && !page.contains("http"), "self-contained");
}

#[test]
fn any_code_can_be_the_job_and_the_first_rung_can_be_left_out() {
    let sandbox = Sandbox::new();
    let file = sandbox.write("src/lib.rs", "fn a() -> u8 {\n    1\n}\n\nfn b() -> u8 {\n    2\n}\n");
    let folder = file.parent().unwrap();
    sandbox.write("system.txt", "Be brief.");
    let base =
        ["bench", "ladder", "-n", "4", "--rounds", "1", "--batch", "2", "--skip-baseline", "--quantized-kv", "bf16"];
    let args = [&base[..], &["--source", arg(&folder), "--system", "system.txt"]].concat();
    let text = sandbox.run(&args).ok();
    let lines: Vec<&str> = text.stdout.lines().collect();
    assert!(lines[0].contains("2 items of"), "{}", lines[0]);
    assert!(lines[2].starts_with("rung") && lines[3].starts_with("sequential "), "{}", text.stdout);
    assert!(!text.stdout.contains("quantized weights") && text.stdout.contains("all together"), "{}", text.stdout);
    assert!(text.stderr.contains("2 to document, not 100"), "{}", text.stderr);
    for (more, words) in [
        (&["--source", "nowhere"][..], &["nowhere", "no such file"][..]),
        (&["--batch", "0"], &["--batch"]),
        (&["--base-model", "pelton-draft"], &["--skip-baseline"]),
    ] {
        sandbox.run(&[&base[..], more].concat()).usage(words);
    }
    sandbox.run(&["bench", "ladder", "--max-tokens", "5000"]).usage(&["--max-tokens", "no room"]);
    let empty = sandbox.write("empty/notes.txt", "nothing");
    sandbox.run(&[&base[..], &["--source", arg(&empty.parent().unwrap())]].concat()).usage(&["nothing to document"]);
}

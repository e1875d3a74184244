//! `pelton run` and piped `pelton chat`.

use std::io::Read;
use std::process::Stdio;

use crate::models::{draft, fixture};
use crate::pelton::{Outcome, Sandbox, arg, assert_keys};

const CODE: &str = "def add(a, b):\n    return a + b";

fn run(args: &[&str]) -> Outcome {
    Sandbox::new().run(&[&["run"], args].concat())
}

#[test]
fn the_answer_is_on_stdout_and_the_figures_on_stderr() {
    let outcome = run(&[CODE, "-n", "6"]).ok();
    assert!(outcome.stdout.ends_with('\n') && outcome.stdout.trim().len() > 3, "{outcome:?}");
    let figures = outcome.stderr.lines().last().unwrap();
    for part in ["[", " tokens in ", " tokens/s", "first token ", "prompt ", " 0 cached"] {
        assert!(figures.contains(part), "`{part}` is missing: {figures}");
    }
    assert!(outcome.stderr.starts_with("pelton-tiny · "), "{outcome:?}");
}

#[test]
fn quiet_leaves_only_the_answer() {
    let outcome = run(&["-q", CODE, "-n", "6"]).ok();
    assert_eq!(outcome.stderr, "");
    assert_eq!(outcome.stdout, run(&[CODE, "-n", "6"]).stdout);
}

#[test]
fn json_has_text_reason_and_ledger() {
    let outcome = run(&["--json", CODE, "-n", "3"]).ok();
    let object = outcome.json();
    assert_keys(&object, &["model", "text", "finish_reason", "timing"]);
    let ledger = ["prompt_tokens", "cached_tokens", "tokens", "queue_ms", "first_token_ms", "total_ms", "tokens_per_s"];
    assert_keys(&object["timing"], &[&ledger[..], &["preemptions", "speculation"]].concat());
    assert_eq!((&object["model"], &object["finish_reason"]), (&"pelton-tiny".into(), &"max_tokens".into()));
    assert_eq!(object["timing"]["tokens"], 3);
    assert_eq!(outcome.stdout.lines().count(), 1);
}

#[test]
fn a_dash_reads_stdin() {
    let piped = Sandbox::new().pipe(&["run", "-q", "-", "-n", "6"], CODE).ok();
    assert_eq!(piped.stdout, run(&["-q", CODE, "-n", "6"]).stdout);
}

#[test]
fn the_same_seed_gives_the_same_output() {
    let seeded = |seed: &str| run(&["-q", CODE, "-n", "12", "--temperature", "1.5", "--seed", seed]).ok().stdout;
    assert_eq!(seeded("7"), seeded("7"));
    let others: Vec<String> = ["8", "9", "10"].map(seeded).into();
    assert!(others.iter().any(|text| *text != seeded("7")), "the seed has no effect: {others:?}");
}

#[test]
fn a_stop_string_ends_the_answer_even_across_tokens() {
    let whole = run(&["-q", CODE, "-n", "8"]).ok().stdout;
    // From the middle of the second word to the middle of the third: a boundary of tokens lies between.
    let words: Vec<&str> = whole.split_whitespace().collect();
    let stop = format!("{} {}", &words[1][words[1].len() / 2..], &words[2][..1]);
    let outcome = run(&["--json", CODE, "-n", "8", "--stop", "never there", "--stop", &stop]).ok();
    let object = outcome.json();
    assert_eq!(object["finish_reason"], "stop_string", "{stop:?}");
    assert_eq!(object["text"].as_str().unwrap(), whole.split(&stop).next().unwrap());
}

#[test]
fn a_bias_forbids_and_forces_tokens() {
    let sandbox = Sandbox::new();
    let ids = sandbox.pipe(&["tokenize"], " stack").ok().json();
    let id = ids[0].as_u64().unwrap();
    let piece = sandbox.pipe(&["tokenize", "--decode"], format!("[{id}]")).ok().stdout;
    let forced = run(&["-q", CODE, "--raw", "-n", "2", "--logit-bias", &format!("{id}=1000")]).ok().stdout;
    assert_eq!(forced.trim_end(), piece.repeat(2));
    let both = [format!("{id}=1000"), format!("{id}=-inf")];
    let forbidden = run(&["-q", CODE, "--raw", "-n", "2", "--logit-bias", &both[1]]).ok().stdout;
    assert_ne!(forbidden, forced);
}

#[test]
fn raw_continues_and_a_system_message_changes_the_prompt() {
    let tokens = |args: &[&str]| {
        run(&[&["--json", CODE, "-n", "1"], args].concat()).ok().json()["timing"]["prompt_tokens"].as_u64()
    };
    let (plain, raw) = (tokens(&[]), tokens(&["--raw"]));
    assert!(raw < plain, "{raw:?} {plain:?}");
    assert_ne!(tokens(&["--system", "You are a very thorough reviewer of code."]), plain);
    run(&[CODE, "--raw", "--system", "x"]).usage(&["--raw", "--system"]);
}

/// That the sets agree is for `eval logits` to show: a near tie may fall either way.
#[test]
fn every_instruction_set_can_be_forced() {
    let sandbox = Sandbox::new();
    let with = |isa: &str| sandbox.run_with(&["run", CODE, "-n", "2"], &[("PELTON_ISA", isa)], "");
    let refused = with("nonsense").usage(&["PELTON_ISA", "nonsense", "scalar"]);
    for isa in ["scalar", "avx2", "avx512"].iter().filter(|isa| refused.stderr.contains(**isa)) {
        let outcome = with(isa).ok();
        assert!(outcome.stderr.contains(&format!("cpu {isa}")), "{outcome:?}");
        assert_eq!(outcome.stdout, with(isa).ok().stdout, "{isa}");
    }
    let reference = sandbox.run(&["run", "--reference", CODE, "-n", "2"]).ok();
    assert!(reference.stderr.contains("reference scalar"), "{reference:?}");
}

#[test]
fn options_out_of_range_are_named_before_anything_is_loaded() {
    let table: &[(&[&str], &str)] = &[
        (&["--max-tokens", "0"], "--max-tokens"),
        (&["--temperature", "-1"], "--temperature"),
        (&["--temperature", "nan"], "--temperature"),
        (&["--top-p", "2"], "--top-p"),
        (&["--top-p", "0"], "--top-p"),
        (&["--min-p", "-0.1"], "--min-p"),
        (&["--top-k", "many"], "--top-k"),
        (&["--repetition-penalty", "0"], "--repetition-penalty"),
        (&["--presence-penalty", "inf"], "--presence-penalty"),
        (&["--seed", "-1"], "--seed"),
        (&["--stop", ""], "--stop"),
        (&["--logit-bias", "5"], "--logit-bias"),
        (&["--threads", "0"], "--threads"),
        (&["--threads", "100000"], "--threads"),
        (&["--context", "0"], "--context"),
        (&["--batch-rows", "0"], "--batch-rows"),
        (&["--kv-type", "f8"], "--kv-type"),
    ];
    for (args, option) in table {
        let outcome = run(&[&[CODE], *args].concat()).usage(&[option]);
        assert!(!outcome.stderr.contains("loaded in"), "{outcome:?}");
    }
}

#[test]
fn what_the_model_cannot_hold_is_refused() {
    run(&[CODE, "--context", "100000000"]).usage(&["--context 100000000", "pelton-tiny", "1024"]);
    run(&[CODE, "--context", "4"]).usage(&["prompt has", "--context"]);
    run(&[CODE, "--logit-bias", "99999=1"]).usage(&["--logit-bias 99999", "8191"]);
    let long = "word ".repeat(3000);
    Sandbox::new().pipe(&["run", "-"], &long).usage(&["the prompt has", "1024", "shorten"]);
    let outcome = run(&[CODE, "-n", "99999", "--stop", "e"]).ok();
    assert!(outcome.stderr.contains("leaves room for"), "{outcome:?}");
}

#[test]
fn empty_and_invalid_prompts_are_refused() {
    run(&[""]).usage(&["prompt is empty"]);
    run(&["  \n"]).usage(&["prompt is empty"]);
    Sandbox::new().pipe(&["run", "-"], "").usage(&["prompt is empty"]);
    Sandbox::new().pipe(&["run", "-"], b"ab\xffc").failure(&["stdin", "UTF-8", "byte 2"]);
    Sandbox::new().pipe(&["chat"], " \n").usage(&["stdin", "empty"]);
}

#[test]
fn a_model_without_a_tokenizer_says_so() {
    run(&[CODE, "-m", arg(&fixture("qwen3"))]).failure(&["qwen3", "no tokenizer", "tokenizer.json"]);
}

#[test]
fn a_gguf_file_is_the_model_it_holds() {
    let file = run(&["-q", CODE, "-n", "4", "-m", arg(&draft())]).ok();
    let embedded = run(&["-q", CODE, "-n", "4", "-m", "pelton-draft"]).ok();
    assert_eq!(file.stdout, embedded.stdout);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.command(&["run", CODE, "-n", "60", "--temperature", "2"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !stderr.contains("panicked") && !stderr.contains("error"), "{stderr}");
}

#[test]
fn chat_answers_what_is_piped_in() {
    let outcome = Sandbox::new().pipe(&["chat", "-n", "5"], format!("{CODE}\n")).ok();
    assert_eq!(outcome.stdout, run(&[CODE, "-n", "5"]).stdout);
    assert!(outcome.stderr.contains("tokens/s"), "{outcome:?}");
}

//! `pelton route`, and `--route` of other commands.

use crate::pelton::{Sandbox, arg, assert_keys};

const PAIR: &str = "small=pelton-draft,large=pelton-tiny";

/// Simple ones and hard ones.
const QUESTIONS: &str = concat!(
    "{\"lang\": \"rust\", \"code\": \"fn add(a: u32, b: u32) -> u32 { a + b }\"}\n",
    "{\"question\": \"What is a list?\"}\n",
    "{\"question\": \"Why is it slow?\"}\n",
    "{\"prompt\": \"Compare lists and arrays.\"}\n",
);

#[test]
fn rules_are_words_and_a_file() {
    let sandbox = Sandbox::new();
    let words = sandbox.run(&["route", "rules"]).ok().stdout;
    assert!(words.lines().count() >= 8 && words.contains("1. with tools on offer: large"), "{words}");
    let file = sandbox.write("rules.json", sandbox.run(&["route", "rules", "--json"]).ok().stdout);
    assert_eq!(sandbox.run(&["route", "rules", arg(&file)]).ok().stdout, words);
    sandbox.write("bad.json", "{\"most_wrods\": 3}");
    sandbox.run(&["route", "rules", "bad.json"]).usage(&["bad.json", "most_wrods"]);
}

#[test]
fn an_evaluation_counts_what_was_routed() {
    let sandbox = Sandbox::new();
    sandbox.write("questions.jsonl", QUESTIONS);
    let args = ["route", "eval", "questions.jsonl", "--route", PAIR, "-n", "12", "--json"];
    let object = sandbox.run(&args).ok().json();
    assert_eq!((&object["questions"], &object["to_small"], &object["to_large"]), (&4.into(), &2.into(), &2.into()));
    assert_eq!((&object["handed_over"], &object["share_small"]), (&0.into(), &0.5.into()));
    let agreement = object["agreement"].as_f64().unwrap();
    let small = object["agreement_small"].as_f64().unwrap();
    assert!((agreement - (1.0 + small) / 2.0).abs() < 1e-9 && (0.0..=1.0).contains(&small), "{object}");
    let (large, routed) = (object["seconds_large"].as_f64().unwrap(), object["seconds_routed"].as_f64().unwrap());
    assert!((object["time_saved"].as_f64().unwrap() - (1.0 - routed / large)).abs() < 1e-9);
    assert_eq!(object["each"][2]["why"], "it says \"why\", which asks for thought");
    let table = sandbox.run(&args[..args.len() - 1]).ok().stdout;
    assert!(table.contains("handed over") && table.contains("50 %"), "{table}");
    sandbox.run(&["route", "eval", "none.jsonl", "--route", PAIR]).usage(&["none.jsonl"]);
    sandbox.run(&["route", "eval", "questions.jsonl", "--route", "small=pelton-tiny"]).usage(&["large=MODEL"]);
}

#[test]
fn a_line_is_learned_written_and_kept_to() {
    let sandbox = Sandbox::new();
    sandbox.write("questions.jsonl", QUESTIONS);
    let learn = ["route", "learn", "questions.jsonl", "--route", PAIR, "-n", "12", "--agreement", "0", "--json"];
    let learned = sandbox.run(&learn).ok().json();
    assert_keys(&learned, &["questions", "least_mean_logprob", "kept", "agreement", "file"]);
    assert_eq!((&learned["questions"], &learned["kept"]), (&4.into(), &1.0.into()), "no agreement is asked for");
    let eval =
        ["route", "eval", "questions.jsonl", "--route", PAIR, "-n", "12", "--json", "--route-rules", "route.json"];
    assert_eq!(sandbox.run(&eval).ok().json()["handed_over"], 0, "what stood stands");
    let words = sandbox.run(&["route", "rules", "route.json"]).ok().stdout;
    assert!(words.contains(&format!("{:.3}", learned["least_mean_logprob"].as_f64().unwrap())), "{words}");
    let mut never = learn.to_vec();
    never[8] = "1";
    sandbox.run(&never).usage(&["no line gives an agreement of 1", "--agreement"]);
}

#[test]
fn run_says_who_answered_and_why() {
    let sandbox = Sandbox::new();
    let run = |question: &str, more: &[&str]| {
        sandbox.run(&[&["run", question, "--route", PAIR, "-n", "6", "--json"], more].concat()).ok().json()
    };
    let simple = run("What is a list?", &[]);
    assert_eq!((&simple["model"], &simple["route"]["to"]), (&"pelton-draft".into(), &"small".into()));
    let hard = run("Why is it slow?", &[]);
    assert_eq!((&hard["model"], &hard["route"]["to"]), (&"pelton-tiny".into(), &"large".into()));
    let line = |least: &str| format!("{{\"confidence\": {{\"least_mean_logprob\": {least}}}}}");
    sandbox.write("strict.json", line("0"));
    let handed_over = run("What is a list?", &["--route-rules", "strict.json"]);
    assert_eq!(handed_over["model"], "pelton-tiny");
    assert!(handed_over["route"]["why"].as_str().unwrap().contains("was not sure"), "{handed_over}");
    sandbox.write("lenient.json", line("-1e9"));
    let stands = run("What is a list?", &["--route-rules", "lenient.json"]);
    assert_eq!((&stands["model"], &stands["text"]), (&"pelton-draft".into(), &simple["text"]));
    let said = sandbox.run(&["run", "What is a list?", "--route", PAIR, "-n", "6"]).ok();
    assert!(said.stderr.contains("answered by pelton-draft, the small model: "), "{}", said.stderr);
    sandbox.run(&["run", "x", "--route", PAIR, "-m", "pelton-tiny"]).usage(&["exclude each other"]);
    sandbox.run(&["run", "x", "--route-rules", "strict.json"]).usage(&["--route"]);
}

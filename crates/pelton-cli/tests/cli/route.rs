//! `pelton route`, and `--route` of other commands.

use crate::models::small_of_context;
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
    assert!(handed_over["route"]["handed_over_after_ms"].as_f64().unwrap() > 0.0, "{handed_over}");
    assert!(hard["route"].get("handed_over_after_ms").is_none(), "{hard}");
    sandbox.write("lenient.json", line("-1e9"));
    let stands = run("What is a list?", &["--route-rules", "lenient.json"]);
    assert_eq!((&stands["model"], &stands["text"]), (&"pelton-draft".into(), &simple["text"]));
    let said = sandbox.run(&["run", "What is a list?", "--route", PAIR, "-n", "6"]).ok();
    assert!(said.stderr.contains("answered by pelton-draft, the small model: "), "{}", said.stderr);
    sandbox.run(&["run", "x", "--route", PAIR, "-m", "pelton-tiny"]).usage(&["exclude each other"]);
    sandbox.run(&["run", "x", "--route-rules", "strict.json"]).usage(&["--route"]);
}

#[test]
fn what_the_small_model_has_no_room_for_is_the_large_ones() {
    let sandbox = Sandbox::new();
    small_of_context(&sandbox, 160);
    sandbox.write("lax.json", "{\"most_words\": 100000}");
    let pair = "small=./small.gguf,large=pelton-tiny";
    let run = |prompt: &str, more: &[&str]| {
        let args = ["run", "-", "--route", pair, "--route-rules", "lax.json", "--context", "512"];
        sandbox.pipe(&[&args[..], more].concat(), prompt)
    };
    let long = "a list of lists ".repeat(60);
    let outcome = run(&long, &["-n", "6"]).ok();
    assert!(
        outcome.stderr.contains("a context of 512: small holds 160; what is longer goes to the large"),
        "{outcome:?}"
    );
    assert!(outcome.stderr.contains("the large model: prompt and answer may take"), "{outcome:?}");
    assert_eq!(outcome.stdout, sandbox.pipe(&["run", "-", "-n", "6"], &long).ok().stdout);
    // An answer of unknown length counts for something: the small one is not asked where it would be cut at once.
    let prompt = "a list of lists ".repeat(15);
    let to = |more: &[&str]| run(&prompt, &[&["--json"], more].concat()).ok().json()["route"]["to"].clone();
    assert_eq!((to(&["-n", "6"]), to(&["--stop", " "])), ("small".into(), "large".into()));
    // Where neither has room, the large one says so.
    run(&"a list of lists ".repeat(300), &["-n", "6"]).usage(&["the context holds 512"]);
    // In chat and in docs it is the same.
    let args = ["-n", "6", "--route", pair, "--route-rules", "lax.json"];
    let said = sandbox.pipe(&[&["chat"], &args[..]].concat(), &long).ok().stderr;
    assert!(said.contains("answered by pelton-tiny, the large model: prompt and answer may take"), "{said}");
    let lines: String = (0..30).map(|i| format!("    a = a + {i}\n")).collect();
    sandbox.write("project/long.py", format!("def f(a):\n{lines}    return a\n\n\ndef g(a):\n    return a\n"));
    let object = sandbox.run(&[&["docs", "project", "--json"], &args[..]].concat()).ok().json();
    assert_eq!((&object["route"]["small"]["items"], &object["route"]["large"]["items"]), (&1.into(), &1.into()));
    assert_eq!(object["truncated_code"], 0, "the prompt is made for the large one");
    assert!(object["route"]["each"][0]["why"].as_str().unwrap().contains("the small model holds 160"), "{object}");
}

#[test]
fn a_question_too_long_for_the_small_model_ends_no_evaluation() {
    let sandbox = Sandbox::new();
    small_of_context(&sandbox, 160);
    let long = "a list of lists ".repeat(60);
    sandbox.write("questions.jsonl", format!("{QUESTIONS}{{\"question\": \"{long}\"}}\n"));
    let args = ["questions.jsonl", "--route", "small=./small.gguf,large=pelton-tiny", "-n", "8", "--json"];
    let object = sandbox.run(&[&["route", "eval"], &args[..]].concat()).ok().json();
    assert_eq!((&object["questions"], &object["to_large"]), (&5.into(), &3.into()));
    let last = &object["each"][4];
    assert!(last["small"].is_null() && last["agreement"].is_null() && last["large"].is_string(), "{last}");
    let outcome = sandbox.run(&[&["route", "learn", "--agreement", "0"], &args[..]].concat()).ok();
    assert_eq!(outcome.json()["questions"], 4);
    assert!(outcome.stderr.contains("left out, since ./small.gguf has no room for them: 1"), "{outcome:?}");
    // Longer than both: the message says which.
    let longer = "a list of lists ".repeat(400);
    sandbox.write("questions.jsonl", format!("{QUESTIONS}{{\"question\": \"{longer}\"}}\n"));
    sandbox.run(&[&["route", "eval"], &args[..]].concat()).usage(&["questions.jsonl: question 5", "the context holds"]);
    sandbox.run(&[&["route", "learn", "-o", "no/route.json"], &args[..]].concat()).usage(&["there is no folder no"]);
}

#[test]
fn a_line_learned_for_another_model_is_said() {
    let sandbox = Sandbox::new();
    sandbox.write("other.json", "{\"confidence\": {\"least_mean_logprob\": -1e9, \"model\": \"other\"}}");
    let args = ["run", "What is a list?", "--route", PAIR, "-n", "4", "--route-rules", "other.json"];
    let stderr = sandbox.run(&args).ok().stderr;
    assert!(stderr.contains("learned for other; pelton-draft may be sure in other ways"), "{stderr}");
    sandbox.write("odd.json", "[]");
    sandbox.run(&[&args[..7], &["odd.json"]].concat()).usage(&["odd.json", "expected an object"]);
}

#[test]
fn chat_says_who_answered_and_why() {
    let sandbox = Sandbox::new();
    let chat = |text: &str, more: &[&str]| sandbox.pipe(&[&["chat", "-n", "6", "--route", PAIR], more].concat(), text);
    let simple = chat("What is a list?", &[]).ok();
    assert!(simple.stderr.contains("answered by pelton-draft, the small model: no rule asks"), "{simple:?}");
    let alone = |model| sandbox.pipe(&["chat", "-n", "6", "-m", model], "What is a list?").ok().stdout;
    assert_eq!(simple.stdout, alone("pelton-draft"));
    sandbox.write("strict.json", "{\"confidence\": {\"least_mean_logprob\": 0}}");
    let handed_over = chat("What is a list?", &["--route-rules", "strict.json"]).ok();
    assert_eq!(handed_over.stdout, alone("pelton-tiny"), "nothing of the small model's answer is shown");
    for part in ["answered by pelton-tiny, the large model: ", "was not sure", "prompt tokens anew"] {
        assert!(handed_over.stderr.contains(part), "`{part}` is missing: {handed_over:?}");
    }
    assert_eq!(chat("Why?", &["-q"]).ok().stderr, "");
    chat("x", &["-m", "pelton-tiny"]).usage(&["exclude each other"]);
    sandbox.pipe(&["chat", "--route-rules", "strict.json"], "x").usage(&["--route"]);
    sandbox.pipe(&["chat", "--route", "small=pelton-draft"], "x").usage(&["large=MODEL"]);
    chat("x", &["--route-rules", "none.json"]).usage(&["none.json", "no such file"]);
}

/// Two functions that the rules below leave to the small model, and one that they do not.
const CODE: &str = concat!(
    "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n\n\n",
    "def many(a):\n    b = [a + 1, a + 2, a + 3, a + 4, a + 5, a + 6]\n    c = [x * x for x in b if x > a]\n",
    "    return sum(b) + sum(c) + max(b) - min(c) + len(b) * len(c) + abs(a)\n",
);

#[test]
fn docs_routes_each_item_and_counts() {
    let sandbox = Sandbox::new();
    sandbox.write("project/math.py", CODE);
    sandbox.write("rules.json", "{\"most_prompt_tokens\": 90}");
    let docs = |more: &[&str]| {
        let args = ["docs", "project", "-n", "12", "--route", PAIR, "--route-rules", "rules.json"];
        sandbox.run(&[&args[..], more].concat())
    };
    let object = docs(&["--json"]).ok().json();
    let route = &object["route"];
    assert_keys(route, &["small", "large", "handed_over", "each"]);
    assert_eq!((&route["small"]["model"], &route["small"]["items"]), (&"pelton-draft".into(), &2.into()));
    assert_eq!((&route["large"]["model"], &route["large"]["items"]), (&"pelton-tiny".into(), &1.into()));
    assert_eq!(route["handed_over"]["items"], 0);
    for side in ["small", "large"] {
        assert_keys(&route[side], &["model", "items", "tokens", "seconds"]);
        assert!(route[side]["seconds"].as_f64().unwrap() > 0.0, "{route}");
    }
    let tokens = |side: &str| route[side]["tokens"].as_u64().unwrap();
    assert_eq!(tokens("small") + tokens("large"), object["tokens"].as_u64().unwrap());
    let each = route["each"].as_array().unwrap();
    let told = |i: usize| [&each[i]["name"], &each[i]["to"], &each[i]["model"]].map(|v| v.as_str().unwrap());
    assert_eq!(told(0), ["math.add", "small", "pelton-draft"]);
    assert_eq!(told(2), ["math.many", "large", "pelton-tiny"]);
    assert_eq!((&each[2]["path"], &each[2]["line"]), (&"math.py".into(), &9.into()));
    assert!(each[2]["why"].as_str().unwrap().contains("more than 90"), "{each:?}");
    // The records carry the same, and the text is what that model alone writes.
    let records =
        |text: &str| -> Vec<serde_json::Value> { text.lines().map(|l| serde_json::from_str(l).unwrap()).collect() };
    let routed = records(&docs(&["-f", "jsonl", "-q"]).ok().stdout);
    let alone = |model| records(&sandbox.run(&["docs", "project", "-n", "12", "-f", "jsonl", "-m", model]).ok().stdout);
    for (i, model) in ["pelton-draft", "pelton-draft", "pelton-tiny"].into_iter().enumerate() {
        assert_eq!(routed[i]["author"]["model"], model);
        assert_eq!(routed[i]["doc"], alone(model)[i]["doc"], "{model}");
    }
    let said = docs(&["-o", "pages"]).ok().stderr;
    assert!(said.contains("pelton-draft (small) wrote 2 items and "), "{said}");
    assert!(said.contains("pelton-tiny (large) wrote 1 item and "), "{said}");
}

#[test]
fn docs_hands_over_what_is_not_sure() {
    let sandbox = Sandbox::new();
    sandbox.write("project/math.py", CODE);
    sandbox.write("strict.json", "{\"confidence\": {\"least_mean_logprob\": 0}, \"most_prompt_tokens\": 90}");
    let args = ["docs", "project", "-n", "12", "--route", PAIR, "--route-rules", "strict.json", "--json"];
    let object = sandbox.run(&args).ok().json();
    let route = &object["route"];
    assert_eq!((&route["small"]["items"], &route["large"]["items"]), (&0.into(), &3.into()));
    assert_eq!((&route["handed_over"]["items"], &object["written"]), (&2.into(), &3.into()));
    assert!(route["each"][0]["why"].as_str().unwrap().contains("was not sure"), "{route}");
    let said = sandbox.run(&args[..8]).ok().stderr;
    assert!(said.contains("2 more that it was not sure of"), "{said}");
    let both = [&args[..6], &["-m", "pelton-tiny"]].concat();
    sandbox.run(&both).usage(&["exclude each other"]);
    sandbox.run(&["docs", "project", "--route-rules", "strict.json"]).usage(&["--route"]);
    sandbox.run(&["docs", "project", "--route", "small=pelton-draft,large=nosuch"]).usage(&["nosuch"]);
    assert!(!sandbox.path("pages").exists());
}

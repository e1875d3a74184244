//! `pelton bench serve` against a server whose delays, counts and faults are known.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::mock_server::{Act, Mock, TEMPLATE_TOKENS, TOKENS_PER_WORD, prompt, prompt_words};
use crate::pelton::{Sandbox, arg, assert_keys};

const FIRST: Duration = Duration::from_millis(80);
const NEXT: Duration = Duration::from_millis(30);

/// Four pieces of text, five tokens.
fn paced(_body: &Value) -> Vec<Act> {
    let mut acts = vec![Act::Wait(FIRST), Act::Token("a")];
    for text in ["b", "c", "d"] {
        acts.extend([Act::Wait(NEXT), Act::Token(text)]);
    }
    acts.push(Act::End(5));
    acts
}

/// Answers the two requests that measure the tokenizer, and does `then` with all others.
fn after_measuring(then: Vec<Act>) -> impl Fn(&Value) -> Vec<Act> {
    let n = AtomicUsize::new(0);
    move |_| if n.fetch_add(1, Ordering::SeqCst) < 2 { vec![Act::Token("x"), Act::End(1)] } else { then.clone() }
}

fn bench(mock: &Mock, args: &[&str]) -> crate::pelton::Outcome {
    Sandbox::new().run(&[&["bench", "serve", "--url", &mock.url()], args].concat())
}

#[test]
fn latencies_and_counts_are_those_of_the_server() {
    let mock = Mock::start(paced);
    let args = ["--clients", "1,3", "--requests", "6", "--warmup", "2", "--json", "-", "-n", "5", "--ignore-eos"];
    let object = bench(&mock, &args).ok().json();
    assert_eq!(object["model"], "mock", "the first that is listed");
    let levels = object["levels"].as_array().unwrap();
    assert_eq!(levels.len(), 2);
    for (level, clients) in levels.iter().zip([1, 3]) {
        assert_eq!(level["clients"], clients);
        assert_eq!((&level["requests"], &level["failed"]), (&6.into(), &0.into()));
        assert_eq!((&level["answer_tokens"], &level["mean_cached_tokens"]), (&30.into(), &7.0.into()));
        let of = |name: &str, what: &str| level[name][what].as_f64().unwrap();
        let count = |name: &str| level[name]["count"].as_u64().unwrap();
        assert_eq!(["ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"].map(count), [6, 6, 18, 6]);
        // A sleep is never too short, and on a busy machine it may be too long by much.
        assert!(of("ttft_ms", "least") >= 80.0 && of("ttft_ms", "p50") < 400.0, "{level}");
        assert!(of("itl_ms", "p50") >= 25.0 && of("itl_ms", "p50") < 150.0, "{level}");
        assert!(of("e2e_ms", "least") >= 170.0, "{level}");
        // Three intervals of 30 ms for four tokens after the first one.
        let tpot = of("tpot_ms", "mean") * 4.0 / (of("itl_ms", "mean") * 3.0);
        assert!((tpot - 1.0).abs() < 1e-9, "{tpot}");
        let rate = of_number(level, "tokens_per_second") * of_number(level, "seconds");
        assert!((rate - 30.0).abs() < 1e-6);
        assert_eq!(level["each"].as_array().unwrap().len(), 6);
    }
    let requests = mock.requests();
    assert_eq!(requests.len(), 2 + 2 + 12);
    // A connection for each, and one for the list of models: none is used again.
    assert_eq!(mock.n_connections(), requests.len() + 1);
    let body = &requests.last().unwrap().0;
    assert_eq!((&body["max_tokens"], &body["stream"], &body["ignore_eos"]), (&5.into(), &true.into(), &true.into()));
}

fn of_number(level: &Value, name: &str) -> f64 {
    level[name].as_f64().unwrap()
}

#[test]
fn prompts_have_the_length_and_the_beginning_that_were_asked_for() {
    let mock = Mock::start(|_| vec![Act::Token("x"), Act::End(1)]);
    let args =
        ["--clients", "2", "--requests", "4", "--warmup", "0", "-p", "210", "--shared-tokens", "110", "--json", "-"];
    let object = bench(&mock, &args).ok().json();
    assert_eq!(object["levels"][0]["mean_prompt_tokens"], 210.0);
    let requests = mock.requests();
    let prompts: Vec<&str> = requests[2..].iter().map(|(body, _)| prompt(body)).collect();
    let words: Vec<Vec<&str>> = prompts.iter().map(|p| p.split(' ').collect()).collect();
    let n_shared = (110 - TEMPLATE_TOKENS) / TOKENS_PER_WORD;
    for other in &words[1..] {
        assert_eq!(other.len(), (210 - TEMPLATE_TOKENS) / TOKENS_PER_WORD);
        assert_eq!(other[..n_shared], words[0][..n_shared]);
        assert_ne!(other[n_shared..], words[0][n_shared..]);
    }
    let again = Mock::start(|_| vec![Act::Token("x"), Act::End(1)]);
    bench(&again, &args).ok();
    let sorted = |mock: &Mock| {
        let mut all: Vec<String> = mock.requests().iter().map(|(body, _)| body.to_string()).collect();
        all.sort();
        all
    };
    assert_eq!(sorted(&mock), sorted(&again), "a seed gives the same load");
}

#[test]
fn an_open_loop_does_not_wait_for_answers() {
    let slow = || vec![Act::Wait(Duration::from_millis(400)), Act::Token("x"), Act::End(1)];
    let mock = Mock::start(after_measuring(slow()));
    let args = ["--rate", "100", "--requests", "30", "--warmup", "0", "--json", "-", "--endpoint", "completions"];
    let object = bench(&mock, &args).ok().json();
    let level = &object["levels"][0];
    assert_eq!((&level["rate"], &level["clients"], &level["requests"]), (&100.0.into(), &Value::Null, &30.into()));
    let seconds = of_number(level, "seconds");
    assert!(seconds < 4.0, "30 answers of 0.4 s one after the other would take 12 s: {seconds}");
    assert!(mock.requests().iter().all(|(body, _)| body["prompt"].is_string() && body["messages"].is_null()));
}

#[test]
fn each_fault_is_an_error_of_its_kind() {
    let raw = |text: &str| vec![Act::Token("a"), Act::Raw(text.to_string()), Act::End(1)];
    let cases = [
        (vec![Act::Status(429, r#"{"error":{"message":"come back later"}}"#)], "HTTP 429", "come back later"),
        (vec![Act::Status(500, "boom")], "HTTP 500", "boom"),
        (raw("data: {\"choices\": 7}\n\n"), "malformed stream", "invalid type"),
        (raw("data: not json\n\n"), "malformed stream", "not json"),
        (raw("data: {\"error\":{\"message\":\"out of pages\"}}\n\n"), "error in the stream", "out of pages"),
        (vec![Act::Token("a"), Act::Hang], "stream cut off", ""),
        (vec![Act::Token("a"), Act::Raw("data: {\"choices\":[]}\n\n".into())], "stream cut off", "1 pieces of text"),
        (vec![Act::End(0)], "no text", "--ignore-eos"),
        (vec![Act::Wait(Duration::from_millis(2500)), Act::Token("a"), Act::End(1)], "timeout", ""),
    ];
    std::thread::scope(|scope| {
        for (acts, kind, said) in &cases {
            scope.spawn(move || {
                let mock = Mock::start(after_measuring(acts.clone()));
                let args = ["--clients", "2", "--requests", "2", "--warmup", "0", "--timeout", "1", "--json", "-"];
                let outcome = bench(&mock, &args);
                assert_eq!(outcome.code, Some(1), "{outcome:?}");
                assert!(outcome.stderr.contains("2 of 2 requests failed"), "{outcome:?}");
                let level = outcome.json()["levels"][0].clone();
                assert_eq!((&level["failed"], &level["ttft_ms"]), (&2.into(), &Value::Null));
                let error = &level["errors"][0];
                assert_eq!((error["kind"].as_str().unwrap(), &error["count"]), (*kind, &2.into()), "{error}");
                assert!(error["first"].as_str().unwrap().contains(said), "{error}");
            });
        }
    });
}

#[test]
fn a_long_prompt_is_told_apart() {
    // While the long prompt is read, the others' tokens come four times as slowly.
    let reading = AtomicUsize::new(0);
    let mock = Mock::start(move |body| {
        if prompt_words(body) > 1000 {
            reading.store(1, Ordering::SeqCst);
            return vec![Act::Wait(Duration::from_millis(900)), Act::Token("x"), Act::End(1)];
        }
        let gap = Duration::from_millis(if reading.load(Ordering::SeqCst) > 0 { 80 } else { 20 });
        let five = (0..5).flat_map(|_| [Act::Token("a"), Act::Wait(gap)]);
        five.chain([Act::Token("a"), Act::End(6)]).collect()
    });
    let page = Sandbox::new();
    let (html, json) = (page.path("report.html"), page.path("out.json"));
    let url = mock.url();
    let args = [
        "bench",
        "serve",
        "--url",
        &url,
        "--clients",
        "2",
        "--requests",
        "4",
        "--long-prompt",
        "4000",
        "--long-after",
        "0.4",
    ];
    let outcome = page.run(&[&args[..], &["--html", arg(&html), "--json", arg(&json)]].concat()).ok();
    assert!(outcome.stdout.contains("before the long prompt") && outcome.stdout.contains("during it"), "{outcome:?}");
    assert!(outcome.stdout.contains("mock at http://127.0.0.1:"), "{outcome:?}");
    let object: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let level = &object["levels"][0];
    assert_keys(&level["long_prompt"], &["request", "itl_before_ms", "itl_during_ms"]);
    let p50 = |name: &str| level["long_prompt"][name]["p50"].as_f64().unwrap();
    assert!(p50("itl_before_ms") >= 15.0 && p50("itl_during_ms") >= 1.5 * p50("itl_before_ms"), "{level}");
    assert!(level["requests"].as_u64().unwrap() >= 4, "the others go on until the long prompt is answered");
    let html = std::fs::read_to_string(html).unwrap();
    assert!(html.contains("Before it: mean") && html.contains("During it: mean"));
    assert!(html.contains("<svg") && html.contains("prefers-color-scheme: dark") && html.contains("class=\"window\""));
    assert!(!html.contains("http-equiv") && !html.contains("src=") && !html.contains("<script"), "it stands alone");
}

#[test]
fn keys_are_sent_and_servers_that_do_not_count_are_said_to() {
    let mock = Mock::without_usage(|_| vec![Act::Token("a"), Act::Token("b"), Act::End(0)]);
    let url = format!("{}/v1/", mock.url());
    let args = [
        "bench",
        "serve",
        "--url",
        &url,
        "--clients",
        "1",
        "--requests",
        "2",
        "-m",
        "that",
        "-p",
        "40",
        "--shared-tokens",
        "0",
    ];
    let outcome = Sandbox::new().run_with(&args, &[("PELTON_API_KEY", "secret")], "").ok();
    assert!(
        outcome.stderr.contains("does not count prompt tokens") && !outcome.stderr.contains("secret"),
        "{outcome:?}"
    );
    let requests = mock.requests();
    assert!(requests.iter().all(|(body, key)| body["model"] == "that" && key.as_deref() == Some("Bearer secret")));
    assert_eq!(prompt_words(&requests.last().unwrap().0), 40);
    let row = outcome.stdout.lines().find(|l| l.starts_with("1 client ")).unwrap();
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!((cells[2], cells[6]), ("2", "4"), "two answers of two pieces of text: {row}");
}

#[test]
fn calls_that_cannot_work_are_refused() {
    let sandbox = Sandbox::new();
    let refused = |args: &[&str], words: &[&str]| drop(sandbox.run(&[&["bench", "serve"], args].concat()).usage(words));
    refused(&["--url", "localhost:1"], &["localhost:1", "http://HOST:PORT"]);
    refused(&["-p", "10", "--shared-tokens", "11"], &["--shared-tokens 11", "--prompt-tokens 10"]);
    refused(&["--clients", "0"], &["--clients", "from 1 to"]);
    refused(&["--rate", "0"], &["--rate", "requests a second"]);
    refused(&["--rate", "1", "--clients", "2"], &["--rate", "--clients"]);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{closed}");
    sandbox.run(&["bench", "serve", "--url", &url]).failure(&[&url, "list of models", "connection"]);
}

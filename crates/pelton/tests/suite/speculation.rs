//! Forty prompts with and without drafts, on the kernels that users run: the bits are the same.

use pelton::{Draft, Grammar, GrammarSpec, Llm, Model, ModelRef, Options, Request, SamplingParams, Speculation};

use crate::support::{Answer, ask, ask_together, embedded, fixture, load, open, options};

const PROMPTS: usize = 40;

/// Documentation of functions that differ, some of them twice: what the embedded pair knows.
fn prompts(model: &Model) -> Vec<Vec<u32>> {
    let text = model.text().unwrap();
    let chat = pelton::Chat::new(text).unwrap();
    (0..PROMPTS)
        .map(|i| {
            let (name, op) = (["add", "merge", "scale", "shift", "clamp"][i % 5], ["+", "*", "-", "/"][i % 4]);
            let body = format!("let total = a {op} b;\n").repeat(1 + i % 7);
            let code = format!("fn {name}_{i}(a: u64, b: u64) -> u64 {{\n{body}    total\n}}");
            let question = format!("Document this Rust function:\n```rust\n{code}\n```");
            chat.ids(&serde_json::json!([{ "role": "user", "content": question }]), None).unwrap()
        })
        .collect()
}

/// Greedy and drawn, with penalties as `pelton docs` has them, likeliest tokens, stop strings, a grammar.
fn request(index: usize, prompt: &[u32], grammar: &Grammar) -> Request {
    let temperature = if index.is_multiple_of(2) { 0.0 } else { 0.8 };
    let frequency_penalty = if index % 3 == 1 { 0.5 } else { 0.0 };
    let (top_p, seed) = (0.95, Some(index as u64));
    let params = SamplingParams { temperature, frequency_penalty, top_p, seed, ..SamplingParams::default() };
    let mut request = Request { top_logprobs: index % 4, ..Request::new(prompt.to_vec(), params, 40) };
    match index % 5 {
        0 => request.stop = vec!["the".into(), "is".into()],
        1 => request.grammar = Some(grammar.clone()),
        2 => request.ignore_eos = true,
        _ => {}
    }
    request
}

fn llm(model: &Model, max_seqs: usize, speculation: Speculation) -> Llm {
    load(model, &Options { max_seqs, speculation, context: Some(512), ..options() })
}

fn forced(draft: Draft, k: usize) -> Speculation {
    Speculation { draft, forced: Some(k), ..Speculation::default() }
}

fn assert_same(ours: &[Answer], plain: &[Answer], what: &str) {
    for (index, (ours, plain)) in ours.iter().zip(plain).enumerate() {
        assert_eq!(ours.bits(), plain.bits(), "{what}: prompt {index}");
        assert_eq!(ours.end.reason, plain.end.reason, "{what}: prompt {index}");
    }
}

#[test]
fn forty_answers_are_the_same_with_every_drafter_alone_and_in_company() {
    let model = embedded();
    let without = llm(&model, 8, Speculation::off());
    let grammar = without.grammar(&GrammarSpec::Regex("[A-Z][a-z ,]{5,60}\\.".into())).unwrap();
    let prompts = prompts(&model);
    let all: Vec<Request> = prompts.iter().enumerate().map(|(i, prompt)| request(i, prompt, &grammar)).collect();
    let plain = ask_together(&without, &all);
    assert!(plain.iter().all(|answer| answer.end.timing.speculation.drafted == 0));
    let settings = [
        ("n-grams, 4", forced(Draft::Ngram, 4)),
        ("both, 1", forced(Draft::Auto, 1)),
        ("both, 4", forced(Draft::Auto, 4)),
        ("the draft by name, 16", forced(Draft::Model(ModelRef::EmbeddedDraft), 16)),
        ("the controller", Speculation::default()),
        ("the controller, n-grams", Speculation { draft: Draft::Ngram, ..Speculation::default() }),
    ];
    for (what, speculation) in settings {
        let is_forced = speculation.forced.is_some();
        let llm = llm(&model, 8, speculation);
        assert_same(&ask_together(&llm, &all), &plain, what);
        let alone: Vec<Answer> = all[..12].iter().map(|request| ask(&llm, request.clone())).collect();
        assert_same(&alone, &plain[..12], what);
        let stats = llm.stats();
        assert!(!is_forced || stats.drafted_tokens > 200, "{what}: {} drafts", stats.drafted_tokens);
        assert!(!is_forced || stats.accepted_tokens > 20, "{what}: {} accepted", stats.accepted_tokens);
        assert!(!llm.report().drafters.is_empty());
    }
}

#[test]
fn a_draft_of_another_vocabulary_is_refused_with_the_token() {
    let target = embedded();
    let named = |path: &str| Draft::Model(ModelRef::Path(fixture(path)));
    let draft = named("qwen2-tied");
    let options = Options { speculation: Speculation { draft, ..Speculation::default() }, ..options() };
    let error = Llm::load(&target, &options, &mut |_| ()).err().expect("it is refused").to_string();
    let says_why = error.contains("token ") || error.contains("no tokenizer");
    assert!(error.contains("cannot draft for pelton-tiny") && says_why, "{error}");
}

#[test]
fn other_models_draft_from_their_text_alone() {
    let model = open(&fixture("qwen2-tied"));
    let llm = load(&model, &options());
    assert_eq!(llm.report().drafters, ["n-grams", "earlier answers"]);
    assert!(llm.report().line().contains("drafts by n-grams"));
    let off = load(&model, &Options { speculation: Speculation::off(), ..options() });
    assert!(off.report().drafters.is_empty());
}

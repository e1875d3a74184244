//! Speculation changes nothing but time: every answer with drafts is compared with the one without, bit for bit.

mod support;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use pelton_backend::Reference;
use pelton_engine::{Asks, Drafter, Engine, EngineLimits, Ngrams, Offer, Recall, Request, SpeculationOptions};
use pelton_sample::{GrammarSpec, SamplingParams};
use pelton_sched::SeqId;
use support::*;

/// Knows what answers will be, and errs on purpose: every so many tokens.
struct Oracle {
    /// Prompt and answer.
    texts: Vec<Vec<u32>>,
    errs_every: usize,
}

impl Drafter<Reference> for Oracle {
    fn name(&self) -> &str {
        "oracle"
    }

    fn model_bytes(&self) -> Option<usize> {
        None
    }

    fn offer(&mut self, _seq: SeqId, text: &[u32], _pages: &[u32]) -> Offer {
        let knows = self.texts.iter().any(|known| known.starts_with(text));
        Offer { len: if knows { 16 } else { 0 }, class: Some(5), behind: 0 }
    }

    fn draft(&mut self, _backend: &mut Reference, asks: &mut Asks<'_>) {
        for ask in 0..asks.len() {
            let Some(known) = self.texts.iter().find(|known| known.starts_with(asks.text(ask))) else { continue };
            for at in asks.text(ask).len()..known.len() + 3 {
                let wrong = self.errs_every > 0 && at % self.errs_every == 0;
                let token = known.get(at).copied().unwrap_or(7);
                if !asks.push(ask, if wrong { (token + 1) % 500 } else { token }, 5) {
                    break;
                }
            }
        }
    }

    fn forget(&mut self, _seq: SeqId) {}
}

fn forced(k: usize) -> SpeculationOptions {
    SpeculationOptions { forced: Some(k), ..SpeculationOptions::default() }
}

/// The fixture with itself as the draft: whatever its mirror of pages goes through, all drafts must hold.
fn with_itself(limits: EngineLimits, options: SpeculationOptions) -> Engine<Reference> {
    let files = fixture();
    let mut engine = engine(limits);
    let draft = pelton_model::load(&mut Reference, &files.config, &files.tensors, limits.context, &mut |_| ()).unwrap();
    engine.speculate(options);
    engine.add_draft_model("itself", draft, limits.context).unwrap();
    engine
}

fn sampled(prompt: &[u32], max_tokens: usize, seed: u64) -> Request {
    let sampling = SamplingParams {
        temperature: 0.9,
        top_p: 0.9,
        top_k: 40,
        repetition_penalty: 1.1,
        frequency_penalty: 0.3,
        seed: Some(seed),
        ..SamplingParams::default()
    };
    Request::new(prompt.to_vec(), sampling, max_tokens)
}

/// Requests of all kinds: greedy and sampled, long and short, several answers, likeliest tokens, shared beginnings.
fn requests() -> Vec<Request> {
    let mut all = vec![
        greedy(&prompt(40), 30),
        greedy(&prompt(5), 60),
        sampled(&prompt(40), 25, 3),
        sampled(&prompt(33), 40, 4),
        Request { n: 3, ..sampled(&prompt(50), 20, 5) },
        Request { top_logprobs: 5, ..greedy(&prompt(64), 17) },
        greedy(&prompt(1), 9),
        greedy(&prompt(70), 1),
        greedy(&prompt(70), 2),
    ];
    all.push(greedy(&[prompt(64).as_slice(), &[9, 8, 7]].concat(), 33));
    all
}

fn assert_same(ours: &[Vec<Answer>], plain: &[Vec<Answer>], what: &str) {
    assert_eq!(ours.len(), plain.len());
    for (index, (ours, plain)) in ours.iter().zip(plain).enumerate() {
        for (ours, plain) in ours.iter().zip(plain) {
            assert_eq!(ours.bits(), plain.bits(), "{what}: request {index}");
            assert_eq!(ours.tops, plain.tops, "{what}: request {index}");
            let reasons = [ours, plain].map(|answer| answer.finished.as_ref().map(|f| f.reason));
            assert_eq!(reasons[0], reasons[1], "{what}: request {index}");
        }
    }
}

fn texts(requests: &[Request], answers: &[Vec<Answer>]) -> Vec<Vec<u32>> {
    let whole = |(request, answers): (&Request, &Vec<Answer>)| -> Vec<Vec<u32>> {
        answers.iter().map(|answer| [request.prompt.as_slice(), &answer.ids].concat()).collect()
    };
    requests.iter().zip(answers).flat_map(whole).collect()
}

#[test]
fn answers_are_the_same_whatever_is_drafted() {
    let plain = run_all(&mut engine(LIMITS), requests());
    let texts = texts(&requests(), &plain);
    for k in [1, 4, 16] {
        for errs_every in [0, 1, 3, 10] {
            let mut engine = engine(LIMITS);
            engine.speculate(forced(k));
            if errs_every != 1 {
                engine.add_drafter(Box::new(Ngrams::new()));
            }
            if errs_every == 10 {
                engine.add_drafter(Box::new(Recall::new()));
            }
            engine.add_drafter(Box::new(Oracle { texts: texts.clone(), errs_every }));
            let ours = run_all(&mut engine, requests());
            assert_same(&ours, &plain, &format!("{k} drafts, wrong every {errs_every}"));
            let stats = engine.stats();
            assert!(stats.draft_tokens > 0 && stats.accepted_tokens <= stats.draft_tokens);
            let of_requests = ours.iter().flatten().filter_map(|answer| answer.finished.as_ref());
            let drafted: usize = of_requests.clone().map(|f| f.timing.speculation.drafted).sum();
            let accepted: usize = of_requests.map(|f| f.timing.speculation.accepted).sum();
            assert_eq!(drafted as u64, stats.draft_tokens);
            // The scheduler does not count a last token that was a draft, too.
            assert!(accepted as u64 >= stats.accepted_tokens && accepted <= drafted);
            if errs_every == 1 {
                assert_eq!(accepted, 0, "of {drafted}, all wrong");
            }
        }
    }
}

#[test]
fn alone_and_with_the_controller_they_are_the_same() {
    let plain = run_all(&mut engine(LIMITS), requests());
    let texts = texts(&requests(), &plain);
    for errs_every in [0, 2] {
        let mut engine = engine(LIMITS);
        engine.speculate(SpeculationOptions { trust: 8.0, ..SpeculationOptions::default() });
        engine.add_drafter(Box::new(Oracle { texts: texts.clone(), errs_every }));
        let ours: Vec<Vec<Answer>> =
            requests().into_iter().flat_map(|request| run_all(&mut engine, vec![request])).collect();
        assert_same(&ours, &plain, "alone");
        assert!(engine.stats().draft_tokens > 0, "the controller tries");
    }
}

#[test]
fn a_model_that_drafts_for_itself_is_always_right() {
    // Few pages: sequences lose them and come back. Prefixes are shared, copied and forked.
    let tight = EngineLimits { n_pages: 5, max_seqs: 6, ..LIMITS };
    let uncached = EngineLimits { prefix_cache: false, ..LIMITS };
    for (limits, drives_out) in [(LIMITS, false), (tight, true), (uncached, false)] {
        let plain = run_all(&mut engine(limits), requests());
        for k in [1, 4, 16] {
            let mut engine = with_itself(limits, forced(k));
            // The second time with what the cache has kept.
            for round in 0..2 {
                let ours = run_all(&mut engine, requests());
                assert_same(&ours, &plain, &format!("{k} drafts, round {round}"));
                let figures = |answer: &Answer| answer.finished.as_ref().unwrap().timing.speculation;
                for figures in ours.iter().flatten().map(figures) {
                    assert_eq!(figures.accepted, figures.drafted, "it disagrees with itself: {figures:?}");
                }
            }
            let stats = engine.stats();
            assert!(stats.draft_tokens > 50, "{stats:?}");
            if drives_out {
                assert!(engine.stats().preemptions > 0, "the pool is too large for this test");
            }
        }
    }
}

#[test]
fn stop_strings_grammars_and_ends_cut_drafted_text_where_they_would() {
    let (mut plain_engine, tokenizer) = embedded(LIMITS);
    let compiler = compiled(&tokenizer);
    let question = "Document this Rust function:\n```rust\nfn add(a: u32, b: u32) -> u32 { a + b }\n```";
    let ids = ids_of(&tokenizer, question);
    let schema = serde_json::json!({ "type": "object", "properties": { "summary": { "type": "string", "maxLength": 20 },
        "names": { "type": "array", "items": { "type": "string", "maxLength": 8 }, "maxItems": 3 } },
        "required": ["summary", "names"], "additionalProperties": false });
    let grammar = compiler.compile(&GrammarSpec::JsonSchema(schema)).unwrap();
    let requests = || {
        vec![
            greedy(&ids, 60),
            Request { stop: vec!["the".into(), "ret".into()], ..greedy(&ids, 60) },
            Request { stop: vec!["a".into()], ..sampled(&ids, 60, 11) },
            Request { grammar: Some(grammar.clone()), ..greedy(&ids, 80) },
            Request { grammar: Some(grammar.clone()), top_logprobs: 3, ..sampled(&ids, 80, 12) },
            Request { ignore_eos: true, ..greedy(&ids, 70) },
        ]
    };
    let plain = run_all(&mut plain_engine, requests());
    let texts = texts(&requests(), &plain);
    for errs_every in [0, 5] {
        for k in [2, 16] {
            let (mut engine, _) = embedded(LIMITS);
            engine.speculate(forced(k));
            engine.add_drafter(Box::new(Oracle { texts: texts.clone(), errs_every }));
            engine.add_drafter(Box::new(Ngrams::new()));
            assert_same(&run_all(&mut engine, requests()), &plain, &format!("{k} drafts, wrong every {errs_every}"));
            assert!(engine.stats().accepted_tokens > 20);
        }
    }
}

#[test]
fn earlier_answers_are_drafts_for_those_who_may_know_them() {
    let mut engine = engine(LIMITS);
    engine.speculate(forced(4));
    engine.add_drafter(Box::new(Recall::new()));
    let mut ask = |cache_salt| {
        let answers = run(&mut engine, vec![Request { cache_salt, ..greedy(&prompt(30), 40) }]);
        (answers[0].ids.clone(), answers[0].finished.as_ref().unwrap().timing.speculation)
    };
    let (first, again, other) = (ask(1), ask(1), ask(2));
    assert!(first.0 == again.0 && first.0 == other.0);
    assert!(again.1.accepted >= 25 && again.1.accepted >= first.1.accepted, "{first:?} {again:?}");
    let figures = |s: &pelton_engine::Speculated| (s.drafted, s.accepted, s.steps);
    assert_eq!(figures(&first.1), figures(&other.1), "another salt is told nothing");
}

#[test]
fn a_request_may_do_without() {
    let mut engine = with_itself(LIMITS, forced(4));
    let without = Request { speculate: false, ..greedy(&prompt(30), 20) };
    let answers = run(&mut engine, vec![without, greedy(&prompt(31), 20)]);
    let figures = |answer: &Answer| answer.finished.as_ref().unwrap().timing.speculation;
    assert_eq!((figures(&answers[0]).drafted, figures(&answers[0]).speedup), (0, 1.0));
    assert!(figures(&answers[1]).drafted > 10 && figures(&answers[1]).mean_accepted() > 2.0);
}

#[test]
fn a_request_that_ends_early_takes_its_drafts_along() {
    let mut engine = with_itself(LIMITS, forced(8));
    let id = engine.submit(greedy(&prompt(40), 100)).unwrap();
    let other = engine.submit(greedy(&prompt(20), 12)).unwrap();
    let mut events = Vec::new();
    for _ in 0..4 {
        engine.step(&mut events).unwrap();
    }
    assert_eq!(engine.cancel(id).len(), 1);
    while engine.has_work() {
        engine.step(&mut events).unwrap();
    }
    assert!(events.iter().any(|(from, event)| *from == other && event.is_last()));
    assert_eq!(engine.stats().used_pages, 0, "pages of drafts leaked");
}

/// Of each sequence, where states began and how many they were.
type Seen = HashMap<SeqId, Vec<(usize, usize)>>;

/// Sees what a drafting head would see.
struct Watcher {
    seen: Arc<Mutex<Seen>>,
    hidden: usize,
}

impl Drafter<Reference> for Watcher {
    fn name(&self) -> &str {
        "watcher"
    }

    fn model_bytes(&self) -> Option<usize> {
        None
    }

    fn offer(&mut self, _seq: SeqId, _text: &[u32], _pages: &[u32]) -> Offer {
        Offer { len: 1, class: None, behind: 0 }
    }

    fn draft(&mut self, _backend: &mut Reference, asks: &mut Asks<'_>) {
        (0..asks.len()).for_each(|ask| {
            asks.push(ask, 3, 0);
        });
    }

    fn forget(&mut self, _seq: SeqId) {}

    fn reads_hidden(&self) -> bool {
        true
    }

    fn see_hidden(&mut self, seq: SeqId, start: usize, states: &[f32]) {
        assert!(states.len().is_multiple_of(self.hidden) && states.iter().all(|x| x.is_finite()));
        self.seen.lock().unwrap().entry(seq).or_default().push((start, states.len() / self.hidden));
    }
}

#[test]
fn a_drafter_may_read_hidden_states() {
    let mut engine = engine(LIMITS);
    let (seen, hidden) = (Arc::<Mutex<Seen>>::default(), engine.model().hidden());
    engine.speculate(forced(1));
    engine.add_drafter(Box::new(Watcher { seen: Arc::clone(&seen), hidden }));
    let answers = run(&mut engine, vec![greedy(&prompt(40), 5)]);
    assert_eq!(answers[0].ids.len(), 5);
    let seen = seen.lock().unwrap();
    let rows = seen.values().next().expect("one sequence");
    assert_eq!(rows[0], (0, 40), "the prompt");
    assert_eq!(rows[1], (40, 2), "the first token, and a draft behind it");
    assert_eq!(rows.len(), 5, "{rows:?}");
}

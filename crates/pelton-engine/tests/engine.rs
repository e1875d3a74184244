//! The step loop over the scalar backend: what a request yields, alone and in company.

mod support;

use std::sync::Arc;
use std::time::Duration;

use pelton_engine::{EngineHandle, EngineLimits, Event, FinishReason, Request, SubmitError};
use pelton_sample::SamplingParams;
use pelton_text::{Special, Tokenizer};
use support::{Answer, LIMITS, embedded, engine, engine_over, fixture, greedy, root, run};

fn prompts() -> Vec<Vec<u32>> {
    let prompt = |n: usize| -> Vec<u32> { (0..n).map(|i| ((i * i * 7 + n * 13) % 500) as u32 + 3).collect() };
    let mut all: Vec<Vec<u32>> = [1, 5, 31, 32, 33, 70, 100].into_iter().map(prompt).collect();
    // One that begins as another did, for the prefix cache.
    let mut longer = prompt(100);
    longer.extend([17, 18, 19]);
    all.push(longer);
    all
}

#[test]
fn greedy_continuation_is_the_fixtures() {
    let bytes = std::fs::read(root().join("tests/fixtures/qwen2-tied/reference.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let ids = |name: &str| -> Vec<u32> {
        let data = tensors.tensor(name).unwrap();
        data.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect()
    };
    let answer = run(&mut engine(LIMITS), vec![greedy(&ids("greedy_prompt"), 48)]).remove(0);
    assert_eq!(answer.ids, ids("greedy"));
    let finished = answer.finished.unwrap();
    assert_eq!(finished.reason, FinishReason::MaxTokens);
    assert_eq!((finished.timing.prompt_tokens, finished.timing.tokens), (24, 48));
}

#[test]
fn company_chunks_cache_hits_and_preemption_change_no_bit() {
    let alone: Vec<Answer> =
        prompts().iter().map(|p| run(&mut engine(LIMITS), vec![greedy(p, 90)]).remove(0)).collect();
    // 12 pages hold 384 tokens, the answers grow past that: some must lose their pages on the way.
    let tight = EngineLimits { n_pages: 12, max_batch_rows: 16, ..LIMITS };
    let mut company = engine(tight);
    let together = run(&mut company, prompts().iter().map(|p| greedy(p, 90)).collect());
    for (alone, together) in alone.iter().zip(&together) {
        assert_eq!(alone.ids, together.ids);
        assert_eq!(alone.logprobs, together.logprobs);
    }
    let preempted: usize = together.iter().map(|a| a.finished.as_ref().unwrap().timing.preemptions).sum();
    assert!(preempted > 0, "the pool was meant to be too small");
    let again = run(&mut company, vec![greedy(&prompts()[6], 90)]).remove(0);
    assert_eq!((&again.ids, &again.logprobs), (&alone[6].ids, &alone[6].logprobs));
}

#[test]
fn a_prompt_that_begins_alike_is_not_computed_twice() {
    let mut engine = engine(LIMITS);
    let prompts = prompts();
    let first = run(&mut engine, vec![greedy(&prompts[6], 4)]).remove(0).finished.unwrap();
    assert_eq!(first.timing.cached_tokens, 0);
    let second = run(&mut engine, vec![greedy(&prompts[7], 4)]).remove(0).finished.unwrap();
    assert_eq!(second.timing.cached_tokens, 96);
    let mut without = engine_over(&fixture(), None, Vec::new(), EngineLimits { prefix_cache: false, ..LIMITS });
    run(&mut without, vec![greedy(&prompts[6], 4)]);
    let cold = run(&mut without, vec![greedy(&prompts[7], 4)]).remove(0).finished.unwrap();
    assert_eq!(cold.timing.cached_tokens, 0);
}

#[test]
fn the_same_seed_gives_the_same_answer() {
    let sampled = |seed| {
        let params = SamplingParams { temperature: 1.0, seed: Some(seed), ..SamplingParams::default() };
        Request::new(vec![5, 6, 7], params, 32)
    };
    let mut engine = engine(LIMITS);
    let answers = run(&mut engine, vec![sampled(1), sampled(2), sampled(1)]);
    assert_eq!(answers[0].ids, answers[2].ids);
    assert_ne!(answers[0].ids, answers[1].ids);
}

#[test]
fn cancelling_frees_the_pages() {
    let mut engine = engine(EngineLimits { prefix_cache: false, ..LIMITS });
    let id = engine.submit(greedy(&[9; 100], 50)).unwrap();
    let mut events = Vec::new();
    engine.step(&mut events).unwrap();
    assert!(engine.stats().used_pages > 0);
    assert!(matches!(&engine.cancel(id)[..], [Event::Finished(f)] if f.reason == FinishReason::Cancelled && f.last));
    assert_eq!(engine.stats().used_pages, 0);
    assert!(engine.cancel(id).is_empty());
    assert!(!engine.has_work());
}

#[test]
fn bad_requests_are_refused_with_the_numbers() {
    let mut engine = engine(LIMITS);
    assert_eq!(engine.submit(greedy(&[], 4)), Err(SubmitError::EmptyPrompt));
    assert_eq!(engine.submit(greedy(&[1], 0)), Err(SubmitError::NoTokens));
    assert_eq!(engine.submit(greedy(&[1; 256], 4)), Err(SubmitError::PromptTooLong { tokens: 256, context: 256 }));
    assert_eq!(engine.submit(greedy(&[512], 4)), Err(SubmitError::BadId { id: 512, vocab: 512 }));
    let params = SamplingParams { top_p: -1.0, ..SamplingParams::default() };
    let error = engine.submit(Request::new(vec![1], params, 4)).unwrap_err().to_string();
    assert!(error.contains("top_p"), "{error}");
    assert!(!engine.has_work());
}

#[test]
fn the_context_ends_an_answer() {
    let mut engine = engine(EngineLimits { context: 64, n_pages: 2, ..LIMITS });
    let answer = run(&mut engine, vec![greedy(&[3; 60], 1000)]).remove(0);
    assert_eq!(answer.finished.unwrap().reason, FinishReason::Context);
    assert_eq!(answer.ids.len(), 4);
}

#[test]
fn an_end_of_text_id_ends_unless_it_is_ignored() {
    let files = fixture();
    let plain = run(&mut engine(LIMITS), vec![greedy(&[5, 6, 7], 16)]).remove(0);
    let eos = plain.ids[5];
    let until = plain.ids.iter().position(|&id| id == eos).unwrap() + 1;
    let mut engine = engine_over(&files, None, vec![eos], LIMITS);
    let ended = run(&mut engine, vec![greedy(&[5, 6, 7], 16)]).remove(0);
    assert_eq!(ended.ids, plain.ids[..until]);
    assert_eq!(ended.finished.unwrap().reason, FinishReason::Eos);
    let on = run(&mut engine, vec![Request { ignore_eos: true, ..greedy(&[5, 6, 7], 16) }]).remove(0);
    assert_eq!(on.ids, plain.ids);
}

fn question(tokenizer: &Tokenizer) -> Vec<u32> {
    let text = "<|im_start|>system\nYou write documentation.<|im_end|>\n<|im_start|>user\nDocument this Rust function:\n\
        ```rust\npub fn len(&self) -> usize {\n    self.items.len()\n}\n```<|im_end|>\n<|im_start|>assistant\n";
    tokenizer.encode(text, Special::Parse)
}

#[test]
fn text_streams_and_stop_strings_cut_it_across_tokens() {
    let (mut engine, tokenizer) = embedded(LIMITS);
    let whole = run(&mut engine, vec![greedy(&question(&tokenizer), 40)]).remove(0);
    let ended = whole.finished.as_ref().unwrap();
    let visible = whole.ids.len() - usize::from(ended.reason == FinishReason::Eos);
    assert_eq!(whole.text, tokenizer.decode(&whole.ids[..visible], true));
    assert!(whole.text.len() > 12, "the draft answers something: {:?}", whole.text);
    // From the middle of one word into the next: no token boundary falls on both ends.
    let middle = whole.text.char_indices().nth(3).unwrap().0;
    let stop: String = whole.text[middle..].chars().take(6).collect();
    let request = Request { stop: vec!["never there".into(), stop.clone()], ..greedy(&question(&tokenizer), 40) };
    let cut = run(&mut engine, vec![request]).remove(0);
    let at = whole.text.find(&stop).unwrap();
    assert_eq!(cut.text, whole.text[..at]);
    assert_eq!(cut.finished.unwrap().reason, FinishReason::Stop(1));
}

#[test]
fn a_handle_streams_and_its_drop_cancels() {
    let (engine, tokenizer) = embedded(LIMITS);
    let handle = EngineHandle::spawn(engine).unwrap();
    let prompt = question(&tokenizer);
    let endless = Request { ignore_eos: true, ..greedy(&prompt, 200) };
    let first = handle.submit(endless.clone()).unwrap();
    assert!(matches!(first.next_event_timeout(Duration::from_secs(60)), Ok(Event::Token { .. })));
    drop(first);
    let events: Vec<Event> = handle.submit(greedy(&prompt, 8)).unwrap().collect();
    assert!(matches!(events.last(), Some(Event::Finished(_))));
    assert_eq!(handle.submit(greedy(&[], 8)).err(), Some(SubmitError::EmptyPrompt));
}

#[test]
fn whoever_listens_when_the_engine_goes_is_told() {
    let handle = EngineHandle::spawn(engine(LIMITS)).unwrap();
    let (sender, running) = std::sync::mpsc::channel();
    // A listener that takes its time: the answer lasts seconds, the test does not.
    let sink = Box::new(move |event| {
        std::thread::sleep(Duration::from_millis(20));
        drop(sender.send(event));
    });
    let _guard = handle.submit_to(greedy(&[5, 6, 7], 250), sink).unwrap();
    assert!(matches!(running.recv_timeout(Duration::from_secs(60)), Ok(Event::Token { .. })));
    let queued = handle.submit(greedy(&[8; 200], 50)).unwrap();
    drop(handle);
    for last in [running.into_iter().last(), queued.last()] {
        assert!(matches!(&last, Some(Event::Finished(f)) if f.reason == FinishReason::Cancelled), "{last:?}");
    }
}

#[test]
fn a_listener_that_panics_takes_nobody_along() {
    let handle = EngineHandle::spawn(engine(LIMITS)).unwrap();
    let calls = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = calls.clone();
    let sink = Box::new(move |_| {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        panic!("part of the test");
    });
    let _guard = handle.submit_to(greedy(&[5, 6, 7], 100), sink).unwrap();
    let other = handle.submit(greedy(&[5, 6, 7], 8)).unwrap();
    assert!(matches!(other.last(), Some(Event::Finished(f)) if f.timing.tokens == 8));
    drop(handle);
    assert_eq!(calls.load(std::sync::atomic::Ordering::Relaxed), 1);
}

//! What requests can ask for: several answers, likelihoods, grammars, vectors, deadlines; and what they are told.

mod support;

use std::time::Duration;

use pelton_engine::{EngineHandle, EngineLimits, Event, FinishReason, MissCause, Pooling, Request, SubmitError, Task};
use pelton_sample::{GrammarCompiler, GrammarLimits, GrammarSpec, SamplingParams};
use support::{LIMITS, compiled, embedded, engine, greedy, ids_of, prompt, run, run_all};

fn sampled(prompt: &[u32], seed: u64, max_tokens: usize) -> Request {
    let params = SamplingParams { temperature: 1.0, seed: Some(seed), ..SamplingParams::default() };
    Request::new(prompt.to_vec(), params, max_tokens)
}

#[test]
fn several_answers_share_the_prompt_and_draw_for_themselves() {
    for limits in [LIMITS, EngineLimits { max_seqs: 2, ..LIMITS }, EngineLimits { prefix_cache: false, ..LIMITS }] {
        let mut one = engine(limits);
        let alone = run(&mut one, vec![sampled(&prompt(70), 9, 20)]).remove(0);
        let mut many = engine(limits);
        let answers = run_all(&mut many, vec![Request { n: 4, ..sampled(&prompt(70), 9, 20) }]).remove(0);
        assert_eq!(answers.len(), 4);
        assert_eq!(answers[0].bits(), alone.bits(), "the first is the one that comes alone");
        for (i, answer) in answers.iter().enumerate() {
            assert_eq!(answer.ids.len(), 20);
            assert!(answers[..i].iter().all(|other| other.ids != answer.ids), "answer {i} is another's");
            let end = answer.end();
            assert_eq!((end.timing.prompt_tokens, end.choice), (70, i));
        }
        // The prompt ran once; each other answer runs its last token again, or the page that it shares in part.
        let most = 70 + 4 * 20 + 3 * 32;
        let computed = many.stats().computed_tokens;
        if limits == LIMITS {
            assert!(computed <= 70 + 4 * 20, "{computed}");
        } else if limits.prefix_cache {
            assert!(computed <= most, "{computed}");
        }
        let again = run_all(&mut many, vec![Request { n: 4, ..sampled(&prompt(70), 9, 20) }]).remove(0);
        assert!(again.iter().zip(&answers).all(|(a, b)| a.bits() == b.bits()), "with the cache");
    }
}

#[test]
fn answers_that_end_at_their_first_token_leave_the_others_running() {
    let mut engine = engine(LIMITS);
    let answers = run_all(&mut engine, vec![Request { n: 3, ..sampled(&prompt(40), 3, 1) }]).remove(0);
    assert_eq!(answers.iter().map(|a| a.ids.len()).collect::<Vec<_>>(), [1, 1, 1]);
    assert_eq!(answers.iter().filter(|a| a.end().last).count(), 1);
    assert!(!engine.has_work() && engine.stats().used_pages == 0);
}

#[test]
fn answers_of_one_prompt_can_be_cancelled_at_any_time() {
    for steps in 0..6 {
        let mut engine = engine(EngineLimits { max_seqs: 3, prefix_cache: false, ..LIMITS });
        let id = engine.submit(Request { n: 5, ..sampled(&prompt(40), 3, 30) }).unwrap();
        let mut events = Vec::new();
        (0..steps).for_each(|_| engine.step(&mut events).unwrap());
        let ends = engine.cancel(id);
        let choices: Vec<usize> =
            ends.iter().map(|e| if let Event::Finished(f) = e { f.choice } else { panic!("{e:?}") }).collect();
        assert_eq!(choices.len(), 5, "after {steps} steps: {choices:?}");
        assert_eq!(ends.iter().filter(|e| e.is_last()).count(), 1);
        assert!(!engine.has_work() && engine.stats().used_pages == 0);
    }
}

#[test]
fn the_likeliest_tokens_are_told_in_order() {
    let mut engine = engine(LIMITS);
    let answer = run(&mut engine, vec![Request { top_logprobs: 5, ..greedy(&prompt(20), 8) }]).remove(0);
    for (top, (id, logprob)) in answer.tops.iter().zip(answer.ids.iter().zip(&answer.logprobs)) {
        assert_eq!((top.len(), top[0].0, top[0].1.to_bits()), (5, *id, *logprob));
        assert!(top.windows(2).all(|w| w[0].1 >= w[1].1));
        assert!(top.iter().map(|t| f64::from(t.1).exp()).sum::<f64>() <= 1.0 + 1e-6);
    }
    // A bias moves the choice, not what the model thinks.
    let favoured = answer.tops[0][4].0;
    let mut biased = greedy(&prompt(20), 1);
    biased.sampling.logit_bias = vec![(favoured, 100.0)];
    biased.top_logprobs = 5;
    let moved = run(&mut engine, vec![biased]).remove(0);
    assert_eq!((moved.ids[0], &moved.tops[0]), (favoured, &answer.tops[0]));
    assert_eq!(moved.logprobs[0], answer.tops[0][4].1.to_bits());
}

#[test]
fn what_cannot_be_run_is_refused_at_once() {
    let mut engine = engine(LIMITS);
    let range = |field, value, min, max| SubmitError::OutOfRange { field, value, min, max };
    let one = || greedy(&[1], 4);
    assert_eq!(engine.submit(Request { n: 0, ..one() }), Err(range("n", 0, 1, 128)));
    assert_eq!(engine.submit(Request { n: 129, ..one() }), Err(range("n", 129, 1, 128)));
    assert_eq!(engine.submit(Request { top_logprobs: 21, ..one() }), Err(range("top_logprobs", 21, 0, 20)));
    let mut biased = one();
    biased.sampling.logit_bias = vec![(512, 1.0)];
    assert_eq!(engine.submit(biased), Err(SubmitError::BadId { id: 512, vocab: 512 }));
    let tokens = (0..600u32).map(|i| Some(format!("{i} ").into_bytes())).collect();
    let foreign = GrammarCompiler::new(tokens, &[0], GrammarLimits::default()).unwrap();
    let grammar = Some(foreign.compile(&GrammarSpec::Regex("a|1 ".into())).unwrap());
    let refused = engine.submit(Request { grammar, ..one() });
    assert_eq!(refused, Err(SubmitError::ForeignGrammar { grammar_vocab: 600, vocab: 512 }));
    assert!(!engine.has_work());
}

#[test]
fn a_full_queue_says_so_and_has_room_again() {
    let mut engine = engine(EngineLimits { max_seqs: 1, max_waiting: 3, ..LIMITS });
    engine.submit(greedy(&[1, 2], 6)).unwrap();
    let mut events = Vec::new();
    engine.step(&mut events).unwrap();
    engine.submit(Request { n: 2, ..sampled(&[3], 1, 4) }).unwrap();
    let last = engine.submit(greedy(&[4], 4)).unwrap();
    let full = SubmitError::QueueFull { waiting: 3, max_waiting: 3 };
    assert_eq!(engine.submit(greedy(&[5], 4)), Err(full));
    assert_eq!(engine.cancel(last).len(), 1);
    engine.submit(greedy(&[5], 4)).unwrap();
    while engine.has_work() {
        engine.step(&mut events).unwrap();
    }
    assert_eq!(events.iter().filter(|(_, event)| event.is_last()).count(), 3);
    engine.submit(Request { n: 100, ..sampled(&[3], 1, 4) }).expect("nothing else waits");
}

#[test]
fn the_time_limit_ends_what_has_not_ended() {
    let mut engine = engine(LIMITS);
    let limited = |ms| Request { time_limit: Some(Duration::from_millis(ms)), n: 2, ..sampled(&prompt(40), 1, 200) };
    let answers = run_all(&mut engine, vec![limited(0), limited(30), limited(600_000)]);
    let reasons: Vec<Vec<FinishReason>> =
        answers.iter().map(|request| request.iter().map(|answer| answer.end().reason).collect()).collect();
    assert_eq!(reasons[0], [FinishReason::Deadline; 2]);
    assert_eq!((answers[0][0].ids.len(), answers[0][0].end().timing.tokens), (0, 0));
    assert_eq!(reasons[1], [FinishReason::Deadline; 2]);
    assert!(answers[1][0].ids.len() < 200);
    assert_eq!(reasons[2], [FinishReason::MaxTokens; 2]);
    assert_eq!(engine.stats().used_pages, 0);
}

#[test]
fn times_add_up() {
    let mut engine = engine(EngineLimits { max_seqs: 1, ..LIMITS });
    let answers = run(&mut engine, vec![greedy(&prompt(60), 4), greedy(&prompt(50), 4)]);
    let [first, second] = [0, 1].map(|i| answers[i].end().timing);
    assert_eq!(first.queue + first.prefill, first.first_token);
    assert!(second.queue >= first.first_token && second.total >= second.first_token, "{second:?}");
    assert!(first.prefill > Duration::ZERO);
}

#[test]
fn a_miss_is_told_with_both_sides() {
    let mut engine = engine(LIMITS);
    let cause = |answer: &support::Answer| answer.end().miss.as_ref().map(|miss| miss.cause);
    assert_eq!(cause(&run(&mut engine, vec![greedy(&prompt(20), 2)])[0]), Some(MissCause::TooShort));
    assert_eq!(cause(&run(&mut engine, vec![greedy(&prompt(100), 2)])[0]), Some(MissCause::NeverSeen));
    assert_eq!(cause(&run(&mut engine, vec![greedy(&prompt(100), 2)])[0]), None);
    let mut other = prompt(100);
    other[70] = 5;
    let answer = run(&mut engine, vec![greedy(&other, 2)]).remove(0);
    let (timing, miss) = (answer.end().timing, answer.end().miss.clone().unwrap());
    assert_eq!((timing.cached_tokens, miss.cause, miss.at), (64, MissCause::Different, 70));
    assert_eq!((&miss.before[..], &miss.here[..]), (&other[58..70], &other[70..82]));
    assert_eq!(miss.cached, prompt(100)[70..82]);
}

#[test]
fn vectors_do_not_depend_on_chunks_company_or_caches() {
    let prompts: Vec<Vec<u32>> = [1, 31, 33, 100].into_iter().map(prompt).collect();
    for pooling in [Pooling::Last, Pooling::Mean] {
        let vectors = |limits, company: bool, twice: bool| {
            let mut engine = engine(limits);
            let requests = || -> Vec<Request> {
                let embed = prompts.iter().map(|p| Request::embed(p.clone(), pooling));
                if company {
                    embed.chain([greedy(&prompt(90), 40), greedy(&prompt(100), 40)]).collect()
                } else {
                    embed.collect()
                }
            };
            if twice {
                support::vectors(&mut engine, requests());
            }
            support::vectors(&mut engine, requests())
        };
        let alone: Vec<Vec<f32>> = prompts
            .iter()
            .map(|p| support::vectors(&mut engine(LIMITS), vec![Request::embed(p.clone(), pooling)]).remove(0))
            .collect();
        for vector in &alone {
            let length: f64 = vector.iter().map(|&x| f64::from(x).powi(2)).sum();
            assert!((length - 1.0).abs() < 1e-6);
        }
        assert_ne!(alone[2], alone[3]);
        let tight = EngineLimits { n_pages: 9, max_batch_rows: 16, ..LIMITS };
        assert_eq!(vectors(LIMITS, true, false), alone, "{pooling:?} in company");
        assert_eq!(vectors(tight, true, false), alone, "{pooling:?} in chunks, short of pages");
        assert_eq!(vectors(LIMITS, true, true), alone, "{pooling:?} with the cache");
    }
    assert!(matches!(Request::embed(vec![1], Pooling::Mean).task, Task::Embed(Pooling::Mean)));
}

#[test]
fn a_mean_is_taken_over_all_tokens_and_the_last_is_the_last() {
    // Causal attention: the first token's state is the same in every prompt that begins with it, so the mean over
    // two tokens lies in the plane of the first's and the second's.
    let mut engine = engine(LIMITS);
    let mut vector = |prompt: &[u32], pooling| {
        support::vectors(&mut engine, vec![Request::embed(prompt.to_vec(), pooling)]).remove(0)
    };
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let (first, second) = (vector(&[5], Pooling::Last), vector(&[5, 9], Pooling::Last));
    let mean = vector(&[5, 9], Pooling::Mean);
    assert_eq!(first, vector(&[5], Pooling::Mean));
    let (a, b, between) = (dot(&mean, &first), dot(&mean, &second), dot(&first, &second));
    assert!(a > between && b > between, "{a} {b} {between}");
    // No part of it is outside that plane: the Gram determinant of the three is zero.
    let gram = 1.0 + 2.0 * a * b * between - a * a - b * b - between * between;
    assert!(gram.abs() < 1e-5, "{gram}");
}

#[test]
fn grammars_hold_with_company_several_answers_and_preemption() {
    let (mut alone, tokenizer) = embedded(LIMITS);
    let compiler = compiled(&tokenizer);
    let spec = GrammarSpec::Regex(r"(yes|no), because [a-z]{3,9}( [a-z]{3,9}){2,4}\.".into());
    let grammar = Some(compiler.compile(&spec).unwrap());
    let ask = |seed| {
        let params = SamplingParams { temperature: 1.3, seed: Some(seed), ..SamplingParams::default() };
        let prompt = ids_of(&tokenizer, "Is a graph a tree?");
        Request { grammar: grammar.clone(), n: 2, ..Request::new(prompt, params, 100) }
    };
    let single: Vec<_> = (0..4).map(|seed| run_all(&mut alone, vec![ask(seed)]).remove(0)).collect();
    let tight = EngineLimits { n_pages: 10, max_batch_rows: 24, ..LIMITS };
    let (mut crowd, _) = embedded(tight);
    let mut requests: Vec<Request> = (0..4).map(ask).collect();
    requests.extend((0..3).map(|i| Request { ignore_eos: true, ..greedy(&prompt(60 + i), 60) }));
    let together = run_all(&mut crowd, requests);
    for (single, together) in single.iter().zip(&together) {
        for (a, b) in single.iter().zip(together) {
            assert_eq!(a.bits(), b.bits());
            assert_eq!(a.end().reason, FinishReason::Grammar);
            let rest = a.text.strip_prefix("yes").or(a.text.strip_prefix("no")).expect(&a.text);
            let words: Vec<&str> = rest.strip_prefix(", because ").unwrap().trim_end_matches('.').split(' ').collect();
            assert!((3..=5).contains(&words.len()) && words.iter().all(|w| (3..=9).contains(&w.len())), "{}", a.text);
        }
    }
    let preempted: usize = together.iter().flatten().map(|a| a.end().timing.preemptions).sum();
    assert!(preempted > 0, "the pool was meant to be too small");
}

#[test]
fn a_grammar_can_begin_after_a_token() {
    let (mut engine, tokenizer) = embedded(LIMITS);
    let prompt = ids_of(&tokenizer, "Think first.");
    let free = run(&mut engine, vec![greedy(&prompt, 30)]).remove(0);
    // From the fifth token of the free answer on, digits.
    let after = free.ids[4];
    let before = free.ids.iter().position(|&id| id == after).unwrap() + 1;
    let grammar = Some(compiled(&tokenizer).compile(&GrammarSpec::Regex("[0-9]{5}".into())).unwrap());
    let request = Request { grammar, grammar_after: Some(after), ..greedy(&prompt, 30) };
    let answer = run(&mut engine, vec![request]).remove(0);
    assert_eq!(answer.ids[..before], free.ids[..before]);
    assert_eq!(answer.end().reason, FinishReason::Grammar);
    let said = tokenizer.decode(&answer.ids[before..], true);
    assert!(said.len() == 5 && said.bytes().all(|b| b.is_ascii_digit()), "{said}");
}

#[test]
fn steady_streams_say_the_same() {
    let prompts = [prompt(20), prompt(130), prompt(30), prompt(120)];
    let requests = || -> Vec<Request> { prompts.iter().map(|p| greedy(p, 60)).collect() };
    let plain: Vec<_> = run(&mut engine(LIMITS), requests());
    let mut steady = engine(LIMITS);
    steady.keep_streams_steady();
    for (a, b) in plain.iter().zip(&run(&mut steady, requests())) {
        assert_eq!(a.bits(), b.bits());
    }
}

#[test]
fn a_handle_refuses_at_once_and_shows_its_state() {
    let handle = EngineHandle::spawn(engine(EngineLimits { max_seqs: 1, max_waiting: 2, ..LIMITS })).unwrap();
    assert_eq!(handle.submit(greedy(&[600], 4)).err(), Some(SubmitError::BadId { id: 600, vocab: 512 }));
    let long = handle.submit(greedy(&[5, 6], 250)).unwrap();
    assert!(matches!(long.next_event_timeout(Duration::from_secs(60)), Ok(Event::Token { .. })));
    let _waiting: Vec<_> = (0..2).map(|i| handle.submit(greedy(&[7 + i], 4)).unwrap()).collect();
    let full = handle.submit(greedy(&[9], 4)).err();
    assert_eq!(full, Some(SubmitError::QueueFull { waiting: 2, max_waiting: 2 }));
    let stats = handle.stats();
    assert_eq!((stats.running, stats.waiting), (1, 2));
    assert_eq!(stats.free_pages + stats.cached_pages + stats.used_pages, LIMITS.n_pages);
    let (sender, told) = std::sync::mpsc::channel();
    let sink = Box::new(move |event| drop(sender.send(event)));
    assert!(handle.submit_to(greedy(&[], 4), sink).is_err());
    assert!(told.recv().is_err(), "the sink hears nothing of a refusal");
}

#[test]
fn while_memory_is_short_fewer_run_and_all_end() {
    let engine = engine(EngineLimits { max_seqs: 8, ..LIMITS });
    let handle = EngineHandle::spawn_governed(engine, Box::new(|| true)).unwrap();
    let running: Vec<_> = (0..8).map(|i| handle.submit(greedy(&[5 + i, 6], 20)).unwrap()).collect();
    for request in running {
        assert!(matches!(request.last(), Some(Event::Finished(f)) if f.reason == FinishReason::MaxTokens));
    }
    assert_eq!(handle.stats().max_running, 1);
}

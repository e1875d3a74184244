//! Forty prompts alone and in random company: the bits are the same.
//!
//! The company: prompts of other lengths, several answers to one, grammars, vectors, cancelled requests, arrivals at
//! any moment; chunks of a few rows, a pool that is too small for all of them (so sequences lose their pages and are
//! computed again), prefixes from the cache.

use std::time::Duration;

use pelton::{
    Event, Grammar, GrammarSpec, KvType, Model, Pooling, Request, RequestHandle, SamplingParams, grammar_compiler,
};
use pelton_cpu::{Cpu, CpuOptions};
use pelton_engine::{Engine, EngineHandle, EngineLimits};

use crate::support::{Answer, collect, embedded};

const PROMPTS: usize = 40;

/// A sequence of numbers: the same at each run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % n as u64) as usize
    }
}

/// The embedded model on two threads.
fn engine(model: &Model, limits: EngineLimits) -> EngineHandle {
    let mut cpu = Cpu::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap();
    let files = &model.files;
    let decoder = pelton_model::load(&mut cpu, &files.config, &files.tensors, limits.context, &mut |_| ()).unwrap();
    let eos = model.text().unwrap().eos_ids();
    EngineHandle::spawn(Engine::new(cpu, decoder, model.tokenizer.clone(), eos, limits).unwrap()).unwrap()
}

/// Prompts of many lengths; every third one begins as the one before it.
fn prompts(vocab: usize) -> Vec<Vec<u32>> {
    let mut random = Random(7);
    let mut all: Vec<Vec<u32>> = Vec::new();
    for i in 0..PROMPTS {
        let len = 1 + random.below(if i % 5 == 0 { 120 } else { 50 });
        let mut prompt = all.last().filter(|_| i % 3 == 2).cloned().unwrap_or_default();
        prompt.extend((0..len).map(|_| 100 + random.below(vocab - 200) as u32));
        prompt.truncate(150);
        all.push(prompt);
    }
    all
}

/// Half greedy, half drawn with a seed of their own; some answers are long.
fn request(index: usize, prompt: &[u32]) -> Request {
    let temperature = if index.is_multiple_of(2) { 0.0 } else { 1.0 };
    let params = SamplingParams { temperature, seed: Some(index as u64), ..SamplingParams::default() };
    let tokens = if index % 4 < 2 { 100 } else { 4 + index % 13 };
    Request { ignore_eos: true, top_logprobs: index % 3, ..Request::new(prompt.to_vec(), params, tokens) }
}

/// Something else that runs beside.
fn stranger(handle: &EngineHandle, random: &mut Random, prompts: &[Vec<u32>], grammar: &Grammar) -> RequestHandle {
    let prompt = prompts[random.below(PROMPTS)].clone();
    let seed = Some(random.below(1000) as u64);
    let params = SamplingParams { temperature: 1.2, seed, ..SamplingParams::default() };
    let request = match random.below(4) {
        0 => Request::embed(prompt, if random.below(2) == 0 { Pooling::Mean } else { Pooling::Last }),
        1 => Request { n: 3, ..Request::new(prompt, params, 20) },
        2 => Request { grammar: Some(grammar.clone()), ..Request::new(prompt, params, 20) },
        _ => Request { tenant: 1, ignore_eos: true, ..Request::new(prompt, params, 60) },
    };
    handle.submit(request).unwrap()
}

/// All forty, in an order and at moments of the seed's, among strangers.
fn in_company(handle: &EngineHandle, prompts: &[Vec<u32>], grammar: &Grammar, random: &mut Random) -> Vec<Answer> {
    let mut order: Vec<usize> = (0..PROMPTS).collect();
    (1..PROMPTS).rev().for_each(|i| order.swap(i, random.below(i + 1)));
    let (mut running, mut strangers) = (Vec::new(), Vec::new());
    for index in order {
        running.push((index, handle.submit(request(index, &prompts[index])).unwrap()));
        if random.below(3) == 0 {
            strangers.push(stranger(handle, random, prompts, grammar));
        }
        // Now and then some steps go by, and somebody leaves.
        if random.below(8) == 0 {
            std::thread::sleep(Duration::from_millis(random.below(15) as u64));
        }
        if random.below(5) == 0 && !strangers.is_empty() {
            strangers.swap_remove(random.below(strangers.len()));
        }
    }
    running.sort_by_key(|(index, _)| *index);
    let answers = running.iter().map(|(_, request)| collect(request)).collect();
    for stranger in strangers {
        let last = stranger.last().expect("an end");
        assert!(matches!(last, Event::Finished(_) | Event::Embedded(_)), "{last:?}");
    }
    answers
}

#[test]
fn forty_prompts_have_the_same_bits_alone_and_in_random_company() {
    let model = embedded();
    let limits = EngineLimits {
        context: 256,
        n_pages: 64,
        kv_type: KvType::Bf16,
        max_batch_rows: 512,
        max_seqs: 1,
        max_waiting: 1000,
        prefix_cache: false,
    };
    let prompts = prompts(model.files.config.vocab_size);
    let tokenizer = model.tokenizer.as_ref().unwrap();
    let compiler = grammar_compiler(tokenizer, &model.text().unwrap().eos_ids()).unwrap();
    let grammar = compiler.compile(&GrammarSpec::Regex("[a-z ]{5,40}".into())).unwrap();
    let alone = engine(&model, limits);
    let one = |(i, prompt): (usize, &Vec<u32>)| collect(&alone.submit(request(i, prompt)).unwrap());
    let expected: Vec<Answer> = prompts.iter().enumerate().map(one).collect();
    drop(alone);
    // Small chunks; a pool of two long sequences for twelve, with the cache and without.
    let small = EngineLimits { max_seqs: 12, max_batch_rows: 24, n_pages: 14, prefix_cache: true, ..limits };
    let cases = [
        EngineLimits { n_pages: 1000, ..small },
        small,
        EngineLimits { prefix_cache: false, max_batch_rows: 100, ..small },
    ];
    let mut preemptions = 0;
    for (limits, seed) in cases.into_iter().zip(1..) {
        let handle = engine(&model, limits);
        let mut random = Random(seed);
        // Twice: the second time much of it is in the cache.
        for _ in 0..2 {
            let answers = in_company(&handle, &prompts, &grammar, &mut random);
            for (index, (answer, expected)) in answers.iter().zip(&expected).enumerate() {
                assert_eq!(answer.bits(), expected.bits(), "prompt {index} with {limits:?}");
            }
        }
        let stats = handle.stats();
        println!("{limits:?}: {stats:?}");
        preemptions += stats.preemptions;
        assert!(!limits.prefix_cache || stats.cached_tokens > 0, "{stats:?}");
    }
    assert!(preemptions > 0, "the pool was meant to be too small");
}

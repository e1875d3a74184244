//! Engines over the scalar backend, and what requests yield on them.
#![allow(dead_code, reason = "each test file uses another part")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pelton_backend::{KvType, Reference};
use pelton_engine::{Engine, EngineLimits, Event, Finished, Request, RequestId};
use pelton_formats::{ModelFiles, TokenizerFiles};
use pelton_sample::{GrammarCompiler, GrammarLimits, SamplingParams};
use pelton_text::{GgufVocab, Special, Tokenizer};

pub(crate) const LIMITS: EngineLimits = EngineLimits {
    context: 256,
    n_pages: 64,
    kv_type: KvType::F32,
    max_batch_rows: 64,
    max_seqs: 8,
    max_waiting: 64,
    prefix_cache: true,
};

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub(crate) fn fixture() -> ModelFiles {
    pelton_formats::open(&root().join("tests/fixtures/qwen2-tied")).unwrap()
}

pub(crate) fn engine_over(
    files: &ModelFiles,
    tokenizer: Option<Arc<Tokenizer>>,
    eos: Vec<u32>,
    limits: EngineLimits,
) -> Engine<Reference> {
    let mut backend = Reference;
    let model = pelton_model::load(&mut backend, &files.config, &files.tensors, limits.context, &mut |_| ()).unwrap();
    Engine::new(backend, model, tokenizer, eos, limits).unwrap()
}

/// A random model of 512 tokens.
pub(crate) fn engine(limits: EngineLimits) -> Engine<Reference> {
    engine_over(&fixture(), None, Vec::new(), limits)
}

pub(crate) fn greedy(prompt: &[u32], max_tokens: usize) -> Request {
    Request::new(prompt.to_vec(), SamplingParams { temperature: 0.0, ..SamplingParams::default() }, max_tokens)
}

pub(crate) fn prompt(n: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * i * 7 + n * 13) % 500) as u32 + 3).collect()
}

/// What one answer was.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) ids: Vec<u32>,
    pub(crate) logprobs: Vec<u32>,
    pub(crate) tops: Vec<Vec<(u32, f32)>>,
    pub(crate) text: String,
    pub(crate) finished: Option<Finished>,
}

impl Answer {
    /// What must not depend on company, chunks or caches.
    pub(crate) fn bits(&self) -> (&[u32], &[u32], &str) {
        (&self.ids, &self.logprobs, &self.text)
    }

    pub(crate) fn end(&self) -> &Finished {
        self.finished.as_ref().expect("the answer ended")
    }
}

/// Steps until nothing is left to do; each request's events, in order.
pub(crate) fn drain(engine: &mut Engine<Reference>) -> HashMap<RequestId, Vec<Event>> {
    let mut all: HashMap<RequestId, Vec<Event>> = HashMap::new();
    let mut events = Vec::new();
    while engine.has_work() {
        engine.step(&mut events).unwrap();
        events.drain(..).for_each(|(id, event)| all.entry(id).or_default().push(event));
    }
    for events in all.values() {
        let last = events.iter().position(Event::is_last);
        assert_eq!(last, Some(events.len() - 1), "one last event, at the end");
    }
    all
}

/// The answers of one request, by choice.
pub(crate) fn answers_of(events: Vec<Event>, n: usize) -> Vec<Answer> {
    let mut answers = vec![Answer::default(); n];
    for event in events {
        match event {
            Event::Token { choice, id, logprob, top, text } => {
                let answer = &mut answers[choice];
                assert!(answer.finished.is_none(), "a token after the end");
                answer.ids.push(id);
                answer.logprobs.push(logprob.to_bits());
                answer.tops.push(top);
                answer.text.push_str(&text);
            }
            Event::Finished(finished) => {
                let answer = &mut answers[finished.choice];
                answer.text.push_str(&finished.text);
                assert!(answer.finished.replace(finished).is_none(), "one end for each answer");
            }
            other => panic!("{other:?}"),
        }
    }
    answers
}

/// All answers of all requests, submitted together.
pub(crate) fn run_all(engine: &mut Engine<Reference>, requests: Vec<Request>) -> Vec<Vec<Answer>> {
    let submitted: Vec<(RequestId, usize)> =
        requests.into_iter().map(|r| (r.n, engine.submit(r).unwrap())).map(|(n, id)| (id, n)).collect();
    let mut events = drain(engine);
    submitted.into_iter().map(|(id, n)| answers_of(events.remove(&id).unwrap(), n)).collect()
}

/// The first answer of each request.
pub(crate) fn run(engine: &mut Engine<Reference>, requests: Vec<Request>) -> Vec<Answer> {
    run_all(engine, requests).into_iter().map(|mut answers| answers.remove(0)).collect()
}

/// The vectors of those requests that ask for one.
pub(crate) fn vectors(engine: &mut Engine<Reference>, requests: Vec<Request>) -> Vec<Vec<f32>> {
    let ids: Vec<RequestId> = requests.into_iter().map(|r| engine.submit(r).unwrap()).collect();
    let mut events = drain(engine);
    let vector = |id| match events.remove(id)?.pop()? {
        Event::Embedded(embedded) => Some(embedded.values),
        _ => None,
    };
    ids.iter().filter_map(vector).collect()
}

/// The embedded draft with its tokenizer.
pub(crate) fn embedded(limits: EngineLimits) -> (Engine<Reference>, Arc<Tokenizer>) {
    let files = pelton_formats::open(&root().join("models/pelton-draft-q8_0.gguf")).unwrap();
    let TokenizerFiles::Gguf(g) = &files.tokenizer else { panic!("a GGUF file has GGUF tables") };
    let vocab = GgufVocab {
        model: g.model.clone(),
        pre: g.pre.clone(),
        tokens: g.tokens.clone(),
        token_types: g.token_types.clone().unwrap_or_default(),
        merges: g.merges.clone().unwrap_or_default(),
        eos: g.eos,
        ..GgufVocab::default()
    };
    let tokenizer = Arc::new(Tokenizer::from_gguf(vocab).unwrap());
    let eos = files.generation.eos.clone();
    (engine_over(&files, Some(tokenizer.clone()), eos, limits), tokenizer)
}

/// A question in the embedded model's template.
pub(crate) fn ids_of(tokenizer: &Tokenizer, question: &str) -> Vec<u32> {
    let text = format!("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n");
    tokenizer.encode(&text, Special::Parse)
}

/// A compiler of grammars over a tokenizer.
pub(crate) fn compiled(tokenizer: &Tokenizer) -> GrammarCompiler {
    let bytes = |id: u32| match tokenizer.is_special(id) {
        true => None,
        false => tokenizer.token_bytes(id).map(|bytes| bytes.into_owned()),
    };
    let tokens = (0..tokenizer.vocab_size() as u32).map(bytes).collect();
    GrammarCompiler::new(tokens, &[tokenizer.eos().expect("an end")], GrammarLimits::default()).unwrap()
}

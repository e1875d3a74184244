//! Opening fixtures, asking a model, comparing logits.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pelton::{Event, Finished, Llm, Logits, Model, ModelRef, Options, Request, RequestHandle, SamplingParams};
use safetensors::SafeTensors;

/// No event takes this long, on the slowest machine that runs tests: an engine that hangs fails here.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

pub(crate) fn open(path: &Path) -> Model {
    Model::open(&ModelRef::Path(path.to_path_buf()), None).unwrap()
}

pub(crate) fn embedded() -> Model {
    Model::open(&ModelRef::Embedded, None).unwrap()
}

pub(crate) fn load(model: &Model, options: &Options) -> Llm {
    Llm::load(model, options, &mut |_| ()).unwrap()
}

/// Two threads and chunks that end within pages, so that both are part of what is checked.
pub(crate) fn options() -> Options {
    Options { threads: Some(2), batch_rows: 50, ..Options::default() }
}

/// Whether this machine has the instruction set.
pub(crate) fn has(isa: &str) -> bool {
    pelton_cpu::Isa::best_at_most(isa).is_ok()
}

/// What transformers computed for a fixture (see `tests/fixtures/README.md`).
pub(crate) struct Expected {
    pub(crate) ids: Vec<u32>,
    /// `(ids, vocab)`, in float32.
    pub(crate) logits: Vec<f32>,
    /// The largest error of the same model in bf16.
    pub(crate) bf16_error: f32,
    pub(crate) greedy_prompt: Vec<u32>,
    pub(crate) greedy: Vec<u32>,
}

impl Expected {
    pub(crate) fn of(name: &str) -> Expected {
        let read = |file: &str| std::fs::read(fixture(name).join(file)).unwrap();
        let (given, exact) = (read("reference.safetensors"), read("exact_rope.safetensors"));
        let given = SafeTensors::deserialize(&given).unwrap();
        let exact = SafeTensors::deserialize(&exact).unwrap();
        let ids = |file: &SafeTensors<'_>, name: &str| -> Vec<u32> {
            let data = file.tensor(name).unwrap();
            data.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect()
        };
        let floats = |name: &str| -> Vec<f32> {
            let data = exact.tensor(name).unwrap();
            data.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        Expected {
            ids: ids(&given, "input_ids"),
            logits: floats("logits"),
            bf16_error: floats("bf16_error")[0],
            greedy_prompt: ids(&given, "greedy_prompt"),
            greedy: ids(&exact, "greedy"),
        }
    }

    pub(crate) fn error_of(&self, logits: &Logits) -> f32 {
        max_error(&logits.data, &self.logits)
    }
}

/// The largest absolute difference; infinite where one is not a number.
pub(crate) fn max_error(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let difference = |(a, b): (&f32, &f32)| if (a - b).is_finite() { (a - b).abs() } else { f32::INFINITY };
    a.iter().zip(b).map(difference).fold(0.0, f32::max)
}

/// Root mean square of the differences over that of the logits.
pub(crate) fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v) * f64::from(v)).sum::<f64>();
    let differences = square(&mut got.iter().zip(want).map(|(a, b)| a - b));
    (differences / square(&mut want.iter().copied())).sqrt()
}

/// `n` tokens, always the likeliest, whatever ends an answer.
pub(crate) fn greedy(prompt: &[u32], n: usize) -> Request {
    let sampling = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    Request { ignore_eos: true, ..Request::new(prompt.to_vec(), sampling, n) }
}

/// What a request yielded.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) ids: Vec<u32>,
    /// Bits of the log-probabilities.
    pub(crate) logprobs: Vec<u32>,
    pub(crate) text: String,
    pub(crate) end: Finished,
}

impl Answer {
    /// What must not depend on company, threads or caches.
    pub(crate) fn bits(&self) -> (&[u32], &[u32], &str) {
        (&self.ids, &self.logprobs, &self.text)
    }
}

pub(crate) fn collect(handle: &RequestHandle) -> Answer {
    let (mut ids, mut logprobs, mut all_text) = (Vec::new(), Vec::new(), String::new());
    loop {
        match handle.next_event_timeout(PATIENCE).expect("an event in time") {
            Event::Token { id, logprob, text, .. } => {
                ids.push(id);
                logprobs.push(logprob.to_bits());
                all_text.push_str(&text);
            }
            Event::Finished(end) => {
                all_text.push_str(&end.text);
                return Answer { ids, logprobs, text: all_text, end };
            }
            Event::Failed(message) => panic!("{message}"),
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn ask(llm: &Llm, request: Request) -> Answer {
    collect(&llm.submit(request).unwrap())
}

/// Submits all at once.
pub(crate) fn ask_together(llm: &Llm, requests: &[Request]) -> Vec<Answer> {
    let handles: Vec<RequestHandle> = requests.iter().map(|r| llm.submit(r.clone()).unwrap()).collect();
    handles.iter().map(collect).collect()
}

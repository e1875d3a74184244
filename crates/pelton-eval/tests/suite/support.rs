//! Opening fixtures; the definitions, written down once more as plain loops.

use std::path::{Path, PathBuf};

use pelton::{BackendChoice, Model, ModelRef, Options, Scorer, ScorerSize};
use pelton_eval::{Stretch, Stretches, WindowOptions};
use safetensors::SafeTensors;

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

pub(crate) fn open(name: &str) -> Model {
    Model::open(&ModelRef::Path(fixture(name)), None).unwrap()
}

pub(crate) fn embedded() -> Model {
    Model::open(&ModelRef::Embedded, None).unwrap()
}

/// The prompt of a fixture, and the logits that transformers computed for it, `(ids, vocab)`.
pub(crate) fn transformers(name: &str) -> (Vec<u32>, Vec<f32>) {
    let read = |file: &str| std::fs::read(fixture(name).join(file)).unwrap();
    let (given, exact) = (read("reference.safetensors"), read("exact_rope.safetensors"));
    let ids = SafeTensors::deserialize(&given).unwrap();
    let ids = ids.tensor("input_ids").unwrap().data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as u32);
    let logits = SafeTensors::deserialize(&exact).unwrap();
    let logits = logits.tensor("logits").unwrap().data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
    (ids.collect(), logits.collect())
}

pub(crate) fn reference() -> Options {
    Options { backend: BackendChoice::Reference, ..Options::default() }
}

pub(crate) fn cpu() -> Options {
    Options { threads: Some(2), batch_rows: 50, ..Options::default() }
}

pub(crate) fn scorer(model: &Model, options: &Options, context: usize, sequences: usize) -> Scorer {
    Scorer::load(model, options, ScorerSize { context, sequences }, &mut |_| ()).unwrap()
}

pub(crate) fn windows(ids: &[u32], window: usize, stride: Option<usize>) -> Stretches {
    Stretches::windows(ids.to_vec(), None, WindowOptions { window, stride, most: None }).unwrap()
}

/// All stretches, one by one.
pub(crate) fn all(stretches: &Stretches) -> Vec<Stretch> {
    (0..stretches.len()).map(|i| stretches.get(i)).collect()
}

/// The logarithms of a row's probabilities, in f64.
pub(crate) fn log_softmax(row: &[f32]) -> Vec<f64> {
    let most = row.iter().fold(f64::MIN, |m, &v| m.max(f64::from(v)));
    let sum: f64 = row.iter().map(|&v| (f64::from(v) - most).exp()).sum();
    row.iter().map(|&v| f64::from(v) - most - sum.ln()).collect()
}

/// Mean, and standard error as llama-perplexity writes it.
pub(crate) fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares = values.iter().map(|v| v * v).sum::<f64>() / n;
    (mean, ((squares - mean * mean) / (n - 1.0)).sqrt())
}

#[track_caller]
pub(crate) fn near(a: f64, b: f64, within: f64) {
    assert!((a - b).abs() <= within, "{a} is not {b} within {within}");
}

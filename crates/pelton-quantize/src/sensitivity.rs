//! How much an error in each matrix harms the model, measured: one group of matrices at a time is encoded coarsely, and
//! the divergence of the model's predictions from its own is taken.
//!
//! ```text
//! e(t, type) = Σ w·(x − decoded)² / Σ w·x²          relative error of matrix t, weighted with the importance
//! KL ≈ Σₜ c(t) · e(t, type of t)                     small errors add up
//! c(group)   = KL with the group alone at the probe's type / Σ e(t, probe) over the group
//! ```
//!
//! Small models are probed matrix by matrix, large ones by role and third of the depth. Invariant: what is measured
//! depends on the model, the text and the importance alone.

use std::collections::BTreeMap;

use pelton::{Model, Options, Passage, Scorer, ScorerSize};
use pelton_formats::{Tensor, Tensors};
use pelton_quant::{DType, decode};

use crate::encode::encode_values;
use crate::plan::PlannedTensor;
use crate::{Plan, QuantizeError};

/// The type that probed matrices get: coarse enough for the divergence to stand out, not so coarse that errors stop
/// adding up.
const PROBE: DType = DType::IQ3_S;
/// More matrices than this are probed in groups.
const MOST_PROBES: usize = 96;
/// Bytes of the base's predictions that are kept.
const BASE_BYTES: usize = 256 << 20;
/// Positions of a window whose predictions are compared: those with some text before them.
const FROM: usize = 32;

/// How much one matrix counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sensitivity {
    /// Divergence (nats) for each unit of relative squared error.
    pub harm: f64,
    /// Matrices that were probed together.
    pub group_size: usize,
}

/// How much each matrix of a model counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sensitivities(BTreeMap<String, Sensitivity>);

impl Sensitivities {
    /// Of the matrix with this name in the file; without a measurement all count alike.
    pub fn of(&self, name: &str) -> Sensitivity {
        self.0.get(name).copied().unwrap_or(Sensitivity { harm: 1.0, group_size: 0 })
    }

    /// Measures on `ids`, in windows of `window` tokens. `plan` holds the matrices with their importance. `progress` gets
    /// probes done and in all.
    ///
    /// # Errors
    /// [`QuantizeError::Usage`] for less than a window of text; as encoding and running the model.
    pub fn measure(
        model: &Model,
        plan: &Plan,
        ids: &[u32],
        window: usize,
        options: &Options,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Sensitivities, QuantizeError> {
        let base = Predictions::of(model, ids, window, options)?;
        let matrices: Vec<&PlannedTensor> = plan.tensors.iter().filter(|t| t.source.is_matrix()).collect();
        let mut groups: BTreeMap<String, Vec<&PlannedTensor>> = BTreeMap::new();
        for matrix in &matrices {
            let grouped = matrices.len() > MOST_PROBES;
            let key = group(matrix.source.name(), model.files.config.n_layers, grouped);
            groups.entry(key).or_default().push(matrix);
        }
        let mut all = BTreeMap::new();
        for (n, group) in groups.values().enumerate() {
            progress(n, groups.len());
            let (mut replaced, mut error) = (BTreeMap::new(), 0.0);
            for matrix in group {
                let to = pelton_formats::fallback(PROBE, matrix.source.cols());
                error += replace(matrix, to, &mut replaced)?;
            }
            let divergence = base.divergence(&with(model, &replaced)?, options)?;
            let harm = if error > 0.0 { divergence / error } else { 0.0 };
            for matrix in group {
                let name = matrix.source.name().to_owned();
                all.insert(name, Sensitivity { harm, group_size: group.len() });
            }
        }
        progress(groups.len(), groups.len());
        Ok(Sensitivities(all))
    }
}

/// `ffn_down, first third` or the name itself.
fn group(name: &str, n_layers: usize, grouped: bool) -> String {
    let layered = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    match layered.and_then(|(layer, role)| Some((layer.parse::<usize>().ok()?, role))) {
        Some((layer, role)) if grouped => format!("{role} {}", 3 * layer / n_layers.max(1)),
        _ => name.to_owned(),
    }
}

/// Encodes a matrix and puts what comes back among `replaced`, under the names of its sources. Returns its relative error.
fn replace(matrix: &PlannedTensor, to: DType, replaced: &mut BTreeMap<String, Tensor>) -> Result<f64, QuantizeError> {
    let (cols, mut sums, mut row) = (matrix.source.cols(), (0.0, 0.0), 0);
    for source in matrix.source.sources() {
        let values = source.to_f32()?;
        let blocks = encode_values(matrix, to, row, &values)?;
        let mut back = vec![0.0; values.len()];
        decode(to, &blocks, &mut back).map_err(|e| QuantizeError::tensor(&source.name, e.to_string()))?;
        for (values, back) in values.chunks(cols).zip(back.chunks(cols)) {
            let (error, size) = weighted_error(values, back, matrix.importance_of(row));
            sums = (sums.0 + error, sums.1 + size);
            row += 1;
        }
        let bytes: Vec<u8> = back.iter().flat_map(|v| v.to_le_bytes()).collect();
        let tensor = Tensor::new("probe", &source.name, DType::F32, source.shape.clone(), bytes.into())?;
        replaced.insert(source.name.clone(), tensor);
    }
    Ok(if sums.1 > 0.0 { sums.0 / sums.1 } else { 0.0 })
}

/// `Σw(x − back)²` and `Σwx²` of a row.
pub(crate) fn weighted_error(x: &[f32], back: &[f32], importance: Option<&[f32]>) -> (f64, f64) {
    let (mut error, mut size) = (0.0, 0.0);
    for (i, (x, back)) in x.iter().zip(back).enumerate() {
        let w = importance.map_or(1.0, |w| f64::from(w[i]));
        error += w * (f64::from(*x) - f64::from(*back)).powi(2);
        size += w * f64::from(*x).powi(2);
    }
    (error, size)
}

/// The model with some tensors replaced.
fn with(model: &Model, replaced: &BTreeMap<String, Tensor>) -> Result<Model, QuantizeError> {
    let mut tensors = Tensors::new(model.files.tensors.file());
    for tensor in model.files.tensors.iter() {
        tensors.insert(replaced.get(&tensor.name).unwrap_or(tensor).clone())?;
    }
    let files = pelton_formats::ModelFiles { tensors, ..model.files.clone() };
    Ok(Model { files, name: model.name.clone(), tokenizer: model.tokenizer.clone() })
}

/// The base's predictions: logarithms of probabilities, `(positions, vocab)`.
struct Predictions<'a> {
    windows: Vec<&'a [u32]>,
    vocab: usize,
    ln: Vec<f32>,
}

impl<'a> Predictions<'a> {
    fn of(model: &Model, ids: &'a [u32], window: usize, options: &Options) -> Result<Predictions<'a>, QuantizeError> {
        let vocab = model.files.config.vocab_size;
        let window = window.min(model.files.config.max_context);
        let room = (BASE_BYTES / 4 / vocab.max(1) / window.saturating_sub(FROM).max(1)).max(1);
        let windows: Vec<&[u32]> = ids.chunks_exact(window).take(room).collect();
        if windows.is_empty() || window <= FROM {
            let n = ids.len();
            let problem = format!("{n} tokens of text are less than one window of {window}; give more text");
            return Err(QuantizeError::Usage(problem));
        }
        let mut base = Predictions { windows, vocab, ln: Vec::new() };
        let mut ln = Vec::new();
        base.run(model, options, &mut |row| ln.extend(ln_probabilities(row)))?;
        base.ln = ln;
        Ok(base)
    }

    /// Each wanted row of logits, in order.
    fn run(&self, model: &Model, options: &Options, each: &mut dyn FnMut(&[f32])) -> Result<(), QuantizeError> {
        let size = ScorerSize { context: self.windows[0].len(), sequences: 1 };
        let mut scorer = Scorer::load(model, options, size, &mut |_| ())?;
        let passages: Vec<Passage<'_>> = self.windows.iter().map(|ids| Passage { ids, from: FROM }).collect();
        scorer.run(&passages, &mut |_, logits| {
            logits.chunks_exact(self.vocab).for_each(&mut *each);
            Ok(())
        })?;
        Ok(())
    }

    /// The mean Kullback-Leibler divergence of a model from the base, in nats.
    fn divergence(&self, model: &Model, options: &Options) -> Result<f64, QuantizeError> {
        let (mut sum, mut n, mut base) = (0.0, 0usize, self.ln.chunks_exact(self.vocab));
        self.run(model, options, &mut |row| {
            let Some(base) = base.next() else { return };
            let parts = base.iter().zip(ln_probabilities(row)).map(|(&p, q)| f64::from(p).exp() * f64::from(p - q));
            sum += parts.sum::<f64>();
            n += 1;
        })?;
        Ok((sum / n.max(1) as f64).max(0.0))
    }
}

fn ln_probabilities(logits: &[f32]) -> impl Iterator<Item = f32> {
    let most = logits.iter().fold(f32::NEG_INFINITY, |most, &x| most.max(x));
    let sum: f64 = logits.iter().map(|&x| f64::from(x - most).exp()).sum();
    let ln_sum = sum.ln();
    logits.iter().map(move |&x| (f64::from(x - most) - ln_sum) as f32)
}

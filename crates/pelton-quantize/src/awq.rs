//! Scaling of columns before they are rounded (AWQ, arXiv 2306.00978): columns that meet large inputs are made larger, so
//! that their errors weigh less, and what makes their inputs is made smaller by as much.
//!
//! ```text
//! layer · x  =  (layer · S) · (S⁻¹ · x)          S: diagonal, sⱼ = (root mean square of input j) ^ power
//!
//! layer                 what its input is divided in
//! attn_q, attn_k, attn_v   attn_norm
//! attn_output              rows of attn_v (heads that share a value share its scale)
//! ffn_gate, ffn_up         ffn_norm
//! ffn_down                 rows of ffn_up: the gate multiplies after its activation
//! ```
//!
//! For each layer the power is tried from 0 (no scaling) to 1 on some of its rows, and the one with the least error of the
//! output on the calibration text is taken. Invariant: without rounding the scaled model computes what the model does;
//! the file is a plain one, nothing is left to do at run time.

use std::collections::BTreeMap;

use pelton_formats::ModelConfig;
use pelton_quant::{decode, encode_weighted};

use crate::calibration::Calibration;
use crate::encode::encode_each;
use crate::gram::Gram;
use crate::plan::PlannedTensor;
use crate::{Plan, QuantizeError};

/// Powers that are tried: multiples of a tenth.
const POWERS: usize = 10;
/// Rows of each matrix on which they are.
const SAMPLED_ROWS: usize = 48;
/// Of the largest scale to the smallest: past it the input would lose digits of its own.
const MOST_SPREAD: f32 = 256.0;

/// What a tensor of the file is multiplied with before it is encoded; empty: nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Factors {
    /// Of each column.
    pub(crate) cols: Vec<f32>,
    /// Of each row.
    pub(crate) rows: Vec<f32>,
}

impl Factors {
    pub(crate) fn is_none(&self) -> bool {
        self.cols.is_empty() && self.rows.is_empty()
    }

    /// Multiplies rows of the tensor, `(rows, cols)`, from `first_row` on.
    pub(crate) fn apply(&self, first_row: usize, cols: usize, values: &mut [f32]) {
        for (i, row) in values.chunks_exact_mut(cols).enumerate() {
            let of_row = self.rows.get(first_row + i).copied().unwrap_or(1.0);
            row.iter_mut().for_each(|v| *v *= of_row);
            row.iter_mut().zip(&self.cols).for_each(|(v, factor)| *v *= factor);
        }
    }
}

/// Matrices that read one input, and where that is divided.
struct Scaled {
    matrices: Vec<String>,
    /// A vector, or a matrix whose rows make the input.
    source: String,
    /// Heads of the input, heads of the rows that make it, and their width.
    heads: Option<(usize, usize, usize)>,
}

fn groups(config: &ModelConfig, layer: usize) -> Vec<Scaled> {
    let name = |part: &str| format!("blk.{layer}.{part}.weight");
    let heads = (config.n_heads, config.n_kv_heads, config.head_dim);
    let group = |matrices: &[&str], source: &str, heads| Scaled {
        matrices: matrices.iter().map(|m| name(m)).collect(),
        source: name(source),
        heads,
    };
    let mut groups =
        vec![group(&["attn_q", "attn_k", "attn_v"], "attn_norm", None), group(&["attn_output"], "attn_v", Some(heads))];
    // A router reads what experts read, and their inputs are not recorded.
    if config.moe.as_ref().is_none_or(|moe| moe.moe_layers.get(layer) != Some(&true)) {
        groups.push(group(&["ffn_gate", "ffn_up"], "ffn_norm", None));
        groups.push(group(&["ffn_down"], "ffn_up", None));
    }
    groups
}

/// Where a tensor of the model lies in the plan: the tensor of the file, its first row there, and its rows.
type Places = BTreeMap<String, (usize, usize, usize)>;

fn places(plan: &Plan) -> Places {
    let mut places = Places::new();
    for (at, tensor) in plan.tensors.iter().enumerate() {
        let mut row = 0;
        for source in tensor.source.sources() {
            let n_rows = if source.shape.len() > 1 { source.shape[0] } else { 1 };
            places.insert(source.name.clone(), (at, row, n_rows));
            row += n_rows;
        }
    }
    places
}

/// Chooses scales for every layer and notes them in the plan; returns how many layers got some. `progress` gets layers
/// done and in all.
///
/// # Errors
/// As encoding, and as running the model.
pub fn scale(
    plan: &mut Plan,
    config: &ModelConfig,
    calibration: &mut Calibration<'_>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<usize, QuantizeError> {
    let places = places(plan);
    let all: Vec<Scaled> = (0..config.n_layers).flat_map(|layer| groups(config, layer)).collect();
    let mut scaled = 0;
    for (n, group) in all.iter().enumerate() {
        progress(n, all.len());
        let found: Vec<_> = group.matrices.iter().filter_map(|name| places.get(name)).copied().collect();
        let rounded = found.iter().any(|(at, ..)| plan.tensors[*at].to.block_len() > 1);
        if found.len() != group.matrices.len() || !places.contains_key(&group.source) || !rounded {
            continue;
        }
        let later = all[n..].iter().flat_map(|group| group.matrices.first());
        let cols_of = |name: &str| places.get(name).map_or(0, |(at, ..)| plan.tensors[*at].source.cols());
        let Some(gram) = calibration.gram(later.map(String::as_str), cols_of)? else { continue };
        let tensors: Vec<&PlannedTensor> = found.iter().map(|(at, ..)| &plan.tensors[*at]).collect();
        let Some(scales) = best_scales(&tensors, &found, gram, group.heads)? else { continue };
        fold(plan, &places, group, &scales);
        scaled += 1;
    }
    progress(all.len(), all.len());
    Ok(scaled)
}

/// The scales of least output error; `None` where not to scale is best.
fn best_scales(
    tensors: &[&PlannedTensor],
    places: &[(usize, usize, usize)],
    gram: &Gram,
    heads: Option<(usize, usize, usize)>,
) -> Result<Option<Vec<f32>>, QuantizeError> {
    let sizes = shared_sizes(gram.mean_squares(), heads);
    let mut samples = Vec::new();
    for (tensor, (_, first, n_rows)) in tensors.iter().zip(places) {
        let n = SAMPLED_ROWS.min(*n_rows);
        for i in 0..n {
            let row = first + i * n_rows / n;
            samples.push((*tensor, row, tensor.source.rows_f32(row..row + 1)?));
        }
    }
    let mut best: (f64, Option<Vec<f32>>) = (f64::INFINITY, None);
    for power in 0..=POWERS {
        let scales = scales_of(&sizes, power as f32 / POWERS as f32);
        let mut error = 0.0;
        for (tensor, row, values) in &samples {
            error += output_error(tensor, *row, values, &scales, gram)?;
        }
        if error < best.0 {
            best = (error, (power > 0).then_some(scales));
        }
    }
    Ok(best.1)
}

/// The root mean squares of inputs; those of heads that share a row that makes them, alike.
fn shared_sizes(mut squares: Vec<f32>, heads: Option<(usize, usize, usize)>) -> Vec<f32> {
    if let Some((n_heads, n_shared, width)) = heads {
        let each = n_heads / n_shared.max(1);
        for shared in squares.chunks_exact_mut(each * width) {
            for i in 0..width {
                let mean = (0..each).map(|head| shared[head * width + i]).sum::<f32>() / each as f32;
                (0..each).for_each(|head| shared[head * width + i] = mean);
            }
        }
    }
    squares.into_iter().map(f32::sqrt).collect()
}

/// Sizes to a power, around 1.
fn scales_of(sizes: &[f32], power: f32) -> Vec<f32> {
    let largest = sizes.iter().fold(0.0f32, |most, size| most.max(*size));
    // An input that is never there has the scale of the smallest.
    let least = (largest / MOST_SPREAD).max(f32::MIN_POSITIVE);
    let scales: Vec<f32> = sizes.iter().map(|size| size.max(least).powf(power)).collect();
    let (low, high) = scales.iter().fold((f32::INFINITY, 0.0f32), |(low, high), s| (low.min(*s), high.max(*s)));
    let middle = (low * high).sqrt();
    scales.iter().map(|s| if middle > 0.0 && middle.is_finite() { s / middle } else { 1.0 }).collect()
}

/// The error of a row's output over the calibration text, were its columns scaled.
fn output_error(
    tensor: &PlannedTensor,
    row: usize,
    values: &[f32],
    scales: &[f32],
    gram: &Gram,
) -> Result<f64, QuantizeError> {
    let scaled: Vec<f32> = values.iter().zip(scales).map(|(v, s)| v * s).collect();
    let importance = tensor.importance_of(row).map(|all| divided_by_squares(all, scales));
    let blocks = encode_each(tensor, tensor.to, row, &scaled, |_, values, out| {
        encode_weighted(tensor.to, values, importance.as_deref(), out)
    })?;
    let mut back = vec![0.0; values.len()];
    decode(tensor.to, &blocks, &mut back).map_err(|e| QuantizeError::tensor(tensor.source.name(), e.to_string()))?;
    let delta: Vec<f32> = back.iter().zip(scales).zip(values).map(|((back, s), v)| back / s - v).collect();
    Ok(gram.output_error(&delta))
}

fn divided_by_squares(importance: &[f32], scales: &[f32]) -> Vec<f32> {
    importance.iter().zip(scales).map(|(i, s)| i / (s * s)).collect()
}

/// Notes the scales at the matrices of a group, and their inverses where its input is made.
fn fold(plan: &mut Plan, places: &Places, group: &Scaled, scales: &[f32]) {
    // A tensor of the file may hold several matrices of the group.
    let mut done = Vec::new();
    for name in &group.matrices {
        let at = places[name].0;
        if done.contains(&at) {
            continue;
        }
        done.push(at);
        let tensor = &mut plan.tensors[at];
        multiply(&mut tensor.factors.cols, scales.len(), 0, scales.iter().copied());
        tensor.importance = tensor.importance.as_ref().map(|all| divided_by_squares(all, scales));
    }
    let inverses: Vec<f32> = scales.iter().map(|s| 1.0 / s).collect();
    let of_rows: Vec<f32> = match group.heads {
        // The first of the heads that share a value speaks for them.
        Some((n_heads, n_shared, width)) => {
            let each = n_heads / n_shared.max(1);
            inverses.chunks_exact(each * width).flat_map(|shared| shared[..width].iter().copied()).collect()
        }
        None => inverses,
    };
    let (at, first, _) = places[&group.source];
    let tensor = &mut plan.tensors[at];
    if tensor.source.shape().len() == 1 {
        return multiply(&mut tensor.factors.cols, of_rows.len(), 0, of_rows.into_iter());
    }
    let n_rows = tensor.source.n_rows();
    multiply(&mut tensor.factors.rows, n_rows, first, of_rows.iter().copied());
    if let Some((at, ..)) = places.get(&group.source.replace(".weight", ".bias")) {
        let bias = &mut plan.tensors[*at];
        let len = bias.source.cols();
        multiply(&mut bias.factors.cols, len, 0, of_rows.into_iter());
    }
}

/// Multiplies factors from `first` on, of `len` in all.
fn multiply(factors: &mut Vec<f32>, len: usize, first: usize, by: impl Iterator<Item = f32>) {
    if factors.is_empty() {
        *factors = vec![1.0; len];
    }
    factors[first..].iter_mut().zip(by).for_each(|(factor, by)| *factor *= by);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_that_share_a_value_share_its_scale() {
        // Four heads of width 2, two of which share each of two values.
        let squares = vec![1.0, 4.0, 3.0, 0.0, 9.0, 9.0, 9.0, 9.0];
        let sizes = shared_sizes(squares, Some((4, 2, 2)));
        assert_eq!(sizes[..4], [2f32.sqrt(), 2f32.sqrt(), 2f32.sqrt(), 2f32.sqrt()]);
        assert_eq!(sizes[4..], [3.0; 4]);
    }

    #[test]
    fn scales_lie_around_one_and_no_further_apart_than_they_may() {
        assert_eq!(scales_of(&[1.0, 5.0, 0.0], 0.0), [1.0; 3]);
        let scales = scales_of(&[1.0, 4.0, 16.0], 0.5);
        assert_eq!(scales, [0.5, 1.0, 2.0]);
        let wide = scales_of(&[0.0, 1.0], 1.0);
        assert!((wide[1] / wide[0] - MOST_SPREAD).abs() < 0.1, "{wide:?}");
        assert_eq!(scales_of(&[0.0, 0.0], 1.0).iter().filter(|s| s.is_finite() && **s > 0.0).count(), 2);
    }

    #[test]
    fn factors_are_of_rows_and_columns() {
        let mut factors = Factors::default();
        assert!(factors.is_none());
        multiply(&mut factors.cols, 2, 0, [2.0, 3.0].into_iter());
        multiply(&mut factors.rows, 4, 2, [5.0].into_iter());
        multiply(&mut factors.rows, 4, 2, [2.0].into_iter());
        let mut values = [1.0, 1.0, 1.0, 1.0];
        factors.apply(1, 2, &mut values);
        assert_eq!(values, [2.0, 3.0, 20.0, 30.0]);
    }
}

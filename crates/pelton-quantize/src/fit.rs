//! Chooses a type for each matrix so that the model fits a budget with least harm.
//!
//! ```text
//! for each matrix: the types that are worth it      the lower convex hull of (bytes, harm)
//! all matrices at the smallest; then, again and again, the step up that saves most harm for each byte it costs and still
//! fits (the greedy choice on hulls is what a Lagrange multiplier gives)
//! what is left of the budget: any step that fits
//! ```
//!
//! `harm = sensitivity · relative error` (`sensitivity.rs`), the error measured on rows of the matrix itself, weighted with
//! the importance. Invariant: equal inputs give equal choices, on any number of threads.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use pelton_quant::{DType, decode};

use crate::encode::encode_values;
use crate::plan::PlannedTensor;
use crate::sensitivity::weighted_error;
use crate::{Plan, QuantizeError, Sensitivities};

/// The types that are considered.
pub const CANDIDATES: &[DType] = &[
    DType::IQ1_S,
    DType::IQ1_M,
    DType::IQ2_XXS,
    DType::IQ2_XS,
    DType::IQ2_S,
    DType::Q2_K,
    DType::IQ3_XXS,
    DType::IQ3_S,
    DType::Q3_K,
    DType::IQ4_XS,
    DType::Q4_K,
    DType::Q5_K,
    DType::Q6_K,
    DType::Q8_0,
    DType::IQ4_NL,
    DType::Q5_0,
    DType::BF16,
];

/// Elements of a matrix on which errors are measured.
const SAMPLE: usize = 1 << 16;

/// What a matrix would be as one type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The type.
    pub dtype: DType,
    /// Bytes of the matrix.
    pub bytes: u64,
    /// Relative squared error, weighted.
    pub error: f64,
    /// Divergence that it adds, in nats; without measured sensitivities, just the error.
    pub harm: f64,
}

/// A matrix and what it could be.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Its name in the file.
    pub name: String,
    /// The types that divide its rows, by rising bytes.
    pub candidates: Vec<Candidate>,
    /// The one that was chosen.
    pub chosen: Candidate,
}

/// What a choice of types aims at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// At most so many bytes of tensors, with least harm.
    Bytes(u64),
    /// At most so much harm, with the fewest bytes.
    Harm(f64),
}

/// Measures what each matrix of `plan` would be as each type (the types of the plan do not matter); all are the smallest
/// at first. `sensitivities` say what an error costs. `progress` gets matrices done and in all.
///
/// # Errors
/// As encoding.
pub fn measure(
    plan: &Plan,
    sensitivities: &Sensitivities,
    threads: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Choice>, QuantizeError> {
    let matrices: Vec<&PlannedTensor> = plan.tensors.iter().filter(|t| t.source.is_matrix()).collect();
    measure_all(&matrices, sensitivities, threads, progress)
}

/// Chooses among what was measured of `plan`.
///
/// # Errors
/// [`QuantizeError::Usage`] where even the smallest types are too many bytes, or the largest too much harm, with the
/// numbers.
pub fn choose(plan: &Plan, measured: Vec<Choice>, goal: Goal) -> Result<Vec<Choice>, QuantizeError> {
    let fixed: u64 = plan.tensors.iter().filter(|t| !t.source.is_matrix()).map(PlannedTensor::bytes).sum();
    let mut choices = measured;
    let total = |choices: &[Choice]| fixed + choices.iter().map(|c| c.chosen.bytes).sum::<u64>();
    let harm = |choices: &[Choice]| choices.iter().map(|c| c.chosen.harm).sum::<f64>();
    let smallest = total(&choices);
    if let Goal::Bytes(budget) = goal
        && smallest > budget
    {
        let problem = format!("{budget} bytes are less than the {smallest} of the smallest types; allow more");
        return Err(QuantizeError::Usage(problem));
    }
    let mut hulls: Vec<_> = choices.iter().map(|c| hull(&c.candidates).into_iter().skip(1).peekable()).collect();
    loop {
        if let Goal::Harm(most) = goal
            && harm(&choices) <= most
        {
            return Ok(choices);
        }
        let left = match goal {
            Goal::Bytes(budget) => budget - total(&choices),
            Goal::Harm(_) => u64::MAX,
        };
        let gain = |i: usize, next: &Candidate| {
            let now = &choices[i].chosen;
            (now.harm - next.harm) / (next.bytes - now.bytes) as f64
        };
        let steps = hulls.iter_mut().enumerate().filter_map(|(i, hull)| {
            let next = *hull.peek()?;
            (next.bytes - choices[i].chosen.bytes <= left).then(|| (i, next, gain(i, &next)))
        });
        let Some((i, next, _)) = steps.max_by(|a, b| a.2.total_cmp(&b.2)) else { break };
        choices[i].chosen = next;
        hulls[i].next();
    }
    match goal {
        Goal::Bytes(budget) => {
            let left = budget - total(&choices);
            spend(&mut choices, left);
            Ok(choices)
        }
        Goal::Harm(most) => {
            let least = harm(&choices);
            let problem = format!("even the largest types have a divergence of {least:.2e}, more than {most:.2e}");
            Err(QuantizeError::Usage(problem))
        }
    }
}

/// Spends what is left on steps that are no corner of a hull.
fn spend(choices: &mut [Choice], mut left: u64) {
    loop {
        let mut best: Option<(usize, Candidate, f64)> = None;
        for (i, choice) in choices.iter().enumerate() {
            let now = choice.chosen;
            for next in choice.candidates.iter().filter(|c| c.bytes <= now.bytes + left && c.harm < now.harm) {
                let saved = now.harm - next.harm;
                if best.is_none_or(|(_, _, most)| saved > most) {
                    best = Some((i, *next, saved));
                }
            }
        }
        let Some((i, next, _)) = best else { return };
        left = left + choices[i].chosen.bytes - next.bytes;
        choices[i].chosen = next;
    }
}

/// The corners of the lower convex hull, by rising bytes and falling harm, the smallest first.
fn hull(candidates: &[Candidate]) -> Vec<Candidate> {
    let mut corners: Vec<Candidate> = Vec::new();
    for &next in candidates {
        if corners.last().is_some_and(|last| next.harm >= last.harm) {
            continue;
        }
        while let [.., before, last] = corners.as_slice() {
            let slope = |a: &Candidate, b: &Candidate| (a.harm - b.harm) / (b.bytes - a.bytes) as f64;
            if slope(before, last) > slope(last, &next) {
                break;
            }
            corners.pop();
        }
        corners.push(next);
    }
    corners
}

fn measure_all(
    matrices: &[&PlannedTensor],
    sensitivities: &Sensitivities,
    threads: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Choice>, QuantizeError> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let mut shown = 0;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1))
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        let Some(matrix) = matrices.get(i) else { break };
                        let harm = sensitivities.of(matrix.source.name()).harm;
                        let choice = candidates(matrix, harm);
                        done.lock().expect("no thread panics while it holds the lock").insert(i, choice);
                    }
                })
            })
            .collect();
        while !workers.iter().all(|worker| worker.is_finished()) {
            std::thread::sleep(std::time::Duration::from_millis(50));
            let n = done.lock().expect("no thread panics while it holds the lock").len();
            if n != shown {
                progress(n, matrices.len());
                shown = n;
            }
        }
    });
    done.into_inner().expect("no thread panics while it holds the lock").into_values().collect()
}

/// Every type that fits the rows, by rising bytes, one for each number of bytes.
fn candidates(matrix: &PlannedTensor, sensitivity: f64) -> Result<Choice, QuantizeError> {
    let (cols, n_rows) = (matrix.source.cols(), matrix.source.n_rows());
    let n_sampled = (SAMPLE / cols.max(1)).clamp(1, n_rows.max(1));
    let mut rows = Vec::with_capacity(n_sampled);
    for i in 0..n_sampled {
        let row = i * n_rows / n_sampled;
        rows.push((row, matrix.source.rows_f32(row..row + 1)?));
    }
    let mut candidates: Vec<Candidate> = Vec::new();
    for &dtype in CANDIDATES.iter().filter(|dtype| cols.is_multiple_of(dtype.block_len())) {
        let mut sums = (0.0, 0.0);
        for (row, values) in &rows {
            let blocks = encode_values(matrix, dtype, *row, values)?;
            let mut back = vec![0.0; cols];
            decode(dtype, &blocks, &mut back)
                .map_err(|e| QuantizeError::tensor(matrix.source.name(), e.to_string()))?;
            let (error, size) = weighted_error(values, &back, matrix.importance_of(*row));
            sums = (sums.0 + error, sums.1 + size);
        }
        let error = if sums.1 > 0.0 { sums.0 / sums.1 } else { 0.0 };
        let bytes = dtype.row_bytes(cols).unwrap_or(0) as u64 * n_rows as u64;
        candidates.push(Candidate { dtype, bytes, error, harm: error * sensitivity });
    }
    candidates.sort_by(|a, b| (a.bytes, a.harm).partial_cmp(&(b.bytes, b.harm)).unwrap_or(std::cmp::Ordering::Equal));
    candidates.dedup_by_key(|candidate| candidate.bytes);
    let name = matrix.source.name().to_owned();
    let Some(&chosen) = candidates.first() else {
        return Err(QuantizeError::tensor(&name, format!("no type fits rows of {cols}")));
    };
    Ok(Choice { name, candidates, chosen })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(bytes: u64, harm: f64) -> Candidate {
        Candidate { dtype: DType::Q4_K, bytes, error: harm, harm }
    }

    #[test]
    fn a_hull_has_no_corner_that_is_not_worth_it() {
        let all = [(10, 8.0), (11, 9.0), (12, 7.5), (14, 3.0), (16, 2.8), (20, 1.0)].map(|(b, h)| candidate(b, h));
        let corners: Vec<u64> = hull(&all).iter().map(|c| c.bytes).collect();
        assert_eq!(corners, [10, 14, 20]);
    }

    #[test]
    fn what_is_left_buys_the_largest_saving_that_fits() {
        let candidates = vec![candidate(10, 8.0), candidate(12, 7.5), candidate(14, 3.0)];
        let choice = Choice { name: "a".into(), chosen: candidates[0], candidates };
        let mut choices = [choice.clone(), choice];
        spend(&mut choices, 5);
        let bytes: Vec<u64> = choices.iter().map(|c| c.chosen.bytes).collect();
        assert_eq!(bytes.iter().sum::<u64>(), 24, "{bytes:?}");
    }
}

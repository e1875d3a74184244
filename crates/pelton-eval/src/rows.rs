//! Rows of logits, worked on by several threads.
//!
//! Invariant: each row's result depends on the row alone, and results keep the rows' order: figures do not depend on the
//! number of threads.

use pelton::{Error, Passage, RowAt, Scorer};

use crate::stretches::{Stretch, Stretches};

/// Rows that one thread should have at least: below that starting it takes longer than its work.
const ROWS_EACH: usize = 8;

/// `ln Σ exp(x)`.
pub(crate) fn log_sum_exp(row: &[f32]) -> f64 {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0f64;
    row.iter().for_each(|&v| sum += f64::from((v - most).exp()));
    f64::from(most) + sum.ln()
}

/// Turns logits into logarithms of probabilities.
pub(crate) fn normalize(row: &mut [f32]) {
    let sum = log_sum_exp(row);
    row.iter_mut().for_each(|v| *v = (f64::from(*v) - sum) as f32);
}

/// A prediction that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prediction {
    /// Its number among all that count.
    pub(crate) nth: usize,
    /// The token that really follows.
    pub(crate) target: u32,
}

/// Turns a prediction and its row of logits into a result.
pub(crate) type Work<'a, T> = dyn Fn(Prediction, &[f32]) -> Result<T, Error> + Sync + 'a;

/// Runs all stretches; `work` turns a prediction's row of logits into a result. The results are in the order of the
/// stretches. `progress` gets the stretches that are done.
pub(crate) fn predictions<T: Send + Clone + Default>(
    scorer: &mut Scorer,
    stretches: &Stretches,
    together: usize,
    progress: &mut dyn FnMut(usize, usize),
    work: &Work<'_, T>,
) -> Result<Vec<T>, Error> {
    let vocab = scorer.vocab();
    let mut results = vec![T::default(); stretches.counted()];
    let mut first = 0;
    for start in (0..stretches.len()).step_by(together.max(1)) {
        let group: Vec<Stretch> =
            (start..stretches.len().min(start + together.max(1))).map(|i| stretches.get(i)).collect();
        let starts: Vec<usize> = group
            .iter()
            .scan(first, |next, s| {
                let start = *next;
                *next += s.counted();
                Some(start)
            })
            .collect();
        // The last token's logits predict nothing that is known: it is not run.
        let passages: Vec<Passage<'_>> =
            group.iter().map(|s| Passage { ids: &s.ids[..s.ids.len() - 1], from: s.from }).collect();
        scorer.run(&passages, &mut |at, logits| {
            let prediction = |at: &RowAt| {
                let s = &group[at.passage];
                Prediction { nth: starts[at.passage] + at.position - s.from, target: s.ids[at.position + 1] }
            };
            let all: Vec<Prediction> = at.iter().map(prediction).collect();
            let done = in_parallel(&all, logits, vocab, work)?;
            all.iter().zip(done).for_each(|(p, result)| results[p.nth] = result);
            Ok(())
        })?;
        first += group.iter().map(Stretch::counted).sum::<usize>();
        progress((start + group.len()).min(stretches.len()), stretches.len());
    }
    Ok(results)
}

/// The results of some rows, in their order.
fn in_parallel<T: Send>(all: &[Prediction], logits: &[f32], vocab: usize, work: &Work<'_, T>) -> Result<Vec<T>, Error> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(all.len() / ROWS_EACH).max(1);
    let each = all.len().div_ceil(threads);
    let some = |all: &[Prediction], logits: &[f32]| -> Result<Vec<T>, Error> {
        all.iter().zip(logits.chunks_exact(vocab)).map(|(p, row)| work(*p, finite(row)?)).collect()
    };
    std::thread::scope(|scope| {
        let parts = all.chunks(each).zip(logits.chunks(each * vocab));
        let running: Vec<_> = parts.map(|(all, logits)| scope.spawn(move || some(all, logits))).collect();
        let mut results = Vec::with_capacity(all.len());
        for thread in running {
            results.extend(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(results)
    })
}

/// Logits that are no numbers would make every figure none.
fn finite(row: &[f32]) -> Result<&[f32], Error> {
    match row.iter().position(|v| v.is_nan() || *v == f32::INFINITY) {
        None => Ok(row),
        Some(id) => Err(Error::Failure(format!(
            "the model's logit of token {id} is {}: its weights, or the way it is computed, are broken",
            row[id]
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_of_probabilities_add_up() {
        let mut row = [1.0f32, -2.0, 30.0, 29.5];
        assert!((log_sum_exp(&row) - (30.0 + (1.0 + (-0.5f64).exp() + (-29f64).exp()).ln())).abs() < 1e-6);
        normalize(&mut row);
        assert!((row.iter().map(|v| f64::from(*v).exp()).sum::<f64>() - 1.0).abs() < 1e-6);
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY, 0.0]), 0.0);
    }

    #[test]
    fn rows_keep_their_order_and_broken_ones_are_refused() {
        let all: Vec<_> = (0..100).map(|nth| Prediction { nth, target: nth as u32 }).collect();
        let mut logits: Vec<f32> = (0..300).map(|v| v as f32).collect();
        let got = in_parallel(&all, &logits, 3, &|p, row| Ok((p.nth, row[0]))).unwrap();
        assert!(got.iter().enumerate().all(|(i, &(nth, first))| nth == i && first == 3.0 * i as f32));
        logits[250] = f32::NAN;
        let error = in_parallel(&all, &logits, 3, &|_, _| Ok(0)).unwrap_err().to_string();
        assert!(error.contains("token 1 is NaN"), "{error}");
    }
}

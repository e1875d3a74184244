//! Perplexity: e to the mean surprise of the tokens that really follow.

use pelton::{Error, Scorer};
use serde::Serialize;

use crate::base::Base;
use crate::rows::{log_sum_exp, normalize, predictions};
use crate::statistics::Estimate;
use crate::stretches::Stretches;

/// How well a text was predicted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Perplexity {
    /// The perplexity and its error bar, to first order.
    pub perplexity: Estimate,
    /// The mean surprise of a token, in nats.
    pub surprise: Estimate,
    /// Predictions that counted.
    pub tokens: usize,
    /// Windows.
    pub windows: usize,
}

impl Perplexity {
    /// Of surprises in nats.
    pub(crate) fn of(surprises: impl Iterator<Item = f64>, tokens: usize, windows: usize) -> Perplexity {
        let surprise = Estimate::mean(surprises);
        Perplexity { perplexity: surprise.exp(), surprise, tokens, windows }
    }
}

/// Measures how well a model predicts stretches of tokens, `together` of them at once.
///
/// # Errors
/// As [`Scorer::run`]; where logits are no numbers.
pub fn perplexity(
    scorer: &mut Scorer,
    stretches: &Stretches,
    together: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Perplexity, Error> {
    let surprises = predictions(scorer, stretches, together, progress, &|prediction, row| {
        Ok(log_sum_exp(row) - f64::from(row[prediction.target as usize]))
    })?;
    Ok(Perplexity::of(surprises.iter().copied(), surprises.len(), stretches.len()))
}

/// The same, and keeps all predictions in `base`, to hold other models against.
///
/// # Errors
/// As [`perplexity`], and where `base` cannot be written.
pub fn keep_base(
    scorer: &mut Scorer,
    stretches: &Stretches,
    together: usize,
    base: &mut Base,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Perplexity, Error> {
    let surprises = surprises(scorer, stretches, together, base, progress)?;
    Ok(Perplexity::of(surprises.iter().copied(), surprises.len(), stretches.len()))
}

/// Keeps all predictions in `base`; how surprising each token was.
pub(crate) fn surprises(
    scorer: &mut Scorer,
    stretches: &Stretches,
    together: usize,
    base: &mut Base,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<f64>, Error> {
    base.check(scorer.vocab(), stretches.counted())?;
    let writer = base.writer();
    predictions(scorer, stretches, together, progress, &|prediction, row| {
        let mut row = row.to_vec();
        normalize(&mut row);
        let surprise = -f64::from(row[prediction.target as usize]);
        writer.put(prediction.nth, &row)?;
        Ok(surprise)
    })
}

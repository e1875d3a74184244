//! How far one model's predictions are from another's, in the field's terms (those of llama.cpp's `--kl-divergence`).
//!
//! For each prediction that counts, with `p` of the base and `q` of the model that is measured: the Kullback-Leibler
//! divergence `Σ p ln(p/q)`, whether the same token is likeliest, and how much the probability of the token that really
//! follows has changed (Δp). The ratio of the perplexities is paired: both models predict the same tokens, so its error
//! bar is much narrower than those of the two.

use pelton::{Error, Scorer};
use serde::Serialize;

use crate::base::{Base, LEAST_LN};
use crate::perplexity::Perplexity;
use crate::rows::{normalize, predictions};
use crate::statistics::{Estimate, quantile};
use crate::stretches::Stretches;

/// How far a model is from a base.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Divergence {
    /// How well the model predicts.
    pub perplexity: Perplexity,
    /// How well the base predicts the same.
    pub base_perplexity: Perplexity,
    /// `ln(perplexity / base's)`, with the error bar of the paired difference.
    pub ln_ratio: Estimate,
    /// The mean divergence, in nats.
    pub mean: Estimate,
    /// Half of all divergences are at most …
    pub median: f64,
    /// … 90 of a hundred …
    pub p90: f64,
    /// … 99 of a hundred …
    pub p99: f64,
    /// … 999 of a thousand.
    pub p999: f64,
    /// The largest.
    pub most: f64,
    /// Share of the predictions whose likeliest token is the base's.
    pub same_top: Estimate,
    /// Mean change of the probability of the token that follows.
    pub mean_dp: Estimate,
    /// The same, root of the mean square.
    pub rms_dp: Estimate,
}

/// One prediction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Parted {
    surprise: f64,
    base_surprise: f64,
    divergence: f64,
    dp: f64,
    /// The likeliest tokens, of the base and of the model.
    pub(crate) top: (u32, u32),
    /// The token that follows.
    pub(crate) target: u32,
}

impl Parted {
    /// The base beside itself.
    pub(crate) fn none(surprise: f64) -> Parted {
        Parted { surprise, base_surprise: surprise, ..Parted::default() }
    }
}

/// Measures how far a model is from the base whose predictions of the same stretches are in `base`.
///
/// # Errors
/// [`Error::Usage`] where `base` is of another vocabulary or other stretches; as [`Scorer::run`].
pub fn divergence(
    scorer: &mut Scorer,
    stretches: &Stretches,
    together: usize,
    base: &Base,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Divergence, Error> {
    let parted = parted(scorer, stretches, together, base, progress)?;
    Ok(summary(&parted, stretches.len()))
}

/// Each prediction beside the base's.
pub(crate) fn parted(
    scorer: &mut Scorer,
    stretches: &Stretches,
    together: usize,
    base: &Base,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Parted>, Error> {
    base.check(scorer.vocab(), stretches.counted())?;
    predictions(scorer, stretches, together, progress, &|prediction, row| {
        let (mut own, mut theirs) = (row.to_vec(), Vec::new());
        normalize(&mut own);
        base.row(prediction.nth, &mut theirs)?;
        Ok(part(&own, &theirs, prediction.target, base.is_rounded()))
    })
}

/// Compares two rows of logarithms of probabilities.
fn part(own: &[f32], base: &[f32], target: u32, is_rounded: bool) -> Parted {
    let mut divergence = 0.0f64;
    for (&q, &p) in own.iter().zip(base) {
        // Of a file the least ones are not known; of any, what has no probability adds nothing.
        if (!is_rounded || p > LEAST_LN) && p > f32::NEG_INFINITY {
            divergence += f64::from(p.exp()) * (f64::from(p) - f64::from(q));
        }
    }
    let (ln_q, ln_p) = (f64::from(own[target as usize]), f64::from(base[target as usize]));
    let top = (pelton::likeliest(base), pelton::likeliest(own));
    Parted { surprise: -ln_q, base_surprise: -ln_p, divergence, dp: ln_q.exp() - ln_p.exp(), top, target }
}

/// The figures of some predictions in `n` stretches.
pub(crate) fn summary(all: &[Parted], n: usize) -> Divergence {
    let mut sorted: Vec<f64> = all.iter().map(|p| p.divergence).collect();
    sorted.sort_by(f64::total_cmp);
    let q = |q| quantile(&sorted, q);
    Divergence {
        perplexity: Perplexity::of(all.iter().map(|p| p.surprise), all.len(), n),
        base_perplexity: Perplexity::of(all.iter().map(|p| p.base_surprise), all.len(), n),
        ln_ratio: Estimate::mean(all.iter().map(|p| p.surprise - p.base_surprise)),
        mean: Estimate::mean(sorted.iter().copied()),
        median: q(0.5),
        p90: q(0.9),
        p99: q(0.99),
        p999: q(0.999),
        most: q(1.0),
        same_top: Estimate::share(all.iter().filter(|p| p.top.0 == p.top.1).count(), all.len()),
        mean_dp: Estimate::mean(all.iter().map(|p| p.dp)),
        rms_dp: Estimate::mean(all.iter().map(|p| p.dp * p.dp)).sqrt(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ln(p: &[f64]) -> Vec<f32> {
        p.iter().map(|p| p.ln() as f32).collect()
    }

    #[test]
    fn divergence_is_by_the_definition() {
        let (q, p) = (ln(&[0.5, 0.25, 0.25]), ln(&[0.25, 0.5, 0.25]));
        let parted = part(&q, &p, 1, false);
        assert!((parted.divergence - (0.25 * 0.5f64.ln() + 0.5 * 2f64.ln())).abs() < 1e-6, "{parted:?}");
        assert!((parted.dp + 0.25).abs() < 1e-6 && (parted.surprise - 4f64.ln()).abs() < 1e-6);
        assert_eq!(parted.top, (1, 0));
        assert_eq!(part(&p, &p, 1, false).divergence, 0.0);
    }

    #[test]
    fn the_ratio_is_paired() {
        // The model is always a tenth of a nat worse, whatever the token.
        let parted = |i: usize| {
            let base_surprise = (i % 7) as f64;
            Parted {
                surprise: base_surprise + 0.1,
                base_surprise,
                divergence: i as f64,
                dp: 0.5,
                top: (3, 3),
                target: 1,
            }
        };
        let all: Vec<Parted> = (0..101).map(parted).collect();
        let d = summary(&all, 4);
        assert!((d.ln_ratio.value - 0.1).abs() < 1e-9 && d.ln_ratio.error < 1e-6, "{d:?}");
        assert!(d.perplexity.surprise.error > 0.1, "each alone is much less certain");
        assert_eq!((d.median, d.p90, d.p99, d.most), (50.0, 90.0, 99.0, 100.0));
        assert_eq!((d.same_top.value, d.rms_dp.value, d.perplexity.tokens), (1.0, 0.5, 101));
    }
}

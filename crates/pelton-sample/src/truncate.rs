//! Truncation: top-k, top-p and min-p, without sorting the vocabulary.
//!
//! Invariant: the tokens kept are exactly those of the definitions in the crate's documentation, where
//! tokens of equal logits count in the order of their ids. How the work is divided (thresholds,
//! buckets) never shows in the result.

use crate::exp::{Scale, sum_exp};
use crate::params::SamplingParams;
use std::cmp::Ordering;

/// A token that may be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) id: u32,
    pub(crate) logit: f32,
}

/// Best first; of equals the lowest id first. Logits are not NaN.
pub(crate) fn best_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
}

/// The `n` best tokens above `-inf` (fewer if there are fewer), in no order.
///
/// ```text
/// threshold = -inf
/// for each logit above the threshold: keep it
///     when twice as many as needed are kept: drop all but the n best, threshold = the worst kept
/// ```
///
/// The threshold soon is so high that nearly every logit costs one comparison. A logit equal to it has a
/// higher id than the `n` tokens kept so far, so it is rightly left out.
pub(crate) fn select_best(logits: &[f32], n: usize, kept: &mut Vec<Candidate>) {
    kept.clear();
    if n == 0 {
        return;
    }
    let full = n.saturating_mul(2).max(n.saturating_add(256));
    let mut threshold = f32::NEG_INFINITY;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > threshold {
            kept.push(Candidate { id: id as u32, logit });
            if kept.len() == full {
                threshold = keep_best(kept, n);
            }
        }
    }
    if kept.len() > n {
        keep_best(kept, n);
    }
}

/// Drops all but the `n` best (`1 <= n <= kept.len()`) and gives the least logit kept.
pub(crate) fn keep_best(kept: &mut Vec<Candidate>, n: usize) -> f32 {
    let (_, worst, _) = kept.select_nth_unstable_by(n - 1, best_first);
    let worst = worst.logit;
    kept.truncate(n);
    worst
}

/// Applies top-k, top-p and min-p. Gives false if all are off and every token is kept; else `kept` has the
/// tokens, by ascending id, at least one. `max` is the maximum of the logits, and is finite.
pub(crate) fn truncate(
    logits: &[f32],
    max: f32,
    scale: Scale,
    params: &SamplingParams,
    kept: &mut Vec<Candidate>,
) -> bool {
    let mut is_cut = false;
    if params.top_k > 0 && params.top_k < logits.len() {
        select_best(logits, params.top_k, kept);
        is_cut = true;
    }
    if params.top_p < 1.0 {
        if is_cut {
            kept.sort_unstable_by(best_first);
            let total: f64 = kept.iter().map(|candidate| f64::from(scale.weight(candidate.logit, max))).sum();
            keep_nucleus(kept, max, scale, f64::from(params.top_p) * total);
        } else {
            select_nucleus(logits, max, scale, params.top_p, kept);
        }
        is_cut = true;
    }
    if params.min_p > 0.0 {
        // The best token's weight is 1, so weights are shares of its probability.
        let is_likely = |logit: f32| scale.weight(logit, max) >= params.min_p;
        if is_cut {
            kept.retain(|candidate| is_likely(candidate.logit));
        } else {
            // A comparison that is cheap and a little too generous, before the exact one.
            let generous = params.min_p.ln() - 0.01;
            kept.clear();
            let all = logits.iter().enumerate().map(|(id, &logit)| Candidate { id: id as u32, logit });
            let near = all.filter(|candidate| scale.distance(candidate.logit, max) >= generous);
            kept.extend(near.filter(|candidate| is_likely(candidate.logit)));
        }
        is_cut = true;
    }
    if is_cut {
        kept.sort_unstable_by_key(|candidate| candidate.id);
    }
    is_cut
}

/// Buckets of a sixteenth of a nat of log-probability; the last takes all beyond 64 nats.
const BUCKETS: usize = 1024;
const BUCKETS_PER_NAT: f32 = 16.0;

/// The best tokens that are tried first for top-p: with most models and texts they reach it.
pub(crate) const FEW: usize = 256;

/// Top-p over the whole vocabulary: among the best few, and if they do not reach `p`, by buckets.
fn select_nucleus(logits: &[f32], max: f32, scale: Scale, p: f32, kept: &mut Vec<Candidate>) {
    let target = f64::from(p) * sum_exp(logits, max, scale);
    select_best(logits, FEW, kept);
    kept.sort_unstable_by(best_first);
    if !keep_nucleus(kept, max, scale, target) && kept.len() == FEW {
        select_by_buckets(logits, max, scale, target, kept);
    }
}

/// The best tokens whose weights reach `target`, in two passes however many they are.
///
/// ```text
/// weigh every token into the bucket of its distance from the best
/// edge = the bucket in which the sum from the best bucket on reaches the target
/// keep all tokens of better buckets; sort only the edge's own, and cut there
/// ```
///
/// Subtraction, division and multiplication round monotonically, so a better bucket holds better tokens.
fn select_by_buckets(logits: &[f32], max: f32, scale: Scale, target: f64, kept: &mut Vec<Candidate>) {
    let bucket_of = |logit: f32| ((scale.distance(logit, max) * -BUCKETS_PER_NAT) as usize).min(BUCKETS - 1);
    let mut weights = vec![0.0f64; BUCKETS];
    for &logit in logits {
        weights[bucket_of(logit)] += f64::from(scale.weight(logit, max));
    }
    let mut before = 0.0f64;
    let mut edge = 0;
    while edge < BUCKETS - 1 && before + weights[edge] < target {
        before += weights[edge];
        edge += 1;
    }
    kept.clear();
    let mut at_edge = Vec::new();
    for (id, &logit) in logits.iter().enumerate() {
        let bucket = bucket_of(logit);
        if bucket <= edge && logit > f32::NEG_INFINITY {
            let candidate = Candidate { id: id as u32, logit };
            if bucket < edge { kept.push(candidate) } else { at_edge.push(candidate) }
        }
    }
    at_edge.sort_unstable_by(best_first);
    keep_nucleus(&mut at_edge, max, scale, target - before);
    kept.append(&mut at_edge);
}

/// Cuts `kept` (best first) behind the token with which the sum of weights reaches `target`. Gives false if
/// it never does; then all are kept.
pub(crate) fn keep_nucleus(kept: &mut Vec<Candidate>, max: f32, scale: Scale, target: f64) -> bool {
    let mut reached = 0.0f64;
    let end = kept.iter().position(|candidate| {
        reached += f64::from(scale.weight(candidate.logit, max));
        reached >= target
    });
    if let Some(end) = end {
        kept.truncate(end + 1);
    }
    end.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ways to a nucleus keep the same tokens, whatever the size.
    #[test]
    fn buckets_keep_what_sorting_keeps() {
        for (case, n) in [1usize, 5, 300, 3000].into_iter().enumerate() {
            let logits: Vec<f32> = (0..n as u64).map(|i| (crate::rng::uniform(case as u64, i) * 20.0) as f32).collect();
            let max = logits.iter().copied().fold(f32::MIN, f32::max);
            for (temperature, p) in [(0.2, 0.3), (1.0, 0.9), (3.0, 0.5), (30.0, 0.99), (1e9, 0.7)] {
                let scale = Scale::new(temperature);
                let target = p * sum_exp(&logits, max, scale);
                let (mut sorted, mut by_buckets) = (Vec::new(), Vec::new());
                select_best(&logits, n, &mut sorted);
                sorted.sort_unstable_by(best_first);
                assert!(keep_nucleus(&mut sorted, max, scale, target));
                select_by_buckets(&logits, max, scale, target, &mut by_buckets);
                by_buckets.sort_unstable_by(best_first);
                assert_eq!(by_buckets, sorted, "{n} tokens, temperature {temperature}, p {p}");
            }
        }
    }
}

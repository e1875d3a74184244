//! Where to draw the line between answers of a small model that stand and those that do not.
//!
//! Invariant: answers above the line agree with the large model's as much as was asked for, on average over the questions
//! that it was learned from; no lower line would do.

/// A question that both models answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Mean log-probability of the small model's tokens.
    pub mean_logprob: f64,
    /// How much its answer agrees with the large model's, 0 to 1.
    pub agreement: f64,
}

/// What was learned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Learned {
    /// The line: answers with a mean log-probability of at least this stand. `None` where no line gives the agreement
    /// that was asked for.
    pub least_mean_logprob: Option<f64>,
    /// Share of the samples above it.
    pub kept: f64,
    /// Their mean agreement; where there is no line, the best that any line gives.
    pub agreement: f64,
}

/// The lowest line above which the mean agreement is at least `wanted`. Samples that are equally sure stand or fall
/// together; those whose confidence is no number always fall.
pub fn learn(samples: &[Sample], wanted: f64) -> Learned {
    let mut sorted: Vec<Sample> = samples.iter().copied().filter(|s| s.mean_logprob.is_finite()).collect();
    sorted.sort_by(|a, b| b.mean_logprob.total_cmp(&a.mean_logprob));
    let mut learned = Learned { least_mean_logprob: None, kept: 0.0, agreement: 0.0 };
    let (mut sum, mut best) = (0.0, 0.0f64);
    for (i, sample) in sorted.iter().enumerate() {
        sum += sample.agreement;
        if sorted.get(i + 1).is_some_and(|next| next.mean_logprob == sample.mean_logprob) {
            continue;
        }
        let n = i + 1;
        let mean = sum / n as f64;
        best = best.max(mean);
        if mean >= wanted {
            let kept = n as f64 / samples.len() as f64;
            learned = Learned { least_mean_logprob: Some(sample.mean_logprob), kept, agreement: mean };
        }
    }
    match &mut learned.least_mean_logprob {
        Some(least) => *least = rounded(*least, &sorted),
        None => learned.agreement = best,
    }
    learned
}

/// The line with as few digits as tell the samples on it from those below, so that what is written to a file means what
/// was learned.
fn rounded(least: f64, sorted: &[Sample]) -> f64 {
    let below = sorted.iter().map(|s| s.mean_logprob).find(|&mean| mean < least).unwrap_or(f64::NEG_INFINITY);
    let with_digits = |digits: i32| {
        let scale = 10f64.powi(digits);
        (least * scale).floor() / scale
    };
    (4..=12).map(with_digits).find(|&line| line > below && line <= least).unwrap_or(least)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(pairs: &[(f64, f64)]) -> Vec<Sample> {
        pairs.iter().map(|&(mean_logprob, agreement)| Sample { mean_logprob, agreement }).collect()
    }

    #[test]
    fn the_lowest_line_that_agrees_enough() {
        let all = samples(&[(-0.1, 1.0), (-2.0, 0.0), (-0.2, 0.8), (-0.5, 0.6), (-1.0, 0.2)]);
        let learned = learn(&all, 0.79);
        assert_eq!((learned.least_mean_logprob, learned.kept), (Some(-0.5), 0.6));
        assert!((learned.agreement - 0.8).abs() < 1e-12);
        assert_eq!(learn(&all, 0.0).least_mean_logprob, Some(-2.0));
        assert_eq!(learn(&all, 0.95).kept, 0.2);
    }

    #[test]
    fn no_line_is_said_to_be_none() {
        let learned = learn(&samples(&[(-0.1, 0.3), (-0.2, 0.5)]), 0.9);
        assert_eq!((learned.least_mean_logprob, learned.kept, learned.agreement), (None, 0.0, 0.4));
        assert_eq!(learn(&[], 0.5).least_mean_logprob, None);
        assert_eq!(learn(&samples(&[(f64::NAN, 1.0)]), 0.5).least_mean_logprob, None);
    }

    #[test]
    fn the_line_is_short_and_lets_nothing_else_stand() {
        let line = |pairs: &[(f64, f64)]| learn(&samples(pairs), 0.9).least_mean_logprob.unwrap();
        assert_eq!(line(&[(-0.123_456_7, 1.0), (-0.5, 0.0)]), -0.1235);
        // The next sample lies between the mean and its four digits.
        let close = line(&[(-0.123_41, 1.0), (-0.123_44, 0.0)]);
        assert!(close <= -0.123_41 && close > -0.123_44, "{close}");
        let twins = line(&[(-0.1, 1.0), (-0.100_000_000_000_000_02, 0.0)]);
        assert_eq!(twins, -0.1);
        assert!(line(&[(-1e300, 1.0)]).is_finite());
    }

    #[test]
    fn equals_stand_together() {
        let learned = learn(&samples(&[(-0.1, 1.0), (-0.3, 1.0), (-0.3, 0.0)]), 0.9);
        assert_eq!(learned.least_mean_logprob, Some(-0.1));
    }
}

//! How sure a model was of an answer.
//!
//! Invariant: an answer of which nothing is known counts as one that nobody was sure of.

use pelton_engine::FinishReason;

/// How sure a model was of an answer, and whether it came to its end: collected from the engine's events.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sureness {
    sum: f64,
    n: usize,
    context_full: bool,
    out_of_time: bool,
}

impl Sureness {
    /// Counts a token with its log-probability.
    pub fn token(&mut self, logprob: f32) {
        self.sum += f64::from(logprob);
        self.n += 1;
    }

    /// Notes why the answer ended.
    pub fn end(&mut self, reason: FinishReason) {
        self.context_full |= reason == FinishReason::Context;
        self.out_of_time |= reason == FinishReason::Deadline;
    }

    /// Tokens that were counted.
    pub fn tokens(&self) -> usize {
        self.n
    }

    /// Mean log-probability of the tokens; minus infinity where there was none.
    pub fn mean_logprob(&self) -> f64 {
        if self.n == 0 { f64::NEG_INFINITY } else { self.sum / self.n as f64 }
    }

    /// Whether the model's context ended the answer.
    pub fn is_cut(&self) -> bool {
        self.context_full
    }

    /// Whether the time that the answer might take was over: none is left for another.
    pub fn is_out_of_time(&self) -> bool {
        self.out_of_time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_averaged_and_none_is_no_confidence() {
        let mut sure = Sureness::default();
        assert_eq!((sure.tokens(), sure.mean_logprob()), (0, f64::NEG_INFINITY));
        for logprob in [-0.5, -1.5, -1.0] {
            sure.token(logprob);
        }
        assert_eq!((sure.tokens(), sure.mean_logprob()), (3, -1.0));
        sure.end(FinishReason::Eos);
        assert!(!sure.is_cut() && !sure.is_out_of_time());
        sure.end(FinishReason::Context);
        assert!(sure.is_cut() && !sure.is_out_of_time());
        sure.end(FinishReason::Deadline);
        assert!(sure.is_out_of_time());
        sure.token(f32::NAN);
        assert!(sure.mean_logprob().is_nan());
    }
}

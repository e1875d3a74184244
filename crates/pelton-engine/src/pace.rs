//! How many tokens of prompts run beside streams, so that a long prompt does not make them stutter.
//!
//! ```text
//! a step of decode rows alone takes            t
//! a token of a prompt beside them takes        c    more
//! a step with p tokens of prompts takes        t + c p,  at most SLOWDOWN * t
//! ```
//!
//! Both are measured while running, and `t` again now and then while prompts come without end. Invariant: it decides
//! how prompts are cut, and nothing else; results do not depend on that.

use std::time::Duration;

/// A step with prompts takes at most so many times what it takes without: somewhat below 2, since steps vary.
const SLOWDOWN: f64 = 1.8;

/// Tokens of prompts in a step before anything is known, and the fewest ever.
const FIRST: usize = 64;
const LEAST: usize = 8;

/// A token of a prompt costs at least this part of a step of decode rows.
const LEAST_COST: f64 = 512.0;

/// After so many steps with prompts, one without measures anew.
const PROBE_EVERY: u32 = 64;

/// Share of a new measurement in the running mean.
const WEIGHT: f64 = 0.125;

/// The measurements.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pace {
    /// Seconds of a step of decode rows alone.
    decode: Option<f64>,
    /// Seconds more for a token of a prompt.
    token: Option<f64>,
    /// Steps with prompts since the last one without.
    mixed: u32,
}

impl Pace {
    /// Tokens of prompts that the next step may have beside decode rows.
    pub(crate) fn max_prefill(&self) -> usize {
        if self.mixed >= PROBE_EVERY {
            return 0;
        }
        let (Some(decode), Some(token)) = (self.decode, self.token) else { return FIRST };
        let tokens = (SLOWDOWN - 1.0) * decode / token.max(1e-9);
        (tokens as usize).max(LEAST)
    }

    /// Takes note of a step with decode rows, and `prefill` tokens of prompts.
    pub(crate) fn note(&mut self, prefill: usize, took: Duration) {
        let took = took.as_secs_f64();
        if prefill == 0 {
            self.mixed = 0;
            mean(&mut self.decode, took);
            return;
        }
        self.mixed += 1;
        if let Some(decode) = self.decode {
            // Noise may make it look free, which would let the next prompt in whole.
            mean(&mut self.token, ((took - decode) / prefill as f64).max(decode / LEAST_COST));
        }
    }
}

/// A running mean that a single slow step (the system was busy elsewhere) hardly moves.
fn mean(known: &mut Option<f64>, new: f64) {
    *known = Some(match *known {
        None => new,
        Some(mean) => mean + WEIGHT * (new.min(4.0 * mean.max(1e-9)) - mean),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine on which a step takes 10 ms, and a token of a prompt 0.5 ms more.
    fn run(pace: &mut Pace, steps: usize) -> Vec<(usize, f64)> {
        let step = |_| {
            let tokens = pace.max_prefill();
            let seconds = 0.010 + 0.0005 * tokens as f64;
            pace.note(tokens, Duration::from_secs_f64(seconds));
            (tokens, seconds)
        };
        (0..steps).map(step).collect()
    }

    #[test]
    fn steps_with_prompts_take_at_most_twice_as_long() {
        let mut pace = Pace::default();
        assert_eq!(pace.max_prefill(), FIRST);
        pace.note(0, Duration::from_millis(10));
        run(&mut pace, 1);
        let steps = run(&mut pace, 500);
        assert!(steps.iter().all(|&(_, seconds)| seconds < 0.020), "{steps:?}");
        assert!(steps.iter().filter(|&&(tokens, _)| tokens >= 15).count() > 480);
        assert!(steps.iter().any(|&(tokens, _)| tokens == 0), "it measures anew");
        // One slow step changes little; a machine that has become slower changes it in time.
        pace.note(16, Duration::from_secs(1));
        assert!(pace.max_prefill() >= 8);
        for _ in 0..100 {
            pace.note(0, Duration::from_millis(40));
        }
        assert!(pace.max_prefill() > 40);
    }
}

//! How often drafts are accepted: measured for each drafter, and for each sequence of each drafter.
//!
//! Two views of the same outcomes. By *position* (the first draft, the second …, each given that those before it were
//! accepted): what can be expected before anything was drafted. By *class* (how sure the drafter said it was): what can
//! be expected of the drafts at hand. Old outcomes fade. A sequence that has few of its own is judged by all.
//!
//! Invariant: an acceptance is strictly between 0 and 1.

use super::{CLASSES, MAX_DRAFT};

/// Weight of what is known of all sequences, in outcomes of one.
const SHARED_WEIGHT: f64 = 3.0;

/// Weight of what is assumed before anything was seen.
const PRIOR_WEIGHT: f64 = 1.0;

/// What an outcome still counts for after another one like it: for a sequence, and for all together.
const FADE: f64 = 0.92;
const SHARED_FADE: f64 = 0.98;

/// Outcomes, the last of them counted most.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    hits: f64,
    tries: f64,
}

impl Tally {
    fn note(&mut self, hit: bool, fade: f64) {
        self.hits = self.hits * fade + f64::from(u8::from(hit));
        self.tries = self.tries * fade + 1.0;
    }

    fn share(&self, assumed: f64, weight: f64) -> f64 {
        ((self.hits + assumed * weight) / (self.tries + weight)).clamp(0.001, 0.999)
    }
}

/// The outcomes of one drafter, or of one drafter for one sequence.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcomes {
    classes: [Tally; CLASSES],
    positions: [Tally; MAX_DRAFT],
}

impl Outcomes {
    /// Takes note of drafts of which the first `accepted` were accepted and, where `rejected`, the next was not. What
    /// follows a rejected draft was not tried.
    fn note(&mut self, classes: &[u8], accepted: usize, rejected: bool, fade: f64) {
        for (position, &class) in classes.iter().enumerate().take(accepted + usize::from(rejected)) {
            let hit = position < accepted;
            self.classes[usize::from(class)].note(hit, fade);
            if let Some(tally) = self.positions.get_mut(position) {
                tally.note(hit, fade);
            }
        }
    }
}

/// What is known of one drafter.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    shared: Outcomes,
}

impl Record {
    /// Takes note of an outcome in both records.
    pub(crate) fn note(&mut self, own: &mut Outcomes, classes: &[u8], accepted: usize, rejected: bool) {
        self.shared.note(classes, accepted, rejected, SHARED_FADE);
        own.note(classes, accepted, rejected, FADE);
    }

    /// The acceptance of each class, for a sequence.
    pub(crate) fn of_classes(&self, own: &Outcomes) -> [f64; CLASSES] {
        std::array::from_fn(|class| {
            let assumed = 0.25 + 0.6 * class as f64 / (CLASSES - 1) as f64;
            let shared = self.shared.classes[class].share(assumed, PRIOR_WEIGHT);
            own.classes[class].share(shared, SHARED_WEIGHT)
        })
    }

    /// The probability that the drafts up to each position are all accepted, before they are made.
    pub(crate) fn survival(&self, own: &Outcomes, len: usize) -> Vec<f64> {
        let mut survival = 1.0;
        let mut assumed = 0.5;
        (0..len.min(MAX_DRAFT))
            .map(|position| {
                // A position that was never reached is like the one before it.
                let shared = self.shared.positions[position].share(assumed, PRIOR_WEIGHT);
                let share = own.positions[position].share(shared, SHARED_WEIGHT);
                assumed = shared;
                survival *= share;
                survival
            })
            .collect()
    }
}

/// The probabilities that the drafts up to each are all accepted, given the acceptance of their classes.
pub(crate) fn survival_of(classes: &[u8], acceptance: &[f64; CLASSES]) -> Vec<f64> {
    let mut survival = 1.0;
    let step = |&class: &u8| {
        survival *= acceptance[usize::from(class)];
        survival
    };
    classes.iter().map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_learned_and_old_ones_fade() {
        let (mut record, mut own) = (Record::default(), Outcomes::default());
        let before = record.survival(&own, 4);
        assert!((before[0] - 0.5).abs() < 1e-9 && (before[3] - 0.0625).abs() < 1e-9, "{before:?}");
        for _ in 0..50 {
            record.note(&mut own, &[7, 7, 7, 2], 3, true);
        }
        let after = record.survival(&own, 4);
        assert!(after[2] > 0.9 && after[3] < 0.1, "{after:?}");
        assert!(record.of_classes(&own)[7] > 0.95 && record.of_classes(&own)[2] < 0.1);
        for _ in 0..30 {
            record.note(&mut own, &[7], 0, true);
        }
        assert!(record.survival(&own, 1)[0] < 0.2, "what was good is not any more");
    }

    #[test]
    fn a_new_sequence_is_judged_by_the_others() {
        let (mut record, mut bad) = (Record::default(), Outcomes::default());
        for _ in 0..100 {
            record.note(&mut bad, &[5, 5], 0, true);
        }
        assert!(record.survival(&Outcomes::default(), 1)[0] < 0.05);
        let mut good = Outcomes::default();
        for _ in 0..12 {
            record.note(&mut good, &[5, 5], 2, false);
        }
        assert!(record.survival(&good, 2)[1] > 3.0 * record.survival(&bad, 2)[1]);
    }

    #[test]
    fn what_follows_a_rejected_draft_was_not_tried() {
        let (mut record, mut own) = (Record::default(), Outcomes::default());
        for _ in 0..20 {
            record.note(&mut own, &[3, 4, 5], 0, true);
        }
        assert_eq!(own.positions[1].tries, 0.0);
        assert_eq!(own.classes[5].tries, 0.0);
        assert_eq!(survival_of(&[0, 1], &[0.5; CLASSES]), [0.5, 0.25]);
    }
}

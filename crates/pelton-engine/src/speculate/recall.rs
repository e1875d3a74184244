//! Recall: what followed the same few tokens in earlier answers of this engine.
//!
//! Answers to one kind of task begin alike and are worded alike ("Returns the number of …"), whatever their prompts say.
//! A table remembers, for runs of one to four tokens, which token followed them in an answer last, and how often in a
//! row. It needs no model, so it pays where a draft model cannot: on models whose own steps are short.
//!
//! Invariants: memory is fixed; only sequences of the same cache salt learn from one another, so that nobody can tell
//! from the time of an answer what others asked.

use std::collections::HashMap;

use pelton_backend::Backend;
use pelton_sched::SeqId;

use super::{Asks, Drafter, MAX_DRAFT, Offer};

/// Tokens of the longest run that is remembered.
const LONGEST: usize = 4;

/// Places of the table, a power of two: 768 KiB.
const PLACES: usize = 1 << 16;

/// What followed a run.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// The rest of the run's hash; 0 is an empty place.
    check: u32,
    token: u32,
    /// How often it followed, less how often another one did.
    count: u32,
}

/// What one sequence has told.
#[derive(Clone, Copy, Debug)]
struct Pupil {
    salt: u64,
    /// Tokens of the text that are known already.
    learned: usize,
}

/// Drafts from earlier answers.
#[derive(Clone, Debug)]
pub struct Recall {
    places: Vec<Place>,
    pupils: HashMap<SeqId, Pupil>,
}

impl Default for Recall {
    fn default() -> Recall {
        Recall { places: vec![Place::default(); PLACES], pupils: HashMap::new() }
    }
}

impl Recall {
    /// Without any answer yet.
    pub fn new() -> Recall {
        Recall::default()
    }

    /// Where a run has its place, and what tells it from others there.
    fn place_of(salt: u64, run: &[u32]) -> (usize, u32) {
        let start = salt ^ (run.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mix = |hash: u64, &token: &u32| {
            let x = (hash ^ u64::from(token)).wrapping_mul(0xff51_afd7_ed55_8ccd);
            x ^ (x >> 29)
        };
        let hash = run.iter().fold(start, mix).wrapping_mul(0xd6e8_feb8_6659_fd93);
        ((hash >> 40) as usize & (PLACES - 1), hash as u32 | 1)
    }

    /// Takes note of the token that follows the text before it.
    fn note(&mut self, salt: u64, text: &[u32]) {
        let Some((&token, before)) = text.split_last() else { return };
        for n in 1..=LONGEST.min(before.len()) {
            let (at, check) = Recall::place_of(salt, &before[before.len() - n..]);
            let place = &mut self.places[at];
            if place.check == check && place.token == token {
                place.count = place.count.saturating_add(1);
            } else if place.check == check && place.count > 1 {
                place.count /= 2;
            } else {
                *place = Place { check, token, count: 1 };
            }
        }
    }

    /// What followed the longest known run at the end of `text`, and how sure that is.
    fn next(&self, salt: u64, text: &[u32]) -> Option<(u32, u8)> {
        (1..=LONGEST.min(text.len())).rev().find_map(|n| {
            let (at, check) = Recall::place_of(salt, &text[text.len() - n..]);
            let place = self.places[at];
            // Four kinds of runs, each seen once, or more than once.
            let class = 2 * (n as u8 - 1) + u8::from(place.count > 1);
            (place.check == check).then_some((place.token, class))
        })
    }
}

impl<B: Backend> Drafter<B> for Recall {
    fn name(&self) -> &str {
        "earlier answers"
    }

    fn model_bytes(&self) -> Option<usize> {
        None
    }

    fn begin(&mut self, seq: SeqId, prompt_len: usize, salt: u64) {
        self.pupils.insert(seq, Pupil { salt, learned: prompt_len });
    }

    fn offer(&mut self, seq: SeqId, text: &[u32], _pages: &[u32]) -> Offer {
        let Some(pupil) = self.pupils.get_mut(&seq) else { return Offer::default() };
        let (salt, learned) = (pupil.salt, pupil.learned);
        pupil.learned = text.len();
        for end in learned + 1..=text.len() {
            self.note(salt, &text[..end]);
        }
        match self.next(salt, text) {
            Some((_, class)) => Offer { len: MAX_DRAFT, class: Some(class), behind: 0 },
            None => Offer::default(),
        }
    }

    fn draft(&mut self, _backend: &mut B, asks: &mut Asks<'_>) {
        for ask in 0..asks.len() {
            let Some(&Pupil { salt, .. }) = self.pupils.get(&asks.seq(ask)) else { continue };
            while let Some((token, class)) = self.next(salt, asks.text(ask)) {
                if !asks.push(ask, token, class) {
                    break;
                }
            }
        }
    }

    fn forget(&mut self, seq: SeqId) {
        self.pupils.remove(&seq);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learn(recall: &mut Recall, salt: u64, text: &[u32]) {
        (2..=text.len()).for_each(|end| recall.note(salt, &text[..end]));
    }

    #[test]
    fn what_followed_before_is_proposed_and_the_longest_run_decides() {
        let mut recall = Recall::new();
        learn(&mut recall, 7, &[1, 2, 3, 4, 5, 6]);
        assert_eq!(recall.next(7, &[9, 9, 2, 3, 4, 5]), Some((6, 6)), "a run of four, seen once");
        assert_eq!(recall.next(7, &[9, 3, 4]), Some((5, 2)), "a run of two");
        learn(&mut recall, 7, &[8, 3, 4, 5]);
        assert_eq!(recall.next(7, &[9, 3, 4]), Some((5, 3)), "seen twice");
        // What was seen once gives way at once, what was seen often when it has been wrong often.
        learn(&mut recall, 7, &[5, 77]);
        assert_eq!(recall.next(7, &[5]), Some((77, 0)));
        learn(&mut recall, 7, &[4, 88]);
        assert_eq!(recall.next(7, &[4]), Some((5, 0)));
        learn(&mut recall, 7, &[4, 88]);
        assert_eq!(recall.next(7, &[4]), Some((88, 0)));
        assert_eq!((recall.next(7, &[6]), recall.next(7, &[])), (None, None));
    }

    #[test]
    fn nobody_learns_what_others_were_answered() {
        let mut recall = Recall::new();
        learn(&mut recall, 1, &[1, 2, 3, 4]);
        assert_eq!(recall.next(2, &[1, 2, 3]), None);
        assert_eq!(recall.next(1, &[1, 2, 3]), Some((4, 4)));
    }

    #[test]
    fn memory_is_fixed_however_much_was_said() {
        let mut recall = Recall::new();
        let text: Vec<u32> = (0..200_000).collect();
        (60_000..text.len()).for_each(|end| recall.note(0, &text[end - 5..end]));
        assert_eq!(recall.places.len(), PLACES);
        let recent = (text.len() - 1000..text.len() - 1).filter(|&end| recall.next(0, &text[..end]).is_some()).count();
        assert!(recent > 900, "{recent} of the last thousand are known");
    }
}

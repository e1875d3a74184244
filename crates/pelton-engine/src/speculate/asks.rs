//! What drafters are asked for, and where they put what they propose.
//!
//! Invariant: a proposal goes on only while it is likely enough to be worth its cost; the drafter need not know what
//! that is.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use pelton_sched::SeqId;

use super::CLASSES;
use crate::sequence::{Body, Sequence};

/// One sequence's drafts in the making.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) seq: SeqId,
    /// Prompt, generated tokens, drafts.
    pub(crate) text: Vec<u32>,
    /// Tokens of it that are no drafts, and those of the prompt.
    pub(crate) len: usize,
    pub(crate) prompt_len: usize,
    /// Drafts at most.
    pub(crate) most: usize,
    /// Pages for all of them, in the target's pool.
    pub(crate) pages: Arc<Vec<u32>>,
    /// How sure the drafter is of each.
    pub(crate) classes: Vec<u8>,
    /// How often drafts of each class are accepted, by what is known.
    pub(crate) acceptance: [f64; CLASSES],
    /// The probability that all drafts so far are accepted, and below which it goes no further.
    pub(crate) survival: f64,
    pub(crate) floor: f64,
}

impl Ask {
    /// The drafts.
    pub(crate) fn drafts(&self) -> &[u32] {
        &self.text[self.len..]
    }

    fn push(&mut self, token: u32, class: u8) -> bool {
        let class = class.min(CLASSES as u8 - 1);
        self.survival *= self.acceptance[usize::from(class)];
        self.text.push(token);
        self.classes.push(class);
        self.drafts().len() < self.most && self.survival > self.floor
    }
}

/// The sequences that drafts are wanted for.
pub struct Asks<'a> {
    pub(crate) asks: Vec<Ask>,
    pub(crate) sequences: &'a mut HashMap<SeqId, Sequence>,
    /// Rows and seconds of each pass of a draft model.
    pub(crate) passes: Vec<(usize, f64)>,
}

impl Asks<'_> {
    /// How many sequences.
    pub fn len(&self) -> usize {
        self.asks.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.asks.is_empty()
    }

    /// The name of sequence number `index`.
    pub fn seq(&self, index: usize) -> SeqId {
        self.asks[index].seq
    }

    /// Its prompt, what was generated, and the drafts so far.
    pub fn text(&self, index: usize) -> &[u32] {
        &self.asks[index].text
    }

    /// Tokens of the text that are no drafts.
    pub fn known(&self, index: usize) -> usize {
        self.asks[index].len
    }

    /// Drafts at most.
    pub fn most(&self, index: usize) -> usize {
        self.asks[index].most
    }

    /// Its pages in the target's pool, for positions up to those of `most` drafts. They are the sequence's own from the
    /// page of its last token on; pages before that may be shared with sequences that begin alike.
    pub fn pages(&self, index: usize) -> &[u32] {
        &self.asks[index].pages
    }

    /// Adds a draft; `false` where it is the last one wanted. `class`: how sure the drafter is.
    pub fn push(&mut self, index: usize, token: u32, class: u8) -> bool {
        self.asks[index].push(token, class)
    }

    /// Adds the token that the sequence itself would choose if `logits` were the target's (its penalties, its
    /// temperature, its draw for that position), which makes agreement likelier than the likeliest token does. `false`
    /// where no more is wanted.
    pub fn choose(&mut self, index: usize, logits: &mut [f32]) -> bool {
        let ask = &mut self.asks[index];
        let Some(Sequence { body: Body::Answer(answer), .. }) = self.sequences.get_mut(&ask.seq) else { return false };
        let (prompt, generated) = ask.text.split_at(ask.prompt_len);
        let Ok(sampled) = answer.guess(logits, prompt, generated) else { return false };
        ask.push(sampled.id, class_of(sampled.logprob))
    }

    /// Takes note of a pass of `rows` rows through a draft model that began at `start`.
    pub fn note_pass(&mut self, rows: usize, start: Instant) {
        self.passes.push((rows, start.elapsed().as_secs_f64()));
    }
}

/// How sure a model is of a token.
fn class_of(logprob: f32) -> u8 {
    const EDGES: [f32; CLASSES - 1] = [0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.95];
    let p = logprob.exp();
    EDGES.iter().filter(|&&edge| p > edge).count() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surer_is_a_higher_class() {
        assert_eq!([0.01f32, 0.2, 0.5, 0.96].map(|p| class_of(p.ln())), [0, 1, 3, 7]);
        assert_eq!(class_of(f32::NEG_INFINITY), 0);
    }

    #[test]
    fn drafts_end_where_they_are_not_worth_it() {
        let mut ask = Ask {
            seq: SeqId(1),
            text: vec![1, 2],
            len: 2,
            prompt_len: 1,
            most: 4,
            pages: Arc::default(),
            classes: Vec::new(),
            acceptance: [0.5; CLASSES],
            survival: 1.0,
            floor: 0.2,
        };
        assert!(ask.push(7, 0) && ask.push(8, 0));
        assert!(!ask.push(9, 200), "an eighth is too little");
        assert_eq!((ask.drafts(), ask.classes.as_slice()), (&[7, 8, 9][..], &[0, 0, 7][..]));
        ask.floor = 0.0;
        assert!(!ask.push(9, 0), "four are wanted");
    }
}

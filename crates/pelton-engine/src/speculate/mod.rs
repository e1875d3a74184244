//! Speculation: cheap guesses at the next tokens, checked by the model in one step.
//!
//! ```text
//! drafters offer ─▶ the controller picks (who, which drafter, how many) ─▶ drafts ─▶ set_draft ─▶ plan ─▶ step
//!       ▲                                                                                            │
//!       └──────────────── what was accepted, what the step cost ◀────────────────────────────────────┘
//! ```
//!
//! Verification is exact and simple. The token of a position depends on the logits there, the text before it, the
//! request's parameters and its seed, and on nothing else ([`pelton_sample`]). So the target's own token is chosen at
//! each drafted position, in order, with penalties, grammar and truncation following the accepted text; drafts are
//! accepted while they equal it. What comes out is what would have come out without drafts, bit for bit, greedy or
//! sampled. A draft is a point mass, for which the rule of Leviathan et al. ("Fast inference from transformers via
//! speculative decoding", ICML 2023) accepts with the probability that the target gives the draft; so does this one,
//! over the seeds.
//!
//! To add a drafter: one file here that implements [`Drafter`], and a line where an engine gets its drafters
//! (`Engine::add_drafter`; those of the `pelton` crate are in its `speculation.rs`).
//!
//! Invariant: a drafter is never trusted. What it proposes may cost time, and can change nothing else.

mod acceptance;
mod asks;
mod controller;
mod cost;
mod mirror;
mod model;
mod ngram;
mod recall;
#[cfg(test)]
mod simulation;
mod speculator;

use pelton_backend::Backend;
use pelton_sched::SeqId;

pub use asks::Asks;
pub use model::{DraftModel, VocabularyMismatch, check_vocabularies};
pub use ngram::Ngrams;
pub use recall::Recall;

pub(crate) use speculator::{Speculator, Verified};

/// Most drafts behind one token.
pub const MAX_DRAFT: usize = 16;

/// Kinds of drafts by how sure their drafter is, from 0 (a guess) to `CLASSES - 1`; acceptance is measured for each.
pub const CLASSES: usize = 8;

/// How an engine speculates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpeculationOptions {
    /// Most drafts behind one token, at most [`MAX_DRAFT`].
    pub max_draft: usize,
    /// Most drafts in one step, over all sequences.
    pub max_rows: usize,
    /// Exactly so many drafts in every step, as far as drafters have them, from the first drafter that has any:
    /// for tests and benchmarks. `None` lets the controller decide.
    pub forced: Option<usize>,
    /// So many steps of plain decoding may be lost before anything is known: more where it is known beforehand that
    /// the drafts are good.
    pub trust: f64,
}

impl SpeculationOptions {
    /// Drafts in one step that logits are held for, at most.
    pub const MAX_ROWS: usize = 64;
}

impl Default for SpeculationOptions {
    fn default() -> SpeculationOptions {
        SpeculationOptions { max_draft: MAX_DRAFT, max_rows: SpeculationOptions::MAX_ROWS, forced: None, trust: 0.5 }
    }
}

/// What a drafter could do for a sequence, before it does anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Tokens that it could propose.
    pub len: usize,
    /// How sure it is of the first of them, below [`CLASSES`], where it knows already; it is as sure of the others.
    pub class: Option<u8>,
    /// Tokens that it must run before, besides those that every proposal takes.
    pub behind: usize,
}

/// Guesses the next tokens of sequences.
///
/// The calls of one step: `begin` for a sequence that is new, `offer` for each sequence that decodes next, then `draft`
/// once for those picked; `forget` when a sequence has ended. Steps that no draft could make faster go by without. A sequence may lose its pages, get others, or share them between any two calls; its
/// tokens only grow.
pub trait Drafter<B: Backend>: Send {
    /// Its name for people.
    fn name(&self) -> &str;

    /// Bytes of weights that a pass of its model reads: what drafting takes is guessed from it, then measured. `None`
    /// where it just looks something up.
    fn model_bytes(&self) -> Option<usize>;

    /// A sequence that it has not seen yet, with a prompt of so many tokens. Sequences of other salts may not be told
    /// anything of this one's text: not even by what they are offered.
    fn begin(&mut self, seq: SeqId, prompt_len: usize, salt: u64) {
        let _ = (seq, prompt_len, salt);
    }

    /// What it could propose behind `text`. `pages` are the sequence's pages, in the target's pool.
    fn offer(&mut self, seq: SeqId, text: &[u32], pages: &[u32]) -> Offer;

    /// Proposes tokens: [`Asks::push`] or [`Asks::choose`], as long as they say so, at most [`Asks::most`].
    fn draft(&mut self, backend: &mut B, asks: &mut Asks<'_>);

    /// Forgets a sequence.
    fn forget(&mut self, seq: SeqId);

    /// Whether it wants to see hidden states: drafting heads do (EAGLE, multi-token prediction).
    fn reads_hidden(&self) -> bool {
        false
    }

    /// The target's final hidden states of the tokens of `seq` from position `start` on, `(tokens, hidden)`, after each
    /// step; those of drafts, accepted or not, come last.
    fn see_hidden(&mut self, seq: SeqId, start: usize, states: &[f32]) {
        let _ = (seq, start, states);
    }
}

//! What a model is worth, in figures that compare with those of other programs.
//!
//! - [`perplexity`]: how well it predicts a text, with the windows, strides and error bars that the field uses.
//! - [`divergence`]: how far its predictions are from those of another model with the same vocabulary ([`Base`]).
//! - [`multiple_choice`] and [`questions`]: how many of a file's questions it answers.
//! - [`compare`]: all of that for several quantizations or KV types, with their bytes and their speed, a page with charts
//!   and a sentence of advice.
//!
//! Everything runs on a [`pelton::Scorer`] (the decoder alone) or, where answers are generated for their own sake, on an
//! engine. Invariants: every figure that is a mean over samples comes with its standard error; figures do not depend on
//! threads, batches or how much memory there is; no more than one model is loaded at a time.

#![forbid(unsafe_code)]

mod base;
mod choice;
mod compare;
mod divergence;
mod perplexity;
mod qa;
mod records;
mod rows;
mod statistics;
mod stretches;
mod vocabulary;

pub use base::{Base, BaseFile};
pub use choice::{Choices, multiple_choice};
pub use compare::{
    Candidate, Comparison, DEFAULT_TEXT, Figures, Parting, Plan, Speed, Step, advice, compare, default_prompts, page,
    percent,
};
pub use divergence::{Divergence, divergence};
pub use perplexity::{Perplexity, keep_base, perplexity};
pub use qa::{Answers, QaOptions, normalized, questions, token_f1};
pub use records::{Fields, Record, Template, read_records};
pub use statistics::{Estimate, quantile};
pub use stretches::{Stretch, Stretches, WindowOptions};
pub use vocabulary::same_vocabulary;

//! Logits weighed where they are, so that choosing a token takes a few bytes of a row instead of all of it.
//!
//! The weight of a logit is `exp((logit - max) / temperature)`. Invariant: sums of weights are roundings in a written order
//! (`conformance::weigh_row` is the truth), the same that `pelton-sample` makes of logits at hand: a token is the same
//! whoever weighs.

/// What is to be found out about a row of logits, besides its best token and the sum at temperature 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ask {
    /// What weights are made at; 0 where no others are wanted.
    pub temperature: f32,
    /// Draw the token in whose share of the sum this falls, from 0 to 1.
    pub point: Option<f64>,
    /// Find the likeliest tokens.
    pub likeliest: bool,
}

/// What was found out about a row of logits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weighed {
    /// The greatest logit.
    pub max: f32,
    /// The lowest token that has it.
    pub best: u32,
    /// The first token whose logit is NaN or `+inf`, and that logit; nothing else is to be relied on then.
    pub odd: Option<(u32, f32)>,
    /// The sum of weights at temperature 1.
    pub sum: f64,
    /// The sum at the temperature asked for.
    pub sum_at: f64,
    /// The token that was drawn, and its logit; where none was, the best.
    pub drawn: (u32, f32),
    /// Tokens with their logits, in any order: none that is missing is likelier than one that is there, or as likely.
    pub likeliest: Vec<(u32, f32)>,
    /// Whether all tokens above `-inf` are among them.
    pub is_all: bool,
}

//! Figures against scalar computations on the fixtures' logits (what transformers computed), and bad input.

mod comparing;
mod support;
mod texts;
mod words;

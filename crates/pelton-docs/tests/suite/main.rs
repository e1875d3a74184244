//! The documentation job against small projects in all eight languages, with a writer that needs no model.
//!
//! Invariant: no test needs a network or a model; the patch tests need `git`.

mod discovery;
mod hostile;
mod outputs;
mod patch;
mod support;

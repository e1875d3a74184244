//! The library from outside, on the kernels that users run: every check opens a model, loads it and asks it, as a
//! program would. One binary, so that it links once.

mod agreement;
mod cancel;
mod chat;
mod company;
mod fixtures;
mod formats;
mod gpu;
mod grammars;
mod invariance;
mod memory;
mod quantized;
mod serving;
mod speculation;
mod support;
mod vocabularies;

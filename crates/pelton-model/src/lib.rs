//! Model architectures over a [`Backend`](pelton_backend::Backend).
//!
//! All supported architectures are one decoder ([`Decoder`]) with flags from
//! [`ModelConfig`](pelton_formats::ModelConfig): biases where the file has them, q/k norms, post-norms, soft caps,
//! sliding windows, a dense or a mixture-of-experts block. Invariant: this crate names no device and no
//! quantization; a linear layer may be stored in any format.

#![forbid(unsafe_code)]

mod decoder;
mod load;
mod rope;

pub use decoder::{Decoder, Workspace};
pub use load::{Check, LoadError, LoadProgress, load, load_checked};
pub use rope::{resolve_rope, rounded_to_bf16};

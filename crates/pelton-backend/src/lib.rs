//! The seam between models and hardware.
//!
//! A model is a straight function over the ops of [`Backend`]; each op takes the whole ragged [`Batch`], at the
//! size at which hardware is programmed. Backends own how weights lie in memory ([`Backend::load_linear`] packs
//! them as the kernels want them) and how the KV pages are laid out; models own neither.
//!
//! [`Reference`] is the truth: scalar, float64 sums, weights decoded by `pelton-quant`. The [`conformance`] suite
//! runs every op of a backend against it at awkward sizes.

#![forbid(unsafe_code)]

mod batch;
pub mod conformance;
mod kv;
mod ops;
mod reference;
mod split;
mod weigh;
mod weight;

pub use batch::{Batch, BatchBuilder, BatchError, Span};
pub use kv::{KvLayout, KvType, PAGE_LEN};
pub use ops::{Attention, Backend, BackendError, Expert, Gate, HeadNorms, Heads, Moe, Part, Place, Placement, Rope};
pub use reference::{RefKv, RefLinear, RefPrepared, RefTensor, Reference};
pub use split::{Each, Split, SplitEmbedding, SplitKv, SplitPlan, SplitPrepared, SplitTensor};
pub use weigh::{Ask, Weighed};
pub use weight::{LinearSpec, SharedBytes, Weight};

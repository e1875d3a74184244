//! Makes quantized models: from a GGUF file or a Hugging Face folder to a GGUF file with the types that were asked for.
//!
//! [`Plan`] gives each tensor its type: a named mix ([`Types::Mix`]), one type for all, or types chosen from measured
//! errors so that the model fits a budget ([`fit`]). [`write`](fn@write) encodes and writes, tensor by tensor in chunks of rows, on
//! several threads; what was written is kept beside the output until it is whole, so that an interrupted run goes on
//! where it ended. [`Imatrix`] says how much each column counts; [`record`] collects it from a text. On the activations
//! of a text ([`Calibration`]), [`scale`] moves the sizes of columns to where errors weigh less (AWQ), and
//! [`write_compensated`] makes errors good (GPTQ).
//!
//! Invariants: the output appears under its name only when it is whole and on the disk; memory does not grow with the
//! model (but the model that is run for a calibration); the bytes written depend neither on the number of threads nor on interruptions; whatever is not as the
//! caller chose is in [`Plan::notes`].

#![forbid(unsafe_code)]

mod awq;
mod budget;
mod calibration;
mod encode;
mod error;
pub mod fit;
mod gptq;
mod gram;
mod imatrix;
mod part;
mod plan;
pub mod record;
mod sensitivity;
mod write;

pub use awq::scale;
pub use budget::Budget;
pub use calibration::Calibration;
pub use error::QuantizeError;
pub use imatrix::Imatrix;
pub use pelton_formats::Mix;
pub use plan::{Plan, PlannedTensor, Types};
pub use sensitivity::{Sensitivities, Sensitivity};
pub use write::{Progress, Written, write, write_compensated};

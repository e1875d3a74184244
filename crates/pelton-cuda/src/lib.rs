//! The CUDA backend: the ops of a model on an NVIDIA GPU.
//!
//! Kernels are plain CUDA C++ in `kernels/`; the driver is found at run time, so that the crate builds where there is no CUDA
//! and the binary runs where there is no driver. `sim/` is a simulator behind the driver's interface: all of this, kernels
//! included, runs in ordinary tests on a CPU.
//!
//! Read [`backend`](CudaBackend) for the ops, `queue.rs` for how they reach the device (and become graphs), `linear/` and
//! `attention.rs` for the two ops that take the time.

#![deny(unsafe_op_in_unsafe_fn)]

mod attention;
mod backend;
mod batch;
mod choose;
mod context;
mod device;
mod driver;
mod embed;
mod error;
pub mod kernels;
mod kv;
mod linear;
mod moe;
mod pool;
mod queue;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod tensor;
#[cfg(test)]
mod tests;

pub use attention::scratch_bytes;
pub use backend::{CudaBackend, CudaOptions, Vector};
pub use batch::Prepared;
pub use device::{DeviceInfo, devices};
pub use embed::Embedding;
pub use error::CudaError;
pub use kv::Kv;
pub use linear::{Linear, packed_bytes};
pub use queue::QueueCounts;
pub use tensor::Tensor;

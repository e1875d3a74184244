//! The CPU backend: thread pool, instruction sets, packed weights and kernels.
//!
//! A bird's-eye view, bottom up:
//!
//! - [`Isa`] says what the machine can do; its tokens prove it, so kernels are reached only where they may run.
//! - [`Cores`] says which processors this process may use; threads are bound by it.
//! - [`Pool`] splits one op over all threads and joins: a few microseconds a round.
//! - [`PackedLinear`] holds weights the way a kernel reads them and multiplies by them.
//! - `simd` is one vector vocabulary for the other ops: norms, rope, attention, gates are written once over it.
//! - [`Kv`] is the paged pool, laid out for the attention kernel.
//! - [`Cpu`] is the backend: the ops, split over the pool where that pays.
//!
//! Invariants: a row of activations gives the same bits alone, in any batch and on any number of threads; linear
//! layers give the same bits on every instruction set. Nothing here reads the environment or keeps global state.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "aarch64")]
mod arm;
mod attention;
mod backend;
mod bandwidth;
mod ceilings;
mod cores;
mod embed;
mod gate;
mod isa;
mod kv;
mod linear;
mod machine;
mod math;
mod moe;
mod norm;
mod pool;
mod rope;
mod simd;
#[cfg(target_arch = "aarch64")]
mod simd_arm;
#[cfg(target_arch = "x86_64")]
mod simd_x86;
mod tensor;

pub use backend::{Cpu, CpuError, CpuOptions, DECODE_ROWS, PackedOutcome, Prepared};
pub use bandwidth::measure_read_bandwidth;
pub use ceilings::{Ceilings, measure_ceilings};
pub use cores::Cores;
pub use embed::Embedding;
pub use isa::{Amx, Avx2, Avx512, Isa, IsaError, Neon};
pub use kv::Kv;
pub use linear::{LinearScratch, PackedError, PackedLinear, checksum, packed_source};
pub use pool::Pool;
pub use tensor::Tensor;

//! Block formats of quantized weights: layout, scalar decode and encode.
//!
//! A quantized tensor is a sequence of *blocks*; a block holds a fixed number of consecutive elements of one row as
//! small integer *codes*, with one or more *scales*. Each format is one module that states its layout and offers
//! - `BLOCK_LEN`, `BLOCK_BYTES`: elements and bytes of a block,
//! - `decode_block`: the values,
//! - `codes`: the integer codes in element order,
//! - the scales, as stored integers and f16,
//!
//! so that a kernel can repack a tensor without knowing a single bit position. [`decode`] and [`encode`] do whole
//! rows of any [`DType`].
//!
//! This crate is the truth that kernels are tested against. Invariants: decoding is bit-exact with the Python package
//! `gguf` (the same f32 operations in the same order, no fused multiply-add); encoding is deterministic, and where
//! that package has an encoder, byte-exact with it; no input makes any of it panic.
//!
//! ```
//! use pelton_quant::{DType, decode, encode};
//! let row: Vec<f32> = (0..64).map(|i| i as f32 / 8.0).collect();
//! let mut blocks = Vec::new();
//! encode(DType::Q8_0, &row, &mut blocks)?;
//! assert_eq!(blocks.len(), 2 * 34);
//! let mut back = vec![0.0; 64];
//! decode(DType::Q8_0, &blocks, &mut back)?;
//! assert!((row[63] - back[63]).abs() < 0.04);
//! # Ok::<(), pelton_quant::QuantError>(())
//! ```

#![forbid(unsafe_code)]

mod affine_search;
mod dtype;
mod error;
mod grid;
mod grid_search;
mod grids;
mod grouped;
mod linear_search;
mod nearest_point;
mod packed_scales;
mod rounding;
mod rows;
mod steps;
mod stretch;
mod weight_type;
mod weights;

mod float;
pub mod iq1_m;
pub mod iq1_s;
pub mod iq2_s;
pub mod iq2_xs;
pub mod iq2_xxs;
pub mod iq3_s;
pub mod iq3_xxs;
pub mod iq4_nl;
pub mod iq4_xs;
pub mod mxfp4;
pub mod q2_k;
pub mod q3_k;
pub mod q4_0;
pub mod q4_1;
pub mod q4_k;
pub mod q5_0;
pub mod q5_1;
pub mod q5_k;
pub mod q6_k;
pub mod q8_0;
pub mod tq1_0;
pub mod tq2_0;

pub use dtype::DType;
pub use error::QuantError;
pub use grouped::{Grouped, GroupedRows};
pub use half::f16;
pub use rows::{decode, encode, encode_weighted};
pub use steps::{Steps, set_codes};
pub use weight_type::{CodeBook, FP4_LEVELS, GroupedType, NF4_LEVELS, WeightType, ZeroPoint, e4m3_to_f32, f32_to_e4m3};

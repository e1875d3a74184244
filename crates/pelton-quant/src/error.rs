//! What can be wrong with a request to decode or encode.
//!
//! Every message says what was asked, what was expected, and what Pelton supports instead.

use thiserror::Error;

use crate::DType;

/// Why blocks could not be decoded or encoded.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum QuantError {
    /// There is no decoder for this type.
    #[error("tensor type {dtype} cannot be decoded; supported: {}", list(DType::DECODABLE))]
    DecodeUnsupported {
        /// The type that was asked for.
        dtype: DType,
    },
    /// There is no encoder for this type.
    #[error("tensor type {dtype} cannot be encoded; supported: {}", list(DType::ENCODABLE))]
    EncodeUnsupported {
        /// The type that was asked for.
        dtype: DType,
    },
    /// The bytes end inside a block.
    #[error("{n_bytes} bytes are not a whole number of {dtype} blocks of {} bytes", dtype.block_bytes())]
    PartialBlock {
        /// The type of the blocks.
        dtype: DType,
        /// How many bytes were given.
        n_bytes: usize,
    },
    /// The elements end inside a block.
    #[error("{n_elements} elements are not a whole number of {dtype} blocks of {} elements", dtype.block_len())]
    PartialRow {
        /// The type of the blocks.
        dtype: DType,
        /// How many elements were given.
        n_elements: usize,
    },
    /// The output has not the length of the input.
    #[error("{n_bytes} bytes of {dtype} hold {expected} elements, but the output has room for {n_elements}")]
    LengthMismatch {
        /// The type of the blocks.
        dtype: DType,
        /// How many bytes were given.
        n_bytes: usize,
        /// How many elements those bytes hold.
        expected: usize,
        /// The length of the output.
        n_elements: usize,
    },
    /// A block format has no code for NaN and infinity, and one such element would spoil its whole block.
    #[error("element {index} is {value}, which {dtype} cannot hold; repair the tensor or keep it as F32, F16 or BF16")]
    NonFinite {
        /// The type of the blocks.
        dtype: DType,
        /// The first such element.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// There is not one importance for each element.
    #[error("{n_importances} importances for {n_elements} elements; give one for each")]
    ImportanceLength {
        /// How many elements were given.
        n_elements: usize,
        /// How many importances were given.
        n_importances: usize,
    },
    /// An importance that is no weight.
    #[error("the importance of element {index} is {value}; it must be a finite number from 0")]
    Importance {
        /// The first such element.
        index: usize,
        /// Its importance.
        value: f32,
    },
    /// The scale of a block exceeds the largest f16 (65504).
    #[error("elements {first} to {last} are too large for the f16 scale of {dtype}; keep the tensor as F32 or BF16")]
    ScaleOverflow {
        /// The type of the blocks.
        dtype: DType,
        /// The first element of the block.
        first: usize,
        /// The last element of the block.
        last: usize,
    },
}

fn list(dtypes: &[DType]) -> String {
    let names: Vec<&str> = dtypes.iter().map(|dtype| dtype.name()).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unsupported_type_is_named_with_what_is_supported() {
        let message = QuantError::DecodeUnsupported { dtype: DType::IQ2_XXS }.to_string();
        assert!(message.contains("IQ2_XXS"), "{message}");
        for dtype in DType::DECODABLE {
            assert!(message.contains(dtype.name()), "{dtype} is missing: {message}");
        }
    }
}

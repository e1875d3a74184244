//! FP8: weights in E4M3 with a scale for each matrix, row or block.
//!
//! ```text
//! weight             F8_E4M3 (rows, cols)
//! weight_scale_inv   (rows / 128, cols / 128), rounded up: of each block (DeepSeek-V3, Qwen3)
//! weight_scale       () or (1): of the matrix;  (rows, 1) or (rows): of each row
//! weight = scale * code
//! ```
//!
//! `weight_scale_inv` is what weights are multiplied by, in spite of its name.

use std::sync::Arc;

use pelton_quant::{CodeBook, Grouped, GroupedType, ZeroPoint};

use super::arrays::{Codes, FileRows, ScaleAt, Scales, Zeros};
use super::parts::{Part, Parts};
use crate::FormatError;

pub(super) fn read(parts: &mut Parts<'_>, module: &str, block: Option<(usize, usize)>) -> Result<Grouped, FormatError> {
    let weight = parts.need(module, "weight")?;
    let scale = match parts.take(module, "weight_scale_inv") {
        Some(scale) => scale,
        None => parts.need(module, "weight_scale")?,
    };
    matrix(&weight, &scale, block)
}

/// A matrix of E4M3 numbers; without `block`, the scale's shape says what shares one.
pub(super) fn matrix(
    weight: &Part<'_>,
    scale: &Part<'_>,
    block: Option<(usize, usize)>,
) -> Result<Grouped, FormatError> {
    let (rows, cols) = weight.matrix(&["F8_E4M3"])?;
    let why = format!("for weights of shape [{rows}, {cols}]; quantization_config contradicts the tensors");
    let (numbers, at, group) = match block {
        Some((block_rows, block_cols)) => {
            let shape = [rows.div_ceil(block_rows), cols.div_ceil(block_cols)];
            let at = ScaleAt::Strided { row_block: block_rows, row_stride: shape[1], group_stride: 1 };
            (scale.floats(&[&shape], &why)?, at, Some(block_cols).filter(|&n| n < cols))
        }
        None => {
            let numbers = scale.floats(&[&[], &[1], &[1, 1], &[rows, 1], &[rows]], &why)?;
            let row_stride = usize::from(numbers.len() > 1);
            (numbers, ScaleAt::Strided { row_block: 1, row_stride, group_stride: 0 }, None)
        }
    };
    let row_bytes = (weight.bytes.len() + scale.bytes.len()).div_ceil(rows);
    let n_groups = group.map_or(1, |group| cols.div_ceil(group));
    let codes = Codes::Bytes { bytes: weight.bytes.clone(), flip: 0 };
    let file = FileRows { cols, n_groups, codes, scales: Scales { numbers, at }, zeros: Zeros::None, row_bytes };
    let group = group.and_then(|n| u32::try_from(n).ok());
    let kind = GroupedType { book: CodeBook::E4m3, group, zero: ZeroPoint::At(0) };
    Ok(Grouped::new(kind, (rows, cols), None, Arc::new(file)))
}

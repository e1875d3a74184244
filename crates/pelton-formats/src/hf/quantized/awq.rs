//! AWQ (arXiv:2306.00978) in the GEMM layout of AutoAWQ.
//!
//! ```text
//! qweight  I32 (cols, rows / 8)        a word: rows 0 2 4 6 1 3 5 7 of eight, from the lowest nibble
//! qzeros   I32 (n_groups, rows / 8)    the same
//! scales   F16 (n_groups, rows)
//! weight = scale * (code - zero)
//! ```

use std::sync::Arc;

use pelton_quant::{CodeBook, Grouped, GroupedType, ZeroPoint};

use super::arrays::{Codes, FileRows, ScaleAt, Scales, Zeros};
use super::groups;
use super::parts::Parts;
use super::scheme::GroupSize;
use crate::FormatError;

pub(super) fn read(parts: &mut Parts<'_>, module: &str, size: GroupSize) -> Result<Grouped, FormatError> {
    let qweight = parts.need(module, "qweight")?;
    let (cols, words) = qweight.matrix(&["I32"])?;
    let Some(rows) = words.checked_mul(8) else {
        return Err(qweight.wrong(qweight.what(), "a shape whose size fits in memory"));
    };
    let (group, n_groups) = groups(qweight.file, qweight.name, cols, size)?;
    let why =
        format!("for {cols} columns in {n_groups} groups of {rows} rows; quantization_config contradicts the tensors");
    let scales = parts.need(module, "scales")?;
    let numbers = scales.floats(&[&[n_groups, rows]], &why)?;
    let qzeros = parts.need(module, "qzeros")?;
    let zeros = Zeros::Awq { bytes: qzeros.is("I32", &[n_groups, words], &why)?, words };
    let row_bytes = [&qweight, &scales, &qzeros].iter().map(|p| p.bytes.len()).sum::<usize>().div_ceil(rows);
    let codes = Codes::Awq { bytes: qweight.bytes.clone(), rows };
    let at = ScaleAt::Strided { row_block: 1, row_stride: 1, group_stride: rows };
    let file = FileRows { cols, n_groups, codes, scales: Scales { numbers, at }, zeros, row_bytes };
    let kind = GroupedType { book: CodeBook::Int { bits: 4 }, group, zero: ZeroPoint::PerGroup };
    Ok(Grouped::new(kind, (rows, cols), None, Arc::new(file)))
}

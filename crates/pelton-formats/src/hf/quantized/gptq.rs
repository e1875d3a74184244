//! GPTQ (arXiv:2210.17323), as AutoGPTQ and GPTQModel write it.
//!
//! ```text
//! qweight  I32 (cols * bits / 32, rows)        of each row a stream of codes, the lowest bits first
//! qzeros   I32 (n_groups, rows * bits / 32)    of each group a stream of zero points; format 1: less one
//! scales   F16 (n_groups, rows)
//! g_idx    I32 (cols)                          the group of each column; without it column / group size
//! weight = scale * (code - zero)
//! ```
//!
//! A stored zero point of format 1 has one added after its bits are taken, so that of 4 bits it may be 16.

use std::sync::Arc;

use pelton_quant::{CodeBook, Grouped, GroupedType, ZeroPoint};

use super::arrays::{Codes, FileRows, ScaleAt, Scales, Zeros};
use super::groups;
use super::parts::{Part, Parts};
use super::scheme::Gptq;
use crate::FormatError;

pub(super) fn read(parts: &mut Parts<'_>, module: &str, gptq: &Gptq) -> Result<Grouped, FormatError> {
    let bits = gptq.bits;
    let qweight = parts.need(module, "qweight")?;
    let (words, rows) = qweight.matrix(&["I32"])?;
    let cols = words.checked_mul(32).filter(|n| n % bits == 0).map(|n| n / bits);
    let Some(cols) = cols else {
        return Err(qweight.wrong(qweight.what(), format!("whole groups of {bits}-bit codes in its first dimension")));
    };
    let (group, n_groups) = groups(qweight.file, qweight.name, cols, gptq.group)?;
    let why =
        format!("for {cols} columns in {n_groups} groups of {rows} rows; quantization_config contradicts the tensors");
    let scales = parts.need(module, "scales")?;
    let numbers = scales.floats(&[&[n_groups, rows]], &why)?;
    let qzeros = parts.need(module, "qzeros")?;
    if !(rows * bits).is_multiple_of(32) {
        return Err(qzeros.wrong(format!("{rows} rows"), format!("rows whose {bits}-bit zero points fill whole words")));
    }
    let zero_words = rows * bits / 32;
    let zeros = qzeros.is("I32", &[n_groups, zero_words], &why)?;
    let zeros = Zeros::Stream { bytes: zeros, bits, words: zero_words, plus: i16::from(gptq.is_v1) };
    let order = match parts.take(module, "g_idx") {
        Some(g_idx) => order(&g_idx, cols, n_groups)?,
        None if gptq.ordered => {
            parts.need(module, "g_idx")?;
            None
        }
        None => None,
    };
    let taken = [&qweight, &scales, &qzeros];
    let row_bytes = taken.iter().map(|p| p.bytes.len()).sum::<usize>().div_ceil(rows);
    let codes = Codes::ColumnStream { bytes: qweight.bytes.clone(), bits, rows };
    let at = ScaleAt::Strided { row_block: 1, row_stride: 1, group_stride: rows };
    let file = FileRows { cols, n_groups, codes, scales: Scales { numbers, at }, zeros, row_bytes };
    let common = if gptq.symmetric { common_zero(&qzeros.bytes, bits) } else { None };
    let zero = common.map_or(ZeroPoint::PerGroup, |zero| ZeroPoint::At(zero + i16::from(gptq.is_v1)));
    let kind = GroupedType { book: CodeBook::Int { bits: bits as u8 }, group, zero };
    Ok(Grouped::new(kind, (rows, cols), order, Arc::new(file)))
}

/// The stored zero point of all groups, if they have one in common.
fn common_zero(words: &[u8], bits: usize) -> Option<i16> {
    let (words, _) = words.as_chunks::<4>();
    let first = u32::from_le_bytes(*words.first()?);
    let code = first & ((1 << bits) - 1);
    // Codes of three bits lie across words.
    let is_whole = 32usize.is_multiple_of(bits);
    let is_common = (0..32 / bits).all(|i| first >> (i * bits) & ((1 << bits) - 1) == code);
    (is_whole && is_common && words.iter().all(|word| *word == words[0])).then_some(code as i16)
}

/// Columns in the order of their groups; `None` where they are in it already.
pub(super) fn order(g_idx: &Part<'_>, cols: usize, n_groups: usize) -> Result<Option<Arc<[u32]>>, FormatError> {
    if g_idx.shape != [cols] {
        return Err(g_idx.wrong(g_idx.what(), format!("shape [{cols}]: the group of each input feature")));
    }
    let groups = g_idx.integers()?;
    // compressed-tensors writes -1 where columns are in order.
    if groups.iter().all(|&g| g == -1) {
        return Ok(None);
    }
    let len = cols / n_groups;
    let mut members: Vec<Vec<u32>> = vec![Vec::new(); n_groups];
    for (col, &g) in groups.iter().enumerate() {
        let Some(group) = usize::try_from(g).ok().and_then(|g| members.get_mut(g)) else {
            return Err(g_idx.wrong(format!("{g} at column {col}"), format!("groups 0 to {}", n_groups - 1)));
        };
        group.push(u32::try_from(col).unwrap_or(u32::MAX));
    }
    if let Some((g, odd)) = members.iter().enumerate().find(|(_, m)| m.len() != len) {
        let got = format!("{} columns in group {g}", odd.len());
        return Err(g_idx.wrong(got, format!("{len} in each, as quantization_config says")));
    }
    let order: Vec<u32> = members.concat();
    let is_sorted = order.is_sorted();
    Ok((!is_sorted).then(|| order.into()))
}

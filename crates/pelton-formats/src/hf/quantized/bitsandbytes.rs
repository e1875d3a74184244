//! bitsandbytes: NF4 and FP4 (QLoRA, arXiv:2305.14314) and LLM.int8() (arXiv:2208.07339).
//!
//! ```text
//! weight                      U8 (rows * cols / 2, 1)   nibbles of all rows, the high one of a byte first
//! weight.absmax               F32 (n_blocks)            the scale of each `blocksize` weights; or, quantized again:
//! weight.absmax               U8 (n_blocks)             codes of 8 bits,
//! weight.nested_quant_map     F32 (256)                 their levels,
//! weight.nested_absmax        F32                       the scale of each `nested_blocksize` of them;
//!                                                       `nested_offset` is added
//! weight.quant_map            F32 (16)                  the levels of the nibbles
//! weight.quant_state.bitsandbytes__nf4                  JSON: quant_type, shape, blocksize, …
//!
//! weight                      I8 (rows, cols)           LLM.int8()
//! SCB                         F32 (rows)                weight = code * SCB / 127
//! ```
//!
//! LLM.int8() keeps no weights in 16 bits: which columns are multiplied so is decided by each batch's activations, and
//! their weights are these same bytes. Pelton multiplies all columns from the bytes, activations with a scale for each
//! 256 values, so an outlier costs its own 256 neighbours some precision and no other column.

use std::sync::Arc;

use pelton_quant::{CodeBook, FP4_LEVELS, Grouped, GroupedType, NF4_LEVELS, ZeroPoint};

use super::arrays::{Codes, FileRows, ScaleAt, Scales, Zeros};
use super::numbers::Numbers;
use super::parts::{Part, Parts};
use crate::FormatError;
use crate::hf::fields::{Fields, parse_object};

/// What the JSON of a 4-bit tensor says.
struct State {
    rows: usize,
    cols: usize,
    block: usize,
    nested_block: usize,
    nested_offset: f32,
}

pub(super) fn four_bits(parts: &mut Parts<'_>, module: &str) -> Result<Grouped, FormatError> {
    let nf4 = parts.take(module, "weight.quant_state.bitsandbytes__nf4");
    let (part, book) = match nf4 {
        Some(part) => (part, CodeBook::Nf4),
        None => (parts.need(module, "weight.quant_state.bitsandbytes__fp4")?, CodeBook::Fp4),
    };
    let state = state(&part, book)?;
    let State { rows, cols, block, .. } = state;
    let weight = parts.need(module, "weight")?;
    let packed = (rows * cols).div_ceil(2);
    if weight.dtype != "U8" || weight.bytes.len() != packed {
        let want = format!("U8, {packed} bytes for the shape [{rows}, {cols}] in {}", part.name);
        return Err(weight.wrong(weight.what(), want));
    }
    let levels = if book == CodeBook::Nf4 { NF4_LEVELS } else { FP4_LEVELS };
    check_levels(&parts.need(module, "weight.quant_map")?, &levels, book)?;
    let n_blocks = (rows * cols).div_ceil(block);
    let absmax = parts.need(module, "weight.absmax")?;
    let mut bytes = weight.bytes.len() + absmax.bytes.len();
    let numbers = if absmax.dtype == "U8" {
        let codes = absmax.is("U8", &[n_blocks], "a code for each block")?;
        let map = parts.need(module, "weight.nested_quant_map")?;
        let levels = map.floats(&[&[256]], "the levels of 8-bit codes")?;
        let mut table = Box::new([0.0; 256]);
        table.iter_mut().enumerate().for_each(|(i, level)| *level = levels.get(i));
        let nested = parts.need(module, "weight.nested_absmax")?;
        let n_nested = n_blocks.div_ceil(state.nested_block);
        let scales = Box::new(nested.floats(&[&[n_nested]], "a scale for each block of scales")?);
        bytes += nested.bytes.len();
        Numbers::Nested { codes, table, scales, block: state.nested_block, offset: state.nested_offset }
    } else {
        absmax.floats(&[&[n_blocks]], "a scale for each block")?
    };
    // A block may end within a row: as many columns as always lie in one block share a scale.
    let group = common_divisor(cols, block);
    let at = ScaleAt::Flat { cols, group, block };
    let codes = Codes::Nibbles { bytes: weight.bytes.clone() };
    let (scales, n_groups, row_bytes) = (Scales { numbers, at }, cols / group, bytes.div_ceil(rows));
    let file = FileRows { cols, n_groups, codes, scales, zeros: Zeros::None, row_bytes };
    let group = u32::try_from(group).ok().filter(|_| group < cols);
    let kind = GroupedType { book, group, zero: ZeroPoint::At(0) };
    Ok(Grouped::new(kind, (rows, cols), None, Arc::new(file)))
}

fn state(part: &Part<'_>, book: CodeBook) -> Result<State, FormatError> {
    if part.dtype != "U8" {
        return Err(part.wrong(part.what(), "U8: the bytes of a JSON object"));
    }
    let label = format!("{}: tensor `{}`", part.file, crate::error::brief(part.name));
    let object = parse_object(&part.bytes, &label)?;
    let f = Fields::new(&label, &object);
    let name = if book == CodeBook::Nf4 { "nf4" } else { "fp4" };
    if let Some(other) = f.str("quant_type")?.filter(|t| *t != name) {
        return Err(f.wrong("quant_type", &other.into(), name));
    }
    let shape: Vec<usize> =
        f.array("shape")?.unwrap_or_default().iter().filter_map(|n| n.as_u64()?.try_into().ok()).collect();
    let &[rows, cols] = &shape[..] else {
        return Err(f.missing("shape", "two dimensions"));
    };
    let at_least_one = |key: &str, default: Option<usize>| match f.count(key)?.or(default) {
        Some(n) if n > 0 => Ok(n),
        Some(n) => Err(f.wrong(key, &n.into(), "at least 1")),
        None => Err(f.missing(key, "a count")),
    };
    if rows == 0 || cols == 0 || rows.checked_mul(cols).is_none() {
        return Err(f.missing("shape", "two dimensions of at least 1 whose product fits in memory"));
    }
    let (block, nested_block) = (at_least_one("blocksize", None)?, at_least_one("nested_blocksize", Some(256))?);
    let nested_offset = f.float("nested_offset")?.unwrap_or(0.0);
    Ok(State { rows, cols, block, nested_block, nested_offset })
}

/// The file's own table must be the format's.
fn check_levels(map: &Part<'_>, levels: &[f32; 16], book: CodeBook) -> Result<(), FormatError> {
    let numbers = map.floats(&[&[16]], "the levels of 4-bit codes")?;
    let is_other = |i: &usize| {
        let off = (numbers.get(*i) - levels[*i]).abs();
        off.is_nan() || off >= 1e-6
    };
    match (0..16).find(is_other) {
        None => Ok(()),
        Some(i) => {
            Err(map.wrong(format!("level {i} as {}", numbers.get(i)), format!("{}, as in {}", levels[i], book.name())))
        }
    }
}

fn common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

pub(super) fn eight_bits(parts: &mut Parts<'_>, module: &str) -> Result<Grouped, FormatError> {
    let weight = parts.need(module, "weight")?;
    let (rows, cols) = weight.matrix(&["I8"])?;
    let scb = parts.need(module, "SCB")?;
    let scales = scb.floats(&[&[rows]], "a scale for each row")?;
    if let Some(form) = parts.take(module, "weight_format")
        && form.bytes.iter().any(|&b| b != 0)
    {
        return Err(form.wrong("another order of columns", "0: rows one after another"));
    }
    let row_bytes = (weight.bytes.len() + scb.bytes.len()).div_ceil(rows);
    let numbers = Numbers::Times(Box::new(scales), 1.0 / 127.0);
    let at = ScaleAt::Strided { row_block: 1, row_stride: 1, group_stride: 0 };
    let codes = Codes::Bytes { bytes: weight.bytes.clone(), flip: 0x80 };
    let file = FileRows { cols, n_groups: 1, codes, scales: Scales { numbers, at }, zeros: Zeros::None, row_bytes };
    let kind = GroupedType { book: CodeBook::Int { bits: 8 }, group: None, zero: ZeroPoint::At(128) };
    Ok(Grouped::new(kind, (rows, cols), None, Arc::new(file)))
}

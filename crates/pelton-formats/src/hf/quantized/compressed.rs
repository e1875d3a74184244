//! compressed-tensors, as llm-compressor writes it.
//!
//! ```text
//! pack-quantized    weight_packed      I32 (rows, cols / 8 rounded up)    codes, the lowest nibble first
//!                   weight_shape       I64 (2)                            rows, cols
//!                   weight_scale       (rows, n_groups), or (1)
//!                   weight_zero_point  I32 (rows / 8 rounded up, n_groups), packed along rows, where asymmetric
//!                   weight_g_idx       I32 (cols)                         where columns are in another order
//! int-quantized     weight             I8 (rows, cols)
//!                   weight_scale       as above;  weight_zero_point  I8, of the same shape
//! float-quantized   weight             F8_E4M3 (rows, cols);  weight_scale as above, or (rows / 128, cols / 128)
//! ```
//!
//! Codes and zero points are signed; packed ones are stored plus half their range, which cancels out. Which group of
//! `config_groups` a module belongs to is told by its tensors: bits and shape of the scale have to be those of one.

use std::sync::Arc;

use pelton_quant::{CodeBook, Grouped, GroupedType, ZeroPoint};

use super::arrays::{Codes, FileRows, ScaleAt, Scales, Zeros};
use super::parts::{Part, Parts};
use super::scheme::{CompressedGroup, Strategy};
use super::{fp8, gptq};
use crate::FormatError;

pub(super) fn read(parts: &mut Parts<'_>, module: &str, groups: &[CompressedGroup]) -> Result<Grouped, FormatError> {
    if let Some(packed) = parts.take(module, "weight_packed") {
        return pack_quantized(parts, module, &packed, groups);
    }
    let weight = parts.need(module, "weight")?;
    match weight.dtype {
        "F8_E4M3" => float_quantized(parts, module, &weight, groups),
        "I8" => int_quantized(parts, module, &weight, groups),
        _ => Err(weight.wrong(weight.what(), "I8 or F8_E4M3, as there is a weight_scale beside it")),
    }
}

/// What shares a scale, and whether there are zero points, of the group that fits.
struct Fit {
    /// Columns of a group that is no whole row.
    group: Option<usize>,
    n_groups: usize,
    symmetric: bool,
    is_one: bool,
}

/// The shape that a scale has under a strategy.
fn scale_shape(strategy: Strategy, rows: usize, cols: usize) -> Option<[usize; 2]> {
    match strategy {
        Strategy::Tensor => Some([1, 1]),
        Strategy::Channel => Some([rows, 1]),
        Strategy::Group(size) => cols.is_multiple_of(size).then(|| [rows, cols / size]),
        Strategy::Block(r, c) => Some([rows.div_ceil(r), cols.div_ceil(c)]),
    }
}

/// Finds the group of the configuration that the scale's shape fits.
fn fit(
    scale: &Part<'_>,
    (rows, cols): (usize, usize),
    bits: usize,
    groups: &[CompressedGroup],
) -> Result<Fit, FormatError> {
    let of_bits: Vec<&CompressedGroup> = groups.iter().filter(|g| !g.is_float && g.bits == bits).collect();
    let shape = match *scale.shape {
        [] => [1, 1],
        [n] => [n, 1],
        [a, b] => [a, b],
        _ => return Err(scale.wrong(scale.what(), "at most two dimensions")),
    };
    let fits = |g: &&&CompressedGroup| scale_shape(g.strategy, rows, cols) == Some(shape);
    let found = of_bits.iter().find(fits).filter(|g| !matches!(g.strategy, Strategy::Block(..)));
    let Some(found) = found else {
        let strategies: Vec<String> = of_bits.iter().map(|g| format!("{:?}", g.strategy)).collect();
        let strategies = if strategies.is_empty() { "none".into() } else { strategies.join(", ") };
        let want = format!(
            "the scales of ({rows}, {cols}) weights of {bits} bits as config_groups of quantization_config has them: \
             {strategies}"
        );
        return Err(scale.wrong(scale.what(), want));
    };
    let (n_groups, is_one) = (shape[1], found.strategy == Strategy::Tensor && rows > 1);
    let group = (n_groups > 1).then_some(cols / n_groups);
    Ok(Fit { group, n_groups, symmetric: found.symmetric, is_one })
}

fn scales(scale: &Part<'_>, fit: &Fit) -> Result<Scales, FormatError> {
    let numbers = scale.floats(&[scale.shape], "")?;
    let row_stride = if fit.is_one { 0 } else { fit.n_groups };
    Ok(Scales { numbers, at: ScaleAt::Strided { row_block: 1, row_stride, group_stride: 1 } })
}

fn pack_quantized(
    parts: &mut Parts<'_>,
    module: &str,
    packed: &Part<'_>,
    groups: &[CompressedGroup],
) -> Result<Grouped, FormatError> {
    let (rows, words) = packed.matrix(&["I32"])?;
    let shape = parts.need(module, "weight_shape")?;
    let cols = match shape.integers()?[..] {
        [r, c] if usize::try_from(r) == Ok(rows) => usize::try_from(c).ok().filter(|&c| c > 0),
        _ => None,
    };
    let Some(cols) = cols else {
        return Err(shape.wrong("other numbers", format!("two: {rows}, the rows of weight_packed, and the columns")));
    };
    let bits = [4usize, 8].into_iter().find(|bits| cols.div_ceil(32 / bits) == words);
    let Some(bits) = bits else {
        return Err(packed.wrong(packed.what(), format!("{cols} columns of 4 or 8 bits, as weight_shape says")));
    };
    let scale = parts.need(module, "weight_scale")?;
    let fit = fit(&scale, (rows, cols), bits, groups)?;
    let scales = scales(&scale, &fit)?;
    let order = match parts.take(module, "weight_g_idx") {
        Some(g_idx) => gptq::order(&g_idx, cols, fit.n_groups)?,
        None => None,
    };
    let mut bytes = packed.bytes.len() + scale.bytes.len();
    let (zeros, zero) = if fit.symmetric {
        // Some files have zero points that are all zero.
        let _ = parts.take(module, "weight_zero_point");
        (Zeros::None, ZeroPoint::At(1 << (bits - 1)))
    } else {
        let part = parts.need(module, "weight_zero_point")?;
        bytes += part.bytes.len();
        let n_groups = fit.n_groups;
        let zeros = match part.dtype {
            "I8" => signed_zeros(&part, &scale, &fit, 1 << (bits - 1))?,
            _ => {
                let shape = [rows.div_ceil(32 / bits), n_groups];
                Zeros::RowWords { bytes: part.is("I32", &shape, "packed along rows")?, bits, n_groups }
            }
        };
        (zeros, ZeroPoint::PerGroup)
    };
    let codes = Codes::RowWords { bytes: packed.bytes.clone(), bits, words };
    let (n_groups, row_bytes) = (fit.n_groups, bytes.div_ceil(rows));
    let file = FileRows { cols, n_groups, codes, scales, zeros, row_bytes };
    let group = fit.group.and_then(|n| u32::try_from(n).ok());
    let kind = GroupedType { book: CodeBook::Int { bits: bits as u8 }, group, zero };
    Ok(Grouped::new(kind, (rows, cols), order, Arc::new(file)))
}

fn signed_zeros(part: &Part<'_>, scale: &Part<'_>, fit: &Fit, plus: i16) -> Result<Zeros, FormatError> {
    let bytes = part.is("I8", scale.shape, "one for each scale")?;
    let row_stride = if fit.is_one { 0 } else { fit.n_groups };
    Ok(Zeros::Bytes { bytes, row_stride, group_stride: 1, plus })
}

fn int_quantized(
    parts: &mut Parts<'_>,
    module: &str,
    weight: &Part<'_>,
    groups: &[CompressedGroup],
) -> Result<Grouped, FormatError> {
    let (rows, cols) = weight.matrix(&["I8"])?;
    let scale = parts.need(module, "weight_scale")?;
    // Four-bit codes are stored so, too: as bytes.
    let bits = if groups.iter().any(|g| !g.is_float && g.bits == 8) { 8 } else { 4 };
    let fit = fit(&scale, (rows, cols), bits, groups)?;
    let scales = scales(&scale, &fit)?;
    let order = match parts.take(module, "weight_g_idx") {
        Some(g_idx) => gptq::order(&g_idx, cols, fit.n_groups)?,
        None => None,
    };
    let mut bytes = weight.bytes.len() + scale.bytes.len();
    let (zeros, zero) = if fit.symmetric {
        let _ = parts.take(module, "weight_zero_point");
        (Zeros::None, ZeroPoint::At(128))
    } else {
        let part = parts.need(module, "weight_zero_point")?;
        bytes += part.bytes.len();
        (signed_zeros(&part, &scale, &fit, 128)?, ZeroPoint::PerGroup)
    };
    let codes = Codes::Bytes { bytes: weight.bytes.clone(), flip: 0x80 };
    let (n_groups, row_bytes) = (fit.n_groups, bytes.div_ceil(rows));
    let file = FileRows { cols, n_groups, codes, scales, zeros, row_bytes };
    let group = fit.group.and_then(|n| u32::try_from(n).ok());
    let kind = GroupedType { book: CodeBook::Int { bits: 8 }, group, zero };
    Ok(Grouped::new(kind, (rows, cols), order, Arc::new(file)))
}

fn float_quantized(
    parts: &mut Parts<'_>,
    module: &str,
    weight: &Part<'_>,
    groups: &[CompressedGroup],
) -> Result<Grouped, FormatError> {
    let (rows, cols) = weight.matrix(&["F8_E4M3"])?;
    let scale = parts.need(module, "weight_scale")?;
    let _ = parts.take(module, "weight_zero_point");
    let mut strategies = groups.iter().filter(|g| g.is_float).map(|g| g.strategy);
    let blocks = |s: &Strategy| match *s {
        Strategy::Block(r, c) => Some((r, c)),
        Strategy::Group(size) => Some((1, size)),
        Strategy::Tensor | Strategy::Channel => None,
    };
    let fits = |s: &Strategy| {
        let shape = scale_shape(*s, rows, cols);
        let is_vector = matches!(*scale.shape, [] | [_]) && blocks(s).is_none();
        is_vector || shape.is_some_and(|shape| *scale.shape == shape)
    };
    let Some(strategy) = strategies.find(fits) else {
        let want = "the scales of FP8 weights as config_groups of quantization_config has them";
        return Err(scale.wrong(scale.what(), format!("{want}, for ({rows}, {cols}) weights")));
    };
    fp8::matrix(weight, &scale, blocks(&strategy))
}

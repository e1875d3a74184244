//! Whole rows of any type: checks lengths, picks the format, walks the blocks.
//!
//! Only here do untrusted lengths meet the formats; behind it every block has its exact size as a Rust type.

use crate::{
    DType, QuantError, float, iq1_m, iq1_s, iq2_s, iq2_xs, iq2_xxs, iq3_s, iq3_xxs, iq4_nl, iq4_xs, mxfp4, q2_k, q3_k,
    q4_0, q4_1, q4_k, q5_0, q5_1, q5_k, q6_k, q8_0, stretch, tq1_0, tq2_0, weights,
};

/// Decodes `bytes` (whole blocks of `dtype`) into `out` (`block_len` elements per block).
///
/// Blocks with non-finite scales decode to what IEEE arithmetic makes of them.
///
/// # Errors
/// An unsupported type, bytes that end inside a block, or an output of another length than the input holds.
pub fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<(), QuantError> {
    if !dtype.can_decode() {
        return Err(QuantError::DecodeUnsupported { dtype });
    }
    let n_bytes = bytes.len();
    if !n_bytes.is_multiple_of(dtype.block_bytes()) {
        return Err(QuantError::PartialBlock { dtype, n_bytes });
    }
    let n_blocks = n_bytes / dtype.block_bytes();
    if n_blocks.checked_mul(dtype.block_len()) != Some(out.len()) {
        let expected = n_blocks.saturating_mul(dtype.block_len());
        return Err(QuantError::LengthMismatch { dtype, n_bytes, expected, n_elements: out.len() });
    }
    match dtype {
        DType::F32 => float::decode_f32(bytes, out),
        DType::F16 => float::decode_f16(bytes, out),
        DType::BF16 => float::decode_bf16(bytes, out),
        DType::Q4_0 => decode_blocks(bytes, out, q4_0::decode_block),
        DType::Q4_1 => decode_blocks(bytes, out, q4_1::decode_block),
        DType::Q5_0 => decode_blocks(bytes, out, q5_0::decode_block),
        DType::Q5_1 => decode_blocks(bytes, out, q5_1::decode_block),
        DType::Q8_0 => decode_blocks(bytes, out, q8_0::decode_block),
        DType::Q2_K => decode_blocks(bytes, out, q2_k::decode_block),
        DType::Q3_K => decode_blocks(bytes, out, q3_k::decode_block),
        DType::Q4_K => decode_blocks(bytes, out, q4_k::decode_block),
        DType::Q5_K => decode_blocks(bytes, out, q5_k::decode_block),
        DType::Q6_K => decode_blocks(bytes, out, q6_k::decode_block),
        DType::IQ1_S => decode_blocks(bytes, out, iq1_s::decode_block),
        DType::IQ1_M => decode_blocks(bytes, out, iq1_m::decode_block),
        DType::IQ2_XXS => decode_blocks(bytes, out, iq2_xxs::decode_block),
        DType::IQ2_XS => decode_blocks(bytes, out, iq2_xs::decode_block),
        DType::IQ2_S => decode_blocks(bytes, out, iq2_s::decode_block),
        DType::IQ3_XXS => decode_blocks(bytes, out, iq3_xxs::decode_block),
        DType::IQ3_S => decode_blocks(bytes, out, iq3_s::decode_block),
        DType::IQ4_NL => decode_blocks(bytes, out, iq4_nl::decode_block),
        DType::IQ4_XS => decode_blocks(bytes, out, iq4_xs::decode_block),
        DType::MXFP4 => decode_blocks(bytes, out, mxfp4::decode_block),
        DType::TQ1_0 => decode_blocks(bytes, out, tq1_0::decode_block),
        DType::TQ2_0 => decode_blocks(bytes, out, tq2_0::decode_block),
        _ => return Err(QuantError::DecodeUnsupported { dtype }),
    }
    Ok(())
}

/// Encodes `src` (whole blocks of elements) and appends the blocks to `out`: [`encode_weighted`] without an importance.
///
/// # Errors
/// As [`encode_weighted`].
pub fn encode(dtype: DType, src: &[f32], out: &mut Vec<u8>) -> Result<(), QuantError> {
    encode_weighted(dtype, src, None, out)
}

/// Encodes `src` (whole blocks of elements) and appends the blocks to `out`. `importance` says how much the squared error
/// of each element counts: the mean square of the layer's input at its column.
///
/// Without an importance, Q4_0, Q4_1, Q5_0, Q5_1, MXFP4 and the ternary formats round each block on its own extremes,
/// byte for byte as the Python package `gguf`; with one they search for the scales with the least weighted squared
/// error. All others search always, but for Q8_0, which always rounds. F16 and BF16 round to nearest even and keep NaN
/// and infinity (an f16 past 65504 becomes infinite, as IEEE conversion says).
///
/// # Errors
/// An unsupported type, elements that end inside a block, NaN or infinity in a block format, values whose scale exceeds
/// f16, or an importance that is not one finite number from 0 for each element. On an error `out` is as it was.
pub fn encode_weighted(
    dtype: DType,
    src: &[f32],
    importance: Option<&[f32]>,
    out: &mut Vec<u8>,
) -> Result<(), QuantError> {
    if !dtype.can_encode() {
        return Err(QuantError::EncodeUnsupported { dtype });
    }
    let Some(n_bytes) = dtype.row_bytes(src.len()) else {
        return Err(QuantError::PartialRow { dtype, n_elements: src.len() });
    };
    if let Some(importance) = importance {
        if importance.len() != src.len() {
            return Err(QuantError::ImportanceLength { n_elements: src.len(), n_importances: importance.len() });
        }
        let is_weight = |i: &f32| *i >= 0.0 && *i < f32::INFINITY;
        if !importance.iter().fold(true, |all, i| all & is_weight(i)) {
            let index = importance.iter().position(|i| !is_weight(i)).unwrap_or(0);
            return Err(QuantError::Importance { index, value: importance[index] });
        }
    }
    let start = out.len();
    out.resize(start + n_bytes, 0);
    let result = encode_into(dtype, src, importance, &mut out[start..]);
    if result.is_err() {
        out.truncate(start);
    }
    result
}

fn encode_into(dtype: DType, src: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> Result<(), QuantError> {
    /// Rounds without an importance, searches with one.
    macro_rules! either {
        ($format:ident) => {
            match importance {
                None => encode_blocks(dtype, src, None, out, |x, _| $format::encode_block(x)),
                Some(_) => searched!($format),
            }
        };
    }
    macro_rules! searched {
        ($format:ident) => {
            searched!($format, of_block)
        };
        ($format:ident, $weights:ident) => {
            encode_blocks(dtype, src, importance, out, |x, importance| {
                $format::encode_searched(x, &weights::$weights(x, importance))
            })
        };
    }
    /// A format whose block begins with its `d`, stretched where there is an importance.
    macro_rules! stretched {
        ($format:ident) => {
            encode_blocks(dtype, src, importance, out, |x, importance| {
                let w = weights::of_block(x, importance);
                let block = $format::encode_searched(x, &w)?;
                Some(if importance.is_some() {
                    stretch::most_of_the_way(block, x, &w, $format::decode_block)
                } else {
                    block
                })
            })
        };
    }
    match dtype {
        DType::F32 => float::encode_f32(src, out),
        DType::F16 => float::encode_f16(src, out),
        DType::BF16 => float::encode_bf16(src, out),
        DType::Q4_0 => return either!(q4_0),
        DType::Q4_1 => return either!(q4_1),
        DType::Q5_0 => return either!(q5_0),
        DType::Q5_1 => return either!(q5_1),
        DType::Q8_0 => return encode_blocks(dtype, src, None, out, |x, _| q8_0::encode_block(x)),
        DType::Q2_K => return searched!(q2_k, of_block_with_large),
        DType::Q3_K => return searched!(q3_k),
        DType::Q4_K => return searched!(q4_k),
        DType::Q5_K => return searched!(q5_k),
        DType::Q6_K => return searched!(q6_k),
        DType::IQ1_S => return searched!(iq1_s),
        DType::IQ1_M => return searched!(iq1_m),
        DType::IQ2_XXS => return stretched!(iq2_xxs),
        DType::IQ2_XS => return stretched!(iq2_xs),
        DType::IQ2_S => return stretched!(iq2_s),
        DType::IQ3_XXS => return stretched!(iq3_xxs),
        DType::IQ3_S => return searched!(iq3_s),
        DType::IQ4_NL => return searched!(iq4_nl),
        DType::IQ4_XS => return searched!(iq4_xs),
        DType::MXFP4 => return either!(mxfp4),
        DType::TQ1_0 => return either!(tq1_0),
        DType::TQ2_0 => return either!(tq2_0),
        _ => return Err(QuantError::EncodeUnsupported { dtype }),
    }
    Ok(())
}

fn decode_blocks<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode_block: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    let (blocks, _) = bytes.as_chunks::<BYTES>();
    let (values, _) = out.as_chunks_mut::<LEN>();
    for (block, values) in blocks.iter().zip(values) {
        decode_block(block, values);
    }
}

/// `encode_block` sees finite values only; `None` from it means that the scale does not fit.
fn encode_blocks<const BYTES: usize, const LEN: usize>(
    dtype: DType,
    src: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
    encode_block: impl Fn(&[f32; LEN], Option<&[f32; LEN]>) -> Option<[u8; BYTES]>,
) -> Result<(), QuantError> {
    let (values, _) = src.as_chunks::<LEN>();
    let importance = importance.map(|importance| importance.as_chunks::<LEN>().0);
    let (blocks, _) = out.as_chunks_mut::<BYTES>();
    for (n, (values, block)) in values.iter().zip(blocks).enumerate() {
        let first = n * LEN;
        if !values.iter().fold(true, |finite, x| finite & x.is_finite()) {
            let at = values.iter().position(|x| !x.is_finite()).unwrap_or(0);
            return Err(QuantError::NonFinite { dtype, index: first + at, value: values[at] });
        }
        let importance = importance.map(|importance| &importance[n]);
        *block = encode_block(values, importance).ok_or(QuantError::ScaleOverflow {
            dtype,
            first,
            last: first + LEN - 1,
        })?;
    }
    Ok(())
}

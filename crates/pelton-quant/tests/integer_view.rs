//! Codes and scales are the whole truth: from them alone, every format's values come out bit for bit.
//!
//! This is what a kernel's packer relies on. Blocks are arbitrary bytes, NaN and infinite scales included.

use pelton_quant::{
    DType, decode, iq1_m, iq1_s, iq2_s, iq2_xs, iq2_xxs, iq3_s, iq3_xxs, iq4_nl, iq4_xs, mxfp4, q2_k, q3_k, q4_0, q4_1,
    q4_k, q5_0, q5_1, q5_k, q6_k, q8_0, tq1_0, tq2_0,
};
use proptest::prelude::*;

/// The values of a block from its codes and scales, by the formula in the format's documentation.
fn from_integers(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    macro_rules! integers {
        ($format:ident, $code:ty) => {{
            let block: &[u8; $format::BLOCK_BYTES] = bytes.try_into().expect("one block");
            let mut codes: [$code; $format::BLOCK_LEN] = [0; $format::BLOCK_LEN];
            $format::codes(block, &mut codes);
            (block, codes)
        }};
    }
    /// One scale per block, codes around an offset.
    fn around(scale: f32, codes: &[u8], offset: u8) -> Vec<f32> {
        codes.iter().map(|&q| scale * (i32::from(q) - i32::from(offset)) as f32).collect()
    }
    fn above(scale: f32, min: f32, codes: &[u8]) -> Vec<f32> {
        codes.iter().map(|&q| scale * f32::from(q) + min).collect()
    }
    fn signed(scale: f32, codes: &[i8]) -> Vec<f32> {
        codes.iter().map(|&q| scale * f32::from(q)).collect()
    }
    fn affine(d: f32, dmin: f32, (scales, mins): (&[u8], &[u8]), codes: &[u8], sub_len: usize) -> Vec<f32> {
        let value = |(i, &q): (usize, &u8)| {
            (d * f32::from(scales[i / sub_len])) * f32::from(q) - (dmin * f32::from(mins[i / sub_len]))
        };
        codes.iter().enumerate().map(value).collect()
    }
    fn linear(d: f32, scales: &[i8], codes: impl Iterator<Item = i8>, sub_len: usize) -> Vec<f32> {
        codes.enumerate().map(|(i, q)| (d * f32::from(scales[i / sub_len])) * f32::from(q)).collect()
    }
    /// Indices into levels, odd scales.
    macro_rules! by_index {
        ($format:ident, $scales:expr) => {{
            let (block, codes) = integers!($format, i8);
            let mut indices = [0; $format::BLOCK_LEN];
            $format::indices(block, &mut indices);
            let d = $format::d(block).to_f32() * $format::UNIT;
            let scales: &[u8] = &$scales(block);
            let value = |(i, &index): (usize, &u8)| {
                let level = $format::LEVELS[usize::from(index)];
                assert_eq!(level, codes[i], "{} element {i}", stringify!($format));
                (d * f32::from(scales[i / $format::SUB_LEN])) * f32::from(level)
            };
            indices.iter().enumerate().map(value).collect()
        }};
    }
    match dtype {
        DType::IQ1_S => by_index!(iq1_s, iq1_s::scales),
        DType::IQ1_M => by_index!(iq1_m, iq1_m::scales),
        DType::IQ2_XXS => by_index!(iq2_xxs, iq2_xxs::scales),
        DType::IQ2_XS => by_index!(iq2_xs, iq2_xs::scales),
        DType::IQ2_S => by_index!(iq2_s, iq2_s::scales),
        DType::IQ3_XXS => by_index!(iq3_xxs, iq3_xxs::scales),
        DType::IQ3_S => by_index!(iq3_s, iq3_s::scales),
        DType::TQ1_0 => by_index!(tq1_0, |_| [1]),
        DType::TQ2_0 => by_index!(tq2_0, |_| [1]),
        DType::Q4_0 => {
            let (block, codes) = integers!(q4_0, u8);
            around(q4_0::scale(block), &codes, q4_0::OFFSET)
        }
        DType::Q4_1 => {
            let (block, codes) = integers!(q4_1, u8);
            above(q4_1::scale(block), q4_1::min(block), &codes)
        }
        DType::Q5_0 => {
            let (block, codes) = integers!(q5_0, u8);
            around(q5_0::scale(block), &codes, q5_0::OFFSET)
        }
        DType::Q5_1 => {
            let (block, codes) = integers!(q5_1, u8);
            above(q5_1::scale(block), q5_1::min(block), &codes)
        }
        DType::Q8_0 => {
            let (block, codes) = integers!(q8_0, i8);
            signed(q8_0::scale(block), &codes)
        }
        DType::IQ4_NL => {
            let (block, codes) = integers!(iq4_nl, i8);
            signed(iq4_nl::scale(block), &codes)
        }
        DType::MXFP4 => {
            let (block, codes) = integers!(mxfp4, i8);
            signed(mxfp4::scale(block), &codes)
        }
        DType::Q2_K => {
            let (block, codes) = integers!(q2_k, u8);
            let (scales, mins) = q2_k::scales_mins(block);
            let (d, dmin) = (q2_k::d(block).to_f32(), q2_k::dmin(block).to_f32());
            affine(d, dmin, (&scales, &mins), &codes, q2_k::SUB_LEN)
        }
        DType::Q3_K => {
            let (block, codes) = integers!(q3_k, u8);
            let codes = codes.iter().map(|&q| q as i8 - q3_k::OFFSET as i8);
            linear(q3_k::d(block).to_f32(), &q3_k::scales(block), codes, q3_k::SUB_LEN)
        }
        DType::Q4_K => {
            let (block, codes) = integers!(q4_k, u8);
            let (scales, mins) = q4_k::scales_mins(block);
            let (d, dmin) = (q4_k::d(block).to_f32(), q4_k::dmin(block).to_f32());
            affine(d, dmin, (&scales, &mins), &codes, q4_k::SUB_LEN)
        }
        DType::Q5_K => {
            let (block, codes) = integers!(q5_k, u8);
            let (scales, mins) = q5_k::scales_mins(block);
            let (d, dmin) = (q5_k::d(block).to_f32(), q5_k::dmin(block).to_f32());
            affine(d, dmin, (&scales, &mins), &codes, q5_k::SUB_LEN)
        }
        DType::Q6_K => {
            let (block, codes) = integers!(q6_k, u8);
            let codes = codes.iter().map(|&q| q as i8 - q6_k::OFFSET as i8);
            linear(q6_k::d(block).to_f32(), &q6_k::scales(block), codes, q6_k::SUB_LEN)
        }
        DType::IQ4_XS => {
            let (block, codes) = integers!(iq4_xs, i8);
            linear(iq4_xs::d(block).to_f32(), &iq4_xs::scales(block), codes.into_iter(), iq4_xs::SUB_LEN)
        }
        _ => panic!("{dtype} is decodable but has no case in this test"),
    }
}

/// The largest code that each unsigned view promises.
fn largest_code(dtype: DType) -> Option<u8> {
    match dtype {
        DType::Q2_K => Some(3),
        DType::Q3_K => Some(7),
        DType::Q4_0 | DType::Q4_1 | DType::Q4_K => Some(15),
        DType::Q5_0 | DType::Q5_1 | DType::Q5_K => Some(31),
        DType::Q6_K => Some(63),
        _ => None,
    }
}

fn block_formats() -> impl Iterator<Item = DType> {
    DType::DECODABLE.iter().copied().filter(|dtype| dtype.block_len() > 1)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn codes_and_scales_reproduce_decode(bytes in prop::collection::vec(any::<u8>(), 210)) {
        for dtype in block_formats() {
            let block = &bytes[..dtype.block_bytes()];
            let mut values = vec![0.0; dtype.block_len()];
            decode(dtype, block, &mut values).expect("one whole block");
            for (i, (value, expected)) in values.iter().zip(from_integers(dtype, block)).enumerate() {
                let same = value.to_bits() == expected.to_bits() || value.is_nan() && expected.is_nan();
                prop_assert!(same, "{dtype} element {i}: decode gives {value}, codes and scales give {expected}");
            }
        }
    }
}

#[test]
fn constants_agree_with_the_table_and_codes_fill_their_range() {
    macro_rules! check {
        ($($dtype:ident, $format:ident, $code:ty;)*) => {$(
            assert_eq!($format::BLOCK_LEN, DType::$dtype.block_len(), stringify!($dtype));
            assert_eq!($format::BLOCK_BYTES, DType::$dtype.block_bytes(), stringify!($dtype));
            let mut codes: [$code; $format::BLOCK_LEN] = [0; $format::BLOCK_LEN];
            $format::codes(&[0xFF; $format::BLOCK_BYTES], &mut codes);
            if let Some(largest) = largest_code(DType::$dtype) {
                assert!(codes.iter().all(|&q| q as u8 == largest), "{}: {codes:?}", stringify!($dtype));
            }
            $format::codes(&[0; $format::BLOCK_BYTES], &mut codes);
            assert!(codes.iter().all(|&q| q == codes[0]), "{}: {codes:?}", stringify!($dtype));
        )*};
    }
    check! {
        Q4_0, q4_0, u8; Q4_1, q4_1, u8; Q5_0, q5_0, u8; Q5_1, q5_1, u8; Q8_0, q8_0, i8;
        Q2_K, q2_k, u8; Q3_K, q3_k, u8; Q4_K, q4_k, u8; Q5_K, q5_k, u8; Q6_K, q6_k, u8;
        IQ1_S, iq1_s, i8; IQ1_M, iq1_m, i8; IQ2_XXS, iq2_xxs, i8; IQ2_XS, iq2_xs, i8; IQ2_S, iq2_s, i8;
        IQ3_XXS, iq3_xxs, i8; IQ3_S, iq3_s, i8; TQ1_0, tq1_0, i8; TQ2_0, tq2_0, i8;
        IQ4_NL, iq4_nl, i8; IQ4_XS, iq4_xs, i8; MXFP4, mxfp4, i8;
    }
}

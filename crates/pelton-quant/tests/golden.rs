//! Bit-exactness against the Python package `gguf`, on the files that `golden/make_golden.py` writes.

use std::fs;
use std::path::PathBuf;

use pelton_quant::{DType, decode, encode};

fn golden(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let (floats, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty());
    floats.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn every_decoder_gives_the_bits_that_gguf_gives() {
    for &dtype in DType::DECODABLE {
        let file = golden(&format!("{}.decode", dtype.name().to_lowercase()));
        let (head, body) = file.split_first_chunk::<4>().expect("a length");
        let (blocks, expected) = body.split_at(u32::from_le_bytes(*head) as usize);
        let expected = floats(expected);
        assert!(expected.len() >= 64, "{dtype}: the golden file is cut short");
        let mut out = vec![f32::NAN; expected.len()];
        decode(dtype, blocks, &mut out).expect("golden blocks are whole");
        for (i, (out, expected)) in out.iter().zip(&expected).enumerate() {
            assert_eq!(out.to_bits(), expected.to_bits(), "{dtype}: element {i} is {out}, gguf has {expected}");
        }
    }
}

#[test]
fn encoders_that_gguf_has_too_give_the_same_bytes() {
    let input = floats(&golden("encode.input"));
    for dtype in
        [DType::F16, DType::BF16, DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1, DType::Q8_0, DType::MXFP4]
    {
        let expected = golden(&format!("{}.encode", dtype.name().to_lowercase()));
        let mut out = Vec::new();
        encode(dtype, &input, &mut out).expect("golden input is finite and fits");
        assert_eq!(out.len(), expected.len(), "{dtype}");
        let blocks = out.chunks(dtype.block_bytes()).zip(expected.chunks(dtype.block_bytes()));
        for ((block, expected), x) in blocks.zip(input.chunks(dtype.block_len())) {
            assert_eq!(block, expected, "{dtype}: block of {x:?}");
        }
    }
}

#[test]
fn ternary_encoders_give_the_same_bytes() {
    let input = floats(&golden("ternary.input"));
    for dtype in [DType::TQ1_0, DType::TQ2_0] {
        let expected = golden(&format!("{}.encode", dtype.name().to_lowercase()));
        let mut out = Vec::new();
        encode(dtype, &input, &mut out).expect("golden input is finite and fits");
        assert!(out == expected, "{dtype}");
    }
}

//! Strangers' bytes and numbers: every wrong length, type and value is an error, and nothing panics.

use pelton_quant::{DType, QuantError, decode, encode};
use proptest::prelude::*;

#[test]
fn unsupported_types_are_refused_by_name() {
    for &dtype in DType::ALL {
        let bytes = vec![0; dtype.block_bytes()];
        let mut values = vec![0.0; dtype.block_len()];
        match decode(dtype, &bytes, &mut values) {
            Ok(()) => assert!(dtype.can_decode(), "{dtype}"),
            Err(error) => {
                assert!(!dtype.can_decode(), "{dtype}: {error}");
                assert_eq!(error, QuantError::DecodeUnsupported { dtype });
                assert!(error.to_string().contains(dtype.name()) && error.to_string().contains("Q4_K"), "{error}");
            }
        }
        let mut blocks = vec![7];
        match encode(dtype, &values, &mut blocks) {
            Ok(()) => assert!(dtype.can_encode() && blocks.len() == 1 + dtype.block_bytes(), "{dtype}"),
            Err(error) => {
                assert!(!dtype.can_encode(), "{dtype}: {error}");
                assert_eq!(error, QuantError::EncodeUnsupported { dtype });
                assert_eq!(blocks, [7], "{dtype}: an error leaves the output alone");
            }
        }
    }
}

#[test]
fn wrong_lengths_are_errors() {
    for &dtype in DType::DECODABLE {
        let (bytes, len) = (dtype.block_bytes(), dtype.block_len());
        if bytes > 1 {
            let error = decode(dtype, &vec![0; bytes + 1], &mut vec![0.0; len]).unwrap_err();
            assert_eq!(error, QuantError::PartialBlock { dtype, n_bytes: bytes + 1 });
        }
        for n_elements in [0, len - 1, len + 1, 2 * len] {
            let error = decode(dtype, &vec![0; bytes], &mut vec![0.0; n_elements]).unwrap_err();
            assert_eq!(error, QuantError::LengthMismatch { dtype, n_bytes: bytes, expected: len, n_elements });
        }
        decode(dtype, &[], &mut []).expect("nothing is whole");
    }
    for &dtype in DType::ENCODABLE.iter().filter(|dtype| dtype.block_len() > 1) {
        let n_elements = dtype.block_len() + 1;
        let error = encode(dtype, &vec![0.0; n_elements], &mut Vec::new()).unwrap_err();
        assert_eq!(error, QuantError::PartialRow { dtype, n_elements });
    }
}

#[test]
fn values_that_a_format_cannot_hold_are_errors_that_say_where() {
    for &dtype in DType::ENCODABLE.iter().filter(|dtype| dtype.block_len() > 1) {
        let len = dtype.block_len();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![1.0; 2 * len];
            values[len + 3] = bad;
            let mut out = vec![7];
            match encode(dtype, &values, &mut out).unwrap_err() {
                QuantError::NonFinite { index, value, .. } => {
                    assert_eq!(index, len + 3, "{dtype}");
                    assert_eq!(value.to_bits(), bad.to_bits(), "{dtype}");
                }
                other => panic!("{dtype}: {other}"),
            }
            assert_eq!(out, [7], "{dtype}: an error leaves the output alone");
        }
        if dtype == DType::MXFP4 {
            continue; // its scale covers every f32
        }
        let mut values = vec![1.0; 2 * len];
        values[len] = -f32::MAX;
        let error = encode(dtype, &values, &mut Vec::new()).unwrap_err();
        assert_eq!(error, QuantError::ScaleOverflow { dtype, first: len, last: 2 * len - 1 });
    }
}

#[test]
fn plain_floats_keep_what_is_not_finite() {
    let values = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0];
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let mut bytes = Vec::new();
        encode(dtype, &values, &mut bytes).expect("a plain float holds them");
        let mut back = [0.0; 4];
        decode(dtype, &bytes, &mut back).expect("four elements");
        assert!(back[0].is_nan(), "{dtype}: {back:?}");
        assert_eq!(back[1..3], values[1..3], "{dtype}");
        assert_eq!(back[3].to_bits(), values[3].to_bits(), "{dtype}");
    }
}

/// Any bit pattern, with the special values more often than chance has them.
fn any_float() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => any::<u32>().prop_map(f32::from_bits),
        4 => -10.0f32..10.0,
        1 => prop::sample::select(vec![0.0, -0.0, f32::NAN, f32::INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-45]),
    ]
}

/// Finite magnitudes from subnormal f32 to past the f16 range, all near one exponent.
fn one_magnitude() -> impl Strategy<Value = Vec<f32>> {
    (-149i32..=127, prop::collection::vec(-1.0f64..1.0, 256))
        .prop_map(|(exponent, x)| x.iter().map(|x| (x * 2f64.powi(exponent)) as f32).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn arbitrary_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..600), len in 0usize..600) {
        for &dtype in DType::ALL {
            let whole = bytes.len() / dtype.block_bytes();
            let mut values = vec![0.0; whole * dtype.block_len()];
            let result = decode(dtype, &bytes[..whole * dtype.block_bytes()], &mut values);
            prop_assert_eq!(result.is_ok(), dtype.can_decode());
            let fits = dtype.row_bytes(len) == Some(bytes.len());
            let result = decode(dtype, &bytes, &mut vec![0.0; len]);
            prop_assert_eq!(result.is_ok(), dtype.can_decode() && fits);
        }
    }

    #[test]
    fn arbitrary_floats_encode_or_are_refused(x in prop::collection::vec(any_float(), 256)) {
        for &dtype in DType::ENCODABLE.iter().filter(|dtype| dtype.block_len() > 1) {
            let mut blocks = Vec::new();
            let all_finite = x.iter().all(|x| x.is_finite());
            match encode(dtype, &x, &mut blocks) {
                Ok(()) => prop_assert!(all_finite),
                Err(QuantError::NonFinite { index, .. }) => prop_assert!(!x[index].is_finite()),
                Err(QuantError::ScaleOverflow { first, last, .. }) => {
                    prop_assert!(x[first..=last].iter().any(|x| x.abs() > 6e4));
                }
                Err(other) => prop_assert!(false, "{}", other),
            }
        }
    }

    #[test]
    fn what_was_encoded_decodes_to_finite_values_of_that_size(x in one_magnitude()) {
        let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        for &dtype in DType::ENCODABLE.iter().filter(|dtype| dtype.block_len() > 1) {
            let mut blocks = Vec::new();
            if let Err(error) = encode(dtype, &x, &mut blocks) {
                let overflow = matches!(error, QuantError::ScaleOverflow { .. });
                prop_assert!(overflow && largest > 6e4, "{}: {}", dtype, error);
                continue;
            }
            let mut back = vec![0.0; 256];
            decode(dtype, &blocks, &mut back).expect("whole blocks");
            // The smallest f16 is 6e-8; below that only steps of it remain.
            // A point of a coarse grid may overshoot some elements to meet the others.
            let coarse = dtype.name().starts_with("IQ1") || dtype.name().starts_with("IQ2");
            let bound = largest * if coarse { 2.0 } else { 1.3 } + 63.0 * 16.0 * 6e-8;
            prop_assert!(back.iter().all(|x| x.abs() <= bound), "{dtype}: {back:?}");
        }
    }
}

//! The encoders against llama.cpp's, on the same weights: the error of each type with and without an importance.
//!
//! The figures are those of llama.cpp's `ggml_quantize_chunk` (built of its sources of July 2026) on the numbers that
//! [`Numbers`] makes here: root mean square error as a share of the weights' root mean square, the second pair weighted
//! with the importance that both encoders were given.

use pelton_quant::{DType, QuantError, decode, encode, encode_weighted};

const COLS: usize = 1024;

/// Type, error without an importance on normal and on heavy-tailed weights, error with one. Infinite: it refuses.
const LLAMA_CPP: &[(DType, [f64; 2], [f64; 2])] = &[
    (DType::Q4_0, [0.08587, 0.11430], [0.07765, 0.10738]),
    (DType::Q4_1, [0.07837, 0.09316], [0.06389, 0.07704]),
    (DType::Q5_0, [0.04245, 0.05724], [0.03834, 0.05387]),
    (DType::Q5_1, [0.03780, 0.04527], [0.03103, 0.03740]),
    (DType::Q8_0, [0.00536, 0.00723], [0.00541, 0.00730]),
    (DType::Q2_K, [0.29749, 0.34302], [0.23762, 0.27089]),
    (DType::Q3_K, [0.15045, 0.18237], [0.13511, 0.16694]),
    (DType::Q4_K, [0.07135, 0.08607], [0.06488, 0.07908]),
    (DType::Q5_K, [0.03606, 0.04363], [0.03302, 0.04080]),
    (DType::Q6_K, [0.01775, 0.02271], [0.01631, 0.02127]),
    (DType::IQ4_NL, [0.07607, 0.09276], [0.07066, 0.08685]),
    (DType::IQ4_XS, [0.07659, 0.09378], [0.07140, 0.08832]),
    (DType::MXFP4, [0.11381, 0.13082], [0.11385, 0.13049]),
    (DType::TQ1_0, [0.80197, 0.84461], [0.80913, 0.85766]),
    (DType::TQ2_0, [0.80197, 0.84461], [0.80913, 0.85766]),
    (DType::IQ3_S, [0.16610, 0.19705], [0.12042, 0.14733]),
    (DType::IQ3_XXS, [0.21294, 0.25450], [0.15445, 0.17855]),
    (DType::IQ2_S, [0.26549, 0.33475], [0.22692, 0.28032]),
    (DType::IQ2_XS, [f64::INFINITY; 2], [0.26039, 0.30589]),
    (DType::IQ2_XXS, [f64::INFINITY; 2], [0.29788, 0.36674]),
    (DType::IQ1_M, [0.58103, 0.59750], [0.38899, 0.43764]),
    (DType::IQ1_S, [f64::INFINITY; 2], [0.43805, 0.52355]),
];

/// Seeded numbers (SplitMix64).
struct Numbers(u64);

impl Numbers {
    /// In (0, 1].
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (((z ^ z >> 31) >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box and Muller).
    fn normal(&mut self) -> f64 {
        let (u, v) = (self.uniform(), self.uniform());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// Student's t with 4 degrees of freedom: heavy tails.
    fn heavy(&mut self) -> f64 {
        let chi2: f64 = (0..4).map(|_| self.normal().powi(2)).sum();
        self.normal() / (chi2 / 4.0).sqrt()
    }
}

/// An importance of log-normal spread, and 64 rows of normal and of heavy-tailed weights.
fn weights() -> (Vec<f32>, [Vec<f32>; 2]) {
    let mut numbers = Numbers(5);
    let importance = (0..COLS).map(|_| numbers.normal().exp() as f32).collect();
    let normal = (0..64 * COLS).map(|_| (numbers.normal() * 0.02) as f32).collect();
    let heavy = (0..64 * COLS).map(|_| (numbers.heavy() * 0.02) as f32).collect();
    (importance, [normal, heavy])
}

fn round_trip(dtype: DType, x: &[f32], importance: Option<&[f32]>) -> Vec<f32> {
    let mut blocks = Vec::new();
    for row in x.chunks(importance.map_or(COLS, <[f32]>::len)) {
        encode_weighted(dtype, row, importance, &mut blocks).expect("finite values that fit");
    }
    let mut back = vec![0.0; x.len()];
    decode(dtype, &blocks, &mut back).expect("whole blocks");
    back
}

/// The root mean square error as a share of the root mean square, weighted.
fn share(x: &[f32], back: &[f32], weight: &[f32]) -> f64 {
    let (mut error, mut size) = (0.0, 0.0);
    for ((&x, &back), &weight) in x.iter().zip(back).zip(weight.iter().cycle()) {
        let (x, back, weight) = (f64::from(x), f64::from(back), f64::from(weight));
        error += weight * (x - back).powi(2);
        size += weight * x * x;
    }
    (error / size).sqrt()
}

#[test]
fn no_type_is_encoded_worse_than_by_llama_cpp() {
    let (importance, weights) = weights();
    for &(dtype, plain, weighted) in LLAMA_CPP {
        for ((x, plain), weighted) in weights.iter().zip(plain).zip(weighted) {
            // Half a digit: the figures are rounded.
            let ours = share(x, &round_trip(dtype, x, None), &[1.0]);
            assert!(ours <= plain + 0.000_006, "{dtype}: {ours:.5}, llama.cpp {plain}");
            let ours = share(x, &round_trip(dtype, x, Some(&importance)), &importance);
            assert!(ours <= weighted + 0.000_006, "{dtype} weighted: {ours:.5}, llama.cpp {weighted}");
        }
    }
    let named: Vec<DType> = LLAMA_CPP.iter().map(|row| row.0).collect();
    let missing: Vec<&DType> = DType::ENCODABLE.iter().filter(|d| d.block_len() > 1 && !named.contains(d)).collect();
    assert!(missing.is_empty(), "without a figure: {missing:?}");
}

#[test]
fn an_importance_moves_the_error_to_where_it_counts_less() {
    let (importance, [normal, _]) = weights();
    for &dtype in DType::ENCODABLE.iter().filter(|d| d.block_len() > 1 && **d != DType::Q8_0) {
        let blind = share(&normal, &round_trip(dtype, &normal, Some(&[1.0; COLS])), &importance);
        let seeing = share(&normal, &round_trip(dtype, &normal, Some(&importance)), &importance);
        assert!(seeing < blind, "{dtype}: {seeing} with the importance, {blind} without");
    }
}

#[test]
fn the_size_of_an_importance_changes_nothing_and_its_absence_is_equal_weights() {
    let (importance, [normal, _]) = weights();
    let row = &normal[..COLS];
    for &dtype in DType::ENCODABLE.iter().filter(|d| d.block_len() > 1) {
        let encoded = |importance: &[f32]| {
            let mut out = Vec::new();
            encode_weighted(dtype, row, Some(importance), &mut out).expect("finite values that fit");
            out
        };
        let scaled: Vec<f32> = importance.iter().map(|i| i * 1024.0).collect();
        assert_eq!(encoded(&importance), encoded(&scaled), "{dtype}");
        let (zeros, ones) = (round_trip(dtype, row, Some(&[0.0; COLS])), round_trip(dtype, row, Some(&[1.0; COLS])));
        let (zeros, ones) = (share(row, &zeros, &[1.0]), share(row, &ones, &[1.0]));
        assert!((zeros - ones).abs() <= 0.002 * ones, "{dtype}: {zeros} and {ones}");
    }
}

#[test]
fn an_importance_that_is_no_weight_is_refused() {
    let row = [1.0f32; 256];
    for &dtype in DType::ENCODABLE {
        for bad in [f32::NAN, f32::INFINITY, -1.0] {
            let mut importance = [1.0; 256];
            importance[7] = bad;
            match encode_weighted(dtype, &row, Some(&importance), &mut Vec::new()).unwrap_err() {
                QuantError::Importance { index: 7, value } => assert_eq!(value.to_bits(), bad.to_bits()),
                other => panic!("{dtype}: {other}"),
            }
        }
        let error = encode_weighted(dtype, &row, Some(&[1.0; 255]), &mut Vec::new()).unwrap_err();
        assert_eq!(error, QuantError::ImportanceLength { n_elements: 256, n_importances: 255 }, "{dtype}");
    }
}

#[test]
fn codebook_formats_keep_what_lies_on_their_points() {
    // What a format decodes to, it encodes again to next to nothing of error: the search finds points and scales.
    let (_, [normal, _]) = weights();
    for dtype in [
        DType::IQ1_S,
        DType::IQ1_M,
        DType::IQ2_XXS,
        DType::IQ2_XS,
        DType::IQ2_S,
        DType::IQ3_XXS,
        DType::IQ3_S,
        DType::Q2_K,
        DType::Q3_K,
        DType::IQ4_NL,
        DType::IQ4_XS,
        DType::TQ1_0,
        DType::TQ2_0,
    ] {
        let once = round_trip(dtype, &normal[..16 * COLS], Some(&[1.0; COLS]));
        let twice = round_trip(dtype, &once, Some(&[1.0; COLS]));
        let first = share(&normal[..16 * COLS], &once, &[1.0]);
        let second = share(&once, &twice, &[1.0]);
        assert!(second <= 0.35 * first, "{dtype}: {second} after {first}");
    }
}

#[test]
fn zeros_and_single_elements_survive() {
    for &dtype in DType::ENCODABLE.iter().filter(|d| d.block_len() > 1) {
        let mut blocks = Vec::new();
        encode(dtype, &[0.0; 256], &mut blocks).expect("zeros");
        let mut back = [1.0f32; 256];
        decode(dtype, &blocks, &mut back).expect("whole blocks");
        assert!(back.iter().all(|x| *x == 0.0), "{dtype}: {back:?}");
        let mut one = [0.0f32; 256];
        one[77] = -3.0;
        let back = round_trip(dtype, &one, Some(&[1.0; 256]));
        assert!(back.iter().all(|x| x.is_finite()), "{dtype}");
        assert!((back[77] + 3.0).abs() <= 1.6, "{dtype}: {}", back[77]);
    }
}

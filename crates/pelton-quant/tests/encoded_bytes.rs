//! The bytes that the encoders write, pinned: a change of an encoder that is not meant to change what it writes does not.
//!
//! They are the same on every machine: the searches are plain f32 arithmetic in a fixed order, and so is the input here.

use pelton_quant::{DType, encode_weighted};

/// `n` sums of twelve uniform numbers, less their mean: nearly normal, and exact in f32.
fn nearly_normal(n: usize, mut state: u64) -> Vec<f32> {
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 48) as f32 / 65536.0
    };
    (0..n).map(|_| ((0..12).map(|_| uniform()).sum::<f32>() - 6.0) / 32.0).collect()
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[test]
fn encoders_write_the_bytes_that_they_wrote() {
    const PINNED: &[(DType, u64, u64)] = &[
        (DType::F32, 0x520ff3c0de0d318e, 0x520ff3c0de0d318e),
        (DType::F16, 0x0245a3d9ac828670, 0x0245a3d9ac828670),
        (DType::Q4_0, 0x10e18f65209353b0, 0x280514bb47adcd69),
        (DType::Q4_1, 0xd34139b6103d70a4, 0xf29bfebb6069fd7e),
        (DType::Q5_0, 0xc8db778532aefad2, 0x3cc55c63cb5bfa3f),
        (DType::Q5_1, 0xd0b5117d46ebbada, 0x3b2f50c2d53718f3),
        (DType::Q8_0, 0x1dad28f30d2f0a63, 0x1dad28f30d2f0a63),
        (DType::Q2_K, 0x069e8fce5a4452b8, 0xb6be26c5e55aa667),
        (DType::Q3_K, 0xc465e1350c61896e, 0x559a24b53fbec3fc),
        (DType::Q4_K, 0x296860d300445516, 0xee8b299e1a6e25c2),
        (DType::Q5_K, 0x90fb1a3225fd584f, 0xf204c9d258c85287),
        (DType::Q6_K, 0x950568bb275561d9, 0x840d49c176179049),
        (DType::IQ2_XXS, 0x10c675bd5d74b3bc, 0xf3c4e19b7429581d),
        (DType::IQ2_XS, 0xd544d997106b8e5a, 0x86f7ceb7603bf99d),
        (DType::IQ3_XXS, 0xd2fa3d2585236d28, 0x39749352431cc782),
        (DType::IQ1_S, 0xa3298cbcd21c3f31, 0x4bdfe6df92ca9873),
        (DType::IQ4_NL, 0x669e7fa3f94ee712, 0x323ce29da2edc449),
        (DType::IQ3_S, 0x12fd57d070d1d319, 0x1baa0ef76bc7cfde),
        (DType::IQ2_S, 0x13f91559266fdc29, 0x753262974d7b8c30),
        (DType::IQ4_XS, 0x0fb3fe12530694e9, 0x5bbff7aeed2b62ed),
        (DType::IQ1_M, 0x12ad570c09e9a1f4, 0x4276f3f798e74e54),
        (DType::BF16, 0x0e637a9b5ca94be8, 0x0e637a9b5ca94be8),
        (DType::TQ1_0, 0xe1ae495e233647c1, 0xfbbc83bb4017ecd7),
        (DType::TQ2_0, 0x54c5e33fa38d5d40, 0x8b61a99eabc16fe6),
        (DType::MXFP4, 0xe4ab440f4ae3f779, 0x35f53346ccc2c9d5),
    ];
    let mut weights = nearly_normal(16 * 256, 1);
    weights[256..512].fill(0.0);
    weights[600] = 9.0;
    let importance: Vec<f32> = nearly_normal(16 * 256, 2).iter().map(|x| x * x + 0.001).collect();
    let mut found = Vec::new();
    for &dtype in DType::ALL.iter().filter(|dtype| dtype.can_encode()) {
        let [plain, weighted] = [None, Some(importance.as_slice())].map(|importance| {
            let mut bytes = Vec::new();
            encode_weighted(dtype, &weights, importance, &mut bytes).unwrap();
            hash(&bytes)
        });
        found.push((dtype, plain, weighted));
    }
    let table: String =
        found.iter().map(|(dtype, a, b)| format!("(DType::{dtype}, {a:#018x}, {b:#018x}),\n")).collect();
    assert_eq!(found, PINNED, "type, hash without an importance and with one:\n{table}");
}

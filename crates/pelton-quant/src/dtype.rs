//! The tensor types of GGUF by number, name and block size.
//!
//! The table holds every type that the GGUF specification numbers, also those that Pelton cannot read, so that a
//! file that uses one is refused by its name and never by a bare number.

use std::fmt;

/// One table for the whole enum, so that id, name and sizes of a type cannot drift apart.
macro_rules! dtypes {
    ($($(#[$doc:meta])* $variant:ident = $id:literal, $block_len:literal, $block_bytes:literal;)*) => {
        /// The element type of a stored tensor. Ids and names are those of GGUF.
        #[allow(non_camel_case_types, reason = "the variants carry the names of the GGUF specification")]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        #[non_exhaustive]
        pub enum DType {
            $($(#[$doc])* $variant = $id,)*
        }

        impl DType {
            /// Every type of the GGUF specification, by rising id.
            pub const ALL: &[DType] = &[$(DType::$variant),*];

            /// The type with this number in a GGUF file; `None` for numbers that the specification does not assign.
            pub fn from_ggml_id(id: u32) -> Option<DType> {
                match id {
                    $($id => Some(DType::$variant),)*
                    _ => None,
                }
            }

            /// The name in GGUF tools, such as `"Q4_K"`.
            pub fn name(self) -> &'static str {
                match self {
                    $(DType::$variant => stringify!($variant),)*
                }
            }

            /// Elements in one block; 1 for plain types.
            pub fn block_len(self) -> usize {
                match self {
                    $(DType::$variant => $block_len,)*
                }
            }

            /// Bytes of one block.
            pub fn block_bytes(self) -> usize {
                match self {
                    $(DType::$variant => $block_bytes,)*
                }
            }
        }
    };
}

dtypes! {
    /// 32-bit IEEE float.
    F32 = 0, 1, 4;
    /// 16-bit IEEE float.
    F16 = 1, 1, 2;
    /// 4-bit codes with a scale per 32: [`crate::q4_0`].
    Q4_0 = 2, 32, 18;
    /// 4-bit codes with a scale and a minimum per 32: [`crate::q4_1`].
    Q4_1 = 3, 32, 20;
    /// 5-bit codes with a scale per 32: [`crate::q5_0`].
    Q5_0 = 6, 32, 22;
    /// 5-bit codes with a scale and a minimum per 32: [`crate::q5_1`].
    Q5_1 = 7, 32, 24;
    /// 8-bit codes with a scale per 32: [`crate::q8_0`].
    Q8_0 = 8, 32, 34;
    /// 8-bit codes with a scale and a sum per 32 (an activation format, not stored in files).
    Q8_1 = 9, 32, 40;
    /// 2-bit codes, 4-bit scales and minima per 16: [`crate::q2_k`].
    Q2_K = 10, 256, 84;
    /// 3-bit codes, 6-bit scales per 16: [`crate::q3_k`].
    Q3_K = 11, 256, 110;
    /// 4-bit codes, 6-bit scales and minima per 32: [`crate::q4_k`].
    Q4_K = 12, 256, 144;
    /// 5-bit codes, 6-bit scales and minima per 32: [`crate::q5_k`].
    Q5_K = 13, 256, 176;
    /// 6-bit codes, 8-bit scales per 16: [`crate::q6_k`].
    Q6_K = 14, 256, 210;
    /// 8-bit codes with an f32 scale per 256 (an activation format, not stored in files).
    Q8_K = 15, 256, 292;
    /// About 2.06 bits per element, from a codebook: [`crate::iq2_xxs`].
    IQ2_XXS = 16, 256, 66;
    /// About 2.3 bits per element, from a codebook: [`crate::iq2_xs`].
    IQ2_XS = 17, 256, 74;
    /// About 3.06 bits per element, from a codebook: [`crate::iq3_xxs`].
    IQ3_XXS = 18, 256, 98;
    /// About 1.56 bits per element, from a codebook: [`crate::iq1_s`].
    IQ1_S = 19, 256, 50;
    /// 4-bit indices into a table of 16 uneven levels, a scale per 32: [`crate::iq4_nl`].
    IQ4_NL = 20, 32, 18;
    /// About 3.4 bits per element, from a codebook: [`crate::iq3_s`].
    IQ3_S = 21, 256, 110;
    /// About 2.5 bits per element, from a codebook: [`crate::iq2_s`].
    IQ2_S = 22, 256, 82;
    /// The levels of `IQ4_NL` with 6-bit scales per 32: [`crate::iq4_xs`].
    IQ4_XS = 23, 256, 136;
    /// 8-bit signed integer.
    I8 = 24, 1, 1;
    /// 16-bit signed integer.
    I16 = 25, 1, 2;
    /// 32-bit signed integer.
    I32 = 26, 1, 4;
    /// 64-bit signed integer.
    I64 = 27, 1, 8;
    /// 64-bit IEEE float.
    F64 = 28, 1, 8;
    /// About 1.75 bits per element, from a codebook: [`crate::iq1_m`].
    IQ1_M = 29, 256, 56;
    /// The upper half of an f32 (bfloat16).
    BF16 = 30, 1, 2;
    /// Ternary codes packed five to a byte: [`crate::tq1_0`].
    TQ1_0 = 34, 256, 54;
    /// Ternary codes of 2 bits: [`crate::tq2_0`].
    TQ2_0 = 35, 256, 66;
    /// OCP microscaling: 4-bit floats with a power-of-two scale per 32: [`crate::mxfp4`].
    MXFP4 = 39, 32, 17;
    /// 4-bit floats with an 8-bit float scale per 16.
    NVFP4 = 40, 64, 36;
    /// 1-bit codes with a scale per 128.
    Q1_0 = 41, 128, 18;
}

impl DType {
    /// The types that [`crate::decode`] reads.
    pub const DECODABLE: &[DType] = &[
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q8_0,
        DType::Q2_K,
        DType::Q3_K,
        DType::Q4_K,
        DType::Q5_K,
        DType::Q6_K,
        DType::IQ1_S,
        DType::IQ1_M,
        DType::IQ2_XXS,
        DType::IQ2_XS,
        DType::IQ2_S,
        DType::IQ3_XXS,
        DType::IQ3_S,
        DType::IQ4_NL,
        DType::IQ4_XS,
        DType::MXFP4,
        DType::TQ1_0,
        DType::TQ2_0,
    ];

    /// The types that [`crate::encode`] writes.
    pub const ENCODABLE: &[DType] = &[
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q8_0,
        DType::Q2_K,
        DType::Q3_K,
        DType::Q4_K,
        DType::Q5_K,
        DType::Q6_K,
        DType::IQ1_S,
        DType::IQ1_M,
        DType::IQ2_XXS,
        DType::IQ2_XS,
        DType::IQ2_S,
        DType::IQ3_XXS,
        DType::IQ3_S,
        DType::IQ4_NL,
        DType::IQ4_XS,
        DType::MXFP4,
        DType::TQ1_0,
        DType::TQ2_0,
    ];

    /// The number of this type in a GGUF file.
    pub fn ggml_id(self) -> u32 {
        self as u32
    }

    /// The type with this GGUF name, in any case: `"q4_k"` and `"Q4_K"` are the same.
    ///
    /// ```
    /// use pelton_quant::DType;
    /// assert_eq!(DType::from_name("q4_k"), Some(DType::Q4_K));
    /// assert_eq!(DType::from_name("Q4_K_M"), None); // a mixture of types in a file, not a tensor type
    /// ```
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.iter().copied().find(|dtype| dtype.name().eq_ignore_ascii_case(name))
    }

    /// Bytes of a row of `n_elements`; `None` where that is no whole number of blocks, or more than `usize` holds.
    ///
    /// ```
    /// use pelton_quant::DType;
    /// assert_eq!(DType::Q4_K.row_bytes(512), Some(288));
    /// assert_eq!(DType::Q4_K.row_bytes(500), None);
    /// ```
    pub fn row_bytes(self, n_elements: usize) -> Option<usize> {
        if !n_elements.is_multiple_of(self.block_len()) {
            return None;
        }
        (n_elements / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Whether [`crate::decode`] reads this type.
    pub fn can_decode(self) -> bool {
        DType::DECODABLE.contains(&self)
    }

    /// Whether [`crate::encode`] writes this type.
    pub fn can_encode(self) -> bool {
        DType::ENCODABLE.contains(&self)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_lead_back_to_their_type() {
        for &dtype in DType::ALL {
            assert_eq!(DType::from_ggml_id(dtype.ggml_id()), Some(dtype));
            assert_eq!(DType::from_name(dtype.name()), Some(dtype));
            assert_eq!(DType::from_name(&dtype.name().to_lowercase()), Some(dtype));
        }
    }

    #[test]
    fn unassigned_ids_and_names_are_no_type() {
        for id in [4, 5, 31, 32, 33, 36, 37, 38, 42, u32::MAX] {
            assert_eq!(DType::from_ggml_id(id), None, "id {id}");
        }
        for name in ["", "Q4", "Q4_K_M", "Q4_0 "] {
            assert_eq!(DType::from_name(name), None, "name {name:?}");
        }
    }

    #[test]
    fn row_bytes_refuses_partial_blocks_and_overflow() {
        assert_eq!(DType::Q6_K.row_bytes(0), Some(0));
        assert_eq!(DType::Q6_K.row_bytes(256 * 3), Some(630));
        assert_eq!(DType::Q6_K.row_bytes(255), None);
        assert_eq!(DType::F32.row_bytes(usize::MAX), None);
        assert_eq!(DType::Q8_1.row_bytes(usize::MAX - 31), None);
    }

    #[test]
    fn display_pads_like_a_string() {
        assert_eq!(format!("{}", DType::Q4_K), "Q4_K");
        assert_eq!(format!("[{:<8}]", DType::BF16), "[BF16    ]");
    }
}

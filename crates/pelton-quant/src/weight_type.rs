//! What a matrix of weights is stored as: the block types of GGUF, or codes in groups as Hugging Face files have them.
//!
//! Invariant: two weights of equal [`WeightType`] are read by the same kernel.

use std::fmt;

use crate::DType;

/// A storage type of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightType {
    /// Plain numbers or blocks of GGUF.
    Blocks(DType),
    /// Codes with a scale for each group of columns.
    Grouped(GroupedType),
}

impl WeightType {
    /// A short name, without the group size: `Q4_K`, `INT4`, `NF4`, `FP8`.
    pub fn name(self) -> &'static str {
        match self {
            WeightType::Blocks(dtype) => dtype.name(),
            WeightType::Grouped(grouped) => grouped.book.name(),
        }
    }

    /// The block type, `None` for grouped weights.
    pub fn blocks(self) -> Option<DType> {
        match self {
            WeightType::Blocks(dtype) => Some(dtype),
            WeightType::Grouped(_) => None,
        }
    }

    /// Whether weights are plain floats: F32, F16 or BF16.
    pub fn is_float(self) -> bool {
        matches!(self, WeightType::Blocks(DType::F32 | DType::F16 | DType::BF16))
    }
}

impl From<DType> for WeightType {
    fn from(dtype: DType) -> WeightType {
        WeightType::Blocks(dtype)
    }
}

impl From<GroupedType> for WeightType {
    fn from(grouped: GroupedType) -> WeightType {
        WeightType::Grouped(grouped)
    }
}

impl PartialEq<DType> for WeightType {
    fn eq(&self, other: &DType) -> bool {
        *self == WeightType::Blocks(*other)
    }
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WeightType::Blocks(dtype) => dtype.fmt(f),
            WeightType::Grouped(grouped) => grouped.fmt(f),
        }
    }
}

/// How grouped weights are stored. A weight is `scale * level(code, zero)`, rounded to f32 once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GroupedType {
    /// What a code stands for.
    pub book: CodeBook,
    /// Columns that share a scale; `None` where all columns of a row do.
    pub group: Option<u32>,
    /// What is subtracted from integer codes.
    pub zero: ZeroPoint,
}

impl fmt::Display for GroupedType {
    /// `INT4 g128`, `INT4 asym g128`, `NF4 g64`, `FP8 per row`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let zero = if self.zero == ZeroPoint::PerGroup { " asym" } else { "" };
        let text = match self.group {
            Some(group) => format!("{}{zero} g{group}", self.book.name()),
            None => format!("{}{zero} per row", self.book.name()),
        };
        f.pad(&text)
    }
}

/// What codes stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CodeBook {
    /// `code - zero`; codes are unsigned, of 2 to 8 bits. Files with signed bytes flip the top bit, and have zero 128.
    Int {
        /// Bits of a code.
        bits: u8,
    },
    /// [`NF4_LEVELS`].
    Nf4,
    /// [`FP4_LEVELS`].
    Fp4,
    /// [`e4m3_to_f32`].
    E4m3,
}

impl CodeBook {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            CodeBook::Int { bits: 2 } => "INT2",
            CodeBook::Int { bits: 3 } => "INT3",
            CodeBook::Int { bits: 4 } => "INT4",
            CodeBook::Int { bits: 8 } => "INT8",
            CodeBook::Int { .. } => "INT",
            CodeBook::Nf4 => "NF4",
            CodeBook::Fp4 => "FP4",
            CodeBook::E4m3 => "FP8",
        }
    }

    /// Bits of a code.
    pub fn bits(self) -> u8 {
        match self {
            CodeBook::Int { bits } => bits,
            CodeBook::Nf4 | CodeBook::Fp4 => 4,
            CodeBook::E4m3 => 8,
        }
    }

    /// What a code stands for, before its scale. Bits of 4-bit codes past the fourth are ignored.
    #[inline]
    pub fn level(self, code: u8, zero: i16) -> f32 {
        match self {
            CodeBook::Int { .. } => f32::from(i16::from(code).wrapping_sub(zero)),
            CodeBook::Nf4 => NF4_LEVELS[usize::from(code & 15)],
            CodeBook::Fp4 => FP4_LEVELS[usize::from(code & 15)],
            CodeBook::E4m3 => e4m3_to_f32(code),
        }
    }
}

/// Where the zero of integer codes lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ZeroPoint {
    /// The same for all groups.
    At(i16),
    /// Each group has its own.
    PerGroup,
}

/// The sixteen levels of NF4: quantiles of the normal distribution, scaled to the largest (QLoRA, arXiv:2305.14314,
/// appendix E).
#[allow(clippy::excessive_precision, reason = "as published")]
pub const NF4_LEVELS: [f32; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];

/// The sixteen levels of bitsandbytes' FP4 (a sign, two bits of exponent, one of mantissa), scaled to the largest.
pub const FP4_LEVELS: [f32; 16] = {
    let twelfths = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0];
    let mut levels = [0.0; 16];
    let mut i = 0;
    while i < 8 {
        levels[i] = twelfths[i] / 12.0;
        // Both zeros are positive.
        levels[i + 8] = 0.0 - levels[i];
        i += 1;
    }
    levels
};

/// An 8-bit float with 4 bits of exponent and 3 of mantissa, without infinity (E4M3FN; OCP 8-bit floating point
/// specification 1.0, table 1). Both codes whose lower seven bits are set are NaN.
#[inline]
pub fn e4m3_to_f32(code: u8) -> f32 {
    E4M3[usize::from(code)]
}

/// The code of the nearest E4M3 number, ties to even; numbers past the largest become the largest. NaN stays NaN.
pub fn f32_to_e4m3(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let size = value.abs();
    if size.is_nan() {
        return sign | 0x7f;
    }
    if size < SMALLEST_NORMAL {
        // A multiple of 2^-9; eight of them are the first normal number, whose code is 8.
        return sign | (size * 512.0).round_ties_even() as u8;
    }
    // Three bits of mantissa stay, rounded to even; the carry goes into the exponent.
    let bits = size.min(448.0).to_bits();
    let rounded = (bits + 0x7_ffff + (bits >> 20 & 1)) >> 20;
    sign | (rounded - (120 << 3)) as u8
}

/// 2^-6.
const SMALLEST_NORMAL: f32 = 0.015_625;

const E4M3: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        let (exponent, mantissa) = ((code >> 3 & 15) as u32, (code & 7) as u32);
        let bits = if code & 0x7f == 0x7f {
            f32::NAN.to_bits()
        } else if exponent == 0 {
            // Multiples of 2^-9.
            (mantissa as f32 / 512.0).to_bits()
        } else {
            (exponent + 120) << 23 | mantissa << 20
        };
        table[code] = f32::from_bits(bits | ((code as u32) >> 7) << 31);
        code += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_has_the_published_extremes() {
        assert_eq!(e4m3_to_f32(0x7e), 448.0);
        assert_eq!(e4m3_to_f32(0x01), 2f32.powi(-9));
        assert_eq!(e4m3_to_f32(0x08), 2f32.powi(-6));
        assert_eq!(e4m3_to_f32(0xb8), -1.0);
        assert!(e4m3_to_f32(0x7f).is_nan() && e4m3_to_f32(0xff).is_nan());
        assert!(e4m3_to_f32(0x80).is_sign_negative() && e4m3_to_f32(0x80) == 0.0);
    }

    #[test]
    fn e4m3_codes_lead_back_to_themselves() {
        for code in 0..=255u8 {
            let back = f32_to_e4m3(e4m3_to_f32(code));
            assert_eq!(back, if code & 0x7f == 0x7f { 0x7f | (code & 0x80) } else { code }, "{code:#x}");
        }
        // Ties go to the even code; what is too large becomes the largest.
        assert_eq!(f32_to_e4m3(17.0), f32_to_e4m3(16.0));
        assert_eq!(f32_to_e4m3(19.0), f32_to_e4m3(20.0));
        assert_eq!([f32_to_e4m3(1e9), f32_to_e4m3(f32::NEG_INFINITY)], [0x7e, 0xfe]);
    }

    #[test]
    fn types_have_names() {
        let book = CodeBook::Int { bits: 4 };
        let kind = WeightType::from(GroupedType { book, group: Some(128), zero: ZeroPoint::PerGroup });
        assert_eq!((kind.name(), kind.to_string().as_str()), ("INT4", "INT4 asym g128"));
        let rows = GroupedType { book: CodeBook::E4m3, group: None, zero: ZeroPoint::At(0) };
        assert_eq!(rows.to_string(), "FP8 per row");
        assert_eq!(WeightType::from(DType::Q4_K), DType::Q4_K);
        assert_eq!(format!("{:>6}", WeightType::from(DType::F16)), "   F16");
        assert!(WeightType::from(DType::BF16).is_float() && !kind.is_float());
    }
}

//! The formats of 32 elements a block as panels hold them, eight blocks of a row in a superblock. Those whose blocks
//! have 256 elements in the file are in `superformats.rs`.
//!
//! `pelton_quant` takes the file's blocks apart; this file knows no bit position of them. Each block has a scale of its
//! own in the file, in half precision; a panel holds them as integers, in units of a `d` that the superblock shares:
//!
//! ```text
//! q4_0, q5_0      scale = round(d_file / d)         12 or 11 bits and a sign: as fine as half precision at the largest
//! q4_1, q5_1      scale, min = round(… / d)         so that scale * code + min has 16 bits
//! q8_0, iq4_nl    scale = round(128 d_file / d)     15 bits: the product with the code is rounded to 16
//! mxfp4           scale = 2^(e - e_d)               exact, but for blocks 2^12 times below the largest one
//! ```
//!
//! So a weight is off by at most half of `d`, which is 2^-12 to 2^-16 of the largest one of its superblock: next to
//! nothing beside its own quantization. Sizes per 16 rows, against the file: at most 1.4% more, for `d`.

use half::f16;
use pelton_quant::{iq4_nl, mxfp4, q4_0, q4_1, q5_0, q5_1, q8_0};

use super::blocks::{Format, HALVES};
use super::codes::{Bytes, Codes, FiveBits, Levels, Nibbles, Table, UnitCodes};
use super::lanes::Lanes;

/// The file's block with its length as a type.
#[inline(always)]
pub(super) fn block<const N: usize>(file: &[u8]) -> &[u8; N] {
    file.try_into().expect("rows are cut into whole blocks")
}

/// Puts a half-precision number into lane `row` of 16 at `at`.
#[inline(always)]
pub(super) fn put_f16(v: f16, at: usize, row: usize, panel: &mut [u8]) {
    panel[at + 2 * row..][..2].copy_from_slice(&v.to_le_bytes());
}

/// Puts an integer into lane `row` of 16 at `at`.
#[inline(always)]
fn put_i16(v: f32, at: usize, row: usize, panel: &mut [u8]) {
    // Saturates, and takes NaN (of a superblock whose d is NaN) as 0.
    panel[at + 2 * row..][..2].copy_from_slice(&(v.round_ties_even() as i16).to_le_bytes());
}

/// The least half-precision number that is not below `v`, which is not negative.
#[inline(always)]
pub(super) fn at_least(v: f32) -> f16 {
    let near = f16::from_f32(v);
    if near.to_f32() < v { f16::from_bits(near.to_bits() + 1) } else { near }
}

/// What one divides by to count in units of `d`.
#[inline(always)]
pub(super) fn units_of(d: f16) -> f32 {
    // Where d is 0, so is everything that is counted.
    if d == f16::ZERO { 1.0 } else { d.to_f32() }
}

/// The blocks of a superblock in the file.
#[inline(always)]
fn blocks<const N: usize>(file: &[u8]) -> &[[u8; N]] {
    file.as_chunks::<N>().0
}

/// Where the scales of unit `u` are.
const fn scales_at<F: Format>(u: usize) -> usize {
    F::HEAD + u * F::UNIT + F::Codes::BYTES
}

/// A format of 32 elements with one scale: head `d`; units of codes and i16 scales. `$most` is the largest scale, `$of`
/// what a scale of 1 stands for, in `d`; `$read` takes a block apart into bytes.
macro_rules! scaled_blocks {
    ($name:ident, $module:ident, $codes:ty, $offset:expr, $fine:expr, $most:expr, $of:expr, $read:path) => {
        #[doc = concat!("`", stringify!($module), "`: head `d`; units of codes and i16 scales.")]
        pub(super) struct $name;

        impl Format for $name {
            type Codes = $codes;
            const OFFSET_SHIFT: Option<u32> = $offset;
            const FINE: bool = $fine;
            const FILE_LEN: usize = $module::BLOCK_LEN;
            const FILE_BYTES: usize = $module::BLOCK_BYTES;
            const SCALES: usize = HALVES;

            #[inline(always)]
            fn put(file: &[u8], row: usize, codes: &mut [UnitCodes], panel: &mut [u8]) {
                let mut largest = 0.0f32;
                for (block, codes) in blocks(file).iter().zip(codes) {
                    $read(block, &mut codes[row]);
                    let d = $module::d(block).to_f32().abs();
                    // NaN stays.
                    largest = if d > largest || d.is_nan() { d } else { largest };
                }
                let d = if largest.is_finite() { at_least(largest / ($most * $of)) } else { f16::NAN };
                put_f16(d, 0, row, panel);
                for (u, block) in blocks(file).iter().enumerate() {
                    let scale = $module::d(block).to_f32() / $of / units_of(d);
                    put_i16(scale, scales_at::<Self>(u), row, panel);
                }
            }

            #[inline(always)]
            unsafe fn scale<S: Lanes>(p: *const u8, _: usize) -> S::I {
                // SAFETY: the caller's.
                unsafe { S::load_i16(p) }
            }
        }
    };
}

const _: () = assert!(q4_0::OFFSET == 1 << 3 && q5_0::OFFSET == 1 << 4);

/// Signed codes as bytes.
#[inline(always)]
fn signed(block: &[u8; q8_0::BLOCK_BYTES], out: &mut [u8; 32]) {
    let mut codes = [0; 32];
    q8_0::codes(block, &mut codes);
    for i in 0..32 {
        out[i] = codes[i] as u8;
    }
}

// The largest scales: 8 * 4079, 16 * 2039 and 128 * 32639 / 128 are within WEIGHT_MAX.
scaled_blocks!(Q4_0, q4_0, Nibbles, Some(3), false, 4079.0, 1.0, q4_0::codes);
scaled_blocks!(Q5_0, q5_0, FiveBits, Some(4), false, 2039.0, 1.0, q5_0::codes);
scaled_blocks!(Q8_0, q8_0, Bytes, None, true, 32639.0, 0.007_812_5, signed);
scaled_blocks!(Iq4Nl, iq4_nl, Levels<Signed>, None, true, 32639.0, 0.007_812_5, iq4_nl::indices);

/// A format of 32 elements with scale and minimum: head `d` and pairs of minima; units of codes and scales, all i16.
macro_rules! affine_blocks {
    ($name:ident, $module:ident, $codes:ty, $largest_code:expr) => {
        #[doc = concat!("`", stringify!($module), "`: head `d`, pairs of minima; units of codes and scales, all i16.")]
        pub(super) struct $name;

        impl Format for $name {
            type Codes = $codes;
            const FILE_LEN: usize = $module::BLOCK_LEN;
            const FILE_BYTES: usize = $module::BLOCK_BYTES;
            const SCALES: usize = HALVES;
            const MINS: usize = 8;
            const MIN_BYTES: usize = 8 * HALVES;

            #[inline(always)]
            fn put(file: &[u8], row: usize, codes: &mut [UnitCodes], panel: &mut [u8]) {
                let mut largest = 0.0f32;
                for (block, codes) in blocks(file).iter().zip(codes) {
                    $module::codes(block, &mut codes[row]);
                    let (d, m) = ($module::d(block).to_f32(), $module::m(block).to_f32());
                    let most = m.abs().max((m + $largest_code * d).abs());
                    // NaN stays.
                    largest = if most > largest || m.is_nan() || d.is_nan() { most + 0.0 * (m + d) } else { largest };
                }
                // Rounding a scale moves the largest code's product by at most 16.
                let d = if largest.is_finite() { at_least(largest / 32_600.0) } else { f16::NAN };
                put_f16(d, 0, row, panel);
                for (u, block) in blocks(file).iter().enumerate() {
                    let unit = units_of(d);
                    put_i16($module::d(block).to_f32() / unit, scales_at::<Self>(u), row, panel);
                    let at = HALVES + 2 * HALVES * (u / 2);
                    put_i16($module::m(block).to_f32() / unit, at, 2 * row + u % 2, panel);
                }
            }

            #[inline(always)]
            unsafe fn scale<S: Lanes>(p: *const u8, _: usize) -> S::I {
                // SAFETY: the caller's.
                unsafe { S::load_i16(p) }
            }
            #[inline(always)]
            unsafe fn minima<S: Lanes>(head: *const u8) -> [S::I; 8] {
                // SAFETY: the caller's.
                unsafe {
                    let mut pairs = [S::splat_i(0); 8];
                    for i in 0..4 {
                        pairs[i] = S::load_pairs(head.add(HALVES + 2 * HALVES * i));
                    }
                    pairs
                }
            }
        }
    };
}

affine_blocks!(Q4_1, q4_1, Nibbles, 15.0);
affine_blocks!(Q5_1, q5_1, FiveBits, 31.0);

/// The levels of IQ4_NL as signed bytes.
pub(super) struct Signed;

impl Table for Signed {
    const LEVELS: [u8; 16] = plus(&iq4_nl::LEVELS, 0);
    const WIDE: bool = false;
}

/// The levels of IQ4_XS, which are those of IQ4_NL, plus 128.
pub(super) struct Uneven;

impl Table for Uneven {
    const LEVELS: [u8; 16] = plus(&iq4_nl::LEVELS, 128);
    const WIDE: bool = true;
}

/// The levels of MXFP4, plus 16.
pub(super) struct Fp4;

impl Table for Fp4 {
    const LEVELS: [u8; 16] = plus(&mxfp4::LEVELS, 16);
    const WIDE: bool = false;
}

const fn plus(levels: &[i8; 16], offset: i16) -> [u8; 16] {
    let mut out = [0; 16];
    let mut i = 0;
    while i < 16 {
        out[i] = (levels[i] as i16 + offset) as u8;
        i += 1;
    }
    out
}

/// `mxfp4`: head the exponent byte of `d`; units of level indices and the binary logarithms of the scales.
pub(super) struct Mxfp4;

/// The largest logarithm of a scale: 12 * 2^11 is within WEIGHT_MAX.
const LOG_MAX: u8 = 11;

impl Format for Mxfp4 {
    type Codes = Levels<Fp4>;
    const OFFSET_SHIFT: Option<u32> = Some(4);
    const FILE_LEN: usize = mxfp4::BLOCK_LEN;
    const FILE_BYTES: usize = mxfp4::BLOCK_BYTES;
    const D: usize = 16;
    const SCALES: usize = 16;

    #[inline(always)]
    fn put(file: &[u8], row: usize, codes: &mut [UnitCodes], panel: &mut [u8]) {
        let mut largest = 0;
        for (block, codes) in blocks(file).iter().zip(codes) {
            mxfp4::indices(block, &mut codes[row]);
            largest = largest.max(mxfp4::exponent(block));
        }
        let d = largest.saturating_sub(LOG_MAX);
        panel[row] = d;
        for (u, block) in blocks(file).iter().enumerate() {
            // A byte that is no logarithm, where the block is too small to be seen.
            panel[scales_at::<Self>(u) + row] = mxfp4::exponent(block).checked_sub(d).unwrap_or(u8::MAX);
        }
    }

    #[inline(always)]
    unsafe fn d<S: Lanes>(head: *const u8) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::load_half_powers(head) }
    }
    #[inline(always)]
    unsafe fn scale<S: Lanes>(p: *const u8, _: usize) -> S::I {
        // SAFETY: the caller's.
        unsafe { S::power(S::load_u8(p)) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::superformats::{Iq4Xs, Q2K, Q3K, Q4K, Q5K, Q6K};
    use super::*;

    /// Bytes of a panel's superblock per row, against the file's.
    fn growth<F: Format>() -> f64 {
        F::BYTES as f64 / 16.0 / (256 / F::FILE_LEN * F::FILE_BYTES) as f64 - 1.0
    }

    #[test]
    fn panels_are_as_small_as_the_file() {
        assert_eq!([growth::<Q6K>(), growth::<Q2K>()], [0.0; 2]);
        let d = [growth::<Q4_0>(), growth::<Q5_0>(), growth::<Q8_0>(), growth::<Q4_1>(), growth::<Q5_1>()];
        for grown in d.into_iter().chain([growth::<Iq4Nl>(), growth::<Mxfp4>()]) {
            assert!(grown < 0.014, "{grown}");
        }
        for grown in [growth::<Q4K>(), growth::<Q5K>(), growth::<Iq4Xs>()] {
            assert!(grown < 0.03, "{grown}");
        }
        assert!(growth::<Q3K>() < 0.037);
    }

    #[test]
    fn units_are_rounded_up() {
        for v in [0.0f32, 1e-9, 5.9e-8, 6e-8, 1e-6, 3e-5, 0.1, 1.0, 1.0004, 1.001, 60_000.0] {
            let up = at_least(v);
            assert!(up.to_f32() >= v && (up.to_bits() == 0 || f16::from_bits(up.to_bits() - 1).to_f32() < v), "{v}");
        }
    }
}

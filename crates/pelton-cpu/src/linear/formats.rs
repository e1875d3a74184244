//! The formats of 32 elements a block as panels hold them: which planes, which scales, and how a file's block is put
//! there. Those with superblocks are in `superformats.rs`.
//!
//! `pelton_quant` takes the file's blocks apart; this file knows no bit position of them. Sizes per 16 rows and
//! block, against the file: equal, but for the K-quants' 6-bit scales, which become bytes (at most 3.6% more).

use half::f16;
use pelton_quant::{iq4_nl, mxfp4, q4_0, q4_1, q5_0, q5_1, q8_0};

use super::blocks::{Format, Packed};
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

/// A format of 32 elements with one scale: codes, then 16 f16. `$read` takes a block apart into bytes.
macro_rules! scaled_blocks {
    ($name:ident, $module:ident, $codes:ty, $offset:expr, $read:path) => {
        #[doc = concat!("`", stringify!($module), "`: codes, then the scale `d` of each row in f16.")]
        pub(super) struct $name;

        impl Packed for $name {
            type Codes = $codes;
            const OFFSET_SHIFT: Option<u32> = $offset;
            const FILE_BYTES: usize = $module::BLOCK_BYTES;
            const PANEL_BYTES: usize = <$codes>::BYTES + 32;

            #[inline(always)]
            fn put(file: &[u8], row: usize, codes: &mut [UnitCodes], panel: &mut [u8]) {
                let block = block(file);
                $read(block, &mut codes[0][row]);
                put_f16($module::d(block), Self::Codes::BYTES, row, panel);
            }
        }

        impl Format for $name {
            const HAS_MIN: bool = false;

            #[inline(always)]
            unsafe fn scale<S: Lanes>(p: *const u8) -> S::F {
                // SAFETY: the caller's.
                unsafe { S::load_f16(p) }
            }
        }
    };
}

const _: () = assert!(q4_0::OFFSET == 1 << 3 && q5_0::OFFSET == 1 << 4);

/// Signed codes as the bytes that [`Lanes::dot_wide`] expects.
#[inline(always)]
fn biased(block: &[u8; q8_0::BLOCK_BYTES], out: &mut [u8; 32]) {
    let mut codes = [0; 32];
    q8_0::codes(block, &mut codes);
    for i in 0..32 {
        out[i] = codes[i] as u8 ^ 0x80;
    }
}

scaled_blocks!(Q4_0, q4_0, Nibbles, Some(3), q4_0::codes);
scaled_blocks!(Q5_0, q5_0, FiveBits, Some(4), q5_0::codes);
scaled_blocks!(Q8_0, q8_0, Bytes, None, biased);
scaled_blocks!(Iq4Nl, iq4_nl, Levels<Uneven>, None, iq4_nl::indices);

/// A format of 32 elements with scale and minimum: codes, then 16 f16 each.
macro_rules! affine_blocks {
    ($name:ident, $module:ident, $codes:ty) => {
        #[doc = concat!("`", stringify!($module), "`: codes, then `d` and then `m` of each row in f16.")]
        pub(super) struct $name;

        impl Packed for $name {
            type Codes = $codes;
            const OFFSET_SHIFT: Option<u32> = None;
            const FILE_BYTES: usize = $module::BLOCK_BYTES;
            const PANEL_BYTES: usize = <$codes>::BYTES + 64;

            #[inline(always)]
            fn put(file: &[u8], row: usize, codes: &mut [UnitCodes], panel: &mut [u8]) {
                let block = block(file);
                $module::codes(block, &mut codes[0][row]);
                put_f16($module::d(block), Self::Codes::BYTES, row, panel);
                put_f16($module::m(block), Self::Codes::BYTES + 32, row, panel);
            }
        }

        impl Format for $name {
            const HAS_MIN: bool = true;

            #[inline(always)]
            unsafe fn scale<S: Lanes>(p: *const u8) -> S::F {
                // SAFETY: the caller's.
                unsafe { S::load_f16(p) }
            }
            #[inline(always)]
            unsafe fn min<S: Lanes>(p: *const u8) -> S::F {
                // SAFETY: the caller's.
                unsafe { S::load_f16(p.add(32)) }
            }
        }
    };
}

affine_blocks!(Q4_1, q4_1, Nibbles);
affine_blocks!(Q5_1, q5_1, FiveBits);

/// The levels of IQ4_NL and IQ4_XS, plus 128.
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

/// `mxfp4`: level indices, then the exponent byte of each row.
pub(super) struct Mxfp4;

impl Packed for Mxfp4 {
    type Codes = Levels<Fp4>;
    const OFFSET_SHIFT: Option<u32> = Some(4);
    const FILE_BYTES: usize = mxfp4::BLOCK_BYTES;
    const PANEL_BYTES: usize = Levels::<Fp4>::BYTES + 16;

    #[inline(always)]
    fn put(file: &[u8], row: usize, codes: &mut [UnitCodes], panel: &mut [u8]) {
        let block = block(file);
        mxfp4::indices(block, &mut codes[0][row]);
        panel[Self::Codes::BYTES + row] = mxfp4::exponent(block);
    }
}

impl Format for Mxfp4 {
    const HAS_MIN: bool = false;

    #[inline(always)]
    unsafe fn scale<S: Lanes>(p: *const u8) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::load_half_powers(p) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::superformats::{Iq4Xs, Q2K, Q3K, Q4K, Q5K, Q6K};
    use super::*;

    /// Bytes of a panel's block per row, against the file's.
    fn growth<F: Packed>() -> f64 {
        F::PANEL_BYTES as f64 / 16.0 / F::FILE_BYTES as f64 - 1.0
    }

    #[test]
    fn panels_are_as_small_as_the_file() {
        let same = [growth::<Q4_0>(), growth::<Q5_0>(), growth::<Q8_0>(), growth::<Q4_1>(), growth::<Q5_1>()];
        assert_eq!(same, [0.0; 5]);
        assert_eq!([growth::<Q6K>(), growth::<Q2K>(), growth::<Iq4Nl>(), growth::<Mxfp4>()], [0.0; 4]);
        for grown in [growth::<Q4K>(), growth::<Q5K>(), growth::<Iq4Xs>()] {
            assert!(grown < 0.03, "{grown}");
        }
        assert!(growth::<Q3K>() < 0.037);
    }
}

//! The block-quantized formats as panels hold them: which planes, which scales, and how a file's block is put there.
//!
//! `pelton_quant` takes the file's blocks apart; this file knows no bit position of them. Sizes per 16 rows and
//! block, against the file: equal, but for the K-quants' 6-bit scales, which become bytes (at most 3.6% more).

use half::f16;
use pelton_quant::{iq4_nl, iq4_xs, mxfp4, q2_k, q3_k, q4_0, q4_1, q4_k, q5_0, q5_1, q5_k, q6_k, q8_0};

use super::blocks::Format;
use super::codes::{Bytes, Codes, FiveBits, Levels, Nibbles, SixBits, Table, ThreeBits, TwoBits};
use super::lanes::Lanes;

/// The file's block with its length as a type.
fn block<const N: usize>(file: &[u8]) -> &[u8; N] {
    file.try_into().expect("rows are cut into whole blocks")
}

/// Puts a half-precision number into lane `row` of 16 at `at`.
fn put_f16(v: f16, at: usize, row: usize, panel: &mut [u8]) {
    panel[at + 2 * row..][..2].copy_from_slice(&v.to_le_bytes());
}

/// A format of 32 elements with one scale: codes, then 16 f16.
macro_rules! scaled_blocks {
    ($name:ident, $module:ident, $codes:ty, $offset:expr, $byte:expr) => {
        #[doc = concat!("`", stringify!($module), "`: codes, then the scale `d` of each row in f16.")]
        pub(super) struct $name;

        impl Format for $name {
            type Codes = $codes;
            const FILE_BYTES: usize = $module::BLOCK_BYTES;
            const UNITS: usize = 1;
            const HEAD: usize = 0;
            const SCALES: usize = 32;
            const PARTS: usize = 1;
            const OFFSET_SHIFT: Option<u32> = $offset;
            const HAS_MIN: bool = false;

            #[inline(always)]
            unsafe fn head<S: Lanes>(_: *const u8) -> [S::F; 2] {
                // SAFETY: the caller's.
                unsafe { [S::splat(0.0); 2] }
            }
            #[inline(always)]
            unsafe fn scale<S: Lanes>(_: [S::F; 2], p: *const u8, _: usize) -> S::F {
                // SAFETY: the caller's.
                unsafe { S::load_f16(p) }
            }
            fn put(file: &[u8], row: usize, panel: &mut [u8]) {
                let block = block(file);
                let mut codes = [Default::default(); 32];
                $module::codes(block, &mut codes);
                Self::Codes::put(&codes.map($byte), row, panel);
                put_f16($module::d(block), Self::Codes::BYTES, row, panel);
            }
        }
    };
}

const _: () = assert!(q4_0::OFFSET == 1 << 3 && q5_0::OFFSET == 1 << 4);
const _: () = assert!(q6_k::OFFSET == 1 << 5 && q3_k::OFFSET == 1 << 2);

/// A signed code as the byte that [`Lanes::dot_wide`] expects.
fn biased(code: i8) -> u8 {
    code as u8 ^ 0x80
}

scaled_blocks!(Q4_0, q4_0, Nibbles, Some(3), |c: u8| c);
scaled_blocks!(Q5_0, q5_0, FiveBits, Some(4), |c: u8| c);
scaled_blocks!(Q8_0, q8_0, Bytes, None, biased);
scaled_blocks!(Iq4Nl, iq4_nl, Levels<Uneven>, None, level_index);

/// A format of 32 elements with scale and minimum: codes, then 16 f16 each.
macro_rules! affine_blocks {
    ($name:ident, $module:ident, $codes:ty) => {
        #[doc = concat!("`", stringify!($module), "`: codes, then `d` and then `m` of each row in f16.")]
        pub(super) struct $name;

        impl Format for $name {
            type Codes = $codes;
            const FILE_BYTES: usize = $module::BLOCK_BYTES;
            const UNITS: usize = 1;
            const HEAD: usize = 0;
            const SCALES: usize = 64;
            const PARTS: usize = 1;
            const OFFSET_SHIFT: Option<u32> = None;
            const HAS_MIN: bool = true;

            #[inline(always)]
            unsafe fn head<S: Lanes>(_: *const u8) -> [S::F; 2] {
                // SAFETY: the caller's.
                unsafe { [S::splat(0.0); 2] }
            }
            #[inline(always)]
            unsafe fn scale<S: Lanes>(_: [S::F; 2], p: *const u8, _: usize) -> S::F {
                // SAFETY: the caller's.
                unsafe { S::load_f16(p) }
            }
            #[inline(always)]
            unsafe fn min<S: Lanes>(_: [S::F; 2], p: *const u8, _: usize) -> S::F {
                // SAFETY: the caller's.
                unsafe { S::load_f16(p.add(32)) }
            }
            fn put(file: &[u8], row: usize, panel: &mut [u8]) {
                let block = block(file);
                let mut codes = [0; 32];
                $module::codes(block, &mut codes);
                Self::Codes::put(&codes, row, panel);
                put_f16($module::d(block), Self::Codes::BYTES, row, panel);
                put_f16($module::m(block), Self::Codes::BYTES + 32, row, panel);
            }
        }
    };
}

affine_blocks!(Q4_1, q4_1, Nibbles);
affine_blocks!(Q5_1, q5_1, FiveBits);

/// The head of the K-quants: `d` of each row in f16, and where `N` is 2 then `-dmin`.
///
/// # Safety
/// As [`Format::head`].
#[inline(always)]
unsafe fn f16_head<S: Lanes, const N: usize>(p: *const u8) -> [S::F; 2] {
    // SAFETY: the caller's.
    unsafe { [S::load_f16(p), if N == 2 { S::load_f16(p.add(32)) } else { S::splat(0.0) }] }
}

/// The units of a block of a panel, past a head of `head` bytes, each with its codes.
fn units<'a, F: Format>(
    codes: &'a [u8; 256],
    panel: &'a mut [u8],
) -> impl Iterator<Item = (usize, &'a [u8; 32], &'a mut [u8])> {
    let units = panel[F::HEAD..].chunks_exact_mut(F::Codes::BYTES + F::SCALES);
    codes.as_chunks::<32>().0.iter().zip(units).enumerate().map(|(u, (codes, unit))| (u, codes, unit))
}

/// A K-quant with 8 sub-blocks of scale and minimum: head `d`, `-dmin`; units with codes, 16 scales, 16 minima.
macro_rules! affine_k_quant {
    ($name:ident, $module:ident, $codes:ty) => {
        #[doc = concat!("`", stringify!($module), "`: head `d`, `-dmin`; units of codes, scale and minimum bytes.")]
        pub(super) struct $name;

        impl Format for $name {
            type Codes = $codes;
            const FILE_BYTES: usize = $module::BLOCK_BYTES;
            const UNITS: usize = 8;
            const HEAD: usize = 64;
            const SCALES: usize = 32;
            const PARTS: usize = 1;
            const OFFSET_SHIFT: Option<u32> = None;
            const HAS_MIN: bool = true;

            #[inline(always)]
            unsafe fn head<S: Lanes>(p: *const u8) -> [S::F; 2] {
                // SAFETY: the caller's.
                unsafe { f16_head::<S, 2>(p) }
            }
            #[inline(always)]
            unsafe fn scale<S: Lanes>(head: [S::F; 2], p: *const u8, _: usize) -> S::F {
                // SAFETY: the caller's.
                unsafe { S::mul(head[0], S::load_u8(p)) }
            }
            #[inline(always)]
            unsafe fn min<S: Lanes>(head: [S::F; 2], p: *const u8, _: usize) -> S::F {
                // SAFETY: the caller's.
                unsafe { S::mul(head[1], S::load_u8(p.add(16))) }
            }
            fn put(file: &[u8], row: usize, panel: &mut [u8]) {
                let block = block(file);
                let mut codes = [0; 256];
                $module::codes(block, &mut codes);
                let (scales, mins) = $module::scales_mins(block);
                put_f16($module::d(block), 0, row, panel);
                put_f16(-$module::dmin(block), 32, row, panel);
                for (u, codes, unit) in units::<Self>(&codes, panel) {
                    Self::Codes::put(codes, row, unit);
                    unit[Self::Codes::BYTES + row] = scales[u];
                    unit[Self::Codes::BYTES + 16 + row] = mins[u];
                }
            }
        }
    };
}

affine_k_quant!(Q4K, q4_k, Nibbles);
affine_k_quant!(Q5K, q5_k, FiveBits);

/// A K-quant with 16 sub-blocks of a signed scale: head `d`; units with codes and 2 × 16 scales.
macro_rules! scaled_k_quant {
    ($name:ident, $module:ident, $codes:ty, $offset:expr) => {
        #[doc = concat!("`", stringify!($module), "`: head `d`; units of codes and the scale bytes of both halves.")]
        pub(super) struct $name;

        impl Format for $name {
            type Codes = $codes;
            const FILE_BYTES: usize = $module::BLOCK_BYTES;
            const UNITS: usize = 8;
            const HEAD: usize = 32;
            const SCALES: usize = 32;
            const PARTS: usize = 2;
            const OFFSET_SHIFT: Option<u32> = $offset;
            const HAS_MIN: bool = false;

            #[inline(always)]
            unsafe fn head<S: Lanes>(p: *const u8) -> [S::F; 2] {
                // SAFETY: the caller's.
                unsafe { f16_head::<S, 1>(p) }
            }
            #[inline(always)]
            unsafe fn scale<S: Lanes>(head: [S::F; 2], p: *const u8, part: usize) -> S::F {
                // SAFETY: the caller's.
                unsafe { S::mul(head[0], S::load_i8(p.add(16 * part))) }
            }
            fn put(file: &[u8], row: usize, panel: &mut [u8]) {
                let block = block(file);
                let mut codes = [0; 256];
                $module::codes(block, &mut codes);
                let scales = $module::scales(block);
                put_f16($module::d(block), 0, row, panel);
                for (u, codes, unit) in units::<Self>(&codes, panel) {
                    Self::Codes::put(codes, row, unit);
                    unit[Self::Codes::BYTES + row] = scales[2 * u] as u8;
                    unit[Self::Codes::BYTES + 16 + row] = scales[2 * u + 1] as u8;
                }
            }
        }
    };
}

scaled_k_quant!(Q6K, q6_k, SixBits, Some(5));
scaled_k_quant!(Q3K, q3_k, ThreeBits, Some(2));

/// `q2_k`: head `d`, `-dmin`; units of codes and, for both halves, bytes of scale (low nibble) and minimum (high).
pub(super) struct Q2K;

impl Format for Q2K {
    type Codes = TwoBits;
    const FILE_BYTES: usize = q2_k::BLOCK_BYTES;
    const UNITS: usize = 8;
    const HEAD: usize = 64;
    const SCALES: usize = 32;
    const PARTS: usize = 2;
    const OFFSET_SHIFT: Option<u32> = None;
    const HAS_MIN: bool = true;

    #[inline(always)]
    unsafe fn head<S: Lanes>(p: *const u8) -> [S::F; 2] {
        // SAFETY: the caller's.
        unsafe { f16_head::<S, 2>(p) }
    }
    #[inline(always)]
    unsafe fn scale<S: Lanes>(head: [S::F; 2], p: *const u8, part: usize) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::mul(head[0], S::load_low_nibbles(p.add(16 * part))) }
    }
    #[inline(always)]
    unsafe fn min<S: Lanes>(head: [S::F; 2], p: *const u8, part: usize) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::mul(head[1], S::load_high_nibbles(p.add(16 * part))) }
    }
    fn put(file: &[u8], row: usize, panel: &mut [u8]) {
        let block = block(file);
        let mut codes = [0; 256];
        q2_k::codes(block, &mut codes);
        let (scales, mins) = q2_k::scales_mins(block);
        put_f16(q2_k::d(block), 0, row, panel);
        put_f16(-q2_k::dmin(block), 32, row, panel);
        for (u, codes, unit) in units::<Self>(&codes, panel) {
            TwoBits::put(codes, row, unit);
            for part in 0..2 {
                unit[TwoBits::BYTES + 16 * part + row] = scales[2 * u + part] | mins[2 * u + part] << 4;
            }
        }
    }
}

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

/// For each signed level (as a byte), its index; the first where a level occurs twice (0 and -0).
const fn indices(levels: &[i8; 16]) -> [u8; 256] {
    let mut out = [0; 256];
    let mut i = 16;
    while i > 0 {
        i -= 1;
        out[levels[i] as u8 as usize] = i as u8;
    }
    out
}

fn level_index(level: i8) -> u8 {
    const INDICES: [u8; 256] = indices(&iq4_nl::LEVELS);
    INDICES[usize::from(level as u8)]
}

fn fp4_index(level: i8) -> u8 {
    const INDICES: [u8; 256] = indices(&mxfp4::LEVELS);
    INDICES[usize::from(level as u8)]
}

/// `iq4_xs`: head `d`; units of level indices and signed scale bytes.
pub(super) struct Iq4Xs;

impl Format for Iq4Xs {
    type Codes = Levels<Uneven>;
    const FILE_BYTES: usize = iq4_xs::BLOCK_BYTES;
    const UNITS: usize = 8;
    const HEAD: usize = 32;
    const SCALES: usize = 16;
    const PARTS: usize = 1;
    const OFFSET_SHIFT: Option<u32> = None;
    const HAS_MIN: bool = false;

    #[inline(always)]
    unsafe fn head<S: Lanes>(p: *const u8) -> [S::F; 2] {
        // SAFETY: the caller's.
        unsafe { f16_head::<S, 1>(p) }
    }
    #[inline(always)]
    unsafe fn scale<S: Lanes>(head: [S::F; 2], p: *const u8, _: usize) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::mul(head[0], S::load_i8(p)) }
    }
    fn put(file: &[u8], row: usize, panel: &mut [u8]) {
        let block = block(file);
        let mut levels = [0; 256];
        iq4_xs::codes(block, &mut levels);
        let scales = iq4_xs::scales(block);
        put_f16(iq4_xs::d(block), 0, row, panel);
        for (u, codes, unit) in units::<Self>(&levels.map(level_index), panel) {
            Self::Codes::put(codes, row, unit);
            unit[Self::Codes::BYTES + row] = scales[u] as u8;
        }
    }
}

/// `mxfp4`: level indices, then the exponent byte of each row.
pub(super) struct Mxfp4;

impl Format for Mxfp4 {
    type Codes = Levels<Fp4>;
    const FILE_BYTES: usize = mxfp4::BLOCK_BYTES;
    const UNITS: usize = 1;
    const HEAD: usize = 0;
    const SCALES: usize = 16;
    const PARTS: usize = 1;
    const OFFSET_SHIFT: Option<u32> = Some(4);
    const HAS_MIN: bool = false;

    #[inline(always)]
    unsafe fn head<S: Lanes>(_: *const u8) -> [S::F; 2] {
        // SAFETY: the caller's.
        unsafe { [S::splat(0.0); 2] }
    }
    #[inline(always)]
    unsafe fn scale<S: Lanes>(_: [S::F; 2], p: *const u8, _: usize) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::load_half_powers(p) }
    }
    fn put(file: &[u8], row: usize, panel: &mut [u8]) {
        let block = block(file);
        let mut levels = [0; 32];
        mxfp4::codes(block, &mut levels);
        Self::Codes::put(&levels.map(fp4_index), row, panel);
        panel[Self::Codes::BYTES + row] = mxfp4::exponent(block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of a panel's block per row, against the file's.
    fn growth<F: Format>() -> f64 {
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

    #[test]
    fn a_level_is_found_by_its_value() {
        for (i, &level) in iq4_nl::LEVELS.iter().enumerate() {
            assert_eq!(usize::from(level_index(level)), i);
        }
        for &level in &mxfp4::LEVELS {
            assert_eq!(mxfp4::LEVELS[usize::from(fp4_index(level))], level);
        }
    }
}

//! The formats with superblocks of 256 elements as panels hold them: which planes, which scales, and how a file's
//! block is put there.
//!
//! `pelton_quant` takes the file's blocks apart; this file knows no bit position of them. Sizes per 16 rows and
//! block, against the file: equal, but for the 6-bit scales, which become bytes (at most 3.6% more).

use pelton_quant::{iq4_xs, q2_k, q3_k, q4_k, q5_k, q6_k};

use super::blocks::Packed;
use super::codes::{Codes, FiveBits, Levels, Nibbles, SixBits, ThreeBits, TwoBits, UnitCodes};
use super::formats::{Uneven, block, put_f16};
use super::lanes::Lanes;
use super::superblocks::{HALVES, Planes, SuperFormat};

const _: () = assert!(q6_k::OFFSET == 1 << 5 && q3_k::OFFSET == 1 << 2);

/// The units of a block of a panel.
#[inline(always)]
fn units<F: SuperFormat>(panel: &mut [u8]) -> impl Iterator<Item = (usize, &mut [u8])> {
    panel[F::HEAD..].chunks_exact_mut(F::UNIT).enumerate()
}

/// Deals the codes of a block of the file to its units, as row `row`.
#[inline(always)]
fn deal(block: &[u8; 256], row: usize, codes: &mut [UnitCodes]) {
    for (block, codes) in block.as_chunks::<32>().0.iter().zip(codes) {
        codes[row] = *block;
    }
}

/// Bytes of a block of a panel.
const fn panel_bytes<F: SuperFormat>() -> usize {
    F::HEAD + 8 * F::UNIT
}

/// 8 sub-blocks of scale and minimum: head `d`, `-dmin` and pairs of minimum bytes; units with codes and 16 scales.
macro_rules! affine_superblocks {
    ($name:ident, $module:ident, $codes:ty) => {
        #[doc = concat!("`", stringify!($module), "`: head `d`, `-dmin`, minima; units of codes and scale bytes.")]
        pub(super) struct $name;

        impl Packed for $name {
            type Codes = $codes;
            const OFFSET_SHIFT: Option<u32> = None;
            const FILE_BYTES: usize = $module::BLOCK_BYTES;
            const PANEL_BYTES: usize = panel_bytes::<$name>();

            const UNITS: usize = 8;

            #[inline(always)]
            fn codes_at(unit: usize) -> usize {
                Self::HEAD + Self::UNIT * unit
            }

            #[inline(always)]
            fn put(file: &[u8], row: usize, codes: &mut [UnitCodes], panel: &mut [u8]) {
                let block = block(file);
                let mut all = [0; 256];
                $module::codes(block, &mut all);
                deal(&all, row, codes);
                let (scales, mins) = $module::scales_mins(block);
                put_f16($module::d(block), 0, row, panel);
                put_f16(-$module::dmin(block), HALVES, row, panel);
                for (u, unit) in units::<Self>(panel) {
                    unit[<$codes>::BYTES + row] = scales[u];
                }
                for (u, min) in mins.into_iter().enumerate() {
                    panel[2 * HALVES + Self::PAIR * (u / 2) + 2 * row + u % 2] = min;
                }
            }
        }

        impl SuperFormat for $name {
            const PARTS: usize = 1;
            const SCALES: usize = 16;
            const MINS: usize = 8;
            const PAIR: usize = 32;
            const PLANES: Planes = Planes::Unsigned;

            #[inline(always)]
            unsafe fn scale<S: Lanes>(p: *const u8, _: usize) -> S::I {
                // SAFETY: the caller's.
                unsafe { S::load_u8(p) }
            }
            #[inline(always)]
            unsafe fn min_pair<S: Lanes>(p: *const u8, i: usize) -> S::I {
                // SAFETY: the caller's.
                unsafe { S::load_u8_pairs(p.add(Self::PAIR * i)) }
            }
        }
    };
}

affine_superblocks!(Q4K, q4_k, Nibbles);
affine_superblocks!(Q5K, q5_k, FiveBits);

/// 16 sub-blocks of a signed scale: head `d`; units with codes and 2 × 16 scales.
macro_rules! scaled_superblocks {
    ($name:ident, $module:ident, $codes:ty, $offset:expr) => {
        #[doc = concat!("`", stringify!($module), "`: head `d`; units of codes and the scale bytes of both halves.")]
        pub(super) struct $name;

        impl Packed for $name {
            type Codes = $codes;
            const OFFSET_SHIFT: Option<u32> = $offset;
            const FILE_BYTES: usize = $module::BLOCK_BYTES;
            const PANEL_BYTES: usize = panel_bytes::<$name>();

            const UNITS: usize = 8;

            #[inline(always)]
            fn codes_at(unit: usize) -> usize {
                Self::HEAD + Self::UNIT * unit
            }

            #[inline(always)]
            fn put(file: &[u8], row: usize, codes: &mut [UnitCodes], panel: &mut [u8]) {
                let block = block(file);
                let mut all = [0; 256];
                $module::codes(block, &mut all);
                deal(&all, row, codes);
                let scales = $module::scales(block);
                put_f16($module::d(block), 0, row, panel);
                for (u, unit) in units::<Self>(panel) {
                    unit[<$codes>::BYTES + row] = scales[2 * u] as u8;
                    unit[<$codes>::BYTES + 16 + row] = scales[2 * u + 1] as u8;
                }
            }
        }

        impl SuperFormat for $name {
            const PARTS: usize = 2;
            const SCALES: usize = 32;
            const MINS: usize = 0;
            const PAIR: usize = 0;
            const PLANES: Planes = Planes::Signed;

            #[inline(always)]
            unsafe fn scale<S: Lanes>(p: *const u8, part: usize) -> S::I {
                // SAFETY: the caller's.
                unsafe { S::load_i8(p.add(16 * part)) }
            }
        }
    };
}

scaled_superblocks!(Q6K, q6_k, SixBits, Some(5));
scaled_superblocks!(Q3K, q3_k, ThreeBits, Some(2));

/// `q2_k`: head `d`, `-dmin` and pairs of minima in nibbles; units of codes and the scales of both halves in nibbles.
pub(super) struct Q2K;

impl Packed for Q2K {
    type Codes = TwoBits;
    const OFFSET_SHIFT: Option<u32> = None;
    const FILE_BYTES: usize = q2_k::BLOCK_BYTES;
    const PANEL_BYTES: usize = panel_bytes::<Q2K>();

    const UNITS: usize = 8;

    #[inline(always)]
    fn codes_at(unit: usize) -> usize {
        Self::HEAD + Self::UNIT * unit
    }

    #[inline(always)]
    fn put(file: &[u8], row: usize, codes: &mut [UnitCodes], panel: &mut [u8]) {
        let block = block(file);
        let mut all = [0; 256];
        q2_k::codes(block, &mut all);
        deal(&all, row, codes);
        let (scales, mins) = q2_k::scales_mins(block);
        put_f16(q2_k::d(block), 0, row, panel);
        put_f16(-q2_k::dmin(block), HALVES, row, panel);
        for (u, unit) in units::<Self>(panel) {
            unit[TwoBits::BYTES + row] = scales[2 * u] | scales[2 * u + 1] << 4;
        }
        for (i, pair) in mins.as_chunks::<2>().0.iter().enumerate() {
            panel[2 * HALVES + Self::PAIR * i + row] = pair[0] | pair[1] << 4;
        }
    }
}

impl SuperFormat for Q2K {
    const PARTS: usize = 2;
    const SCALES: usize = 16;
    const MINS: usize = 16;
    const PAIR: usize = 16;
    const PLANES: Planes = Planes::One;

    #[inline(always)]
    unsafe fn scale<S: Lanes>(p: *const u8, part: usize) -> S::I {
        // SAFETY: the caller's.
        unsafe { if part == 0 { S::load_low_nibbles(p) } else { S::load_high_nibbles(p) } }
    }
    #[inline(always)]
    unsafe fn min_pair<S: Lanes>(p: *const u8, i: usize) -> S::I {
        // SAFETY: the caller's.
        unsafe { S::load_nibble_pairs(p.add(Self::PAIR * i)) }
    }
}

/// `iq4_xs`: head `d`; units of level indices and signed scale bytes.
pub(super) struct Iq4Xs;

impl Packed for Iq4Xs {
    type Codes = Levels<Uneven>;
    const OFFSET_SHIFT: Option<u32> = None;
    const FILE_BYTES: usize = iq4_xs::BLOCK_BYTES;
    const PANEL_BYTES: usize = panel_bytes::<Iq4Xs>();

    const UNITS: usize = 8;

    #[inline(always)]
    fn codes_at(unit: usize) -> usize {
        Self::HEAD + Self::UNIT * unit
    }

    #[inline(always)]
    fn put(file: &[u8], row: usize, codes: &mut [UnitCodes], panel: &mut [u8]) {
        let block = block(file);
        let mut all = [0; 256];
        iq4_xs::indices(block, &mut all);
        deal(&all, row, codes);
        let scales = iq4_xs::scales(block);
        put_f16(iq4_xs::d(block), 0, row, panel);
        for (u, unit) in units::<Self>(panel) {
            unit[Self::Codes::BYTES + row] = scales[u] as u8;
        }
    }
}

impl SuperFormat for Iq4Xs {
    const PARTS: usize = 1;
    const SCALES: usize = 16;
    const MINS: usize = 0;
    const PAIR: usize = 0;
    const PLANES: Planes = Planes::Signed;

    #[inline(always)]
    unsafe fn scale<S: Lanes>(p: *const u8, _: usize) -> S::I {
        // SAFETY: the caller's.
        unsafe { S::load_i8(p) }
    }
}

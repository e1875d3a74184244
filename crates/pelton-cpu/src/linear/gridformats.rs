//! The formats of grid points and of ternary digits as panels hold them: indices of a few levels, in planes of bits.
//!
//! In the file, a byte or ten bits name a point of a grid, which stands for four or eight elements. A panel holds each
//! element by itself, since looking points up costs more than reading the bits that it saves:
//!
//! ```text
//! iq3_xxs, iq3_s           4 bits: magnitude and sign    a scale of each 32         4.3 bits, file 3.1, 3.4
//! iq2_xxs                  3 bits: magnitude and sign    a scale of each 32         3.3 bits, file 2.1
//! iq2_xs, iq2_s, iq1_m     3 bits: one of eight levels   scales of each 16          3.3 bits, file 2.3, 2.6, 1.8
//! iq1_s                    2 bits: ternary digit         scale, shift of each 32    2.3 bits, file 1.6
//! tq1_0, tq2_0             2 bits: ternary digit         none: `d` is the scale     2.1 bits, file 1.7, 2.1
//! ```
//!
//! Levels and scales are small integers, so a weight is exact: what `pelton_quant` decodes.

use pelton_quant::{iq1_m, iq1_s, iq2_s, iq2_xs, iq2_xxs, iq3_s, iq3_xxs, tq1_0, tq2_0};

use super::blocks::Format;
use super::codes::{Codes, Levels, Table, ThreeBits, TwoBits, UnitCodes};
use super::formats::{block, put_f16};
use super::lanes::Lanes;
use super::superformats::{deal, units};

/// 3 bits that select a level of `T`: the planes of [`ThreeBits`].
pub(super) struct FewLevels<T>(std::marker::PhantomData<T>);

impl<T: Table> Codes for FewLevels<T> {
    const BYTES: usize = ThreeBits::BYTES;
    const WIDE: bool = T::WIDE;
    #[inline(always)]
    unsafe fn pair<S: Lanes>(p: *const u8, t: usize) -> [S::B; 2] {
        // SAFETY: the caller's.
        unsafe {
            let [a, b] = ThreeBits::pair::<S>(p, t);
            [S::look_up(&T::LEVELS, a), S::look_up(&T::LEVELS, b)]
        }
    }
    fn put(codes: &UnitCodes, out: &mut [u8]) {
        ThreeBits::put(codes, out);
    }
}

/// `$levels` plus `2^$shift`, which makes them unsigned.
macro_rules! table {
    ($name:ident, $levels:expr, $shift:expr) => {
        #[doc = concat!("The levels of `", stringify!($levels), "`, plus `2^", stringify!($shift), "`.")]
        pub(super) struct $name;

        impl Table for $name {
            const LEVELS: [u8; 16] = {
                let mut all = [0; 16];
                let mut i = 0;
                while i < $levels.len() {
                    let level = $levels[i] as i16 + (1 << $shift);
                    assert!(level >= 0 && level < 128);
                    all[i] = level as u8;
                    i += 1;
                }
                all
            };
            const WIDE: bool = false;
        }
    };
}

table!(ThreeXxs, iq3_xxs::LEVELS, 5);
table!(ThreeS, iq3_s::LEVELS, 4);
table!(Two, iq2_s::LEVELS, 6);
table!(OneM, iq1_m::LEVELS, 4);

/// `d` in the unit of the levels.
///
/// # Safety
/// As [`Format::d`].
#[inline(always)]
unsafe fn d_times<S: Lanes>(head: *const u8, unit: f32) -> S::F {
    // SAFETY: the caller's. A power of two: exact, where the file's half-precision number might not be.
    unsafe { S::mul(S::load_f16(head), S::splat(unit)) }
}

/// 8 sub-blocks of a scale: head `d`; units of level indices and 16 scales.
macro_rules! grid_superblocks {
    ($name:ident, $module:ident, $codes:ty, $shift:expr) => {
        #[doc = concat!("`", stringify!($module), "`: head `d`; units of level indices and scale bytes.")]
        pub(super) struct $name;

        impl Format for $name {
            type Codes = $codes;
            const OFFSET_SHIFT: Option<u32> = Some($shift);
            const FILE_LEN: usize = $module::BLOCK_LEN;
            const FILE_BYTES: usize = $module::BLOCK_BYTES;
            const SCALES: usize = 16;

            #[inline(always)]
            fn put(file: &[u8], row: usize, codes: &mut [UnitCodes], panel: &mut [u8]) {
                let block = block(file);
                let mut all = [0; 256];
                $module::indices(block, &mut all);
                deal(&all, row, codes);
                put_f16($module::d(block), 0, row, panel);
                let scales = $module::scales(block);
                for (u, unit) in units::<Self>(panel) {
                    unit[Self::Codes::BYTES + row] = scales[u];
                }
            }

            #[inline(always)]
            unsafe fn d<S: Lanes>(head: *const u8) -> S::F {
                // SAFETY: the caller's.
                unsafe { d_times::<S>(head, $module::UNIT) }
            }
            #[inline(always)]
            unsafe fn scale<S: Lanes>(p: *const u8, _: usize) -> S::I {
                // SAFETY: the caller's.
                unsafe { S::load_u8(p) }
            }
        }
    };
}

grid_superblocks!(Iq3Xxs, iq3_xxs, Levels<ThreeXxs>, 5);
grid_superblocks!(Iq3S, iq3_s, Levels<ThreeS>, 4);
grid_superblocks!(Iq2Xxs, iq2_xxs, FewLevels<Two>, 6);

/// 16 sub-blocks of an odd scale below 32: head `d`; units of level indices and the scales of both halves, halved, in
/// nibbles.
macro_rules! half_scaled_superblocks {
    ($name:ident, $module:ident, $table:ident, $shift:expr) => {
        #[doc = concat!("`", stringify!($module), "`: head `d`; units of level indices and nibbles of scales.")]
        pub(super) struct $name;

        impl Format for $name {
            type Codes = FewLevels<$table>;
            const OFFSET_SHIFT: Option<u32> = Some($shift);
            const FILE_LEN: usize = $module::BLOCK_LEN;
            const FILE_BYTES: usize = $module::BLOCK_BYTES;
            const PARTS: usize = 2;
            const SCALES: usize = 16;

            #[inline(always)]
            fn put(file: &[u8], row: usize, codes: &mut [UnitCodes], panel: &mut [u8]) {
                let block = block(file);
                let mut all = [0; 256];
                $module::indices(block, &mut all);
                deal(&all, row, codes);
                put_f16($module::d(block), 0, row, panel);
                let scales = $module::scales(block);
                for (u, unit) in units::<Self>(panel) {
                    unit[Self::Codes::BYTES + row] = scales[2 * u] >> 1 | scales[2 * u + 1] >> 1 << 4;
                }
            }

            #[inline(always)]
            unsafe fn d<S: Lanes>(head: *const u8) -> S::F {
                // SAFETY: the caller's.
                unsafe { d_times::<S>(head, $module::UNIT) }
            }
            #[inline(always)]
            unsafe fn scale<S: Lanes>(p: *const u8, part: usize) -> S::I {
                // SAFETY: the caller's.
                unsafe {
                    let half = if part == 0 { S::load_low_nibbles(p) } else { S::load_high_nibbles(p) };
                    S::add_i(S::shift_left(half, 1), S::splat_i(1))
                }
            }
        }
    };
}

const _: () = {
    // One table serves all three.
    let (mut i, levels) = (0, iq2_s::LEVELS);
    while i < levels.len() {
        assert!(levels[i] == iq2_xs::LEVELS[i] && levels[i] == iq2_xxs::LEVELS[i]);
        i += 1;
    }
};

half_scaled_superblocks!(Iq2Xs, iq2_xs, Two, 6);
half_scaled_superblocks!(Iq2S, iq2_s, Two, 6);
half_scaled_superblocks!(Iq1M, iq1_m, OneM, 4);

/// `iq1_s`: head `d`; units of ternary digits and signed scale bytes. The digits of 32 elements are shifted alike, so
/// that `scale * (8 * (digit - 1) + shift)` is a multiple of the digit and a minimum, which is made from the scale.
pub(super) struct Iq1S;

impl Format for Iq1S {
    type Codes = TwoBits;
    // Digit plus 1.
    const OFFSET_SHIFT: Option<u32> = Some(0);
    const FILE_LEN: usize = iq1_s::BLOCK_LEN;
    const FILE_BYTES: usize = iq1_s::BLOCK_BYTES;
    const SCALES: usize = 16;
    const MINS: usize = 8;
    // A digit is eight shifts.
    const SHIFT: u32 = 3;

    #[inline(always)]
    fn put(file: &[u8], row: usize, codes: &mut [UnitCodes], panel: &mut [u8]) {
        let block = block(file);
        let mut all = [0; 256];
        iq1_s::indices(block, &mut all);
        put_f16(iq1_s::d(block), 0, row, panel);
        let scales = iq1_s::scales(block);
        for (u, unit) in units::<Self>(panel) {
            // Bit 2 of an index says that the shift is negative.
            let negative = all[32 * u] >> 2 & 1;
            unit[TwoBits::BYTES + row] = scales[u] | negative << 5;
        }
        all.iter_mut().for_each(|index| *index &= 3);
        deal(&all, row, codes);
    }

    #[inline(always)]
    unsafe fn scale<S: Lanes>(p: *const u8, _: usize) -> S::I {
        // SAFETY: the caller's.
        unsafe { S::load_low_nibbles(p) }
    }
    #[inline(always)]
    unsafe fn minima<S: Lanes>(head: *const u8) -> [S::I; 8] {
        // SAFETY: the caller's; blocks of the file are whole superblocks, so all units are there.
        unsafe {
            let mut pairs = [S::splat_i(0); 8];
            for (i, pair) in pairs[..4].iter_mut().enumerate() {
                let min = |u: usize| {
                    let p = head.add(Self::HEAD + u * Self::UNIT + TwoBits::BYTES);
                    // 1, or 1 - 2 where it is negative.
                    let sign = S::mul_add_i(S::load_high_nibbles(p), S::splat_i(-1), S::splat_i(1));
                    S::mul_add_i(S::load_low_nibbles(p), sign, S::splat_i(0))
                };
                *pair = S::pair_i(min(2 * i), min(2 * i + 1));
            }
            pairs
        }
    }
}

/// Ternary digits with one scale: head `d`; units of digits.
macro_rules! ternary_superblocks {
    ($name:ident, $module:ident) => {
        #[doc = concat!("`", stringify!($module), "`: head `d`; units of ternary digits plus 1.")]
        pub(super) struct $name;

        impl Format for $name {
            type Codes = TwoBits;
            const OFFSET_SHIFT: Option<u32> = Some(0);
            const FILE_LEN: usize = $module::BLOCK_LEN;
            const FILE_BYTES: usize = $module::BLOCK_BYTES;
            const SCALES: usize = 0;

            #[inline(always)]
            fn put(file: &[u8], row: usize, codes: &mut [UnitCodes], panel: &mut [u8]) {
                let block = block(file);
                let mut all = [0; 256];
                $module::indices(block, &mut all);
                deal(&all, row, codes);
                put_f16($module::d(block), 0, row, panel);
            }

            #[inline(always)]
            unsafe fn scale<S: Lanes>(_: *const u8, _: usize) -> S::I {
                // SAFETY: the caller's.
                unsafe { S::splat_i(1) }
            }
        }
    };
}

const _: () = {
    let mut i = 0;
    while i < 4 {
        assert!(tq1_0::LEVELS[i] == i as i8 - 1 && tq2_0::LEVELS[i] == i as i8 - 1);
        i += 1;
    }
};

ternary_superblocks!(Tq1_0, tq1_0);
ternary_superblocks!(Tq2_0, tq2_0);

#[cfg(test)]
mod tests {
    use super::*;

    /// Bits of a panel's weight.
    fn bits<F: Format>() -> f64 {
        F::BYTES as f64 / 2.0 / 256.0
    }

    #[test]
    fn panels_are_as_small_as_stated() {
        assert_eq!([bits::<Iq3Xxs>(), bits::<Iq3S>()], [4.3125; 2]);
        assert_eq!([bits::<Iq2Xxs>(), bits::<Iq2Xs>(), bits::<Iq2S>(), bits::<Iq1M>()], [3.3125; 4]);
        assert_eq!([bits::<Iq1S>(), bits::<Tq1_0>(), bits::<Tq2_0>()], [2.3125, 2.0625, 2.0625]);
    }
}

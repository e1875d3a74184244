//! The formats of 256 elements a block as panels hold them: which planes, which scales, and how a file's block is put
//! there.
//!
//! `pelton_quant` takes the file's blocks apart; this file knows no bit position of them. Sizes per 16 rows and
//! block, against the file: equal, but for the 6-bit scales, which become bytes (at most 3.6% more).
//!
//! Formats with minima count in fractions of `d`, the unit of their scales: `min = round(-2^SHIFT m dmin / d)`, which is
//! off by at most half a unit: 2^-15 of the largest weight of a superblock that uses the largest scale, as encoders see to
//! (2^-12 for Q2_K, whose scales have 4 bits), more where all scales are small. Where that or the largest weight would not
//! fit 16 bits, `d` is doubled, and the scales are halved, until they do ([`fit`]). That happens where a minimum is more
//! than four times what a symmetric block has, so that the scales matter less. Finer minima would make it happen more often:
//! Q2_K's can least afford to lose a bit of its scales.

use half::f16;
use pelton_quant::{iq4_xs, q2_k, q3_k, q4_k, q5_k, q6_k};

use super::blocks::{Format, HALVES, WEIGHT_MAX, WEIGHT_MIN};
use super::codes::{Codes, FiveBits, Levels, Nibbles, SixBits, ThreeBits, TwoBits, UnitCodes};
use super::formats::{Uneven, block, put_f16};
use super::lanes::Lanes;

const _: () = assert!(q6_k::OFFSET == 1 << 5 && q3_k::OFFSET == 1 << 2);

/// The units of a superblock of a panel.
#[inline(always)]
pub(super) fn units<F: Format>(panel: &mut [u8]) -> impl Iterator<Item = (usize, &mut [u8])> {
    panel[F::HEAD..].chunks_exact_mut(F::UNIT).enumerate()
}

/// Deals the codes of a block of the file to its units, as row `row`.
#[inline(always)]
pub(super) fn deal(block: &[u8; 256], row: usize, codes: &mut [UnitCodes]) {
    for (block, codes) in block.as_chunks::<32>().0.iter().zip(codes) {
        codes[row] = *block;
    }
}

/// Makes scales and minima fit 16 bits, see the module; returns `d` and `-dmin` as the panel holds them.
#[inline(always)]
fn fit<F: Format>(d: f16, dmin: f16, scales: &mut [u8], mins: &[u8], largest_code: i32) -> (f16, f16) {
    let least = -dmin.to_f32();
    if !d.is_finite() || !dmin.is_finite() {
        return (f16::NAN, f16::NAN);
    }
    if least == 0.0 {
        return (d, f16::ZERO);
    }
    if d.to_f32() == 0.0 {
        scales.fill(0);
        return (dmin, -dmin);
    }
    let (mut d, mut halved) = (d.to_f32(), 0u32);
    loop {
        // As the kernels compute it.
        let ratio = least * min_units::<F>() / d;
        let fits = scales.iter().zip(mins).all(|(&scale, &min)| {
            let min = f32::from(min) * ratio;
            let most = min + ((largest_code * i32::from(half(scale, halved))) << F::SHIFT) as f32;
            min >= WEIGHT_MIN as f32 && min.max(most) <= (WEIGHT_MAX - 1) as f32
        });
        if fits {
            break;
        }
        (d, halved) = (2.0 * d, halved + 1);
    }
    scales.iter_mut().for_each(|scale| *scale = half(*scale, halved));
    (f16::from_f32(d), -dmin)
}

/// Units of minima in one of scales.
const fn min_units<F: Format>() -> f32 {
    (1u32 << F::SHIFT) as f32
}

/// `scale / 2^times`, rounded.
#[inline(always)]
fn half(scale: u8, times: u32) -> u8 {
    if times == 0 { scale } else { ((u32::from(scale) + (1 << (times - 1).min(30))) >> times.min(31)) as u8 }
}

/// Pairs of minima of a superblock from integers in units of `dmin`.
///
/// # Safety
/// As [`Format::minima`]; `head` holds `d` and `-dmin`.
#[inline(always)]
unsafe fn in_units_of_d<F: Format, S: Lanes>(head: *const u8, mins: [[S::I; 2]; 8], n: usize) -> [S::I; 8] {
    // SAFETY: the caller's.
    unsafe {
        let least = S::mul(S::load_f16(head.add(HALVES)), S::splat(const { min_units::<F>() }));
        let ratio = S::div(least, S::load_f16(head));
        let mut pairs = [S::splat_i(0); 8];
        for i in 0..n {
            let a = S::round_i(S::mul(S::to_f(mins[i][0]), ratio));
            let b = S::round_i(S::mul(S::to_f(mins[i][1]), ratio));
            pairs[i] = S::pair_i(a, b);
        }
        pairs
    }
}

/// 8 sub-blocks of scale and minimum: head `d`, `-dmin` and minimum bytes; units with codes and 16 scales.
macro_rules! affine_superblocks {
    ($name:ident, $module:ident, $codes:ty, $largest_code:expr, $shift:expr) => {
        #[doc = concat!("`", stringify!($module), "`: head `d`, `-dmin`, minima; units of codes and scale bytes.")]
        pub(super) struct $name;

        impl Format for $name {
            type Codes = $codes;
            const FILE_LEN: usize = $module::BLOCK_LEN;
            const FILE_BYTES: usize = $module::BLOCK_BYTES;
            const SCALES: usize = 16;
            const MINS: usize = 8;
            const MIN_BYTES: usize = HALVES + 8 * 16;
            const SHIFT: u32 = $shift;

            #[inline(always)]
            fn put(file: &[u8], row: usize, codes: &mut [UnitCodes], panel: &mut [u8]) {
                let block = block(file);
                let mut all = [0; 256];
                $module::codes(block, &mut all);
                deal(&all, row, codes);
                let (mut scales, mins) = $module::scales_mins(block);
                let (d, least) =
                    fit::<Self>($module::d(block), $module::dmin(block), &mut scales, &mins, $largest_code);
                put_f16(d, 0, row, panel);
                put_f16(least, HALVES, row, panel);
                for (u, unit) in units::<Self>(panel) {
                    unit[<$codes>::BYTES + row] = scales[u];
                }
                for (u, min) in mins.into_iter().enumerate() {
                    panel[2 * HALVES + 16 * u + row] = min;
                }
            }

            #[inline(always)]
            unsafe fn scale<S: Lanes>(p: *const u8, _: usize) -> S::I {
                // SAFETY: the caller's.
                unsafe { S::load_u8(p) }
            }
            #[inline(always)]
            unsafe fn minima<S: Lanes>(head: *const u8) -> [S::I; 8] {
                // SAFETY: the caller's.
                unsafe {
                    let mut mins = [[S::splat_i(0); 2]; 8];
                    for i in 0..4 {
                        let p = head.add(2 * HALVES + 32 * i);
                        mins[i] = [S::load_u8(p), S::load_u8(p.add(16))];
                    }
                    in_units_of_d::<Self, S>(head, mins, 4)
                }
            }
        }
    };
}

affine_superblocks!(Q4K, q4_k, Nibbles, 15, 4);
affine_superblocks!(Q5K, q5_k, FiveBits, 31, 3);

/// 16 sub-blocks of a signed scale: head `d`; units with codes and 2 × 16 scales.
macro_rules! scaled_superblocks {
    ($name:ident, $module:ident, $codes:ty, $offset:expr) => {
        #[doc = concat!("`", stringify!($module), "`: head `d`; units of codes and the scale bytes of both halves.")]
        pub(super) struct $name;

        impl Format for $name {
            type Codes = $codes;
            const OFFSET_SHIFT: Option<u32> = $offset;
            const FILE_LEN: usize = $module::BLOCK_LEN;
            const FILE_BYTES: usize = $module::BLOCK_BYTES;
            const PARTS: usize = 2;
            const SCALES: usize = 32;

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

impl Format for Q2K {
    type Codes = TwoBits;
    const FILE_LEN: usize = q2_k::BLOCK_LEN;
    const FILE_BYTES: usize = q2_k::BLOCK_BYTES;
    const PARTS: usize = 2;
    const SCALES: usize = 16;
    const MINS: usize = 16;
    const MIN_BYTES: usize = HALVES + 8 * 16;
    const SHIFT: u32 = 6;

    #[inline(always)]
    fn put(file: &[u8], row: usize, codes: &mut [UnitCodes], panel: &mut [u8]) {
        let block = block(file);
        let mut all = [0; 256];
        q2_k::codes(block, &mut all);
        deal(&all, row, codes);
        let (mut scales, mins) = q2_k::scales_mins(block);
        let (d, least) = fit::<Self>(q2_k::d(block), q2_k::dmin(block), &mut scales, &mins, 3);
        put_f16(d, 0, row, panel);
        put_f16(least, HALVES, row, panel);
        for (u, unit) in units::<Self>(panel) {
            unit[TwoBits::BYTES + row] = scales[2 * u] | scales[2 * u + 1] << 4;
        }
        for (i, pair) in mins.as_chunks::<2>().0.iter().enumerate() {
            panel[2 * HALVES + 16 * i + row] = pair[0] | pair[1] << 4;
        }
    }

    #[inline(always)]
    unsafe fn scale<S: Lanes>(p: *const u8, part: usize) -> S::I {
        // SAFETY: the caller's.
        unsafe { if part == 0 { S::load_low_nibbles(p) } else { S::load_high_nibbles(p) } }
    }
    #[inline(always)]
    unsafe fn minima<S: Lanes>(head: *const u8) -> [S::I; 8] {
        // SAFETY: the caller's.
        unsafe {
            let mut mins = [[S::splat_i(0); 2]; 8];
            for (i, mins) in mins.iter_mut().enumerate() {
                let p = head.add(2 * HALVES + 16 * i);
                *mins = [S::load_low_nibbles(p), S::load_high_nibbles(p)];
            }
            in_units_of_d::<Self, S>(head, mins, 8)
        }
    }
}

/// `iq4_xs`: head `d`; units of level indices and signed scale bytes.
pub(super) struct Iq4Xs;

impl Format for Iq4Xs {
    type Codes = Levels<Uneven>;
    const FILE_LEN: usize = iq4_xs::BLOCK_LEN;
    const FILE_BYTES: usize = iq4_xs::BLOCK_BYTES;
    const SCALES: usize = 16;

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

    #[inline(always)]
    unsafe fn scale<S: Lanes>(p: *const u8, _: usize) -> S::I {
        // SAFETY: the caller's.
        unsafe { S::load_i8(p) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fitted(d: f32, dmin: f32, scales: [u8; 3], mins: [u8; 3]) -> (f32, f32, [u8; 3]) {
        let mut scales = scales;
        let (d, least) = fit::<Q4K>(f16::from_f32(d), f16::from_f32(dmin), &mut scales, &mins, 15);
        (d.to_f32(), least.to_f32(), scales)
    }

    #[test]
    fn common_superblocks_are_left_alone() {
        assert_eq!(fitted(0.5, 4.0, [63, 20, 1], [63, 30, 0]), (0.5, -4.0, [63, 20, 1]));
        assert_eq!(fitted(0.5, 0.0, [63, 20, 1], [63, 30, 0]), (0.5, 0.0, [63, 20, 1]));
        assert_eq!(fitted(0.0, 0.0, [63, 20, 1], [63, 30, 0]), (0.0, 0.0, [63, 20, 1]));
    }

    #[test]
    fn constant_rows_keep_their_value() {
        // No scale, but minima: they are counted in units of their own.
        assert_eq!(fitted(0.0, 0.5, [63, 20, 1], [63, 30, 0]), (0.5, -0.5, [0, 0, 0]));
        // 63 * 16 * 128 is 2^17 - 2^11: two doublings. 3 / 4 and 1 / 4 are rounded up and down.
        assert_eq!(fitted(0.5, 64.0, [63, 3, 1], [63, 30, 0]), (2.0, -64.0, [16, 1, 0]));
        // A large sum is as bad as a large minimum: 15 * 63 * 16 is 15120.
        assert_eq!(fitted(0.5, -16.0, [63, 2, 1], [63, 30, 0]), (1.0, 16.0, [32, 1, 1]));
        assert_eq!(fitted(0.5, -8.0, [63, 2, 1], [63, 30, 0]), (0.5, 8.0, [63, 2, 1]));
    }

    #[test]
    fn what_is_not_finite_is_nan() {
        for (d, dmin) in [(f32::NAN, 1.0), (1.0, f32::NAN), (f32::INFINITY, 1.0), (1.0, f32::NEG_INFINITY)] {
            let (d, least, _) = fitted(d, dmin, [1; 3], [1; 3]);
            assert!(d.is_nan() && least.is_nan());
        }
    }
}

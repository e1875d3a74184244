//! Codes in groups, as Hugging Face files have them (AWQ, GPTQ, bitsandbytes, compressed-tensors), as panels hold them.
//!
//! A group is a multiple of 32 input features or a whole row, so that a unit has one scale. Like the scales of the
//! small blocks in `formats.rs`, those of a superblock become integers in units of a `d` that it shares:
//!
//! ```text
//! at most 4 bits about 8    w = scale * (code - 8)                        scale: 12 bits and a sign
//! at most 4 bits            w = scale * code - scale * zero               scale: so that w has 16 bits
//! 8 bits about 128          w = (scale * (code - 128) + 64) >> 7          scale: 15 bits, of 128 d
//! 8 bits                    the same, - (scale * (zero - 128) + 64) >> 7  scale: 14 bits
//! tables of 16 levels       w = (scale * level + 2^14) >> 15              scale: 15 bits, levels: 15 bits and a sign
//! ```
//!
//! 8-bit floats              w = (scale * level + 2^14) >> 15              scale: 15 bits, levels: 15 bits and a sign
//!
//! A code at its zero point is exactly 0. A weight is off by at most 2^-12 (4 bits), 2^-14 (8 bits, tables) or
//! 2^-13 (floats) of the largest that its superblock's scales allow. Where a file stores columns in another order than its
//! input features (act-order), so does the panel: activations are dealt in that order before they are quantized.
//!
//! Weights are taken out of the file as [`STAGED`] bytes for each unit of a row: 32 codes, an f32 scale, an i16 zero point.

use half::f16;
use pelton_backend::Weight;
use pelton_quant::{CodeBook, FP4_LEVELS, GroupedType, NF4_LEVELS, ZeroPoint};

use super::activations::UNIT;
use super::blocks::{Format, HALVES};
use super::codes::{Bytes, Codes, Nibbles, UnitCodes, nibbles, put_nibbles};
use super::formats::{at_least, put_f16, units_of};
use super::lanes::Lanes;

/// Bytes of a unit of a row on its way into a panel.
const STAGED: usize = UNIT + 4 + 2;

/// The largest code of the integer formats of nibbles.
const MOST_CODE: i32 = 15;

/// A unit of a row.
struct Staged<'a> {
    codes: &'a [u8; UNIT],
    scale: f32,
    zero: i32,
}

/// The units of a superblock.
#[inline(always)]
fn staged(file: &[u8]) -> impl Iterator<Item = Staged<'_>> + Clone {
    file.as_chunks::<STAGED>().0.iter().map(|unit| {
        let (codes, rest) = unit.split_first_chunk().expect("a unit's codes");
        let (scale, zero) = rest.split_first_chunk().expect("a scale");
        let zero = zero.first_chunk().expect("a zero point");
        Staged { codes, scale: f32::from_le_bytes(*scale), zero: i16::from_le_bytes(*zero).into() }
    })
}

/// The rows of a panel, unit by unit; returns the bytes of a row. Columns are as they are stored.
fn stage(weight: &Weight, panel: usize) -> (usize, Vec<u8>) {
    let grouped = weight.as_grouped().expect("a kernel of grouped weights");
    let (rows, cols) = (16 * panel..weight.rows().min(16 * panel + 16), weight.cols());
    let (group, n_groups) = (grouped.group(), grouped.n_groups());
    let mut codes = vec![0; rows.len() * cols];
    let (mut scales, mut zeros) = (vec![0.0; rows.len() * n_groups], vec![0; rows.len() * n_groups]);
    grouped.codes(rows.clone(), &mut codes);
    grouped.scales(rows.clone(), &mut scales);
    grouped.zeros(rows.clone(), &mut zeros);
    let mut out = Vec::with_capacity(codes.len() / UNIT * STAGED);
    for (row, codes) in codes.chunks_exact(cols).enumerate() {
        for (u, codes) in codes.chunks_exact(UNIT).enumerate() {
            let at = row * n_groups + u * UNIT / group;
            out.extend_from_slice(codes);
            out.extend_from_slice(&scales[at].to_le_bytes());
            out.extend_from_slice(&zeros[at].to_le_bytes());
        }
    }
    (cols / UNIT * STAGED, out)
}

/// Packs rows `16 i..` as panel `i`, which is all zero before.
pub(super) fn pack<F: Format>(weight: &Weight, panel: usize, out: &mut [u8]) {
    let (row_bytes, file) = stage(weight, panel);
    super::kernel::fill_panel::<F>(&file, row_bytes, out);
}

/// Whether panels of these formats can hold a weight: in whole units, each in one group.
pub(super) fn fits(weight: &Weight) -> bool {
    let whole = |grouped: &pelton_quant::Grouped| grouped.group().is_multiple_of(UNIT) || grouped.n_groups() == 1;
    weight.cols().is_multiple_of(UNIT) && weight.as_grouped().is_some_and(whole)
}

/// Which format holds a type.
pub(super) enum Kind {
    Int4,
    AffineInt4,
    Int8,
    AffineInt8,
    Nf4,
    Fp4,
    E4m3,
}

/// The format of a type; `None` where there is none.
pub(super) fn kind_of(dtype: GroupedType) -> Option<Kind> {
    match (dtype.book, dtype.zero) {
        (CodeBook::Int { bits: 4 }, ZeroPoint::At(8)) => Some(Kind::Int4),
        // Zero points far from all codes would leave scales few bits.
        (CodeBook::Int { bits: 1..=4 }, ZeroPoint::At(0..=16) | ZeroPoint::PerGroup) => Some(Kind::AffineInt4),
        (CodeBook::Int { bits: 8 }, ZeroPoint::At(128)) => Some(Kind::Int8),
        (CodeBook::Int { bits: 5..=8 }, ZeroPoint::At(0..=256) | ZeroPoint::PerGroup) => Some(Kind::AffineInt8),
        (CodeBook::Nf4, _) => Some(Kind::Nf4),
        (CodeBook::Fp4, _) => Some(Kind::Fp4),
        (CodeBook::E4m3, _) => Some(Kind::E4m3),
        _ => None,
    }
}

/// Where the scales of unit `u` are.
const fn scales_at<F: Format>(u: usize) -> usize {
    F::HEAD + u * F::UNIT + F::Codes::BYTES
}

/// Puts an integer into lane `row` of 16 at `at`.
#[inline(always)]
fn put_i16(v: i32, at: usize, row: usize, panel: &mut [u8]) {
    panel[at + 2 * row..][..2].copy_from_slice(&(v as i16).to_le_bytes());
}

/// The largest of `of` over the units; NaN where one is.
#[inline(always)]
fn largest<'a>(units: impl Iterator<Item = Staged<'a>>, of: impl Fn(&Staged<'_>) -> f32) -> f32 {
    units.map(|unit| of(&unit).abs()).fold(0.0, |a, b| if b > a || b.is_nan() { b } else { a })
}

/// A `d` of which `largest` is at most `most`.
#[inline(always)]
fn unit_for(largest: f32, most: f32) -> f16 {
    if largest.is_finite() { at_least(largest / most) } else { f16::NAN }
}

/// What a scale is in units of `d`: 0 where there is no `d`.
#[inline(always)]
fn in_units(scale: f32, d: f16) -> i32 {
    let units = (scale / units_of(d)).round_ties_even();
    if units.is_finite() { units as i32 } else { 0 }
}

/// Implements what scales of i16 behind a unit's codes have in common.
macro_rules! i16_scales {
    () => {
        const FILE_LEN: usize = UNIT;
        const FILE_BYTES: usize = STAGED;
        const SCALES: usize = HALVES;

        #[inline(always)]
        unsafe fn scale<S: Lanes>(p: *const u8, _: usize) -> S::I {
            // SAFETY: the caller's.
            unsafe { S::load_i16(p) }
        }
    };
}

/// Implements pairs of i16 minima behind `d`.
macro_rules! i16_minima {
    () => {
        const MINS: usize = 8;
        const MIN_BYTES: usize = 8 * HALVES;

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
    };
}

/// Puts the minimum of unit `u`.
#[inline(always)]
fn put_min(v: i32, u: usize, row: usize, panel: &mut [u8]) {
    put_i16(v, HALVES + 2 * HALVES * (u / 2), 2 * row + u % 2, panel);
}

/// 4 bits about 8: head `d`; units of codes and i16 scales.
pub(super) struct Int4;

impl Format for Int4 {
    type Codes = Nibbles;
    const OFFSET_SHIFT: Option<u32> = Some(3);
    i16_scales!();

    #[inline(always)]
    fn put(file: &[u8], row: usize, codes: &mut [UnitCodes], panel: &mut [u8]) {
        // 8 * 4079 is within WEIGHT_MAX.
        let d = unit_for(largest(staged(file), |unit| unit.scale), 4079.0);
        put_f16(d, 0, row, panel);
        for (u, (unit, codes)) in staged(file).zip(codes).enumerate() {
            codes[row] = *unit.codes;
            put_i16(in_units(unit.scale, d), scales_at::<Self>(u), row, panel);
        }
    }
}

/// At most 4 bits with a zero point: head `d`, pairs of minima; units of codes and scales, all i16.
pub(super) struct AffineInt4;

impl Format for AffineInt4 {
    type Codes = Nibbles;
    i16_scales!();
    i16_minima!();

    #[inline(always)]
    fn put(file: &[u8], row: usize, codes: &mut [UnitCodes], panel: &mut [u8]) {
        // The product with a code may not fit 16 bits; the sum with the minimum does, and all that is done wraps around.
        let reach = |unit: &Staged<'_>| unit.zero.abs().max((MOST_CODE - unit.zero).abs());
        let d = unit_for(largest(staged(file), |unit| unit.scale * reach(unit) as f32), 32_600.0);
        put_f16(d, 0, row, panel);
        for (u, (unit, codes)) in staged(file).zip(codes).enumerate() {
            codes[row] = *unit.codes;
            // Rounding up must not carry a product past 16 bits.
            let most = 32_639 / reach(&unit);
            let scale = in_units(unit.scale, d).clamp(-most, most);
            put_i16(scale, scales_at::<Self>(u), row, panel);
            put_min(-scale * unit.zero, u, row, panel);
        }
    }
}

/// 8 bits as signed bytes.
#[inline(always)]
fn signed(codes: &[u8; UNIT]) -> [u8; UNIT] {
    codes.map(|code| code ^ 0x80)
}

/// 8 bits about 128: head `d`; units of signed codes and i16 scales.
pub(super) struct Int8;

impl Format for Int8 {
    type Codes = Bytes;
    const FINE: bool = true;
    i16_scales!();

    #[inline(always)]
    fn put(file: &[u8], row: usize, codes: &mut [UnitCodes], panel: &mut [u8]) {
        let d = unit_for(128.0 * largest(staged(file), |unit| unit.scale), 32_639.0);
        put_f16(d, 0, row, panel);
        for (u, (unit, codes)) in staged(file).zip(codes).enumerate() {
            codes[row] = signed(unit.codes);
            put_i16(in_units(128.0 * unit.scale, d), scales_at::<Self>(u), row, panel);
        }
    }
}

/// 5 to 8 bits with a zero point: head `d`, pairs of minima; units of signed codes and scales, all i16.
pub(super) struct AffineInt8;

impl Format for AffineInt8 {
    type Codes = Bytes;
    const FINE: bool = true;
    i16_scales!();
    i16_minima!();

    #[inline(always)]
    fn put(file: &[u8], row: usize, codes: &mut [UnitCodes], panel: &mut [u8]) {
        // Signed codes less signed zero points, in parts of 128.
        let reach = |unit: &Staged<'_>| unit.zero.abs().max((255 - unit.zero).abs());
        let d = unit_for(largest(staged(file), |unit| unit.scale * reach(unit) as f32), 32_600.0);
        put_f16(d, 0, row, panel);
        for (u, (unit, codes)) in staged(file).zip(codes).enumerate() {
            codes[row] = signed(unit.codes);
            let most = 128 * 32_630 / reach(&unit);
            let scale = in_units(128.0 * unit.scale, d).clamp(-most, most).clamp(-32_639, 32_639);
            put_i16(scale, scales_at::<Self>(u), row, panel);
            put_min(-((scale * (unit.zero - 128) + 64) >> 7), u, row, panel);
        }
    }
}

/// A table of 16 levels of 16 bits, of which 1 is 32767.
pub(super) trait WideTable: 'static {
    /// The levels.
    const LEVELS: [f32; 16];
    /// The lower bytes of the levels.
    const LOWER: [u8; 16] = bytes_of(&Self::LEVELS, 0);
    /// The upper bytes of the levels.
    const UPPER: [u8; 16] = bytes_of(&Self::LEVELS, 1);
}

const fn bytes_of(levels: &[f32; 16], byte: usize) -> [u8; 16] {
    let mut out = [0; 16];
    let mut i = 0;
    while i < 16 {
        assert!(levels[i] >= -1.0 && levels[i] <= 1.0);
        let half = if levels[i] < 0.0 { -0.5 } else { 0.5 };
        out[i] = ((levels[i] * 32_767.0 + half) as i16).to_le_bytes()[byte];
        i += 1;
    }
    out
}

/// NF4 of bitsandbytes.
pub(super) struct NormalFloat;

impl WideTable for NormalFloat {
    const LEVELS: [f32; 16] = NF4_LEVELS;
}

/// FP4 of bitsandbytes.
pub(super) struct SmallFloat;

impl WideTable for SmallFloat {
    const LEVELS: [f32; 16] = FP4_LEVELS;
}

/// 4 bits that select a level of `T`: a nibble plane.
pub(super) struct WideLevels<T>(std::marker::PhantomData<T>);

impl<T: WideTable> Codes for WideLevels<T> {
    const BYTES: usize = Nibbles::BYTES;
    const TWO_BYTES: bool = true;
    #[inline(always)]
    unsafe fn pair<S: Lanes>(p: *const u8, t: usize) -> [S::B; 2] {
        // SAFETY: the caller's.
        unsafe {
            let [a, b] = nibbles::<S>(p, t);
            [S::look_up(&T::LOWER, a), S::look_up(&T::LOWER, b)]
        }
    }
    #[inline(always)]
    unsafe fn upper<S: Lanes>(p: *const u8, t: usize) -> [S::B; 2] {
        // SAFETY: the caller's.
        unsafe {
            let [a, b] = nibbles::<S>(p, t);
            [S::look_up(&T::UPPER, a), S::look_up(&T::UPPER, b)]
        }
    }
    fn put(codes: &UnitCodes, out: &mut [u8]) {
        put_nibbles(codes, out);
    }
}

/// A table of 16 levels: head `d`; units of indices and i16 scales.
pub(super) struct Table<T>(std::marker::PhantomData<T>);

impl<T: WideTable> Format for Table<T> {
    type Codes = WideLevels<T>;
    const FINE: bool = true;
    i16_scales!();

    #[inline(always)]
    fn put(file: &[u8], row: usize, codes: &mut [UnitCodes], panel: &mut [u8]) {
        // A level of 1 is one short of 2^15.
        let whole = 32_768.0 / 32_767.0;
        let d = unit_for(whole * largest(staged(file), |unit| unit.scale), 32_639.0);
        put_f16(d, 0, row, panel);
        for (u, (unit, codes)) in staged(file).zip(codes).enumerate() {
            codes[row] = unit.codes.map(|code| code & 15);
            put_i16(in_units(whole * unit.scale, d), scales_at::<Self>(u), row, panel);
        }
    }
}

/// Whole bytes that are e4m3 numbers.
pub(super) struct SmallFloats;

impl Codes for SmallFloats {
    const BYTES: usize = Bytes::BYTES;
    const E4M3: bool = true;
    #[inline(always)]
    unsafe fn pair<S: Lanes>(p: *const u8, t: usize) -> [S::B; 2] {
        // SAFETY: the caller's.
        unsafe { Bytes::pair::<S>(p, t) }
    }
    fn put(codes: &UnitCodes, out: &mut [u8]) {
        Bytes::put(codes, out);
    }
}

/// How many times the numbers of a unit may be doubled.
#[inline(always)]
fn doublings(codes: &[u8; UNIT]) -> u8 {
    15 - codes.iter().map(|code| code >> 3 & 15).fold(1, u8::max)
}

/// An e4m3 number times `2^n`, exact, as long as its exponent stays below 16. (All ones are the number 480 here.)
#[inline(always)]
fn doubled(code: u8, n: u8) -> u8 {
    let (sign, e, m) = (code & 0x80, code >> 3 & 15, u32::from(code & 7));
    if e > 0 {
        return code + (n << 3);
    }
    // In units of the least number.
    let v = m << n;
    let e = v.checked_ilog2().unwrap_or(0).saturating_sub(2);
    sign | (e << 3) as u8 | (if e > 0 { v >> (e - 1) & 7 } else { v }) as u8
}

/// FP8, e4m3: head `d`; units of numbers, doubled until the largest has the largest exponent, and i16 scales.
pub(super) struct E4m3;

impl Format for E4m3 {
    type Codes = SmallFloats;
    const FINE: bool = true;
    i16_scales!();

    #[inline(always)]
    fn put(file: &[u8], row: usize, codes: &mut [UnitCodes], panel: &mut [u8]) {
        // Levels are 64 times the number, and 2^15 of the scale is 1.
        let scale = |unit: &Staged<'_>| 512.0 * unit.scale / f32::from(1u16 << doublings(unit.codes));
        let is_odd = staged(file).any(|unit| unit.codes.iter().any(|code| code & 0x7f == 0x7f));
        let d = unit_for(if is_odd { f32::NAN } else { largest(staged(file), scale) }, 32_639.0);
        put_f16(d, 0, row, panel);
        for (u, (unit, codes)) in staged(file).zip(codes).enumerate() {
            let n = doublings(unit.codes);
            codes[row] = unit.codes.map(|code| doubled(code, n));
            put_i16(in_units(scale(&unit), d), scales_at::<Self>(u), row, panel);
        }
    }
}

#[cfg(test)]
mod tests {
    use pelton_quant::e4m3_to_f32;

    use super::*;

    #[test]
    fn doubling_is_exact() {
        for code in (0..=255).filter(|code| code & 0x7f != 0x7f) {
            for n in 0..=doublings(&[code; UNIT]) {
                let (got, want) = (doubled(code, n), e4m3_to_f32(code) * f32::from(1u16 << n));
                let value = if got & 0x7f == 0x7f { 480f32.copysign(want) } else { e4m3_to_f32(got) };
                assert_eq!(value, want, "{code:#x} doubled {n} times");
            }
        }
    }

    #[test]
    fn the_largest_number_fills_the_levels() {
        assert_eq!([doublings(&[0; UNIT]), doublings(&[0x07; UNIT]), doublings(&[0xfe; UNIT])], [14, 14, 0]);
        assert_eq!(doubled(0x38, doublings(&[0x38; UNIT])) >> 3, 15);
    }
}

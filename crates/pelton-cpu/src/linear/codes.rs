//! How the integer codes of 32 input features × 16 output features lie in a panel.
//!
//! A *unit* is 32 input features of the panel's 16 rows. Its codes are 8 *dwords* a row (4 codes of consecutive
//! features each); dword `i` of all 16 rows is one 64-byte vector. Dwords are stored in *planes* that keep the bits
//! of the file's format, so that a unit is as large as in the file:
//!
//! ```text
//! byte plane      8 vectors   vector i:  dword i
//! nibble plane    4 vectors   vector t:  low nibbles: dword 2t, high nibbles: dword 2t + 1
//! two-bit plane   2 vectors   vector u:  bits 2f and 2f + 1 of each byte: dword 4u + f
//! one-bit plane   1 vector               bit i of each byte: dword i
//!
//! vector:   row 0: c0 c1 c2 c3 │ row 1: c0 c1 c2 c3 │ … │ row 15: c0 c1 c2 c3
//! ```
//!
//! Invariant: [`Codes::pair`] of `t` returns dwords `2t` and `2t + 1` as [`Codes::put`] was given them.

use super::lanes::Lanes;

/// A way to store the codes of a unit.
pub(super) trait Codes: 'static {
    /// Bytes of a unit.
    const BYTES: usize;
    /// Whether codes use all 8 bits: they stand for themselves minus 128, see [`Lanes::dot_wide`].
    const WIDE: bool = false;

    /// Whether codes have 16 bits: the lower ones in [`Codes::pair`], the others in [`Codes::upper`].
    const TWO_BYTES: bool = false;

    /// Whether codes are 8-bit floats, see [`Lanes::mul_round_e4m3`].
    const E4M3: bool = false;

    /// Dwords `2t` and `2t + 1`, one byte a code.
    ///
    /// # Safety
    /// As [`Lanes`]; `p` points to `BYTES` readable bytes, `t` is below 4.
    unsafe fn pair<S: Lanes>(p: *const u8, t: usize) -> [S::B; 2];

    /// The upper bytes of dwords `2t` and `2t + 1`, where there are [`Codes::TWO_BYTES`].
    ///
    /// # Safety
    /// As [`Codes::pair`].
    #[inline(always)]
    unsafe fn upper<S: Lanes>(p: *const u8, t: usize) -> [S::B; 2] {
        // SAFETY: the caller's.
        unsafe { Self::pair::<S>(p, t) }
    }

    /// Stores the codes of a unit in its first `BYTES` bytes.
    fn put(codes: &UnitCodes, out: &mut [u8]);
}

/// The codes of a unit, `(row, input feature)`.
pub(super) type UnitCodes = [[u8; 32]; 16];

/// Dword `i` of a row's codes.
#[inline(always)]
fn dword(codes: &[u8; 32], i: usize) -> u32 {
    u32::from_le_bytes([codes[4 * i], codes[4 * i + 1], codes[4 * i + 2], codes[4 * i + 3]])
}

#[inline(always)]
fn put_dword(out: &mut [[u8; 4]; 16], row: usize, dword: u32) {
    out[row] = dword.to_le_bytes();
}

/// The first `N` vectors of `out`, each with its 16 dwords.
#[inline(always)]
fn vectors<const N: usize>(out: &mut [u8]) -> &mut [[[u8; 4]; 16]; N] {
    let (dwords, _) = out.as_chunks_mut::<4>();
    let (vectors, _) = dwords.as_chunks_mut::<16>();
    vectors.first_chunk_mut().expect("a plane of as many vectors")
}

const LOW_NIBBLES: u32 = 0x0f0f_0f0f;

pub(super) fn put_nibbles(codes: &UnitCodes, out: &mut [u8]) {
    for (t, out) in vectors::<4>(out).iter_mut().enumerate() {
        for (row, codes) in codes.iter().enumerate() {
            let (low, high) = (dword(codes, 2 * t) & LOW_NIBBLES, dword(codes, 2 * t + 1) & LOW_NIBBLES);
            put_dword(out, row, low | high << 4);
        }
    }
}

/// Stores bits `BIT` and `BIT + 1` of each code.
fn put_two_bits<const BIT: u32>(codes: &UnitCodes, out: &mut [u8]) {
    for (u, out) in vectors::<2>(out).iter_mut().enumerate() {
        for (row, codes) in codes.iter().enumerate() {
            let mut bits = 0;
            for f in 0..4 {
                bits |= (dword(codes, 4 * u + f) >> BIT & 0x0303_0303) << (2 * f);
            }
            put_dword(out, row, bits);
        }
    }
}

/// Stores bit `BIT` of each code.
fn put_one_bit<const BIT: u32>(codes: &UnitCodes, out: &mut [u8]) {
    let [out] = vectors::<1>(out);
    for (row, codes) in codes.iter().enumerate() {
        let mut bits = 0;
        for i in 0..8 {
            bits |= (dword(codes, i) >> BIT & 0x0101_0101) << i;
        }
        put_dword(out, row, bits);
    }
}

/// # Safety
/// As [`Codes::pair`].
#[inline(always)]
pub(super) unsafe fn nibbles<S: Lanes>(p: *const u8, t: usize) -> [S::B; 2] {
    // SAFETY: the caller's.
    unsafe {
        let both = S::codes(p.add(64 * t));
        [S::mask(both, 15), S::mask(S::shr::<4>(both), 15)]
    }
}

/// Bits 2f and 2f + 1 of each byte, moved to bit `TO` (0 or 4).
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn two_bits<S: Lanes, const TO: u32>(v: S::B, f: usize) -> S::B {
    // SAFETY: the caller's.
    unsafe {
        let moved = match (TO, f) {
            (0, 0) | (4, 2) => v,
            (0, 1) | (4, 3) => S::shr::<2>(v),
            (0, 2) => S::shr::<4>(v),
            (0, _) => S::shr::<6>(v),
            (_, 0) => S::shl::<4>(v),
            (_, _) => S::shl::<2>(v),
        };
        S::mask(moved, 3 << TO)
    }
}

/// Bit `i` of each byte, moved to bit `TO` (2 or 4).
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn one_bit<S: Lanes, const TO: u32>(v: S::B, i: usize) -> S::B {
    // SAFETY: the caller's.
    unsafe {
        let moved = match TO as i32 - i as i32 {
            4 => S::shl::<4>(v),
            3 => S::shl::<3>(v),
            2 => S::shl::<2>(v),
            1 => S::shl::<1>(v),
            0 => v,
            -1 => S::shr::<1>(v),
            -2 => S::shr::<2>(v),
            -3 => S::shr::<3>(v),
            -4 => S::shr::<4>(v),
            _ => S::shr::<5>(v),
        };
        S::mask(moved, 1 << TO)
    }
}

/// Whole bytes.
pub(super) struct Bytes;

impl Codes for Bytes {
    const BYTES: usize = 512;
    #[inline(always)]
    unsafe fn pair<S: Lanes>(p: *const u8, t: usize) -> [S::B; 2] {
        // SAFETY: the caller's.
        unsafe { [S::codes(p.add(128 * t)), S::codes(p.add(128 * t + 64))] }
    }
    fn put(codes: &UnitCodes, out: &mut [u8]) {
        for (i, out) in vectors::<8>(out).iter_mut().enumerate() {
            for (row, codes) in codes.iter().enumerate() {
                put_dword(out, row, dword(codes, i));
            }
        }
    }
}

/// 4 bits: a nibble plane.
pub(super) struct Nibbles;

impl Codes for Nibbles {
    const BYTES: usize = 256;
    #[inline(always)]
    unsafe fn pair<S: Lanes>(p: *const u8, t: usize) -> [S::B; 2] {
        // SAFETY: the caller's.
        unsafe { nibbles::<S>(p, t) }
    }
    fn put(codes: &UnitCodes, out: &mut [u8]) {
        put_nibbles(codes, out);
    }
}

/// A table of 16 levels that a nibble selects.
pub(super) trait Table: 'static {
    /// The levels, made unsigned by adding an offset.
    const LEVELS: [u8; 16];
    /// As [`Codes::WIDE`].
    const WIDE: bool;
}

/// 4 bits that select a level of `T`: a nibble plane.
pub(super) struct Levels<T>(std::marker::PhantomData<T>);

impl<T: Table> Codes for Levels<T> {
    const BYTES: usize = 256;
    const WIDE: bool = T::WIDE;
    #[inline(always)]
    unsafe fn pair<S: Lanes>(p: *const u8, t: usize) -> [S::B; 2] {
        // SAFETY: the caller's.
        unsafe {
            let [a, b] = nibbles::<S>(p, t);
            [S::look_up(&T::LEVELS, a), S::look_up(&T::LEVELS, b)]
        }
    }
    fn put(codes: &UnitCodes, out: &mut [u8]) {
        put_nibbles(codes, out);
    }
}

/// 5 bits: a nibble plane and a one-bit plane.
pub(super) struct FiveBits;

impl Codes for FiveBits {
    const BYTES: usize = 256 + 64;
    #[inline(always)]
    unsafe fn pair<S: Lanes>(p: *const u8, t: usize) -> [S::B; 2] {
        // SAFETY: the caller's.
        unsafe {
            let [a, b] = nibbles::<S>(p, t);
            let fifth = S::codes(p.add(256));
            [S::or(a, one_bit::<S, 4>(fifth, 2 * t)), S::or(b, one_bit::<S, 4>(fifth, 2 * t + 1))]
        }
    }
    fn put(codes: &UnitCodes, out: &mut [u8]) {
        put_nibbles(codes, out);
        put_one_bit::<4>(codes, &mut out[256..]);
    }
}

/// 6 bits: a nibble plane and a two-bit plane.
pub(super) struct SixBits;

impl Codes for SixBits {
    const BYTES: usize = 256 + 128;
    #[inline(always)]
    unsafe fn pair<S: Lanes>(p: *const u8, t: usize) -> [S::B; 2] {
        // SAFETY: the caller's.
        unsafe {
            let [a, b] = nibbles::<S>(p, t);
            let top = S::codes(p.add(256 + 64 * (t / 2)));
            let f = 2 * (t % 2);
            [S::or(a, two_bits::<S, 4>(top, f)), S::or(b, two_bits::<S, 4>(top, f + 1))]
        }
    }
    fn put(codes: &UnitCodes, out: &mut [u8]) {
        put_nibbles(codes, out);
        put_two_bits::<4>(codes, &mut out[256..]);
    }
}

/// 2 bits: a two-bit plane.
pub(super) struct TwoBits;

impl Codes for TwoBits {
    const BYTES: usize = 128;
    #[inline(always)]
    unsafe fn pair<S: Lanes>(p: *const u8, t: usize) -> [S::B; 2] {
        // SAFETY: the caller's.
        unsafe {
            let all = S::codes(p.add(64 * (t / 2)));
            let f = 2 * (t % 2);
            [two_bits::<S, 0>(all, f), two_bits::<S, 0>(all, f + 1)]
        }
    }
    fn put(codes: &UnitCodes, out: &mut [u8]) {
        put_two_bits::<0>(codes, out);
    }
}

/// 3 bits: a two-bit plane and a one-bit plane.
pub(super) struct ThreeBits;

impl Codes for ThreeBits {
    const BYTES: usize = 128 + 64;
    #[inline(always)]
    unsafe fn pair<S: Lanes>(p: *const u8, t: usize) -> [S::B; 2] {
        // SAFETY: the caller's.
        unsafe {
            let [a, b] = TwoBits::pair::<S>(p, t);
            let third = S::codes(p.add(128));
            [S::or(a, one_bit::<S, 2>(third, 2 * t)), S::or(b, one_bit::<S, 2>(third, 2 * t + 1))]
        }
    }
    fn put(codes: &UnitCodes, out: &mut [u8]) {
        put_two_bits::<0>(codes, out);
        put_one_bit::<2>(codes, &mut out[128..]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::lanes::Scalar;
    use super::*;

    /// Every code of every row comes back from where it was put.
    fn round_trip<C: Codes>(bits: u32) {
        let mut unit = vec![0; C::BYTES];
        let code = |row: usize, k: usize| ((row * 37 + k * 11 + row * k) % (1 << bits)) as u8;
        C::put(&std::array::from_fn(|row| std::array::from_fn(|k| code(row, k))), &mut unit);
        for t in 0..4 {
            // SAFETY: `unit` has the format's bytes; plain arrays need no instructions.
            let pair = unsafe { C::pair::<Scalar>(unit.as_ptr(), t) };
            for (half, lanes) in pair.iter().enumerate() {
                for (row, lane) in lanes.iter().enumerate() {
                    let want = std::array::from_fn(|j| code(row, 8 * t + 4 * half + j));
                    assert_eq!(lane.to_le_bytes(), want, "dword {} of row {row}", 2 * t + half);
                }
            }
        }
    }

    #[test]
    fn planes_keep_every_code() {
        round_trip::<Bytes>(8);
        round_trip::<Nibbles>(4);
        round_trip::<FiveBits>(5);
        round_trip::<SixBits>(6);
        round_trip::<TwoBits>(2);
        round_trip::<ThreeBits>(3);
    }
}

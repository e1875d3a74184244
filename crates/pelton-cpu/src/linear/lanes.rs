//! The vector vocabulary of the linear kernels: 16 output features side by side, one in each 32-bit lane.
//!
//! [`Lanes`] is implemented by plain arrays ([`Scalar`]), by pairs of 256-bit registers and by 512-bit registers
//! (`lanes_x86.rs`). Kernels are written once over it; `#[inline(always)]` makes each of them the code of the
//! instruction set whose entry function calls it.
//!
//! Invariant: every method is exact or rounds once, the same way in every implementation. That is why all
//! instruction sets give the same bits. Methods that read memory read what their comment says, unaligned.

use half::{bf16, f16};

/// 16 lanes. All methods are unsafe: the implementation's instructions must exist, which the kernel tables
/// guarantee by asking for the token of [`crate::Isa`]; pointers must be readable for the stated bytes.
pub(super) trait Lanes: 'static {
    /// 16 i32.
    type I: Copy;
    /// 16 f32.
    type F: Copy;
    /// 16 lanes of 4 unsigned bytes: codes of 4 consecutive input features of 16 output features.
    type B: Copy;
    /// Activation rows of the largest register tile: 1, 2, 4 or 8.
    const MAX_ROWS: usize;
    /// Whether there is a tile of 2 rows.
    const HAS_2: bool = Self::MAX_ROWS >= 2;
    /// Whether there is a tile of 4 rows.
    const HAS_4: bool = Self::MAX_ROWS >= 4;
    /// Whether there is a tile of 8 rows.
    const HAS_8: bool = Self::MAX_ROWS >= 8;
    /// Whether a tile of a float format may have 8 to 16 accumulators, or just 4.
    const WIDE_TILES: bool;
    /// Whether [`Lanes::dot_wide`] multiplies by the stored byte (code + 128) or by the code itself.
    const WIDE_IS_BIASED: bool;
    /// Whether two rows cost less by [`Lanes::dot_two_rows`] than one after the other; not without
    /// [`Lanes::WIDE_IS_BIASED`].
    const TWO_ROWS: bool = false;
    /// Whether [`Lanes::digits`] are multiplied faster than pairs of i16.
    const HAS_DIGITS: bool = false;

    unsafe fn splat(v: f32) -> Self::F;
    unsafe fn splat_i(v: i32) -> Self::I;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Nearest float.
    unsafe fn to_f(v: Self::I) -> Self::F;
    /// Nearest integer, ties to even; `i32::MIN` where there is none.
    unsafe fn round_i(v: Self::F) -> Self::I;
    /// The sum, wrapping around.
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I;
    /// `acc + a * b`, wrapping around.
    unsafe fn mul_add_i(a: Self::I, b: Self::I, acc: Self::I) -> Self::I;
    /// `v * 2^n`, wrapping around; `n` is a constant below 32.
    unsafe fn shift_left(v: Self::I, n: u32) -> Self::I;
    /// `2^e` of each lane in 0..=31, 0 of others.
    unsafe fn power(e: Self::I) -> Self::I;
    /// The low halves of two numbers as a pair of i16, that of `a` first.
    unsafe fn pair_i(a: Self::I, b: Self::I) -> Self::I;
    /// `(w * scale + 64) >> 7` of each signed byte of `w`: bytes 0 and 2 as a pair of i16, then 1 and 3; `scale` is the
    /// lane's i16, twice.
    unsafe fn mul_round(w: Self::B, scale: Self::I) -> [Self::I; 2];
    /// `(w * scale + 2^14) >> 15` of each i16 of `lower` and `upper` bytes: bytes 0 and 2 as a pair of i16, then 1 and 3;
    /// `scale` is the lane's i16, twice.
    unsafe fn mul_round_wide(lower: Self::B, upper: Self::B, scale: Self::I) -> [Self::I; 2];
    /// `(level * scale + 2^14) >> 15` of each e4m3 byte of `w`: bytes 0 and 2 as a pair of i16, then 1 and 3; `scale` is the
    /// lane's i16, twice. A level is 64 times the number, rounded: with its exponent `e`, at least 1, and its mantissa `m`,
    /// 8 of it the implied bit, `(m * 2^11 * -2^e + 2^14) >> 15` where it is negative, minus that otherwise.
    unsafe fn mul_round_e4m3(w: Self::B, scale: Self::I) -> [Self::I; 2];
    /// `acc + w[0] * x[0] + w[1] * x[1]` in each lane, wrapping around; `w` is pairs of i16 and `x` points to one pair.
    unsafe fn dot_pair(acc: Self::I, w: Self::I, x: *const i16) -> Self::I;

    /// 16 f32, 64 bytes.
    unsafe fn load(p: *const u8) -> Self::F;
    /// 16 IEEE halves, 32 bytes.
    unsafe fn load_f16(p: *const u8) -> Self::F;
    /// 16 bfloat16, 32 bytes.
    unsafe fn load_bf16(p: *const u8) -> Self::F;
    /// 16 bytes as integers.
    unsafe fn load_u8(p: *const u8) -> Self::I;
    /// 16 signed bytes as integers.
    unsafe fn load_i8(p: *const u8) -> Self::I;
    /// The low nibbles of 16 bytes as integers.
    unsafe fn load_low_nibbles(p: *const u8) -> Self::I;
    /// The high nibbles of 16 bytes as integers.
    unsafe fn load_high_nibbles(p: *const u8) -> Self::I;
    /// 16 i16 (32 bytes) as integers.
    unsafe fn load_i16(p: *const u8) -> Self::I;
    /// 16 pairs of i16, 64 bytes.
    unsafe fn load_pairs(p: *const u8) -> Self::I;
    /// `2^(e - 128)` of 16 bytes e, denormals included.
    unsafe fn load_half_powers(p: *const u8) -> Self::F;
    /// 16 f32 to 64 bytes.
    unsafe fn store(v: Self::F, p: *mut f32);

    /// 64 bytes.
    unsafe fn codes(p: *const u8) -> Self::B;
    /// Shifts left by `N`, in units of at least a byte: bits that cross into a neighbour must be masked away.
    unsafe fn shl<const N: u32>(v: Self::B) -> Self::B;
    /// Shifts right by `N`, as [`Lanes::shl`].
    unsafe fn shr<const N: u32>(v: Self::B) -> Self::B;
    /// Each byte and `mask`.
    unsafe fn mask(v: Self::B, mask: u8) -> Self::B;
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B;
    /// `table[byte]` of each byte, which is below 16.
    unsafe fn look_up(table: &[u8; 16], v: Self::B) -> Self::B;
    /// `acc + sum of w[j] * x[j]` in each lane, j = 0..4, exact. `x` points to 4 signed bytes in -127..=127; the
    /// bytes of `w` are at most 127.
    unsafe fn dot(acc: Self::I, w: Self::B, x: *const i8) -> Self::I;
    /// As [`Lanes::dot`], with all 8 bits of `w` in use: a byte stands for itself minus 128 (see
    /// [`Lanes::WIDE_IS_BIASED`]).
    unsafe fn dot_wide(acc: Self::I, w: Self::B, x: *const i8) -> Self::I;
    /// Asks for the cache line at `p`, which need not be readable.
    unsafe fn prefetch(p: *const u8);

    /// Sums of two rows that begin with `first` in all lanes, in an order of their own: for [`Lanes::dot_two_rows`].
    unsafe fn two_rows(_first: [i32; 2]) -> [Self::I; 2] {
        unreachable!("not without TWO_ROWS")
    }
    /// Adds for each row the products of its first 4 signed bytes with the stored bytes of `w[0]`, and of the next 4 with
    /// those of `w[1]`, exact.
    unsafe fn dot_two_rows(_sums: [Self::I; 2], _w: [Self::B; 2], _x: [*const i8; 2]) -> [Self::I; 2] {
        unreachable!("not without TWO_ROWS")
    }
    /// The sums of [`Lanes::dot_two_rows`] lane by lane, those of the first row first.
    unsafe fn apart(_sums: [Self::I; 2]) -> [Self::I; 2] {
        unreachable!("not without TWO_ROWS")
    }
    /// The lower bytes, and the upper ones plus 128, of numbers 0 and 2 and numbers 1 and 3 of each lane, pairs of i16; in
    /// the order of the numbers.
    unsafe fn digits(_pairs: [Self::I; 2]) -> [Self::B; 2] {
        unreachable!("not without HAS_DIGITS")
    }
}

/// Plain arrays: the fallback of every machine.
pub(super) struct Scalar;

/// One float of each lane.
#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; 16] {
    std::array::from_fn(f)
}

/// `N` bytes from `p`.
///
/// # Safety
/// They must be readable.
#[inline(always)]
unsafe fn bytes<const N: usize>(p: *const u8) -> [u8; N] {
    // SAFETY: the caller's; an array of bytes needs no alignment.
    unsafe { p.cast::<[u8; N]>().read() }
}

// In all methods: SAFETY: readable and writable bytes are the caller's promise, see the trait.
impl Lanes for Scalar {
    type I = [i32; 16];
    type F = [f32; 16];
    type B = [u32; 16];
    const MAX_ROWS: usize = 1;
    const WIDE_TILES: bool = false;
    const WIDE_IS_BIASED: bool = true;

    #[inline(always)]
    unsafe fn splat(v: f32) -> [f32; 16] {
        [v; 16]
    }
    #[inline(always)]
    unsafe fn splat_i(v: i32) -> [i32; 16] {
        [v; 16]
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        each(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn to_f(v: [i32; 16]) -> [f32; 16] {
        each(|i| v[i] as f32)
    }
    #[inline(always)]
    unsafe fn round_i(v: [f32; 16]) -> [i32; 16] {
        v.map(|v| {
            let rounded = v.round_ties_even();
            if (-2_147_483_648.0..2_147_483_648.0).contains(&rounded) { rounded as i32 } else { i32::MIN }
        })
    }
    #[inline(always)]
    unsafe fn add_i(a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    unsafe fn mul_add_i(a: [i32; 16], b: [i32; 16], acc: [i32; 16]) -> [i32; 16] {
        std::array::from_fn(|i| acc[i].wrapping_add(a[i].wrapping_mul(b[i])))
    }
    #[inline(always)]
    unsafe fn shift_left(v: [i32; 16], n: u32) -> [i32; 16] {
        v.map(|v| v << n)
    }
    #[inline(always)]
    unsafe fn power(e: [i32; 16]) -> [i32; 16] {
        e.map(|e| 1i32.checked_shl(e as u32).unwrap_or(0))
    }
    #[inline(always)]
    unsafe fn pair_i(a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        std::array::from_fn(|i| a[i] & 0xffff | b[i] << 16)
    }
    #[inline(always)]
    unsafe fn mul_round(w: [u32; 16], scale: [i32; 16]) -> [[i32; 16]; 2] {
        let product = |i: usize, byte: usize| {
            let code = i32::from(w[i].to_le_bytes()[byte] as i8);
            (code * i32::from(scale[i] as i16) + 64) >> 7
        };
        [0, 1].map(|b| std::array::from_fn(|i| product(i, b) & 0xffff | product(i, b + 2) << 16))
    }
    #[inline(always)]
    unsafe fn mul_round_wide(lower: [u32; 16], upper: [u32; 16], scale: [i32; 16]) -> [[i32; 16]; 2] {
        let product = |i: usize, byte: usize| {
            let w = i16::from_le_bytes([lower[i].to_le_bytes()[byte], upper[i].to_le_bytes()[byte]]);
            (i32::from(w) * i32::from(scale[i] as i16) + (1 << 14)) >> 15
        };
        [0, 1].map(|b| std::array::from_fn(|i| product(i, b) & 0xffff | product(i, b + 2) << 16))
    }
    #[inline(always)]
    unsafe fn mul_round_e4m3(w: [u32; 16], scale: [i32; 16]) -> [[i32; 16]; 2] {
        let high = |a: i32, b: i32| (a * b + (1 << 14)) >> 15;
        let product = |i: usize, byte: usize| {
            let code = i32::from(w[i].to_le_bytes()[byte]);
            let e = code >> 3 & 15;
            let negative = high((code & 7 | e.min(1) << 3) << 11, -1 << e.max(1));
            high(if code & 0x80 == 0 { -negative } else { negative }, i32::from(scale[i] as i16))
        };
        [0, 1].map(|b| std::array::from_fn(|i| product(i, b) & 0xffff | product(i, b + 2) << 16))
    }
    #[inline(always)]
    unsafe fn dot_pair(acc: [i32; 16], w: [i32; 16], x: *const i16) -> [i32; 16] {
        // SAFETY: the caller's.
        let [x0, x1] = unsafe { x.cast::<[i16; 2]>().read_unaligned() }.map(i32::from);
        std::array::from_fn(|i| acc[i].wrapping_add(i32::from(w[i] as i16) * x0).wrapping_add((w[i] >> 16) * x1))
    }
    #[inline(always)]
    unsafe fn load(p: *const u8) -> [f32; 16] {
        // SAFETY: the caller's.
        let b = unsafe { bytes::<64>(p) };
        each(|i| f32::from_le_bytes([b[4 * i], b[4 * i + 1], b[4 * i + 2], b[4 * i + 3]]))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> [f32; 16] {
        // SAFETY: the caller's.
        let b = unsafe { bytes::<32>(p) };
        each(|i| f16::from_le_bytes([b[2 * i], b[2 * i + 1]]).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> [f32; 16] {
        // SAFETY: the caller's.
        let b = unsafe { bytes::<32>(p) };
        each(|i| bf16::from_le_bytes([b[2 * i], b[2 * i + 1]]).to_f32())
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> [i32; 16] {
        // SAFETY: the caller's.
        unsafe { bytes::<16>(p) }.map(i32::from)
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> [i32; 16] {
        // SAFETY: the caller's.
        unsafe { bytes::<16>(p) }.map(|b| i32::from(b as i8))
    }
    #[inline(always)]
    unsafe fn load_low_nibbles(p: *const u8) -> [i32; 16] {
        // SAFETY: the caller's.
        unsafe { bytes::<16>(p) }.map(|b| i32::from(b & 15))
    }
    #[inline(always)]
    unsafe fn load_high_nibbles(p: *const u8) -> [i32; 16] {
        // SAFETY: the caller's.
        unsafe { bytes::<16>(p) }.map(|b| i32::from(b >> 4))
    }
    #[inline(always)]
    unsafe fn load_i16(p: *const u8) -> [i32; 16] {
        // SAFETY: the caller's.
        let b = unsafe { bytes::<32>(p) };
        std::array::from_fn(|i| i32::from(i16::from_le_bytes([b[2 * i], b[2 * i + 1]])))
    }
    #[inline(always)]
    unsafe fn load_pairs(p: *const u8) -> [i32; 16] {
        // SAFETY: the caller's.
        unsafe { Self::codes(p) }.map(|v| v as i32)
    }
    #[inline(always)]
    unsafe fn load_half_powers(p: *const u8) -> [f32; 16] {
        // SAFETY: the caller's.
        let b = unsafe { bytes::<16>(p) };
        each(|i| f32::from_bits(if b[i] < 2 { 0x0020_0000 << b[i] } else { u32::from(b[i] - 1) << 23 }))
    }
    #[inline(always)]
    unsafe fn store(v: [f32; 16], p: *mut f32) {
        // SAFETY: the caller's.
        unsafe { p.cast::<[f32; 16]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn codes(p: *const u8) -> [u32; 16] {
        // SAFETY: the caller's.
        let b = unsafe { bytes::<64>(p) };
        std::array::from_fn(|i| u32::from_le_bytes([b[4 * i], b[4 * i + 1], b[4 * i + 2], b[4 * i + 3]]))
    }
    #[inline(always)]
    unsafe fn shl<const N: u32>(v: [u32; 16]) -> [u32; 16] {
        v.map(|v| v << N)
    }
    #[inline(always)]
    unsafe fn shr<const N: u32>(v: [u32; 16]) -> [u32; 16] {
        v.map(|v| v >> N)
    }
    #[inline(always)]
    unsafe fn mask(v: [u32; 16], mask: u8) -> [u32; 16] {
        v.map(|v| v & u32::from_le_bytes([mask; 4]))
    }
    #[inline(always)]
    unsafe fn or(a: [u32; 16], b: [u32; 16]) -> [u32; 16] {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn look_up(table: &[u8; 16], v: [u32; 16]) -> [u32; 16] {
        v.map(|v| u32::from_le_bytes(v.to_le_bytes().map(|b| table[usize::from(b & 15)])))
    }
    #[inline(always)]
    unsafe fn dot(acc: [i32; 16], w: [u32; 16], x: *const i8) -> [i32; 16] {
        // SAFETY: the caller's.
        let x = unsafe { x.cast::<[i8; 4]>().read() }.map(i32::from);
        std::array::from_fn(|i| {
            let w = w[i].to_le_bytes().map(i32::from);
            acc[i] + w[0] * x[0] + w[1] * x[1] + w[2] * x[2] + w[3] * x[3]
        })
    }
    #[inline(always)]
    unsafe fn dot_wide(acc: [i32; 16], w: [u32; 16], x: *const i8) -> [i32; 16] {
        // SAFETY: the caller's.
        unsafe { Self::dot(acc, w, x) }
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}

//! [`Lanes`] in NEON registers: four of 128 bits, with the products of bytes that the processor has.
//!
//! ```text
//! a dword of 16 rows   │ 4 bytes of row 0, 1, 2, 3 │ … 4 to 7 │ 8 to 11 │ 12 to 15 │    [`Lanes::B`]
//! two dwords, zipped   │ 8 bytes of row 0, 1 │ 2, 3 │ …                 │ 14, 15 │    eight registers, for `usmmla`
//! ```
//!
//! Zipping costs as much as a product of one activation row, and halves the products of two: so it is done where a tile
//! has rows to share it.
//!
//! Invariant: each method is the same exact or once-rounded operation as in [`super::lanes::Scalar`].
//!
//! `SAFETY: isa` below means: NEON is part of every processor of this architecture; the caller of the entry function showed
//! the token of the products, and pointers are readable or writable as the trait's method states.

use std::arch::aarch64::*;
use std::marker::PhantomData;

use super::lanes::Lanes;
use crate::arm;

/// How products of bytes are summed.
pub(super) trait Products: 'static {
    const WIDE_IS_BIASED: bool;
    const TWO_ROWS: bool;
    const HAS_DIGITS: bool;
    unsafe fn dot(acc: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t;
    unsafe fn dot_wide(acc: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t;
    /// Two rows of 8 bytes times two: see [`arm::usmmla`].
    unsafe fn matrix(acc: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t;
}

/// `w` as signed bytes, plus 128.
///
/// # Safety
/// None: NEON is there.
#[inline(always)]
unsafe fn flip(w: uint8x16_t) -> int8x16_t {
    // SAFETY: isa
    unsafe { vreinterpretq_s8_u8(veorq_u8(w, vdupq_n_u8(0x80))) }
}

/// Multiplications that widen: every processor.
pub(super) struct Widening;

impl Widening {
    /// Sums of pairs fit i16: at most 2 * 128 * 127 = 32512.
    #[inline(always)]
    unsafe fn signed(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: isa
        unsafe { vpadalq_s16(acc, vpaddq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x)), vmull_high_s8(w, x))) }
    }
}

impl Products for Widening {
    const WIDE_IS_BIASED: bool = false;
    const TWO_ROWS: bool = false;
    const HAS_DIGITS: bool = false;
    #[inline(always)]
    unsafe fn dot(acc: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: isa; `w` is at most 127.
        unsafe { Self::signed(acc, vreinterpretq_s8_u8(w), x) }
    }
    #[inline(always)]
    unsafe fn dot_wide(acc: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: isa
        unsafe { Self::signed(acc, flip(w), x) }
    }
    #[inline(always)]
    unsafe fn matrix(_: int32x4_t, _: uint8x16_t, _: int8x16_t) -> int32x4_t {
        unreachable!("TWO_ROWS says that there is none")
    }
}

/// `sdot`.
pub(super) struct Dot;

impl Products for Dot {
    const WIDE_IS_BIASED: bool = false;
    const TWO_ROWS: bool = false;
    const HAS_DIGITS: bool = true;
    #[inline(always)]
    unsafe fn dot(acc: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: isa; `w` is at most 127.
        unsafe { arm::sdot(acc, vreinterpretq_s8_u8(w), x) }
    }
    #[inline(always)]
    unsafe fn dot_wide(acc: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: isa
        unsafe { arm::sdot(acc, flip(w), x) }
    }
    #[inline(always)]
    unsafe fn matrix(_: int32x4_t, _: uint8x16_t, _: int8x16_t) -> int32x4_t {
        unreachable!("TWO_ROWS says that there is none")
    }
}

/// `usdot` and `usmmla`: unsigned bytes as they are stored.
pub(super) struct Matrix;

impl Products for Matrix {
    const WIDE_IS_BIASED: bool = true;
    const TWO_ROWS: bool = true;
    const HAS_DIGITS: bool = true;
    #[inline(always)]
    unsafe fn dot(acc: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: isa
        unsafe { arm::usdot(acc, w, x) }
    }
    #[inline(always)]
    unsafe fn dot_wide(acc: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: isa
        unsafe { arm::usdot(acc, w, x) }
    }
    #[inline(always)]
    unsafe fn matrix(acc: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: isa
        unsafe { arm::usmmla(acc, w, x) }
    }
}

/// Four registers: lanes 0 to 3, 4 to 7, 8 to 11 and 12 to 15.
pub(super) struct Quad<P>(PhantomData<P>);

/// An expression of intrinsics.
macro_rules! isa {
    ($e:expr) => {{
        // SAFETY: isa
        unsafe { $e }
    }};
}

/// Four registers, the `i`-th from what `e` makes of it. (Not a closure, which would be a function of its own.)
macro_rules! quad {
    ($i:ident => $e:expr) => {
        [quad!(@ $i, 0, $e), quad!(@ $i, 1, $e), quad!(@ $i, 2, $e), quad!(@ $i, 3, $e)]
    };
    (@ $i:ident, $n:literal, $e:expr) => {{
        let $i = $n;
        let _ = $i;
        // SAFETY: isa
        unsafe { $e }
    }};
}

/// 16 bytes as integers.
///
/// # Safety
/// None: NEON is there.
#[inline(always)]
unsafe fn wide_u8(v: uint8x16_t) -> [int32x4_t; 4] {
    let four = isa!({
        let (low, high) = (vmovl_u8(vget_low_u8(v)), vmovl_high_u8(v));
        [vmovl_u16(vget_low_u16(low)), vmovl_high_u16(low), vmovl_u16(vget_low_u16(high)), vmovl_high_u16(high)]
    });
    quad!(i => vreinterpretq_s32_u32(four[i]))
}

/// The same pair of i16 for all lanes.
///
/// # Safety
/// `x` points to a pair of i16.
#[inline(always)]
unsafe fn pair(x: *const i16) -> int16x4_t {
    // SAFETY: the caller's.
    unsafe { vreinterpret_s16_s32(vdup_n_s32(x.cast::<i32>().read_unaligned())) }
}

impl<P: Products> Lanes for Quad<P> {
    type I = [int32x4_t; 4];
    type F = [float32x4_t; 4];
    type B = [uint8x16_t; 4];
    // 4 rows of sums and the codes of a pair of dwords are 24 of 32 registers.
    const MAX_ROWS: usize = 4;
    const WIDE_TILES: bool = false;
    const WIDE_IS_BIASED: bool = P::WIDE_IS_BIASED;
    const TWO_ROWS: bool = P::TWO_ROWS;
    const HAS_DIGITS: bool = P::HAS_DIGITS;

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self::F {
        quad!(i => vdupq_n_f32(v))
    }
    #[inline(always)]
    unsafe fn splat_i(v: i32) -> Self::I {
        quad!(i => vdupq_n_s32(v))
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        quad!(i => vmulq_f32(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        quad!(i => vdivq_f32(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        quad!(i => vaddq_f32(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        quad!(i => vfmaq_f32(c[i], a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn to_f(v: Self::I) -> Self::F {
        quad!(i => vcvtq_f32_s32(v[i]))
    }
    #[inline(always)]
    unsafe fn round_i(v: Self::F) -> Self::I {
        // The instruction saturates, and makes 0 of NaN.
        quad!(i => {
            let fits = vcltq_f32(v[i], vdupq_n_f32(2_147_483_648.0));
            vbslq_s32(fits, vcvtnq_s32_f32(v[i]), vdupq_n_s32(i32::MIN))
        })
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        quad!(i => vaddq_s32(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn mul_add_i(a: Self::I, b: Self::I, acc: Self::I) -> Self::I {
        quad!(i => vmlaq_s32(acc[i], a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn shift_left(v: Self::I, n: u32) -> Self::I {
        quad!(i => vshlq_s32(v[i], vdupq_n_s32(n as i32)))
    }
    #[inline(always)]
    unsafe fn power(e: Self::I) -> Self::I {
        // The instruction looks at the lowest byte of the count alone.
        quad!(i => {
            let small = vcltq_u32(vreinterpretq_u32_s32(e[i]), vdupq_n_u32(32));
            vandq_s32(vreinterpretq_s32_u32(small), vshlq_s32(vdupq_n_s32(1), e[i]))
        })
    }
    #[inline(always)]
    unsafe fn pair_i(a: Self::I, b: Self::I) -> Self::I {
        quad!(i => {
            vreinterpretq_s32_s16(vtrn1q_s16(vreinterpretq_s16_s32(a[i]), vreinterpretq_s16_s32(b[i])))
        })
    }
    #[inline(always)]
    unsafe fn mul_round(w: Self::B, scale: Self::I) -> [Self::I; 2] {
        // (256 w * scale + 2^14) >> 15. It would saturate at -2^15 * -2^15, but scales are above -2^15.
        let scale = quad!(i => vreinterpretq_s16_s32(scale[i]));
        let w = quad!(i => vreinterpretq_s16_u8(w[i]));
        let even = quad!(i => vreinterpretq_s32_s16(vqrdmulhq_s16(vshlq_n_s16::<8>(w[i]), scale[i])));
        let odd = quad!(i => vreinterpretq_s32_s16(vqrdmulhq_s16(vandq_s16(w[i], vdupq_n_s16(-256)), scale[i])));
        [even, odd]
    }
    #[inline(always)]
    unsafe fn mul_round_wide(lower: Self::B, upper: Self::B, scale: Self::I) -> [Self::I; 2] {
        let scale = quad!(i => vreinterpretq_s16_s32(scale[i]));
        let even = quad!(i => vreinterpretq_s16_u8(vtrn1q_u8(lower[i], upper[i])));
        let odd = quad!(i => vreinterpretq_s16_u8(vtrn2q_u8(lower[i], upper[i])));
        let even = quad!(i => vreinterpretq_s32_s16(vqrdmulhq_s16(even[i], scale[i])));
        let odd = quad!(i => vreinterpretq_s32_s16(vqrdmulhq_s16(odd[i], scale[i])));
        [even, odd]
    }
    #[inline(always)]
    unsafe fn mul_round_e4m3(w: Self::B, scale: Self::I) -> [Self::I; 2] {
        let scale = quad!(i => vreinterpretq_s16_s32(scale[i]));
        let w = quad!(i => vreinterpretq_u16_u8(w[i]));
        let even = quad!(i => e4m3_words(vandq_u16(w[i], vdupq_n_u16(255)), scale[i]));
        let odd = quad!(i => e4m3_words(vshrq_n_u16::<8>(w[i]), scale[i]));
        [even, odd]
    }
    #[inline(always)]
    unsafe fn dot_pair(acc: Self::I, w: Self::I, x: *const i16) -> Self::I {
        // SAFETY: isa
        unsafe {
            let x = pair(x);
            let mut out = acc;
            for i in [0, 2] {
                // The first numbers of eight pairs, and the second.
                let (a, b) = (vreinterpretq_s16_s32(w[i]), vreinterpretq_s16_s32(w[i + 1]));
                let (first, second) = (vuzp1q_s16(a, b), vuzp2q_s16(a, b));
                let low = vmlal_lane_s16::<0>(acc[i], vget_low_s16(first), x);
                out[i] = vmlal_lane_s16::<1>(low, vget_low_s16(second), x);
                let high = vmlal_high_lane_s16::<0>(acc[i + 1], first, x);
                out[i + 1] = vmlal_high_lane_s16::<1>(high, second, x);
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn load(p: *const u8) -> Self::F {
        quad!(i => vreinterpretq_f32_u8(vld1q_u8(p.add(16 * i))))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self::F {
        quad!(i => arm::widen_f16(vreinterpret_u16_u8(vld1_u8(p.add(8 * i)))))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self::F {
        quad!(i => vreinterpretq_f32_u32(vshll_n_u16::<16>(vreinterpret_u16_u8(vld1_u8(p.add(8 * i))))))
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::I {
        isa!(wide_u8(vld1q_u8(p)))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self::I {
        isa!({
            let v = vld1q_s8(p.cast());
            let (low, high) = (vmovl_s8(vget_low_s8(v)), vmovl_high_s8(v));
            [vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)]
        })
    }
    #[inline(always)]
    unsafe fn load_low_nibbles(p: *const u8) -> Self::I {
        isa!(wide_u8(vandq_u8(vld1q_u8(p), vdupq_n_u8(15))))
    }
    #[inline(always)]
    unsafe fn load_high_nibbles(p: *const u8) -> Self::I {
        isa!(wide_u8(vshrq_n_u8::<4>(vld1q_u8(p))))
    }
    #[inline(always)]
    unsafe fn load_i16(p: *const u8) -> Self::I {
        quad!(i => vmovl_s16(vreinterpret_s16_u8(vld1_u8(p.add(8 * i)))))
    }
    #[inline(always)]
    unsafe fn load_pairs(p: *const u8) -> Self::I {
        quad!(i => vreinterpretq_s32_u8(vld1q_u8(p.add(16 * i))))
    }
    #[inline(always)]
    unsafe fn load_half_powers(p: *const u8) -> Self::F {
        // SAFETY: isa
        let e = unsafe { wide_u8(vld1q_u8(p)) };
        quad!(i => {
            let normal = vshlq_n_s32::<23>(vsubq_s32(e[i], vdupq_n_s32(1)));
            let denormal = vshlq_s32(vdupq_n_s32(0x0020_0000), e[i]);
            vreinterpretq_f32_s32(vbslq_s32(vcgtq_s32(e[i], vdupq_n_s32(1)), normal, denormal))
        })
    }
    #[inline(always)]
    unsafe fn store(v: Self::F, p: *mut f32) {
        // SAFETY: isa
        unsafe {
            for (i, v) in v.into_iter().enumerate() {
                vst1q_f32(p.add(4 * i), v);
            }
        }
    }
    #[inline(always)]
    unsafe fn codes(p: *const u8) -> Self::B {
        quad!(i => vld1q_u8(p.add(16 * i)))
    }
    #[inline(always)]
    unsafe fn shl<const N: u32>(v: Self::B) -> Self::B {
        // The count in a register: a constant that the compiler turns into an immediate.
        quad!(i => vshlq_u8(v[i], vdupq_n_s8(N as i8)))
    }
    #[inline(always)]
    unsafe fn shr<const N: u32>(v: Self::B) -> Self::B {
        quad!(i => vshlq_u8(v[i], vdupq_n_s8(-(N as i8))))
    }
    #[inline(always)]
    unsafe fn mask(v: Self::B, mask: u8) -> Self::B {
        quad!(i => vandq_u8(v[i], vdupq_n_u8(mask)))
    }
    #[inline(always)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        quad!(i => vorrq_u8(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn look_up(table: &[u8; 16], v: Self::B) -> Self::B {
        // SAFETY: isa
        let table = unsafe { vld1q_u8(table.as_ptr()) };
        quad!(i => vqtbl1q_u8(table, v[i]))
    }
    #[inline(always)]
    unsafe fn dot(acc: Self::I, w: Self::B, x: *const i8) -> Self::I {
        // SAFETY: isa
        let x = unsafe { vreinterpretq_s8_s32(vdupq_n_s32(x.cast::<i32>().read_unaligned())) };
        quad!(i => P::dot(acc[i], w[i], x))
    }
    #[inline(always)]
    unsafe fn dot_wide(acc: Self::I, w: Self::B, x: *const i8) -> Self::I {
        // SAFETY: isa
        let x = unsafe { vreinterpretq_s8_s32(vdupq_n_s32(x.cast::<i32>().read_unaligned())) };
        quad!(i => P::dot_wide(acc[i], w[i], x))
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        arm::prefetch(p);
    }
    #[inline(always)]
    unsafe fn two_rows(first: [i32; 2]) -> [Self::I; 2] {
        // SAFETY: isa
        let both =
            unsafe { vreinterpretq_s32_s64(vdupq_n_s64(i64::from(first[1]) << 32 | i64::from(first[0] as u32))) };
        [[both; 4]; 2]
    }
    #[inline(always)]
    unsafe fn dot_two_rows(sums: [Self::I; 2], w: [Self::B; 2], x: [*const i8; 2]) -> [Self::I; 2] {
        // SAFETY: isa
        let x = unsafe { vcombine_s8(vld1_s8(x[0]), vld1_s8(x[1])) };
        let a = quad!(i => vreinterpretq_u32_u8(w[0][i]));
        let b = quad!(i => vreinterpretq_u32_u8(w[1][i]));
        // Register 2i has lanes 4i and 4i + 1, the next one those that follow.
        let low = quad!(i => vreinterpretq_u8_u32(vzip1q_u32(a[i], b[i])));
        let high = quad!(i => vreinterpretq_u8_u32(vzip2q_u32(a[i], b[i])));
        [quad!(i => P::matrix(sums[0][i], low[i], x)), quad!(i => P::matrix(sums[1][i], high[i], x))]
    }
    #[inline(always)]
    unsafe fn apart(sums: [Self::I; 2]) -> [Self::I; 2] {
        let [low, high] = sums;
        [quad!(i => vuzp1q_s32(low[i], high[i])), quad!(i => vuzp2q_s32(low[i], high[i]))]
    }
    #[inline(always)]
    unsafe fn digits([even, odd]: [Self::I; 2]) -> [Self::B; 2] {
        let even = quad!(i => vreinterpretq_u8_s32(even[i]));
        let odd = quad!(i => vreinterpretq_u8_s32(odd[i]));
        let lower = quad!(i => vtrn1q_u8(even[i], odd[i]));
        let upper = quad!(i => vreinterpretq_u8_s8(flip(vtrn2q_u8(even[i], odd[i]))));
        [lower, upper]
    }
}

/// Products of e4m3 numbers, each in the lower byte of 16 bits, with scales: see [`Lanes::mul_round_e4m3`].
///
/// # Safety
/// None: NEON is there.
#[inline(always)]
unsafe fn e4m3_words(code: uint16x8_t, scale: int16x8_t) -> int32x4_t {
    // SAFETY: isa
    unsafe {
        let code = vreinterpretq_s16_u16(code);
        let one = vdupq_n_s16(1);
        let e = vandq_s16(vshrq_n_s16::<3>(code), vdupq_n_s16(15));
        let mantissa = vandq_s16(code, vdupq_n_s16(7));
        let mantissa = vorrq_s16(mantissa, vshlq_n_s16::<3>(vminq_s16(e, one)));
        let power = vshlq_s16(vdupq_n_s16(-1), vmaxq_s16(e, one));
        let negative = vqrdmulhq_s16(vshlq_n_s16::<11>(mantissa), power);
        let is_negative = vtstq_s16(code, vdupq_n_s16(0x80));
        let level = vbslq_s16(is_negative, negative, vnegq_s16(negative));
        vreinterpretq_s32_s16(vqrdmulhq_s16(level, scale))
    }
}

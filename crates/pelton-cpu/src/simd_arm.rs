//! NEON vectors for [`Simd`]: pairs of 128-bit registers, which give the bits of AVX2.
//!
//! Invariant: each method is the operation of `simd_x86.rs`'s [`crate::isa::Avx2`], NaN included, and sums go through the
//! same tree. `SAFETY: baseline` below means that NEON is part of every processor of this architecture. Memory is read
//! and written through slices whose length is asserted.

use std::arch::aarch64::*;

use half::{bf16, f16};

use crate::arm;
use crate::isa::Neon;
use crate::kv::paired::SMALLEST;
use crate::simd::Simd;

/// Lanes 0 to 3, and 4 to 7.
type Pair = [float32x4_t; 2];

/// A pair from what `e` makes of each register. (Not a closure, which would be a function of its own.)
macro_rules! pair {
    ($i:ident => $e:expr) => {
        [pair!(@ $i, 0, $e), pair!(@ $i, 1, $e)]
    };
    (@ $i:ident, $n:literal, $e:expr) => {{
        let $i = $n;
        let _ = $i;
        // SAFETY: baseline; where memory is read or written, its length was asserted
        unsafe { $e }
    }};
}

/// 8 bytes as integers.
///
/// # Safety
/// None: NEON is there.
#[inline(always)]
unsafe fn wide(v: uint8x8_t) -> [uint32x4_t; 2] {
    // SAFETY: baseline
    unsafe {
        let v = vmovl_u8(v);
        [vmovl_u16(vget_low_u16(v)), vmovl_high_u16(v)]
    }
}

impl Simd for Neon {
    type F = Pair;
    const LANES: usize = 8;
    const TILE_ROWS: usize = 4;
    const PAIR_ROWS: usize = 4;

    #[inline(always)]
    fn splat(self, v: f32) -> Pair {
        pair!(i => vdupq_n_f32(v))
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> Pair {
        assert!(from.len() >= 8);
        pair!(i => vld1q_f32(from.as_ptr().add(4 * i)))
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16]) -> Pair {
        assert!(from.len() >= 8);
        pair!(i => arm::widen_f16(vld1_u16(from.as_ptr().cast::<u16>().add(4 * i))))
    }

    #[inline(always)]
    fn load_int8(self, from: &[u8]) -> Pair {
        assert!(from.len() >= 8);
        // SAFETY: baseline; 8 elements are there
        unsafe {
            let v = vmovl_s8(vld1_s8(from.as_ptr().cast()));
            [vcvtq_f32_s32(vmovl_s16(vget_low_s16(v))), vcvtq_f32_s32(vmovl_high_s16(v))]
        }
    }

    #[inline(always)]
    fn load_fp8(self, from: &[u8]) -> Pair {
        assert!(from.len() >= 8);
        // SAFETY: baseline; 8 elements are there
        let code = unsafe { wide(vld1_u8(from.as_ptr())) };
        // As `Fp8::decode`, a lane at a time.
        let size = pair!(i => vandq_u32(code[i], vdupq_n_u32(0x7f)));
        let sign = pair!(i => vshlq_n_u32::<24>(vandq_u32(code[i], vdupq_n_u32(0x80))));
        let normal = pair!(i => {
            vreinterpretq_f32_u32(vaddq_u32(vshlq_n_u32::<20>(size[i]), vdupq_n_u32(120 << 23)))
        });
        let least = self.splat(1.0 / 64.0);
        // Exact: a multiple of 2^-9 below 2^-6.
        let small = self.fma(normal, self.splat(2.0), self.splat(-1.0 / 64.0));
        let value = self.if_less(normal, least, small, normal);
        pair!(i => vreinterpretq_f32_u32(vorrq_u32(vreinterpretq_u32_f32(value[i]), sign[i])))
    }

    #[inline(always)]
    fn load_pairs(self, from: &[bf16]) -> (Pair, Pair) {
        assert!(from.len() >= 16);
        let pairs = pair!(i => vreinterpretq_u32_u16(vld1q_u16(from.as_ptr().cast::<u16>().add(8 * i))));
        let first = pair!(i => vreinterpretq_f32_u32(vshlq_n_u32::<16>(pairs[i])));
        let second = pair!(i => vreinterpretq_f32_u32(vandq_u32(pairs[i], vdupq_n_u32(0xffff_0000))));
        (first, second)
    }

    #[inline(always)]
    fn store(self, v: Pair, to: &mut [f32]) {
        assert!(to.len() >= 8);
        pair!(i => vst1q_f32(to.as_mut_ptr().add(4 * i), v[i]));
    }

    #[inline(always)]
    fn round_bf16(self, v: Pair) -> Pair {
        pair!(i => {
            let bits = vreinterpretq_u32_f32(v[i]);
            let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
            let up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
            let rounded = vandq_u32(up, vdupq_n_u32(0xffff_0000));
            let number = vandq_u32(vcgeq_f32(vabsq_f32(v[i]), vdupq_n_f32(SMALLEST)), rounded);
            vreinterpretq_f32_u32(vbslq_u32(vceqq_f32(v[i], v[i]), number, vdupq_n_u32(0x7fc0_0000)))
        })
    }

    #[inline(always)]
    fn round_weight(self, v: Pair) -> Pair {
        pair!(i => {
            let up = vaddq_u32(vreinterpretq_u32_f32(v[i]), vdupq_n_u32(0x8000));
            vreinterpretq_f32_u32(vandq_u32(up, vdupq_n_u32(0xffff_0000)))
        })
    }

    #[inline(always)]
    fn store_two_bf16(self, a: Pair, b: Pair, to: &mut [bf16]) {
        let (first, second) = to.split_at_mut(8);
        self.store_bf16(a, first);
        self.store_bf16(b, second);
    }

    #[inline(always)]
    fn store_bf16(self, v: Pair, to: &mut [bf16]) {
        assert!(to.len() >= 8);
        let high = pair!(i => vshrn_n_u32::<16>(vreinterpretq_u32_f32(v[i])));
        pair!(i => vst1_u16(to.as_mut_ptr().cast::<u16>().add(4 * i), high[i]));
    }

    #[inline(always)]
    fn store_f16(self, v: Pair, to: &mut [f16]) {
        assert!(to.len() >= 8);
        let halves = [arm::narrow_f16(v[0]), arm::narrow_f16(v[1])];
        pair!(i => vst1_u16(to.as_mut_ptr().cast::<u16>().add(4 * i), halves[i]));
    }

    #[inline(always)]
    fn add(self, a: Pair, b: Pair) -> Pair {
        pair!(i => vaddq_f32(a[i], b[i]))
    }

    #[inline(always)]
    fn sub(self, a: Pair, b: Pair) -> Pair {
        pair!(i => vsubq_f32(a[i], b[i]))
    }

    #[inline(always)]
    fn mul(self, a: Pair, b: Pair) -> Pair {
        pair!(i => vmulq_f32(a[i], b[i]))
    }

    #[inline(always)]
    fn div(self, a: Pair, b: Pair) -> Pair {
        pair!(i => vdivq_f32(a[i], b[i]))
    }

    #[inline(always)]
    fn fma(self, a: Pair, b: Pair, c: Pair) -> Pair {
        pair!(i => vfmaq_f32(c[i], a[i], b[i]))
    }

    #[inline(always)]
    fn max(self, a: Pair, b: Pair) -> Pair {
        // The instruction would give NaN where either is; here it is the second.
        pair!(i => vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i]))
    }

    #[inline(always)]
    fn min(self, a: Pair, b: Pair) -> Pair {
        pair!(i => vbslq_f32(vcltq_f32(a[i], b[i]), a[i], b[i]))
    }

    #[inline(always)]
    fn round(self, a: Pair) -> Pair {
        pair!(i => vrndnq_f32(a[i]))
    }

    #[inline(always)]
    fn pow2(self, n: Pair) -> Pair {
        pair!(i => {
            let biased = vaddq_s32(vcvtnq_s32_f32(n[i]), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
        })
    }

    #[inline(always)]
    fn pow2_of_sum(self, z: Pair) -> Pair {
        pair!(i => {
            let n = vshlq_n_u32::<23>(vreinterpretq_u32_f32(z[i]));
            vreinterpretq_f32_u32(vaddq_u32(n, vdupq_n_u32(0x3f80_0000)))
        })
    }

    #[inline(always)]
    fn if_less(self, a: Pair, b: Pair, yes: Pair, no: Pair) -> Pair {
        pair!(i => vbslq_f32(vcltq_f32(a[i], b[i]), yes[i], no[i]))
    }

    #[inline(always)]
    fn prefetch_far<T>(self, from: &[T], index: usize) {
        arm::prefetch_far(from.as_ptr().wrapping_add(index));
    }

    #[inline(always)]
    fn sum(self, v: Pair) -> f32 {
        // SAFETY: baseline
        unsafe {
            let four = vaddq_f32(v[0], v[1]);
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }

    #[inline(always)]
    fn top(self, v: Pair) -> f32 {
        // SAFETY: baseline
        unsafe {
            let four = self.max(v, [v[1], v[1]])[0];
            let (a, b) = (vget_low_f32(four), vget_high_f32(four));
            let two = vbsl_f32(vcgt_f32(a, b), a, b);
            let (a, b) = (vget_lane_f32::<0>(two), vget_lane_f32::<1>(two));
            if a > b { a } else { b }
        }
    }
}

//! The instructions of 64-bit Arm that stable Rust has no function for, or none since the oldest version that we compile
//! with: products of bytes, conversions of half precision, and prefetches.
//!
//! A register holds 16 bytes: four dwords, or two rows of eight. In pseudo-code, `a` and `b` registers of bytes:
//!
//! ```text
//! sdot, usdot    out[i] += sum over j < 4 of a[4i + j] * b[4i + j]                        i < 4
//! usmmla         out[2i + r] += sum over j < 8 of a[8i + j] * b[8r + j]                   i, r < 2
//! ```
//!
//! `out` is i32 and wraps around; `a` is unsigned in the instructions with a u. (Arm Architecture Reference Manual, DDI 0487,
//! section C7.2.)
//!
//! Invariant: each function names the feature that its instruction needs (conversions are of the baseline), and writes
//! nothing but the registers that it is given; none touches memory, so the compiler may move, merge and drop them like sums.
//! Conversions note in the status register what they rounded, so they do not claim to preserve flags.

use std::arch::aarch64::{float32x4_t, int8x16_t, int32x4_t, uint8x16_t, uint16x4_t};
use std::arch::asm;

/// # Safety
/// The processor must have FEAT_DotProd.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(crate) unsafe fn sdot(mut acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the caller's; registers alone.
    unsafe {
        asm!(
            "sdot {acc:v}.4s, {a:v}.16b, {b:v}.16b",
            acc = inout(vreg) acc, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}

/// # Safety
/// The processor must have FEAT_I8MM.
#[inline]
#[target_feature(enable = "neon,i8mm")]
pub(crate) unsafe fn usdot(mut acc: int32x4_t, a: uint8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the caller's; registers alone.
    unsafe {
        asm!(
            "usdot {acc:v}.4s, {a:v}.16b, {b:v}.16b",
            acc = inout(vreg) acc, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}

/// # Safety
/// The processor must have FEAT_I8MM.
#[inline]
#[target_feature(enable = "neon,i8mm")]
pub(crate) unsafe fn usmmla(mut acc: int32x4_t, a: uint8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the caller's; registers alone.
    unsafe {
        asm!(
            "usmmla {acc:v}.4s, {a:v}.16b, {b:v}.16b",
            acc = inout(vreg) acc, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}

/// The numbers of four IEEE halves, exact.
#[inline(always)]
pub(crate) fn widen_f16(v: uint16x4_t) -> float32x4_t {
    let out;
    // SAFETY: baseline; registers alone.
    unsafe { asm!("fcvtl {out:v}.4s, {v:v}.4h", out = out(vreg) out, v = in(vreg) v, options(pure, nomem, nostack)) }
    out
}

/// The nearest IEEE halves, ties to even.
#[inline(always)]
pub(crate) fn narrow_f16(v: float32x4_t) -> uint16x4_t {
    let out;
    // SAFETY: baseline; registers alone. Rust code runs with rounding to nearest.
    unsafe { asm!("fcvtn {out:v}.4h, {v:v}.4s", out = out(vreg) out, v = in(vreg) v, options(pure, nomem, nostack)) }
    out
}

/// Asks for the cache line at `p`, which need not be readable, to come to the first level.
#[inline(always)]
pub(crate) fn prefetch<T>(p: *const T) {
    // SAFETY: a prefetch of any address is no access.
    unsafe { asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(readonly, nostack, preserves_flags)) }
}

/// Asks for the cache line at `p`, which need not be readable, to come to the second level.
#[inline(always)]
pub(crate) fn prefetch_far<T>(p: *const T) {
    // SAFETY: a prefetch of any address is no access.
    unsafe { asm!("prfm pldl2keep, [{p}]", p = in(reg) p, options(readonly, nostack, preserves_flags)) }
}

#[cfg(test)]
mod tests {
    use std::arch::aarch64::*;

    use super::*;
    use crate::isa::Neon;

    /// Bytes of all sizes, the largest and the least among them.
    fn bytes(seed: u32) -> [u8; 16] {
        let mut state = seed;
        std::array::from_fn(|i| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            [0, 255, 127, 128, (state >> 24) as u8][if i % 3 == 0 { state as usize >> 8 & 3 } else { 4 }]
        })
    }

    fn load(v: [u8; 16]) -> uint8x16_t {
        // SAFETY: 16 bytes, of the baseline.
        unsafe { vld1q_u8(v.as_ptr()) }
    }

    fn lanes(v: int32x4_t) -> [i32; 4] {
        let mut out = [0; 4];
        // SAFETY: room for 4, of the baseline.
        unsafe { vst1q_s32(out.as_mut_ptr(), v) };
        out
    }

    #[test]
    fn products_are_those_of_the_pseudo_code() {
        let token = Neon::new().expect("all of this architecture have it");
        let start = [7, -7, i32::MAX, i32::MIN];
        // SAFETY: 4 numbers, of the baseline.
        let acc = unsafe { vld1q_s32(start.as_ptr()) };
        for seed in 0..200 {
            let (a, b) = (bytes(seed), bytes(!seed));
            let (va, vb) = (load(a), load(b));
            let signed = |v: u8| i32::from(v as i8);
            let row = |i: usize, r: usize, n: usize, first: fn(u8) -> i32| {
                (0..n).map(|j| first(a[n * i + j]) * signed(b[n * r + j])).sum::<i32>()
            };
            let add = |f: &dyn Fn(usize) -> i32| std::array::from_fn::<i32, 4, _>(|i| start[i].wrapping_add(f(i)));
            // SAFETY: baseline.
            let (sa, sb) = unsafe { (vreinterpretq_s8_u8(va), vreinterpretq_s8_u8(vb)) };
            if token.has_dot() {
                // SAFETY: just asked.
                let got = lanes(unsafe { sdot(acc, sa, sb) });
                assert_eq!(got, add(&|i| row(i, i, 4, signed)), "sdot {a:?} {b:?}");
            }
            if token.has_matrix() {
                // SAFETY: just asked.
                let (dot, matrix) = unsafe { (lanes(usdot(acc, va, sb)), lanes(usmmla(acc, va, sb))) };
                assert_eq!(dot, add(&|i| row(i, i, 4, i32::from)), "usdot {a:?} {b:?}");
                assert_eq!(matrix, add(&|i| row(i / 2, i % 2, 8, i32::from)), "usmmla {a:?} {b:?}");
            }
        }
    }

    #[test]
    fn conversions_of_halves_are_exact_or_to_the_nearest() {
        for bits in (0..=u16::MAX).step_by(4) {
            let halves: [u16; 4] = std::array::from_fn(|i| bits + i as u16);
            let (mut wide, mut back) = ([0.0f32; 4], [0u16; 4]);
            // Halfway to the next one, and just short of it: ties go to even.
            let (mut up, mut down) = ([0u16; 4], [0u16; 4]);
            // SAFETY: 4 numbers each, of the baseline.
            unsafe {
                vst1q_f32(wide.as_mut_ptr(), widen_f16(vld1_u16(halves.as_ptr())));
                vst1_u16(back.as_mut_ptr(), narrow_f16(vld1q_f32(wide.as_ptr())));
                let tie = wide.map(|v| f32::from_bits(v.to_bits() | 0x1000));
                let below = tie.map(|v| f32::from_bits(v.to_bits() - 1));
                vst1_u16(up.as_mut_ptr(), narrow_f16(vld1q_f32(tie.as_ptr())));
                vst1_u16(down.as_mut_ptr(), narrow_f16(vld1q_f32(below.as_ptr())));
            }
            for i in 0..4 {
                let half = half::f16::from_bits(halves[i]);
                if half.is_nan() {
                    assert!(wide[i].is_nan() && half::f16::from_bits(back[i]).is_nan());
                    continue;
                }
                assert_eq!((wide[i], back[i]), (half.to_f32(), halves[i]));
                if half.is_normal() {
                    assert_eq!((up[i], down[i]), (halves[i] + (halves[i] & 1), halves[i]), "{half}");
                }
            }
        }
    }
}

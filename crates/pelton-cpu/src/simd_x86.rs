//! AVX2 and AVX-512 vectors for [`Simd`].
//!
//! Invariant: the methods are only reached through a token of [`crate::isa`], and a token exists only where the
//! processor has the instructions: AVX2 with FMA and F16C, or AVX-512 F/BW/VL/DQ. That is what every
//! `// SAFETY: token` below means. Memory is read and written through slices whose length is asserted.

use std::arch::x86_64::*;

use half::{bf16, f16};

use crate::isa::{Avx2, Avx512};
use crate::kv::paired::SMALLEST;
use crate::simd::{Kernel, Simd};

/// Runs a kernel as AVX2 code.
pub(crate) fn run_avx2<K: Kernel>(token: Avx2, kernel: K) -> K::Out {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn enter<K: Kernel>(token: Avx2, kernel: K) -> K::Out {
        kernel.run(token)
    }
    // SAFETY: token
    unsafe { enter(token, kernel) }
}

/// Runs a kernel as AVX-512 code.
pub(crate) fn run_avx512<K: Kernel>(token: Avx512, kernel: K) -> K::Out {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    fn enter<K: Kernel>(token: Avx512, kernel: K) -> K::Out {
        kernel.run(token)
    }
    // SAFETY: token
    unsafe { enter(token, kernel) }
}

impl Simd for Avx2 {
    type F = __m256;
    const LANES: usize = 8;
    const TILE_ROWS: usize = 4;
    const PAIR_ROWS: usize = 4;

    #[inline(always)]
    fn splat(self, v: f32) -> __m256 {
        // SAFETY: token
        unsafe { _mm256_set1_ps(v) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m256 {
        assert!(from.len() >= 8);
        // SAFETY: token; 8 elements are there
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16]) -> __m256 {
        assert!(from.len() >= 8);
        // SAFETY: token; 8 elements are there
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_int8(self, from: &[u8]) -> __m256 {
        assert!(from.len() >= 8);
        // SAFETY: token; 8 elements are there
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn load_fp8(self, from: &[u8]) -> __m256 {
        assert!(from.len() >= 8);
        // SAFETY: token; 8 elements are there
        unsafe {
            // As `Fp8::decode`, a lane at a time.
            let code = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.as_ptr().cast()));
            let size = _mm256_and_si256(code, _mm256_set1_epi32(0x7f));
            let sign = _mm256_slli_epi32::<24>(_mm256_and_si256(code, _mm256_set1_epi32(0x80)));
            let normal = _mm256_add_epi32(_mm256_slli_epi32::<20>(size), _mm256_set1_epi32(120 << 23));
            let normal = _mm256_castsi256_ps(normal);
            let small = _mm256_fmsub_ps(normal, _mm256_set1_ps(2.0), _mm256_set1_ps(1.0 / 64.0));
            let value = self.if_less(normal, _mm256_set1_ps(1.0 / 64.0), small, normal);
            _mm256_castsi256_ps(_mm256_or_si256(_mm256_castps_si256(value), sign))
        }
    }

    #[inline(always)]
    fn load_pairs(self, from: &[bf16]) -> (__m256, __m256) {
        assert!(from.len() >= 16);
        // SAFETY: token; 16 elements are there
        unsafe {
            let pairs = _mm256_loadu_si256(from.as_ptr().cast());
            let second = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32.cast_signed()));
            (_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), _mm256_castsi256_ps(second))
        }
    }

    #[inline(always)]
    fn round_bf16(self, v: __m256) -> __m256 {
        // SAFETY: token
        unsafe {
            let bits = _mm256_castps_si256(v);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let rounded = _mm256_and_si256(up, _mm256_set1_epi32(0xffff_0000_u32.cast_signed()));
            let size = _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fff_ffff)));
            let large = _mm256_cmp_ps::<_CMP_GE_OQ>(size, _mm256_set1_ps(SMALLEST));
            let number = _mm256_and_ps(large, _mm256_castsi256_ps(rounded));
            let nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc0_0000));
            _mm256_blendv_ps(number, nan, _mm256_cmp_ps::<_CMP_UNORD_Q>(v, v))
        }
    }

    #[inline(always)]
    fn round_weight(self, v: __m256) -> __m256 {
        // SAFETY: token
        unsafe {
            let up = _mm256_add_epi32(_mm256_castps_si256(v), _mm256_set1_epi32(0x8000));
            _mm256_castsi256_ps(_mm256_and_si256(up, _mm256_set1_epi32(0xffff_0000_u32.cast_signed())))
        }
    }

    #[inline(always)]
    fn store_two_bf16(self, a: __m256, b: __m256, to: &mut [bf16]) {
        let (first, second) = to.split_at_mut(8);
        self.store_bf16(a, first);
        self.store_bf16(b, second);
    }

    #[inline(always)]
    fn store_bf16(self, v: __m256, to: &mut [bf16]) {
        assert!(to.len() >= 8);
        // SAFETY: token; 8 elements are there
        unsafe {
            let high = _mm256_srli_epi32::<16>(_mm256_castps_si256(v));
            let words = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256::<1>(high));
            _mm_storeu_si128(to.as_mut_ptr().cast(), words);
        }
    }

    #[inline(always)]
    fn store(self, v: __m256, to: &mut [f32]) {
        assert!(to.len() >= 8);
        // SAFETY: token; 8 elements are there
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn store_f16(self, v: __m256, to: &mut [f16]) {
        assert!(to.len() >= 8);
        // SAFETY: token; 8 elements are there
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: token
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: token
        unsafe { _mm256_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: token
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: token
        unsafe { _mm256_div_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: token
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: token
        unsafe { _mm256_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: token
        unsafe { _mm256_min_ps(a, b) }
    }

    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        // SAFETY: token
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }

    #[inline(always)]
    fn pow2(self, n: __m256) -> __m256 {
        // SAFETY: token
        unsafe {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        }
    }

    #[inline(always)]
    fn pow2_of_sum(self, z: __m256) -> __m256 {
        // SAFETY: token
        unsafe {
            let n = _mm256_slli_epi32::<23>(_mm256_castps_si256(z));
            _mm256_castsi256_ps(_mm256_add_epi32(n, _mm256_set1_epi32(0x3f80_0000)))
        }
    }

    #[inline(always)]
    fn if_less(self, a: __m256, b: __m256, yes: __m256, no: __m256) -> __m256 {
        // SAFETY: token
        unsafe { _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)) }
    }

    #[inline(always)]
    fn prefetch_far<T>(self, from: &[T], index: usize) {
        // SAFETY: token; a prefetch never faults, and the address is computed without assuming it is in bounds
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.as_ptr().wrapping_add(index).cast()) }
    }

    #[inline(always)]
    fn sum(self, v: __m256) -> f32 {
        // SAFETY: token
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn top(self, v: __m256) -> f32 {
        // SAFETY: token
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
}

impl Simd for Avx512 {
    type F = __m512;
    const LANES: usize = 16;
    const TILE_ROWS: usize = 7;
    const PAIR_ROWS: usize = 8;

    #[inline(always)]
    fn splat(self, v: f32) -> __m512 {
        // SAFETY: token
        unsafe { _mm512_set1_ps(v) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m512 {
        assert!(from.len() >= 16);
        // SAFETY: token; 16 elements are there
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16]) -> __m512 {
        assert!(from.len() >= 16);
        // SAFETY: token; 16 elements are there
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_int8(self, from: &[u8]) -> __m512 {
        assert!(from.len() >= 16);
        // SAFETY: token; 16 elements are there
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn load_fp8(self, from: &[u8]) -> __m512 {
        assert!(from.len() >= 16);
        // SAFETY: token; 16 elements are there
        unsafe {
            // As `Fp8::decode`, a lane at a time.
            let code = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            let size = _mm512_and_si512(code, _mm512_set1_epi32(0x7f));
            let sign = _mm512_slli_epi32::<24>(_mm512_and_si512(code, _mm512_set1_epi32(0x80)));
            let normal = _mm512_add_epi32(_mm512_slli_epi32::<20>(size), _mm512_set1_epi32(120 << 23));
            let normal = _mm512_castsi512_ps(normal);
            let small = _mm512_fmsub_ps(normal, _mm512_set1_ps(2.0), _mm512_set1_ps(1.0 / 64.0));
            let value = self.if_less(normal, _mm512_set1_ps(1.0 / 64.0), small, normal);
            _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(value), sign))
        }
    }

    #[inline(always)]
    fn load_pairs(self, from: &[bf16]) -> (__m512, __m512) {
        assert!(from.len() >= 32);
        // SAFETY: token; 32 elements are there
        unsafe {
            let pairs = _mm512_loadu_si512(from.as_ptr().cast());
            let second = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
            (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(second))
        }
    }

    #[inline(always)]
    fn round_bf16(self, v: __m512) -> __m512 {
        // SAFETY: token
        unsafe {
            let bits = _mm512_castps_si512(v);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let large = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(_mm512_abs_ps(v), _mm512_set1_ps(SMALLEST));
            let mask = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
            let number = _mm512_maskz_and_epi32(large, up, mask);
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            _mm512_castsi512_ps(_mm512_mask_mov_epi32(number, nan, _mm512_set1_epi32(0x7fc0_0000)))
        }
    }

    #[inline(always)]
    fn round_weight(self, v: __m512) -> __m512 {
        // SAFETY: token
        unsafe {
            let up = _mm512_add_epi32(_mm512_castps_si512(v), _mm512_set1_epi32(0x8000));
            _mm512_castsi512_ps(_mm512_and_si512(up, _mm512_set1_epi32(0xffff_0000_u32.cast_signed())))
        }
    }

    #[inline(always)]
    fn store_two_bf16(self, a: __m512, b: __m512, to: &mut [bf16]) {
        assert!(to.len() >= 32);
        // SAFETY: token; 32 elements are there
        unsafe {
            // The high word of each dword: word 2 i + 1 of `a`, then of `b`.
            let ones = _mm512_set1_epi16(1);
            let from_a = _mm512_set_epi16(
                62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30, 28, 26, 24, 22, 20, 18, 16, 14, 12,
                10, 8, 6, 4, 2, 0,
            );
            let index = _mm512_add_epi16(from_a, ones);
            let words = _mm512_permutex2var_epi16(_mm512_castps_si512(a), index, _mm512_castps_si512(b));
            _mm512_storeu_si512(to.as_mut_ptr().cast(), words);
        }
    }

    #[inline(always)]
    fn store_bf16(self, v: __m512, to: &mut [bf16]) {
        assert!(to.len() >= 16);
        // SAFETY: token; 16 elements are there
        unsafe {
            let words = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_castps_si512(v)));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), words);
        }
    }

    #[inline(always)]
    fn store(self, v: __m512, to: &mut [f32]) {
        assert!(to.len() >= 16);
        // SAFETY: token; 16 elements are there
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn store_f16(self, v: __m512, to: &mut [f16]) {
        assert!(to.len() >= 16);
        // SAFETY: token; 16 elements are there
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: token
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: token
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: token
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: token
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: token
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: token
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: token
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        // SAFETY: token
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }

    #[inline(always)]
    fn pow2(self, n: __m512) -> __m512 {
        // SAFETY: token
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }

    #[inline(always)]
    fn pow2_of_sum(self, z: __m512) -> __m512 {
        // SAFETY: token
        unsafe {
            let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(z));
            _mm512_castsi512_ps(_mm512_add_epi32(n, _mm512_set1_epi32(0x3f80_0000)))
        }
    }

    #[inline(always)]
    fn if_less(self, a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
        // SAFETY: token
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes) }
    }

    #[inline(always)]
    fn prefetch_far<T>(self, from: &[T], index: usize) {
        // SAFETY: token; a prefetch never faults, and the address is computed without assuming it is in bounds
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.as_ptr().wrapping_add(index).cast()) }
    }

    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        // SAFETY: token
        unsafe {
            let eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn top(self, v: __m512) -> f32 {
        // SAFETY: token
        unsafe {
            let eight = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
}

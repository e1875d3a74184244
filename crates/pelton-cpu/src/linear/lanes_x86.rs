//! [`Lanes`] in x86-64 registers: pairs of 256-bit ones ([`Ymm`]), with or without the VNNI dot product, and
//! single 512-bit ones ([`Zmm`]).
//!
//! Invariant: each method is the same exact or once-rounded operation as in [`super::lanes::Scalar`].
//!
//! `SAFETY: isa` below means: the caller of the entry function showed the token of an instruction set that has
//! these instructions, and pointers are readable or writable as the trait's method states.

use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::lanes::Lanes;

/// How four products are summed in 256-bit registers.
pub(super) trait Dot: 'static {
    const WIDE_IS_BIASED: bool;
    unsafe fn dot(acc: __m256i, w: __m256i, x: __m256i) -> __m256i;
    unsafe fn dot_wide(acc: __m256i, w: __m256i, x: __m256i) -> __m256i;
}

/// AVX2: multiply-add to i16, then to i32.
pub(super) struct Maddubs;

impl Dot for Maddubs {
    const WIDE_IS_BIASED: bool = false;
    #[inline(always)]
    unsafe fn dot(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: isa
        // The i16 sums of pairs saturate only past 2 * 127 * 127 = 32258, which 7-bit codes cannot reach.
        unsafe { _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1))) }
    }
    #[inline(always)]
    unsafe fn dot_wide(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: isa
        // Full bytes would saturate; |code| times x with the code's sign does not: 2 * 128 * 127 = 32512.
        unsafe {
            let w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
            Self::dot(acc, _mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
        }
    }
}

/// AVX-VNNI: one instruction, exact for all bytes.
pub(super) struct VexVnni;

impl Dot for VexVnni {
    const WIDE_IS_BIASED: bool = true;
    #[inline(always)]
    unsafe fn dot(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: isa
        unsafe { _mm256_dpbusd_avx_epi32(acc, w, x) }
    }
    #[inline(always)]
    unsafe fn dot_wide(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: isa
        unsafe { Self::dot(acc, w, x) }
    }
}

/// Pairs of 256-bit registers: lanes 0 to 7 and 8 to 15.
pub(super) struct Ymm<D>(PhantomData<D>);

/// A pair from what `f` makes of the first and the second half.
macro_rules! pair {
    ($i:ident => $e:expr) => {{
        // SAFETY: isa
        unsafe {
            let a = {
                let $i = 0;
                $e
            };
            let b = {
                let $i = 1;
                $e
            };
            [a, b]
        }
    }};
}

impl<D: Dot> Lanes for Ymm<D> {
    type I = [__m256i; 2];
    type F = [__m256; 2];
    type B = [__m256i; 2];
    // 4 rows of sums and accumulators are 16 registers already.
    const MAX_ROWS: usize = 4;
    const WIDE_TILES: bool = false;
    const WIDE_IS_BIASED: bool = D::WIDE_IS_BIASED;

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self::F {
        pair!(_i => _mm256_set1_ps(v))
    }
    #[inline(always)]
    unsafe fn splat_i(v: i32) -> Self::I {
        pair!(_i => _mm256_set1_epi32(v))
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        pair!(i => _mm256_mul_ps(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        pair!(i => _mm256_div_ps(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        pair!(i => _mm256_add_ps(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        pair!(i => _mm256_fmadd_ps(a[i], b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn to_f(v: Self::I) -> Self::F {
        pair!(i => _mm256_cvtepi32_ps(v[i]))
    }
    #[inline(always)]
    unsafe fn round_i(v: Self::F) -> Self::I {
        // Rounds to nearest, ties to even: the mode that Rust code runs in.
        pair!(i => _mm256_cvtps_epi32(v[i]))
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        pair!(i => _mm256_add_epi32(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn shift_left(v: Self::I, n: u32) -> Self::I {
        // The count in a register: a constant that the compiler turns into an immediate.
        pair!(i => _mm256_sll_epi32(v[i], _mm_cvtsi32_si128(n as i32)))
    }
    #[inline(always)]
    unsafe fn power(e: Self::I) -> Self::I {
        pair!(i => _mm256_sllv_epi32(_mm256_set1_epi32(1), e[i]))
    }
    #[inline(always)]
    unsafe fn pair_i(a: Self::I, b: Self::I) -> Self::I {
        pair!(i => _mm256_blend_epi16::<0xaa>(a[i], _mm256_slli_epi32::<16>(b[i])))
    }
    #[inline(always)]
    unsafe fn mul_round(w: Self::B, scale: Self::I) -> [Self::I; 2] {
        // (256 w * scale + 2^14) >> 15.
        let even = pair!(i => _mm256_mulhrs_epi16(_mm256_slli_epi16::<8>(w[i]), scale[i]));
        let high = pair!(_i => _mm256_set1_epi16(-256));
        let odd = pair!(i => _mm256_mulhrs_epi16(_mm256_and_si256(w[i], high[i]), scale[i]));
        [even, odd]
    }
    #[inline(always)]
    unsafe fn mul_round_wide(lower: Self::B, upper: Self::B, scale: Self::I) -> [Self::I; 2] {
        let low = pair!(_i => _mm256_set1_epi16(255));
        let even = pair!(i => {
            let w = _mm256_or_si256(_mm256_and_si256(lower[i], low[i]), _mm256_slli_epi16::<8>(upper[i]));
            _mm256_mulhrs_epi16(w, scale[i])
        });
        let odd = pair!(i => {
            let w = _mm256_or_si256(_mm256_srli_epi16::<8>(lower[i]), _mm256_andnot_si256(low[i], upper[i]));
            _mm256_mulhrs_epi16(w, scale[i])
        });
        [even, odd]
    }
    #[inline(always)]
    unsafe fn mul_round_e4m3(w: Self::B, scale: Self::I) -> [Self::I; 2] {
        let even = pair!(i => e4m3_words(_mm256_and_si256(w[i], _mm256_set1_epi16(255)), scale[i]));
        let odd = pair!(i => e4m3_words(_mm256_srli_epi16::<8>(w[i]), scale[i]));
        [even, odd]
    }
    #[inline(always)]
    unsafe fn mul_add_i(a: Self::I, b: Self::I, acc: Self::I) -> Self::I {
        pair!(i => _mm256_add_epi32(acc[i], _mm256_mullo_epi32(a[i], b[i])))
    }
    #[inline(always)]
    unsafe fn dot_pair(acc: Self::I, w: Self::I, x: *const i16) -> Self::I {
        pair!(i => {
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            _mm256_add_epi32(acc[i], _mm256_madd_epi16(w[i], x))
        })
    }
    #[inline(always)]
    unsafe fn load(p: *const u8) -> Self::F {
        pair!(i => _mm256_loadu_ps(p.add(32 * i).cast()))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self::F {
        pair!(i => _mm256_cvtph_ps(_mm_loadu_si128(p.add(16 * i).cast())))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self::F {
        pair!(i => {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(16 * i).cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        })
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::I {
        pair!(i => _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(8 * i).cast())))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self::I {
        pair!(i => _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(8 * i).cast())))
    }
    #[inline(always)]
    unsafe fn load_low_nibbles(p: *const u8) -> Self::I {
        pair!(i => {
            let wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(8 * i).cast()));
            _mm256_and_si256(wide, _mm256_set1_epi32(15))
        })
    }
    #[inline(always)]
    unsafe fn load_high_nibbles(p: *const u8) -> Self::I {
        pair!(i => _mm256_srli_epi32::<4>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(8 * i).cast()))))
    }
    #[inline(always)]
    unsafe fn load_i16(p: *const u8) -> Self::I {
        pair!(i => _mm256_cvtepi16_epi32(_mm_loadu_si128(p.add(16 * i).cast())))
    }
    #[inline(always)]
    unsafe fn load_pairs(p: *const u8) -> Self::I {
        pair!(i => _mm256_loadu_si256(p.add(32 * i).cast()))
    }
    #[inline(always)]
    unsafe fn load_half_powers(p: *const u8) -> Self::F {
        pair!(i => {
            let e = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(8 * i).cast()));
            let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(e, _mm256_set1_epi32(1)));
            let denormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), e);
            let is_normal = _mm256_cmpgt_epi32(e, _mm256_set1_epi32(1));
            _mm256_castsi256_ps(_mm256_blendv_epi8(denormal, normal, is_normal))
        })
    }
    #[inline(always)]
    unsafe fn store(v: Self::F, p: *mut f32) {
        // SAFETY: isa
        unsafe {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn codes(p: *const u8) -> Self::B {
        pair!(i => _mm256_loadu_si256(p.add(32 * i).cast()))
    }
    #[inline(always)]
    unsafe fn shl<const N: u32>(v: Self::B) -> Self::B {
        // The count in a register: a constant that the compiler turns into an immediate.
        pair!(i => _mm256_sll_epi16(v[i], _mm_cvtsi32_si128(N as i32)))
    }
    #[inline(always)]
    unsafe fn shr<const N: u32>(v: Self::B) -> Self::B {
        pair!(i => _mm256_srl_epi16(v[i], _mm_cvtsi32_si128(N as i32)))
    }
    #[inline(always)]
    unsafe fn mask(v: Self::B, mask: u8) -> Self::B {
        pair!(i => _mm256_and_si256(v[i], _mm256_set1_epi8(mask as i8)))
    }
    #[inline(always)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        pair!(i => _mm256_or_si256(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn look_up(table: &[u8; 16], v: Self::B) -> Self::B {
        pair!(i => {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            _mm256_shuffle_epi8(table, v[i])
        })
    }
    #[inline(always)]
    unsafe fn dot(acc: Self::I, w: Self::B, x: *const i8) -> Self::I {
        pair!(i => D::dot(acc[i], w[i], _mm256_set1_epi32(x.cast::<i32>().read_unaligned())))
    }
    #[inline(always)]
    unsafe fn dot_wide(acc: Self::I, w: Self::B, x: *const i8) -> Self::I {
        pair!(i => D::dot_wide(acc[i], w[i], _mm256_set1_epi32(x.cast::<i32>().read_unaligned())))
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: isa; a prefetch of any address is no access.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}

/// Products of e4m3 numbers, each in the lower byte of 16 bits, with scales: see [`Lanes::mul_round_e4m3`].
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn e4m3_words(code: __m256i, scale: __m256i) -> __m256i {
    // SAFETY: isa
    unsafe {
        let one = _mm256_set1_epi16(1);
        let e = _mm256_and_si256(_mm256_srli_epi16::<3>(code), _mm256_set1_epi16(15));
        let mantissa = _mm256_and_si256(code, _mm256_set1_epi16(7));
        let mantissa = _mm256_or_si256(mantissa, _mm256_slli_epi16::<3>(_mm256_min_epi16(e, one)));
        // 2^e of e from 1 to 15: its lower byte, and its upper one, from a table each; then negated.
        let lower = _mm256_broadcastsi128_si256(_mm_setr_epi8(2, 2, 4, 8, 16, 32, 64, -128, 0, 0, 0, 0, 0, 0, 0, 0));
        let upper = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 64, -128));
        let low = _mm256_and_si256(_mm256_shuffle_epi8(lower, e), _mm256_set1_epi16(255));
        let power = _mm256_or_si256(low, _mm256_slli_epi16::<8>(_mm256_shuffle_epi8(upper, e)));
        let negative =
            _mm256_mulhrs_epi16(_mm256_slli_epi16::<11>(mantissa), _mm256_sub_epi16(_mm256_setzero_si256(), power));
        // Negative where the number is not.
        let turn = _mm256_xor_si256(_mm256_slli_epi16::<8>(code), _mm256_set1_epi16(i16::MIN));
        let level = _mm256_sign_epi16(negative, _mm256_or_si256(turn, one));
        _mm256_mulhrs_epi16(level, scale)
    }
}

/// Single 512-bit registers.
pub(super) struct Zmm;

/// An expression of intrinsics.
macro_rules! isa {
    ($e:expr) => {{
        // SAFETY: isa
        unsafe { $e }
    }};
}

/// `acc` plus the products of `w` with the two words at `x`.
///
/// The intrinsic would be taken apart into a broadcast, a product and a sum, which shortens chains that are not waited
/// for here and takes three times the room.
///
/// # Safety
/// AVX-512 VNNI; `x` points to two words.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn dpwssd(acc: __m512i, w: __m512i, x: *const i16) -> __m512i {
    let mut acc = acc;
    // SAFETY: the caller's; the instruction reads two words and changes one register.
    unsafe {
        asm!(
            "vpdpwssd {acc}, {w}, dword ptr [{x}]{{1to16}}",
            acc = inout(zmm_reg) acc, w = in(zmm_reg) w, x = in(reg) x,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    acc
}

impl Lanes for Zmm {
    type I = __m512i;
    type F = __m512;
    type B = __m512i;
    const MAX_ROWS: usize = 8;
    const WIDE_TILES: bool = true;
    const WIDE_IS_BIASED: bool = true;

    #[inline(always)]
    unsafe fn splat(v: f32) -> __m512 {
        isa!(_mm512_set1_ps(v))
    }
    #[inline(always)]
    unsafe fn splat_i(v: i32) -> __m512i {
        isa!(_mm512_set1_epi32(v))
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        isa!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        isa!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        isa!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        isa!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    unsafe fn to_f(v: __m512i) -> __m512 {
        isa!(_mm512_cvtepi32_ps(v))
    }
    #[inline(always)]
    unsafe fn round_i(v: __m512) -> __m512i {
        isa!(_mm512_cvtps_epi32(v))
    }
    #[inline(always)]
    unsafe fn add_i(a: __m512i, b: __m512i) -> __m512i {
        isa!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    unsafe fn shift_left(v: __m512i, n: u32) -> __m512i {
        isa!(_mm512_sll_epi32(v, _mm_cvtsi32_si128(n as i32)))
    }
    #[inline(always)]
    unsafe fn power(e: __m512i) -> __m512i {
        isa!(_mm512_sllv_epi32(_mm512_set1_epi32(1), e))
    }
    #[inline(always)]
    unsafe fn pair_i(a: __m512i, b: __m512i) -> __m512i {
        isa!(_mm512_mask_blend_epi16(0xaaaa_aaaa, a, _mm512_slli_epi32::<16>(b)))
    }
    #[inline(always)]
    unsafe fn mul_round(w: __m512i, scale: __m512i) -> [__m512i; 2] {
        // (256 w * scale + 2^14) >> 15.
        isa!({
            let odd = _mm512_and_si512(w, _mm512_set1_epi16(-256));
            [_mm512_mulhrs_epi16(_mm512_slli_epi16::<8>(w), scale), _mm512_mulhrs_epi16(odd, scale)]
        })
    }
    #[inline(always)]
    unsafe fn mul_round_wide(lower: __m512i, upper: __m512i, scale: __m512i) -> [__m512i; 2] {
        isa!({
            let low = _mm512_set1_epi16(255);
            let even = _mm512_or_si512(_mm512_and_si512(lower, low), _mm512_slli_epi16::<8>(upper));
            let odd = _mm512_or_si512(_mm512_srli_epi16::<8>(lower), _mm512_andnot_si512(low, upper));
            [_mm512_mulhrs_epi16(even, scale), _mm512_mulhrs_epi16(odd, scale)]
        })
    }
    #[inline(always)]
    unsafe fn mul_round_e4m3(w: __m512i, scale: __m512i) -> [__m512i; 2] {
        isa!({
            // A loop, not a closure, which would be a function of its own.
            let mut words = [_mm512_and_si512(w, _mm512_set1_epi16(255)), _mm512_srli_epi16::<8>(w)];
            for word in &mut words {
                let (code, one) = (*word, _mm512_set1_epi16(1));
                let e = _mm512_and_si512(_mm512_srli_epi16::<3>(code), _mm512_set1_epi16(15));
                let mantissa = _mm512_and_si512(code, _mm512_set1_epi16(7));
                let mantissa = _mm512_or_si512(mantissa, _mm512_slli_epi16::<3>(_mm512_min_epi16(e, one)));
                let power = _mm512_sllv_epi16(_mm512_set1_epi16(-1), _mm512_max_epi16(e, one));
                let negative = _mm512_mulhrs_epi16(_mm512_slli_epi16::<11>(mantissa), power);
                let positive = _mm512_testn_epi16_mask(code, _mm512_set1_epi16(0x80));
                let level = _mm512_mask_sub_epi16(negative, positive, _mm512_setzero_si512(), negative);
                *word = _mm512_mulhrs_epi16(level, scale);
            }
            words
        })
    }
    #[inline(always)]
    unsafe fn mul_add_i(a: __m512i, b: __m512i, acc: __m512i) -> __m512i {
        isa!(_mm512_add_epi32(acc, _mm512_mullo_epi32(a, b)))
    }
    #[inline(always)]
    unsafe fn dot_pair(acc: __m512i, w: __m512i, x: *const i16) -> __m512i {
        isa!(dpwssd(acc, w, x))
    }
    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m512 {
        isa!(_mm512_loadu_ps(p.cast()))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> __m512 {
        isa!(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast())))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> __m512 {
        isa!({
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        })
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> __m512i {
        isa!(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> __m512i {
        isa!(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())))
    }
    #[inline(always)]
    unsafe fn load_low_nibbles(p: *const u8) -> __m512i {
        isa!(_mm512_and_si512(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())), _mm512_set1_epi32(15)))
    }
    #[inline(always)]
    unsafe fn load_high_nibbles(p: *const u8) -> __m512i {
        isa!(_mm512_srli_epi32::<4>(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))))
    }
    #[inline(always)]
    unsafe fn load_i16(p: *const u8) -> __m512i {
        isa!(_mm512_cvtepi16_epi32(_mm256_loadu_si256(p.cast())))
    }
    #[inline(always)]
    unsafe fn load_pairs(p: *const u8) -> __m512i {
        isa!(_mm512_loadu_si512(p.cast()))
    }
    #[inline(always)]
    unsafe fn load_half_powers(p: *const u8) -> __m512 {
        isa!({
            let e = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
            let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(e, _mm512_set1_epi32(1)));
            let denormal = _mm512_sllv_epi32(_mm512_set1_epi32(0x0020_0000), e);
            let is_normal = _mm512_cmpgt_epi32_mask(e, _mm512_set1_epi32(1));
            _mm512_castsi512_ps(_mm512_mask_blend_epi32(is_normal, denormal, normal))
        })
    }
    #[inline(always)]
    unsafe fn store(v: __m512, p: *mut f32) {
        isa!(_mm512_storeu_ps(p, v))
    }
    #[inline(always)]
    unsafe fn codes(p: *const u8) -> __m512i {
        isa!(_mm512_loadu_si512(p.cast()))
    }
    #[inline(always)]
    unsafe fn shl<const N: u32>(v: __m512i) -> __m512i {
        isa!(_mm512_slli_epi16::<N>(v))
    }
    #[inline(always)]
    unsafe fn shr<const N: u32>(v: __m512i) -> __m512i {
        isa!(_mm512_srli_epi16::<N>(v))
    }
    #[inline(always)]
    unsafe fn mask(v: __m512i, mask: u8) -> __m512i {
        isa!(_mm512_and_si512(v, _mm512_set1_epi8(mask as i8)))
    }
    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        isa!(_mm512_or_si512(a, b))
    }
    #[inline(always)]
    unsafe fn look_up(table: &[u8; 16], v: __m512i) -> __m512i {
        isa!(_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), v))
    }
    #[inline(always)]
    unsafe fn dot(acc: __m512i, w: __m512i, x: *const i8) -> __m512i {
        isa!(_mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(x.cast::<i32>().read_unaligned())))
    }
    #[inline(always)]
    unsafe fn dot_wide(acc: __m512i, w: __m512i, x: *const i8) -> __m512i {
        // SAFETY: isa
        unsafe { Self::dot(acc, w, x) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: isa; a prefetch of any address is no access.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}

//! One vector vocabulary for the ops beside the linear layers, so that each op is written once.
//!
//! [`Simd`] is implemented by the ISA tokens: holding a token proves that the instructions exist, which makes its
//! methods safe to call. An op is a [`Kernel`]; [`run`] enters a function compiled for the ISA and everything
//! `#[inline(always)]` below it becomes that ISA's code.
//!
//! Invariant: every method works lane by lane (the reductions in one fixed tree), so an op's result for a row
//! depends on the row and the ISA alone.

use half::{bf16, f16};

use crate::isa::Isa;
use crate::kv::paired::{Code, Fp8, Int8, SMALLEST};

/// Vector operations of one instruction set. `F` is a vector of [`Simd::LANES`] f32.
pub(crate) trait Simd: Copy + Send + Sync {
    /// A vector of f32.
    type F: Copy;
    /// f32 lanes of a vector; divides [`pelton_backend::PAGE_LEN`].
    const LANES: usize;
    /// Rows that a register tile of two vectors a row may have without spilling.
    const TILE_ROWS: usize;
    /// Rows that a register tile of one vector and two chains of sums a row may have without spilling.
    const PAIR_ROWS: usize;

    fn splat(self, v: f32) -> Self::F;
    /// Loads the first `LANES` elements.
    fn load(self, from: &[f32]) -> Self::F;
    /// Loads `LANES` IEEE half-precision numbers.
    fn load_f16(self, from: &[f16]) -> Self::F;
    /// Loads `LANES` signed bytes as numbers.
    fn load_int8(self, from: &[u8]) -> Self::F;
    /// Loads `LANES` e4m3 numbers, none of them NaN.
    fn load_fp8(self, from: &[u8]) -> Self::F;
    /// Loads `LANES` pairs of bfloat16 numbers: the first of each, and the second of each.
    fn load_pairs(self, from: &[bf16]) -> (Self::F, Self::F);
    fn store(self, v: Self::F, to: &mut [f32]);
    /// Rounds to nearest even bfloat16; magnitudes below [`SMALLEST`] become 0, NaN stays one.
    fn round_bf16(self, v: Self::F) -> Self::F;
    /// Rounds to the nearest bfloat16, ties away from zero; NaN must be the default one.
    fn round_weight(self, v: Self::F) -> Self::F;
    /// Stores numbers that are bfloat16 already, `a` and then `b`.
    fn store_two_bf16(self, a: Self::F, b: Self::F, to: &mut [bf16]);
    /// Stores numbers that are bfloat16 already.
    fn store_bf16(self, v: Self::F, to: &mut [bf16]);
    /// Rounds to nearest even half precision.
    fn store_f16(self, v: Self::F, to: &mut [f16]);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, fused where the ISA has it.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// Nearest integer, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    /// `2^n` of integers `n` in `-126..=127`.
    fn pow2(self, n: Self::F) -> Self::F;
    /// `2^n` of `z = n + 1.5 * 2^23`, n in `-126..=127`; elsewhere some number, or NaN where `z` is one or not.
    fn pow2_of_sum(self, z: Self::F) -> Self::F;
    /// `yes` in the lanes where `a < b`, `no` in the others (and where either is NaN).
    fn if_less(self, a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F;
    /// Sum of the lanes, in one fixed tree.
    fn sum(self, v: Self::F) -> f32;
    /// Largest lane.
    fn top(self, v: Self::F) -> f32;

    /// Asks for the cache line at `from` to come to the second level, for later; a hint, so any index is fine.
    fn prefetch_far<T>(self, from: &[T], index: usize);

    /// Loads the first `from.len() < LANES` lanes; the others are 0.
    #[inline(always)]
    fn load_part(self, from: &[f32]) -> Self::F {
        let mut whole = [0.0; 16];
        whole[..from.len()].copy_from_slice(from);
        self.load(&whole)
    }

    /// Stores the first `to.len() < LANES` lanes.
    #[inline(always)]
    fn store_part(self, v: Self::F, to: &mut [f32]) {
        let mut whole = [0.0; 16];
        self.store(v, &mut whole);
        to.copy_from_slice(&whole[..to.len()]);
    }
}

/// `LANES` elements of `x` from `at`, zeros past its end.
#[inline(always)]
pub(crate) fn load_from<S: Simd>(s: S, x: &[f32], at: usize) -> S::F {
    if x.len() - at >= S::LANES { s.load(&x[at..]) } else { s.load_part(&x[at..]) }
}

/// The bits of an f32, rounded to bfloat16 as [`Simd::round_bf16`] does.
#[inline(always)]
fn rounded_bits(v: f32) -> u32 {
    let bits = v.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    let number = if v.abs() < SMALLEST { 0 } else { rounded };
    if v.is_nan() { 0x7fc0_0000 } else { number }
}

/// Code that can be compiled for any instruction set. `run` must be `#[inline(always)]`.
pub(crate) trait Kernel {
    /// What it computes.
    type Out;
    /// Runs with the vectors of `S`.
    fn run<S: Simd>(self, simd: S) -> Self::Out;
}

/// Runs a kernel as code of `isa`.
pub(crate) fn run<K: Kernel>(isa: Isa, kernel: K) -> K::Out {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Amx(token) => crate::simd_x86::run_avx512(token.avx512(), kernel),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(token) => crate::simd_x86::run_avx512(token, kernel),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(token) => crate::simd_x86::run_avx2(token, kernel),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon(token) => kernel.run(token),
        _ => kernel.run(Portable),
    }
}

/// Plain Rust over arrays of 8, which compilers turn into the baseline vectors of the target (SSE2, NEON).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; 8] {
    std::array::from_fn(f)
}

impl Simd for Portable {
    type F = [f32; 8];
    const LANES: usize = 8;
    const TILE_ROWS: usize = 2;
    const PAIR_ROWS: usize = 2;

    #[inline(always)]
    fn splat(self, v: f32) -> [f32; 8] {
        [v; 8]
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> [f32; 8] {
        *from.first_chunk().expect("a vector of 8")
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16]) -> [f32; 8] {
        let v: &[f16; 8] = from.first_chunk().expect("a vector of 8");
        each(|i| v[i].to_f32())
    }

    #[inline(always)]
    fn load_int8(self, from: &[u8]) -> [f32; 8] {
        let codes: &[u8; 8] = from.first_chunk().expect("a vector of 8");
        each(|i| Int8::decode(codes[i]))
    }

    #[inline(always)]
    fn load_fp8(self, from: &[u8]) -> [f32; 8] {
        let codes: &[u8; 8] = from.first_chunk().expect("a vector of 8");
        each(|i| Fp8::decode(codes[i]))
    }

    #[inline(always)]
    fn load_pairs(self, from: &[bf16]) -> ([f32; 8], [f32; 8]) {
        let v: &[bf16; 16] = from.first_chunk().expect("8 pairs");
        let wide = |x: bf16| f32::from_bits(u32::from(x.to_bits()) << 16);
        (each(|i| wide(v[2 * i])), each(|i| wide(v[2 * i + 1])))
    }

    #[inline(always)]
    fn round_bf16(self, v: [f32; 8]) -> [f32; 8] {
        each(|i| f32::from_bits(rounded_bits(v[i])))
    }

    #[inline(always)]
    fn round_weight(self, v: [f32; 8]) -> [f32; 8] {
        each(|i| f32::from_bits(v[i].to_bits().wrapping_add(0x8000) & 0xffff_0000))
    }

    #[inline(always)]
    fn store_two_bf16(self, a: [f32; 8], b: [f32; 8], to: &mut [bf16]) {
        let (first, second) = to.split_at_mut(8);
        self.store_bf16(a, first);
        self.store_bf16(b, second);
    }

    #[inline(always)]
    fn store_bf16(self, v: [f32; 8], to: &mut [bf16]) {
        *to.first_chunk_mut().expect("a vector of 8") = v.map(|v| bf16::from_bits((v.to_bits() >> 16) as u16));
    }

    #[inline(always)]
    fn store(self, v: [f32; 8], to: &mut [f32]) {
        *to.first_chunk_mut().expect("a vector of 8") = v;
    }

    #[inline(always)]
    fn store_f16(self, v: [f32; 8], to: &mut [f16]) {
        *to.first_chunk_mut().expect("a vector of 8") = v.map(f16::from_f32);
    }

    #[inline(always)]
    fn add(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        each(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        each(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        each(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        each(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn fma(self, a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        each(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn max(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn min(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn round(self, a: [f32; 8]) -> [f32; 8] {
        // Adding 1.5 * 2^23 leaves no fraction bits; exact for |a| < 2^22, which is all that `exp` asks for.
        const MAGIC: f32 = 12_582_912.0;
        each(|i| (a[i] + MAGIC) - MAGIC)
    }

    #[inline(always)]
    fn pow2(self, n: [f32; 8]) -> [f32; 8] {
        each(|i| f32::from_bits(((n[i] as i32 + 127) as u32) << 23))
    }

    #[inline(always)]
    fn pow2_of_sum(self, z: [f32; 8]) -> [f32; 8] {
        each(|i| f32::from_bits((z[i].to_bits() << 23).wrapping_add(0x3f80_0000)))
    }

    #[inline(always)]
    fn if_less(self, a: [f32; 8], b: [f32; 8], yes: [f32; 8], no: [f32; 8]) -> [f32; 8] {
        each(|i| if a[i] < b[i] { yes[i] } else { no[i] })
    }

    #[inline(always)]
    fn prefetch_far<T>(self, _from: &[T], _index: usize) {}

    #[inline(always)]
    fn sum(self, v: [f32; 8]) -> f32 {
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }

    #[inline(always)]
    fn top(self, v: [f32; 8]) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

//! What the machine could do at best, measured: bytes read and operations done in a second by all threads together.
//!
//! A figure without its ceiling says little. Each arithmetic ceiling is a loop of nothing but the instruction that
//! the kernels of an instruction set live on, with enough independent accumulators to hide its latency and all
//! operands in registers. A multiplication and an addition count as two operations.
//!
//! Invariant: a ceiling is the best of several passes, so what disturbs one pass does not lower it.

#[cfg(target_arch = "aarch64")]
mod arm;

use std::hint::black_box;
use std::time::Instant;

use crate::bandwidth::measure_read_bandwidth;
use crate::isa::Isa;
use crate::pool::Pool;

/// Passes, of which the best counts.
const PASSES: usize = 6;
/// How long one pass should take, in seconds: long beside waking the threads, short beside a scheduler's time slice.
const PASS_SECONDS: f64 = 4e-3;
/// Accumulators of a vector loop: two units of a latency of 4 to 5 cycles keep 10 busy.
const CHAINS: usize = 12;

/// The limits of the machine for the kernels of one instruction set, all threads together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// GB/s (10^9 bytes a second) read from memory.
    pub read_gb_per_s: f64,
    /// 10^12 operations a second on signed bytes, what quantized weights are multiplied with.
    pub int8_tera_ops: f64,
    /// The instruction behind it.
    pub int8_unit: &'static str,
    /// 10^12 operations a second on bfloat16 tiles; `None` where the instruction set has none.
    pub bf16_tera_ops: Option<f64>,
    /// 10^12 operations a second on float32.
    pub f32_tera_ops: f64,
    /// The instruction behind it.
    pub f32_unit: &'static str,
}

/// A loop that does `operations` a round.
#[derive(Clone, Copy)]
struct Unit {
    name: &'static str,
    operations: u64,
    run: fn(Isa, u64),
}

/// Measures them for the kernels of `isa` on the threads of `pool`. `bytes` is the size of the buffer that is read:
/// several times the last-level cache.
pub fn measure_ceilings(isa: Isa, pool: &Pool, bytes: usize) -> Ceilings {
    let (int8, f32, bf16) = units(isa);
    Ceilings {
        read_gb_per_s: measure_read_bandwidth(pool, bytes),
        int8_tera_ops: tera_ops(int8, isa, pool),
        int8_unit: int8.name,
        bf16_tera_ops: bf16.map(|unit| tera_ops(unit, isa, pool)),
        f32_tera_ops: tera_ops(f32, isa, pool),
        f32_unit: f32.name,
    }
}

fn tera_ops(unit: Unit, isa: Isa, pool: &Pool) -> f64 {
    // How many rounds fill a pass, from one short run on this thread.
    let mut rounds = 64;
    loop {
        let start = Instant::now();
        (unit.run)(isa, rounds);
        let seconds = start.elapsed().as_secs_f64();
        if seconds > PASS_SECONDS / 4.0 {
            rounds = (rounds as f64 * PASS_SECONDS / seconds).max(1.0) as u64;
            break;
        }
        rounds *= 2;
    }
    let threads = pool.threads();
    let pass = || {
        let start = Instant::now();
        pool.run(threads, &|_| (unit.run)(isa, rounds));
        (threads as u64 * rounds * unit.operations) as f64 / start.elapsed().as_secs_f64() / 1e12
    };
    (0..PASSES).map(|_| pass()).fold(0.0, f64::max)
}

/// The loops of an instruction set: for bytes, for float32, and for bfloat16 where it has its own.
fn units(isa: Isa) -> (Unit, Unit, Option<Unit>) {
    let int8_plain = Unit { name: "plain int8", operations: 2 * 64, run: plain_int8 };
    let f32_plain = Unit { name: "plain f32", operations: 2 * 32, run: plain_f32 };
    #[cfg(target_arch = "x86_64")]
    {
        let chains = CHAINS as u64;
        let f32_zmm = Unit { name: "vfmadd zmm", operations: chains * 32, run: x86::fma_zmm };
        let f32_ymm = Unit { name: "vfmadd ymm", operations: chains * 16, run: x86::fma_ymm };
        let int8_zmm = Unit { name: "vpdpbusd zmm", operations: chains * 128, run: x86::vnni_zmm };
        match isa {
            Isa::Scalar | Isa::Neon(_) => {}
            Isa::Avx2(token) if token.has_vnni() => {
                let int8 = Unit { name: "vpdpbusd ymm", operations: chains * 64, run: x86::vnni_ymm };
                return (int8, f32_ymm, None);
            }
            Isa::Avx2(_) => {
                let int8 = Unit { name: "vpmaddubsw ymm", operations: chains * 64, run: x86::maddubs_ymm };
                return (int8, f32_ymm, None);
            }
            Isa::Avx512(_) => return (int8_zmm, f32_zmm, None),
            Isa::Amx(_) => {
                // Four products of tiles a round.
                let int8 = Unit { name: "tdpbssd", operations: 4 * 2 * 16 * 16 * 64, run: x86::amx_int8 };
                let bf16 = Unit { name: "tdpbf16ps", operations: 4 * 2 * 16 * 16 * 32, run: x86::amx_bf16 };
                return (int8, f32_zmm, Some(bf16));
            }
        }
    }
    #[cfg(target_arch = "aarch64")]
    if let Isa::Neon(token) = isa {
        let (int8, f32) = arm::units(token);
        return (int8, f32, None);
    }
    let _ = isa;
    (int8_plain, f32_plain, None)
}

/// What the compiler makes of plain Rust.
fn plain_f32(_: Isa, rounds: u64) {
    let (a, b) = (black_box([0.999f32; 32]), black_box([0.001f32; 32]));
    let mut sums = [0.0f32; 32];
    for _ in 0..rounds {
        for i in 0..32 {
            sums[i] = sums[i] * a[i] + b[i];
        }
    }
    black_box(sums);
}

/// As [`plain_f32`], for products of bytes that are summed in 32 bits.
fn plain_int8(_: Isa, rounds: u64) {
    let (mut a, b) = (black_box([3i8; 64]), black_box([5i8; 64]));
    let mut sums = [0i32; 64];
    for _ in 0..rounds {
        for i in 0..64 {
            sums[i] = sums[i].wrapping_add(i32::from(a[i]) * i32::from(b[i]));
        }
        // So that the products are not computed once for all rounds.
        a = black_box(a);
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::CHAINS;
    use crate::amx::{Tiles, spin_bf16, spin_int8};
    use crate::isa::Isa;

    pub(super) fn fma_zmm(isa: Isa, rounds: u64) {
        assert!(matches!(isa, Isa::Avx512(_) | Isa::Amx(_)), "{isa}");
        // SAFETY: the instruction set proves them.
        unsafe { fma_512(rounds) }
    }

    #[target_feature(enable = "avx512f")]
    fn fma_512(rounds: u64) {
        let (a, b) = (black_box(_mm512_set1_ps(0.999)), black_box(_mm512_set1_ps(0.001)));
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }

    pub(super) fn fma_ymm(isa: Isa, rounds: u64) {
        assert!(!matches!(isa, Isa::Scalar));
        // SAFETY: the instruction set proves them.
        unsafe { fma_256(rounds) }
    }

    #[target_feature(enable = "avx2,fma")]
    fn fma_256(rounds: u64) {
        let (a, b) = (black_box(_mm256_set1_ps(0.999)), black_box(_mm256_set1_ps(0.001)));
        let mut sums = [_mm256_setzero_ps(); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }

    pub(super) fn vnni_zmm(isa: Isa, rounds: u64) {
        assert!(matches!(isa, Isa::Avx512(_) | Isa::Amx(_)), "{isa}");
        // SAFETY: the instruction set proves them.
        unsafe { vnni_512(rounds) }
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn vnni_512(rounds: u64) {
        let (a, b) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(5)));
        let mut sums = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }

    pub(super) fn vnni_ymm(isa: Isa, rounds: u64) {
        assert!(matches!(isa, Isa::Avx2(token) if token.has_vnni()), "{isa}");
        // SAFETY: just checked.
        unsafe { vnni_256(rounds) }
    }

    #[target_feature(enable = "avx2,avxvnni")]
    fn vnni_256(rounds: u64) {
        let (a, b) = (black_box(_mm256_set1_epi8(3)), black_box(_mm256_set1_epi8(5)));
        let mut sums = [_mm256_setzero_si256(); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_dpbusd_avx_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }

    pub(super) fn maddubs_ymm(isa: Isa, rounds: u64) {
        assert!(!matches!(isa, Isa::Scalar));
        // SAFETY: the instruction set proves them.
        unsafe { maddubs_256(rounds) }
    }

    /// Without VNNI a dot product of bytes is three instructions: to 16 bits, to 32 bits, and the sum.
    #[target_feature(enable = "avx2")]
    fn maddubs_256(rounds: u64) {
        let (mut a, b) = (black_box(_mm256_set1_epi8(3)), black_box([_mm256_set1_epi8(5); CHAINS]));
        let ones = black_box(_mm256_set1_epi16(1));
        let mut sums = [_mm256_setzero_si256(); CHAINS];
        for _ in 0..rounds {
            for i in 0..CHAINS {
                let pairs = _mm256_maddubs_epi16(a, b[i]);
                sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(pairs, ones));
            }
            // So that the products are not computed once for all rounds.
            a = black_box(a);
        }
        black_box(sums);
    }

    pub(super) fn amx_int8(isa: Isa, rounds: u64) {
        let Isa::Amx(token) = isa else { panic!("tiles on {isa}") };
        spin_int8(&Tiles::new(token, &crate::amx::FULL_TILES), rounds);
    }

    pub(super) fn amx_bf16(isa: Isa, rounds: u64) {
        let Isa::Amx(token) = isa else { panic!("tiles on {isa}") };
        spin_bf16(&Tiles::new(token, &crate::amx::FULL_TILES), rounds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_has_plausible_ceilings() {
        let pool = Pool::new(2).unwrap();
        for isa in Isa::available() {
            let c = measure_ceilings(isa, &pool, 4 << 20);
            for (name, tera) in [(c.int8_unit, c.int8_tera_ops), (c.f32_unit, c.f32_tera_ops)] {
                assert!(tera > 1e-4 && tera < 1e4, "{isa}, {name}: {tera}");
            }
            assert_eq!(c.bf16_tera_ops.is_some(), matches!(isa, Isa::Amx(_)));
            println!("{isa}: {c:?}");
        }
    }
}

//! The loops of NEON: multiplications of float32, and each way to multiply bytes.

use std::arch::aarch64::*;
use std::hint::black_box;

use super::{CHAINS, Unit};
use crate::arm;
use crate::isa::{Isa, Neon};

/// For bytes and for float32.
pub(super) fn units(token: Neon) -> (Unit, Unit) {
    let chains = CHAINS as u64;
    let int8 = if token.has_matrix() {
        Unit { name: "usmmla", operations: chains * 64, run: matrix }
    } else if token.has_dot() {
        Unit { name: "sdot", operations: chains * 32, run: dot }
    } else {
        Unit { name: "smull", operations: chains * 32, run: widening }
    };
    (int8, Unit { name: "fmla", operations: chains * 8, run: fma })
}

fn fma(_: Isa, rounds: u64) {
    // SAFETY: NEON is part of the architecture.
    unsafe {
        let (a, b) = (black_box(vdupq_n_f32(0.999)), black_box(vdupq_n_f32(0.001)));
        let mut sums = [vdupq_n_f32(0.0); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = vfmaq_f32(b, *sum, a);
            }
        }
        black_box(sums);
    }
}

fn matrix(isa: Isa, rounds: u64) {
    assert!(matches!(isa, Isa::Neon(token) if token.has_matrix()), "{isa}");
    // SAFETY: just checked.
    unsafe { matrix_loop(rounds) }
}

#[target_feature(enable = "neon,i8mm")]
fn matrix_loop(rounds: u64) {
    let (a, b) = (black_box(vdupq_n_u8(3)), black_box(vdupq_n_s8(5)));
    let mut sums = [vdupq_n_s32(0); CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            // SAFETY: the feature is this function's.
            *sum = unsafe { arm::usmmla(*sum, a, b) };
        }
    }
    black_box(sums);
}

fn dot(isa: Isa, rounds: u64) {
    assert!(matches!(isa, Isa::Neon(token) if token.has_dot()), "{isa}");
    // SAFETY: just checked.
    unsafe { dot_loop(rounds) }
}

#[target_feature(enable = "neon,dotprod")]
fn dot_loop(rounds: u64) {
    let (a, b) = (black_box(vdupq_n_s8(3)), black_box(vdupq_n_s8(5)));
    let mut sums = [vdupq_n_s32(0); CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            // SAFETY: the feature is this function's.
            *sum = unsafe { arm::sdot(*sum, a, b) };
        }
    }
    black_box(sums);
}

/// Two products that widen, the sum of pairs, and the sum.
fn widening(_: Isa, rounds: u64) {
    // SAFETY: NEON is part of the architecture.
    unsafe {
        let (mut a, b) = (black_box(vdupq_n_s8(3)), black_box([vdupq_n_s8(5); CHAINS]));
        let mut sums = [vdupq_n_s32(0); CHAINS];
        for _ in 0..rounds {
            for i in 0..CHAINS {
                let pairs = vpaddq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b[i])), vmull_high_s8(a, b[i]));
                sums[i] = vpadalq_s16(sums[i], pairs);
            }
            // So that the products are not computed once for all rounds.
            a = black_box(a);
        }
        black_box(sums);
    }
}

//! exp and tanh on vectors.
//!
//! Invariant: lane by lane the same bits, whatever the other lanes hold; NaN in, NaN out.

use crate::simd::Simd;

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts: `n * LN2_HIGH` is exact for every exponent `n`.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// exp(x) below this is 0: the smallest normal number is reached.
const EXP_LOW: f32 = -87.336_54;
/// exp(x) above this stays at exp(88.37) = 2.4e38.
const EXP_HIGH: f32 = 88.37;

/// `e^x`, relative error below 2e-7 in `-87.3..=88.3`; 0 below, 2.4e38 above.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`, then a polynomial in r (coefficients of `expf` in Cephes, S. Moshier)
/// times `2^n`.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    let low = s.splat(EXP_LOW);
    // The constants come first: max and min give their second operand where one is NaN.
    let y = s.min(s.splat(EXP_HIGH), s.max(low, x));
    let n = s.round(s.mul(y, s.splat(LOG2_E)));
    let r = s.fma(n, s.splat(-LN2_HIGH), y);
    let r = s.fma(n, s.splat(-LN2_LOW), r);
    let mut p = s.splat(1.987_569_1e-4);
    for &c in &[1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = s.fma(p, r, s.splat(c));
    }
    let p = s.add(s.fma(p, s.mul(r, r), r), s.splat(1.0));
    s.if_less(x, low, s.splat(0.0), s.mul(p, s.pow2(n)))
}

/// Polynomials of `2^f` for `|f| <= 1/2`, without the leading 1, fitted to the least relative error: below 3e-6.
pub(crate) const POW2_SHORT: [f32; 4] = [0.693_124_2, 0.240_240_99, 0.055_906_43, 0.009_582_853];

/// The same, below 1e-7: no more than float32 rounds off.
#[allow(clippy::approx_constant, reason = "fitted together with the others: near ln 2, not ln 2")]
pub(crate) const POW2_LONG: [f32; 5] = [0.693_147, 0.240_222_42, 0.055_507_336, 0.009_671_513, 0.001_326_472_6];

/// `2^t` for weights, `t <= 127`; 0 where `t < -50`. As exact as the polynomial.
#[inline(always)]
pub(crate) fn exp2<S: Simd, const N: usize>(s: S, t: S::F, polynomial: [f32; N]) -> S::F {
    // t = n + f. Adding 1.5 * 2^23 rounds to a whole number, which stays in the low bits.
    let magic = s.splat(12_582_912.0);
    let z = s.add(t, magic);
    let f = s.sub(t, s.sub(z, magic));
    let mut p = s.splat(polynomial[N - 1]);
    for i in (0..N - 1).rev() {
        p = s.fma(p, f, s.splat(polynomial[i]));
    }
    let p = s.fma(p, f, s.splat(1.0));
    s.if_less(t, s.splat(-50.0), s.splat(0.0), s.mul(p, s.pow2_of_sum(z)))
}

/// `x / (1 + e^-y)`: SiLU where `y = x`, tanh-GELU where `y = 2 sqrt(2 / pi) (x + 0.044715 x^3)`.
#[inline(always)]
pub(crate) fn times_sigmoid<S: Simd>(s: S, x: S::F, y: S::F) -> S::F {
    let e = exp(s, s.sub(s.splat(0.0), y));
    s.div(x, s.add(s.splat(1.0), e))
}

/// `tanh x`, relative error below 3e-7 (polynomial below 0.625 with the coefficients of Cephes' `tanhf`, by `exp`
/// above).
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let zero = s.splat(0.0);
    let one = s.splat(1.0);
    let size = s.if_less(x, zero, s.sub(zero, x), x);
    let e = exp(s, s.add(size, size));
    let large = s.sub(one, s.div(s.splat(2.0), s.add(e, one)));
    let large = s.if_less(x, zero, s.sub(zero, large), large);
    let z = s.mul(x, x);
    let mut p = s.splat(-5.704_988_7e-3);
    for &c in &[2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
        p = s.fma(p, z, s.splat(c));
    }
    let small = s.fma(s.mul(p, z), x, x);
    s.if_less(size, s.splat(0.625), small, large)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::simd::{self, Kernel};

    struct Map<'a>(&'a mut [f32], bool);

    impl Kernel for Map<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for x in self.0.chunks_exact_mut(S::LANES) {
                let v = s.load(x);
                s.store(if self.1 { tanh(s, v) } else { exp(s, v) }, x);
            }
        }
    }

    /// Largest relative error over `n` points of `from..to`.
    fn worst(isa: Isa, is_tanh: bool, from: f32, to: f32, truth: impl Fn(f64) -> f64) -> f64 {
        let n = 1 << 18;
        let xs: Vec<f32> = (0..n).map(|i| from + (to - from) * (i as f32 / n as f32)).collect();
        let mut ys = xs.clone();
        simd::run(isa, Map(&mut ys, is_tanh));
        let error = |(&x, &y): (&f32, &f32)| {
            let t = truth(f64::from(x));
            ((f64::from(y) - t) / t).abs()
        };
        xs.iter().zip(&ys).filter(|(x, _)| **x != 0.0).map(error).fold(0.0, f64::max)
    }

    #[test]
    fn exp_and_tanh_keep_their_stated_errors() {
        for isa in Isa::available() {
            assert!(worst(isa, false, -87.3, 88.3, f64::exp) < 2e-7, "{isa:?}");
            assert!(worst(isa, false, -1.0, 1.0, f64::exp) < 2e-7, "{isa:?}");
            assert!(worst(isa, true, -12.0, 12.0, f64::tanh) < 3e-7, "{isa:?}");
            assert!(worst(isa, true, -1e-3, 1e-3, f64::tanh) < 3e-7, "{isa:?}");
        }
    }

    #[test]
    fn the_edges_are_defined() {
        for isa in Isa::available() {
            let mut x = [0.0, f32::NEG_INFINITY, -1e30, -87.4, f32::INFINITY, 1e30, f32::NAN, 1.0].repeat(2);
            simd::run(isa, Map(&mut x, false));
            assert_eq!(x[..4], [1.0, 0.0, 0.0, 0.0], "{isa:?}");
            assert!(x[4] > 2e38 && x[5] == x[4] && x[6].is_nan(), "{isa:?} {x:?}");
            let mut x = [0.0, f32::NEG_INFINITY, -1e30, 0.6249, f32::INFINITY, 1e30, f32::NAN, 40.0].repeat(2);
            simd::run(isa, Map(&mut x, true));
            assert!(x[0] == 0.0 && x[1] == -1.0 && x[2] == -1.0 && x[4] == 1.0 && x[5] == 1.0, "{isa:?} {x:?}");
            assert!(x[6].is_nan() && x[7] == 1.0, "{isa:?} {x:?}");
        }
    }
}

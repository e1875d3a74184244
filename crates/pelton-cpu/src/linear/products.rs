//! Exact products of bytes: a pair of dwords of 16 output features with the codes of `M` activation rows.
//!
//! Where the machine multiplies two rows at once ([`Lanes::TWO_ROWS`]), the sums of a unit are kept in its order of two
//! rows until they are complete: [`begin`], [`add`] for each pair of dwords, [`end`].
//!
//! Invariant: sums of integers, none of which overflows; so all ways give the same bits.

#![allow(clippy::needless_range_loop, reason = "m numbers rows, in several arrays at once")]

use super::blocks::{Format, fine_weights};
use super::codes::Codes;
use super::lanes::Lanes;

/// Rows of activations of one unit.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// 32 codes of the first row.
    pub(super) codes: *const i8,
    /// Minus the sum of those that are multiplied, of the first row.
    pub(super) neg_sums: *const i32,
    /// Bytes from a row to the next, of both.
    pub(super) stride: usize,
}

/// Sums of `M` rows that begin with `first`.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(super) unsafe fn begin<S: Lanes, const M: usize>(first: [i32; M]) -> [S::I; M] {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [S::splat_i(0); M];
        if S::TWO_ROWS && M > 1 {
            for m in (0..M).step_by(2) {
                [sums[m], sums[m + 1]] = S::two_rows([first[m], first[m + 1]]);
            }
        } else {
            for m in 0..M {
                sums[m] = S::splat_i(first[m]);
            }
        }
        sums
    }
}

/// Adds the products of dwords `2 t` and `2 t + 1` of each row with `pair`: with `WIDE`, those of [`Lanes::dot_wide`].
///
/// # Safety
/// As [`Lanes`]; `x` has `M` rows.
#[inline(always)]
pub(super) unsafe fn add<S: Lanes, const M: usize, const WIDE: bool>(
    sums: &mut [S::I; M],
    pair: [S::B; 2],
    x: Rows,
    t: usize,
) {
    let [a, b] = pair;
    // SAFETY: the caller's.
    unsafe {
        if S::TWO_ROWS && M > 1 {
            for m in (0..M).step_by(2) {
                let dwords = x.codes.add(m * x.stride + 8 * t);
                let both = [dwords, dwords.add(x.stride)];
                [sums[m], sums[m + 1]] = S::dot_two_rows([sums[m], sums[m + 1]], pair, both);
            }
            return;
        }
        for m in 0..M {
            let dwords = x.codes.add(m * x.stride + 8 * t);
            if WIDE {
                sums[m] = S::dot_wide(S::dot_wide(sums[m], a, dwords), b, dwords.add(4));
            } else {
                sums[m] = S::dot(S::dot(sums[m], a, dwords), b, dwords.add(4));
            }
        }
    }
}

/// The sums of each row, lane by lane.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(super) unsafe fn end<S: Lanes, const M: usize>(sums: [S::I; M]) -> [S::I; M] {
    let mut sums = sums;
    if S::TWO_ROWS && M > 1 {
        for m in (0..M).step_by(2) {
            // SAFETY: the caller's.
            [sums[m], sums[m + 1]] = unsafe { S::apart([sums[m], sums[m + 1]]) };
        }
    }
    sums
}

/// Adds the exact integer dot products of `M` rows with the fixed-point weights of a unit of a `FINE` format, in two
/// digits: `w = 256 upper + lower`, the upper one a signed byte, the lower one an unsigned byte.
///
/// # Safety
/// As [`Lanes`], which [`Lanes::HAS_DIGITS`]; `codes` points to a unit's codes, and `x` has `M` rows.
#[inline(always)]
pub(super) unsafe fn fine_digits<F: Format, S: Lanes, const M: usize>(
    codes: *const u8,
    x: Rows,
    total: &mut [S::I; M],
) {
    // SAFETY: the caller's.
    unsafe {
        let scales = codes.add(F::Codes::BYTES);
        let scale = S::pair_i(F::scale::<S>(scales, 0), F::scale::<S>(scales, 0));
        // `dot_wide` takes 128 from both digits, or from none: the lower one should lose nothing, the upper one 128.
        let (mut lower_first, mut upper_first) = ([0; M], [0; M]);
        for m in 0..M {
            let minus_128 = *x.neg_sums.byte_add(m * x.stride) << 7;
            if S::WIDE_IS_BIASED {
                upper_first[m] = minus_128;
            } else {
                lower_first[m] = -minus_128;
            }
        }
        let mut lower_sums = begin::<S, M>(lower_first);
        let mut upper_sums = begin::<S, M>(upper_first);
        for t in 0..4 {
            let pair = F::Codes::pair::<S>(codes, t);
            let upper = if F::Codes::TWO_BYTES { F::Codes::upper::<S>(codes, t) } else { pair };
            let [lower_a, upper_a] = S::digits(fine_weights::<F, S>(pair[0], upper[0], scale));
            let [lower_b, upper_b] = S::digits(fine_weights::<F, S>(pair[1], upper[1], scale));
            add::<S, M, true>(&mut lower_sums, [lower_a, lower_b], x, t);
            add::<S, M, true>(&mut upper_sums, [upper_a, upper_b], x, t);
        }
        let (lower_sums, upper_sums) = (end::<S, M>(lower_sums), end::<S, M>(upper_sums));
        for m in 0..M {
            total[m] = S::add_i(total[m], S::add_i(lower_sums[m], S::shift_left(upper_sums[m], 8)));
        }
    }
}

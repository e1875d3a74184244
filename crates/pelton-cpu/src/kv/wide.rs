//! f32 and f16 pages: for those who want every bit, at twice the work.
//!
//! ```text
//! K  [head_dim][32 slots]               transposed: 32 scores at once, each a plain sum over head_dim
//! V  [head_dim / 16][32 slots][16]      panels of 16 columns, head_dim padded up to whole panels
//! ```
//!
//! Invariant: the padding of V stays zero.

use std::marker::PhantomData;

use half::f16;
use pelton_backend::PAGE_LEN;

use super::{Format, PANEL};
use crate::simd::{Simd, load_from};

/// A float that vectors load and store as it is.
pub(crate) trait Float: Copy + Send + Sync + 'static {
    /// Loads a vector.
    fn load<S: Simd>(s: S, from: &[Self]) -> S::F;
    /// Rounds and stores a vector.
    fn store<S: Simd>(s: S, v: S::F, to: &mut [Self]);
    /// Zero.
    const ZERO: Self;
}

impl Float for f32 {
    const ZERO: f32 = 0.0;

    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[f32]) -> S::F {
        s.load(from)
    }

    #[inline(always)]
    fn store<S: Simd>(s: S, v: S::F, to: &mut [f32]) {
        s.store(v, to);
    }
}

impl Float for f16 {
    const ZERO: f16 = f16::ZERO;

    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[f16]) -> S::F {
        s.load_f16(from)
    }

    #[inline(always)]
    fn store<S: Simd>(s: S, v: S::F, to: &mut [f16]) {
        s.store_f16(v, to);
    }
}

/// Pages of floats of type `E`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wide<E>(PhantomData<E>);

impl<E> Wide<E> {
    /// Elements of K in a block; V follows.
    pub(crate) const fn k_len(head_dim: usize) -> usize {
        head_dim * PAGE_LEN
    }
}

/// Where column `col` of slot `slot` lies in V.
#[inline(always)]
pub(crate) fn v_index(col: usize, slot: usize) -> usize {
    (col / PANEL) * PAGE_LEN * PANEL + slot * PANEL + col % PANEL
}

impl<E: Float> Format for Wide<E> {
    type Element = E;

    fn block_len(head_dim: usize) -> usize {
        (head_dim + head_dim.next_multiple_of(PANEL)) * PAGE_LEN
    }

    #[inline(always)]
    fn store<S: Simd>(s: S, key: &[f32], value: &[f32], slot: usize, block: &mut [E]) {
        let (k, v) = block.split_at_mut(Wide::<E>::k_len(key.len()));
        let mut rounded = [E::ZERO; 16];
        for at in (0..key.len()).step_by(S::LANES) {
            E::store(s, load_from(s, key, at), &mut rounded);
            let n = S::LANES.min(key.len() - at);
            for d in 0..n {
                k[(at + d) * PAGE_LEN + slot] = rounded[d];
            }
            E::store(s, load_from(s, value, at), &mut v[v_index(at, slot)..]);
        }
    }
}

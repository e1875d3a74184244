//! The gates of feed-forward blocks, and the soft cap of logits.
//!
//! Invariant: element by element the same bits wherever the element stands: tails run through the same vectors.

use pelton_backend::Gate;

use crate::math;
use crate::simd::{Kernel, Simd};

/// sqrt(2 / pi) twice: the inside of tanh-GELU as the argument of a sigmoid.
const GELU_SCALE: f32 = 1.595_769;
const GELU_CUBE: f32 = 0.044_715;

#[inline(always)]
pub(crate) fn activate<S: Simd>(s: S, gate: Gate, x: S::F) -> S::F {
    match gate {
        Gate::Silu => math::times_sigmoid(s, x, x),
        // 0.5 x (1 + tanh u) = x / (1 + e^-2u)
        Gate::GeluTanh => {
            let cube = s.mul(s.mul(x, x), s.mul(x, s.splat(GELU_CUBE)));
            math::times_sigmoid(s, x, s.mul(s.splat(GELU_SCALE), s.add(x, cube)))
        }
    }
}

/// `out = gate(x[..ffn]) * x[ffn..]` for rows of `2 ffn`.
pub(crate) struct Gated<'a> {
    pub x: &'a [f32],
    pub gate: Gate,
    pub ffn: usize,
    pub out: &'a mut [f32],
}

impl Kernel for Gated<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, out) in self.x.chunks_exact(2 * self.ffn).zip(self.out.chunks_exact_mut(self.ffn)) {
            let (gate, up) = x.split_at(self.ffn);
            let whole = self.ffn - self.ffn % S::LANES;
            for at in (0..whole).step_by(S::LANES) {
                let v = s.mul(activate(s, self.gate, s.load(&gate[at..])), s.load(&up[at..]));
                s.store(v, &mut out[at..]);
            }
            if whole < self.ffn {
                let gate = s.load_part(&gate[whole..]);
                let v = s.mul(activate(s, self.gate, gate), s.load_part(&up[whole..]));
                s.store_part(v, &mut out[whole..]);
            }
        }
    }
}

/// `x = cap * tanh(x / cap)`.
pub(crate) struct SoftCap<'a> {
    pub x: &'a mut [f32],
    pub cap: f32,
}

/// One vector of [`SoftCap`].
#[inline(always)]
pub(crate) fn softcap<S: Simd>(s: S, x: S::F, cap: f32) -> S::F {
    let cap = s.splat(cap);
    s.mul(cap, math::tanh(s, s.div(x, cap)))
}

impl Kernel for SoftCap<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut vectors = self.x.chunks_exact_mut(S::LANES);
        for x in &mut vectors {
            s.store(softcap(s, s.load(x), self.cap), x);
        }
        let tail = vectors.into_remainder();
        if !tail.is_empty() {
            let v = softcap(s, s.load_part(tail), self.cap);
            s.store_part(v, tail);
        }
    }
}

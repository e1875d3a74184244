//! Head norms, rotary embedding, and the store of K and V into their page: one pass over the rows of one page.
//!
//! Invariant: each row's stored bits depend on the row and its position alone.

use pelton_backend::Heads;

use crate::kv::{Format, Geometry};
use crate::norm;
use crate::simd::{Kernel, Simd, load_from};

/// The work on consecutive rows of one sequence that fall into one page of one layer.
pub(crate) struct RopeStore<'a, F: Format> {
    /// `(n, qkv_dim)`.
    pub qkv: &'a mut [f32],
    pub heads: Heads,
    /// `(n, half)` each.
    pub cos: &'a [f32],
    pub sin: &'a [f32],
    /// Weights of the Q and K head norms, and their epsilon.
    pub norms: Option<(&'a [f32], &'a [f32], f32)>,
    pub geometry: Geometry,
    /// The page: K and V blocks of all KV heads.
    pub page: &'a mut [F::Element],
    /// Slot of the first row.
    pub slot: usize,
}

impl<F: Format> Kernel for RopeStore<'_, F> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let RopeStore { qkv, heads, cos, sin, norms, geometry, page, slot } = self;
        let (dim, width) = (heads.head_dim, heads.qkv_dim());
        let half = cos.len() / (qkv.len() / width);
        for (r, row) in qkv.chunks_exact_mut(width).enumerate() {
            let (cos, sin) = (&cos[r * half..(r + 1) * half], &sin[r * half..(r + 1) * half]);
            let rotated = row.chunks_exact_mut(dim).take(heads.n_heads + heads.n_kv_heads);
            for (h, head) in rotated.enumerate() {
                if let Some((q, k, eps)) = norms {
                    norm::norm_in_place(s, head, if h < heads.n_heads { q } else { k }, eps);
                }
                rotate(s, &mut head[..2 * half], cos, sin);
            }
        }
        for h in 0..heads.n_kv_heads {
            let block = &mut page[h * geometry.block_len..(h + 1) * geometry.block_len];
            let k_at = heads.q_dim() + h * dim;
            let v_at = k_at + heads.kv_dim();
            for (r, row) in qkv.chunks_exact(width).enumerate() {
                F::store(s, &row[k_at..k_at + dim], &row[v_at..v_at + dim], slot + r, block);
            }
        }
    }
}

/// Rotates the pairs `(i, i + half)`. Products are rounded before they are added, as in the definition.
#[inline(always)]
fn rotate<S: Simd>(s: S, head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    let (first, second) = head.split_at_mut(half);
    for at in (0..half).step_by(S::LANES) {
        let (a, b) = (load_from(s, first, at), load_from(s, second, at));
        let (c, d) = (load_from(s, cos, at), load_from(s, sin, at));
        let x = s.sub(s.mul(a, c), s.mul(b, d));
        let y = s.add(s.mul(a, d), s.mul(b, c));
        if half - at >= S::LANES {
            s.store(x, &mut first[at..]);
            s.store(y, &mut second[at..]);
        } else {
            s.store_part(x, &mut first[at..]);
            s.store_part(y, &mut second[at..]);
        }
    }
}

//! Head norms, rotary embedding, and the store of K and V into their page: one pass over the rows of one page.
//!
//! Invariant: each row's stored bits depend on the row and its position alone.

use pelton_backend::{Heads, PAGE_LEN};

use crate::kv::{Element, Geometry, PANEL};
use crate::norm;
use crate::simd::{Kernel, Simd};

/// The work on consecutive rows of one sequence that fall into one page of one layer.
pub(crate) struct RopeStore<'a, E> {
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
    pub page: &'a mut [E],
    /// Slot of the first row.
    pub slot: usize,
}

impl<E: Element> Kernel for RopeStore<'_, E> {
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
            let block = &mut page[h * geometry.block_len()..(h + 1) * geometry.block_len()];
            let (k, v) = block.split_at_mut(geometry.k_len());
            let k_at = heads.q_dim() + h * dim;
            let v_at = k_at + heads.kv_dim();
            for (r, row) in qkv.chunks_exact(width).enumerate() {
                store_k(s, &row[k_at..k_at + dim], slot + r, k);
                store_v(s, &row[v_at..v_at + dim], slot + r, v);
            }
        }
    }
}

/// `LANES` elements of `x` from `at`, zeros past its end.
#[inline(always)]
fn load_from<S: Simd>(s: S, x: &[f32], at: usize) -> S::F {
    if x.len() - at >= S::LANES { s.load(&x[at..]) } else { s.load_part(&x[at..]) }
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

/// Writes one key into its column of the transposed block.
#[inline(always)]
fn store_k<S: Simd, E: Element>(s: S, x: &[f32], slot: usize, k: &mut [E]) {
    let mut rounded = [E::ZERO; 16];
    for at in (0..x.len()).step_by(S::LANES) {
        E::store(s, load_from(s, x, at), &mut rounded);
        let n = S::LANES.min(x.len() - at);
        for (d, &e) in rounded[..n].iter().enumerate() {
            k[(at + d) * PAGE_LEN + slot] = e;
        }
    }
}

/// Writes one value into its row of each panel.
#[inline(always)]
fn store_v<S: Simd, E: Element>(s: S, x: &[f32], slot: usize, v: &mut [E]) {
    for at in (0..x.len()).step_by(S::LANES) {
        E::store(s, load_from(s, x, at), &mut v[v_index(at, slot)..]);
    }
}

/// Where column `col` of slot `slot` lies in a block of V.
#[inline(always)]
pub(crate) fn v_index(col: usize, slot: usize) -> usize {
    (col / PANEL) * PAGE_LEN * PANEL + slot * PANEL + col % PANEL
}

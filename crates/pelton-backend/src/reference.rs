//! The truth: every op written as its definition, one loop after another, sums in float64.
//!
//! Weights stay in their file format and are decoded a row at a time by `pelton-quant`, so that memory stays
//! that of the file. Nothing here is fast; everything here is what the fast kernels are held against.

use std::borrow::Borrow;

use crate::{
    Attention, Backend, BackendError, Batch, Gate, HeadNorms, Heads, KvLayout, LinearSpec, Moe, PAGE_LEN, Placement,
    Rope, Weight,
};

/// The scalar backend.
#[derive(Debug, Default)]
pub struct Reference;

/// A matrix `(rows, cols)`, row-major.
#[derive(Clone, Debug, Default)]
pub struct RefTensor {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// `(rows * cols,)`.
    pub data: Vec<f32>,
}

impl RefTensor {
    fn row(&self, r: usize) -> &[f32] {
        &self.data[r * self.cols..(r + 1) * self.cols]
    }

    fn row_mut(&mut self, r: usize) -> &mut [f32] {
        &mut self.data[r * self.cols..(r + 1) * self.cols]
    }
}

/// A linear layer: the weights as the file has them.
#[derive(Debug)]
pub struct RefLinear {
    spec: LinearSpec,
}

/// Keys and values in float32: `[layer][page][k or v][kv head][slot][head_dim]`.
#[derive(Debug)]
pub struct RefKv {
    layout: KvLayout,
    data: Vec<f32>,
}

impl RefKv {
    /// Index of the vector of one key (`which` 0) or value (1).
    fn at(&self, layer: usize, page: u32, which: usize, head: usize, slot: usize) -> usize {
        let l = &self.layout;
        ((((layer * l.n_pages + page as usize) * 2 + which) * l.n_kv_heads + head) * PAGE_LEN + slot) * l.head_dim
    }

    fn page_floats(&self) -> usize {
        2 * self.layout.n_kv_heads * PAGE_LEN * self.layout.head_dim
    }
}

/// A batch and the rotation of each row: cos and sin, `(rows, dim / 2)` each.
#[derive(Debug)]
pub struct RefPrepared {
    batch: Batch,
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

/// A sum in eight float64 lanes, added up in order: exact enough to be the truth, and the compiler vectorizes it.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let (a_lanes, a_rest) = a.as_chunks::<8>();
    let (b_lanes, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0f64; 8];
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for i in 0..8 {
            sums[i] += f64::from(a[i]) * f64::from(b[i]);
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
    sums.iter().sum::<f64>() + rest
}

fn norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mean = x.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + f64::from(eps)).sqrt();
    for ((o, &v), &w) in out.iter_mut().zip(x).zip(weight) {
        *o = (f64::from(v) * scale * f64::from(w)) as f32;
    }
}

fn activate(gate: Gate, x: f64) -> f64 {
    match gate {
        Gate::Silu => x / (1.0 + (-x).exp()),
        Gate::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
    }
}

fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    for i in 0..half {
        let (a, b) = (f64::from(head[i]), f64::from(head[i + half]));
        let (c, s) = (f64::from(cos[i]), f64::from(sin[i]));
        head[i] = (a * c - b * s) as f32;
        head[i + half] = (a * s + b * c) as f32;
    }
}

/// The experts of a row, best first, with their weights: softmax over all experts, then the `top_k` largest
/// (the lower index first among equals), then normalised where the model says so.
pub(crate) fn route(logits: &[f32], top_k: usize, norm_topk: bool) -> Vec<(usize, f64)> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f64> = logits.iter().map(|&l| f64::from(l - max).exp()).collect();
    let total: f64 = exp.iter().sum();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    order.truncate(top_k);
    let kept: f64 = if norm_topk { order.iter().map(|&e| exp[e]).sum() } else { total };
    order.into_iter().map(|e| (e, exp[e] / kept)).collect()
}

impl Backend for Reference {
    type Tensor = RefTensor;
    type Vector = Vec<f32>;
    type Linear = RefLinear;
    type Embedding = Weight;
    type Kv = RefKv;
    type Prepared = RefPrepared;

    fn describe(&self) -> String {
        "reference scalar, 1 thread".into()
    }

    fn load_linear(&mut self, spec: &LinearSpec) -> Result<RefLinear, BackendError> {
        Ok(RefLinear { spec: spec.clone() })
    }

    fn placement(&self, linear: &RefLinear) -> Vec<Placement> {
        let place = |w: &Weight| Placement {
            name: w.name().to_string(),
            dtype: w.dtype(),
            kernel: "reference",
            bytes: w.byte_len(),
        };
        linear.spec.parts.iter().map(place).collect()
    }

    fn load_embedding(&mut self, table: &Weight) -> Result<Weight, BackendError> {
        Ok(table.clone())
    }

    fn load_vector(&mut self, values: &[f32]) -> Vec<f32> {
        values.to_vec()
    }

    fn kv_pool(&mut self, layout: &KvLayout) -> Result<RefKv, BackendError> {
        let out_of_memory = |bytes| BackendError::OutOfMemory { what: "the KV pool".into(), bytes };
        let wide = KvLayout { dtype: crate::KvType::F32, ..*layout };
        let bytes = wide.bytes().ok_or_else(|| out_of_memory(usize::MAX))?;
        let mut data: Vec<f32> = Vec::new();
        data.try_reserve_exact(bytes / 4).map_err(|_| out_of_memory(bytes))?;
        data.resize(bytes / 4, 0.0);
        Ok(RefKv { layout: *layout, data })
    }

    fn copy_page(&mut self, kv: &mut RefKv, from: u32, to: u32) {
        let n = kv.page_floats();
        for layer in 0..kv.layout.n_layers {
            let src = kv.at(layer, from, 0, 0, 0);
            let dst = kv.at(layer, to, 0, 0, 0);
            kv.data.copy_within(src..src + n, dst);
        }
    }

    fn page_bytes(&self, kv: &RefKv) -> usize {
        kv.layout.n_layers * kv.page_floats() * 4
    }

    fn read_page(&mut self, kv: &RefKv, page: u32, out: &mut Vec<u8>) {
        out.clear();
        for layer in 0..kv.layout.n_layers {
            let at = kv.at(layer, page, 0, 0, 0);
            out.extend(kv.data[at..at + kv.page_floats()].iter().flat_map(|v| v.to_le_bytes()));
        }
    }

    fn write_page(&mut self, kv: &mut RefKv, page: u32, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.page_bytes(kv), "bytes of a page");
        let n = kv.page_floats();
        for (layer, bytes) in bytes.chunks_exact(4 * n).enumerate() {
            let at = kv.at(layer, page, 0, 0, 0);
            let values = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
            kv.data[at..at + n].iter_mut().zip(values).for_each(|(to, v)| *to = v);
        }
    }

    fn alloc(&mut self, rows: usize, cols: usize) -> RefTensor {
        RefTensor { rows, cols, data: vec![0.0; rows * cols] }
    }

    fn set_rows(&mut self, tensor: &mut RefTensor, rows: usize) {
        tensor.rows = rows;
        tensor.data.resize(rows * tensor.cols, 0.0);
    }

    fn prepare(&mut self, batch: &Batch, rope: &Rope) -> RefPrepared {
        let half = rope.inv_freq.len();
        let mut cos = Vec::with_capacity(batch.rows() * half);
        let mut sin = Vec::with_capacity(batch.rows() * half);
        for &position in &batch.positions {
            for &f in &rope.inv_freq {
                let angle = position as f32 * f;
                cos.push(angle.cos() * rope.scale);
                sin.push(angle.sin() * rope.scale);
            }
        }
        RefPrepared { batch: batch.clone(), cos, sin, half }
    }

    fn embed(&mut self, batch: &RefPrepared, table: &Weight, scale: f32, out: &mut RefTensor) {
        assert_eq!((out.rows, out.cols), (batch.batch.rows(), table.cols()));
        for (r, &id) in batch.batch.ids.iter().enumerate() {
            let row = out.row_mut(r);
            table.decode_row(id as usize, row);
            row.iter_mut().for_each(|v| *v *= scale);
        }
    }

    fn rms_norm(&mut self, x: &RefTensor, weight: &Vec<f32>, eps: f32, out: &mut RefTensor) {
        assert_eq!((out.rows, out.cols, weight.len()), (x.rows, x.cols, x.cols));
        for r in 0..x.rows {
            norm_row(x.row(r), weight, eps, out.row_mut(r));
        }
    }

    fn add(&mut self, x: &mut RefTensor, y: &RefTensor) {
        assert_eq!((x.rows, x.cols), (y.rows, y.cols));
        x.data.iter_mut().zip(&y.data).for_each(|(x, y)| *x += y);
    }

    fn linear(&mut self, x: &RefTensor, linear: &RefLinear, out: &mut RefTensor) {
        let spec = &linear.spec;
        assert_eq!((x.cols, out.cols, out.rows), (spec.in_features(), spec.out_features(), x.rows));
        let mut weight = vec![0.0; spec.in_features()];
        let mut col = 0;
        for part in &spec.parts {
            for o in 0..part.rows() {
                part.decode_row(o, &mut weight);
                let bias = spec.bias.get(col).map_or(0.0, |&b| f64::from(b));
                for r in 0..x.rows {
                    let sum = dot(x.row(r), &weight) + bias;
                    out.row_mut(r)[col] = sum as f32;
                }
                col += 1;
            }
        }
    }

    fn rope_store_kv(
        &mut self,
        qkv: &mut RefTensor,
        batch: &RefPrepared,
        heads: Heads,
        norms: Option<HeadNorms<'_, Vec<f32>>>,
        layer: usize,
        kv: &mut RefKv,
    ) {
        assert_eq!(qkv.cols, heads.qkv_dim());
        let dim = heads.head_dim;
        let mut scratch = vec![0.0; dim];
        for span in &batch.batch.spans {
            let pages = batch.batch.page_table(span);
            for r in span.row..span.row + span.len {
                let rotation = r * batch.half..(r + 1) * batch.half;
                let (cos, sin) = (&batch.cos[rotation.clone()], &batch.sin[rotation]);
                let position = batch.batch.positions[r] as usize;
                let (page, slot) = (pages[position / PAGE_LEN], position % PAGE_LEN);
                let row = qkv.row_mut(r);
                for h in 0..heads.n_heads + heads.n_kv_heads {
                    let head = &mut row[h * dim..(h + 1) * dim];
                    if let Some(norms) = &norms {
                        let weight = if h < heads.n_heads { norms.q } else { norms.k };
                        norm_row(head, weight, norms.eps, &mut scratch);
                        head.copy_from_slice(&scratch);
                    }
                    rotate(head, cos, sin);
                }
                for h in 0..heads.n_kv_heads {
                    let k = heads.q_dim() + h * dim;
                    let v = k + heads.kv_dim();
                    let at = kv.at(layer, page, 0, h, slot);
                    kv.data[at..at + dim].copy_from_slice(&row[k..k + dim]);
                    let at = kv.at(layer, page, 1, h, slot);
                    kv.data[at..at + dim].copy_from_slice(&row[v..v + dim]);
                }
            }
        }
    }

    fn paged_attention(
        &mut self,
        qkv: &RefTensor,
        batch: &RefPrepared,
        attention: &Attention,
        layer: usize,
        kv: &RefKv,
        out: &mut RefTensor,
    ) {
        let heads = attention.heads;
        let dim = heads.head_dim;
        let group = heads.n_heads / heads.n_kv_heads;
        assert_eq!((out.rows, out.cols), (qkv.rows, heads.q_dim()));
        for span in &batch.batch.spans {
            let pages = batch.batch.page_table(span);
            for r in span.row..span.row + span.len {
                let position = batch.batch.positions[r] as usize;
                let first = attention.window.map_or(0, |w| (position + 1).saturating_sub(w));
                for h in 0..heads.n_heads {
                    let q = &qkv.row(r)[h * dim..(h + 1) * dim];
                    let vector = |which, j: usize| {
                        let at = kv.at(layer, pages[j / PAGE_LEN], which, h / group, j % PAGE_LEN);
                        &kv.data[at..at + dim]
                    };
                    let score = |j| {
                        let s = dot(q, vector(0, j)) * f64::from(attention.scale);
                        attention.softcap.map_or(s, |cap| f64::from(cap) * (s / f64::from(cap)).tanh())
                    };
                    let scores: Vec<f64> = (first..=position).map(score).collect();
                    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let exp: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                    let total: f64 = exp.iter().sum();
                    let mut sum = vec![0.0f64; dim];
                    for (j, e) in (first..=position).zip(&exp) {
                        sum.iter_mut().zip(vector(1, j)).for_each(|(s, &v)| *s += e * f64::from(v));
                    }
                    let out = &mut out.row_mut(r)[h * dim..(h + 1) * dim];
                    out.iter_mut().zip(&sum).for_each(|(o, s)| *o = (s / total) as f32);
                }
            }
        }
    }

    fn gate(&mut self, x: &RefTensor, gate: Gate, out: &mut RefTensor) {
        let ffn = out.cols;
        assert_eq!((x.rows, x.cols), (out.rows, 2 * ffn));
        for r in 0..x.rows {
            let (g, u) = x.row(r).split_at(ffn);
            for ((o, &g), &u) in out.row_mut(r).iter_mut().zip(g).zip(u) {
                *o = (activate(gate, f64::from(g)) * f64::from(u)) as f32;
            }
        }
    }

    fn moe<L: Borrow<RefLinear>>(&mut self, x: &RefTensor, moe: &Moe<L>, out: &mut RefTensor) {
        let mut logits = self.alloc(x.rows, moe.experts.len());
        self.linear(x, moe.router.borrow(), &mut logits);
        let mut row = self.alloc(1, x.cols);
        let mut hidden = self.alloc(1, 2 * moe.ffn);
        let mut gated = self.alloc(1, moe.ffn);
        let mut answer = self.alloc(1, out.cols);
        for r in 0..x.rows {
            row.data.copy_from_slice(x.row(r));
            let mut sum = vec![0.0f64; out.cols];
            for (e, weight) in route(logits.row(r), moe.top_k, moe.norm_topk) {
                self.linear(&row, moe.experts[e].gate_up.borrow(), &mut hidden);
                self.gate(&hidden, moe.gate, &mut gated);
                self.linear(&gated, moe.experts[e].down.borrow(), &mut answer);
                sum.iter_mut().zip(&answer.data).for_each(|(s, &a)| *s += weight * f64::from(a));
            }
            out.row_mut(r).iter_mut().zip(&sum).for_each(|(o, &s)| *o = s as f32);
        }
    }

    fn gather_logit_rows(&mut self, x: &RefTensor, batch: &RefPrepared, out: &mut RefTensor) {
        assert_eq!((out.rows, out.cols), (batch.batch.logit_rows.len(), x.cols));
        for (to, &from) in batch.batch.logit_rows.iter().enumerate() {
            out.row_mut(to).copy_from_slice(x.row(from as usize));
        }
    }

    fn softcap(&mut self, x: &mut RefTensor, cap: f32) {
        let cap = f64::from(cap);
        x.data.iter_mut().for_each(|v| *v = (cap * (f64::from(*v) / cap).tanh()) as f32);
    }

    fn read(&mut self, x: &RefTensor, out: &mut Vec<f32>) {
        out.clear();
        out.extend_from_slice(&x.data);
    }

    fn write(&mut self, x: &mut RefTensor, values: &[f32]) {
        assert_eq!(values.len(), x.rows * x.cols);
        x.data.clear();
        x.data.extend_from_slice(values);
    }
}

//! The yardstick: every op in plain f32, one loop after another, with the rounding that a production backend may
//! do: KV in its storage type, activations in int8 per 256 before block-quantized weights, and in two terms of bf16 (some
//! 2^-17 off) before weights of 16 bits.
//!
//! Its error against the reference is what the suite's rule doubles. For the suite's own tests it can also be
//! wrong on purpose ([`Fault`]).

use std::borrow::Borrow;

use half::{bf16, f16};
use pelton_quant::DType;

use crate::{
    Attention, Backend, BackendError, Batch, Gate, HeadNorms, Heads, KvLayout, KvType, LinearSpec, Moe, PAGE_LEN,
    Placement, RefTensor, Rope, Weight,
};

/// A mistake in one op, as people make them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code, reason = "only tests are wrong on purpose"))]
pub(super) enum Fault {
    EmbedScale,
    NormEpsilon,
    AddLastColumn,
    Bias,
    CoarseActivations,
    RopeNeighbours,
    RopeOrder,
    KvLayer,
    KvSlot,
    GroupOfHead,
    Causal,
    Window,
    SoftCap,
    CopyOneLayer,
    GeluErf,
    TopKNorm,
    TopKTie,
    GatherFirst,
    WriteShort,
    BatchDependent,
}

/// The backend.
#[derive(Debug, Default)]
pub struct Plain {
    pub(super) fault: Option<Fault>,
}

/// Keys and values, rounded: `[layer][page][kv head][slot][k, v][head_dim]`.
pub struct PlainKv {
    layout: KvLayout,
    data: Vec<f32>,
}

impl PlainKv {
    fn at(&self, layer: usize, page: u32, head: usize, slot: usize) -> usize {
        let l = &self.layout;
        ((((layer * l.n_pages) + page as usize) * l.n_kv_heads + head) * PAGE_LEN + slot) * 2 * l.head_dim
    }

    fn store(&mut self, at: usize, values: &[f32]) {
        let rounded = round_kv(self.layout.dtype, values);
        self.data[at..at + values.len()].copy_from_slice(&rounded);
    }
}

/// A key or a value as it comes back from its storage type.
fn round_kv(dtype: KvType, values: &[f32]) -> Vec<f32> {
    let scaled = |largest: f32, round: fn(f32) -> f32| {
        let scale = values.iter().fold(0.0f32, |m, v| m.max(v.abs())) / largest;
        values.iter().map(|v| if scale > 0.0 { round(v / scale) * scale } else { 0.0 }).collect()
    };
    match dtype {
        KvType::F32 => values.to_vec(),
        KvType::F16 => values.iter().map(|&v| f16::from_f32(v).to_f32()).collect(),
        KvType::Bf16 => values.iter().map(|&v| round_bf16(v)).collect(),
        KvType::Int8 => scaled(127.0, f32::round_ties_even),
        // Three bits of mantissa, none finer than 2^-9.
        KvType::Fp8 => scaled(448.0, |v| {
            let unit = v.abs().max(f32::MIN_POSITIVE).log2().floor().max(-6.0) - 3.0;
            (v / unit.exp2()).round_ties_even() * unit.exp2()
        }),
    }
}

fn round_bf16(v: f32) -> f32 {
    bf16::from_f32(v).to_f32()
}

/// Whether queries and weights may be rounded to bf16 before they are multiplied by keys and values.
fn is_rounded(dtype: KvType) -> bool {
    matches!(dtype, KvType::Bf16 | KvType::Int8 | KvType::Fp8)
}

/// A batch and its rotation.
pub struct PlainPrepared {
    batch: Batch,
    rope: Rope,
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm_row(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mean = dot(x, x) / x.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    x.iter().zip(weight).map(|(x, w)| x * scale * w).collect()
}

/// The same of a row whose columns are dealt in another order first: the order that weights store them in.
fn round_in_order(x: &[f32], order: &[u32], steps: f32) -> Vec<f32> {
    let dealt: Vec<f32> = order.iter().map(|&j| x[j as usize]).collect();
    let mut out = vec![0.0; x.len()];
    order.iter().zip(round_activations(&dealt, steps)).for_each(|(&j, v)| out[j as usize] = v);
    out
}

/// Rounds to whole steps of a scale per 256 values, whose largest is `steps` of them (127: int8).
fn round_activations(x: &[f32], steps: f32) -> Vec<f32> {
    let round = |block: &[f32]| {
        let d = block.iter().fold(0.0f32, |m, v| m.max(v.abs())) / steps;
        let q = |&v: &f32| if d > 0.0 { (v / d).round_ties_even() * d } else { 0.0 };
        block.iter().map(q).collect::<Vec<f32>>()
    };
    x.chunks(256).flat_map(round).collect()
}

/// Rounds to the sum of two numbers of bf16, as matrix units of bf16 take them.
fn round_to_terms(x: &[f32]) -> Vec<f32> {
    let two = |&v: &f32| {
        let first = round_bf16(v);
        first + round_bf16(v - first)
    };
    x.iter().map(two).collect()
}

fn rows(t: &RefTensor) -> impl Iterator<Item = &[f32]> {
    t.data.chunks_exact(t.cols)
}

impl Plain {
    fn is(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn rotate(&self, head: &mut [f32], position: u32, rope: &Rope) {
        let half = rope.inv_freq.len();
        for (i, f) in rope.inv_freq.iter().enumerate() {
            let (a, b) = if self.is(Fault::RopeNeighbours) { (2 * i, 2 * i + 1) } else { (i, i + half) };
            let (sin, cos) = (position as f32 * f).sin_cos();
            let (sin, cos) = (sin * rope.scale, cos * rope.scale);
            (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
        }
    }

    /// One query head of one row: the scores of the positions it sees, and the first of these.
    fn scores(
        &self,
        q: &[f32],
        position: usize,
        attention: &Attention,
        key: impl Fn(usize) -> usize,
        kv: &PlainKv,
    ) -> (usize, Vec<f32>) {
        let window = attention.window.map(|w| if self.is(Fault::Window) { w + 1 } else { w });
        let first = window.map_or(0, |w| (position + 1).saturating_sub(w));
        let end = if self.is(Fault::Causal) { (position + 1).max(2) - 1 } else { position + 1 };
        let first = first.min(end - 1);
        let score = |j| {
            let at = key(j);
            let s = dot(q, &kv.data[at..at + q.len()]) * attention.scale;
            let cap = attention.softcap.filter(|_| !self.is(Fault::SoftCap));
            cap.map_or(s, |cap| cap * (s / cap).tanh())
        };
        (first, (first..end).map(score).collect())
    }
}

impl Backend for Plain {
    type Tensor = RefTensor;
    type Vector = Vec<f32>;
    type Linear = LinearSpec;
    type Embedding = Weight;
    type Kv = PlainKv;
    type Prepared = PlainPrepared;

    fn describe(&self) -> String {
        "plain f32".into()
    }

    fn load_linear(&mut self, spec: &LinearSpec) -> Result<LinearSpec, BackendError> {
        Ok(spec.clone())
    }

    fn placement(&self, _: &LinearSpec) -> Vec<Placement> {
        Vec::new()
    }

    fn load_embedding(&mut self, table: &Weight) -> Result<Weight, BackendError> {
        Ok(table.clone())
    }

    fn load_vector(&mut self, values: &[f32]) -> Vec<f32> {
        values.to_vec()
    }

    fn kv_pool(&mut self, layout: &KvLayout) -> Result<PlainKv, BackendError> {
        let n = 2 * layout.n_layers * layout.n_kv_heads * layout.head_dim * PAGE_LEN * layout.n_pages;
        Ok(PlainKv { layout: *layout, data: vec![0.0; n] })
    }

    fn copy_page(&mut self, kv: &mut PlainKv, from: u32, to: u32) {
        let n = kv.at(0, 1, 0, 0);
        let layers = if self.is(Fault::CopyOneLayer) { 1 } else { kv.layout.n_layers };
        for layer in 0..layers {
            let (from, to) = (kv.at(layer, from, 0, 0), kv.at(layer, to, 0, 0));
            kv.data.copy_within(from..from + n, to);
        }
    }

    fn page_bytes(&self, kv: &PlainKv) -> usize {
        4 * kv.layout.n_layers * kv.at(0, 1, 0, 0)
    }

    fn read_page(&mut self, kv: &PlainKv, page: u32, out: &mut Vec<u8>) {
        out.clear();
        let n = kv.at(0, 1, 0, 0);
        for layer in 0..kv.layout.n_layers {
            let at = kv.at(layer, page, 0, 0);
            out.extend(kv.data[at..at + n].iter().flat_map(|v| v.to_ne_bytes()));
        }
    }

    fn write_page(&mut self, kv: &mut PlainKv, page: u32, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.page_bytes(kv), "bytes of a page");
        let n = kv.at(0, 1, 0, 0);
        let layers = if self.is(Fault::CopyOneLayer) { 1 } else { kv.layout.n_layers };
        for (layer, bytes) in bytes.chunks_exact(4 * n).enumerate().take(layers) {
            let at = kv.at(layer, page, 0, 0);
            let values = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_ne_bytes(*b));
            kv.data[at..at + n].iter_mut().zip(values).for_each(|(to, v)| *to = v);
        }
    }

    fn alloc(&mut self, rows: usize, cols: usize) -> RefTensor {
        RefTensor { rows, cols, data: vec![f32::NAN; rows * cols] }
    }

    fn set_rows(&mut self, tensor: &mut RefTensor, rows: usize) {
        tensor.rows = rows;
        tensor.data.resize(rows * tensor.cols, f32::NAN);
    }

    fn prepare(&mut self, batch: &Batch, rope: &Rope) -> PlainPrepared {
        PlainPrepared { batch: batch.clone(), rope: rope.clone() }
    }

    fn embed(&mut self, batch: &PlainPrepared, table: &Weight, scale: f32, out: &mut RefTensor) {
        let scale = if self.is(Fault::EmbedScale) { 1.0 } else { scale };
        for (&id, row) in batch.batch.ids.iter().zip(out.data.chunks_exact_mut(out.cols)) {
            table.decode_row(id as usize, row);
            row.iter_mut().for_each(|v| *v *= scale);
        }
    }

    fn rms_norm(&mut self, x: &RefTensor, weight: &Vec<f32>, eps: f32, out: &mut RefTensor) {
        let eps = if self.is(Fault::NormEpsilon) { 0.0 } else { eps };
        // Dependent on the batch, but within the tolerance: what only a comparison of bits can see.
        let shift = if self.is(Fault::BatchDependent) && x.rows > 1 { 2e-7 } else { 0.0 };
        out.data = rows(x).flat_map(|x| norm_row(x, weight, eps + shift)).collect();
    }

    fn add(&mut self, x: &mut RefTensor, y: &RefTensor) {
        let n = if self.is(Fault::AddLastColumn) { x.data.len() - 1 } else { x.data.len() };
        x.data[..n].iter_mut().zip(&y.data).for_each(|(x, y)| *x += y);
    }

    fn linear(&mut self, x: &RefTensor, spec: &LinearSpec, out: &mut RefTensor) {
        let mut weight = vec![0.0; spec.in_features()];
        let steps = if self.is(Fault::CoarseActivations) { 31.0 } else { 127.0 };
        let rounded: Vec<f32> = rows(x).flat_map(|x| round_activations(x, steps)).collect();
        let in_terms = round_to_terms(&x.data);
        let mut col = 0;
        let mut dealt: Vec<f32> = Vec::new();
        for part in &spec.parts {
            let x = match part.dtype().blocks() {
                Some(DType::F32) => &x.data,
                Some(DType::BF16 | DType::F16) => &in_terms,
                _ => part.as_grouped().and_then(|grouped| grouped.order()).map_or(&rounded, |order| {
                    dealt = rows(x).flat_map(|x| round_in_order(x, order, steps)).collect();
                    &dealt
                }),
            };
            for o in 0..part.rows() {
                part.decode_row(o, &mut weight);
                let bias = spec.bias.get(col).filter(|_| !self.is(Fault::Bias)).copied().unwrap_or(0.0);
                for (r, x) in x.chunks_exact(weight.len()).enumerate() {
                    out.data[r * out.cols + col] = dot(x, &weight) + bias;
                }
                col += 1;
            }
        }
    }

    fn rope_store_kv(
        &mut self,
        qkv: &mut RefTensor,
        batch: &PlainPrepared,
        heads: Heads,
        norms: Option<HeadNorms<'_, Vec<f32>>>,
        layer: usize,
        kv: &mut PlainKv,
    ) {
        let dim = heads.head_dim;
        let layer = if self.is(Fault::KvLayer) { 0 } else { layer };
        for span in &batch.batch.spans {
            let pages = batch.batch.page_table(span);
            for (r, row) in qkv.data.chunks_exact_mut(qkv.cols).enumerate().skip(span.row).take(span.len) {
                let position = batch.batch.positions[r];
                for (h, head) in row.chunks_exact_mut(dim).take(heads.n_heads + heads.n_kv_heads).enumerate() {
                    let norm = |head: &mut [f32]| {
                        if let Some(norms) = &norms {
                            let weight = if h < heads.n_heads { norms.q } else { norms.k };
                            head.copy_from_slice(&norm_row(head, weight, norms.eps));
                        }
                    };
                    if self.is(Fault::RopeOrder) {
                        self.rotate(head, position, &batch.rope);
                        norm(head);
                    } else {
                        norm(head);
                        self.rotate(head, position, &batch.rope);
                    }
                }
                let slot = if self.is(Fault::KvSlot) { 0 } else { position as usize % PAGE_LEN };
                for h in 0..heads.n_kv_heads {
                    let at = kv.at(layer, pages[position as usize / PAGE_LEN], h, slot);
                    let k = heads.q_dim() + h * dim;
                    let v = k + heads.kv_dim();
                    kv.store(at, &row[k..k + dim]);
                    kv.store(at + dim, &row[v..v + dim]);
                }
            }
        }
    }

    fn paged_attention(
        &mut self,
        qkv: &RefTensor,
        batch: &PlainPrepared,
        attention: &Attention,
        layer: usize,
        kv: &PlainKv,
        out: &mut RefTensor,
    ) {
        let heads = attention.heads;
        let (dim, group) = (heads.head_dim, heads.n_heads / heads.n_kv_heads);
        for span in &batch.batch.spans {
            let pages = batch.batch.page_table(span);
            for r in span.row..span.row + span.len {
                let position = batch.batch.positions[r] as usize;
                for h in 0..heads.n_heads {
                    let q = &qkv.data[r * qkv.cols + h * dim..][..dim];
                    let kv_head = if self.is(Fault::GroupOfHead) { h % heads.n_kv_heads } else { h / group };
                    let at = |j: usize| kv.at(layer, pages[j / PAGE_LEN], kv_head, j % PAGE_LEN);
                    let round = |v: f32| if is_rounded(kv.layout.dtype) { round_bf16(v) } else { v };
                    let q: Vec<f32> = q.iter().map(|&v| round(v)).collect();
                    let (first, scores) = self.scores(&q, position, attention, at, kv);
                    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let exp: Vec<f32> = scores.iter().map(|s| (s - max).exp()).collect();
                    let total: f32 = exp.iter().sum();
                    let out = &mut out.data[r * out.cols + h * dim..][..dim];
                    out.fill(0.0);
                    for (j, e) in exp.iter().enumerate() {
                        let v = &kv.data[at(first + j) + dim..][..dim];
                        out.iter_mut().zip(v).for_each(|(o, v)| *o += round(*e) * v);
                    }
                    out.iter_mut().for_each(|o| *o /= total);
                }
            }
        }
    }

    fn gate(&mut self, x: &RefTensor, gate: Gate, out: &mut RefTensor) {
        let ffn = out.cols;
        let erf = self.is(Fault::GeluErf);
        let activate = |x: f32| match gate {
            Gate::Silu => x / (1.0 + (-x).exp()),
            // What people take for it: the sigmoid approximation.
            Gate::GeluTanh if erf => x / (1.0 + (-1.702 * x).exp()),
            Gate::GeluTanh => {
                let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            }
        };
        let gated = |x: &[f32]| -> Vec<f32> { (0..ffn).map(|i| activate(x[i]) * x[ffn + i]).collect() };
        out.data = rows(x).flat_map(gated).collect();
    }

    fn moe<L: Borrow<LinearSpec>>(&mut self, x: &RefTensor, moe: &Moe<L>, out: &mut RefTensor) {
        let mut logits = self.alloc(x.rows, moe.experts.len());
        self.linear(x, moe.router.borrow(), &mut logits);
        let cols = out.cols;
        for r in 0..x.rows {
            let logits = &logits.data[r * logits.cols..(r + 1) * logits.cols];
            let row = RefTensor { rows: 1, cols: x.cols, data: x.data[r * x.cols..(r + 1) * x.cols].to_vec() };
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exp: Vec<f32> = logits.iter().map(|l| (l - max).exp()).collect();
            let mut order: Vec<usize> = (0..logits.len()).collect();
            if self.is(Fault::TopKTie) {
                order.reverse();
            }
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            order.truncate(moe.top_k);
            let norm = moe.norm_topk != self.is(Fault::TopKNorm);
            let total: f32 = if norm { order.iter().map(|&e| exp[e]).sum() } else { exp.iter().sum() };
            let sum = &mut out.data[r * cols..(r + 1) * cols];
            sum.fill(0.0);
            for e in order {
                let (mut hidden, mut gated) = (self.alloc(1, 2 * moe.ffn), self.alloc(1, moe.ffn));
                let mut answer = self.alloc(1, cols);
                self.linear(&row, moe.experts[e].gate_up.borrow(), &mut hidden);
                self.gate(&hidden, moe.gate, &mut gated);
                self.linear(&gated, moe.experts[e].down.borrow(), &mut answer);
                sum.iter_mut().zip(&answer.data).for_each(|(s, a)| *s += exp[e] / total * a);
            }
        }
    }

    fn gather_logit_rows(&mut self, x: &RefTensor, batch: &PlainPrepared, out: &mut RefTensor) {
        let wanted = batch.batch.logit_rows.iter().map(|&r| r as usize);
        let wanted: Vec<usize> = if self.is(Fault::GatherFirst) { (0..out.rows).collect() } else { wanted.collect() };
        out.data = wanted.iter().flat_map(|r| &x.data[r * x.cols..(r + 1) * x.cols]).copied().collect();
    }

    fn softcap(&mut self, x: &mut RefTensor, cap: f32) {
        x.data.iter_mut().for_each(|v| *v = cap * (*v / cap).tanh());
    }

    fn read(&mut self, x: &RefTensor, out: &mut Vec<f32>) {
        out.clone_from(&x.data);
    }

    fn write(&mut self, x: &mut RefTensor, values: &[f32]) {
        assert_eq!(values.len(), x.rows * x.cols);
        x.data = values.to_vec();
        if self.is(Fault::WriteShort)
            && let Some(last) = x.data.last_mut()
        {
            *last = 0.0;
        }
    }
}

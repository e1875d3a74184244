//! The decoder: one straight pass over a ragged batch.
//!
//! Shapes: `x` is the residual stream `(rows, hidden)`; every op takes the whole batch. Read [`Decoder::forward`]
//! top to bottom: that is the model.

use std::ops::Range;

use pelton_backend::{
    Ask, Attention, Backend, Batch, Gate, HeadNorms, KvLayout, KvType, Moe, Placement, Rope, Weighed,
};

/// A layer's feed-forward block.
pub(crate) enum Ffn<B: Backend> {
    Dense { gate_up: B::Linear, down: B::Linear },
    Experts(Moe<B::Linear>),
}

/// One layer's weights.
pub(crate) struct Layer<B: Backend> {
    /// `(hidden,)`, before attention.
    pub(crate) attn_norm: B::Vector,
    /// `hidden -> [q | k | v]`, with bias where the model has one.
    pub(crate) qkv: B::Linear,
    /// `(head_dim,)` each: norms of single heads.
    pub(crate) head_norms: Option<(B::Vector, B::Vector)>,
    /// `q_dim -> hidden`.
    pub(crate) attn_output: B::Linear,
    /// `(hidden,)`, after attention.
    pub(crate) post_attn_norm: Option<B::Vector>,
    /// `(hidden,)`, before the feed-forward block.
    pub(crate) ffn_norm: B::Vector,
    pub(crate) ffn: Ffn<B>,
    /// `(hidden,)`, after the feed-forward block.
    pub(crate) post_ffn_norm: Option<B::Vector>,
    pub(crate) attention: Attention,
}

/// A loaded model.
pub struct Decoder<B: Backend> {
    pub(crate) embedding: B::Embedding,
    pub(crate) embed_scale: f32,
    pub(crate) layers: Vec<Layer<B>>,
    /// `(hidden,)`, before the head.
    pub(crate) output_norm: B::Vector,
    /// `hidden -> vocab`.
    pub(crate) head: B::Linear,
    pub(crate) logit_softcap: Option<f32>,
    pub(crate) norm_eps: f32,
    pub(crate) gate: Gate,
    pub(crate) rope: Rope,
    pub(crate) hidden: usize,
    pub(crate) ffn: usize,
    pub(crate) vocab_size: usize,
    pub(crate) placements: Vec<Placement>,
}

/// The activations of one step, allocated once and reused.
pub struct Workspace<B: Backend> {
    /// The residual stream, `(rows, hidden)`.
    x: B::Tensor,
    /// What a block reads, `(rows, hidden)`.
    normed: B::Tensor,
    /// What a block adds, `(rows, hidden)`.
    delta: B::Tensor,
    /// `(rows, qkv_dim)`.
    qkv: B::Tensor,
    /// `(rows, q_dim)`.
    attn: B::Tensor,
    /// `(rows, 2 ffn)`.
    gate_up: B::Tensor,
    /// `(rows, ffn)`.
    gated: B::Tensor,
    /// `(logit rows, hidden)`.
    last: B::Tensor,
    /// `(logit rows, vocab)`.
    logits: B::Tensor,
}

impl<B: Backend> Workspace<B> {
    /// The logits that the last [`Decoder::step`] left, `(logit rows, vocab)`, for the host to read and to change: in
    /// place where the backend's memory is the host's, else copied to `copy`.
    pub fn logits<'a>(&'a mut self, backend: &mut B, copy: &'a mut Vec<f32>) -> &'a mut [f32] {
        backend.on_host(&mut self.logits, copy)
    }

    /// Finds out about the logits that the last [`Decoder::step`] left what is asked, an answer a row, where the backend
    /// does: see [`Backend::weigh`].
    pub fn weigh(&mut self, backend: &mut B, asks: &[Ask], out: &mut Vec<Weighed>) -> bool {
        backend.weigh(&self.logits, asks, out)
    }

    /// Some rows of the logits that the last [`Decoder::step`] left, one behind another, `vocab` wide each.
    pub fn logits_of(
        &mut self,
        backend: &mut B,
        rows: impl Iterator<Item = Range<usize>>,
        vocab: usize,
        out: &mut Vec<f32>,
    ) {
        out.clear();
        let mut some = Vec::new();
        for rows in rows {
            backend.read_rows(&self.logits, rows, vocab, &mut some);
            out.extend_from_slice(&some);
        }
    }

    fn set_rows(&mut self, backend: &mut B, rows: usize, logit_rows: usize) {
        let all = [
            &mut self.x,
            &mut self.normed,
            &mut self.delta,
            &mut self.qkv,
            &mut self.attn,
            &mut self.gate_up,
            &mut self.gated,
        ];
        for tensor in all {
            backend.set_rows(tensor, rows);
        }
        backend.set_rows(&mut self.last, logit_rows);
        backend.set_rows(&mut self.logits, logit_rows);
    }
}

impl<B: Backend> Decoder<B> {
    /// Width of a row of logits.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Width of a hidden state.
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// Which kernel runs each linear layer, in the order of the forward pass.
    pub fn placements(&self) -> &[Placement] {
        &self.placements
    }

    /// The rotation of its queries and keys.
    pub fn rope(&self) -> &Rope {
        &self.rope
    }

    /// Replaces the rotation, for comparing with an implementation that computes another one.
    pub fn set_rope(&mut self, rope: Rope) {
        assert_eq!(rope.inv_freq.len(), self.rope.inv_freq.len(), "one frequency for each pair");
        self.rope = rope;
    }

    /// The KV pool that this model needs.
    pub fn kv_layout(&self, n_pages: usize, dtype: KvType) -> KvLayout {
        let heads = self.layers[0].attention.heads;
        let (n_kv_heads, head_dim) = (heads.n_kv_heads, heads.head_dim);
        KvLayout { n_layers: self.layers.len(), n_kv_heads, head_dim, n_pages, dtype }
    }

    /// Bytes of activations for a batch of `rows` rows, `logit_rows` of them with logits.
    pub fn workspace_bytes(&self, rows: usize, logit_rows: usize) -> usize {
        let heads = self.layers[0].attention.heads;
        let row = 3 * self.hidden + heads.qkv_dim() + heads.q_dim() + 3 * self.ffn;
        4 * (rows * row + logit_rows * (self.hidden + self.vocab_size))
    }

    /// Buffers for [`Decoder::forward`]; they grow with the first large batch.
    pub fn workspace(&self, backend: &mut B) -> Workspace<B> {
        let heads = self.layers[0].attention.heads;
        Workspace {
            x: backend.alloc(1, self.hidden),
            normed: backend.alloc(1, self.hidden),
            delta: backend.alloc(1, self.hidden),
            qkv: backend.alloc(1, heads.qkv_dim()),
            attn: backend.alloc(1, heads.q_dim()),
            gate_up: backend.alloc(1, 2 * self.ffn),
            gated: backend.alloc(1, self.ffn),
            last: backend.alloc(1, self.hidden),
            logits: backend.alloc(1, self.vocab_size),
        }
    }

    /// One step: stores the batch's keys and values in `kv` and leaves the wanted rows' logits,
    /// `(logit rows, vocab)`, in `logits`.
    ///
    /// # Panics
    /// Where an id of the batch is not below [`Decoder::vocab_size`].
    pub fn forward(
        &self,
        backend: &mut B,
        batch: &Batch,
        kv: &mut B::Kv,
        work: &mut Workspace<B>,
        logits: &mut Vec<f32>,
    ) {
        self.step(backend, batch, kv, work);
        logits.clear();
        if !batch.logit_rows.is_empty() {
            backend.read(&work.logits, logits);
        }
    }

    /// [`Decoder::forward`], but the logits stay where the backend has them: [`Workspace::logits`] gives them.
    ///
    /// # Panics
    /// Where an id of the batch is not below [`Decoder::vocab_size`].
    pub fn step(&self, backend: &mut B, batch: &Batch, kv: &mut B::Kv, work: &mut Workspace<B>) {
        assert!(batch.ids.iter().all(|&id| (id as usize) < self.vocab_size), "an id outside the vocabulary");
        work.set_rows(backend, batch.rows(), batch.logit_rows.len());
        let prepared = backend.prepare(batch, &self.rope);
        backend.embed(&prepared, &self.embedding, self.embed_scale, &mut work.x);
        backend.rms_norm(&work.x, &self.layers[0].attn_norm, self.norm_eps, &mut work.normed);
        for (i, layer) in self.layers.iter().enumerate() {
            self.attend(backend, layer, i, &prepared, kv, work);
            self.join(backend, layer.post_attn_norm.as_ref(), &layer.ffn_norm, work);
            self.feed_forward(backend, layer, work);
            let next_norm = self.layers.get(i + 1).map_or(&self.output_norm, |next| &next.attn_norm);
            self.join(backend, layer.post_ffn_norm.as_ref(), next_norm, work);
        }
        if batch.logit_rows.is_empty() {
            return;
        }
        backend.gather_logit_rows(&work.normed, &prepared, &mut work.last);
        backend.linear(&work.last, &self.head, &mut work.logits);
        if let Some(cap) = self.logit_softcap {
            backend.softcap(&mut work.logits, cap);
        }
    }

    /// The final hidden states of the last step's rows, after the output norm, `(rows, hidden)`: what embeddings are
    /// pooled from.
    pub fn read_hidden(&self, backend: &mut B, work: &Workspace<B>, out: &mut Vec<f32>) {
        backend.read(&work.normed, out);
    }

    /// `delta = output(attention(qkv(normed)))`.
    fn attend(
        &self,
        backend: &mut B,
        layer: &Layer<B>,
        index: usize,
        batch: &B::Prepared,
        kv: &mut B::Kv,
        work: &mut Workspace<B>,
    ) {
        let norms = layer.head_norms.as_ref().map(|(q, k)| HeadNorms { q, k, eps: self.norm_eps });
        backend.linear(&work.normed, &layer.qkv, &mut work.qkv);
        backend.rope_store_kv(&mut work.qkv, batch, layer.attention.heads, norms, index, kv);
        backend.paged_attention(&work.qkv, batch, &layer.attention, index, kv, &mut work.attn);
        backend.linear(&work.attn, &layer.attn_output, &mut work.delta);
    }

    /// `delta = down(gate(gate_up(normed)))`, or the experts' answer.
    fn feed_forward(&self, backend: &mut B, layer: &Layer<B>, work: &mut Workspace<B>) {
        match &layer.ffn {
            Ffn::Dense { gate_up, down } => {
                backend.gated_linear(&work.normed, gate_up, self.gate, &mut work.gate_up, &mut work.gated);
                backend.linear(&work.gated, down, &mut work.delta);
            }
            Ffn::Experts(moe) => backend.moe(&work.normed, moe, &mut work.delta),
        }
    }

    /// Adds `delta` (normalised first where the model has post-norms) to the stream and norms it for what follows.
    fn join(&self, backend: &mut B, post: Option<&B::Vector>, next: &B::Vector, work: &mut Workspace<B>) {
        if let Some(post) = post {
            backend.rms_norm(&work.delta, post, self.norm_eps, &mut work.normed);
            std::mem::swap(&mut work.delta, &mut work.normed);
        }
        backend.add_rms_norm(&mut work.x, &work.delta, next, self.norm_eps, &mut work.normed);
    }
}

//! From named tensors to a [`Decoder`]: every tensor is required by name and shape here, and nowhere else.

use std::sync::Arc;

use pelton_backend::{
    Attention, Backend, BackendError, Expert, Gate, Heads, LinearSpec, Moe, Place, SharedBytes, Weight,
};
use pelton_formats::{Activation, FormatError, ModelConfig, Tensor, Tensors};
use pelton_quant::DType;

use crate::decoder::{Decoder, Ffn, Layer};
use crate::rope::resolve_rope;

/// Why a model could not be loaded onto a backend.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A tensor is missing or has another shape.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The backend refused.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// How far loading has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes of weights packed.
    pub done: usize,
    /// Bytes of all weights.
    pub total: usize,
}

/// Bytes of a tensor, kept alive by the tensor itself.
struct TensorBytes(Tensor);

impl AsRef<[u8]> for TensorBytes {
    fn as_ref(&self) -> &[u8] {
        self.0.data()
    }
}

struct Loader<'a, B: Backend> {
    backend: &'a mut B,
    config: &'a ModelConfig,
    tensors: &'a Tensors,
    progress: &'a mut dyn FnMut(LoadProgress),
    check: &'a mut Check<'a, B>,
    seen: LoadProgress,
    place: Place,
    placements: Vec<pelton_backend::Placement>,
}

/// Looks at a linear layer that was just packed, at what it belongs to and what it was packed from; may refuse it.
pub type Check<'a, B> = dyn FnMut(&mut B, Place, &LinearSpec, &<B as Backend>::Linear) -> Result<(), BackendError> + 'a;

/// Loads a model: packs every linear layer as the backend wants it. `context` is the longest context that will
/// be run (it decides between LongRoPE's factors).
///
/// # Errors
/// [`LoadError`] names the tensor, what was expected and what was found.
pub fn load<B: Backend>(
    backend: &mut B,
    config: &ModelConfig,
    tensors: &Tensors,
    context: usize,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Decoder<B>, LoadError> {
    load_checked(backend, config, tensors, context, progress, &mut |_, _, _, _| Ok(()))
}

/// [`load`], with a look at every linear layer once it is packed.
///
/// # Errors
/// As [`load`], and what `check` refuses.
pub fn load_checked<'a, B: Backend>(
    backend: &'a mut B,
    config: &'a ModelConfig,
    tensors: &'a Tensors,
    context: usize,
    progress: &'a mut dyn FnMut(LoadProgress),
    check: &'a mut Check<'a, B>,
) -> Result<Decoder<B>, LoadError> {
    let total = tensors.iter().map(Tensor::byte_len).sum();
    let seen = LoadProgress { done: 0, total };
    let place = Place::Layer { index: 0, of: config.n_layers };
    let mut loader = Loader { backend, config, tensors, progress, check, seen, place, placements: Vec::new() };
    let c = config;
    let layers = (0..c.n_layers).map(|i| loader.layer(i)).collect::<Result<Vec<_>, _>>()?;
    let table = loader.matrix("token_embd.weight", c.vocab_size, c.hidden)?;
    loader.place(Place::Layer { index: 0, of: c.n_layers });
    let embedding = loader.backend.load_embedding(&table)?;
    loader.place(Place::Head { of: c.n_layers });
    let output_norm = loader.norm("output_norm.weight", c.hidden)?;
    let head = match c.tied_embeddings {
        true => loader.pack("output (tied)", vec![table], Vec::new())?,
        false => loader.linear("output", &["output"], &[c.vocab_size], c.hidden)?,
    };
    let gate = gate_of(c.activation);
    Ok(Decoder {
        embedding,
        embed_scale: c.embed_scale,
        layers,
        output_norm,
        head,
        logit_softcap: c.logit_softcap,
        norm_eps: c.norm_eps,
        gate,
        rope: resolve_rope(&c.rope, context),
        hidden: c.hidden,
        ffn: c.ffn,
        vocab_size: c.vocab_size,
        placements: loader.placements,
    })
}

/// A matrix of 16-bit floats in 32 bits; others as they are.
fn in_f32(weight: Weight) -> Result<Weight, LoadError> {
    if !matches!(weight.dtype().blocks(), Some(DType::BF16 | DType::F16)) {
        return Ok(weight);
    }
    let mut values = vec![0.0; weight.rows() * weight.cols()];
    let rows = values.chunks_exact_mut(weight.cols());
    rows.enumerate().for_each(|(row, out)| weight.decode_row(row, out));
    Ok(Weight::from_f32(weight.name(), weight.rows(), weight.cols(), &values)?)
}

fn gate_of(activation: Activation) -> Gate {
    match activation {
        Activation::Silu => Gate::Silu,
        Activation::GeluTanh => Gate::GeluTanh,
    }
}

impl<B: Backend> Loader<'_, B> {
    fn place(&mut self, place: Place) {
        self.place = place;
        self.backend.load_for(place);
    }

    fn layer(&mut self, i: usize) -> Result<Layer<B>, LoadError> {
        let c = self.config;
        self.place(Place::Layer { index: i, of: c.n_layers });
        let name = |part: &str| format!("blk.{i}.{part}");
        let norm = |part: &str| format!("blk.{i}.{part}.weight");
        let heads = Heads { n_heads: c.n_heads, n_kv_heads: c.n_kv_heads, head_dim: c.head_dim };
        let attn_norm = self.norm(&norm("attn_norm"), c.hidden)?;
        let [q, k, v] = ["attn_q", "attn_k", "attn_v"].map(name);
        let qkv = self.linear(&name("attn_qkv"), &[&q, &k, &v], &[c.q_dim(), c.kv_dim(), c.kv_dim()], c.hidden)?;
        let head_norms = match c.qk_norm {
            true => {
                let q = self.norm(&norm("attn_q_norm"), c.head_dim)?;
                Some((q, self.norm(&norm("attn_k_norm"), c.head_dim)?))
            }
            false => None,
        };
        let output = name("attn_output");
        let attn_output = self.linear(&output, &[&output], &[c.hidden], c.q_dim())?;
        let mut post = |part: &str| c.post_norms.then(|| self.norm(&norm(part), c.hidden)).transpose();
        let (post_attn_norm, post_ffn_norm) = (post("post_attention_norm")?, post("post_ffw_norm")?);
        let ffn_norm = self.norm(&norm("ffn_norm"), c.hidden)?;
        let ffn = match &c.moe {
            Some(moe) if moe.moe_layers[i] => self.experts(i)?,
            _ => {
                let [gate, up, down] = ["ffn_gate", "ffn_up", "ffn_down"].map(name);
                let gate_up = self.linear(&name("ffn_gate_up"), &[&gate, &up], &[c.ffn, c.ffn], c.hidden)?;
                Ffn::Dense { gate_up, down: self.linear(&down, &[&down], &[c.hidden], c.ffn)? }
            }
        };
        let attention = Attention { heads, scale: c.attn_scale, softcap: c.attn_softcap, window: c.sliding_window[i] };
        Ok(Layer { attn_norm, qkv, head_norms, attn_output, post_attn_norm, ffn_norm, ffn, post_ffn_norm, attention })
    }

    fn experts(&mut self, i: usize) -> Result<Ffn<B>, LoadError> {
        let c = self.config;
        let moe = c.moe.as_ref().expect("the caller saw it");
        let router = format!("blk.{i}.ffn_gate_inp");
        let (weights, bias) = self.parts(&[&router], &[moe.n_experts], c.hidden)?;
        // Experts are chosen by small differences, and routers are small: the same sums, whichever float a file has.
        let weights = weights.into_iter().map(in_f32).collect::<Result<_, _>>()?;
        let router = self.pack(&router, weights, bias)?;
        let mut experts = Vec::with_capacity(moe.n_experts);
        for e in 0..moe.n_experts {
            let [gate, up, down] = ["gate", "up", "down"].map(|p| format!("blk.{i}.ffn_{p}.{e}"));
            let name = format!("blk.{i}.ffn_gate_up.{e}");
            let widths = [moe.expert_ffn, moe.expert_ffn];
            let gate_up = self.linear(&name, &[&gate, &up], &widths, c.hidden)?;
            let down = self.linear(&down, &[&down], &[c.hidden], moe.expert_ffn)?;
            experts.push(Expert { gate_up, down });
        }
        let (top_k, norm_topk, ffn) = (moe.n_experts_used, moe.norm_topk, moe.expert_ffn);
        Ok(Ffn::Experts(Moe { router, experts, top_k, norm_topk, ffn, gate: gate_of(c.activation) }))
    }

    /// A linear layer of the tensors `<part>.weight` `(rows[i], cols)`, stacked, with `<part>.bias` where any is.
    fn linear(&mut self, name: &str, parts: &[&str], rows: &[usize], cols: usize) -> Result<B::Linear, LoadError> {
        let (weights, bias) = self.parts(parts, rows, cols)?;
        self.pack(name, weights, bias)
    }

    /// Weights and bias of a linear layer's parts.
    fn parts(&self, parts: &[&str], rows: &[usize], cols: usize) -> Result<(Vec<Weight>, Vec<f32>), LoadError> {
        let mut weights = Vec::with_capacity(parts.len());
        let mut bias = Vec::new();
        let biased = parts.iter().any(|p| self.tensors.get(&format!("{p}.bias")).is_some());
        for (part, &rows) in parts.iter().zip(rows) {
            weights.push(self.matrix(&format!("{part}.weight"), rows, cols)?);
            let bias_name = format!("{part}.bias");
            match self.tensors.get(&bias_name) {
                Some(_) => bias.extend(self.vector(&bias_name, rows)?),
                None if biased => bias.extend(std::iter::repeat_n(0.0, rows)),
                None => {}
            }
        }
        Ok((weights, bias))
    }

    fn pack(&mut self, name: &str, weights: Vec<Weight>, bias: Vec<f32>) -> Result<B::Linear, LoadError> {
        let bytes: usize = weights.iter().map(Weight::byte_len).sum();
        let spec = LinearSpec::new(name, weights, bias)?;
        let linear = self.backend.load_linear(&spec)?;
        (self.check)(self.backend, self.place, &spec, &linear)?;
        self.placements.extend(self.backend.placement(&linear));
        self.seen.done = (self.seen.done + bytes).min(self.seen.total);
        (self.progress)(self.seen);
        Ok(linear)
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Weight, LoadError> {
        let tensor = self.tensors.require(name, &[rows, cols])?;
        let tensor = tensor.stored(self.tensors.file())?;
        if let Some(grouped) = tensor.as_grouped() {
            return Ok(Weight::grouped(name, grouped.clone()));
        }
        let dtype = tensor.dtype.blocks().expect("what is not grouped is in blocks");
        let bytes: SharedBytes = Arc::new(TensorBytes(tensor));
        Ok(Weight::new(name, dtype, rows, cols, bytes)?)
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        let tensor = self.tensors.require(name, &[len])?;
        tensor.check_finite(self.tensors.file())?;
        Ok(tensor.to_f32()?)
    }

    fn norm(&mut self, name: &str, len: usize) -> Result<B::Vector, LoadError> {
        let mut values = self.vector(name, len)?;
        values.iter_mut().for_each(|w| *w += self.config.norm_weight_offset);
        Ok(self.backend.load_vector(&values))
    }
}

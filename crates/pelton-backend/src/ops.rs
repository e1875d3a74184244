//! The ops that a model is made of.
//!
//! Invariants: ops take shapes that the model has validated, so they return nothing and assert; loading is where
//! things can fail. A row's result depends on that row (and its sequence's KV) alone, never on its neighbours in
//! the batch: greedy output is the same bits alone and under load.

use std::borrow::Borrow;
use std::ops::Range;

use pelton_quant::{DType, WeightType};

use crate::{Ask, Batch, BatchError, KvLayout, LinearSpec, Weighed, Weight};

/// Why loading onto a backend failed.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// A storage type that no kernel reads.
    #[error("tensor {tensor}: type {dtype} is not supported; supported types: {}", supported_types())]
    UnsupportedType {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: DType,
    },
    /// A tensor whose shape does not fit.
    #[error("tensor {tensor}: {problem}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// What does not fit.
        problem: String,
    },
    /// Memory that is not there.
    #[error(
        "{what} needs {bytes} bytes, which this machine does not have free; use a smaller context or fewer sequences"
    )]
    OutOfMemory {
        /// What was to be allocated.
        what: String,
        /// How much.
        bytes: usize,
    },
    /// A batch that breaks its own rules.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// A kernel whose results are not those of the scalar reference.
    #[error(
        "kernel {kernel} computes wrong results for {what}: {problem}; this is a fault of the kernel or of the machine, \
         not of the model: run with --reference or with another instruction set (PELTON_ISA=scalar), and report it"
    )]
    Drift {
        /// The kernel.
        kernel: String,
        /// What it was probed on.
        what: String,
        /// The error, and the error that is allowed.
        problem: String,
    },
}

fn supported_types() -> String {
    let names: Vec<_> = DType::DECODABLE.iter().map(|d| d.name()).collect();
    names.join(", ")
}

/// Rotary position embedding, resolved to frequencies: rotates pairs `(i, i + dim/2)` of the first `dim`
/// elements of each head by `position * inv_freq[i]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// `(dim / 2,)` radians a position.
    pub inv_freq: Vec<f32>,
    /// Multiplies cos and sin (YaRN's attention factor; 1 otherwise).
    pub scale: f32,
}

/// How a fused QKV row is divided: `n_heads` queries, `n_kv_heads` keys, `n_kv_heads` values, each `head_dim` wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl Heads {
    /// Columns of all query heads.
    pub fn q_dim(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Columns of all key heads.
    pub fn kv_dim(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Columns of a fused QKV row.
    pub fn qkv_dim(&self) -> usize {
        self.q_dim() + 2 * self.kv_dim()
    }
}

/// RMSNorm weights of single heads, `(head_dim,)` each, applied to Q and K before RoPE.
#[derive(Debug)]
pub struct HeadNorms<'a, V> {
    /// For queries.
    pub q: &'a V,
    /// For keys.
    pub k: &'a V,
    /// Epsilon.
    pub eps: f32,
}

/// Parameters of one layer's attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Head counts and width.
    pub heads: Heads,
    /// Multiplies `q·k`.
    pub scale: f32,
    /// `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// A row at position p sees positions `p - window < j <= p`.
    pub window: Option<usize>,
}

/// The gate of a feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// `silu(gate) * up`.
    Silu,
    /// `gelu_tanh(gate) * up`.
    GeluTanh,
}

/// One expert: a feed-forward block of its own.
#[derive(Debug)]
pub struct Expert<L> {
    /// `hidden -> [gate | up]`.
    pub gate_up: L,
    /// `ffn -> hidden`.
    pub down: L,
}

/// A mixture-of-experts block.
#[derive(Debug)]
pub struct Moe<L> {
    /// `hidden -> n_experts`.
    pub router: L,
    /// The experts.
    pub experts: Vec<Expert<L>>,
    /// Experts a token uses.
    pub top_k: usize,
    /// Normalise the chosen probabilities to sum to 1.
    pub norm_topk: bool,
    /// Hidden size of one expert.
    pub ffn: usize,
    /// The experts' gate.
    pub gate: Gate,
}

/// Where a layer's weights went and which kernel reads them: shown to the user, never silent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The layer's name.
    pub name: String,
    /// Storage type in the file.
    pub dtype: WeightType,
    /// Kernel that runs it.
    pub kernel: &'static str,
    /// Bytes that one pass over the weights reads.
    pub bytes: usize,
}

/// What weights belong to: a backend of several parts puts them where the layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Layer `index` of a model of `of` layers; the embedding table belongs to the first.
    Layer {
        /// From 0.
        index: usize,
        /// Layers of the model.
        of: usize,
    },
    /// The last norm and the head of a model of `of` layers.
    Head {
        /// Layers of the model.
        of: usize,
    },
}

/// A part of a backend that has layers of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The first of its layers.
    pub first_layer: usize,
    /// What it says of itself.
    pub describe: String,
}

/// The ops of a model, over one device or several.
///
/// Activations are float32 matrices `(rows, cols)`; a row belongs to one token of the batch.
pub trait Backend {
    /// A matrix of activations.
    type Tensor;
    /// A float32 vector: norm weights.
    type Vector;
    /// A packed linear layer.
    type Linear;
    /// A table whose rows are looked up by id.
    type Embedding;
    /// A KV pool.
    type Kv;
    /// A batch, made ready for the device.
    type Prepared;

    /// The backend's name and what it found, e.g. `cpu avx512-vnni, 2 threads`.
    fn describe(&self) -> String;

    /// Called on the thread that runs all steps from now on and does nothing else: a backend may bind it to a core.
    fn bind_thread(&mut self) {}

    /// Says what the weights belong to that are loaded from now on.
    fn load_for(&mut self, _place: Place) {}

    /// Where the layers of a model of `n_layers` are: one part for each device that has some.
    fn parts(&self, _n_layers: usize) -> Vec<Part> {
        vec![Part { first_layer: 0, describe: self.describe() }]
    }

    /// Packs a linear layer.
    ///
    /// # Errors
    /// [`BackendError`] for a type without a kernel or memory that is not there.
    fn load_linear(&mut self, spec: &LinearSpec) -> Result<Self::Linear, BackendError>;

    /// Where a linear layer's parts went.
    fn placement(&self, linear: &Self::Linear) -> Vec<Placement>;

    /// Loads an embedding table, `(vocab, hidden)`.
    ///
    /// # Errors
    /// [`BackendError`] for a type that cannot be decoded.
    fn load_embedding(&mut self, table: &Weight) -> Result<Self::Embedding, BackendError>;

    /// Loads a vector.
    fn load_vector(&mut self, values: &[f32]) -> Self::Vector;

    /// Allocates a KV pool.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`].
    fn kv_pool(&mut self, layout: &KvLayout) -> Result<Self::Kv, BackendError>;

    /// Copies one page of every layer onto another.
    fn copy_page(&mut self, kv: &mut Self::Kv, from: u32, to: u32);

    /// Bytes of one page, over all layers, as [`Backend::read_page`] gives them.
    fn page_bytes(&self, kv: &Self::Kv) -> usize;

    /// Copies one page of every layer to the host. What the bytes mean is the backend's affair.
    fn read_page(&mut self, kv: &Self::Kv, page: u32, out: &mut Vec<u8>);

    /// Puts back, at any page, what [`Backend::read_page`] gave of a pool of the same layout (but for its number of
    /// pages). Another number of bytes is a broken invariant (asserted).
    fn write_page(&mut self, kv: &mut Self::Kv, page: u32, bytes: &[u8]);

    /// A matrix of `(rows, cols)`, contents unspecified.
    fn alloc(&mut self, rows: usize, cols: usize) -> Self::Tensor;

    /// Changes the number of rows, contents unspecified.
    fn set_rows(&mut self, tensor: &mut Self::Tensor, rows: usize);

    /// Makes a batch ready: uploads indices, computes the rotation of each row's position.
    fn prepare(&mut self, batch: &Batch, rope: &Rope) -> Self::Prepared;

    /// `out[r] = scale * table[ids[r]]`, `(rows, hidden)`. Ids past the table are a broken invariant (asserted).
    fn embed(&mut self, batch: &Self::Prepared, table: &Self::Embedding, scale: f32, out: &mut Self::Tensor);

    /// `out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight`.
    fn rms_norm(&mut self, x: &Self::Tensor, weight: &Self::Vector, eps: f32, out: &mut Self::Tensor);

    /// `x += y`.
    fn add(&mut self, x: &mut Self::Tensor, y: &Self::Tensor);

    /// `x += y`, then `out = rms_norm(x)`: the step between two blocks, fused where a backend can.
    fn add_rms_norm(
        &mut self,
        x: &mut Self::Tensor,
        y: &Self::Tensor,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Tensor,
    ) {
        self.add(x, y);
        self.rms_norm(x, weight, eps, out);
    }

    /// `out[r] = W x[r] + bias`, `(rows, in) -> (rows, out)`.
    fn linear(&mut self, x: &Self::Tensor, linear: &Self::Linear, out: &mut Self::Tensor);

    /// Normalises (where `norms` are given) and rotates the Q and K heads of `qkv` `(rows, qkv_dim)`, in place
    /// for Q, and stores K and V in the pages of `layer`.
    #[allow(clippy::too_many_arguments, reason = "one fused op; each argument is another thing")]
    fn rope_store_kv(
        &mut self,
        qkv: &mut Self::Tensor,
        batch: &Self::Prepared,
        heads: Heads,
        norms: Option<HeadNorms<'_, Self::Vector>>,
        layer: usize,
        kv: &mut Self::Kv,
    );

    /// Causal attention of the Q heads in `qkv` over the pages of `layer`; `out` is `(rows, q_dim)`.
    fn paged_attention(
        &mut self,
        qkv: &Self::Tensor,
        batch: &Self::Prepared,
        attention: &Attention,
        layer: usize,
        kv: &Self::Kv,
        out: &mut Self::Tensor,
    );

    /// `out = gate(x[.., ..ffn]) * x[.., ffn..]`, `(rows, 2 ffn) -> (rows, ffn)`.
    fn gate(&mut self, x: &Self::Tensor, gate: Gate, out: &mut Self::Tensor);

    /// `out = gate(h[.., ..ffn]) * h[.., ffn..]` of `h = x W^T + bias`: [`Backend::linear`] and [`Backend::gate`], to the
    /// same bits. `hidden`, `(rows, 2 ffn)`, may be used for `h`; what it holds afterwards is unspecified.
    fn gated_linear(
        &mut self,
        x: &Self::Tensor,
        linear: &Self::Linear,
        gate: Gate,
        hidden: &mut Self::Tensor,
        out: &mut Self::Tensor,
    ) {
        self.linear(x, linear, hidden);
        self.gate(hidden, gate, out);
    }

    /// Routes each row to its experts and sums their weighted answers into `out`, `(rows, hidden)`.
    fn moe<L: Borrow<Self::Linear>>(&mut self, x: &Self::Tensor, moe: &Moe<L>, out: &mut Self::Tensor);

    /// Picks the rows whose logits are wanted; `out` gets `logit_rows.len()` rows.
    fn gather_logit_rows(&mut self, x: &Self::Tensor, batch: &Self::Prepared, out: &mut Self::Tensor);

    /// `x = cap * tanh(x / cap)`.
    fn softcap(&mut self, x: &mut Self::Tensor, cap: f32);

    /// Copies a matrix to the host, row-major.
    fn read(&mut self, x: &Self::Tensor, out: &mut Vec<f32>);

    /// Copies some rows of a matrix, `cols` wide, to the host.
    fn read_rows(&mut self, x: &Self::Tensor, rows: Range<usize>, cols: usize, out: &mut Vec<f32>) {
        self.read(x, out);
        out.truncate(rows.end * cols);
        out.drain(..rows.start * cols);
    }

    /// Finds out about rows of logits what is asked, where they are, and without copying them: `out` gets an answer for each
    /// row, as [`conformance::weigh_row`](crate::conformance::weigh_row) says. `false` where the backend never does: then the
    /// host reads them, and does not ask again.
    fn weigh(&mut self, _logits: &Self::Tensor, _asks: &[Ask], _out: &mut Vec<Weighed>) -> bool {
        false
    }

    /// The numbers of a matrix, row-major, for the host to read and to change at will: where they are, if the host can
    /// reach them there, else copied to `copy`. What becomes of the matrix is unspecified.
    fn on_host<'a>(&mut self, x: &'a mut Self::Tensor, copy: &'a mut Vec<f32>) -> &'a mut [f32] {
        self.read(x, copy);
        copy
    }

    /// Calls `task(0)` to `task(n - 1)`, each once and in any order: work of the host between two steps, dealt to the
    /// threads that a backend keeps for its ops. In turn, where it keeps none.
    fn on_threads(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..n).for_each(task);
    }

    /// Copies a matrix from the host, row-major: `values` has `rows * cols` numbers (asserted).
    fn write(&mut self, x: &mut Self::Tensor, values: &[f32]);
}

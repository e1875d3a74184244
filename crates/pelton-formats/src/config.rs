//! One description of a decoder, whatever file it came from.
//!
//! The readers ([`crate::hf`], [`crate::gguf`]) fill a [`ModelConfig`]; the model crate reads nothing else.
//! Invariant: a `ModelConfig` that a reader returned has passed [`ModelConfig::validate`], so later code
//! divides by its counts and allocates by its sizes without checking again.

use crate::FormatError;

/// The architectures that Pelton runs, by the names their files use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arch {
    /// Llama 1 to 3 (`llama`, `LlamaForCausalLM`).
    Llama,
    /// Mistral 7B and kin (`mistral`; in GGUF its files say `llama`).
    Mistral,
    /// Qwen2 and Qwen2.5 (`qwen2`).
    Qwen2,
    /// Qwen3, dense (`qwen3`).
    Qwen3,
    /// Qwen3 with mixture-of-experts blocks (`qwen3_moe`, in GGUF `qwen3moe`).
    Qwen3Moe,
    /// Phi-3 (`phi3`): Q, K, V in one tensor, gate and up in another.
    Phi3,
    /// Gemma 2 (`gemma2`).
    Gemma2,
}

impl Arch {
    /// Every supported architecture, in the order in which error messages list them.
    pub const ALL: [Arch; 7] =
        [Arch::Llama, Arch::Mistral, Arch::Qwen2, Arch::Qwen3, Arch::Qwen3Moe, Arch::Phi3, Arch::Gemma2];

    /// The name in `config.json`'s `model_type`.
    pub fn hf_name(self) -> &'static str {
        match self {
            Arch::Llama => "llama",
            Arch::Mistral => "mistral",
            Arch::Qwen2 => "qwen2",
            Arch::Qwen3 => "qwen3",
            Arch::Qwen3Moe => "qwen3_moe",
            Arch::Phi3 => "phi3",
            Arch::Gemma2 => "gemma2",
        }
    }

    /// The name in a GGUF file's `general.architecture` (Mistral models say `llama` there).
    pub fn gguf_name(self) -> &'static str {
        match self {
            Arch::Llama | Arch::Mistral => "llama",
            Arch::Qwen2 => "qwen2",
            Arch::Qwen3 => "qwen3",
            Arch::Qwen3Moe => "qwen3moe",
            Arch::Phi3 => "phi3",
            Arch::Gemma2 => "gemma2",
        }
    }
}

/// The gate's activation in the feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU by its tanh approximation.
    GeluTanh,
}

/// How rotary positions are stretched past the context a model was trained on.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Plain RoPE.
    None,
    /// Positions divided by `factor`.
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// Llama 3.1's frequency-dependent scaling.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f32,
        /// Wavelengths above `original_context / low_freq_factor` are divided.
        low_freq_factor: f32,
        /// Wavelengths below `original_context / high_freq_factor` are kept.
        high_freq_factor: f32,
        /// The context the model was first trained on, in tokens.
        original_context: usize,
    },
    /// YaRN (Peng et al., 2023, arXiv:2309.00071).
    Yarn {
        /// Context extension factor.
        factor: f32,
        /// The context the model was first trained on, in tokens.
        original_context: usize,
        /// Extrapolation boundary in rotations (32 by default).
        beta_fast: f32,
        /// Interpolation boundary in rotations (1 by default).
        beta_slow: f32,
        /// Multiplies cos and sin. Readers resolve it: `0.1 ln(factor) + 1` where the file is silent.
        attention_factor: f32,
    },
    /// One divisor per frequency, as GGUF's `rope_freqs.weight` or Phi-3's LongRoPE give it.
    Factors {
        /// `(rope_dim / 2,)` divisors of the frequencies, short contexts.
        short: Vec<f32>,
        /// `(rope_dim / 2,)` divisors once the context exceeds `original_context`; equal to `short` where there is one set.
        long: Vec<f32>,
        /// The context up to which `short` holds, in tokens.
        original_context: usize,
        /// Multiplies cos and sin (1 unless the file says so).
        attention_factor: f32,
    },
}

/// Rotary position embedding. Pelton rotates pairs `(i, i + dim/2)`, as transformers does; readers of files
/// that store Q and K rows for interleaved pairs undo that permutation when they open the file.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f32,
    /// How many leading dimensions of a head are rotated (even, at most `head_dim`).
    pub dim: usize,
    /// Context extension.
    pub scaling: RopeScaling,
}

/// The mixture-of-experts block that replaces the dense feed-forward block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoeConfig {
    /// Experts a layer.
    pub n_experts: usize,
    /// Experts that each token uses.
    pub n_experts_used: usize,
    /// Hidden size of one expert.
    pub expert_ffn: usize,
    /// Whether the chosen experts' probabilities are normalised to sum to 1.
    pub norm_topk: bool,
    /// `moe_layers[i]`: layer `i` has experts; the others are dense.
    pub moe_layers: Vec<bool>,
}

/// Everything about a decoder's shape. Counts are in heads, layers, tokens or elements.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Which architecture the file names.
    pub arch: Arch,
    /// The model's own name, for people (`general.name`, `_name_or_path`, or the file's).
    pub name: String,
    /// Layers.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads (divides `n_heads`).
    pub n_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Hidden size of the dense feed-forward block.
    pub ffn: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// The longest context that the model claims, in tokens.
    pub max_context: usize,
    /// Epsilon of every RMSNorm.
    pub norm_eps: f32,
    /// Added to each stored norm weight (1 for Gemma's HF files, whose weights are stored less one; 0 otherwise).
    pub norm_weight_offset: f32,
    /// Rotary positions.
    pub rope: RopeConfig,
    /// The gate's activation.
    pub activation: Activation,
    /// RMSNorm on each head of Q and K before RoPE (Qwen3).
    pub qk_norm: bool,
    /// RMSNorm after attention and after the feed-forward block as well (Gemma 2).
    pub post_norms: bool,
    /// `sliding_window[i]`: layer `i` sees this many latest tokens, itself included; `None` is all.
    pub sliding_window: Vec<Option<usize>>,
    /// Multiplies `q·k`.
    pub attn_scale: f32,
    /// `cap * tanh(score / cap)` on attention scores.
    pub attn_softcap: Option<f32>,
    /// `cap * tanh(logit / cap)` on logits.
    pub logit_softcap: Option<f32>,
    /// Multiplies the embedding (Gemma: `sqrt(hidden)`), 1 otherwise.
    pub embed_scale: f32,
    /// The output head is the embedding.
    pub tied_embeddings: bool,
    /// Experts, where the model has them.
    pub moe: Option<MoeConfig>,
}

/// Sampling defaults and end-of-text ids that come with a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Beginning-of-text id.
    pub bos: Option<u32>,
    /// Ids that end an answer.
    pub eos: Vec<u32>,
    /// Padding id.
    pub pad: Option<u32>,
    /// Sampling temperature.
    pub temperature: Option<f32>,
    /// Top-k.
    pub top_k: Option<usize>,
    /// Top-p.
    pub top_p: Option<f32>,
    /// Min-p.
    pub min_p: Option<f32>,
    /// Repetition penalty.
    pub repetition_penalty: Option<f32>,
    /// `false` asks for greedy decoding.
    pub do_sample: Option<bool>,
}

/// Largest count or size that a configuration may name. Far above any real model, far below overflow.
const MAX_DIM: usize = 1 << 24;

impl ModelConfig {
    /// Width of the query projection's output: `n_heads * head_dim`.
    pub fn q_dim(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of the key (and of the value) projection's output: `n_kv_heads * head_dim`.
    pub fn kv_dim(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Checks every relation that later code relies on.
    ///
    /// # Errors
    /// [`FormatError::Config`] that names the field, its value and what was expected.
    pub fn validate(&self) -> Result<(), FormatError> {
        let bad = |field: &str, got: String, want: &str| {
            Err(FormatError::Config { field: field.into(), got, want: want.into() })
        };
        let sizes = [
            ("number of layers", self.n_layers),
            ("hidden size", self.hidden),
            ("number of heads", self.n_heads),
            ("number of key/value heads", self.n_kv_heads),
            ("head dimension", self.head_dim),
            ("feed-forward size", self.ffn),
            ("vocabulary size", self.vocab_size),
        ];
        for (field, v) in sizes {
            if v == 0 || v > MAX_DIM {
                return bad(field, v.to_string(), "between 1 and 16777216");
            }
        }
        if self.n_layers > 4096 {
            return bad("number of layers", self.n_layers.to_string(), "at most 4096");
        }
        if self.max_context == 0 || self.max_context > 1 << 30 {
            return bad("context length", self.max_context.to_string(), "between 1 and 2^30");
        }
        if self.n_heads > 65_536 || self.head_dim > 65_536 || self.q_dim() > MAX_DIM {
            let got = format!("{} heads of {}", self.n_heads, self.head_dim);
            return bad("heads", got, "heads times head dimension at most 16777216");
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let got = format!("{} heads, {} key/value heads", self.n_heads, self.n_kv_heads);
            return bad("number of key/value heads", got, "a divisor of the number of heads");
        }
        if self.rope.dim == 0 || !self.rope.dim.is_multiple_of(2) || self.rope.dim > self.head_dim {
            return bad("rotary dimension", self.rope.dim.to_string(), "even and at most the head dimension");
        }
        if !(self.rope.theta.is_finite() && self.rope.theta > 0.0) {
            return bad("rope theta", self.rope.theta.to_string(), "a positive finite number");
        }
        let floats = [
            ("norm epsilon", self.norm_eps),
            ("attention scale", self.attn_scale),
            ("embedding scale", self.embed_scale),
        ];
        for (field, v) in floats {
            if !(v.is_finite() && v >= 0.0) {
                return bad(field, v.to_string(), "a finite number that is not negative");
            }
        }
        for (field, v) in [("attention soft cap", self.attn_softcap), ("logit soft cap", self.logit_softcap)] {
            if v.is_some_and(|v| !(v.is_finite() && v > 0.0)) {
                return bad(field, format!("{v:?}"), "a positive finite number");
            }
        }
        if self.sliding_window.len() != self.n_layers || self.sliding_window.contains(&Some(0)) {
            let got = format!("{} entries", self.sliding_window.len());
            return bad("sliding window", got, "one entry a layer, none of them 0");
        }
        self.validate_rope_scaling()?;
        if let Some(moe) = &self.moe {
            let n = moe.n_experts;
            if n == 0 || n > 4096 || moe.n_experts_used == 0 || moe.n_experts_used > n {
                let got = format!("{} of {n}", moe.n_experts_used);
                return bad("experts used", got, "between 1 and the number of experts (at most 4096)");
            }
            if moe.expert_ffn == 0 || moe.expert_ffn > MAX_DIM || moe.moe_layers.len() != self.n_layers {
                return bad("expert size", moe.expert_ffn.to_string(), "between 1 and 16777216, one flag a layer");
            }
        }
        Ok(())
    }

    fn validate_rope_scaling(&self) -> Result<(), FormatError> {
        let half = self.rope.dim / 2;
        let positive = |v: f32| v.is_finite() && v > 0.0;
        let ok = match &self.rope.scaling {
            RopeScaling::None => true,
            RopeScaling::Linear { factor } => positive(*factor),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                positive(*factor)
                    && positive(*low_freq_factor)
                    && positive(*high_freq_factor)
                    && high_freq_factor > low_freq_factor
                    && *original_context > 0
            }
            RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor } => {
                positive(*factor)
                    && positive(*beta_fast)
                    && positive(*beta_slow)
                    && positive(*attention_factor)
                    && *original_context > 0
            }
            RopeScaling::Factors { short, long, attention_factor, .. } => {
                let all = short.len() == half && long.len() == half;
                all && positive(*attention_factor) && short.iter().chain(long).all(|&f| positive(f))
            }
        };
        if ok {
            return Ok(());
        }
        Err(FormatError::Config {
            field: "rope scaling".into(),
            got: format!("{:?}", self.rope.scaling),
            want: format!("positive finite factors, {half} of them where they are per frequency"),
        })
    }
}

//! A GGUF file's metadata as a [`ModelConfig`].
//!
//! Keys: the PyPI package `gguf`, `constants.py`; defaults where a key is absent: those of llama.cpp's loader.
//! Invariant: the result has passed [`ModelConfig::validate`].

use super::{GgufFile, Metadata, TensorInfo};
use crate::model::check_layers;
use crate::rope::yarn_attention_factor;
use crate::{Activation, Arch, FormatError, ModelConfig, MoeConfig, RopeConfig, RopeScaling};

/// Pelton's own key: all ids that end an answer, where a file has more than `eos` and `eot`.
pub(crate) const PELTON_EOS_KEY: &str = "pelton.eos_token_ids";

/// How norm weights end, in every architecture here.
pub(crate) const NORM_SUFFIX: &str = "norm.weight";

/// Finds a tensor by the file's name, in any shard.
type Find<'a> = dyn Fn(&str) -> Option<(&'a GgufFile, &'a TensorInfo)> + 'a;

/// Metadata with the architecture's prefix.
struct Keys<'a> {
    meta: &'a Metadata,
    arch: &'static str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    fn count(&self, name: &str) -> Result<Option<usize>, FormatError> {
        self.meta.uniform_count(&self.key(name))
    }

    fn required(&self, name: &str) -> Result<usize, FormatError> {
        self.count(name)?.ok_or_else(|| self.meta.missing(&self.key(name), "a count"))
    }

    fn float(&self, name: &str) -> Result<Option<f32>, FormatError> {
        self.meta.float(&self.key(name))
    }

    /// Refuses a key that would change the model's results in a way that Pelton does not compute.
    fn must_be(&self, name: &str, neutral: f32) -> Result<(), FormatError> {
        match self.float(name)? {
            Some(v) if v != neutral => {
                let want = format!("{neutral}; another value is not supported");
                Err(FormatError::key(self.meta.file(), self.key(name), v.to_string(), want))
            }
            _ => Ok(()),
        }
    }
}

pub(super) fn read<'a>(meta: &Metadata, find: &Find<'a>) -> Result<ModelConfig, FormatError> {
    let arch = architecture(meta)?;
    let keys = Keys { meta, arch: arch.gguf_name() };
    let n_layers = check_layers(keys.required("block_count")?)?;
    let hidden = keys.required("embedding_length")?;
    let n_heads = keys.required("attention.head_count")?;
    let n_kv_heads = keys.count("attention.head_count_kv")?.unwrap_or(n_heads);
    let head_dim = match keys.count("attention.key_length")? {
        Some(n) => n,
        None => hidden.checked_div(n_heads).unwrap_or(0),
    };
    if let Some(n) = keys.count("attention.value_length")?
        && n != head_dim
    {
        let want = format!("{head_dim}, the width of the keys");
        return Err(FormatError::key(meta.file(), keys.key("attention.value_length"), n.to_string(), want));
    }
    let Some((_, embedding)) = find("token_embd.weight") else {
        let want = "the embedding; a file with a vocabulary and no weights serves only as a tokenizer";
        return Err(FormatError::tensor(meta.file(), "token_embd.weight", "nothing", want));
    };
    let max_context = keys.required("context_length")?;
    let moe = experts(&keys, arch, n_layers, find)?;
    let ffn = match (keys.count("feed_forward_length")?, &moe) {
        (Some(n), _) => n,
        (None, Some(moe)) => moe.expert_ffn,
        (None, None) => return Err(meta.missing(&keys.key("feed_forward_length"), "a count")),
    };
    let norm_eps = keys.float("attention.layer_norm_rms_epsilon")?;
    let gemma = arch == Arch::Gemma2;
    let config = ModelConfig {
        arch,
        name: meta.str("general.name")?.unwrap_or_default().to_owned(),
        n_layers,
        hidden,
        n_heads,
        n_kv_heads,
        head_dim,
        ffn,
        vocab_size: embedding.shape[0],
        max_context,
        norm_eps: norm_eps.ok_or_else(|| meta.missing(&keys.key("attention.layer_norm_rms_epsilon"), "a number"))?,
        norm_weight_offset: 0.0,
        rope: rope(&keys, head_dim, max_context, find)?,
        activation: if gemma { Activation::GeluTanh } else { Activation::Silu },
        qk_norm: matches!(arch, Arch::Qwen3 | Arch::Qwen3Moe),
        post_norms: gemma,
        sliding_window: sliding_window(&keys, n_layers)?,
        attn_scale: attn_scale(&keys, arch, hidden, n_heads, head_dim, n_layers)?,
        attn_softcap: soft_cap(&keys, "attn_logit_softcapping", gemma.then_some(50.0))?,
        logit_softcap: soft_cap(&keys, "final_logit_softcapping", gemma.then_some(30.0))?,
        embed_scale: if gemma { (hidden as f32).sqrt() } else { 1.0 },
        tied_embeddings: find("output.weight").is_none(),
        moe,
    };
    config.validate()?;
    Ok(config)
}

fn architecture(meta: &Metadata) -> Result<Arch, FormatError> {
    if let Some(kind) = meta.str("general.type")?
        && kind != "model"
    {
        return Err(FormatError::key(
            meta.file(),
            "general.type",
            kind,
            "`model`; adapters and projectors do not run alone",
        ));
    }
    let name = meta
        .str("general.architecture")?
        .ok_or_else(|| meta.missing("general.architecture", "the architecture's name"))?;
    let found = Arch::ALL.into_iter().find(|a| a.gguf_name() == name);
    found.ok_or_else(|| {
        let mut names: Vec<&str> = Arch::ALL.iter().map(|a| a.gguf_name()).collect();
        names.dedup();
        FormatError::UnsupportedArch {
            file: meta.file().into(),
            arch: crate::error::brief(name),
            supported: names.join(", "),
        }
    })
}

/// A cap of 0 means none.
fn soft_cap(keys: &Keys<'_>, name: &str, default: Option<f32>) -> Result<Option<f32>, FormatError> {
    Ok(keys.float(name)?.or(default).filter(|&cap| cap != 0.0))
}

fn attn_scale(
    keys: &Keys<'_>,
    arch: Arch,
    hidden: usize,
    n_heads: usize,
    head_dim: usize,
    n_layers: usize,
) -> Result<f32, FormatError> {
    if let Some(scale) = keys.float("attention.scale")?.filter(|&s| s != 0.0) {
        return Ok(scale);
    }
    // Gemma 2 27B (46 layers) scales by the width per head; the format has no other key that says so.
    let width = match (arch, n_layers) {
        (Arch::Gemma2, 46) => hidden.checked_div(n_heads).unwrap_or(0),
        _ => head_dim,
    };
    Ok(1.0 / (width as f32).sqrt())
}

fn sliding_window(keys: &Keys<'_>, n_layers: usize) -> Result<Vec<Option<usize>>, FormatError> {
    let gemma = keys.arch == Arch::Gemma2.gguf_name();
    let window = keys.count("attention.sliding_window")?.or(gemma.then_some(4096)).filter(|&n| n > 0);
    let pattern = keys.key("attention.sliding_window_pattern");
    let slides: Vec<bool> = match keys.meta.get(&pattern) {
        Some(super::Value::Array(_)) => {
            let flags = keys.meta.bools(&pattern)?.unwrap_or_default();
            if flags.len() != n_layers {
                let got = format!("{} flags", flags.len());
                return Err(FormatError::key(keys.meta.file(), pattern, got, format!("{n_layers}, one a layer")));
            }
            flags.to_vec()
        }
        // Every n-th layer sees everything; 0 and 1 are no pattern.
        Some(_) => {
            let n = keys.meta.count(&pattern)?.unwrap_or(0);
            (0..n_layers).map(|i| n < 2 || i % n < n - 1).collect()
        }
        None => (0..n_layers).map(|i| !gemma || i.is_multiple_of(2)).collect(),
    };
    Ok(slides.into_iter().map(|s| if s { window } else { None }).collect())
}

fn rope<'a>(keys: &Keys<'_>, head_dim: usize, max_context: usize, find: &Find<'a>) -> Result<RopeConfig, FormatError> {
    let dim = keys.count("rope.dimension_count")?.unwrap_or(head_dim);
    if keys.arch == Arch::Llama.gguf_name() && dim != head_dim {
        let want = format!("{head_dim}, the head's width: partial rotation of permuted rows is not supported");
        return Err(FormatError::key(keys.meta.file(), keys.key("rope.dimension_count"), dim.to_string(), want));
    }
    let theta = keys.float("rope.freq_base")?.unwrap_or(10_000.0);
    let named = named_scaling(keys, max_context)?;
    let original = keys.count("rope.scaling.original_context_length")?.unwrap_or(max_context);
    let factors = |name: &str| -> Result<Option<Vec<f32>>, FormatError> {
        match find(name) {
            None => Ok(None),
            Some((file, info)) if info.shape.len() == 1 && info.shape[0] == dim / 2 => {
                Ok(Some(file.tensor(info)?.to_f32()?))
            }
            Some((file, info)) => {
                let want = format!("[{}], half of the rotary dimension", dim / 2);
                Err(FormatError::tensor(file.name(), name, format!("shape {:?}", info.shape), want))
            }
        }
    };
    let per_frequency = match factors("rope_freqs.weight")? {
        Some(f) => Some((f.clone(), f)),
        None => match (factors("rope_factors_short.weight")?, factors("rope_factors_long.weight")?) {
            (Some(short), Some(long)) => Some((short, long)),
            (None, None) => None,
            _ => {
                let want = "both rope_factors_short.weight and rope_factors_long.weight, or neither";
                return Err(FormatError::tensor(keys.meta.file(), "rope_factors_*.weight", "one of two", want));
            }
        },
    };
    let scaling = match (named, per_frequency) {
        (RopeScaling::None, Some((short, long))) => {
            let attention_factor = keys.float("rope.scaling.attn_factor")?.unwrap_or(1.0);
            RopeScaling::Factors { short, long, original_context: original, attention_factor }
        }
        (named, None) => named,
        (named, Some(_)) => {
            let got = format!("{named:?} and factors per frequency");
            return Err(FormatError::key(keys.meta.file(), keys.key("rope.scaling.type"), got, "one of the two"));
        }
    };
    Ok(RopeConfig { theta, dim, scaling })
}

/// What `rope.scaling.type` says. LongRoPE's factors are tensors.
fn named_scaling(keys: &Keys<'_>, max_context: usize) -> Result<RopeScaling, FormatError> {
    let key = keys.key("rope.scaling.type");
    let factor = keys.float("rope.scaling.factor")?.or(keys.float("rope.scale_linear")?);
    let kind = match keys.meta.str(&key)? {
        Some(kind) => kind,
        None if factor.is_some_and(|f| f != 0.0 && f != 1.0) => "linear",
        None => "none",
    };
    match kind {
        "none" | "longrope" => Ok(RopeScaling::None),
        "linear" => match factor {
            Some(factor) => Ok(RopeScaling::Linear { factor }),
            None => Err(keys.meta.missing(&keys.key("rope.scaling.factor"), "the factor of linear scaling")),
        },
        "yarn" => {
            keys.must_be("rope.scaling.yarn_ext_factor", 1.0)?;
            keys.must_be("rope.scaling.yarn_log_multiplier", 0.0)?;
            let missing = || keys.meta.missing(&keys.key("rope.scaling.factor"), "the factor of YaRN");
            let factor = factor.ok_or_else(missing)?;
            let scale = keys.float("rope.scaling.attn_factor")?.unwrap_or(1.0)
                * keys.float("rope.scaling.yarn_attn_factor")?.unwrap_or(1.0);
            Ok(RopeScaling::Yarn {
                factor,
                original_context: keys.count("rope.scaling.original_context_length")?.unwrap_or(max_context),
                beta_fast: keys.float("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: keys.float("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                attention_factor: scale * yarn_attention_factor(factor),
            })
        }
        other => {
            Err(FormatError::key(keys.meta.file(), key, crate::error::brief(other), "none, linear, yarn or longrope"))
        }
    }
}

fn experts<'a>(
    keys: &Keys<'_>,
    arch: Arch,
    n_layers: usize,
    find: &Find<'a>,
) -> Result<Option<MoeConfig>, FormatError> {
    let n_experts = keys.count("expert_count")?.unwrap_or(0);
    if arch != Arch::Qwen3Moe {
        if n_experts == 0 {
            return Ok(None);
        }
        let want = "0: of the models with experts, only `qwen3moe` is supported";
        return Err(FormatError::key(keys.meta.file(), keys.key("expert_count"), n_experts.to_string(), want));
    }
    keys.must_be("expert_shared_count", 0.0)?;
    let scale = keys.float("expert_weights_scale")?.unwrap_or(1.0);
    if scale != 0.0 && scale != 1.0 {
        return keys.must_be("expert_weights_scale", 1.0).map(|()| None);
    }
    let expert_ffn = match keys.count("expert_feed_forward_length")? {
        Some(n) => n,
        None => match (0..n_layers).find_map(|i| find(&format!("blk.{i}.ffn_gate_exps.weight"))) {
            Some((_, info)) if info.shape.len() == 3 => info.shape[1],
            _ => return Err(keys.meta.missing(&keys.key("expert_feed_forward_length"), "a count")),
        },
    };
    Ok(Some(MoeConfig {
        n_experts,
        n_experts_used: keys.required("expert_used_count")?,
        expert_ffn,
        norm_topk: keys.meta.bool(&keys.key("expert_weights_norm"))?.unwrap_or(true),
        moe_layers: (0..n_layers).map(|i| find(&format!("blk.{i}.ffn_gate_inp.weight")).is_some()).collect(),
    }))
}

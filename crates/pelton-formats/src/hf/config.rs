//! `config.json` as a [`ModelConfig`].
//!
//! Defaults where a field is absent are those of transformers' configuration class of the architecture.
//! Invariant: the result has passed [`ModelConfig::validate`].

use serde_json::Value;

use super::fields::Fields;
use super::rope;
use crate::model::check_layers;
use crate::{Activation, Arch, FormatError, ModelConfig, MoeConfig};

/// Reads the configuration. `name` is used where the file does not name the model.
pub(super) fn read(f: &Fields<'_>, name: &str) -> Result<ModelConfig, FormatError> {
    let arch = architecture(f)?;
    let n_layers = check_layers(f.required_count("num_hidden_layers")?).map_err(|e| e.in_file(f.file))?;
    let hidden = f.required_count("hidden_size")?;
    let n_heads = f.required_count("num_attention_heads")?;
    let head_dim = match (f.count("head_dim")?, arch) {
        (Some(n), _) => n,
        (None, Arch::Qwen3) => 128,
        (None, Arch::Gemma2) => 256,
        _ => hidden.checked_div(n_heads).unwrap_or(0),
    };
    let max_context = f.required_count("max_position_embeddings")?;
    let gemma = arch == Arch::Gemma2;
    let cap = |key: &str, default: f32| -> Result<Option<f32>, FormatError> {
        match (gemma, f.has_key(key)) {
            (false, _) => Ok(None),
            (true, false) => Ok(Some(default)),
            (true, true) => f.float(key),
        }
    };
    let scale_width = if gemma { f.float("query_pre_attn_scalar")?.unwrap_or(256.0) } else { head_dim as f32 };
    let config = ModelConfig {
        arch,
        name: f.str("_name_or_path")?.filter(|s| !s.is_empty()).unwrap_or(name).to_owned(),
        n_layers,
        hidden,
        n_heads,
        n_kv_heads: f.count("num_key_value_heads")?.unwrap_or(n_heads),
        head_dim,
        ffn: f.required_count("intermediate_size")?,
        vocab_size: f.required_count("vocab_size")?,
        max_context,
        norm_eps: f.float("rms_norm_eps")?.unwrap_or(if arch == Arch::Phi3 { 1e-5 } else { 1e-6 }),
        norm_weight_offset: if gemma { 1.0 } else { 0.0 },
        rope: rope::read(f, arch, head_dim, max_context)?,
        activation: activation(f, gemma)?,
        qk_norm: matches!(arch, Arch::Qwen3 | Arch::Qwen3Moe),
        post_norms: gemma,
        sliding_window: sliding_window(f, arch, n_layers)?,
        attn_scale: 1.0 / scale_width.sqrt(),
        attn_softcap: cap("attn_logit_softcapping", 50.0)?,
        logit_softcap: cap("final_logit_softcapping", 30.0)?,
        embed_scale: if gemma { (hidden as f32).sqrt() } else { 1.0 },
        tied_embeddings: f.bool("tie_word_embeddings")?.unwrap_or(gemma),
        moe: if arch == Arch::Qwen3Moe { Some(experts(f, n_layers)?) } else { None },
    };
    config.validate().map_err(|e| e.in_file(f.file))?;
    Ok(config)
}

fn architecture(f: &Fields<'_>) -> Result<Arch, FormatError> {
    let name = f.str("model_type")?.ok_or_else(|| f.missing("model_type", "the architecture's name"))?;
    let found = Arch::ALL.into_iter().find(|a| a.hf_name() == name);
    found.ok_or_else(|| FormatError::UnsupportedArch {
        file: f.file.into(),
        arch: crate::error::brief(name),
        supported: Arch::ALL.map(Arch::hf_name).join(", "),
    })
}

fn activation(f: &Fields<'_>, gemma: bool) -> Result<Activation, FormatError> {
    // Early Gemma files say `gelu` in `hidden_act`; transformers reads `hidden_activation` only.
    let (key, default) = if gemma { ("hidden_activation", "gelu_pytorch_tanh") } else { ("hidden_act", "silu") };
    match f.str(key)?.unwrap_or(default) {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        other => Err(f.wrong(key, &Value::String(other.into()), "silu or gelu_pytorch_tanh")),
    }
}

fn sliding_window(f: &Fields<'_>, arch: Arch, n_layers: usize) -> Result<Vec<Option<usize>>, FormatError> {
    let uniform = |window: Option<usize>| Ok(vec![window; n_layers]);
    // Absent means 4096 for these classes, `null` means none.
    let window = match f.count("sliding_window")? {
        None if !f.has_key("sliding_window") && !matches!(arch, Arch::Phi3 | Arch::Llama) => Some(4096),
        given => given,
    };
    let layer_types = match arch {
        Arch::Llama => return uniform(None),
        Arch::Mistral | Arch::Phi3 => return uniform(window),
        Arch::Qwen3Moe => {
            let used = f.bool("use_sliding_window")?.unwrap_or(false);
            return uniform(window.filter(|_| used));
        }
        Arch::Qwen2 | Arch::Qwen3 | Arch::Gemma2 => f.array("layer_types")?,
    };
    let window = match arch {
        Arch::Gemma2 => window,
        _ if f.bool("use_sliding_window")? == Some(true) => window,
        _ => None,
    };
    let Some(types) = layer_types else {
        let first = f.count("max_window_layers")?.unwrap_or(28);
        let slides = |i: usize| if arch == Arch::Gemma2 { i.is_multiple_of(2) } else { i >= first };
        return Ok((0..n_layers).map(|i| window.filter(|_| slides(i))).collect());
    };
    if types.len() != n_layers {
        let got = format!("{} entries", types.len());
        return Err(FormatError::key(f.file, "layer_types", got, format!("{n_layers}, one a layer")));
    }
    let per_layer = |kind: &Value| match (kind.as_str(), window) {
        (Some("full_attention"), _) => Ok(None),
        (Some("sliding_attention"), Some(window)) => Ok(Some(window)),
        (Some("sliding_attention"), None) => {
            Err(f.wrong("layer_types", kind, "full_attention: there is no sliding window"))
        }
        _ => Err(f.wrong("layer_types", kind, "full_attention or sliding_attention")),
    };
    types.iter().map(per_layer).collect()
}

fn experts(f: &Fields<'_>, n_layers: usize) -> Result<MoeConfig, FormatError> {
    let n_experts = match f.count("num_experts")? {
        Some(n) => n,
        None => f.count("num_local_experts")?.ok_or_else(|| f.missing("num_experts", "a count"))?,
    };
    let step = f.count("decoder_sparse_step")?.unwrap_or(1);
    if step == 0 {
        return Err(FormatError::key(f.file, "decoder_sparse_step", "0", "at least 1"));
    }
    let mut moe_layers: Vec<bool> = (1..=n_layers).map(|i| i.is_multiple_of(step)).collect();
    for layer in f.array("mlp_only_layers")?.unwrap_or_default() {
        let index = layer.as_u64().and_then(|i| usize::try_from(i).ok());
        match index.and_then(|i| moe_layers.get_mut(i)) {
            Some(flag) => *flag = false,
            None => return Err(f.wrong("mlp_only_layers", layer, format!("layers below {n_layers}"))),
        }
    }
    Ok(MoeConfig {
        n_experts,
        n_experts_used: f.count("num_experts_per_tok")?.unwrap_or(8),
        expert_ffn: f.required_count("moe_intermediate_size")?,
        norm_topk: f.bool("norm_topk_prob")?.unwrap_or(false),
        moe_layers,
    })
}

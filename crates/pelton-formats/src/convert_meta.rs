//! A [`ModelFiles`] as GGUF metadata.
//!
//! Invariant: what [`crate::open`] reads back from the file equals what was written, but for the differences that
//! GGUF forces: `mistral` becomes `llama`, llama3 scaling becomes factors per frequency, norm offsets are applied.

use crate::convert_tokenizer;
use crate::gguf::{Array, PELTON_EOS_KEY, Value, Writer};
use crate::rope::yarn_attention_factor;
use crate::{Arch, FormatError, GenerationDefaults, ModelConfig, ModelFiles, RopeScaling, TokenizerFiles};

/// Declares every key of the file.
pub(crate) fn describe(files: &ModelFiles, w: &mut Writer, notes: &mut Vec<String>) -> Result<(), FormatError> {
    let config = &files.config;
    w.set("general.architecture", Value::String(config.arch.gguf_name().into()))?;
    w.set("general.type", Value::String("model".into()))?;
    if !config.name.is_empty() {
        w.set("general.name", Value::String(config.name.clone()))?;
    }
    w.set("general.quantization_version", Value::U32(2))?;
    if config.arch == Arch::Mistral {
        notes.push("the architecture is written as `llama`, the name that GGUF has for Mistral models".into());
    }
    let mut keys = Keys { w, arch: config.arch.gguf_name() };
    shape(config, &mut keys)?;
    attention(config, &mut keys, notes)?;
    rope(config, &mut keys)?;
    generation(&files.generation, w)?;
    if let Some(templates) = &files.chat_templates {
        chat_templates(templates, w, notes)?;
    }
    match &files.tokenizer {
        TokenizerFiles::Missing => ids(files, None, None, w),
        TokenizerFiles::Gguf(t) => convert_tokenizer::copy(t, w),
        TokenizerFiles::Hf { tokenizer_json, tokenizer_config_json } => {
            let special = convert_tokenizer::convert(
                tokenizer_json,
                tokenizer_config_json.as_deref(),
                config.vocab_size,
                w,
                notes,
            )?;
            ids(files, special.bos, special.eos, w)
        }
    }
}

struct Keys<'a> {
    w: &'a mut Writer,
    arch: &'static str,
}

impl Keys<'_> {
    fn count(&mut self, name: &str, n: usize) -> Result<(), FormatError> {
        let n = u32::try_from(n).expect("validate() bounds every count below 2^32");
        self.w.set(&format!("{}.{name}", self.arch), Value::U32(n))
    }

    fn float(&mut self, name: &str, v: f32) -> Result<(), FormatError> {
        self.w.set(&format!("{}.{name}", self.arch), Value::F32(v))
    }

    fn value(&mut self, name: &str, v: Value) -> Result<(), FormatError> {
        self.w.set(&format!("{}.{name}", self.arch), v)
    }
}

fn shape(config: &ModelConfig, keys: &mut Keys<'_>) -> Result<(), FormatError> {
    keys.count("block_count", config.n_layers)?;
    keys.count("context_length", config.max_context)?;
    keys.count("embedding_length", config.hidden)?;
    keys.count("feed_forward_length", config.ffn)?;
    keys.count("vocab_size", config.vocab_size)?;
    keys.count("attention.head_count", config.n_heads)?;
    keys.count("attention.head_count_kv", config.n_kv_heads)?;
    keys.count("attention.key_length", config.head_dim)?;
    keys.count("attention.value_length", config.head_dim)?;
    keys.float("attention.layer_norm_rms_epsilon", config.norm_eps)?;
    let Some(moe) = &config.moe else { return Ok(()) };
    keys.count("expert_count", moe.n_experts)?;
    keys.count("expert_used_count", moe.n_experts_used)?;
    keys.count("expert_feed_forward_length", moe.expert_ffn)?;
    keys.value("expert_weights_norm", Value::Bool(moe.norm_topk))
}

fn attention(config: &ModelConfig, keys: &mut Keys<'_>, notes: &mut Vec<String>) -> Result<(), FormatError> {
    let gemma = config.arch == Arch::Gemma2;
    let mut windows: Vec<usize> = config.sliding_window.iter().flatten().copied().collect();
    windows.sort_unstable();
    windows.dedup();
    if windows.len() > 1 {
        let want = "one size, in the layers that have a window: GGUF has one key for it";
        return Err(FormatError::Config {
            field: "sliding window".into(),
            got: format!("{windows:?}"),
            want: want.into(),
        });
    }
    if let Some(&window) = windows.first() {
        keys.count("attention.sliding_window", window)?;
    }
    let slides: Vec<bool> = config.sliding_window.iter().map(Option::is_some).collect();
    let by_default = |i: usize| if gemma { i.is_multiple_of(2) } else { !windows.is_empty() };
    if !slides.iter().enumerate().all(|(i, &s)| s == by_default(i)) {
        keys.value("attention.sliding_window_pattern", Value::Array(Array::Bool(slides)))?;
    }
    if gemma {
        keys.float("attn_logit_softcapping", config.attn_softcap.unwrap_or(0.0))?;
        keys.float("final_logit_softcapping", config.logit_softcap.unwrap_or(0.0))?;
    }
    if config.attn_scale != 1.0 / (config.head_dim as f32).sqrt() {
        keys.float("attention.scale", config.attn_scale)?;
        notes.push(format!(
            "attention.scale is {}, not 1/sqrt of the head's width: other programs may not read that key",
            config.attn_scale
        ));
    }
    Ok(())
}

fn rope(config: &ModelConfig, keys: &mut Keys<'_>) -> Result<(), FormatError> {
    keys.float("rope.freq_base", config.rope.theta)?;
    keys.count("rope.dimension_count", config.rope.dim)?;
    let kind = |name: &str| Value::String(name.into());
    match &config.rope.scaling {
        // Llama 3's factors are a tensor.
        RopeScaling::None | RopeScaling::Llama3 { .. } => Ok(()),
        RopeScaling::Linear { factor } => {
            keys.value("rope.scaling.type", kind("linear"))?;
            keys.float("rope.scaling.factor", *factor)
        }
        RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor } => {
            keys.value("rope.scaling.type", kind("yarn"))?;
            keys.float("rope.scaling.factor", *factor)?;
            keys.count("rope.scaling.original_context_length", *original_context)?;
            keys.float("rope.scaling.yarn_beta_fast", *beta_fast)?;
            keys.float("rope.scaling.yarn_beta_slow", *beta_slow)?;
            let default = yarn_attention_factor(*factor);
            if *attention_factor != default {
                keys.float("rope.scaling.attn_factor", attention_factor / default)?;
            }
            Ok(())
        }
        RopeScaling::Factors { short, long, original_context, attention_factor } => {
            if short != long {
                keys.value("rope.scaling.type", kind("longrope"))?;
            }
            keys.count("rope.scaling.original_context_length", *original_context)?;
            if *attention_factor != 1.0 {
                keys.float("rope.scaling.attn_factor", *attention_factor)?;
            }
            Ok(())
        }
    }
}

fn generation(g: &GenerationDefaults, w: &mut Writer) -> Result<(), FormatError> {
    let floats =
        [("temp", g.temperature), ("top_p", g.top_p), ("min_p", g.min_p), ("penalty_repeat", g.repetition_penalty)];
    for (name, value) in floats {
        if let Some(v) = value {
            w.set(&format!("general.sampling.{name}"), Value::F32(v))?;
        }
    }
    if let Some(k) = g.top_k {
        w.set("general.sampling.top_k", Value::I32(i32::try_from(k).unwrap_or(i32::MAX)))?;
    }
    if let Some(sample) = g.do_sample {
        w.set("pelton.do_sample", Value::Bool(sample))?;
    }
    w.set(PELTON_EOS_KEY, Value::Array(Array::U32(g.eos.clone())))
}

/// Special ids. Those of the tokenizer win over those of the configuration for `eos`, which GGUF has one of.
fn ids(files: &ModelFiles, bos: Option<u32>, eos: Option<u32>, w: &mut Writer) -> Result<(), FormatError> {
    let g = &files.generation;
    let all = [("bos", g.bos.or(bos)), ("eos", eos.or(g.eos.first().copied())), ("padding", g.pad)];
    for (name, id) in all {
        let in_vocabulary = |&id: &u32| (id as usize) < files.config.vocab_size;
        if let Some(id) = id.filter(in_vocabulary) {
            w.set(&format!("tokenizer.ggml.{name}_token_id"), Value::U32(id))?;
        }
    }
    Ok(())
}

fn chat_templates(templates: &serde_json::Value, w: &mut Writer, notes: &mut Vec<String>) -> Result<(), FormatError> {
    const DEFAULT: &str = "tokenizer.chat_template";
    if let Some(template) = templates.as_str() {
        return w.set(DEFAULT, Value::String(template.into()));
    }
    let mut names = Vec::new();
    for entry in templates.as_array().map_or(&[][..], Vec::as_slice) {
        match (entry["name"].as_str(), entry["template"].as_str()) {
            (Some("default"), Some(t)) => w.set(DEFAULT, Value::String(t.into()))?,
            (Some(name), Some(t)) => {
                w.set(&format!("{DEFAULT}.{name}"), Value::String(t.into()))?;
                names.push(name.to_owned());
            }
            _ => notes.push("a chat template without a name or text was left out".into()),
        }
    }
    if names.is_empty() {
        return Ok(());
    }
    w.set("tokenizer.chat_templates", Value::Array(Array::String(names)))
}

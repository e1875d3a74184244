//! Models of a few kilobytes, one an architecture, made in memory for tests and for the fuzzers' first inputs.
//!
//! Invariant: each opens without error, and two calls give the same bytes.

use pelton_formats::hf::HfParts;
use serde_json::{Map, Value, json};

pub(crate) const ARCHS: [&str; 7] = ["llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "phi3", "gemma2"];

const HIDDEN: usize = 32;
const HEAD: usize = 16;
const FFN: usize = 64;
const EXPERT: usize = 32;
const N_EXPERTS: usize = 3;
const VOCAB: usize = 16;
pub(crate) const LAYERS: usize = 2;

/// `config.json` of a tiny model.
pub(crate) fn config(arch: &str) -> Map<String, Value> {
    let mut c = json!({
        "model_type": arch, "hidden_size": HIDDEN, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": HEAD, "intermediate_size": FFN, "num_hidden_layers": LAYERS, "vocab_size": VOCAB,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": arch == "gemma2", "bos_token_id": 1, "eos_token_id": [2, 3], "sliding_window": null,
    });
    let extra = match arch {
        "llama" => json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16}}),
        "mistral" => json!({"sliding_window": 8}),
        "qwen2" => json!({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 1}),
        "qwen3" => json!({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}),
        "qwen3_moe" => json!({"num_experts": N_EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": EXPERT,
            "norm_topk_prob": true, "mlp_only_layers": [1]}),
        "phi3" => json!({"original_max_position_embeddings": 32, "rope_scaling": {"type": "longrope",
            "short_factor": (vec![1.0; HEAD / 2]), "long_factor": (vec![2.0; HEAD / 2])}}),
        "gemma2" => json!({"sliding_window": 8, "query_pre_attn_scalar": HEAD, "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0, "hidden_activation": "gelu_pytorch_tanh"}),
        _ => json!({}),
    };
    let mut map = std::mem::take(c.as_object_mut().unwrap());
    map.extend(extra.as_object().unwrap().clone());
    map
}

/// The tensors of a tiny model: Hugging Face names and shapes.
pub(crate) fn tensors(arch: &str) -> Vec<(String, Vec<usize>)> {
    let (q, kv) = (2 * HEAD, HEAD);
    let mut out = vec![("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN])];
    if arch != "gemma2" {
        out.push(("lm_head.weight".into(), vec![VOCAB, HIDDEN]));
    }
    out.push(("model.norm.weight".into(), vec![HIDDEN]));
    for n in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize]| out.push((format!("model.layers.{n}.{name}"), shape.to_vec()));
        add("input_layernorm.weight", &[HIDDEN]);
        add("post_attention_layernorm.weight", &[HIDDEN]);
        add("self_attn.o_proj.weight", &[HIDDEN, q]);
        if arch == "phi3" {
            add("self_attn.qkv_proj.weight", &[q + 2 * kv, HIDDEN]);
            add("mlp.gate_up_proj.weight", &[2 * FFN, HIDDEN]);
        } else {
            for (name, rows) in [("q", q), ("k", kv), ("v", kv)] {
                add(&format!("self_attn.{name}_proj.weight"), &[rows, HIDDEN]);
                if arch == "qwen2" {
                    add(&format!("self_attn.{name}_proj.bias"), &[rows]);
                }
            }
        }
        if arch.starts_with("qwen3") {
            add("self_attn.q_norm.weight", &[HEAD]);
            add("self_attn.k_norm.weight", &[HEAD]);
        }
        if arch == "gemma2" {
            add("pre_feedforward_layernorm.weight", &[HIDDEN]);
            add("post_feedforward_layernorm.weight", &[HIDDEN]);
        }
        if arch == "qwen3_moe" && n == 0 {
            add("mlp.gate.weight", &[N_EXPERTS, HIDDEN]);
            add("mlp.experts.gate_up_proj", &[N_EXPERTS, 2 * EXPERT, HIDDEN]);
            add("mlp.experts.down_proj", &[N_EXPERTS, HIDDEN, EXPERT]);
            continue;
        }
        if arch != "phi3" {
            add("mlp.gate_proj.weight", &[FFN, HIDDEN]);
            add("mlp.up_proj.weight", &[FFN, HIDDEN]);
        }
        add("mlp.down_proj.weight", &[HIDDEN, FFN]);
    }
    out
}

/// A safetensors file of BF16 tensors with small values that differ from each other.
pub(crate) fn safetensors(tensors: &[(String, Vec<usize>)]) -> Vec<u8> {
    let mut header = Map::new();
    let mut data = Vec::new();
    let mut state = 0x2545_f491u32;
    for (name, shape) in tensors {
        let start = data.len();
        for _ in 0..shape.iter().product::<usize>() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // The top half of an f32 between -1 and 1.
            let value = (f64::from(state >> 8) / f64::from(1 << 23) - 1.0) as f32;
            data.extend_from_slice(&value.to_le_bytes()[2..]);
        }
        header.insert(name.clone(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let header = serde_json::to_vec(&header).unwrap();
    [&(header.len() as u64).to_le_bytes(), header.as_slice(), &data].concat()
}

/// A whole tiny model.
pub(crate) fn parts(arch: &str) -> HfParts {
    HfParts {
        name: format!("tiny-{arch}"),
        config_json: serde_json::to_vec(&config(arch)).unwrap(),
        weights: vec![("model.safetensors".into(), safetensors(&tensors(arch)).into())],
        ..HfParts::default()
    }
}

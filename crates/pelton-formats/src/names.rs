//! From the names that files use to the canonical ones.
//!
//! Invariant: a name that is not in these tables is never taken for something else; the reader refuses it, because
//! a tensor that a model has and Pelton ignores would make its answers silently wrong.

use crate::Arch;

/// What a tensor of a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The tensor of this canonical name.
    Plain(String),
    /// Rows of Q, then K, then V. The suffix is `weight` or `bias`.
    Qkv { layer: usize, suffix: &'static str },
    /// Rows of the gate, then of the up projection.
    GateUp { layer: usize },
    /// `[n_experts, out, in]`; `part` is `gate`, `up` or `down`.
    Experts { layer: usize, part: &'static str },
    /// `[n_experts, 2 * expert_ffn, hidden]`: each expert's gate rows, then its up rows.
    ExpertsGateUp { layer: usize },
    /// Nothing that the model needs: derived tables, or layers past the last.
    Unused,
}

/// A layer's weights in GGUF, without `blk.N.`.
const LAYER_WEIGHTS: [&str; 14] = [
    "attn_norm",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "attn_q_norm",
    "attn_k_norm",
    "ffn_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "post_attention_norm",
    "post_ffw_norm",
    "ffn_gate_inp",
];

const LAYER_BIASES: [&str; 7] = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];

/// The role of a tensor of a GGUF file, `None` for a name that no supported architecture has.
pub(crate) fn gguf_role(arch: Arch, n_layers: usize, name: &str) -> Option<Role> {
    match name {
        "token_embd.weight" | "output.weight" | "output_norm.weight" => return Some(Role::Plain(name.into())),
        "rope_freqs.weight" | "rope_factors_long.weight" | "rope_factors_short.weight" => return Some(Role::Unused),
        _ => {}
    }
    let (layer, rest) = layer_of(name.strip_prefix("blk.")?)?;
    if layer >= n_layers {
        return Some(Role::Unused);
    }
    let (what, suffix) = split_suffix(rest)?;
    match (what, suffix) {
        ("attn_rot_embd", _) => Some(Role::Unused),
        ("attn_qkv", suffix) => Some(Role::Qkv { layer, suffix }),
        ("ffn_up", "weight") if arch == Arch::Phi3 => Some(Role::GateUp { layer }),
        ("ffn_gate_exps", "weight") => Some(Role::Experts { layer, part: "gate" }),
        ("ffn_up_exps", "weight") => Some(Role::Experts { layer, part: "up" }),
        ("ffn_down_exps", "weight") => Some(Role::Experts { layer, part: "down" }),
        (w, "weight") if LAYER_WEIGHTS.contains(&w) => Some(Role::Plain(name.into())),
        (w, "bias") if LAYER_BIASES.contains(&w) => Some(Role::Plain(name.into())),
        (w, "weight") => {
            let (part, expert) = w.split_once('.')?;
            let part = ["ffn_gate", "ffn_up", "ffn_down"].into_iter().find(|&p| p == part)?;
            Some(Role::Plain(format!("blk.{layer}.{part}.{}.weight", index(expert)?)))
        }
        _ => None,
    }
}

/// The role of a tensor of a Hugging Face folder, `None` for a name that no supported architecture has.
pub(crate) fn hf_role(arch: Arch, n_layers: usize, name: &str) -> Option<Role> {
    let name = name.strip_prefix("model.").unwrap_or(name);
    match name {
        "embed_tokens.weight" => return Some(Role::Plain("token_embd.weight".into())),
        "norm.weight" => return Some(Role::Plain("output_norm.weight".into())),
        "lm_head.weight" => return Some(Role::Plain("output.weight".into())),
        "rotary_emb.inv_freq" => return Some(Role::Unused),
        _ => {}
    }
    let (layer, rest) = layer_of(name.strip_prefix("layers.")?)?;
    if layer >= n_layers || rest == "self_attn.rotary_emb.inv_freq" {
        return Some(Role::Unused);
    }
    match rest {
        "mlp.experts.gate_up_proj" => return Some(Role::ExpertsGateUp { layer }),
        "mlp.experts.down_proj" => return Some(Role::Experts { layer, part: "down" }),
        _ => {}
    }
    let (what, suffix) = split_suffix(rest)?;
    let canonical = match what {
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "self_attn.qkv_proj" => return Some(Role::Qkv { layer, suffix }),
        "mlp.gate_up_proj" if suffix == "weight" => return Some(Role::GateUp { layer }),
        _ if suffix == "bias" => return None,
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "input_layernorm" => "attn_norm",
        "mlp.gate" => "ffn_gate_inp",
        // The same name means the norm before the feed-forward block everywhere but in Gemma 2.
        "post_attention_layernorm" if arch == Arch::Gemma2 => "post_attention_norm",
        "post_attention_layernorm" => "ffn_norm",
        "pre_feedforward_layernorm" => "ffn_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
        expert => {
            let (e, proj) = expert.strip_prefix("mlp.experts.")?.split_once('.')?;
            let part = match proj {
                "gate_proj" => "gate",
                "up_proj" => "up",
                "down_proj" => "down",
                _ => return None,
            };
            return Some(Role::Plain(format!("blk.{layer}.ffn_{part}.{}.weight", index(e)?)));
        }
    };
    Some(Role::Plain(format!("blk.{layer}.{canonical}.{suffix}")))
}

/// `attn_q.weight` → `("attn_q", "weight")`.
fn split_suffix(rest: &str) -> Option<(&str, &'static str)> {
    if let Some(what) = rest.strip_suffix(".weight") {
        return Some((what, "weight"));
    }
    rest.strip_suffix(".bias").map(|what| (what, "bias"))
}

/// `12.attn_q.weight` → `(12, "attn_q.weight")`.
fn layer_of(name: &str) -> Option<(usize, &str)> {
    let (layer, rest) = name.split_once('.')?;
    Some((index(layer)?, rest))
}

/// A decimal index without sign or leading zeros, so that no two names mean the same tensor.
fn index(digits: &str) -> Option<usize> {
    let n: usize = digits.parse().ok()?;
    (n.to_string() == digits).then_some(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(name: &str) -> Option<Role> {
        Some(Role::Plain(name.into()))
    }

    #[test]
    fn the_norm_after_attention_means_two_things() {
        let hf = "model.layers.1.post_attention_layernorm.weight";
        assert_eq!(hf_role(Arch::Qwen2, 2, hf), plain("blk.1.ffn_norm.weight"));
        assert_eq!(hf_role(Arch::Gemma2, 2, hf), plain("blk.1.post_attention_norm.weight"));
    }

    #[test]
    fn experts_and_fused_tensors_are_recognised() {
        let hf = |name| hf_role(Arch::Qwen3Moe, 4, name);
        assert_eq!(hf("model.layers.3.mlp.experts.17.up_proj.weight"), plain("blk.3.ffn_up.17.weight"));
        assert_eq!(hf("model.layers.3.mlp.experts.gate_up_proj"), Some(Role::ExpertsGateUp { layer: 3 }));
        assert_eq!(hf("model.layers.3.mlp.gate.weight"), plain("blk.3.ffn_gate_inp.weight"));
        let gguf = |arch, name| gguf_role(arch, 4, name);
        assert_eq!(gguf(Arch::Phi3, "blk.0.ffn_up.weight"), Some(Role::GateUp { layer: 0 }));
        assert_eq!(gguf(Arch::Llama, "blk.0.ffn_up.weight"), plain("blk.0.ffn_up.weight"));
        let experts = Some(Role::Experts { layer: 2, part: "down" });
        assert_eq!(gguf(Arch::Qwen3Moe, "blk.2.ffn_down_exps.weight"), experts);
        assert_eq!(gguf(Arch::Qwen3Moe, "blk.2.ffn_down.9.weight"), plain("blk.2.ffn_down.9.weight"));
    }

    #[test]
    fn unknown_and_ambiguous_names_are_no_role() {
        for name in [
            "blk.0.attn_sinks.weight",
            "blk.00.attn_q.weight",
            "blk.+1.attn_q.weight",
            "blk.0.attn_norm.bias",
            "blk.0.ffn_gate.x.weight",
            "blk.0",
            "",
        ] {
            assert_eq!(gguf_role(Arch::Llama, 2, name), None, "{name}");
        }
        for name in ["model.layers.0.self_attn.q_proj.qweight", "model.layers.0.input_layernorm.bias", "score.weight"] {
            assert_eq!(hf_role(Arch::Llama, 2, name), None, "{name}");
        }
        assert_eq!(gguf_role(Arch::Llama, 2, "blk.2.attn_sinks.weight"), Some(Role::Unused));
    }
}

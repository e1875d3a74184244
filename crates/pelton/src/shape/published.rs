//! Shapes of published models, to measure before downloading.
//!
//! Source: the `config.json` of each model's repository on the hub. Invariant: a row gives exactly the published
//! number of parameters, which the test of this file holds.

use serde_json::{Value, json};

/// The fields of a `config.json` that differ between dense models.
struct Dense {
    name: &'static str,
    /// `model_type`.
    arch: &'static str,
    hidden: usize,
    layers: usize,
    /// Query heads, key/value heads.
    heads: (usize, usize),
    head_dim: usize,
    ffn: usize,
    vocab: usize,
    tied: bool,
    context: usize,
    theta: f64,
}

/// `name, architecture: hidden × layers, heads / key-value heads × width, feed-forward, vocabulary (tied), context, θ`.
macro_rules! shapes {
    ($($name:literal $arch:literal $hidden:literal x $layers:literal, $q:literal/$kv:literal x $head:literal,
       $ffn:literal, $vocab:literal $tied:literal, $context:literal $theta:literal;)*) => {
        &[$(Dense { name: $name, arch: $arch, hidden: $hidden, layers: $layers, heads: ($q, $kv), head_dim: $head,
            ffn: $ffn, vocab: $vocab, tied: $tied, context: $context, theta: $theta },)*]
    };
}

const DENSE: &[Dense] = shapes! {
    "qwen2.5-0.5b" "qwen2" 896 x 24, 14/2 x 64, 4864, 151936 true, 32768 1e6;
    "qwen2.5-1.5b" "qwen2" 1536 x 28, 12/2 x 128, 8960, 151936 true, 32768 1e6;
    "qwen2.5-3b" "qwen2" 2048 x 36, 16/2 x 128, 11008, 151936 true, 32768 1e6;
    "qwen2.5-7b" "qwen2" 3584 x 28, 28/4 x 128, 18944, 152064 false, 32768 1e6;
    "qwen2.5-14b" "qwen2" 5120 x 48, 40/8 x 128, 13824, 152064 false, 32768 1e6;
    "qwen2.5-32b" "qwen2" 5120 x 64, 40/8 x 128, 27648, 152064 false, 32768 1e6;
    "qwen2.5-72b" "qwen2" 8192 x 80, 64/8 x 128, 29568, 152064 false, 32768 1e6;
    "qwen3-0.6b" "qwen3" 1024 x 28, 16/8 x 128, 3072, 151936 true, 40960 1e6;
    "qwen3-1.7b" "qwen3" 2048 x 28, 16/8 x 128, 6144, 151936 true, 40960 1e6;
    "qwen3-4b" "qwen3" 2560 x 36, 32/8 x 128, 9728, 151936 true, 40960 1e6;
    "qwen3-8b" "qwen3" 4096 x 36, 32/8 x 128, 12288, 151936 false, 40960 1e6;
    "qwen3-14b" "qwen3" 5120 x 40, 40/8 x 128, 17408, 151936 false, 40960 1e6;
    "qwen3-32b" "qwen3" 5120 x 64, 64/8 x 128, 25600, 151936 false, 40960 1e6;
    "llama-2-7b" "llama" 4096 x 32, 32/32 x 128, 11008, 32000 false, 4096 1e4;
    "llama-3.2-1b" "llama" 2048 x 16, 32/8 x 64, 8192, 128256 true, 131072 5e5;
    "llama-3.2-3b" "llama" 3072 x 28, 24/8 x 128, 8192, 128256 true, 131072 5e5;
    "llama-3.1-8b" "llama" 4096 x 32, 32/8 x 128, 14336, 128256 false, 131072 5e5;
    "llama-3.1-70b" "llama" 8192 x 80, 64/8 x 128, 28672, 128256 false, 131072 5e5;
    "tinyllama-1.1b" "llama" 2048 x 22, 32/4 x 64, 5632, 32000 false, 2048 1e4;
    "smollm2-135m" "llama" 576 x 30, 9/3 x 64, 1536, 49152 true, 8192 1e5;
    "smollm2-1.7b" "llama" 2048 x 24, 32/32 x 64, 8192, 49152 true, 8192 130000.0;
    "mistral-7b" "mistral" 4096 x 32, 32/8 x 128, 14336, 32768 false, 32768 1e6;
    "phi-3-mini" "phi3" 3072 x 32, 32/32 x 96, 8192, 32064 false, 4096 1e4;
    "gemma-2-2b" "gemma2" 2304 x 26, 8/4 x 256, 9216, 256000 true, 8192 1e4;
    "gemma-2-9b" "gemma2" 3584 x 42, 16/8 x 256, 14336, 256000 true, 8192 1e4;
};

/// The one mixture of experts: its name, and the fields that it has beyond those of a dense model.
const QWEN3_30B_A3B: &str = "qwen3-30b-a3b";

/// The names of all shapes.
pub(super) fn names() -> Vec<&'static str> {
    DENSE.iter().map(|d| d.name).chain([QWEN3_30B_A3B]).collect()
}

/// The `config.json` of a published model, as far as its shape goes.
pub(super) fn config_json(name: &str) -> Option<Value> {
    if name == QWEN3_30B_A3B {
        return Some(json!({
            "model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32,
            "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 6144, "vocab_size": 151_936,
            "tie_word_embeddings": false, "max_position_embeddings": 40_960, "rope_theta": 1e6,
            "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": true,
        }));
    }
    let d = DENSE.iter().find(|d| d.name == name)?;
    Some(json!({
        "model_type": d.arch, "hidden_size": d.hidden, "num_hidden_layers": d.layers,
        "num_attention_heads": d.heads.0, "num_key_value_heads": d.heads.1, "head_dim": d.head_dim,
        "intermediate_size": d.ffn, "vocab_size": d.vocab, "tie_word_embeddings": d.tied,
        "max_position_embeddings": d.context, "rope_theta": d.theta, "sliding_window": window(d.arch),
    }))
}

/// Gemma 2 alone slides, in every other layer; the others are given none rather than a class's default.
fn window(arch: &str) -> Option<usize> {
    (arch == "gemma2").then_some(4096)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Shape;

    #[test]
    fn parameters_are_the_published_ones() {
        let published: [(&str, usize); 26] = [
            ("qwen2.5-0.5b", 494_032_768),
            ("qwen2.5-1.5b", 1_543_714_304),
            ("qwen2.5-3b", 3_085_938_688),
            ("qwen2.5-7b", 7_615_616_512),
            ("qwen2.5-14b", 14_770_033_664),
            ("qwen2.5-32b", 32_763_876_352),
            ("qwen2.5-72b", 72_706_203_648),
            ("qwen3-0.6b", 596_049_920),
            ("qwen3-1.7b", 1_720_574_976),
            ("qwen3-4b", 4_022_468_096),
            ("qwen3-8b", 8_190_735_360),
            ("qwen3-14b", 14_768_307_200),
            ("qwen3-32b", 32_762_123_264),
            ("qwen3-30b-a3b", 30_532_122_624),
            ("llama-2-7b", 6_738_415_616),
            ("llama-3.2-1b", 1_235_814_400),
            ("llama-3.2-3b", 3_212_749_824),
            ("llama-3.1-8b", 8_030_261_248),
            ("llama-3.1-70b", 70_553_706_496),
            ("tinyllama-1.1b", 1_100_048_384),
            ("smollm2-135m", 134_515_008),
            ("smollm2-1.7b", 1_711_376_384),
            ("mistral-7b", 7_248_023_552),
            ("phi-3-mini", 3_821_079_552),
            ("gemma-2-2b", 2_614_341_888),
            ("gemma-2-9b", 9_241_705_984),
        ];
        assert_eq!(published.map(|(name, _)| name).len(), names().len());
        for (name, parameters) in published {
            assert_eq!(Shape::parse(name).unwrap().parameters(), parameters, "{name}");
        }
    }
}

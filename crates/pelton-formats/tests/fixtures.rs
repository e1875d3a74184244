//! The ten tiny models in `tests/fixtures`: their configurations, their tensors, and their way through GGUF.

use std::path::{Path, PathBuf};

use pelton_formats::{
    Activation, Arch, ModelConfig, ModelFiles, RopeScaling, SourceKind, TokenizerFiles, open, write_gguf,
    write_gguf_sharded,
};
use pelton_quant::DType;
use safetensors::SafeTensors;

const FOLDERS: [&str; 10] = [
    "gemma2",
    "llama-mha",
    "llama3-rope",
    "mistral-window",
    "phi3",
    "qwen2-tied",
    "qwen2-untied",
    "qwen3",
    "qwen3-moe",
    "qwen3-yarn",
];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

fn config(name: &str) -> ModelConfig {
    open(&folder(name)).unwrap().config
}

fn bf16(_: &str, _: &[usize]) -> DType {
    DType::BF16
}

#[test]
fn shapes_are_those_of_the_files() {
    for (name, arch, hidden, heads, kv, head, tied) in [
        ("gemma2", Arch::Gemma2, 128, 4, 2, 32, true),
        ("llama-mha", Arch::Llama, 128, 4, 4, 32, false),
        ("llama3-rope", Arch::Llama, 128, 4, 2, 32, false),
        ("mistral-window", Arch::Mistral, 128, 4, 2, 32, false),
        ("phi3", Arch::Phi3, 128, 4, 2, 32, false),
        ("qwen2-tied", Arch::Qwen2, 128, 4, 2, 32, true),
        ("qwen2-untied", Arch::Qwen2, 192, 6, 2, 32, false),
        ("qwen3", Arch::Qwen3, 128, 4, 2, 64, true),
        ("qwen3-moe", Arch::Qwen3Moe, 128, 4, 2, 32, false),
        ("qwen3-yarn", Arch::Qwen3, 128, 4, 2, 32, false),
    ] {
        let files = open(&folder(name)).unwrap();
        let c = &files.config;
        assert_eq!((c.arch, c.hidden, c.n_heads, c.n_kv_heads, c.head_dim), (arch, hidden, heads, kv, head), "{name}");
        assert_eq!((c.n_layers, c.ffn, c.vocab_size, c.rope.dim), (3, 352, 512, head), "{name}");
        assert_eq!(
            (c.tied_embeddings, c.tied_embeddings),
            (tied, files.tensors.get("output.weight").is_none()),
            "{name}"
        );
        assert_eq!(c.norm_eps, 1e-6, "{name}");
        assert_eq!(c.qk_norm, name.starts_with("qwen3"), "{name}");
        assert_eq!(c.attn_scale, 1.0 / (head as f32).sqrt(), "{name}");
        assert_eq!(files.generation.eos, [2], "{name}");
        assert_eq!((files.generation.bos, files.generation.pad), (Some(1), Some(0)), "{name}");
        assert!(matches!(files.tokenizer, TokenizerFiles::Missing), "{name}");
        assert_eq!(files.source.kind, SourceKind::Safetensors);
        assert!(files.source.unused.is_empty(), "{name}: {:?}", files.source.unused);
        for layer in 0..3 {
            let need = |what: &str, shape: &[usize]| {
                files.tensors.require(&format!("blk.{layer}.{what}"), shape).unwrap();
            };
            need("attn_q.weight", &[c.q_dim(), hidden]);
            need("attn_k.weight", &[c.kv_dim(), hidden]);
            need("attn_v.weight", &[c.kv_dim(), hidden]);
            need("attn_output.weight", &[hidden, c.q_dim()]);
            need("attn_norm.weight", &[hidden]);
            need("ffn_norm.weight", &[hidden]);
            if c.moe.is_none() {
                need("ffn_gate.weight", &[352, hidden]);
                need("ffn_up.weight", &[352, hidden]);
                need("ffn_down.weight", &[hidden, 352]);
            }
        }
    }
}

#[test]
fn what_is_special_about_each_is_read() {
    let gemma = config("gemma2");
    assert_eq!(gemma.sliding_window, [Some(64), None, Some(64)]);
    assert_eq!((gemma.attn_softcap, gemma.logit_softcap), (Some(50.0), Some(30.0)));
    assert_eq!((gemma.activation, gemma.post_norms, gemma.norm_weight_offset), (Activation::GeluTanh, true, 1.0));
    assert_eq!(gemma.embed_scale, 128f32.sqrt());
    assert_eq!(config("mistral-window").sliding_window, [Some(48); 3]);
    assert_eq!(config("qwen2-tied").sliding_window, [None; 3]);
    assert_eq!(config("qwen2-tied").rope.theta, 1e6);
    let llama3 =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 128 };
    assert_eq!(config("llama3-rope").rope.scaling, llama3);
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        original_context: 256,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: 0.1 * 4f32.ln() + 1.0,
    };
    assert_eq!(config("qwen3-yarn").rope.scaling, yarn);
    assert_eq!(config("phi3").rope.scaling, RopeScaling::None);
    let moe = config("qwen3-moe").moe.unwrap();
    assert_eq!((moe.n_experts, moe.n_experts_used, moe.expert_ffn, moe.norm_topk), (8, 2, 96, true));
    assert_eq!(moe.moe_layers, [true; 3]);
}

/// The oracle is the `safetensors` crate.
#[test]
fn tensors_hold_the_bytes_of_the_file() {
    let check = |name: &str, canonical: &str, hf: &str, rows: std::ops::Range<usize>| {
        let raw = std::fs::read(folder(name).join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&raw).unwrap();
        let view = file.tensor(hf).unwrap();
        let row_bytes = view.data().len() / view.shape()[0];
        let want = &view.data()[rows.start * row_bytes..rows.end * row_bytes];
        let files = open(&folder(name)).unwrap();
        assert!(files.tensors.get(canonical).unwrap().data() == want, "{name}: {canonical}");
    };
    check("qwen2-tied", "blk.2.attn_k.bias", "model.layers.2.self_attn.k_proj.bias", 0..64);
    check("qwen2-tied", "token_embd.weight", "model.embed_tokens.weight", 0..512);
    check("llama-mha", "output.weight", "lm_head.weight", 0..512);
    check("llama-mha", "blk.1.ffn_norm.weight", "model.layers.1.post_attention_layernorm.weight", 0..128);
    check("gemma2", "blk.1.post_attention_norm.weight", "model.layers.1.post_attention_layernorm.weight", 0..128);
    check("gemma2", "blk.1.post_ffw_norm.weight", "model.layers.1.post_feedforward_layernorm.weight", 0..128);
    check("qwen3-moe", "blk.0.ffn_down.7.weight", "model.layers.0.mlp.experts.7.down_proj.weight", 0..128);
    check("phi3", "blk.0.attn_k.weight", "model.layers.0.self_attn.qkv_proj.weight", 128..192);
    check("phi3", "blk.0.attn_v.weight", "model.layers.0.self_attn.qkv_proj.weight", 192..256);
    check("phi3", "blk.0.ffn_up.weight", "model.layers.0.mlp.gate_up_proj.weight", 352..704);
}

/// What GGUF cannot say the same way.
fn as_gguf_says_it(config: &ModelConfig) -> ModelConfig {
    let mut c = config.clone();
    c.norm_weight_offset = 0.0;
    if c.arch == Arch::Mistral {
        c.arch = Arch::Llama;
    }
    c
}

fn assert_same_model(name: &str, from: &ModelFiles, to: &ModelFiles) {
    let (mut want, mut got) = (as_gguf_says_it(&from.config), to.config.clone());
    if let (RopeScaling::Llama3 { factor, .. }, RopeScaling::Factors { short, long, .. }) =
        (&want.rope.scaling, &got.rope.scaling)
    {
        assert!(short == long && short.len() == want.rope.dim / 2);
        assert_eq!((short[0], short[short.len() - 1]), (1.0, *factor));
        want.rope.scaling = RopeScaling::None;
        got.rope.scaling = RopeScaling::None;
    }
    assert_eq!(got, want, "{name}");
    assert_eq!(to.generation, from.generation, "{name}");
    assert_eq!(to.tensors.len(), from.tensors.len(), "{name}");
    for tensor in from.tensors.iter() {
        let offset = if tensor.name.ends_with("norm.weight") { from.config.norm_weight_offset } else { 0.0 };
        let want: Vec<f32> = tensor.to_f32().unwrap().iter().map(|v| v + offset).collect();
        let got = to.tensors.require(&tensor.name, &tensor.shape).unwrap().to_f32().unwrap();
        assert!(got == want, "{name}: {}", tensor.name);
    }
}

#[test]
fn gguf_conversion_keeps_configuration_and_values() {
    let dir = tempfile::tempdir().unwrap();
    for name in FOLDERS {
        let files = open(&folder(name)).unwrap();
        let path = dir.path().join(format!("{name}.gguf"));
        let report = write_gguf(&files, &path, bf16).unwrap();
        assert_eq!(report.bytes, std::fs::metadata(&path).unwrap().len());
        let notes = report.notes.len();
        assert_eq!(notes, usize::from(name == "mistral-window"), "{name}: {:?}", report.notes);
        let again = open(&path).unwrap();
        assert_eq!(again.source.kind, SourceKind::Gguf { version: 3 });
        assert_same_model(name, &files, &again);
        // From GGUF to GGUF nothing changes at all: permuted, fused and stacked tensors go there and back.
        let second = dir.path().join("second.gguf");
        write_gguf(&again, &second, bf16).unwrap();
        let (first, second) = (open(&path).unwrap(), open(&second).unwrap());
        assert_eq!(first.config, second.config);
        assert!(first.tensors.iter().zip(second.tensors.iter()).all(|(a, b)| a.name == b.name && a.data() == b.data()));
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.iter().all(|n| n.to_string_lossy().ends_with(".gguf")), "{left:?}");
    }
}

#[test]
fn quantized_conversion_says_where_it_falls_back() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(&folder("qwen2-tied")).unwrap();
    let path = dir.path().join("q6.gguf");
    // Rows of 128 are no multiple of a K-quant's 256.
    let report = write_gguf(&files, &path, |_, _| DType::Q6_K).unwrap();
    assert_eq!(report.notes.len(), 1 + 3 * 7);
    assert!(report.notes.iter().all(|n| n.contains("F16, not Q6_K")), "{:?}", report.notes);
    let path = dir.path().join("q8.gguf");
    let report = write_gguf(&files, &path, |_, _| DType::Q8_0).unwrap();
    assert!(report.notes.is_empty());
    let q8 = open(&path).unwrap();
    for tensor in files.tensors.iter() {
        let (want, got) = (tensor.to_f32().unwrap(), q8.tensors.get(&tensor.name).unwrap());
        assert_eq!(got.dtype, if tensor.shape.len() == 1 { DType::F32 } else { DType::Q8_0 }, "{}", tensor.name);
        let max = want.iter().fold(0f32, |m, v| m.max(v.abs()));
        let error = want.iter().zip(got.to_f32().unwrap()).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(error <= max / 240.0, "{}: {error} of {max}", tensor.name);
    }
    let error = write_gguf(&files, &path, |_, _| DType::Q8_K).unwrap_err().to_string();
    assert!(error.contains("Q8_K") && error.contains("Q8_0"), "{error}");
}

#[test]
fn a_sharded_gguf_opens_by_any_shard_and_by_its_folder() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(&folder("llama3-rope")).unwrap();
    let report = write_gguf_sharded(&files, dir.path(), "model-bf16", 3, bf16).unwrap();
    let shard = |i| dir.path().join(format!("model-bf16-{i:05}-of-00003.gguf"));
    let len: u64 = (1..=3).map(|i| std::fs::metadata(shard(i)).unwrap().len()).sum();
    assert_eq!(report.bytes, len);
    for path in [shard(1), shard(3), dir.path().to_path_buf()] {
        let again = open(&path).unwrap();
        assert_eq!((again.source.files.len(), again.source.total_bytes), (3, len));
        assert_same_model("sharded", &files, &again);
    }
    let error = |path: &Path| open(path).unwrap_err().to_string();
    // A shard under another name is no model of its own.
    let alone = dir.path().join("alone.gguf");
    std::fs::copy(shard(1), &alone).unwrap();
    assert!(error(&alone).contains("split.count"), "{}", error(&alone));
    assert!(error(dir.path()).contains("name one of these files"), "{}", error(dir.path()));
    // A shard that calls itself another.
    std::fs::copy(shard(2), shard(3)).unwrap();
    assert!(error(&shard(1)).contains("split.no"), "{}", error(&shard(1)));
    std::fs::remove_file(shard(3)).unwrap();
    assert!(error(&shard(1)).contains("model-bf16-00003-of-00003.gguf is missing"), "{}", error(&shard(1)));
    assert!(write_gguf_sharded(&files, dir.path(), "x", 0, bf16).is_err());
    assert!(write_gguf_sharded(&files, dir.path(), "x", 1000, bf16).is_err());
}

#[test]
fn a_sharded_safetensors_folder_opens_and_its_faults_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let raw = std::fs::read(folder("qwen3-moe").join("model.safetensors")).unwrap();
    let whole = SafeTensors::deserialize(&raw).unwrap();
    let mut map = serde_json::Map::new();
    for (i, shard) in ["a.safetensors", "b.safetensors"].into_iter().enumerate() {
        let half: Vec<_> = whole.tensors().into_iter().filter(|(n, _)| (n.len() % 2 == 0) == (i == 0)).collect();
        map.extend(half.iter().map(|(n, _)| (n.clone(), shard.into())));
        safetensors::serialize_to_file(half, None, &dir.path().join(shard)).unwrap();
    }
    std::fs::copy(folder("qwen3-moe").join("config.json"), dir.path().join("config.json")).unwrap();
    let index = dir.path().join("model.safetensors.index.json");
    let write = |map: &serde_json::Map<String, serde_json::Value>| {
        std::fs::write(&index, serde_json::json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    };
    write(&map);
    let files = open(dir.path()).unwrap();
    let single = open(&folder("qwen3-moe")).unwrap();
    assert_eq!(files.source.files.len(), 2);
    for tensor in single.tensors.iter() {
        assert!(files.tensors.get(&tensor.name).unwrap().data() == tensor.data(), "{}", tensor.name);
    }
    let fault = |name: &str, shard: &str, want: &str| {
        let mut broken = map.clone();
        broken.insert(name.into(), shard.into());
        write(&broken);
        let error = open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    };
    fault("model.norm.weight", "../b.safetensors", "plain name");
    fault("model.norm.weight", "/etc/passwd", "plain name");
    fault("model.norm.weight", "c.safetensors", "c.safetensors is missing");
    fault("more.weight", "a.safetensors", "weight_map.more.weight");
    let other = if map["model.norm.weight"] == "a.safetensors" { "b.safetensors" } else { "a.safetensors" };
    fault("model.norm.weight", other, "weight_map.model.norm.weight");
}

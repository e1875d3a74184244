//! Files from strangers: cut short, bent, unsupported. Every one is an error that says what is wrong.

use pelton_formats::hf::{HfParts, SafetensorsFile, open_parts};
use pelton_formats::{FormatError, open, open_bytes, open_tokenizer_bytes, write_gguf};
use pelton_quant::DType;
use serde_json::{Value, json};

#[allow(dead_code, reason = "each test uses a part of it")]
mod tiny;

const PYTHON_GGUF: &[u8] = include_bytes!("golden/python.gguf");

/// A tiny model's GGUF file, in memory.
fn gguf(arch: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    write_gguf(&open_parts(tiny::parts(arch)).unwrap(), &path, |_, _| DType::Q8_0).unwrap();
    std::fs::read(path).unwrap()
}

/// Opens as everything that bytes can be opened as; only a panic fails.
fn survive(bytes: &[u8]) -> bool {
    let text = open_tokenizer_bytes(bytes.to_vec(), "hostile.gguf");
    let model = open_bytes(bytes.to_vec(), "hostile.gguf");
    if let Ok(files) = &model {
        files.tensors.iter().for_each(|t| drop(t.to_f32().unwrap()));
    }
    text.is_ok() && model.is_ok()
}

#[test]
fn every_architecture_opens_and_goes_through_gguf() {
    for arch in tiny::ARCHS {
        let from = open_parts(tiny::parts(arch)).unwrap();
        assert_eq!(from.config.n_layers, tiny::LAYERS);
        let to = open_bytes(gguf(arch), arch).unwrap();
        assert_eq!(from.config.sliding_window, to.config.sliding_window, "{arch}");
        assert_eq!(from.config.moe, to.config.moe, "{arch}");
        if arch == "llama" {
            // Llama 3's scaling comes back as factors per frequency.
            assert!(matches!(to.config.rope.scaling, pelton_formats::RopeScaling::Factors { .. }));
        } else {
            assert_eq!(from.config.rope, to.config.rope, "{arch}");
        }
        assert_eq!(from.generation, to.generation, "{arch}");
        let names = |f: &pelton_formats::ModelFiles| {
            let mut names: Vec<_> = f.tensors.iter().map(|t| (t.name.clone(), t.shape.clone())).collect();
            names.sort();
            names
        };
        assert_eq!(names(&from), names(&to), "{arch}");
    }
}

#[test]
fn a_gguf_cut_at_any_byte_is_an_error() {
    // Past the header every cut is the same case: the last tensor does not fit.
    let header = PYTHON_GGUF.windows(17).position(|w| w == b"blk.0.ffn_down.we").unwrap() + 64;
    for n in (0..header).chain([PYTHON_GGUF.len() - 33, PYTHON_GGUF.len() / 2]) {
        assert!(open_bytes(&PYTHON_GGUF[..n], "cut.gguf").is_err(), "{n}");
    }
    assert!(survive(PYTHON_GGUF));
}

#[test]
fn a_gguf_with_any_byte_of_its_header_changed_does_not_panic() {
    let header = PYTHON_GGUF.windows(17).position(|w| w == b"blk.0.ffn_down.we").unwrap() + 64;
    let mut bytes = PYTHON_GGUF.to_vec();
    for i in 0..header {
        let old = bytes[i];
        for new in [0xff, old ^ 0x80, old.wrapping_add(1)] {
            bytes[i] = new;
            survive(&bytes);
        }
        bytes[i] = old;
    }
}

#[test]
fn a_safetensors_cut_or_changed_at_any_byte_does_not_panic() {
    let list = tiny::tensors("qwen2");
    let bytes = tiny::safetensors(&list[..4]);
    let parse = |b: &[u8]| SafetensorsFile::parse(b.to_vec().into(), "hostile.safetensors");
    assert_eq!(parse(&bytes).unwrap().tensors.len(), 4);
    let header = 8 + usize::from(bytes[0]) + 256 * usize::from(bytes[1]);
    for n in (0..header + 4).chain([bytes.len() - 1]) {
        assert!(parse(&bytes[..n]).is_err(), "{n}");
    }
    let mut changed = bytes.clone();
    for i in 0..header {
        for new in [0xff, b'0', b'9', b'"', b'}'] {
            changed[i] = new;
            if let Ok(file) = parse(&changed) {
                file.tensors.iter().for_each(|t| drop(file.tensor(t).map(|t| t.to_f32().unwrap())));
            }
        }
        changed[i] = bytes[i];
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert!(parse(&longer).unwrap_err().to_string().contains("where the last tensor ends"));
}

/// Header bytes of a GGUF file, from parts.
struct Raw(Vec<u8>);

impl Raw {
    fn new(version: u32, n_tensors: u64, n_keys: u64) -> Raw {
        Raw([&b"GGUF"[..], &version.to_le_bytes(), &n_tensors.to_le_bytes(), &n_keys.to_le_bytes()].concat())
    }

    fn put(mut self, bytes: &[u8]) -> Raw {
        self.0.extend_from_slice(bytes);
        self
    }

    fn string(self, s: &[u8]) -> Raw {
        self.put(&(s.len() as u64).to_le_bytes()).put(s)
    }

    fn u32(self, n: u32) -> Raw {
        self.put(&n.to_le_bytes())
    }

    fn u64(self, n: u64) -> Raw {
        self.put(&n.to_le_bytes())
    }

    /// A tensor's description.
    fn tensor(self, name: &str, dims: &[u64], dtype: u32, offset: u64) -> Raw {
        let with_dims = self.string(name.as_bytes()).u32(u32::try_from(dims.len()).unwrap());
        dims.iter().fold(with_dims, |r, &d| r.u64(d)).u32(dtype).u64(offset)
    }

    fn error(self) -> String {
        let padded = self.put(&[0; 256]).0;
        open_bytes(padded, "hostile.gguf").unwrap_err().to_string()
    }
}

#[test]
fn hostile_gguf_headers_are_named() {
    let one = || Raw::new(3, 1, 0);
    for (raw, want) in [
        (Raw(b"GGML".to_vec()), "not a GGUF file"),
        (Raw::new(1, 0, 0), "convert the model again"),
        (Raw::new(0x0300_0000, 0, 0), "big-endian"),
        (Raw::new(4, 0, 0), "version"),
        (Raw::new(3, u64::MAX, 0), "tensor count"),
        (Raw::new(3, 0, u64::MAX), "key count"),
        (Raw::new(3, 0, 1).u64(u64::MAX), "key 0"),
        (Raw::new(3, 0, 1).string(b"\xff\xfe"), "invalid UTF-8"),
        (Raw::new(3, 0, 1).string(b"k").u32(13), "value type 13"),
        (Raw::new(3, 0, 1).string(b"k").u32(7).put(&[2]), "0 or 1"),
        (Raw::new(3, 0, 1).string(b"k").u32(9).u32(10).u64(1 << 61), "at most"),
        (Raw::new(3, 0, 1).string(b"k").u32(9).u32(8).u64(u64::MAX), "at most"),
        ((0..8).fold(Raw::new(3, 0, 1).string(b"k").u32(9), |r, _| r.u32(9).u64(1)), "nested deeper"),
        (Raw::new(3, 0, 2).string(b"k").u32(0).put(&[1]).string(b"k").u32(0).put(&[1]), "the key twice"),
        (Raw::new(3, 0, 1).string(b"general.alignment").u32(4).u32(24), "power of two"),
        (Raw::new(3, 0, 1).string(b"general.alignment").u32(4).u32(0), "power of two"),
        (one().tensor("t", &[], 0, 0), "0 dimensions"),
        (one().tensor("t", &[1; 5], 0, 0), "5 dimensions"),
        (one().tensor("t", &[0], 0, 0), "dimension of 0"),
        (one().tensor("t", &[1 << 40, 1 << 40], 0, 0), "fits in memory"),
        (one().tensor("t", &[u64::MAX], 0, 0), "multiple of 1"),
        (one().tensor("t", &[8], 0, u64::MAX - 31), "cut short"),
        (one().tensor("t", &[8], 0, 4), "alignment 32"),
        (one().tensor("t", &[1 << 20], 0, 0), "cut short"),
        (one().tensor("t", &[8], 99, 0), "number 99"),
        (one().tensor("t", &[31], 8, 0), "multiple of 32"),
        (Raw::new(3, 2, 0).tensor("t", &[8], 0, 0).tensor("t", &[8], 0, 32), "it twice"),
        (Raw::new(3, 2, 0).tensor("a", &[16], 0, 0).tensor("b", &[8], 0, 32), "do not overlap"),
        (one().tensor("t", &[8], 0, 0), "general.architecture"),
    ] {
        let error = raw.error();
        assert!(error.starts_with("hostile.gguf: ") && error.contains(want), "{want}: {error}");
    }
}

/// A GGUF file's bytes with one key's value or name overwritten by another of the same length.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|w| w == from).expect("the bytes to replace");
    let mut out = bytes.to_vec();
    out[at..at + to.len()].copy_from_slice(to);
    out
}

#[test]
fn what_gguf_files_say_and_pelton_does_not_support_is_refused_by_name() {
    let error = |bytes: Vec<u8>| open_bytes(bytes, "m.gguf").unwrap_err();
    let qwen = gguf("qwen2");
    let mamba = error(replaced(&qwen, b"\x05\0\0\0\0\0\0\0qwen2", b"\x05\0\0\0\0\0\0\0mamba"));
    let want = "m.gguf: architecture `mamba` is not supported; supported: llama, qwen2, qwen3, qwen3moe, phi3, gemma2";
    assert_eq!(mamba.to_string(), want);
    // The type follows the name, the dimension count and two dimensions.
    let name = b"blk.0.ffn_up.weight";
    let at = qwen.windows(name.len()).position(|w| w == name).unwrap() + name.len() + 4 + 16;
    let mut iq = qwen.clone();
    iq[at..at + 4].copy_from_slice(&20u32.to_le_bytes());
    assert!(open_bytes(iq.clone(), "m.gguf").is_ok(), "IQ4_NL decodes");
    iq[at..at + 4].copy_from_slice(&24u32.to_le_bytes());
    let iq = error(iq);
    assert!(matches!(&iq, FormatError::UnsupportedType { dtype, .. } if dtype == "I8"), "{iq}");
    let text = iq.to_string();
    assert!(text.contains("blk.0.ffn_up.weight") && text.contains("Q4_K") && text.contains("IQ4_XS"), "{text}");
    let unknown = error(replaced(&qwen, b"blk.0.ffn_up.weight", b"blk.0.ffn_xx.weight")).to_string();
    assert!(unknown.contains("blk.0.ffn_xx.weight") && unknown.contains("unknown tensor"), "{unknown}");
    let moe =
        error(replaced(&gguf("qwen3_moe"), b"expert_used_count\x04\0\0\0\x02", b"expert_used_count\x04\0\0\0\x09"));
    assert!(moe.to_string().contains("experts used"), "{moe}");
}

#[test]
fn damaged_norms_are_refused() {
    let mut parts = tiny::parts("qwen2");
    let list = tiny::tensors("qwen2");
    let mut bytes = tiny::safetensors(&list);
    let file = SafetensorsFile::parse(bytes.clone().into(), "w").unwrap();
    let before: usize =
        list.iter().take_while(|t| t.0 != "model.norm.weight").map(|t| t.1.iter().product::<usize>()).sum();
    let data: usize = file.tensors.iter().map(|t| t.shape.iter().product::<usize>() * 2).sum();
    let at = bytes.len() - data + before * 2 + 6;
    bytes[at..at + 2].copy_from_slice(&[0xc0, 0x7f]);
    parts.weights[0].1 = bytes.into();
    let error = open_parts(parts).unwrap_err().to_string();
    assert!(error.contains("output_norm.weight") && error.contains("element 3"), "{error}");
}

#[test]
fn faults_in_config_json_name_the_field() {
    let with = |arch: &str, change: Value| {
        let mut config = tiny::config(arch);
        for (key, value) in change.as_object().unwrap() {
            config.insert(key.clone(), value.clone());
        }
        open_parts(HfParts { config_json: serde_json::to_vec(&config).unwrap(), ..tiny::parts(arch) })
    };
    let yarn = |extra: Value| {
        let mut scaling = json!({"rope_type": "yarn", "factor": 2.0});
        scaling.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!({"rope_scaling": scaling})
    };
    for (arch, change, want) in [
        ("llama", json!({"model_type": "mamba"}), "`mamba` is not supported; supported: llama, mistral"),
        ("llama", json!({"model_type": null}), "model_type"),
        ("llama", json!({"num_hidden_layers": 4_000_000_000u64}), "number of layers"),
        ("llama", json!({"num_hidden_layers": 0}), "number of layers"),
        ("llama", json!({"hidden_size": -1}), "hidden_size"),
        ("llama", json!({"hidden_size": u64::MAX}), "hidden size"),
        ("llama", json!({"num_attention_heads": 0}), "number of heads"),
        ("llama", json!({"num_attention_heads": 3}), "attn"),
        ("llama", json!({"num_key_value_heads": 3}), "divisor"),
        ("llama", json!({"head_dim": 15}), "rotary dimension"),
        ("llama", json!({"hidden_act": "relu"}), "hidden_act"),
        ("llama", json!({"rope_theta": "big"}), "rope_theta"),
        ("llama", json!({"rope_theta": 0}), "rope theta"),
        ("llama", json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2}}), "rope_scaling.rope_type"),
        ("llama", json!({"rope_scaling": {"rope_type": "linear"}}), "rope_scaling.factor"),
        ("llama", yarn(json!({"truncate": false})), "rope_scaling.truncate"),
        ("llama", yarn(json!({"factor": -1.0})), "rope scaling"),
        ("llama", json!({"quantization_config": {"quant_method": "hqq"}}), "hqq"),
        ("llama", json!({"quantization_config": {"quant_method": "gptq"}}), "quantization_config.bits"),
        ("llama", json!({"quantization_config": {"quant_method": "gptq", "bits": 4}}), "do not belong together"),
        ("llama", json!({"tie_word_embeddings": "yes"}), "tie_word_embeddings"),
        ("llama", json!({"eos_token_id": "</s>"}), "eos_token_id"),
        ("phi3", json!({"rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [1.0]}}), "8 of them"),
        ("phi3", json!({"partial_rotary_factor": 2.0}), "partial_rotary_factor"),
        ("phi3", json!({"intermediate_size": 63}), "gate_up_proj"),
        ("qwen2", json!({"layer_types": ["full_attention"]}), "layer_types"),
        ("qwen2", json!({"layer_types": ["full_attention", "linear_attention"]}), "linear_attention"),
        ("qwen3", json!({"layer_types": ["full_attention", "sliding_attention"]}), "no sliding window"),
        ("qwen3_moe", json!({"num_experts": 4}), "4 experts"),
        ("qwen3_moe", json!({"num_experts_per_tok": 4}), "experts used"),
        ("qwen3_moe", json!({"mlp_only_layers": [2]}), "mlp_only_layers"),
        ("qwen3_moe", json!({"decoder_sparse_step": 0}), "decoder_sparse_step"),
        ("gemma2", json!({"query_pre_attn_scalar": -4}), "attention scale"),
        ("gemma2", json!({"attn_logit_softcapping": 0}), "soft cap"),
    ] {
        let result = with(arch, change.clone());
        let shapes =
            |f: &pelton_formats::ModelFiles| f.tensors.require("blk.0.attn_q.weight", &[f.config.q_dim(), 32]).err();
        let error = match result {
            Err(e) => e.to_string(),
            // The readers leave plain shapes to the model, which asks for them by name.
            Ok(files) => shapes(&files).unwrap_or_else(|| panic!("{change} opened")).to_string(),
        };
        assert!(error.contains(want), "{change}: {error}");
    }
}

#[test]
fn both_spellings_of_rope_and_the_defaults_agree() {
    let with = |arch: &str, change: Value, without: &[&str]| {
        let mut config = tiny::config(arch);
        without.iter().for_each(|k| drop(config.remove(*k)));
        config.extend(change.as_object().unwrap().clone());
        open_parts(HfParts { config_json: serde_json::to_vec(&config).unwrap(), ..tiny::parts(arch) }).unwrap().config
    };
    let new = json!({"rope_parameters": {"rope_theta": 10000.0, "rope_type": "yarn", "factor": 4.0,
        "original_max_position_embeddings": 16, "beta_fast": null}});
    let old = with("qwen3", json!({}), &[]);
    assert_eq!(with("qwen3", new, &["rope_theta", "rope_scaling"]), old);
    // transformers' DeepSeek rule, by its formula.
    let mscale = json!({"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 2.0, "mscale_all_dim": 0.5}});
    let pelton_formats::RopeScaling::Yarn { attention_factor, original_context, .. } =
        with("qwen3", mscale, &[]).rope.scaling
    else {
        panic!("YaRN")
    };
    let want = (0.2 * 4f32.ln() + 1.0) / (0.05 * 4f32.ln() + 1.0);
    assert!((attention_factor - want).abs() < 1e-6 && original_context == 64);
    assert_eq!(with("mistral", json!({}), &["sliding_window"]).sliding_window, [Some(4096); 2]);
    assert_eq!(with("mistral", json!({"sliding_window": null}), &[]).sliding_window, [None; 2]);
    assert_eq!(with("qwen2", json!({}), &[]).sliding_window, [None, Some(8)]);
    assert_eq!(with("qwen2", json!({"use_sliding_window": false}), &[]).sliding_window, [None; 2]);
    assert_eq!(with("gemma2", json!({}), &[]).sliding_window, [Some(8), None]);
    let phi = with("phi3", json!({}), &[]).rope.scaling;
    let pelton_formats::RopeScaling::Factors { long, original_context, attention_factor, .. } = phi else { panic!() };
    assert_eq!((long, original_context), (vec![2.0; 8], 32));
    assert!((attention_factor - (1.0 + 2f32.ln() / 32f32.ln()).sqrt()).abs() < 1e-6);
}

#[test]
fn folders_without_a_model_say_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let error = || open(dir.path()).unwrap_err().to_string();
    assert!(error().contains("model.safetensors"), "{}", error());
    std::fs::write(dir.path().join("pytorch_model.bin"), b"").unwrap();
    assert!(error().contains("convert the model"), "{}", error());
    std::fs::write(dir.path().join("model.safetensors"), b"").unwrap();
    assert!(error().contains("config.json is missing"), "{}", error());
    std::fs::write(dir.path().join("config.json"), b"[1]").unwrap();
    assert!(error().contains("a JSON object"), "{}", error());
    std::fs::write(dir.path().join("config.json"), serde_json::to_vec(&tiny::config("llama")).unwrap()).unwrap();
    assert!(error().contains("cut short"), "{}", error());
    assert!(open(&dir.path().join("none.gguf")).unwrap_err().to_string().contains("none.gguf: cannot open"));
    std::fs::write(dir.path().join("empty.gguf"), b"").unwrap();
    assert!(open(&dir.path().join("empty.gguf")).unwrap_err().to_string().contains("cut short"));
}

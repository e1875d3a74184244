//! GGUF files that others wrote: one by the PyPI package `gguf`, and llama.cpp's vocabulary files.

use std::path::Path;

use pelton_formats::gguf::{Array, GgufFile, Value};
use pelton_formats::{Arch, Bytes, RopeScaling, TokenizerFiles, open, open_bytes, open_tokenizer};
use pelton_quant::DType;

const GOLDEN: &[u8] = include_bytes!("golden/python.gguf");

/// Element (r, c) of the generator's matrices.
fn expected(rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols).map(|i| (i / cols) as f32 + (i % cols) as f32 / 64.0).collect()
}

#[test]
fn a_file_by_the_python_package_reads_right() {
    let files = open_bytes(GOLDEN, "python.gguf").unwrap();
    let c = &files.config;
    assert_eq!((c.arch, c.name.as_str()), (Arch::Llama, "golden"));
    assert_eq!((c.hidden, c.n_heads, c.n_kv_heads, c.head_dim, c.ffn), (32, 2, 1, 16, 64));
    assert_eq!((c.n_layers, c.vocab_size, c.max_context, c.tied_embeddings), (1, 8, 128, false));
    assert_eq!((c.rope.theta, c.rope.dim, c.norm_eps), (500_000.0, 16, 1e-5));
    let factors: Vec<f32> = (1..=8u8).map(f32::from).collect();
    let want =
        RopeScaling::Factors { short: factors.clone(), long: factors, original_context: 128, attention_factor: 1.0 };
    assert_eq!(c.rope.scaling, want);
    for (name, rows, cols) in [
        ("token_embd.weight", 8, 32),
        ("output.weight", 8, 32),
        ("blk.0.attn_q.weight", 32, 32),
        ("blk.0.attn_v.weight", 16, 32),
        ("blk.0.attn_output.weight", 32, 32),
        ("blk.0.ffn_gate.weight", 64, 32),
        ("blk.0.ffn_down.weight", 32, 64),
    ] {
        let tensor = files.tensors.require(name, &[rows, cols]).unwrap();
        assert!(tensor.to_f32().unwrap() == expected(rows, cols), "{name}");
    }
    let bias = files.tensors.require("blk.0.attn_q.bias", &[32]).unwrap();
    assert_eq!(bias.to_f32().unwrap(), (0..32u8).map(f32::from).collect::<Vec<_>>());
    // Quantized rows of K moved as whole rows.
    let k = files.tensors.require("blk.0.attn_k.weight", &[16, 32]).unwrap();
    assert_eq!(k.dtype, DType::Q8_0);
    let error = k.to_f32().unwrap().iter().zip(expected(16, 32)).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(error < 0.07, "{error}");
}

#[test]
fn its_text_and_every_value_type_read_right() {
    let files = open_bytes(GOLDEN, "python.gguf").unwrap();
    let TokenizerFiles::Gguf(t) = &files.tokenizer else { panic!("{:?}", files.tokenizer) };
    assert_eq!((t.model.as_str(), t.pre.as_deref(), t.tokens.len()), ("gpt2", Some("qwen2"), 8));
    assert_eq!((t.bos, t.eos, t.add_bos), (Some(1), Some(2), Some(true)));
    assert_eq!(t.merges.as_deref(), Some(&["t 0".to_owned(), "t 1".to_owned()][..]));
    // A control token that ends answers by its name counts beside the one that the file names.
    assert_eq!(files.generation.eos, [2, 7]);
    let templates = serde_json::json!([{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]);
    assert_eq!(files.chat_templates, Some(templates));
    let file = GgufFile::parse(Bytes::from(GOLDEN), "python.gguf").unwrap();
    for (key, want) in [
        ("test.u8", Value::U8(250)),
        ("test.i8", Value::I8(-5)),
        ("test.u16", Value::U16(65_535)),
        ("test.i16", Value::I16(-32_768)),
        ("test.u64", Value::U64(1 << 63)),
        ("test.i64", Value::I64(-(1 << 40))),
        ("test.f64", Value::F64(0.1)),
        ("test.bool", Value::Bool(false)),
        ("test.ints", Value::Array(Array::I32(vec![1, -2, 3]))),
        ("test.floats", Value::Array(Array::F32(vec![0.5, -0.5]))),
        ("test.nested", Value::Array(Array::Array(vec![Array::I32(vec![1, 2]), Array::I32(vec![3])]))),
    ] {
        assert_eq!(file.metadata.get(key), Some(&want), "{key}");
    }
}

#[test]
fn vocabulary_files_serve_as_tokenizers_only() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/vocab");
    if !dir.is_dir() {
        println!("skipped: ../shared/data/vocab is absent");
        return;
    }
    for (name, model, pre, n_tokens) in [
        ("gpt-2", "gpt2", Some("gpt-2"), 50_257),
        ("qwen2", "gpt2", Some("qwen2"), 151_936),
        ("llama-spm", "llama", Some("default"), 32_000),
    ] {
        let path = dir.join(format!("ggml-vocab-{name}.gguf"));
        let TokenizerFiles::Gguf(t) = open_tokenizer(&path).unwrap().tokenizer else { panic!("{name}") };
        assert_eq!((t.model.as_str(), t.pre.as_deref(), t.tokens.len()), (model, pre, n_tokens), "{name}");
        assert_eq!(t.merges.is_some(), model == "gpt2", "{name}");
        assert_eq!(t.scores.is_some(), model == "llama", "{name}");
        let error = open(&path).unwrap_err().to_string();
        assert!(error.contains("only as a tokenizer") || error.contains("not supported"), "{error}");
    }
}

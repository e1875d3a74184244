//! The GGUF writer, and what deals with text on the way to GGUF and back.

use pelton_formats::gguf::{Array, GgufFile, Value, Writer};
use pelton_formats::hf::{HfParts, open_parts};
use pelton_formats::{Bytes, Conversion, ModelFiles, TokenizerFiles, open, open_tokenizer, write_gguf};
use pelton_quant::DType;
use serde_json::{Value as Json, json};

#[allow(dead_code, reason = "each test uses a part of it")]
mod tiny;

fn byte_level(pre_tokenizer: Json) -> Json {
    json!({
        "pre_tokenizer": pre_tokenizer,
        "added_tokens": [
            {"id": 4, "content": "<|end|>", "special": true},
            {"id": 5, "content": "<tool>", "special": false},
        ],
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "Ġa": 3}, "merges": ["a b", ["Ġ", "a"]]},
    })
}

fn qwen2_pattern() -> Json {
    let regex = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false},
    ]})
}

/// A tiny model with this tokenizer, after a trip through GGUF.
fn through_gguf(tokenizer: &Json, config: &Json) -> (Conversion, ModelFiles) {
    let dir = tempfile::tempdir().unwrap();
    let parts = HfParts {
        tokenizer_json: Some(tokenizer.to_string().into_bytes()),
        tokenizer_config_json: Some(config.to_string().into_bytes()),
        generation_config_json: Some(
            br#"{"eos_token_id": [4, 2], "temperature": 0.5, "top_k": 7, "do_sample": true}"#.to_vec(),
        ),
        ..tiny::parts("qwen2")
    };
    let path = dir.path().join("m.gguf");
    let report = write_gguf(&open_parts(parts).unwrap(), &path, |_, _| DType::F32).unwrap();
    (report, open(&path).unwrap())
}

#[test]
fn a_byte_level_tokenizer_becomes_tables() {
    let templates = json!([{"name": "default", "template": "D"}, {"name": "rag", "template": "R"}]);
    let config = json!({"eos_token": {"content": "<|end|>"}, "bos_token": null, "chat_template": templates});
    let (report, files) = through_gguf(&byte_level(qwen2_pattern()), &config);
    assert!(report.notes.is_empty(), "{:?}", report.notes);
    let TokenizerFiles::Gguf(t) = &files.tokenizer else { panic!("{:?}", files.tokenizer) };
    assert_eq!((t.model.as_str(), t.pre.as_deref()), ("gpt2", Some("qwen2")));
    assert_eq!(t.tokens.len(), 16);
    assert_eq!(t.tokens[..7], ["a", "b", "ab", "Ġa", "<|end|>", "<tool>", "[PAD6]"]);
    assert_eq!(t.token_types.as_ref().unwrap()[..7], [1, 1, 1, 1, 3, 4, 5]);
    assert_eq!(t.merges.as_deref().unwrap(), ["a b", "Ġ a"]);
    assert_eq!((t.bos, t.eos, t.add_bos), (Some(1), Some(4), Some(false)));
    assert_eq!(files.chat_templates, Some(templates));
    let g = &files.generation;
    assert_eq!((g.eos.as_slice(), g.temperature, g.top_k, g.do_sample), (&[4, 2][..], Some(0.5), Some(7), Some(true)));
}

#[test]
fn a_post_processor_that_begins_with_a_special_token_adds_bos() {
    let mut tokenizer = byte_level(json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}));
    let template = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "a"}}, {"Sequence": {}}]});
    tokenizer["post_processor"] = json!({"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]});
    let (_, files) = through_gguf(&tokenizer, &json!({}));
    let TokenizerFiles::Gguf(t) = &files.tokenizer else { panic!("{:?}", files.tokenizer) };
    assert_eq!((t.pre.as_deref(), t.add_bos), (Some("gpt-2"), Some(true)));
}

#[test]
fn a_tokenizer_without_tables_is_stored_whole_and_the_report_says_so() {
    let tokenizer = byte_level(json!({"type": "Metaspace"}));
    let (report, files) = through_gguf(&tokenizer, &json!({"chat_template": "T"}));
    assert!(report.notes.iter().any(|n| n.contains("stored whole")), "{:?}", report.notes);
    let TokenizerFiles::Hf { tokenizer_json, .. } = &files.tokenizer else { panic!("{:?}", files.tokenizer) };
    assert_eq!(serde_json::from_slice::<Json>(tokenizer_json).unwrap(), tokenizer);
    assert_eq!(files.chat_templates, Some("T".into()));
}

#[test]
fn a_folder_with_a_tokenizer_and_no_weights_opens_as_text() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    std::fs::write(dir.path().join("chat_template.jinja"), "from the file").unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), r#"{"chat_template": "from the field"}"#).unwrap();
    let text = open_tokenizer(dir.path()).unwrap();
    assert!(matches!(text.tokenizer, TokenizerFiles::Hf { .. }));
    assert_eq!(text.chat_templates, Some("from the file".into()));
}

#[test]
fn every_value_type_is_read_as_it_was_written() {
    let values = [
        Value::U8(200),
        Value::I8(-100),
        Value::U16(60_000),
        Value::I16(-30_000),
        Value::U32(4_000_000_000),
        Value::I32(-2_000_000_000),
        Value::F32(-0.5),
        Value::Bool(true),
        Value::String("naïve".into()),
        Value::U64(1 << 63),
        Value::I64(i64::MIN),
        Value::F64(1e-300),
        Value::Array(Array::U8(vec![1, 2])),
        Value::Array(Array::I8(vec![-1])),
        Value::Array(Array::U16(vec![1])),
        Value::Array(Array::I16(vec![-1])),
        Value::Array(Array::U32(Vec::new())),
        Value::Array(Array::I32(vec![-7, 7])),
        Value::Array(Array::F32(vec![0.25])),
        Value::Array(Array::Bool(vec![true, false])),
        Value::Array(Array::String(vec![String::new(), "x".into()])),
        Value::Array(Array::Array(vec![Array::U8(vec![9]), Array::String(vec!["y".into()])])),
        Value::Array(Array::U64(vec![1 << 40])),
        Value::Array(Array::I64(vec![-(1 << 40)])),
        Value::Array(Array::F64(vec![0.1])),
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.gguf");
    let mut writer = Writer::new("v.gguf");
    for (i, value) in values.iter().enumerate() {
        writer.set(&format!("key.{i}"), value.clone()).unwrap();
    }
    assert!(writer.set("key.0", Value::U8(0)).is_err());
    assert!(writer.set("general.alignment", Value::U32(64)).is_err());
    writer.create(&path).unwrap().finish().unwrap();
    let file = GgufFile::parse(Bytes::map(&path).unwrap(), "v.gguf").unwrap();
    assert!(file.metadata.iter().map(|(_, v)| v).eq(values.iter()));
}

#[test]
fn a_file_appears_only_when_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.gguf");
    let start = || {
        let mut writer = Writer::new("t.gguf");
        writer.declare("a", DType::F32, &[2]).unwrap();
        writer.declare("b", DType::Q8_0, &[2, 32]).unwrap();
        assert!(writer.declare("a", DType::F32, &[2]).is_err());
        assert!(writer.declare("c", DType::Q8_0, &[33]).is_err());
        writer.create(&path).unwrap()
    };
    let mut body = start();
    body.write(&[0; 8]).unwrap();
    body.write(&[1; 34]).unwrap();
    assert!(body.finish().unwrap_err().to_string().contains("34 bytes"));
    let mut body = start();
    assert!(body.write(&[0; 9]).unwrap_err().to_string().contains("8 bytes in all"));
    drop(body);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
    let mut body = start();
    body.write(&[0, 0, 128, 63]).unwrap();
    body.write(&[0, 0, 0, 64]).unwrap();
    body.write(&[1; 68]).unwrap();
    assert!(body.write(&[0]).is_err());
    let len = body.finish().unwrap();
    let file = GgufFile::parse(Bytes::map(&path).unwrap(), "t.gguf").unwrap();
    assert_eq!((file.len() as u64, file.tensors.len()), (len, 2));
    assert_eq!(file.tensor(&file.tensors[0]).unwrap().to_f32().unwrap(), [1.0, 2.0]);
    assert_eq!(file.tensor(&file.tensors[1]).unwrap().data(), [1; 68]);
}

//! A tokenizer as GGUF tables.
//!
//! Byte-level BPE whose pre-tokenizer GGUF has a name for becomes tables that every GGUF program reads. Any other
//! tokenizer is stored whole under `tokenizer.huggingface.json`, and the conversion's notes say so.
//! Invariant: the tables have exactly as many tokens as the embedding has rows.

use serde_json::Value as Json;

use crate::gguf::{Array, Value, Writer};
use crate::{FormatError, GgufTokenizer};

/// Special ids that the tokenizer's own files name.
#[derive(Default)]
pub(crate) struct SpecialIds {
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
}

/// Pre-tokenizers: their GGUF name and the pattern in `tokenizer.json`.
const PATTERNS: [(&str, &str); 2] = [
    (
        "qwen2",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        "llama-bpe",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
];

/// Token types of the format.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// Writes the tables of `tokenizer.json`.
pub(crate) fn convert(
    tokenizer_json: &[u8],
    config_json: Option<&[u8]>,
    vocab_size: usize,
    w: &mut Writer,
    notes: &mut Vec<String>,
) -> Result<SpecialIds, FormatError> {
    let parse = |file: &str, bytes: &[u8]| {
        serde_json::from_slice::<Json>(bytes)
            .map_err(|e| FormatError::malformed(file, "JSON", e.to_string(), "a JSON object"))
    };
    let json = parse("tokenizer.json", tokenizer_json)?;
    let config = config_json.map(|b| parse("tokenizer_config.json", b)).transpose()?.unwrap_or_default();
    let Some(pre) = pre_tokenizer(&json) else {
        let text = String::from_utf8_lossy(tokenizer_json).into_owned();
        w.set("tokenizer.huggingface.json", Value::String(text))?;
        notes.push(
            "GGUF has no tables for this tokenizer; tokenizer.json is stored whole, which other programs may not read"
                .into(),
        );
        return Ok(SpecialIds::default());
    };
    if !json["normalizer"].is_null() {
        let kind = json["normalizer"]["type"].as_str().unwrap_or("unknown");
        notes.push(format!("the tokenizer's normalizer ({kind}) has no place in GGUF; programs imply it from `{pre}`"));
    }
    let (tokens, types) = vocabulary(&json, vocab_size)?;
    let special = SpecialIds { bos: id_of(&config["bos_token"], &tokens), eos: id_of(&config["eos_token"], &tokens) };
    w.set("tokenizer.ggml.model", Value::String("gpt2".into()))?;
    w.set("tokenizer.ggml.pre", Value::String(pre.into()))?;
    w.set("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)))?;
    w.set("tokenizer.ggml.token_type", Value::Array(Array::I32(types)))?;
    w.set("tokenizer.ggml.merges", Value::Array(Array::String(merges(&json)?)))?;
    let add_bos = config["add_bos_token"].as_bool().unwrap_or_else(|| begins_with_special(&json["post_processor"]));
    w.set("tokenizer.ggml.add_bos_token", Value::Bool(add_bos))?;
    Ok(special)
}

/// The GGUF name of a byte-level BPE's pre-tokenizer.
fn pre_tokenizer(json: &Json) -> Option<&'static str> {
    if json["model"]["type"].as_str().unwrap_or("BPE") != "BPE" || json["model"]["byte_fallback"] == true {
        return None;
    }
    let pre = &json["pre_tokenizer"];
    let byte_level = |p: &Json, regex: bool| {
        p["type"] == "ByteLevel" && p["add_prefix_space"] != true && p["use_regex"].as_bool().unwrap_or(true) == regex
    };
    if byte_level(pre, true) {
        return Some("gpt-2");
    }
    let [split, bytes] = pre["pretokenizers"].as_array()?.as_slice() else { return None };
    if split["type"] != "Split"
        || split["behavior"] != "Isolated"
        || split["invert"] == true
        || !byte_level(bytes, false)
    {
        return None;
    }
    let pattern = split["pattern"]["Regex"].as_str()?;
    PATTERNS.iter().find(|(_, p)| *p == pattern).map(|(name, _)| *name)
}

fn bad(key: &str, got: impl Into<String>, want: &str) -> FormatError {
    FormatError::key("tokenizer.json", key, got, want)
}

/// Tokens by id and their types; ids that the tokenizer leaves out are unused.
fn vocabulary(json: &Json, vocab_size: usize) -> Result<(Vec<String>, Vec<i32>), FormatError> {
    let mut tokens: Vec<Option<(String, i32)>> = vec![None; vocab_size];
    let mut put = |text: &str, id: &Json, kind: i32| {
        let slot = id.as_u64().and_then(|i| usize::try_from(i).ok()).and_then(|i| tokens.get_mut(i));
        match slot {
            Some(slot) => {
                *slot = Some((text.to_owned(), kind));
                Ok(())
            }
            None => {
                Err(bad("model.vocab", id.to_string(), &format!("ids below {vocab_size}, the rows of the embedding")))
            }
        }
    };
    let vocab = json["model"]["vocab"].as_object().ok_or_else(|| bad("model.vocab", "no object", "tokens and ids"))?;
    for (text, id) in vocab {
        put(text, id, NORMAL)?;
    }
    for added in json["added_tokens"].as_array().map_or(&[][..], Vec::as_slice) {
        let text = added["content"].as_str().ok_or_else(|| bad("added_tokens", "an entry without content", "text"))?;
        put(text, &added["id"], if added["special"] == true { CONTROL } else { USER_DEFINED })?;
    }
    let filled = tokens.into_iter().enumerate().map(|(i, t)| t.unwrap_or_else(|| (format!("[PAD{i}]"), UNUSED)));
    Ok(filled.unzip())
}

/// Merges as `left right`; `tokenizer.json` has them so or as pairs.
fn merges(json: &Json) -> Result<Vec<String>, FormatError> {
    let merges = json["model"]["merges"].as_array().ok_or_else(|| bad("model.merges", "no array", "pairs"))?;
    let one = |m: &Json| match (m.as_str(), m.as_array().map(Vec::as_slice)) {
        (Some(s), _) => Some(s.to_owned()),
        (None, Some([a, b])) => Some(format!("{} {}", a.as_str()?, b.as_str()?)),
        _ => None,
    };
    let all: Option<Vec<String>> = merges.iter().map(one).collect();
    all.ok_or_else(|| bad("model.merges", "another entry", "strings or pairs of strings"))
}

/// A special token of `tokenizer_config.json`: its text, or an object that has it.
fn id_of(token: &Json, tokens: &[String]) -> Option<u32> {
    let text = token.as_str().or_else(|| token["content"].as_str())?;
    tokens.iter().position(|t| t == text).and_then(|i| u32::try_from(i).ok())
}

/// Whether the post-processor puts a special token before each text.
fn begins_with_special(post: &Json) -> bool {
    match post["type"].as_str() {
        Some("TemplateProcessing") => post["single"][0]["SpecialToken"].is_object(),
        Some("Sequence") => post["processors"].as_array().is_some_and(|all| all.iter().any(begins_with_special)),
        _ => false,
    }
}

/// Writes tables that came from a GGUF file.
pub(crate) fn copy(t: &GgufTokenizer, w: &mut Writer) -> Result<(), FormatError> {
    let strings = |v: &[String]| Value::Array(Array::String(v.to_vec()));
    w.set("tokenizer.ggml.model", Value::String(t.model.clone()))?;
    if let Some(pre) = &t.pre {
        w.set("tokenizer.ggml.pre", Value::String(pre.clone()))?;
    }
    w.set("tokenizer.ggml.tokens", strings(&t.tokens))?;
    if let Some(scores) = &t.scores {
        w.set("tokenizer.ggml.scores", Value::Array(Array::F32(scores.clone())))?;
    }
    if let Some(types) = &t.token_types {
        w.set("tokenizer.ggml.token_type", Value::Array(Array::I32(types.clone())))?;
    }
    if let Some(merges) = &t.merges {
        w.set("tokenizer.ggml.merges", strings(merges))?;
    }
    for (name, id) in [("bos", t.bos), ("eos", t.eos), ("padding", t.pad), ("unknown", t.unk)] {
        if let Some(id) = id {
            w.set(&format!("tokenizer.ggml.{name}_token_id"), Value::U32(id))?;
        }
    }
    let flags = [("add_bos_token", t.add_bos), ("add_eos_token", t.add_eos), ("add_space_prefix", t.add_space_prefix)];
    for (name, flag) in flags {
        if let Some(flag) = flag {
            w.set(&format!("tokenizer.ggml.{name}"), Value::Bool(flag))?;
        }
    }
    Ok(())
}

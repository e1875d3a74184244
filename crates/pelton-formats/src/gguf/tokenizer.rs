//! The tokenizer, chat templates and sampling defaults in a GGUF file's metadata.
//!
//! Invariant: parallel tables have equal lengths and special ids are below the number of tokens.

use serde_json::json;

use super::{Metadata, PELTON_EOS_KEY};
use crate::{FormatError, GenerationDefaults, GgufTokenizer, TextFiles, TokenizerFiles};

/// Control tokens that end an answer by what they are called; files name only one or two ids.
const END_NAMES: [&str; 8] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
    "<|return|>",
];

/// The token type of control tokens.
const CONTROL: i32 = 3;

pub(super) fn read(meta: &Metadata) -> Result<TextFiles, FormatError> {
    let tokenizer = match (tables(meta)?, meta.str("tokenizer.huggingface.json")?) {
        (Some(tables), _) => TokenizerFiles::Gguf(tables),
        (None, Some(json)) => {
            TokenizerFiles::Hf { tokenizer_json: json.as_bytes().to_vec(), tokenizer_config_json: None }
        }
        (None, None) => TokenizerFiles::Missing,
    };
    let generation = generation(meta, &tokenizer)?;
    Ok(TextFiles { tokenizer, chat_templates: chat_templates(meta)?, generation })
}

fn tables(meta: &Metadata) -> Result<Option<GgufTokenizer>, FormatError> {
    let Some(model) = meta.str("tokenizer.ggml.model")?.filter(|&m| m != "none" && m != "no_vocab") else {
        return Ok(None);
    };
    let Some(tokens) = meta.strings("tokenizer.ggml.tokens")? else {
        return Err(meta.missing("tokenizer.ggml.tokens", "the text of each token"));
    };
    let parallel = |key: &str, len: usize| {
        if len == tokens.len() {
            return Ok(());
        }
        Err(FormatError::key(meta.file(), key, format!("{len} entries"), format!("{}, one a token", tokens.len())))
    };
    let scores = meta.floats("tokenizer.ggml.scores")?.map(<[f32]>::to_vec);
    if let Some(scores) = &scores {
        parallel("tokenizer.ggml.scores", scores.len())?;
        if let Some(i) = scores.iter().position(|s| s.is_nan()) {
            return Err(FormatError::key(meta.file(), "tokenizer.ggml.scores", format!("NaN at {i}"), "numbers"));
        }
    }
    let types = match meta.integers("tokenizer.ggml.token_type")? {
        None => None,
        Some(types) => {
            parallel("tokenizer.ggml.token_type", types.len())?;
            let narrow = |t: i64| {
                let wrong = || FormatError::key(meta.file(), "tokenizer.ggml.token_type", t.to_string(), "1 to 6");
                i32::try_from(t).map_err(|_| wrong())
            };
            Some(types.into_iter().map(narrow).collect::<Result<Vec<i32>, _>>()?)
        }
    };
    let id = |name: &str| {
        let key = format!("tokenizer.ggml.{name}_token_id");
        match meta.token_id(&key)? {
            Some(id) if id as usize >= tokens.len() => {
                Err(FormatError::key(meta.file(), key, id.to_string(), format!("an id below {}", tokens.len())))
            }
            id => Ok(id),
        }
    };
    Ok(Some(GgufTokenizer {
        model: model.into(),
        pre: meta.str("tokenizer.ggml.pre")?.map(str::to_owned),
        tokens: tokens.to_vec(),
        scores,
        token_types: types,
        merges: meta.strings("tokenizer.ggml.merges")?.map(<[String]>::to_vec),
        bos: id("bos")?,
        eos: id("eos")?,
        pad: id("padding")?,
        unk: id("unknown")?,
        add_bos: meta.bool("tokenizer.ggml.add_bos_token")?,
        add_eos: meta.bool("tokenizer.ggml.add_eos_token")?,
        add_space_prefix: meta.bool("tokenizer.ggml.add_space_prefix")?,
    }))
}

/// As `tokenizer_config.json` would have it: a string, or a list of `{name, template}` if there are named ones.
fn chat_templates(meta: &Metadata) -> Result<Option<serde_json::Value>, FormatError> {
    let default = meta.str("tokenizer.chat_template")?;
    let mut named = Vec::new();
    for (key, _) in meta.iter() {
        if let Some(name) = key.strip_prefix("tokenizer.chat_template.") {
            named.push(json!({ "name": name, "template": meta.str(key)? }));
        }
    }
    if named.is_empty() {
        return Ok(default.map(|t| json!(t)));
    }
    if let Some(template) = default {
        named.insert(0, json!({ "name": "default", "template": template }));
    }
    Ok(Some(named.into()))
}

fn generation(meta: &Metadata, tokenizer: &TokenizerFiles) -> Result<GenerationDefaults, FormatError> {
    let id = |name: &str| meta.token_id(&format!("tokenizer.ggml.{name}_token_id"));
    let mut eos = Vec::new();
    if let Some(all) = meta.integers(PELTON_EOS_KEY)? {
        for id in all {
            let wrong = || FormatError::key(meta.file(), PELTON_EOS_KEY, id.to_string(), "token ids");
            eos.push(u32::try_from(id).map_err(|_| wrong())?);
        }
    } else {
        for name in ["eos", "eot", "eom"] {
            eos.extend(id(name)?.filter(|id| !eos.contains(id)).into_iter().collect::<Vec<_>>());
        }
        if let TokenizerFiles::Gguf(tables) = tokenizer {
            end_tokens_by_name(tables, &mut eos);
        }
    }
    let float = |name: &str| meta.float(&format!("general.sampling.{name}"));
    Ok(GenerationDefaults {
        bos: id("bos")?,
        eos,
        pad: id("padding")?,
        temperature: float("temp")?,
        top_k: meta.count("general.sampling.top_k")?,
        top_p: float("top_p")?,
        min_p: float("min_p")?,
        repetition_penalty: float("penalty_repeat")?,
        do_sample: meta.bool("pelton.do_sample")?,
    })
}

fn end_tokens_by_name(tables: &GgufTokenizer, eos: &mut Vec<u32>) {
    let Some(types) = &tables.token_types else { return };
    for (i, token) in tables.tokens.iter().enumerate() {
        if types[i] == CONTROL
            && END_NAMES.contains(&token.as_str())
            && let Ok(id) = u32::try_from(i)
            && !eos.contains(&id)
        {
            eos.push(id);
        }
    }
}

//! A model's files, opened: the one type that the rest of Pelton sees.
//!
//! Invariant: `config` is validated, and every tensor in `tensors` has a type that decodes.

use std::path::Path;

use crate::{Bytes, FormatError, GenerationDefaults, ModelConfig, Tensors, gguf, hf};

/// Everything that a model's files say.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    /// The decoder's shape.
    pub config: ModelConfig,
    /// Weights by canonical name.
    pub tensors: Tensors,
    /// The tokenizer's files or tables.
    pub tokenizer: TokenizerFiles,
    /// Chat templates in the form of `tokenizer_config.json`: a string, or a list of `{name, template}`.
    pub chat_templates: Option<serde_json::Value>,
    /// Sampling defaults and end-of-text ids.
    pub generation: GenerationDefaults,
    /// Where all this came from.
    pub source: Source,
}

/// The part of a model's files that deals with text. Files that hold a vocabulary and no weights have it too.
#[derive(Clone, Debug)]
pub struct TextFiles {
    /// The tokenizer's files or tables.
    pub tokenizer: TokenizerFiles,
    /// As [`ModelFiles::chat_templates`].
    pub chat_templates: Option<serde_json::Value>,
    /// Sampling defaults and end-of-text ids.
    pub generation: GenerationDefaults,
}

/// A tokenizer as the files hold it; `pelton-text` builds the tokenizer itself.
#[derive(Clone, Debug, Default)]
pub enum TokenizerFiles {
    /// Hugging Face files, word for word.
    Hf {
        /// `tokenizer.json`.
        tokenizer_json: Vec<u8>,
        /// `tokenizer_config.json`.
        tokenizer_config_json: Option<Vec<u8>>,
    },
    /// The tables in a GGUF file's metadata.
    Gguf(GgufTokenizer),
    /// The model came without one: it takes ids only.
    #[default]
    Missing,
}

/// `tokenizer.ggml.*`. Where present, `scores` and `token_types` are as long as `tokens`, and ids are below that.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufTokenizer {
    /// `gpt2` (byte-level BPE), `llama` (SentencePiece), ….
    pub model: String,
    /// The pre-tokenizer's name, such as `qwen2`.
    pub pre: Option<String>,
    /// Text of each id.
    pub tokens: Vec<String>,
    /// SentencePiece scores.
    pub scores: Option<Vec<f32>>,
    /// 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub token_types: Option<Vec<i32>>,
    /// BPE merges, `left right`, best first.
    pub merges: Option<Vec<String>>,
    /// Beginning of text.
    pub bos: Option<u32>,
    /// End of text.
    pub eos: Option<u32>,
    /// Padding.
    pub pad: Option<u32>,
    /// Unknown text.
    pub unk: Option<u32>,
    /// Whether `bos` is put before each text.
    pub add_bos: Option<bool>,
    /// Whether `eos` is put after each text.
    pub add_eos: Option<bool>,
    /// Whether a space is put before each text (SentencePiece).
    pub add_space_prefix: Option<bool>,
}

/// Where a model came from, for `inspect` and for error messages.
#[derive(Clone, Debug)]
pub struct Source {
    /// The container.
    pub kind: SourceKind,
    /// What error messages call the model.
    pub name: String,
    /// The files that hold weights.
    pub files: Vec<String>,
    /// Their length together.
    pub total_bytes: u64,
    /// How a Hugging Face folder's weights are quantized, for people: `GPTQ 4 bit, group size 128, asymmetric`.
    pub quantization: Option<String>,
    /// Keys and values for people to read; long arrays are given by length.
    pub metadata: Vec<(String, String)>,
    /// Tensors of the file that the model does not use, by the file's names.
    pub unused: Vec<String>,
}

/// The container of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// GGUF of this version.
    Gguf {
        /// 2 or 3.
        version: u32,
    },
    /// A Hugging Face folder.
    Safetensors,
}

/// Opens a `.gguf` file (any shard of a set opens the set), a Hugging Face folder, or a folder with one GGUF set.
///
/// Files stay mapped while a tensor of theirs lives. Replace them by renaming, as the model store does: a file that
/// another process truncates in place ends this one by SIGBUS at the next read past its end.
///
/// # Errors
/// [`FormatError`], naming the file and what to do.
pub fn open(path: &Path) -> Result<ModelFiles, FormatError> {
    let meta = std::fs::metadata(path).map_err(FormatError::io(path, "open"))?;
    if !meta.is_dir() {
        return gguf::open_path(path);
    }
    if hf::has_weights(path) {
        return hf::open_folder(path);
    }
    match only_gguf_in(path)? {
        Some(file) => gguf::open_path(&file),
        None => Err(hf::no_weights(path)),
    }
}

/// Opens a GGUF file in memory, such as the one in the program's own image.
///
/// # Errors
/// [`FormatError`], naming `name` as the file.
pub fn open_bytes(bytes: impl Into<Bytes>, name: &str) -> Result<ModelFiles, FormatError> {
    gguf::open_single(bytes.into(), name)
}

/// Opens only what deals with text. Unlike [`open`] it takes GGUF files with a vocabulary and no tensors, and any
/// architecture.
///
/// # Errors
/// [`FormatError`], naming the file and what to do.
pub fn open_tokenizer(path: &Path) -> Result<TextFiles, FormatError> {
    let meta = std::fs::metadata(path).map_err(FormatError::io(path, "open"))?;
    if !meta.is_dir() {
        return gguf::text_from_path(path);
    }
    if path.join("tokenizer.json").is_file() || hf::has_weights(path) {
        return hf::text_from_folder(path);
    }
    match only_gguf_in(path)? {
        Some(file) => gguf::text_from_path(&file),
        None => Err(FormatError::MissingFile { file: path.display().to_string(), missing: "tokenizer.json".into() }),
    }
}

/// [`open_tokenizer`] of a GGUF file in memory.
///
/// # Errors
/// [`FormatError`], naming `name` as the file.
pub fn open_tokenizer_bytes(bytes: impl Into<Bytes>, name: &str) -> Result<TextFiles, FormatError> {
    gguf::text_from_bytes(bytes.into(), name)
}

/// The first file of the one GGUF set in a folder, `None` if there is no GGUF file.
fn only_gguf_in(folder: &Path) -> Result<Option<std::path::PathBuf>, FormatError> {
    let mut sets = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(FormatError::io(folder, "list"))? {
        let entry = entry.map_err(FormatError::io(folder, "list"))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.ends_with(".gguf") && !name.starts_with('.') {
            let set = gguf::shard_of(&name).map_or(name.clone(), |s| format!("{} of {}", s.prefix, s.count));
            let first: &mut String = sets.entry(set).or_insert_with(|| name.clone());
            if name < *first {
                *first = name;
            }
        }
    }
    if sets.len() > 1 {
        let got = sets.into_values().take(8).collect::<Vec<_>>().join(", ");
        let want = "one model; name one of these files instead of the folder";
        return Err(FormatError::malformed(&folder.display().to_string(), "GGUF files in the folder", got, want));
    }
    Ok(sets.into_values().next().map(|name| folder.join(name)))
}

/// Reads a count of layers, before anything is allocated by it.
pub(crate) fn check_layers(n: usize) -> Result<usize, FormatError> {
    if (1..=4096).contains(&n) {
        return Ok(n);
    }
    Err(FormatError::Config { field: "number of layers".into(), got: n.to_string(), want: "between 1 and 4096".into() })
}

//! Opens a model from one GGUF file or from a set of shards.
//!
//! Invariant: the shards of a set agree on their number, and together hold as many tensors as the set announces.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::{GgufFile, TensorInfo, config, tokenizer};
use crate::names::{Role, gguf_role};
use crate::rope::to_half_split;
use crate::{Arch, Bytes, FormatError, ModelConfig, ModelFiles, Source, SourceKind, Tensor, Tensors, TextFiles, shape};

/// A shard's file name, taken apart: `PREFIX-00001-of-00003.gguf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shard {
    pub(crate) prefix: String,
    /// From 1.
    pub(crate) number: usize,
    pub(crate) count: usize,
}

impl Shard {
    pub(crate) fn file_name(prefix: &str, number: usize, count: usize) -> String {
        format!("{prefix}-{number:05}-of-{count:05}.gguf")
    }
}

/// Takes a shard's file name apart, `None` for any other name.
pub(crate) fn shard_of(name: &str) -> Option<Shard> {
    let stem = name.strip_suffix(".gguf")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let five = |s: &str| (s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit())).then(|| s.parse::<usize>().ok());
    let (number, count) = (five(number)??, five(count)??);
    (number >= 1 && number <= count).then(|| Shard { prefix: prefix.into(), number, count })
}

/// Opens the file at `path`, with the other shards of its set if its name is that of a shard.
pub(crate) fn open_path(path: &Path) -> Result<ModelFiles, FormatError> {
    let file_name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(shard) = shard_of(&file_name) else {
        return open_single(Bytes::map(path)?, &path.display().to_string());
    };
    let shard_path = |i| path.with_file_name(Shard::file_name(&shard.prefix, i, shard.count));
    let paths: Vec<PathBuf> = (1..=shard.count).map(shard_path).collect();
    if let Some(missing) = paths.iter().find(|p| !p.is_file()) {
        let missing = missing.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Err(FormatError::MissingFile { file: path.display().to_string(), missing });
    }
    let parse = |p: &PathBuf| GgufFile::parse(Bytes::map(p)?, &p.display().to_string());
    let files = paths.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    check_set(&files)?;
    assemble(&files)
}

/// Opens one file that is a whole model.
pub(crate) fn open_single(bytes: Bytes, name: &str) -> Result<ModelFiles, FormatError> {
    let file = GgufFile::parse(bytes, name)?;
    let count = file.metadata.count("split.count")?.unwrap_or(1);
    if count > 1 {
        let want = "one file; shards keep their names (PREFIX-00001-of-0000N.gguf) and lie in one folder";
        return Err(FormatError::key(name, "split.count", count.to_string(), want));
    }
    assemble(std::slice::from_ref(&file))
}

/// The tokenizer and templates of any GGUF file, vocabulary-only files included.
pub(crate) fn text_from_path(path: &Path) -> Result<TextFiles, FormatError> {
    let file_name = path.file_name().unwrap_or_default().to_string_lossy();
    // The keys of a sharded set are in its first shard.
    let first = shard_of(&file_name).map(|s| path.with_file_name(Shard::file_name(&s.prefix, 1, s.count)));
    let path = first.as_deref().unwrap_or(path);
    text_from_bytes(Bytes::map(path)?, &path.display().to_string())
}

/// [`text_from_path`] of a file in memory.
pub(crate) fn text_from_bytes(bytes: Bytes, name: &str) -> Result<TextFiles, FormatError> {
    tokenizer::read(&GgufFile::parse(bytes, name)?.metadata)
}

fn check_set(files: &[GgufFile]) -> Result<(), FormatError> {
    let n = files.len();
    for (i, file) in files.iter().enumerate() {
        let expect = |key: &str, want: usize| match file.metadata.count(key)? {
            Some(got) if got == want => Ok(()),
            Some(got) => Err(FormatError::key(file.name(), key, got.to_string(), format!("{want}, as the name says"))),
            None => Err(file.metadata.missing(key, "what every shard of a set has; this file is no shard")),
        };
        expect("split.count", n)?;
        expect("split.no", i)?;
    }
    let total: usize = files.iter().map(|f| f.tensors.len()).sum();
    for file in files {
        let key = "split.tensors.count";
        if let Some(want) = file.metadata.count(key)?
            && want != total
        {
            let want = format!("{total}, which is what the {n} shards hold together");
            return Err(FormatError::key(file.name(), key, "another number", want));
        }
    }
    Ok(())
}

fn assemble(files: &[GgufFile]) -> Result<ModelFiles, FormatError> {
    let main = &files[0];
    let all: HashMap<&str, (&GgufFile, &TensorInfo)> =
        files.iter().flat_map(|f| f.tensors.iter().map(move |t| (t.name.as_str(), (f, t)))).collect();
    let find = |name: &str| all.get(name).copied();
    let config = config::read(&main.metadata, &find).map_err(|e| e.in_file(main.name()))?;
    let text = tokenizer::read(&main.metadata)?;
    let mut tensors = Tensors::new(main.name());
    let mut unused = Vec::new();
    for file in files {
        for info in &file.tensors {
            let Some(role) = gguf_role(config.arch, config.n_layers, &info.name) else {
                let want = format!("a tensor of the architecture `{}`", config.arch.gguf_name());
                return Err(FormatError::tensor(
                    file.name(),
                    crate::error::brief(&info.name),
                    "an unknown tensor",
                    want,
                ));
            };
            if role == Role::Unused {
                unused.push(info.name.clone());
                continue;
            }
            let tensor = unpermute(&config, &role, file.tensor(info)?, file.name())?;
            shape::add(&mut tensors, &config, role, tensor, file.name())?;
        }
    }
    shape::check_norms(&tensors)?;
    check_vocabulary(main, &config, &text)?;
    let source = Source {
        kind: SourceKind::Gguf { version: main.version },
        name: main.name().into(),
        files: files.iter().map(|f| f.name().to_owned()).collect(),
        total_bytes: files.iter().map(|f| f.len() as u64).sum(),
        quantization: None,
        metadata: main.metadata.iter().map(|(k, v)| (k.to_owned(), v.to_string())).collect(),
        unused,
    };
    let TextFiles { tokenizer, chat_templates, generation } = text;
    Ok(ModelFiles { config, tensors, tokenizer, chat_templates, generation, source })
}

/// Files of the `llama` architecture store rows of Q and K for interleaved rotary pairs.
fn unpermute(config: &ModelConfig, role: &Role, tensor: Tensor, file: &str) -> Result<Tensor, FormatError> {
    let Role::Plain(name) = role else { return Ok(tensor) };
    let stem = name.rsplit_once('.').map_or("", |(stem, _)| stem);
    let n_heads = match stem.rsplit_once('.').map_or("", |(_, what)| what) {
        "attn_q" => config.n_heads,
        "attn_k" => config.n_kv_heads,
        _ => return Ok(tensor),
    };
    if !matches!(config.arch, Arch::Llama | Arch::Mistral) {
        return Ok(tensor);
    }
    if tensor.shape[0] != n_heads * config.head_dim {
        let want = format!("{} rows: {n_heads} heads of {}", n_heads * config.head_dim, config.head_dim);
        return Err(FormatError::tensor(file, &tensor.name, format!("shape {:?}", tensor.shape), want));
    }
    if tensor.shape.len() == 1 && !tensor.dtype.is_float() {
        let got = format!("type {}", tensor.dtype.name());
        return Err(FormatError::tensor(file, &tensor.name, got, "F32, F16 or BF16 for a bias"));
    }
    Ok(to_half_split(&tensor, n_heads))
}

fn check_vocabulary(file: &GgufFile, config: &ModelConfig, text: &TextFiles) -> Result<(), FormatError> {
    let crate::TokenizerFiles::Gguf(tokenizer) = &text.tokenizer else { return Ok(()) };
    if tokenizer.tokens.len() <= config.vocab_size {
        return Ok(());
    }
    let want = format!("at most {}, the rows of token_embd.weight", config.vocab_size);
    let got = format!("{} tokens", tokenizer.tokens.len());
    Err(FormatError::key(file.name(), "tokenizer.ggml.tokens", got, want))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_names_are_exact() {
        let shard = shard_of("qwen-q4-00002-of-00003.gguf").unwrap();
        assert_eq!(shard, Shard { prefix: "qwen-q4".into(), number: 2, count: 3 });
        assert_eq!(Shard::file_name("qwen-q4", 2, 3), "qwen-q4-00002-of-00003.gguf");
        for name in
            ["m.gguf", "m-00004-of-00003.gguf", "m-00000-of-00001.gguf", "m-1-of-2.gguf", "m-0000a-of-00001.gguf"]
        {
            assert_eq!(shard_of(name), None, "{name}");
        }
    }
}

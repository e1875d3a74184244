//! Which files of a repository make the model that was asked for.
//!
//! The same rules read the hub's listing (to download) and a snapshot folder (to list and locate).
//!
//! Invariants: a choice is complete (every shard is there); nothing that needs Python's pickle is ever chosen; the
//! small files come first, so that the weights are the last thing to arrive.

use std::collections::{BTreeMap, BTreeSet};

use crate::StoreError;
use crate::error::name_list;
use crate::quant::{PREFERRED, carries_token, label_of, shard_of};

/// The word after `:` that asks for the safetensors of a repository that also has GGUF files.
pub(crate) const SAFETENSORS: &str = "safetensors";

/// The files to fetch or open together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    /// Paths in the repository, in the order to fetch them.
    pub(crate) files: Vec<String>,
    /// For GGUF, the file to open (the first shard); for safetensors the snapshot folder is opened.
    pub(crate) open: Option<String>,
    /// The quantization that the name carries, GGUF only.
    pub(crate) quant: Option<String>,
    /// One sentence: what was taken and why.
    pub(crate) reason: String,
}

/// One GGUF model of a repository: a file, or all its shards.
#[derive(Debug, Clone)]
pub(crate) struct Variant {
    /// The path without the shard number, with the extension.
    pub(crate) name: String,
    /// The quantization that the name carries.
    pub(crate) label: Option<String>,
    /// The files, first shard first.
    pub(crate) files: Vec<String>,
    /// Shards that the names announce; 1 for a whole file.
    n_shards: u32,
}

impl Variant {
    /// What a person types to get this one.
    fn handle(&self) -> &str {
        self.label.as_deref().unwrap_or(&self.name)
    }

    /// Shards that are announced but absent.
    fn n_missing(&self) -> u32 {
        self.n_shards.saturating_sub(u32::try_from(self.files.len()).unwrap_or(u32::MAX))
    }

    fn into_choice(self, repo: &str, reason: String) -> Result<Choice, StoreError> {
        let missing = self.n_missing();
        if missing > 0 {
            let (file, n_shards) = (crate::error::clip(&self.name, 200), self.n_shards);
            return Err(StoreError::MissingShards { repo: repo.to_owned(), file, n_shards, missing });
        }
        Ok(Choice { open: self.files.first().cloned(), files: self.files, quant: self.label, reason })
    }
}

/// The complete GGUF models among `files`, by name.
pub(crate) fn complete_variants(files: &[String]) -> Vec<Variant> {
    variants(files).into_iter().filter(|variant| variant.n_missing() == 0).collect()
}

/// The GGUF models among `files`; projectors and importance matrices are no models.
fn variants(files: &[String]) -> Vec<Variant> {
    let mut groups: BTreeMap<(String, u32), BTreeSet<&String>> = BTreeMap::new();
    for file in files.iter().filter(|file| file.ends_with(".gguf")) {
        let name = file.rsplit('/').next().unwrap_or(file).to_ascii_lowercase();
        if name.starts_with("mmproj") || name.contains("imatrix") {
            continue;
        }
        let key = match shard_of(file, ".gguf") {
            Some(shard) => (format!("{}.gguf", shard.base), shard.n_shards),
            None => (file.clone(), 1),
        };
        groups.entry(key).or_default().insert(file);
    }
    let variant = |((name, n_shards), files): ((String, u32), BTreeSet<&String>)| Variant {
        label: label_of(&name),
        files: files.into_iter().cloned().collect(),
        name,
        n_shards,
    };
    groups.into_iter().map(variant).collect()
}

/// Chooses among the `files` of `repo`; `quant` is what stood after `:`.
///
/// # Errors
/// [`StoreError::NoModel`], [`StoreError::NoQuant`], [`StoreError::Ambiguous`] or [`StoreError::MissingShards`], each
/// with what is there.
pub(crate) fn choose(repo: &str, files: &[String], quant: Option<&str>) -> Result<Choice, StoreError> {
    let variants = variants(files);
    let has_safetensors = files.iter().any(|file| !file.contains('/') && file.ends_with(".safetensors"));
    match quant {
        Some(word) if word.eq_ignore_ascii_case(SAFETENSORS) => safetensors(repo, files),
        Some(_) if variants.is_empty() && has_safetensors => Err(StoreError::NoModel {
            repo: repo.to_owned(),
            reason:
                "a quantization after `:` picks a GGUF file, and this repository has safetensors only; leave it out"
                    .to_owned(),
            found: name_list(files.iter().map(String::as_str)),
        }),
        Some(word) if !variants.is_empty() => named(repo, variants, word),
        None if !variants.is_empty() && (!has_safetensors || repo.to_ascii_lowercase().ends_with("gguf")) => {
            preferred(repo, variants)
        }
        _ => safetensors(repo, files),
    }
}

/// The one variant that `word` names: its file, its label, or a token of its path.
fn named(repo: &str, variants: Vec<Variant>, word: &str) -> Result<Choice, StoreError> {
    let by_file = |v: &&Variant| v.name == word || v.files.iter().any(|file| file == word);
    let by_label = |v: &&Variant| v.label.as_deref().is_some_and(|label| label.eq_ignore_ascii_case(word));
    let by_token = |v: &&Variant| carries_token(v.name.strip_suffix(".gguf").unwrap_or(&v.name), word);
    let tests: [&dyn Fn(&&Variant) -> bool; 3] = [&by_file, &by_label, &by_token];
    let matches: Vec<&Variant> = tests
        .iter()
        .map(|test| variants.iter().filter(test).collect::<Vec<_>>())
        .find(|found| !found.is_empty())
        .unwrap_or_default();
    match matches.as_slice() {
        [] => Err(StoreError::NoQuant {
            repo: repo.to_owned(),
            wanted: word.to_owned(),
            available: name_list(variants.iter().map(Variant::handle)),
        }),
        [one] => {
            let reason = format!("{}, as asked", one.name);
            (*one).clone().into_choice(repo, reason)
        }
        several => Err(StoreError::Ambiguous {
            repo: repo.to_owned(),
            wanted: word.to_owned(),
            candidates: name_list(several.iter().map(|variant| variant.name.as_str())),
        }),
    }
}

/// The default when no quantization was named: the only one, else the first of [`PREFERRED`] that is there.
fn preferred(repo: &str, mut variants: Vec<Variant>) -> Result<Choice, StoreError> {
    if variants.len() == 1 {
        let only = variants.remove(0);
        let reason = format!("{}, the only one", only.name);
        return only.into_choice(repo, reason);
    }
    let others = name_list(variants.iter().map(Variant::handle));
    let Some(word) = PREFERRED.iter().find(|word| variants.iter().any(|v| v.label.as_deref() == Some(word))) else {
        return Err(StoreError::NoQuant {
            repo: repo.to_owned(),
            wanted: "default quantization".to_owned(),
            available: others,
        });
    };
    let mut choice = named(repo, variants, word)?;
    choice.reason = format!("{word}, the default among {others}");
    Ok(choice)
}

/// The files of a Hugging Face folder at the root of the repository.
fn safetensors(repo: &str, files: &[String]) -> Result<Choice, StoreError> {
    let root: BTreeSet<&str> = files.iter().map(String::as_str).filter(|file| !file.contains('/')).collect();
    let no_model = |reason: &str| StoreError::NoModel {
        repo: repo.to_owned(),
        reason: reason.to_owned(),
        found: name_list(files.iter().map(String::as_str)),
    };
    let weights = weight_files(repo, &root)?;
    if weights.is_empty() {
        let pickled = root.iter().any(|file| [".bin", ".pt", ".pth", ".ckpt"].iter().any(|end| file.ends_with(end)));
        return Err(no_model(if pickled {
            "its weights are pickled Python objects, which can run code and are never loaded; look for a safetensors or \
             GGUF conversion"
        } else {
            "no .gguf and no .safetensors file"
        }));
    }
    if !root.contains("config.json") {
        return Err(no_model("no config.json beside the safetensors"));
    }
    let is_side_file = |file: &str| {
        matches!(
            file,
            "config.json"
                | "generation_config.json"
                | "special_tokens_map.json"
                | "chat_template.jinja"
                | "chat_template.json"
        ) || (file.starts_with("tokenizer") && file.ends_with(".json"))
    };
    let mut chosen: Vec<String> =
        root.iter().filter(|file| is_side_file(file)).map(|file| (*file).to_owned()).collect();
    let reason = match weights.iter().filter(|file| file.ends_with(".safetensors")).count() {
        1 => "the safetensors file and its configuration".to_owned(),
        n => format!("{n} safetensors files and their configuration"),
    };
    chosen.extend(weights);
    Ok(Choice { files: chosen, open: None, quant: None, reason })
}

/// The weights: an index with its shards, else `model.safetensors`, else what is there (`consolidated` copies last).
fn weight_files(repo: &str, root: &BTreeSet<&str>) -> Result<Vec<String>, StoreError> {
    const END: &str = ".safetensors";
    const INDEX_END: &str = ".safetensors.index.json";
    let indexes = root.iter().filter_map(|file| file.strip_suffix(INDEX_END));
    let mut stems: Vec<&str> = indexes.collect();
    stems.sort_by_key(|stem| *stem != "model");
    let mut sharded = None;
    for file in root {
        let Some(shard) = shard_of(file, END) else { continue };
        if stems.first().is_none_or(|stem| shard.base == *stem) {
            sharded.get_or_insert((shard.base, shard.n_shards));
        }
    }
    if let Some((base, n_shards)) = sharded {
        let same = |file: &&&str| shard_of(file, END).is_some_and(|s| s.base == base && s.n_shards == n_shards);
        let shards: Vec<String> = root.iter().filter(same).map(|file| (*file).to_owned()).collect();
        let missing = n_shards.saturating_sub(u32::try_from(shards.len()).unwrap_or(u32::MAX));
        if missing > 0 {
            let file = format!("{base}{END}");
            return Err(StoreError::MissingShards { repo: repo.to_owned(), file, n_shards, missing });
        }
        let index = stems.contains(&base).then(|| format!("{base}{INDEX_END}"));
        return Ok(index.into_iter().chain(shards).collect());
    }
    if root.contains("model.safetensors") {
        return Ok(vec!["model.safetensors".to_owned()]);
    }
    let all: Vec<&str> = root.iter().copied().filter(|file| file.ends_with(END)).collect();
    let main: Vec<&str> = all.iter().copied().filter(|file| !file.starts_with("consolidated")).collect();
    let index = stems.first().map(|stem| format!("{stem}{INDEX_END}"));
    let taken = if main.is_empty() { all } else { main };
    if taken.is_empty() {
        return Ok(Vec::new());
    }
    Ok(index.into_iter().chain(taken.into_iter().map(str::to_owned)).collect())
}

#[cfg(test)]
#[path = "choose_tests.rs"]
mod tests;

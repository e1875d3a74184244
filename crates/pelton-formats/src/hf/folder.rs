//! Opens a Hugging Face folder, from disk or from memory.
//!
//! Invariant: every tensor that the index names is in the shard it names, and in no other.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;

use super::fields::{Fields, parse_object};
use super::quantized::Scheme;
use super::{SafetensorsFile, config, generation};
use crate::error::brief;
use crate::names::{Role, hf_role};
use crate::{
    Bytes, FormatError, ModelConfig, ModelFiles, Source, SourceKind, Tensors, TextFiles, TokenizerFiles, shape,
};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Largest `tokenizer.json` that is read; those with 256,000 entries take some 35 MB.
const MAX_TOKENIZER_BYTES: u64 = 512 << 20;

/// Largest of the other files beside the weights; an index of 20,000 tensors takes 2 MB.
const MAX_JSON_BYTES: u64 = 32 << 20;

/// The content of a Hugging Face folder.
#[derive(Clone, Debug, Default)]
pub struct HfParts {
    /// What error messages call the folder; also the model's name where `config.json` has none.
    pub name: String,
    /// `config.json`.
    pub config_json: Vec<u8>,
    /// `generation_config.json`.
    pub generation_config_json: Option<Vec<u8>>,
    /// `model.safetensors.index.json`.
    pub index_json: Option<Vec<u8>>,
    /// The safetensors files, by name.
    pub weights: Vec<(String, Bytes)>,
    /// `tokenizer.json`.
    pub tokenizer_json: Option<Vec<u8>>,
    /// `tokenizer_config.json`.
    pub tokenizer_config_json: Option<Vec<u8>>,
    /// `chat_template.jinja`.
    pub chat_template_jinja: Option<Vec<u8>>,
}

pub(crate) fn has_weights(folder: &Path) -> bool {
    folder.join(SINGLE).is_file() || folder.join(INDEX).is_file()
}

/// The error for a folder in which there is nothing to open.
pub(crate) fn no_weights(folder: &Path) -> FormatError {
    let file = folder.display().to_string();
    if folder.join("pytorch_model.bin").is_file() || folder.join("pytorch_model.bin.index.json").is_file() {
        let want = "model.safetensors; convert the model, or get a version that has it";
        return FormatError::malformed(&file, "weights", "pytorch_model.bin", want);
    }
    FormatError::MissingFile { file, missing: format!("{SINGLE}, {INDEX} or a .gguf file") }
}

pub(crate) fn open_folder(folder: &Path) -> Result<ModelFiles, FormatError> {
    let mut parts = text_parts(folder)?;
    let Some(config_json) = read_json(folder, "config.json")? else {
        return Err(FormatError::MissingFile { file: parts.name, missing: "config.json".into() });
    };
    parts.config_json = config_json;
    let names = if folder.join(SINGLE).is_file() {
        vec![SINGLE.to_owned()]
    } else {
        parts.index_json = read_json(folder, INDEX)?;
        let index = parts.index_json.as_deref().unwrap_or_default();
        shard_names(&weight_map(index, &label(&parts.name, INDEX))?)
    };
    for name in names {
        let path = folder.join(&name);
        if !path.is_file() {
            return Err(FormatError::MissingFile { file: parts.name, missing: name });
        }
        parts.weights.push((name, Bytes::map(&path)?));
    }
    open_parts(parts)
}

/// What deals with text in a folder, with or without weights.
pub(crate) fn text_from_folder(folder: &Path) -> Result<TextFiles, FormatError> {
    let mut parts = text_parts(folder)?;
    parts.config_json = read_json(folder, "config.json")?.unwrap_or_else(|| b"{}".to_vec());
    text(&mut parts)
}

fn text_parts(folder: &Path) -> Result<HfParts, FormatError> {
    let read = |name: &str| read_json(folder, name);
    Ok(HfParts {
        name: folder.display().to_string(),
        generation_config_json: read("generation_config.json")?,
        tokenizer_json: read("tokenizer.json")?,
        tokenizer_config_json: read("tokenizer_config.json")?,
        chat_template_jinja: read("chat_template.jinja")?,
        ..HfParts::default()
    })
}

/// A file of the folder, `None` where it is absent.
fn read_json(folder: &Path, name: &str) -> Result<Option<Vec<u8>>, FormatError> {
    let path = folder.join(name);
    let meta = match std::fs::metadata(&path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(FormatError::io(&path, "open")(e)),
    };
    let max = if name == "tokenizer.json" { MAX_TOKENIZER_BYTES } else { MAX_JSON_BYTES };
    if meta.len() > max {
        let want = format!("at most {max}");
        let got = format!("{} bytes", meta.len());
        return Err(FormatError::malformed(&path.display().to_string(), "file size", got, want));
    }
    std::fs::read(&path).map(Some).map_err(FormatError::io(&path, "read"))
}

fn label(folder: &str, file: &str) -> String {
    if folder.is_empty() { file.into() } else { format!("{folder}/{file}") }
}

/// The index's map from tensor to file, with only plain file names in it.
fn weight_map(index: &[u8], file: &str) -> Result<BTreeMap<String, String>, FormatError> {
    let object = parse_object(index, file)?;
    let fields = Fields::new(file, &object);
    let Some(serde_json::Value::Object(map)) = fields.get("weight_map") else {
        return Err(fields.missing("weight_map", "an object from tensor names to file names"));
    };
    let mut out = BTreeMap::new();
    for (tensor, name) in map {
        let plain = |n: &&str| {
            !n.is_empty()
                && *n != "."
                && *n != ".."
                && !n.contains(['/', '\\', ':', '\0'])
                && n.ends_with(".safetensors")
        };
        let Some(name) = name.as_str().filter(plain) else {
            let want = "the plain name of a .safetensors file in the same folder";
            return Err(FormatError::key(
                file,
                format!("weight_map.{}", brief(tensor)),
                brief(&name.to_string()),
                want,
            ));
        };
        out.insert(tensor.clone(), name.to_owned());
    }
    Ok(out)
}

fn shard_names(map: &BTreeMap<String, String>) -> Vec<String> {
    map.values().collect::<BTreeSet<_>>().into_iter().cloned().collect()
}

/// Reads a `config.json` alone: the shape of a model without its weights. `name` is used where the file has none.
///
/// # Errors
/// [`FormatError`], naming `file`, the field and what was expected.
pub fn read_config(json: &[u8], file: &str, name: &str) -> Result<ModelConfig, FormatError> {
    let object = parse_object(json, file)?;
    let fields = Fields::new(file, &object);
    Scheme::read(&fields)?;
    config::read(&fields, name)
}

/// Opens a model from the content of a Hugging Face folder.
///
/// # Errors
/// [`FormatError`], naming the file and what to do.
pub fn open_parts(mut parts: HfParts) -> Result<ModelFiles, FormatError> {
    let config_file = label(&parts.name, "config.json");
    let object = parse_object(&parts.config_json, &config_file)?;
    let fields = Fields::new(&config_file, &object);
    let fallback = Path::new(&parts.name).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let config = config::read(&fields, &fallback)?;
    let mut files = Vec::with_capacity(parts.weights.len());
    for (name, bytes) in &parts.weights {
        files.push(SafetensorsFile::parse(bytes.clone(), &label(&parts.name, name))?);
    }
    if let Some(index) = &parts.index_json {
        let index_file = label(&parts.name, INDEX);
        check_index(&weight_map(index, &index_file)?, &parts, &files, &index_file)?;
    }
    let mut tensors = Tensors::new(&parts.name);
    let scheme = Scheme::read(&fields)?;
    let assembled = scheme.as_ref().map(|scheme| scheme.assemble(&files)).transpose()?;
    let (mut unused, mut used) = (Vec::new(), HashSet::new());
    if let Some(assembled) = assembled {
        for (tensor, file) in assembled.tensors {
            let role = role_of(&config, &tensor.name, &file, false)?;
            if role != Role::Unused {
                shape::add(&mut tensors, &config, role, tensor, &file)?;
            }
        }
        (unused, used) = (assembled.of_activations, assembled.used);
    }
    for file in &files {
        for info in &file.tensors {
            if used.contains(&info.name) {
                continue;
            }
            let role = role_of(&config, &info.name, file.name(), scheme.is_none())?;
            let tied_head = config.tied_embeddings && role == Role::Plain("output.weight".into());
            if role == Role::Unused || tied_head {
                unused.push(info.name.clone());
            } else {
                shape::add(&mut tensors, &config, role, file.tensor(info)?, file.name())?;
            }
        }
    }
    shape::check_norms(&tensors)?;
    let text = text(&mut parts)?;
    let source = Source {
        kind: SourceKind::Safetensors,
        name: parts.name.clone(),
        files: files.iter().map(|f| f.name().to_owned()).collect(),
        total_bytes: files.iter().map(|f| f.len() as u64).sum(),
        quantization: scheme.map(|scheme| scheme.name),
        metadata: object.iter().map(|(k, v)| (k.clone(), brief(&v.to_string()))).collect(),
        unused,
    };
    let TextFiles { tokenizer, chat_templates, generation } = text;
    Ok(ModelFiles { config, tensors, tokenizer, chat_templates, generation, source })
}

/// What a tensor is. Where nothing says that the folder is quantized, a name that tells of it is explained.
fn role_of(config: &ModelConfig, name: &str, file: &str, is_plain: bool) -> Result<Role, FormatError> {
    const CODES: [&str; 7] = [".qweight", ".qzeros", ".scales", ".weight_packed", ".SCB", "_scale", "_scale_inv"];
    if let Some(role) = hf_role(config.arch, config.n_layers, name) {
        return Ok(role);
    }
    let mut want = format!("a tensor of the architecture `{}`", config.arch.hf_name());
    if is_plain && (CODES.iter().any(|end| name.ends_with(end)) || name.contains(".quant_state.")) {
        want = "config.json to have a quantization_config, as this tensor is part of a quantized one".into();
    }
    Err(FormatError::tensor(file, brief(name), "an unknown tensor", want))
}

fn check_index(
    map: &BTreeMap<String, String>,
    parts: &HfParts,
    files: &[SafetensorsFile],
    index_file: &str,
) -> Result<(), FormatError> {
    let mut found = 0usize;
    for ((name, _), file) in parts.weights.iter().zip(files) {
        for info in &file.tensors {
            match map.get(&info.name) {
                Some(shard) if shard == name => found += 1,
                other => {
                    let got = other.map_or("no entry".into(), |o| format!("`{}`", brief(o)));
                    let want = format!("`{}`, where the tensor is", brief(name));
                    return Err(FormatError::key(index_file, format!("weight_map.{}", brief(&info.name)), got, want));
                }
            }
        }
    }
    if found == map.len() {
        return Ok(());
    }
    let there: BTreeSet<&str> = files.iter().flat_map(|f| f.tensors.iter().map(|t| t.name.as_str())).collect();
    let lost = map.keys().find(|t| !there.contains(t.as_str())).map_or_else(String::new, |t| brief(t));
    Err(FormatError::key(index_file, format!("weight_map.{lost}"), "a tensor that no shard has", "complete shards"))
}

fn text(parts: &mut HfParts) -> Result<TextFiles, FormatError> {
    let config_file = label(&parts.name, "config.json");
    let object = parse_object(&parts.config_json, &config_file)?;
    let generation_file = label(&parts.name, "generation_config.json");
    let own = parts.generation_config_json.as_deref().map(|b| parse_object(b, &generation_file)).transpose()?;
    let own = own.as_ref().map(|map| Fields::new(&generation_file, map));
    let generation = generation::read(&Fields::new(&config_file, &object), own.as_ref())?;
    let chat_templates = chat_templates(parts)?;
    let tokenizer = match parts.tokenizer_json.take() {
        None => TokenizerFiles::Missing,
        Some(tokenizer_json) => {
            TokenizerFiles::Hf { tokenizer_json, tokenizer_config_json: parts.tokenizer_config_json.take() }
        }
    };
    Ok(TextFiles { tokenizer, chat_templates, generation })
}

/// `chat_template.jinja` wins over `tokenizer_config.json`, as in transformers.
fn chat_templates(parts: &HfParts) -> Result<Option<serde_json::Value>, FormatError> {
    if let Some(jinja) = &parts.chat_template_jinja {
        return match std::str::from_utf8(jinja) {
            Ok(text) => Ok(Some(text.into())),
            Err(e) => {
                let file = label(&parts.name, "chat_template.jinja");
                let got = format!("invalid UTF-8 at byte {}", e.valid_up_to());
                Err(FormatError::malformed(&file, "template", got, "UTF-8 text"))
            }
        };
    }
    let Some(bytes) = &parts.tokenizer_config_json else { return Ok(None) };
    let file = label(&parts.name, "tokenizer_config.json");
    let object = parse_object(bytes, &file)?;
    let fields = Fields::new(&file, &object);
    match fields.get("chat_template") {
        None => Ok(None),
        Some(t) if t.is_string() || t.is_array() => Ok(Some(t.clone())),
        Some(other) => Err(fields.wrong("chat_template", other, "a string or a list of {name, template}")),
    }
}

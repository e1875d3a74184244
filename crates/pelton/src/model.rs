//! From a model's name to its files.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use pelton_formats::{GenerationDefaults, ModelFiles, TextFiles, TokenizerFiles};
use pelton_store::{ModelSpec, Store};
use pelton_text::{ChatTemplate, GgufVocab, TemplateTokens, Tokenizer};

use crate::{DEFAULT_NAME, DRAFT_NAME, Error, embedded};

/// What a caller may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelRef {
    /// The default model in the binary.
    Embedded,
    /// The draft in the binary.
    EmbeddedDraft,
    /// A `.gguf` file, a folder of safetensors, or a folder with one GGUF model.
    Path(PathBuf),
    /// `ORG/NAME[:QUANT]` on the hub.
    Hub(ModelSpec),
}

impl ModelRef {
    /// Reads a name: nothing is the embedded model, an existing path is that path, `ORG/NAME` is the hub's.
    ///
    /// # Errors
    /// [`Error::Usage`] for a name that is neither, with what would be.
    pub fn parse(name: Option<&str>) -> Result<ModelRef, Error> {
        let Some(name) = name else { return Ok(ModelRef::Embedded) };
        if name == DEFAULT_NAME {
            return Ok(ModelRef::Embedded);
        }
        if name == DRAFT_NAME {
            return Ok(ModelRef::EmbeddedDraft);
        }
        let path = Path::new(name);
        if path.exists() {
            return Ok(ModelRef::Path(path.into()));
        }
        let looks_like_path = name.starts_with(['/', '.', '~']) || name.ends_with(".gguf");
        match ModelSpec::from_str(name) {
            Ok(spec) if !looks_like_path => Ok(ModelRef::Hub(spec)),
            _ => Err(Error::Usage(format!(
                "no model `{name}`: no such file or folder, and not a hub name of the form ORG/NAME[:QUANT]; \
                 leave -m out for the embedded model"
            ))),
        }
    }
}

/// A model's files, opened: no weights packed yet.
pub struct Model {
    /// The files.
    pub files: ModelFiles,
    /// The name for people.
    pub name: String,
    /// The tokenizer; some files come without one.
    pub tokenizer: Option<Arc<Tokenizer>>,
}

impl Model {
    /// Opens a model. Hub models must be in the store: `pelton pull` brings them.
    ///
    /// # Errors
    /// [`Error`] names the file and what to do.
    pub fn open(model: &ModelRef, store: Option<&Store>) -> Result<Model, Error> {
        let files = match model {
            ModelRef::Embedded => pelton_formats::open_bytes(embedded::DEFAULT, DEFAULT_NAME)?,
            ModelRef::EmbeddedDraft => pelton_formats::open_bytes(embedded::DRAFT, DRAFT_NAME)?,
            ModelRef::Path(path) => pelton_formats::open(path)?,
            ModelRef::Hub(spec) => pelton_formats::open(&locate(spec, store)?)?,
        };
        let name = match model {
            ModelRef::Embedded => DEFAULT_NAME.to_string(),
            ModelRef::EmbeddedDraft => DRAFT_NAME.to_string(),
            ModelRef::Path(path) => short_name(path),
            ModelRef::Hub(spec) => spec.to_string(),
        };
        let tokenizer = build_tokenizer(&files.tokenizer).map_err(Error::text(&name))?.map(Arc::new);
        Ok(Model { files, name, tokenizer })
    }

    /// Opens only what deals with text: works for vocabulary-only files too.
    ///
    /// # Errors
    /// [`Error`] names the file; a model without a tokenizer is an error here.
    pub fn open_text(model: &ModelRef, store: Option<&Store>) -> Result<ModelText, Error> {
        let path = match model {
            ModelRef::Path(path) => path.clone(),
            ModelRef::Hub(spec) => locate(spec, store)?,
            ModelRef::Embedded | ModelRef::EmbeddedDraft => {
                let model = Model::open(model, store)?;
                let tokenizer = model.tokenizer.ok_or_else(|| no_tokenizer(&model.name))?;
                let (templates, generation) = (model.files.chat_templates, model.files.generation);
                return Ok(ModelText { name: model.name, tokenizer, templates, generation });
            }
        };
        let TextFiles { tokenizer, chat_templates, generation } = pelton_formats::open_tokenizer(&path)?;
        let name = short_name(&path);
        let tokenizer = build_tokenizer(&tokenizer).map_err(Error::text(&name))?.ok_or_else(|| no_tokenizer(&name))?;
        Ok(ModelText { name, tokenizer: Arc::new(tokenizer), templates: chat_templates, generation })
    }

    /// The text side of an opened model.
    ///
    /// # Errors
    /// Where the model has no tokenizer.
    pub fn text(&self) -> Result<ModelText, Error> {
        let tokenizer = self.tokenizer.clone().ok_or_else(|| no_tokenizer(&self.name))?;
        let (templates, generation) = (self.files.chat_templates.clone(), self.files.generation.clone());
        Ok(ModelText { name: self.name.clone(), tokenizer, templates, generation })
    }

    /// Parameters of all tensors.
    pub fn parameters(&self) -> usize {
        self.files.tensors.iter().map(|t| t.elements()).sum()
    }
}

/// A model's tokenizer, templates and defaults.
pub struct ModelText {
    /// The name for people.
    pub name: String,
    /// The tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// As the files have them.
    pub templates: Option<serde_json::Value>,
    /// Sampling defaults and end-of-text ids.
    pub generation: GenerationDefaults,
}

impl ModelText {
    /// The chat template, the one for tools where there is one and `with_tools` asks for it. `None` where the model
    /// has none.
    ///
    /// # Errors
    /// Where the template does not parse.
    pub fn template(&self, with_tools: bool) -> Result<Option<ChatTemplate>, Error> {
        let Some(source) = self.template_source(with_tools) else { return Ok(None) };
        let tokens = TemplateTokens::of(&self.tokenizer);
        ChatTemplate::new(&source, tokens).map(Some).map_err(Error::text(&self.name))
    }

    /// The source of [`ModelText::template`].
    pub fn template_source(&self, with_tools: bool) -> Option<String> {
        self.templates.as_ref().and_then(|t| ChatTemplate::pick(t, with_tools))
    }

    /// Ids that end an answer: the files' list and the tokenizer's own.
    pub fn eos_ids(&self) -> Vec<u32> {
        let mut ids = self.generation.eos.clone();
        ids.extend(self.tokenizer.eos());
        // Ends of a turn that files often leave out of their list.
        let turn_ends = ["<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>"];
        let known = turn_ends.iter().filter_map(|t| self.tokenizer.id_of(t));
        ids.extend(known.filter(|&id| self.tokenizer.is_special(id)));
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

fn short_name(path: &Path) -> String {
    let name = path.file_stem().filter(|_| path.extension().is_some_and(|e| e == "gguf"));
    let name = name.or(path.file_name()).unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

fn no_tokenizer(name: &str) -> Error {
    Error::Failure(format!("{name}: the model has no tokenizer; put its tokenizer.json beside the weights"))
}

fn locate(spec: &ModelSpec, store: Option<&Store>) -> Result<PathBuf, Error> {
    let store = store.ok_or_else(|| Error::Usage(format!("{spec}: no model store is configured")))?;
    store
        .locate(spec)
        .ok_or_else(|| Error::Failure(format!("{spec} is not in the model store; run `pelton pull {spec}` first")))
}

fn build_tokenizer(files: &TokenizerFiles) -> Result<Option<Tokenizer>, pelton_text::TextError> {
    match files {
        TokenizerFiles::Missing => Ok(None),
        TokenizerFiles::Hf { tokenizer_json, tokenizer_config_json } => {
            Tokenizer::from_hf(tokenizer_json, tokenizer_config_json.as_deref()).map(Some)
        }
        TokenizerFiles::Gguf(g) => Tokenizer::from_gguf(GgufVocab {
            model: g.model.clone(),
            pre: g.pre.clone(),
            tokens: g.tokens.clone(),
            scores: g.scores.clone().unwrap_or_default(),
            token_types: g.token_types.clone().unwrap_or_default(),
            merges: g.merges.clone().unwrap_or_default(),
            bos: g.bos,
            eos: g.eos,
            pad: g.pad,
            unk: g.unk,
            add_bos: g.add_bos,
            add_eos: g.add_eos,
            add_space_prefix: g.add_space_prefix,
        })
        .map(Some),
    }
}

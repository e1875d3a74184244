//! Which drafters a model gets: n-grams, and a smaller model where one is named or found.
//!
//! Invariants: speculation changes no bit of any answer; a draft that was asked for by name is used or refused with the
//! reason, one that was merely found never costs the model context or sequences.

use std::sync::Arc;

use pelton_backend::Backend;
use pelton_engine::{Engine, MAX_DRAFT, Ngrams, Recall, SpeculationOptions, check_vocabularies};
use pelton_model::{Decoder, Workspace};
use pelton_store::Store;

use crate::{DEFAULT_NAME, Error, Model, ModelRef, Options};

/// Who proposes the next tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Draft {
    /// Nobody.
    Off,
    /// What followed the last few tokens before, in this text or in earlier answers. The default, since it costs next to
    /// nothing. A draft model pays where its pass takes a small part of its target's step; the embedded pair's does not.
    #[default]
    Ngram,
    /// A draft model where one is found (the embedded one for the embedded default; in [`Speculation::store`] the
    /// smallest of the same family and tokenizer), and the text so far.
    Auto,
    /// This model, and the text so far. It must have the same vocabulary.
    Model(ModelRef),
}

/// How a model is run ahead of itself. Answers are the same bit for bit, whatever is chosen here.
#[derive(Clone, Debug)]
pub struct Speculation {
    /// Who proposes.
    pub draft: Draft,
    /// Most drafts behind one token, at most [`MAX_DRAFT`]; 0 is off.
    pub max_draft: usize,
    /// Exactly so many drafts in every step, whatever they bring, for tests and benchmarks; `None` lets the controller
    /// choose, which never spends more than it has saved.
    pub forced: Option<usize>,
    /// Where a draft is looked for.
    pub store: Option<Arc<Store>>,
}

impl Default for Speculation {
    fn default() -> Speculation {
        Speculation { draft: Draft::Ngram, max_draft: MAX_DRAFT, forced: None, store: None }
    }
}

impl Speculation {
    /// None at all.
    pub fn off() -> Speculation {
        Speculation { draft: Draft::Off, ..Speculation::default() }
    }

    /// Whether anybody proposes anything.
    pub fn is_on(&self) -> bool {
        self.draft != Draft::Off && self.max_draft > 0
    }

    /// Steps of plain decoding that may be lost before anything is known: where somebody chose the draft, or it was
    /// measured beforehand, more than where it was merely found.
    fn trust(&self, target: &Model) -> f64 {
        match &self.draft {
            Draft::Model(_) => 2.0,
            Draft::Auto if target.name == DEFAULT_NAME => 2.0,
            _ => SpeculationOptions::default().trust,
        }
    }
}

/// A draft model's files, before it is loaded.
pub(crate) struct Found {
    pub(crate) model: Model,
    /// It was named; else it was looked for.
    pub(crate) asked_for: bool,
}

/// The draft model for `target`, where the options want one and there is one.
pub(crate) fn find(target: &Model, speculation: &Speculation) -> Result<Option<Found>, Error> {
    if !speculation.is_on() {
        return Ok(None);
    }
    let store = speculation.store.as_deref();
    match &speculation.draft {
        Draft::Off | Draft::Ngram => Ok(None),
        Draft::Model(name) => {
            let model = Model::open(name, store)?;
            fits(&model, target)
                .map_err(|e| Error::Usage(format!("{} cannot draft for {}: {e}", model.name, target.name)))?;
            Ok(Some(Found { model, asked_for: true }))
        }
        Draft::Auto if target.name == DEFAULT_NAME => {
            let model = Model::open(&ModelRef::EmbeddedDraft, None)?;
            Ok(fits(&model, target).is_ok().then_some(Found { model, asked_for: false }))
        }
        Draft::Auto => Ok(store.and_then(|store| smallest(target, store))),
    }
}

fn fits(draft: &Model, target: &Model) -> Result<(), pelton_engine::VocabularyMismatch> {
    let sizes = (draft.files.config.vocab_size, target.files.config.vocab_size);
    check_vocabularies(draft.tokenizer.as_deref(), target.tokenizer.as_deref(), sizes)
}

/// A draft is worth looking at where it has at most this part of the target's parameters.
const MOST_SHARE: usize = 4;

/// The smallest model of the store that can draft for `target`.
fn smallest(target: &Model, store: &Store) -> Option<Found> {
    let (parameters, config) = (target.parameters(), &target.files.config);
    // Files that cannot be read are the affair of whoever names them.
    let mut stored = store.list().unwrap_or_default();
    stored.sort_by_key(|stored| stored.bytes);
    stored.retain(|stored| stored.bytes < target.files.source.total_bytes);
    for path in stored.into_iter().map(|stored| stored.path) {
        // Before its vocabulary is read, which takes longest.
        let Ok(files) = pelton_formats::open(&path) else { continue };
        let same_family =
            files.config.arch == config.arch && files.config.vocab_size.abs_diff(config.vocab_size) < 1024;
        if !same_family {
            continue;
        }
        let Ok(model) = Model::open(&ModelRef::Path(path), None) else { continue };
        if model.parameters().saturating_mul(MOST_SHARE) <= parameters && fits(&model, target).is_ok() {
            return Some(Found { model, asked_for: false });
        }
    }
    None
}

/// Gives an engine its drafters: n-grams first, what earlier answers said, and the draft model, which was loaded on the engine's backend.
pub(crate) fn install<B>(
    engine: &mut Engine<B>,
    draft: Option<(Model, Decoder<B>)>,
    target: &Model,
    options: &Options,
) -> Result<(), Error>
where
    B: Backend + 'static,
    Decoder<B>: Send,
    Workspace<B>: Send,
    B::Kv: Send,
{
    let speculation = &options.speculation;
    if !speculation.is_on() {
        return Ok(());
    }
    let defaults = SpeculationOptions::default();
    let (max_draft, forced) = (speculation.max_draft.min(MAX_DRAFT), speculation.forced);
    engine.speculate(SpeculationOptions { max_draft, forced, trust: speculation.trust(target), ..defaults });
    engine.add_drafter(Box::new(Ngrams::new()));
    engine.add_drafter(Box::new(Recall::new()));
    if let Some((files, decoder)) = draft {
        let context = files.files.config.max_context.min(engine.limits().context);
        engine.add_draft_model(&files.name, decoder, context)?;
    }
    Ok(())
}

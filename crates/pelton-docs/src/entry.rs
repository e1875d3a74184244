//! An entry: an item with its documentation, ready to be written out.
//!
//! Invariant: an entry without text carries [`Flag::NoAnswer`] or [`Flag::Failed`].

use serde::Serialize;

use crate::item::Item;
use crate::writer::Author;

/// Where a text comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The model wrote it.
    Model,
    /// It stood in the source.
    Existing,
}

/// What a reader should know of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Flag {
    /// The code did not fit the context: the model saw its start and end.
    TruncatedCode,
    /// The model fell into a loop, which was cut.
    RepetitionCut,
    /// The reply reached the token limit.
    TruncatedReply,
    /// The reply was longer than an entry may be.
    LongCut,
    /// The reply held no text.
    NoAnswer,
    /// The request failed.
    Failed,
}

impl Flag {
    /// The flag in words.
    pub fn words(self) -> &'static str {
        match self {
            Self::TruncatedCode => "code cut to fit the context",
            Self::RepetitionCut => "repetition cut",
            Self::TruncatedReply => "answer cut at the token limit",
            Self::LongCut => "long answer cut",
            Self::NoAnswer => "no answer",
            Self::Failed => "failed",
        }
    }
}

/// An item's documentation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry<'a> {
    pub(crate) item: &'a Item,
    pub(crate) doc: Option<String>,
    pub(crate) source: Source,
    pub(crate) flags: Vec<Flag>,
    pub(crate) error: Option<String>,
    pub(crate) prompt_tokens: usize,
    pub(crate) cached_tokens: usize,
    pub(crate) tokens: usize,
    pub(crate) author: Option<Author>,
}

impl<'a> Entry<'a> {
    /// The item with the doc comment that it has.
    pub(crate) fn existing(item: &'a Item) -> Self {
        Self {
            item,
            doc: item.doc.as_ref().map(|doc| doc.text.clone()),
            source: Source::Existing,
            flags: Vec::new(),
            error: None,
            prompt_tokens: 0,
            cached_tokens: 0,
            tokens: 0,
            author: None,
        }
    }

    /// An entry that the model could not write.
    pub(crate) fn failed(item: &'a Item, error: String, mut flags: Vec<Flag>) -> Self {
        flags.push(Flag::Failed);
        Self { doc: None, source: Source::Model, flags, error: Some(error), ..Self::existing(item) }
    }
}

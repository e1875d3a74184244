//! Cutting text at the tokens that are recognised as they read. Invariant: the fragments, put
//! together, are the text, and matches are leftmost, then longest.

use aho_corasick::{AhoCorasick, MatchKind};

use super::vocab::{Kind, Vocab};
use crate::TextError;

/// A part of a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fragment<'t> {
    /// Ordinary text; never empty.
    Text(&'t str),
    /// A token found in the text.
    Token(u32),
}

/// Finds tokens of some kinds in text.
#[derive(Debug)]
pub(super) struct Partition {
    ids: Vec<u32>,
    /// `None` where there is nothing to find.
    finder: Option<AhoCorasick>,
}

impl Partition {
    /// A finder for the tokens whose kind `wanted` accepts.
    pub(super) fn new(vocab: &Vocab, wanted: impl Fn(Kind) -> bool) -> Result<Self, TextError> {
        let (ids, texts): (Vec<u32>, Vec<&str>) = vocab.of_kind(wanted).filter(|(_, text)| !text.is_empty()).unzip();
        let finder = if ids.is_empty() {
            None
        } else {
            let built = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&texts);
            Some(built.map_err(|error| TextError::vocab("special tokens", error.to_string()))?)
        };
        Ok(Self { ids, finder })
    }

    /// The fragments of `text` in order.
    pub(super) fn split<'t>(&self, text: &'t str) -> Vec<Fragment<'t>> {
        let mut fragments = Vec::new();
        let mut from = 0;
        if let Some(finder) = &self.finder {
            for found in finder.find_iter(text) {
                push_text(&mut fragments, &text[from..found.start()]);
                fragments.push(Fragment::Token(self.ids[found.pattern().as_usize()]));
                from = found.end();
            }
        }
        push_text(&mut fragments, &text[from..]);
        fragments
    }

    /// `text` cut after the first character of every match, so that no piece contains a match.
    pub(super) fn break_up<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut pieces = Vec::new();
        let mut from = 0;
        let matches = self.finder.iter().flat_map(|finder| finder.find_iter(text));
        for found in matches {
            let first = text[found.start()..].chars().next();
            let cut = found.start() + first.map_or(0, char::len_utf8);
            pieces.push(&text[from..cut]);
            from = cut;
        }
        pieces.push(&text[from..]);
        pieces
    }
}

fn push_text<'t>(fragments: &mut Vec<Fragment<'t>>, text: &'t str) {
    if !text.is_empty() {
        fragments.push(Fragment::Text(text));
    }
}

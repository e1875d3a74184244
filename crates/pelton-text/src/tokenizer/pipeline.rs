//! The `tokenizers` crate as an engine: added tokens, normalizer, pre-tokenizer and model, without
//! its post-processor, padding and truncation. Invariant: the same text gives the same ids, with
//! special tokens recognised only where asked.

use tokenizers::{
    AddedVocabulary, Model, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Tokenizer as Library,
};

use super::Special;

/// A tokenizer of the library, with a second view of its added tokens.
#[derive(Debug)]
pub(super) struct Pipeline {
    library: Library,
    /// The added tokens with the special ones not recognised in text.
    as_text: AddedVocabulary,
}

impl Pipeline {
    pub(super) fn new(library: Library) -> Self {
        let mut as_text = library.get_added_vocabulary().clone();
        as_text.set_encode_special_tokens(true);
        Self { library, as_text }
    }

    /// Appends the ids of `text`. A text that the model cannot cut as a whole is cut character by
    /// character, and characters that the vocabulary cannot express are left out, as the library does
    /// for vocabularies without an unknown token.
    pub(super) fn encode(&self, text: &str, special: Special, out: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        let whole = out.len();
        if self.try_encode(text, special, out).is_ok() {
            return;
        }
        out.truncate(whole);
        let mut buffer = [0; 4];
        for ch in text.chars() {
            let kept = out.len();
            if self.try_encode(ch.encode_utf8(&mut buffer), special, out).is_err() {
                out.truncate(kept);
            }
        }
    }

    fn try_encode(&self, text: &str, special: Special, out: &mut Vec<u32>) -> Result<(), tokenizers::Error> {
        let added = match special {
            Special::Parse => self.library.get_added_vocabulary(),
            Special::AsText => &self.as_text,
        };
        let mut pieces: PreTokenizedString = added.extract_and_normalize(self.library.get_normalizer(), text);
        if let Some(pre) = self.library.get_pre_tokenizer() {
            pre.pre_tokenize(&mut pieces)?;
        }
        let model = self.library.get_model();
        pieces.tokenize(|piece| model.tokenize(piece.get()))?;
        for (_, _, tokens) in pieces.get_splits(OffsetReferential::Normalized, OffsetType::None) {
            out.extend(tokens.iter().flatten().map(|token| token.id));
        }
        Ok(())
    }
}

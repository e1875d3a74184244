//! Tokenizers of all kinds behind one interface. Invariant: [`Tokenizer::encode`] adds nothing to the
//! text (no BOS, no EOS), and with [`Special::AsText`] no text becomes a control token.

mod byte_level;
mod gguf;
mod hf;
mod partition;
mod pipeline;
mod pre;
mod spm;
mod vocab;

use std::borrow::Cow;

use partition::{Fragment, Partition};
use pipeline::Pipeline;
use spm::Spm;
use vocab::{Kind, SPACE_MARK, Vocab};

pub use gguf::GgufVocab;
pub use pre::supported as supported_pre_tokenizers;

/// Whether control tokens written out in a text are recognised.
///
/// Tokens that a vocabulary defines as ordinary text (GGUF's *user-defined*, Hugging Face's added but
/// not special ones) are recognised either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// `<|im_end|>` becomes that token: for rendered chat templates.
    Parse,
    /// `<|im_end|>` stays text: for what people typed.
    AsText,
}

/// Text to token ids and back.
#[derive(Debug)]
pub struct Tokenizer {
    vocab: Vocab,
    engine: Engine,
    /// Finds control tokens, to keep them out where text must stay text.
    controls: Partition,
    marks: Marks,
    /// Whether a space stands before the first word, which decoding drops.
    space_prefix: bool,
}

/// The tokens around a text.
#[derive(Debug, Clone, Copy, Default)]
struct Marks {
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    unk: Option<u32>,
    add_bos: bool,
    add_eos: bool,
}

/// How raw text becomes ids.
#[derive(Debug)]
enum Engine {
    /// `tokenizer.json`: the library finds the added tokens itself.
    Whole(Box<Pipeline>),
    /// GGUF: we cut at the tokens, and the engine sees the text between them.
    Parts {
        raw: RawEngine,
        /// Control and user-defined tokens.
        all: Partition,
        /// User-defined tokens only.
        user: Partition,
    },
}

#[derive(Debug)]
enum RawEngine {
    Bpe(Box<Pipeline>),
    Spm(Spm),
}

impl Tokenizer {
    /// Reads a Hugging Face `tokenizer.json`, and `tokenizer_config.json` for the names of the
    /// special tokens.
    ///
    /// # Errors
    /// Where a file is not valid, or the model or decoder is of a kind that is not supported.
    pub fn from_hf(tokenizer_json: &[u8], tokenizer_config_json: Option<&[u8]>) -> Result<Self, crate::TextError> {
        hf::load(tokenizer_json, tokenizer_config_json)
    }

    /// Builds the tokenizer that a GGUF file's `tokenizer.ggml.*` metadata describes.
    ///
    /// # Errors
    /// Where lengths disagree, ids are out of range, a score is not a number, or the model or
    /// pre-tokenizer is not supported.
    pub fn from_gguf(vocab: GgufVocab) -> Result<Self, crate::TextError> {
        gguf::load(vocab)
    }

    /// The ids of `text`, without BOS and EOS. The empty text has none.
    pub fn encode(&self, text: &str, special: Special) -> Vec<u32> {
        let mut ids = Vec::new();
        match &self.engine {
            Engine::Whole(pipeline) => {
                pipeline.encode(text, special, &mut ids);
                if special == Special::AsText && ids.iter().any(|&id| self.is_control(id)) {
                    // The model itself makes control tokens from text: cut their names apart.
                    ids.clear();
                    for piece in self.controls.break_up(text) {
                        pipeline.encode(piece, special, &mut ids);
                    }
                    ids.retain(|&id| !self.is_control(id));
                }
            }
            Engine::Parts { raw, all, user } => {
                let found = match special {
                    Special::Parse => all,
                    Special::AsText => user,
                };
                // A fragment after a token, or at the start, begins with a word.
                let mut begins = true;
                for fragment in found.split(text) {
                    match fragment {
                        Fragment::Token(id) => ids.push(id),
                        Fragment::Text(part) => self.encode_raw(raw, part, begins, &mut ids),
                    }
                    begins = matches!(fragment, Fragment::Token(_));
                }
            }
        }
        ids
    }

    fn encode_raw(&self, raw: &RawEngine, text: &str, begins: bool, ids: &mut Vec<u32>) {
        match raw {
            RawEngine::Bpe(pipeline) => pipeline.encode(text, Special::AsText, ids),
            RawEngine::Spm(spm) => {
                let mut spelled = text.replace(' ', SPACE_MARK);
                if begins && self.space_prefix {
                    spelled.insert_str(0, SPACE_MARK);
                }
                spm.encode(&spelled, ids);
            }
        }
    }

    /// The text of `ids`. Bytes that are not UTF-8 become U+FFFD; ids outside of the vocabulary have
    /// no text. The space that SentencePiece puts before the first word is dropped.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut stream = crate::StreamDecoder::new(skip_special);
        let mut text: String = ids.iter().map(|&id| stream.push(self, id)).collect();
        text.push_str(&stream.finish());
        text
    }

    /// The bytes that a token stands for: byte-level spelling, `▁` and `<0xAB>` resolved; a control
    /// token's name. `None` for an id without a token.
    pub fn token_bytes(&self, id: u32) -> Option<Cow<'_, [u8]>> {
        self.vocab.bytes(id)
    }

    /// A token as the vocabulary spells it.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.vocab.text(id)
    }

    /// The id of a token, by the vocabulary's spelling.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.vocab.id_of(token)
    }

    /// Whether this is a control token (BOS, end of turn, unknown …) rather than text.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocab.kind(id) == Kind::Special
    }

    /// The number of ids: one more than the highest. Some may have no token.
    pub fn vocab_size(&self) -> usize {
        self.vocab.len()
    }

    /// All control tokens, by id.
    pub fn special_tokens(&self) -> Vec<(u32, &str)> {
        self.vocab.of_kind(|kind| kind == Kind::Special).collect()
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.marks.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.marks.eos
    }

    /// The token that fills batches.
    pub fn pad(&self) -> Option<u32> {
        self.marks.pad
    }

    /// The token for text that the vocabulary cannot express.
    pub fn unk(&self) -> Option<u32> {
        self.marks.unk
    }

    /// Whether the model expects BOS before a text; then [`Self::bos`] is there.
    pub fn add_bos(&self) -> bool {
        self.marks.add_bos
    }

    /// Whether the model expects EOS after a text; then [`Self::eos`] is there.
    pub fn add_eos(&self) -> bool {
        self.marks.add_eos
    }

    pub(crate) fn drops_leading_space(&self) -> bool {
        self.space_prefix
    }

    fn is_control(&self, id: u32) -> bool {
        self.is_special(id) && Some(id) != self.marks.unk
    }
}

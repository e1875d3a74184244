//! The table of tokens: text, kind and spelling. Invariant: `texts` and `kinds` have one entry per id,
//! and `ids` finds the first id of each text.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use ahash::RandomState;

use super::byte_level;

/// SentencePiece's mark for a space, U+2581.
pub(super) const SPACE_MARK: &str = "\u{2581}";

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A piece of text in the vocabulary's spelling.
    Normal,
    /// A control token: never made from text unless the caller asks for it.
    Special,
    /// A token that is always recognised in text and spelled as it reads.
    User,
    /// One byte, written `<0xAB>`.
    Byte(u8),
    /// An id that no token has.
    Hole,
}

/// How normal tokens spell their text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// GPT-2's printable bytes.
    ByteLevel,
    /// SentencePiece: plain text with `▁` for a space.
    Sentence,
}

/// All tokens by id and by text.
#[derive(Debug)]
pub(super) struct Vocab {
    texts: Vec<Arc<str>>,
    kinds: Vec<Kind>,
    ids: HashMap<Arc<str>, u32, RandomState>,
    spelling: Spelling,
}

impl Vocab {
    /// A table from one entry per id. Of equal texts the first keeps the name; holes and empty
    /// texts have none.
    pub(super) fn new(tokens: Vec<(String, Kind)>, spelling: Spelling) -> Self {
        let mut vocab = Self {
            texts: Vec::with_capacity(tokens.len()),
            kinds: Vec::with_capacity(tokens.len()),
            ids: HashMap::with_capacity_and_hasher(tokens.len(), RandomState::new()),
            spelling,
        };
        for ((text, kind), id) in tokens.into_iter().zip(0u32..) {
            let text: Arc<str> = text.into();
            if kind != Kind::Hole && !text.is_empty() {
                vocab.ids.entry(Arc::clone(&text)).or_insert(id);
            }
            vocab.texts.push(text);
            vocab.kinds.push(kind);
        }
        vocab
    }

    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    pub(super) fn id_of(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    pub(super) fn kind(&self, id: u32) -> Kind {
        let kind = usize::try_from(id).ok().and_then(|id| self.kinds.get(id));
        kind.copied().unwrap_or(Kind::Hole)
    }

    pub(super) fn text(&self, id: u32) -> Option<&str> {
        if self.kind(id) == Kind::Hole {
            return None;
        }
        self.texts.get(usize::try_from(id).ok()?).map(|text| &**text)
    }

    pub(super) fn bytes(&self, id: u32) -> Option<Cow<'_, [u8]>> {
        let text = self.text(id)?;
        let plain = Cow::Borrowed(text.as_bytes());
        Some(match (self.kind(id), self.spelling) {
            (Kind::Byte(byte), _) => Cow::Owned(vec![byte]),
            (Kind::Normal, Spelling::ByteLevel) => byte_level::bytes_of(text).map_or(plain, Cow::Owned),
            (Kind::Normal, Spelling::Sentence) if text.contains(SPACE_MARK) => {
                Cow::Owned(text.replace(SPACE_MARK, " ").into_bytes())
            }
            _ => plain,
        })
    }

    /// All tokens of a kind that `wanted` accepts: `(id, text)`, by id.
    pub(super) fn of_kind(&self, wanted: impl Fn(Kind) -> bool) -> impl Iterator<Item = (u32, &str)> {
        let tokens = (0u32..).zip(self.texts.iter().zip(&self.kinds));
        tokens.filter_map(move |(id, (text, kind))| wanted(*kind).then_some((id, &**text)))
    }
}

/// The byte of a byte token's text, `<0xAB>`.
pub(super) fn byte_token(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    hex.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

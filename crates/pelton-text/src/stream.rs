//! Token ids to text while they arrive. Invariant: what was emitted is valid UTF-8 that never has to
//! be taken back, and all pieces together are the text of all ids.

use crate::Tokenizer;

/// Decodes a sequence of token ids piece by piece.
///
/// A token may end in the middle of a character; its bytes are held back until the character is
/// complete. Bytes that can never become valid are replaced by U+FFFD, one for each maximal invalid
/// run as in the Unicode standard (section 3.9, "substitution of maximal subparts").
///
/// ```
/// # use pelton_text::{Special, StreamDecoder, Tokenizer};
/// # let tokenizer = Tokenizer::from_hf(include_bytes!("../tests/data/tokenizer.json"), None)?;
/// let mut stream = StreamDecoder::new(true);
/// let mut text = String::new();
/// for id in tokenizer.encode("naïve 🚀", Special::AsText) {
///     text += &stream.push(&tokenizer, id);
/// }
/// text += &stream.finish();
/// assert_eq!(text, "naïve 🚀");
/// # Ok::<(), pelton_text::TextError>(())
/// ```
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    skip_special: bool,
    /// Whether the next byte is the first of the text, where SentencePiece's leading space is dropped.
    at_start: bool,
    /// Bytes of an incomplete character: at most three.
    pending: Vec<u8>,
}

impl StreamDecoder {
    /// A decoder for a text of its own: the space that SentencePiece puts before the first word is
    /// dropped. With `skip_special`, special tokens have no text.
    pub fn new(skip_special: bool) -> Self {
        Self { skip_special, at_start: true, pending: Vec::new() }
    }

    /// A decoder for tokens that continue a text already shown: a leading space is kept.
    pub fn continuing(skip_special: bool) -> Self {
        Self { at_start: false, ..Self::new(skip_special) }
    }

    /// The text that `id` completes; empty while a character is incomplete. An id outside of the
    /// vocabulary has no text.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        if self.skip_special && tokenizer.is_special(id) {
            return String::new();
        }
        let Some(bytes) = tokenizer.token_bytes(id) else {
            return String::new();
        };
        let mut bytes = bytes.as_ref();
        if self.at_start && !bytes.is_empty() {
            self.at_start = false;
            if tokenizer.drops_leading_space() {
                bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            }
        }
        self.pending.extend_from_slice(bytes);
        self.take_complete()
    }

    /// The end of the text: an incomplete character becomes one U+FFFD. The decoder is then as new,
    /// for a text that continues.
    pub fn finish(&mut self) -> String {
        if self.pending.is_empty() {
            return String::new();
        }
        self.pending.clear();
        String::from(char::REPLACEMENT_CHARACTER)
    }

    fn take_complete(&mut self) -> String {
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(std::str::from_utf8(valid).expect("checked by valid_up_to"));
                    rest = after;
                    let Some(bad) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[bad..];
                }
            }
        }
        self.pending = rest.to_vec();
        text
    }
}

//! Hashes of content: SHA-256 for large files, git's SHA-1 of a blob for small ones.
//!
//! Git hashes the text `blob SIZE\0` before the content, so its size must be known first (Pro Git, "Git Objects").
//!
//! Invariant: [`ContentHash::parse`] accepts only names that are safe as a file name.

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// What the hub says about a file's content; its text is also the name of the blob.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ContentHash {
    /// 64 hexadecimal digits: the SHA-256 of the content.
    Sha256(String),
    /// 40 hexadecimal digits: git's object id of the content.
    Git(String),
}

impl ContentHash {
    /// Reads a hash by its length, in either case; quotes and the weak mark of an `ETag` are taken off.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim().trim_start_matches("W/").trim_matches('"').to_ascii_lowercase();
        let hexadecimal = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match (hexadecimal, text.len()) {
            (true, 64) => Some(Self::Sha256(text)),
            (true, 40) => Some(Self::Git(text)),
            _ => None,
        }
    }

    /// The digits, lower case.
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Sha256(text) | Self::Git(text) => text,
        }
    }

    /// A fresh hasher for content of `size` bytes.
    pub(crate) fn hasher(&self, size: u64) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Self::Git(_) => {
                let mut state = Sha1::new();
                state.update(format!("blob {size}\0").as_bytes());
                Hasher::Git(state)
            }
        }
    }
}

/// A hash in the making.
#[derive(Clone)]
pub(crate) enum Hasher {
    /// See [`ContentHash::Sha256`].
    Sha256(Sha256),
    /// See [`ContentHash::Git`].
    Git(Sha1),
}

impl Hasher {
    /// Takes in the next bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(state) => state.update(bytes),
            Self::Git(state) => state.update(bytes),
        }
    }

    /// The hash of all bytes taken in.
    pub(crate) fn finish(self) -> ContentHash {
        match self {
            Self::Sha256(state) => ContentHash::Sha256(hex(&state.finalize())),
            Self::Git(state) => ContentHash::Git(hex(&state.finalize())),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_hashes_agree_with_published_values() {
        // FIPS 180-2's example "abc", and the id that git gives the blob "hello\n".
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        for (text, content) in [(sha256, &b"abc"[..]), (git, b"hello\n")] {
            let hash = ContentHash::parse(text).unwrap();
            let mut hasher = hash.hasher(content.len() as u64);
            let (head, tail) = content.split_at(1);
            hasher.update(head);
            hasher.update(tail);
            assert_eq!(hasher.finish(), hash);
        }
    }

    #[test]
    fn only_plain_hashes_are_names() {
        assert_eq!(ContentHash::parse(&format!("W/\"{}\"", "A".repeat(40))), Some(ContentHash::Git("a".repeat(40))));
        for text in ["", "abc", "../../etc/passwd", &"g".repeat(64), &"a".repeat(41)] {
            assert_eq!(ContentHash::parse(text), None, "{text}");
        }
    }
}

//! GPT-2's printable spelling of bytes: each byte of a token is written as one character, bytes that
//! print as themselves and the others as the characters from U+0100 on. Invariant: the two
//! directions are inverse on all 256 bytes.
//!
//! Source: the GPT-2 release (`bytes_to_unicode`), as Hugging Face tokenizers use it ("ByteLevel").

/// Whether this byte is spelled as the character with its own number.
const fn prints_as_itself(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The byte that `ch` spells, if it spells one.
fn byte_of(ch: char) -> Option<u8> {
    let code = u32::from(ch);
    if let Ok(byte) = u8::try_from(code) {
        return prints_as_itself(byte).then_some(byte);
    }
    let rank = usize::try_from(code.checked_sub(0x100)?).ok()?;
    (0..=u8::MAX).filter(|&b| !prints_as_itself(b)).nth(rank)
}

/// The bytes that a token spells; `None` where it has a character outside of the alphabet.
pub(super) fn bytes_of(token: &str) -> Option<Vec<u8>> {
    token.chars().map(byte_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_spelling_of_its_own() {
        let spelled: Vec<(char, u8)> = ('\0'..='\u{143}').filter_map(|ch| Some((ch, byte_of(ch)?))).collect();
        let mut bytes: Vec<u8> = spelled.iter().map(|&(_, byte)| byte).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=u8::MAX).collect::<Vec<_>>());
        assert_eq!(byte_of('\u{144}'), None);
        // Known spellings from GPT-2's vocabulary.
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
        assert_eq!(bytes_of("Ã©"), Some("é".as_bytes().to_vec()));
        assert_eq!(bytes_of("a b"), None);
    }
}

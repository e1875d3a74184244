//! The streaming decoder and the stop strings against plain references.

use std::sync::LazyLock;

use pelton_text::{GgufVocab, Special, StopStrings, StreamDecoder, Tokenizer};
use proptest::prelude::*;

static BYTE_LEVEL: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::from_hf(include_bytes!("data/tokenizer.json"), None).unwrap());

/// Byte tokens 0 to 255, then "▁", "▁a", "b", and a control token.
static SENTENCE: LazyLock<Tokenizer> = LazyLock::new(|| {
    let mut tokens: Vec<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
    let mut token_types = vec![6; 256];
    tokens.extend(["▁", "▁a", "b", "</s>"].map(String::from));
    token_types.extend([1, 1, 1, 3]);
    let vocab = GgufVocab {
        model: "llama".into(),
        scores: vec![0.0; tokens.len()],
        tokens,
        token_types,
        ..GgufVocab::default()
    };
    Tokenizer::from_gguf(vocab).unwrap()
});

/// The text of ids by its definition: all bytes, without the first space where the vocabulary has one,
/// with U+FFFD for what is not UTF-8.
fn whole(tokenizer: &Tokenizer, ids: &[u32], leading_space: bool, skip_special: bool) -> String {
    let mut bytes = Vec::new();
    for &id in ids {
        if !(skip_special && tokenizer.is_special(id)) {
            bytes.extend_from_slice(&tokenizer.token_bytes(id).unwrap_or_default());
        }
    }
    if leading_space && bytes.first() == Some(&b' ') {
        bytes.remove(0);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32], mut stream: StreamDecoder) -> String {
    let mut text: String = ids.iter().map(|&id| stream.push(tokenizer, id)).collect();
    text.push_str(&stream.finish());
    assert_eq!(stream.finish(), "");
    text
}

#[test]
fn a_character_appears_when_it_is_complete() {
    let tokenizer = &*SENTENCE;
    let mut stream = StreamDecoder::new(true);
    let pieces: Vec<String> = "é🚀".bytes().map(|b| stream.push(tokenizer, u32::from(b))).collect();
    assert_eq!(pieces, ["", "é", "", "", "", "🚀"]);
    // An impossible byte is replaced at once, an unfinished character at the end.
    assert_eq!(stream.push(tokenizer, 0xE2), "");
    assert_eq!(stream.push(tokenizer, 0x82), "");
    assert_eq!(stream.push(tokenizer, 0x41), "\u{FFFD}A");
    assert_eq!(stream.push(tokenizer, 0xFF), "\u{FFFD}");
    assert_eq!(stream.push(tokenizer, 0xF0), "");
    assert_eq!(stream.finish(), "\u{FFFD}");
}

#[test]
fn the_first_space_is_dropped_only_at_the_start_of_a_text() {
    let tokenizer = &*SENTENCE;
    assert_eq!(streamed(tokenizer, &[257, 257], StreamDecoder::new(true)), "a a");
    assert_eq!(streamed(tokenizer, &[259, 257], StreamDecoder::new(true)), "a");
    assert_eq!(streamed(tokenizer, &[259, 257], StreamDecoder::new(false)), "</s> a");
    assert_eq!(streamed(tokenizer, &[257], StreamDecoder::continuing(true)), " a");
    // "▁" alone is that space.
    assert_eq!(streamed(tokenizer, &[256, 257], StreamDecoder::new(true)), " a");
    // Byte-level vocabularies have no such space.
    let space = BYTE_LEVEL.encode(" a", Special::AsText);
    assert_eq!(BYTE_LEVEL.decode(&space, false), " a");
}

/// What stop strings mean, looked at with the whole text in hand.
fn naive_stop(text: &str, stops: &[String]) -> (String, Option<usize>) {
    for end in (1..=text.len()).filter(|&end| text.is_char_boundary(end)) {
        let mut best: Option<usize> = None;
        for (index, stop) in stops.iter().enumerate() {
            let longer = best.is_none_or(|best| stop.len() > stops[best].len());
            if !stop.is_empty() && text[..end].ends_with(stop.as_str()) && longer {
                best = Some(index);
            }
        }
        if let Some(best) = best {
            return (text[..end - stops[best].len()].to_owned(), Some(best));
        }
    }
    (text.to_owned(), None)
}

#[test]
fn stop_strings_by_hand() {
    let mut stops = StopStrings::new(vec![String::new(), "END".into(), "é!".into()]);
    assert_eq!(stops.push("the E").emit, "the ");
    assert_eq!(stops.push("N").emit, "");
    assert_eq!(stops.push("x é").emit, "ENx ");
    let end = stops.push("! never");
    assert_eq!((end.emit.as_str(), end.stopped), ("", Some(2)));
    let after = stops.push("more");
    assert_eq!((after.emit.as_str(), after.stopped), ("", Some(2)));
    assert_eq!(stops.finish(), "");

    let mut unfinished = StopStrings::new(vec!["END".into()]);
    assert_eq!(unfinished.push("xEN").emit, "x");
    assert_eq!(unfinished.finish(), "EN");
}

proptest! {
    #[test]
    fn pieces_together_are_the_text(
        ids in proptest::collection::vec(0u32..262, 0..24),
        skip_special in any::<bool>(),
    ) {
        let tokenizer = &*SENTENCE;
        let text = whole(tokenizer, &ids, true, skip_special);
        prop_assert_eq!(&streamed(tokenizer, &ids, StreamDecoder::new(skip_special)), &text);
        prop_assert_eq!(&tokenizer.decode(&ids, skip_special), &text);
        let continued = whole(tokenizer, &ids, false, skip_special);
        prop_assert_eq!(&streamed(tokenizer, &ids, StreamDecoder::continuing(skip_special)), &continued);
    }

    #[test]
    fn byte_level_pieces_together_are_the_text(ids in proptest::collection::vec(0u32..8200, 0..24)) {
        let text = whole(&BYTE_LEVEL, &ids, false, false);
        prop_assert_eq!(&streamed(&BYTE_LEVEL, &ids, StreamDecoder::new(false)), &text);
    }

    #[test]
    fn valid_text_is_never_shown_broken(text in any::<String>()) {
        // The bytes of valid text, one at a time: every prefix shown is a prefix of the text.
        let tokenizer = &*SENTENCE;
        let mut stream = StreamDecoder::continuing(true);
        let mut shown = String::new();
        for byte in text.bytes() {
            shown.push_str(&stream.push(tokenizer, u32::from(byte)));
            prop_assert!(text.starts_with(&shown));
        }
        prop_assert_eq!(&shown, &text);
        prop_assert_eq!(stream.finish(), "");
    }

    #[test]
    fn stop_strings_as_with_the_whole_text(
        pieces in proptest::collection::vec("[abé]{0,4}", 0..10),
        stops in proptest::collection::vec("[abé]{0,4}", 0..4),
    ) {
        let text = pieces.concat();
        let (expected, expected_stop) = naive_stop(&text, &stops);
        let mut matcher = StopStrings::new(stops.clone());
        let (mut shown, mut stopped, mut given) = (String::new(), None, String::new());
        for piece in &pieces {
            let outcome = matcher.push(piece);
            given.push_str(piece);
            shown.push_str(&outcome.emit);
            stopped = outcome.stopped;
            prop_assert!(expected.starts_with(&shown), "{shown:?} goes past {expected:?}");
            if stopped.is_none() {
                // What is held back is no more than the longest beginning of a stop string.
                let held = &given[shown.len()..];
                prop_assert!(held.is_empty() || stops.iter().any(|stop| stop.starts_with(held)));
            }
        }
        shown.push_str(&matcher.finish());
        prop_assert_eq!(shown, expected);
        prop_assert_eq!(stopped, expected_stop);
    }
}

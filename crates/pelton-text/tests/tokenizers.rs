//! Tokenizers against goldens that lie in the repository: the embedded model's `tokenizer.json` against
//! Hugging Face tokenizers, the same vocabulary as GGUF, and a small SentencePiece vocabulary.

mod support;

use pelton_text::{GgufVocab, Special, Tokenizer};
use proptest::prelude::*;
use serde_json::Value as Json;
use std::sync::LazyLock;

const TOKENIZER: &[u8] = include_bytes!("data/tokenizer.json");
const CONFIG: &[u8] = include_bytes!("data/tokenizer_config.json");

static BYTE_LEVEL: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::from_hf(TOKENIZER, Some(CONFIG)).unwrap());
static AS_GGUF: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::from_gguf(embedded_as_gguf()).unwrap());
static SENTENCE: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::from_gguf(small_sentence().0).unwrap());

fn golden(name: &str) -> Json {
    let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn ids(value: &Json) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The embedded model's vocabulary in the form that a GGUF file would have.
fn embedded_as_gguf() -> GgufVocab {
    let file: Json = serde_json::from_slice(TOKENIZER).unwrap();
    let mut tokens = vec![String::new(); file["model"]["vocab"].as_object().unwrap().len()];
    for (token, id) in file["model"]["vocab"].as_object().unwrap() {
        tokens[usize::try_from(id.as_u64().unwrap()).unwrap()] = token.clone();
    }
    let mut token_types = vec![1; tokens.len()];
    for added in file["added_tokens"].as_array().unwrap() {
        token_types[usize::try_from(added["id"].as_u64().unwrap()).unwrap()] = 3;
    }
    let merges = file["model"]["merges"].as_array().unwrap();
    let merge = |pair: &Json| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
    GgufVocab {
        model: "gpt2".into(),
        pre: Some("qwen2".into()),
        tokens,
        token_types,
        merges: merges.iter().map(merge).collect(),
        eos: Some(2),
        ..GgufVocab::default()
    }
}

fn small_sentence() -> (GgufVocab, Vec<Json>) {
    let mut file = golden("small_sentence.json");
    let mut take = |key: &str| file["vocab"][key].take();
    let vocab = GgufVocab {
        model: "llama".into(),
        tokens: serde_json::from_value(take("tokens")).unwrap(),
        scores: serde_json::from_value(take("scores")).unwrap(),
        token_types: serde_json::from_value(take("types")).unwrap(),
        ..GgufVocab::default()
    };
    (vocab, file["cases"].as_array().unwrap().clone())
}

#[test]
fn embedded_tokenizer_equals_hugging_face() {
    let cases = golden("tokenizer_ids.json");
    for case in cases.as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let parsed = BYTE_LEVEL.encode(text, Special::Parse);
        assert_eq!(parsed, ids(&case["parse"]), "{text:?}");
        assert_eq!(BYTE_LEVEL.encode(text, Special::AsText), ids(&case["as_text"]), "{text:?}");
        assert_eq!(BYTE_LEVEL.decode(&parsed, false), case["decoded"], "{text:?}");
        assert_eq!(BYTE_LEVEL.decode(&parsed, true), case["decoded_without_special"], "{text:?}");
    }
    assert!(cases.as_array().unwrap().len() >= 50);
}

#[test]
fn the_same_vocabulary_as_gguf_gives_the_same_ids() {
    for case in golden("tokenizer_ids.json").as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        if text.contains('\u{301}') {
            continue; // tokenizer.json composes characters (NFC), which GGUF cannot say.
        }
        assert_eq!(AS_GGUF.encode(text, Special::Parse), ids(&case["parse"]), "{text:?}");
        assert_eq!(AS_GGUF.encode(text, Special::AsText), ids(&case["as_text"]), "{text:?}");
    }
}

#[test]
fn small_sentence_piece_vocabulary() {
    let (_, cases) = small_sentence();
    for case in &cases {
        let text = case["text"].as_str().unwrap();
        let encoded = SENTENCE.encode(text, Special::AsText);
        assert_eq!(encoded, ids(&case["ids"]), "{text:?}");
    }
    assert!(cases.len() >= 15);
}

#[test]
fn sentence_piece_in_tokenizer_json() {
    let golden = golden("small_hf.json");
    for (name, kind) in golden.as_object().unwrap() {
        let tokenizer = Tokenizer::from_hf(kind["tokenizer"].to_string().as_bytes(), None).unwrap();
        for case in kind["cases"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let parsed = tokenizer.encode(text, Special::Parse);
            assert_eq!(parsed, ids(&case["parse"]), "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&parsed, true), case["decoded"], "{name}: {text:?}");
            let as_text = tokenizer.encode(text, Special::AsText);
            assert!(as_text.iter().all(|&id| id == 0 || !tokenizer.is_special(id)), "{name}: {text:?}");
            // Where the library itself makes control tokens from text, we do not.
            if !ids(&case["as_text"]).iter().any(|&id| id == 1 || id == 2) {
                assert_eq!(as_text, ids(&case["as_text"]), "{name}: {text:?}");
            }
        }
    }
}

#[test]
fn marks_and_names() {
    let tokenizer = &*BYTE_LEVEL;
    assert_eq!(tokenizer.vocab_size(), 8192);
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.pad()), (None, Some(2), Some(0)));
    assert!(!tokenizer.add_bos() && !tokenizer.add_eos());
    assert_eq!(tokenizer.special_tokens().len(), 3);
    assert_eq!(tokenizer.id_of("<|im_end|>"), Some(2));
    assert_eq!(tokenizer.token_text(2), Some("<|im_end|>"));
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(300) && !tokenizer.is_special(u32::MAX));
    assert_eq!(tokenizer.token_bytes(tokenizer.id_of("Ġthe").unwrap()).unwrap(), &b" the"[..]);
    assert_eq!(tokenizer.token_bytes(8192), None);

    let sentence = &*SENTENCE;
    assert_eq!((sentence.unk(), sentence.bos(), sentence.eos()), (Some(0), Some(1), Some(2)));
    assert!(sentence.add_bos() && !sentence.add_eos());
    assert_eq!(sentence.token_bytes(3 + 0xAB).unwrap(), &[0xAB][..]);
    assert_eq!(sentence.token_bytes(sentence.id_of("▁the").unwrap()).unwrap(), &b" the"[..]);
}

#[test]
fn special_tokens_of_sentence_piece() {
    let tokenizer = &*SENTENCE;
    let the = tokenizer.id_of("▁the").unwrap();
    assert_eq!(tokenizer.encode("<s>the</s>", Special::Parse), [1, the, 2]);
    assert_eq!(tokenizer.decode(&[1, the, 2], true), "the");
    assert_eq!(tokenizer.decode(&[the, the], true), "the the");
}

#[test]
fn tokens_with_spaces_in_merges() {
    // A token that begins with a space: the separator is the first space after its first character.
    let vocab = GgufVocab {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        tokens: ["a", "b", "ab"].map(String::from).to_vec(),
        merges: vec!["a b".into()],
        ..GgufVocab::default()
    };
    let tokenizer = Tokenizer::from_gguf(vocab).unwrap();
    assert_eq!(tokenizer.encode("abba", Special::AsText), [2, 1, 0]);
    // No token spells a space, and there is no unknown token: it is left out.
    assert_eq!(tokenizer.encode("a b", Special::AsText), [0, 1]);
}

#[test]
fn a_long_run_of_spaces() {
    let text = " ".repeat(1 << 17) + "x";
    let encoded = AS_GGUF.encode(&text, Special::AsText);
    assert_eq!(AS_GGUF.decode(&encoded, false), text);
}

/// Text that is likely to look like special tokens, byte tokens and odd Unicode.
fn tricky() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        any::<String>(),
        "[ -~\n\t]{0,12}",
        "[<|>_/s▁ 0x4]{0,8}",
        Just("<|im_end|>".to_owned()),
        Just("<|im_start|>".to_owned()),
        Just("<s>".to_owned()),
        Just("<0x41>".to_owned()),
    ];
    proptest::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn byte_level_gives_the_text_back(text in tricky()) {
        let encoded = AS_GGUF.encode(&text, Special::AsText);
        prop_assert!(encoded.iter().all(|&id| !AS_GGUF.is_special(id)));
        prop_assert_eq!(&AS_GGUF.decode(&encoded, false), &text);
        let parsed = AS_GGUF.encode(&text, Special::Parse);
        prop_assert_eq!(&AS_GGUF.decode(&parsed, false), &text);
    }

    #[test]
    fn text_never_becomes_a_special_token(text in tricky()) {
        for tokenizer in [&*BYTE_LEVEL, &*SENTENCE] {
            let encoded = tokenizer.encode(&text, Special::AsText);
            prop_assert!(encoded.iter().all(|&id| !tokenizer.is_special(id)));
        }
    }

    #[test]
    fn sentence_piece_gives_the_text_back(text in tricky()) {
        // ▁ itself comes back as a space, and a user-defined token has no space put after it.
        let text = text.replace('▁', " ");
        let encoded = SENTENCE.encode(&text, Special::AsText);
        prop_assert_eq!(&SENTENCE.decode(&encoded, false), &text);
    }
}

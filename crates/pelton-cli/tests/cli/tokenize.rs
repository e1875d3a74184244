//! `pelton tokenize`: ids as JSON, special tokens on request, and back.

use crate::models::{draft, repository};
use crate::pelton::{Sandbox, arg};

const TEXT: &str = "fn naïve(x: &str) -> u8 { 世界 🚀 }\n\ttabs  and   spaces <|im_end|> not special";

fn ids(args: &[&str], text: &str) -> Vec<u32> {
    let outcome = Sandbox::new().pipe(&[&["tokenize"], args].concat(), text).ok();
    assert_eq!((outcome.stdout.lines().count(), outcome.stderr.as_str()), (1, ""));
    serde_json::from_str(&outcome.stdout).unwrap()
}

#[test]
fn text_goes_to_ids_and_back() {
    for text in [TEXT, "", " ", "\n\n", "a"] {
        let json = serde_json::to_string(&ids(&[], text)).unwrap();
        let back = Sandbox::new().pipe(&["tokenize", "--decode"], &json).ok();
        assert_eq!(back.stdout, text, "{json}");
    }
}

#[test]
fn special_tokens_are_parsed_only_where_asked() {
    let end = ids(&["--special"], "<|im_end|>");
    assert_eq!(end.len(), 1);
    assert!(ids(&["--special"], TEXT).contains(&end[0]));
    assert!(!ids(&[], TEXT).contains(&end[0]));
    let back = Sandbox::new().pipe(&["tokenize", "--decode"], serde_json::to_string(&end).unwrap()).ok();
    assert_eq!(back.stdout, "<|im_end|>");
    Sandbox::new().run(&["tokenize", "--decode", "--special"]).usage(&["--decode", "--special"]);
}

#[test]
fn a_file_and_the_embedded_model_have_the_same_ids() {
    assert_eq!(ids(&[arg(&draft())], TEXT), ids(&["pelton-draft"], TEXT));
}

#[test]
fn vocabulary_only_files_are_enough() {
    let vocab = repository().join("../shared/data/vocab");
    let file = vocab.join("ggml-vocab-qwen2.gguf");
    if !file.exists() {
        println!("skipped: the vocabulary files are not beside the repository");
        return;
    }
    let texts = std::fs::read_to_string(vocab.join("ggml-vocab-qwen2.gguf.inp")).unwrap();
    let expected = std::fs::read_to_string(vocab.join("ggml-vocab-qwen2.gguf.out")).unwrap();
    let texts = texts.split("\n__ggml_vocab_test__\n");
    for (text, line) in texts.zip(expected.lines()).skip(20).step_by(20) {
        let expected: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
        assert_eq!(ids(&[arg(&file)], text), expected, "{text:?}");
    }
}

#[test]
fn wrong_input_is_refused() {
    let decode = |text: &str| Sandbox::new().pipe(&["tokenize", "--decode"], text);
    decode("hello").usage(&["stdin", "array of token ids"]);
    decode("[1, -1]").usage(&["stdin", "array of token ids"]);
    decode("[1, 8192]").usage(&["8192", "vocabulary"]);
    Sandbox::new().pipe(&["tokenize"], b"a\xc3(").failure(&["stdin", "UTF-8", "byte 1"]);
    Sandbox::new().pipe(&["tokenize", "nosuch"], "a").usage(&["nosuch"]);
}

//! Real vocabularies: ids equal to the reference's on every text, and text given back. Reads the shared
//! data; without it, says so and does nothing.

mod support;

use pelton_text::{Special, Tokenizer};

/// A text and its reference ids.
type Case = (String, Vec<u32>);

/// The file of a vocabulary, and its texts. The texts are separated by a line of their own; the first and the last
/// newline of a block belong to the separator.
fn cases(name: &str) -> Option<(Vec<u8>, Vec<Case>)> {
    let file = support::shared(&format!("vocab/ggml-vocab-{name}.gguf"))?;
    let read = |extra: &str| std::fs::read_to_string(format!("{}{extra}", file.display())).unwrap();
    let (texts, ids) = (read(".inp"), read(".out"));
    let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
    let ids: Vec<Vec<u32>> =
        ids.lines().map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect()).collect();
    // The file may end with a separator, after which no text follows.
    assert!(texts.len() == ids.len() || texts.len() == ids.len() + 1);
    let cases = texts.iter().map(|text| (*text).to_owned()).zip(ids);
    Some((std::fs::read(&file).unwrap(), cases.collect()))
}

fn check(name: &str, mark: &str) {
    let Some((gguf, cases)) = cases(name) else {
        return;
    };
    let tokenizer = Tokenizer::from_gguf(support::gguf_vocab(&gguf)).unwrap();
    let mut matched = 0;
    for (text, expected) in &cases {
        let ids = tokenizer.encode(text, Special::AsText);
        if &ids == expected {
            matched += 1;
        } else {
            println!("{name}: {text:?}\n  is  {ids:?}\n  not {expected:?}");
        }
        assert_eq!(&tokenizer.encode(text, Special::Parse), &ids, "{text:?}");
        assert_eq!(&tokenizer.decode(&ids, false), text);
    }
    println!("{name}: {matched} of {} texts", cases.len());
    assert_eq!(matched, cases.len());
    assert_eq!(cases.len(), 46);
    check_control(&tokenizer, mark);
}

#[test]
fn gpt_2() {
    check("gpt-2", "<|endoftext|>");
}

#[test]
fn qwen2() {
    check("qwen2", "<|im_start|>");
}

#[test]
fn llama_spm() {
    check("llama-spm", "</s>");
}

/// A control token written out in a text is that token only where asked.
fn check_control(tokenizer: &Tokenizer, mark: &str) {
    let id = tokenizer.id_of(mark).unwrap();
    let text = format!("a{mark}b");
    let parsed = tokenizer.encode(&text, Special::Parse);
    assert!(parsed.contains(&id), "{mark}");
    assert_eq!(tokenizer.decode(&parsed, true).replace(' ', ""), "ab", "{mark}");
    let as_text = tokenizer.encode(&text, Special::AsText);
    assert!(as_text.iter().all(|&id| !tokenizer.is_special(id)), "{mark}");
    assert_eq!(tokenizer.decode(&as_text, true), text, "{mark}");
}

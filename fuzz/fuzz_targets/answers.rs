//! A model's answer. The first byte picks the notation and whether the model thinks, the second where the text is cut.
//!
//! Whole and cut, it must be taken apart into the same parts.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pelton_text::{AnswerParser, Part, Thinking, ToolFormat};

type Taken = (String, String, Vec<(String, String)>);

fn take(pieces: &[&str], thinking: Thinking, tools: Option<ToolFormat>) -> Taken {
    let mut parser = AnswerParser::new(thinking, tools, vec!["f".into()]);
    let mut parts = Vec::new();
    pieces.iter().for_each(|piece| parser.push(piece, &mut parts));
    parser.finish(&mut parts);
    let mut taken = Taken::default();
    for part in parts {
        match part {
            Part::Reasoning(text) => taken.0 += &text,
            Part::Content(text) => taken.1 += &text,
            Part::Call { name, .. } => taken.2.push((name, String::new())),
            Part::Arguments { index, json } => taken.2[index].1 += &json,
        }
    }
    taken
}

fuzz_target!(|data: &[u8]| {
    let [pick, cut, text @ ..] = data else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let thinking = [Thinking::Never, Thinking::Maybe, Thinking::Open][usize::from(pick % 3)];
    let tools = [None, Some(ToolFormat::Hermes), Some(ToolFormat::Llama), Some(ToolFormat::Mistral)][usize::from(pick / 3 % 4)];
    let mut at = usize::from(*cut).min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    assert_eq!(take(&[&text[..at], &text[at..]], thinking, tools), take(&[text], thinking, tools));
});

//! Questions, and vocabularies that differ.

use std::sync::Arc;

use pelton::{Llm, Logits, Model, Options, Special, Tokenizer};
use pelton_eval::{
    Fields, QaOptions, Stretches, Template, WindowOptions, multiple_choice, questions, read_records, same_vocabulary,
};

use crate::support::{cpu, embedded, log_softmax, near, open, scorer};

const QUESTIONS: &str = r#"
{"question": "What does fn new() return?", "choices": ["a new value", "nothing at all"], "answer": 0}
{"context": "fn add(a: i32, b: i32) -> i32 { a + b }", "question": "What is it?", "choices": ["sum", "product", "ratio"], "answer": "A"}
"#;

#[test]
fn choices_are_as_likely_as_their_tokens() {
    let model = embedded();
    let tokenizer = model.tokenizer.clone().unwrap();
    let records = read_records("q", QUESTIONS, &Fields::default(), true, None).unwrap();
    let template = Template::parse(Template::PLAIN).unwrap();
    let mut scorer = scorer(&model, &cpu(), 128, 2);
    let found = multiple_choice(&mut scorer, &tokenizer, &records, &template, 128, &mut |_, _| ()).unwrap();
    assert_eq!((found.questions, found.left_out), (2, 0));
    near(found.chance, (1.0 / 2.0 + 1.0 / 3.0) / 2.0, 1e-12);
    for (record, chosen) in records.iter().zip(&found.chosen) {
        let prompt = template.fill(record);
        let start = tokenizer.encode(&prompt, Special::AsText).len();
        for (choice, ln) in record.choices.iter().zip(&chosen.ln) {
            let ids = tokenizer.encode(&format!("{prompt} {choice}"), Special::AsText);
            let logits = Logits::compute(&model, &ids, &cpu(), false).unwrap();
            let sum: f64 = (start..ids.len()).map(|i| log_softmax(logits.row(i - 1))[ids[i] as usize]).sum();
            near(*ln, sum, 1e-3 * (ids.len() - start) as f64);
        }
        let best = (0..chosen.ln.len()).max_by(|&a, &b| chosen.ln[a].total_cmp(&chosen.ln[b])).unwrap();
        assert_eq!(chosen.likeliest, best);
    }
    let right = found.chosen.iter().filter(|c| c.likeliest == c.right).count();
    near(found.accuracy.value, right as f64 / 2.0, 1e-12);
    // What is too long is counted; where everything is, that is an error.
    let found = multiple_choice(&mut scorer, &tokenizer, &records, &template, 20, &mut |_, _| ()).unwrap();
    assert_eq!((found.questions, found.left_out), (1, 1));
    let error = multiple_choice(&mut scorer, &tokenizer, &records, &template, 3, &mut |_, _| ()).unwrap_err();
    assert!(error.to_string().contains("--context"), "{error}");
}

#[test]
fn answers_are_the_engines_own() {
    let model = embedded();
    let llm = Llm::load(&model, &Options { max_seqs: 2, ..cpu() }, &mut |_| ()).unwrap();
    let text = r#"{"question": "fn a() {}", "answer": ["never said", "x"]}"#;
    let ask = |text: &str, raw, context| {
        let records = read_records("q", text, &Fields::default(), false, None).unwrap();
        let options = QaOptions { template: Template::parse("{question}").unwrap(), max_tokens: 12, raw, context };
        questions(&llm, model.text().unwrap(), &records, &options, &mut |_, _| ())
    };
    let found = ask(text, false, 512).unwrap();
    assert_eq!((found.questions, found.exact_match.value, found.f1.value), (1, 0.0, 0.0));
    let said = &found.answers[0].said;
    assert!(!said.is_empty());
    // Were that the right answer, it would be found to be.
    let right = serde_json::json!({ "question": "fn a() {}", "answer": said.to_uppercase() }).to_string();
    let found = ask(&format!("{text}\n{right}\n"), false, 512).unwrap();
    assert_eq!((found.exact_match.value, found.f1.value, found.questions), (0.5, 0.5, 2));
    near(found.most_common, 0.5, 1e-12);
    let error = ask(text, true, 5).unwrap_err().to_string();
    assert!(error.contains("--context"), "{error}");
}

fn with_tokens(tokens: &[&str]) -> Model {
    let vocab: Vec<String> = tokens.iter().enumerate().map(|(i, t)| format!("{t:?}: {i}")).collect();
    let json = format!(
        r#"{{"version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null,
            "pre_tokenizer": {{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}},
            "decoder": {{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}},
            "model": {{"type": "BPE", "vocab": {{{}}}, "merges": []}}}}"#,
        vocab.join(", ")
    );
    let tokenizer = Tokenizer::from_hf(json.as_bytes(), None).unwrap();
    Model { tokenizer: Some(Arc::new(tokenizer)), ..open("qwen3") }
}

#[test]
fn models_of_other_vocabularies_are_refused() {
    let (a, b) = (with_tokens(&["a", "b", "c"]), with_tokens(&["a", "x", "c"]));
    let error = same_vocabulary(&a, &b).unwrap_err().to_string();
    assert!(error.contains("token 1 is \"b\" in one and \"x\" in the other"), "{error}");
    same_vocabulary(&a, &a).unwrap();
    // One that names fewer ids than another, or none, says nothing else.
    same_vocabulary(&a, &with_tokens(&["a", "b"])).unwrap();
    same_vocabulary(&a, &open("qwen3")).unwrap();
    let error = same_vocabulary(&embedded(), &open("qwen3")).unwrap_err().to_string();
    assert!(error.contains("vocabularies of") && error.contains("512"), "{error}");
}

#[test]
fn texts_are_cut_as_the_tokenizer_says() {
    let model = embedded();
    let tokenizer = model.tokenizer.as_ref().unwrap();
    let options = WindowOptions { window: 16, stride: None, most: None };
    let text = pelton_eval::DEFAULT_TEXT;
    let stretches = Stretches::of_text(text, tokenizer, options).unwrap();
    let ids = tokenizer.encode(text.trim_end_matches('\n'), Special::AsText);
    assert_eq!(stretches.len(), ids.len() / 16);
    assert_eq!(stretches.get(1).ids, ids[16..32]);
    for (text, words) in [("", "empty"), ("\n", "empty"), ("too short", "needs 16")] {
        let error = Stretches::of_text(text, tokenizer, options).err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
    }
}

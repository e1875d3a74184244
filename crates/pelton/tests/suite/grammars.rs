//! Grammars over the vocabularies that people use, and with the embedded model: real instances of real schemas are
//! allowed, wrong ones are not, and what a model says under a schema is what the schema says.

use std::path::PathBuf;

use pelton::{Error, FinishReason, GrammarCompiler, GrammarError, GrammarSpec, Model, ModelRef, ModelText, Options};
use pelton::{Request, SamplingParams, Special, Tokenizer, grammar_compiler};
use serde_json::{Value, json};

use crate::support::{ask, embedded, load, options, root};

/// A shared file, where it is there.
fn data(name: &str) -> Option<PathBuf> {
    let path = root().join("../shared/data").join(name);
    if !path.exists() {
        println!("{name} is not there; skipped");
        return None;
    }
    Some(path)
}

/// A tokenizer of the shared vocabularies, with a compiler over it.
fn vocabulary(name: &str) -> Option<(ModelText, GrammarCompiler)> {
    let path = data(&format!("vocab/ggml-vocab-{name}.gguf"))?;
    let text = Model::open_text(&ModelRef::Path(path), None).unwrap();
    let compiler = grammar_compiler(&text.tokenizer, &text.eos_ids()).unwrap();
    Some((text, compiler))
}

/// Whether a grammar lets exactly this text be said, token by token.
fn accepts(compiler: &GrammarCompiler, tokenizer: &Tokenizer, spec: &GrammarSpec, text: &str) -> Option<bool> {
    let mut state = compiler.compile(spec).ok()?.begin();
    for id in tokenizer.encode(text, Special::AsText) {
        let mask = state.mask().ok()?;
        if mask.get(id as usize / 32).is_none_or(|word| word >> (id % 32) & 1 == 0) {
            return Some(false);
        }
        state.push(id).ok()?;
    }
    Some(state.is_accepting())
}

#[test]
fn real_schemas_let_their_instances_through_and_hold_wrong_ones_back() {
    let Some(path) = data("json_schemas.jsonl") else { return };
    let Some((text, compiler)) = vocabulary("qwen2") else { return };
    let (mut right, mut wrong, mut refused, mut held) = (0, 0, 0, 0);
    for line in std::fs::read_to_string(path).unwrap().lines().step_by(4) {
        let case: Value = serde_json::from_str(line).unwrap();
        let spec = GrammarSpec::JsonSchema(case["schema"].clone());
        for test in case["tests"].as_array().unwrap().iter().take(4) {
            let instance = serde_json::to_string_pretty(&test["data"]).unwrap();
            let Some(accepted) = accepts(&compiler, &text.tokenizer, &spec, &instance) else {
                refused += 1;
                break;
            };
            match (test["valid"].as_bool().unwrap(), accepted) {
                (true, true) | (false, false) => right += 1,
                // Too strict: an instance has its keys in another order than the schema, for example.
                (true, false) => held += 1,
                (false, true) => wrong += 1,
            }
        }
    }
    println!("{right} right, {held} valid ones held back, {wrong} invalid ones let through, {refused} schemas refused");
    assert!(right > 100 && wrong == 0 && held < 5 && refused < 10);
}

#[test]
fn all_kinds_of_vocabularies_say_json() {
    let text = "{\"name\": \"Zoë 日本 🚀\", \"list\": [1, -2.5e3, true, null], \"deep\": {\"a\": \"\\n\\\"\"}}";
    for name in ["qwen2", "llama-spm", "gpt-2"] {
        let Some((model, compiler)) = vocabulary(name) else { return };
        let accepts = |spec, text| accepts(&compiler, &model.tokenizer, &spec, text).expect("it compiles");
        // SentencePiece spells a space before the first word, which decoding drops again.
        let lead = if name == "llama-spm" { " " } else { "" };
        let spaced = |spec: &str| GrammarSpec::Lark(format!("start: \"{lead}\" body\nbody: %json {spec}"));
        assert!(accepts(spaced("{\"type\": \"object\"}"), text), "{name}");
        assert!(!accepts(spaced("{\"type\": \"object\"}"), &text[..text.len() - 1]), "{name}: not ended");
        assert!(!accepts(spaced("{\"type\": \"array\"}"), text), "{name}");
    }
}

fn review() -> Value {
    json!({
        "type": "object",
        "properties": {
            "verdict": { "enum": ["good", "bad"] },
            "score": { "type": "integer", "minimum": 1, "maximum": 5 },
            "words": { "type": "array", "items": { "type": "string", "maxLength": 12 }, "minItems": 1, "maxItems": 3 }
        },
        "required": ["verdict", "score", "words"],
        "additionalProperties": false
    })
}

#[test]
fn the_embedded_model_says_what_the_schema_says() {
    let llm = load(&embedded(), &Options { max_seqs: 8, context: Some(512), ..options() });
    let tokenizer = llm.tokenizer().unwrap().clone();
    let grammar = llm.grammar(&GrammarSpec::JsonSchema(review())).unwrap();
    let mut ended = 0;
    for seed in 0..12 {
        let temperature = seed as f32 * 0.25;
        let params = SamplingParams { temperature, seed: Some(seed), ..SamplingParams::default() };
        let prompt =
            tokenizer.encode("<|im_start|>user\nReview this.<|im_end|>\n<|im_start|>assistant\n", Special::Parse);
        let request = Request { grammar: Some(grammar.clone()), ..Request::new(prompt, params, 200) };
        let answer = ask(&llm, request);
        if !matches!(answer.end.reason, FinishReason::Grammar | FinishReason::Eos) {
            continue;
        }
        ended += 1;
        let value: Value = serde_json::from_str(&answer.text).unwrap_or_else(|e| panic!("{:?}: {e}", answer.text));
        assert!(["good", "bad"].contains(&value["verdict"].as_str().unwrap()), "{value}");
        assert!((1..=5).contains(&value["score"].as_i64().unwrap()), "{value}");
        assert!((1..=3).contains(&value["words"].as_array().unwrap().len()), "{value}");
    }
    assert!(ended >= 10, "{ended} of 12 ended");
    // The same specification is not compiled twice, and a bad one is an error of the caller's.
    let bad = llm.grammar(&GrammarSpec::JsonSchema(json!({ "type": "nonsense" })));
    assert!(matches!(&bad, Err(Error::Grammar(GrammarError::Invalid(_)))), "{bad:?}");
}

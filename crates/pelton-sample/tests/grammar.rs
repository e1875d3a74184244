//! Grammars over a small vocabulary: whatever is drawn under their masks fits them, and no specification, however
//! hostile, does more than be refused.

use std::time::{Duration, Instant};

use pelton_sample::{Grammar, GrammarCompiler, GrammarError, GrammarLimits, GrammarSpec, Sampler, SamplingParams, rng};
use serde_json::{Value, json};

/// Every byte, some words, two ends of text and a control token.
fn vocabulary() -> (Vec<Option<Vec<u8>>>, [u32; 2]) {
    let mut tokens: Vec<Option<Vec<u8>>> = (0..=255u8).map(|byte| Some(vec![byte])).collect();
    let words =
        ["\":", "\",\"", "{\"", "\"}", "}}", "name", "age", "true", "false", "null", ", ", ": ", "12", "é", "日本"];
    tokens.extend(words.map(|word| Some(word.as_bytes().to_vec())));
    tokens.extend([None, None, None]);
    let eos = [tokens.len() as u32 - 2, tokens.len() as u32 - 1];
    (tokens, eos)
}

fn compiler() -> GrammarCompiler {
    let (tokens, eos) = vocabulary();
    GrammarCompiler::new(tokens, &eos, GrammarLimits::default()).unwrap()
}

/// Draws an answer of at most `most` tokens under the grammar; `None` where it did not end by then.
fn draw(grammar: &Grammar, seed: u64, most: usize) -> Option<String> {
    let (tokens, eos) = vocabulary();
    let params = SamplingParams { temperature: 1.0, seed: Some(seed), ..SamplingParams::default() };
    let mut sampler = Sampler::new(params, 0).unwrap();
    let (mut state, mut generated, mut text) = (grammar.begin(), Vec::new(), Vec::new());
    while generated.len() < most {
        // Ends are likelier the longer the text is, so that most answers end.
        let logit = |id: usize| match tokens[id].as_deref() {
            None => generated.len() as f32 * 0.3,
            Some(b"\"" | b"}" | b"]") => 2.0,
            Some(_) => rng::uniform(seed, (generated.len() * 1000 + id) as u64) as f32,
        };
        let mut logits: Vec<f32> = (0..tokens.len()).map(logit).collect();
        let mask = state.mask().unwrap();
        let id = sampler.sample_masked(&mut logits, &[], &generated, Some(mask)).unwrap().id;
        generated.push(id);
        let complete = state.push(id).unwrap();
        if !eos.contains(&id) {
            text.extend_from_slice(tokens[id as usize].as_deref().expect("a control token was allowed"));
        }
        if complete {
            return Some(String::from_utf8(text).expect("grammars are of text"));
        }
    }
    None
}

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 8 },
            "age": { "type": "integer", "minimum": 0, "maximum": 120 },
            "tags": { "type": "array", "items": { "enum": ["a", "b"] }, "maxItems": 3 }
        },
        "required": ["name", "age"],
        "additionalProperties": false
    })
}

#[test]
fn whatever_is_drawn_fits_the_schema() {
    let grammar = compiler().compile(&GrammarSpec::JsonSchema(person())).unwrap();
    let mut ended = 0;
    for seed in 0..100 {
        let Some(text) = draw(&grammar, seed, 200) else { continue };
        ended += 1;
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text:?}: {e}"));
        let object = value.as_object().unwrap();
        assert!(object["name"].as_str().unwrap().chars().count() <= 8, "{text}");
        assert!((0..=120).contains(&object["age"].as_i64().unwrap()), "{text}");
        assert!(object.keys().all(|key| ["name", "age", "tags"].contains(&key.as_str())), "{text}");
    }
    assert!(ended > 50, "{ended} of 100 ended");
}

#[test]
fn objects_patterns_and_rules_hold() {
    let compiler = compiler();
    let object = compiler.compile(&GrammarSpec::JsonObject).unwrap();
    let objects: Vec<String> = (0..40).filter_map(|seed| draw(&object, seed, 300)).collect();
    assert!(objects.len() > 5, "{} ended", objects.len());
    for text in &objects {
        match serde_json::from_str::<Value>(text) {
            Ok(value) => assert!(value.is_object(), "{text}"),
            // `1e999` is JSON; no f64 holds it.
            Err(e) => assert!(e.to_string().contains("number out of range"), "{text}: {e}"),
        }
    }
    let date = compiler.compile(&GrammarSpec::Regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}".into())).unwrap();
    for seed in 0..20 {
        let text = draw(&date, seed, 20).expect("it ends by itself");
        let shape: Vec<usize> = text.split('-').map(str::len).collect();
        assert_eq!(shape, [4, 2, 2], "{text}");
    }
    let rules = "start: \"yes\" | \"no\" \" \" REASON\nREASON: /because [a-z]{1,5}/";
    let answer = compiler.compile(&GrammarSpec::Lark(rules.into())).unwrap();
    for seed in 0..20 {
        let text = draw(&answer, seed, 40).expect("it ends");
        assert!(text == "yes" || text.starts_with("no because "), "{text}");
    }
}

#[test]
fn states_are_their_own_and_masks_do_not_depend_on_company() {
    let grammar = compiler().compile(&GrammarSpec::JsonSchema(person())).unwrap();
    let alone: Vec<Option<String>> = (0..10).map(|seed| draw(&grammar, seed, 100)).collect();
    let threads: Vec<_> = (0..10)
        .map(|seed| {
            let grammar = grammar.clone();
            std::thread::spawn(move || draw(&grammar, seed, 100))
        })
        .collect();
    let together: Vec<Option<String>> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert_eq!(alone, together);
}

#[test]
fn an_end_may_be_any_of_the_models_and_a_wrong_token_is_an_error() {
    let (_, eos) = vocabulary();
    let grammar = compiler().compile(&GrammarSpec::Regex("a*".into())).unwrap();
    let mut state = grammar.begin();
    assert!(state.is_accepting());
    let mask = state.mask().unwrap().to_vec();
    let allowed = |id: u32| mask[id as usize / 32] >> (id % 32) & 1 == 1;
    assert!(eos.iter().all(|&id| allowed(id)) && allowed(u32::from(b'a')) && !allowed(u32::from(b'b')));
    assert_eq!(state.push(u32::from(b'a')), Ok(false));
    assert!(matches!(state.push(u32::from(b'b')), Err(GrammarError::Step(_))));
    assert!(state.mask().is_err(), "it stays in error");
    assert_eq!(grammar.begin().push(eos[1]), Ok(true));
    let mut fixed = compiler().compile(&GrammarSpec::Regex("ab".into())).unwrap().begin();
    assert_eq!((fixed.push(u32::from(b'a')), fixed.push(u32::from(b'b'))), (Ok(false), Ok(true)));
}

#[test]
fn hostile_specifications_are_refused_in_bounded_time() {
    let compiler = compiler();
    let nested = (0..200).fold(json!({}), |inner, _| json!({ "properties": { "a": inner } }));
    let wide: Value =
        (0..20_000).map(|i| (format!("p{i}"), json!({ "type": "string" }))).collect::<serde_json::Map<_, _>>().into();
    let product: Vec<Value> = (0..24)
        .map(|i| json!({ "oneOf": [{ "properties": { format!("a{i}"): { "const": 1 } } }, { "properties": { format!("b{i}"): { "const": 2 } } }] }))
        .collect();
    let schemas = [
        json!(null),
        json!(5),
        json!("string"),
        json!([]),
        json!(false),
        json!({ "type": "nonsense" }),
        json!({ "type": 7 }),
        json!({ "$ref": "#/nowhere" }),
        json!({ "$ref": "http://example.com/schema" }),
        json!({ "$ref": "#" }),
        json!({ "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } }, "$ref": "#/$defs/a" }),
        json!({ "allOf": [{ "$ref": "#" }] }),
        json!({ "type": "string", "pattern": "(" }),
        json!({ "type": "string", "pattern": "((((((((((a*)*)*)*)*)*)*)*)*)*)*b" }),
        json!({ "type": "string", "pattern": "a{1000000000}" }),
        json!({ "type": "string", "minLength": 4_000_000_000u64 }),
        json!({ "type": "string", "maxLength": -1 }),
        json!({ "type": "array", "minItems": 1_000_000_000, "items": { "type": "array", "minItems": 1_000_000 } }),
        json!({ "type": "integer", "minimum": 10, "maximum": 5 }),
        json!({ "enum": [] }),
        json!({ "type": "object", "required": ["missing"], "additionalProperties": false }),
        json!({ "x-guidance": { "lenient": 5 } }),
        json!({ "properties": wide, "required": ["p1"] }),
        json!({ "allOf": product }),
        nested,
    ];
    let texts = ["", "(", "[", "a{5000}{5000}{5000}", r"(?=a)b", r"\", "^(a+)+$", "\u{0}", "🦀{100000}"];
    let grammars = [
        "",
        "start:",
        "start: start",
        "start: a\na: b\nb: a",
        "nothing: \"a\"",
        "start: \"a\" start | start \"b\" start |",
        "start: /a{100000}/",
        "start: %json { \"type\": ",
        "%import common.WORD",
        "start: <[999999999]>",
        "start: @other",
    ];
    let specs = schemas
        .into_iter()
        .map(GrammarSpec::JsonSchema)
        .chain(texts.map(|text| GrammarSpec::Regex(text.into())))
        .chain(grammars.map(|text| GrammarSpec::Lark(text.into())))
        .chain([GrammarSpec::Lark(format!("start: {}\"a\"{}", "(".repeat(50_000), ")".repeat(50_000)))])
        .chain([GrammarSpec::Regex("(".repeat(100) + &")".repeat(100))]);
    for spec in specs {
        let start = Instant::now();
        let compiled = compiler.compile(&spec);
        let took = start.elapsed();
        let shown: String = format!("{spec:?}").chars().take(120).collect();
        println!("{took:8.1?} {shown}: {:?}", compiled.as_ref().err().map(ToString::to_string));
        assert!(took < Duration::from_secs(10), "{shown} took {took:?}");
        if let Err(e) = &compiled {
            assert!(!e.to_string().is_empty() && e.to_string().len() < 600, "{e}");
        }
        // What compiles is followed, as far as it lets itself be.
        if let Ok(grammar) = compiled {
            let mut state = grammar.begin();
            for _ in 0..20 {
                let Ok(mask) = state.mask() else { break };
                let Some(word) = mask.iter().position(|&word| word != 0) else { break };
                let id = word as u32 * 32 + mask[word].trailing_zeros();
                if !matches!(state.push(id), Ok(false)) {
                    break;
                }
            }
        }
    }
}

#[test]
fn vocabularies_without_ends_are_refused() {
    let limits = GrammarLimits::default();
    assert!(matches!(GrammarCompiler::new(Vec::new(), &[], limits), Err(GrammarError::Vocabulary(_))));
    let tokens = vec![Some(b"a".to_vec())];
    assert!(matches!(GrammarCompiler::new(tokens.clone(), &[5], limits), Err(GrammarError::Vocabulary(_))));
    assert!(GrammarCompiler::new(vec![tokens[0].clone(), None], &[1], limits).is_ok());
}

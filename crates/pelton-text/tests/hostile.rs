//! Files and templates from strangers: every fault is an error that names it, never a panic or a hang.

use pelton_text::{ChatTemplate, DateTime, GgufVocab, RenderInput, Special, TemplateTokens, TextError, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value as Json, json};

fn sentence() -> GgufVocab {
    GgufVocab {
        model: "llama".into(),
        tokens: ["<unk>", "<s>", "</s>", "▁", "a", "▁a"].map(String::from).to_vec(),
        scores: vec![0.0, 0.0, 0.0, -1.0, -2.0, -3.0],
        token_types: vec![2, 3, 3, 1, 1, 1],
        ..GgufVocab::default()
    }
}

fn bytes() -> GgufVocab {
    GgufVocab {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        tokens: ["a", "b", "ab"].map(String::from).to_vec(),
        merges: vec!["a b".into()],
        ..GgufVocab::default()
    }
}

#[track_caller]
fn refused(vocab: GgufVocab, expected: &[&str]) {
    let message = Tokenizer::from_gguf(vocab).unwrap_err().to_string();
    for part in expected {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

#[test]
fn inconsistent_vocabularies_are_refused() {
    assert!(Tokenizer::from_gguf(sentence()).is_ok());
    assert!(Tokenizer::from_gguf(bytes()).is_ok());
    let with = |base: GgufVocab, change: fn(&mut GgufVocab)| {
        let mut vocab = base;
        change(&mut vocab);
        vocab
    };
    refused(with(sentence(), |v| v.tokens.clear()), &["tokenizer.ggml.tokens", "no tokens"]);
    refused(with(sentence(), |v| v.scores.truncate(2)), &["tokenizer.ggml.scores", "2 entries", "6 tokens"]);
    refused(with(sentence(), |v| v.scores.clear()), &["tokenizer.ggml.scores", "0 entries"]);
    refused(with(sentence(), |v| v.scores[4] = f32::NAN), &["score of token 4"]);
    refused(with(sentence(), |v| v.token_types.push(1)), &["tokenizer.ggml.token_type", "7 entries"]);
    refused(with(sentence(), |v| v.token_types[3] = 6), &["token 3", "<0x00>"]);
    refused(with(sentence(), |v| v.bos = Some(6)), &["tokenizer.ggml.bos_token_id", "6"]);
    refused(with(sentence(), |v| v.eos = Some(u32::MAX)), &["tokenizer.ggml.eos_token_id"]);
    refused(with(sentence(), |v| v.model = "rwkv".into()), &["rwkv", "gpt2, llama"]);
    refused(with(bytes(), |v| v.add_bos = Some(true)), &["tokenizer.ggml.add_bos_token"]);
    refused(with(bytes(), |v| v.pre = Some("gpt-9".into())), &["gpt-9", "qwen2", "llama-bpe", "tekken"]);
    refused(with(bytes(), |v| v.merges.push("ab".into())), &["merge 1", "left right"]);
    refused(with(bytes(), |v| v.merges.push(String::new())), &["merge 1"]);
    refused(with(bytes(), |v| v.merges.push("a x".into())), &["merge 1", "\"x\""]);
    refused(with(bytes(), |v| v.merges.push("b a".into())), &["merge 1", "\"ba\""]);
}

#[test]
fn odd_but_harmless_vocabularies_load() {
    let mut twice = sentence();
    twice.tokens[5] = "a".into();
    let tokenizer = Tokenizer::from_gguf(twice).unwrap();
    assert_eq!(tokenizer.encode("a", Special::AsText), [3, 4]);
    let mut empty_token = sentence();
    empty_token.tokens[4].clear();
    let tokenizer = Tokenizer::from_gguf(empty_token).unwrap();
    assert_eq!(tokenizer.encode("a", Special::Parse), [5]);
    // No byte tokens: what the vocabulary lacks is the unknown token.
    assert_eq!(tokenizer.encode("aé", Special::AsText), [5, 0]);
    // Without a pre-tokenizer's name there is the default one.
    let mut unnamed = bytes();
    unnamed.pre = None;
    assert!(Tokenizer::from_gguf(unnamed).is_ok());
    // A merge that makes a control token is no way to that token.
    let mut control = bytes();
    control.token_types = vec![1, 1, 3];
    let tokenizer = Tokenizer::from_gguf(control).unwrap();
    assert_eq!(tokenizer.encode("ab", Special::AsText), [0, 1]);
    assert_eq!(tokenizer.encode("ab", Special::Parse), [2]);
}

fn small_file() -> Json {
    json!({
        "version": "1.0", "truncation": null,
        "padding": {"strategy": {"Fixed": 4}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "a"},
        "added_tokens": [{"id": 3, "content": "<e>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<e>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<e>": {"id": "<e>", "ids": [3], "tokens": ["<e>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    })
}

fn load(file: &Json, config: Option<&str>) -> Result<Tokenizer, TextError> {
    Tokenizer::from_hf(file.to_string().as_bytes(), config.map(str::as_bytes))
}

#[test]
fn marks_come_from_the_configuration_and_the_post_processor() {
    let tokenizer = load(&small_file(), Some(r#"{"bos_token": {"content": "<e>"}}"#)).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.add_bos(), tokenizer.add_eos()), (Some(3), true, false));
    let config = r#"{"bos_token": "<e>", "add_bos_token": false}"#;
    assert!(!load(&small_file(), Some(config)).unwrap().add_bos());
    assert!(!load(&small_file(), None).unwrap().add_bos());
    // Nothing is added or padded by encoding itself.
    assert_eq!(tokenizer.encode("ab<e>", Special::Parse), [2, 3]);
}

#[test]
fn unsupported_files_are_refused_by_name() {
    let changed = |pointer: &str, value: Json| {
        let mut file = small_file();
        *file.pointer_mut(pointer).unwrap() = value;
        load(&file, None).unwrap_err().to_string()
    };
    assert!(changed("/model/type", json!("WordPiece")).contains("`WordPiece`"));
    assert!(changed("/decoder/type", json!("CTC")).contains("`CTC`"));
    assert!(changed("/decoder", json!(null)).contains("decoder"));
    assert!(changed("/model/unk_token", json!("?")).contains("unk_token"));
    assert!(changed("/model/vocab", json!({"a": 4_000_000_000u32})).contains("tokenizer.json"));
    assert!(changed("/model/merges", json!([["a", "x"]])).contains("tokenizer.json"));
    let message = load(&small_file(), Some("{")).unwrap_err().to_string();
    assert!(message.starts_with("tokenizer_config.json"));
    let far = json!({"a": 0, "b": 1, "ab": 2, "c": 4_000_000_000u32});
    assert!(changed("/model/vocab", far).contains("4000000000"));
}

proptest! {
    #[test]
    fn damaged_files_do_not_panic(cut in 0usize..2000, at in 0usize..2000, byte in any::<u8>()) {
        let file = small_file().to_string().into_bytes();
        let mut damaged = file.clone();
        damaged.truncate(cut.max(1));
        let _ = Tokenizer::from_hf(&damaged, None);
        let mut damaged = file;
        let at = at % damaged.len();
        damaged[at] = byte;
        if let Ok(tokenizer) = Tokenizer::from_hf(&damaged, Some(&damaged)) {
            let ids = tokenizer.encode("ab<e> é\n", Special::AsText);
            let _ = tokenizer.decode(&ids, false);
        }
    }

    #[test]
    fn any_template_source_renders_or_fails(source in "[{}%#\\[\\]:a-c .|'\"(),~+-]{0,40}") {
        if let Ok(template) = ChatTemplate::new(&source, TemplateTokens::default()) {
            let _ = template.render(&RenderInput::default());
        }
    }
}

fn render(source: &str) -> Result<String, TextError> {
    let input = RenderInput { messages: json!([]), now: Some(DateTime::from_seconds(0)), ..RenderInput::default() };
    ChatTemplate::new(source, TemplateTokens::default())?.render(&input)
}

#[test]
fn endless_templates_stop() {
    let loops = "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}";
    assert!(matches!(render(loops), Err(TextError::TemplateLimit { .. })));
    let recursion = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    assert!(render(recursion).is_err());
    let output = "{% for a in range(1000) %}{{ 'x' * 1000000 }}{% endfor %}";
    assert!(matches!(render(output), Err(TextError::TemplateLimit { .. })));
    assert!(render("{{ range(1000000000)|list|length }}").is_err());
}

#[test]
fn deep_values_and_sources_are_survived() {
    let nested = "{% set ns = namespace(x=[]) %}{% for i in range(60000) %}{% set ns.x = [ns.x] %}{% endfor %}";
    assert_eq!(render(nested).unwrap(), "");
    assert!(render(&format!("{nested}{{{{ ns.x }}}}")).is_err());
    assert!(render(&format!("{nested}{{{{ ns.x|tojson }}}}")).is_err());
    assert!(render(&format!("{{{{ {}1{} }}}}", "(".repeat(50_000), ")".repeat(50_000))).is_err());
    assert!(render(&"{% if true %}".repeat(50_000)).is_err());
    assert!(ChatTemplate::new(&" ".repeat(2 << 20), TemplateTokens::default()).is_err());
}

#[test]
fn errors_say_what_and_where() {
    let raised = render("{{ raise_exception('no ' ~ 'way') }}").unwrap_err();
    assert!(matches!(&raised, TextError::TemplateRaised(message) if message == "no way"));
    let failed = render("\n\n{{ missing.field }}").unwrap_err().to_string();
    assert!(failed.contains("line 3"), "{failed}");
    let syntax = ChatTemplate::new("{% if %}", TemplateTokens::default()).unwrap_err();
    assert!(matches!(syntax, TextError::TemplateSyntax(_)));
    for forbidden in ["messages.append(1)", "{}.update(a=1)", "''.__class__", "messages.pop()", "[].clear()"] {
        let result = render(&format!("{{{{ {forbidden} }}}}"));
        assert!(result.as_ref().map_or(true, String::is_empty), "{forbidden}");
    }
    assert_eq!(render("{{ ''[::-1] }}{{ messages[::-1] }}{{ messages[5:-5:2] }}").unwrap(), "[][]");
    assert!(render("{{ 'abc'[::0] }}").is_err());
    assert!(render("{{ {}[1:] }}").is_err());
    assert!(render("{% for x in none %}{% endfor %}").is_err());
}

#[test]
fn dates() {
    let at = |seconds: i64, format: &str| {
        let source = format!("{{{{ strftime_now('{format}') }}}}");
        let template = ChatTemplate::new(&source, TemplateTokens::default()).unwrap();
        let now = Some(DateTime::from_seconds(seconds));
        template.render(&RenderInput { now, ..RenderInput::default() }).unwrap()
    };
    // Checked against Python's datetime.
    assert_eq!(at(951_782_400, "%Y-%m-%d %j %A"), "2000-02-29 060 Tuesday");
    assert_eq!(at(4_107_542_399, "%d %b %Y %H:%M:%S"), "28 Feb 2100 23:59:59");
    assert_eq!(at(4_107_542_400, "%-d %B %y %I %p %j"), "1 March 00 12 AM 060");
    assert_eq!(at(-1, "%c %% %Q"), "Wed Dec 31 23:59:59 1969 % %Q");
    assert_eq!(at(i64::MAX, "%Y"), "9999");
    assert_eq!(at(1_767_225_599, "%e|%u|%w|%D|%F %T"), "31|3|3|12/31/25|2025-12-31 23:59:59");
}

#[test]
fn extra_variables_hide_tokens_but_not_the_conversation() {
    let tokens = TemplateTokens { bos: Some("<s>".into()), ..TemplateTokens::default() };
    let template = ChatTemplate::new("{{ bos_token }}{{ messages|length }}{{ documents }}", tokens).unwrap();
    let extra = json!({"bos_token": "<b>", "messages": [1, 2], "documents": "d"});
    let input =
        RenderInput { messages: json!([]), extra: extra.as_object().cloned().unwrap(), ..RenderInput::default() };
    assert_eq!(template.render(&input).unwrap(), "<b>0d");
    let plain = RenderInput { messages: json!([]), ..RenderInput::default() };
    assert_eq!(template.render(&plain).unwrap(), "<s>0None");
}

#[test]
fn a_template_for_tools_is_picked() {
    let single = json!("one");
    assert_eq!(ChatTemplate::pick(&single, true).as_deref(), Some("one"));
    let several = json!([{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]);
    assert_eq!(ChatTemplate::pick(&several, false).as_deref(), Some("d"));
    assert_eq!(ChatTemplate::pick(&several, true).as_deref(), Some("t"));
    let only_default = json!([{"name": "default", "template": "d"}]);
    assert_eq!(ChatTemplate::pick(&only_default, true).as_deref(), Some("d"));
    assert_eq!(ChatTemplate::pick(&json!(null), false), None);
}

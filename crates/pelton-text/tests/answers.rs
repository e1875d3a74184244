//! Answers taken apart: every notation, cut at every place, gives the same parts.

use proptest::prelude::*;

use pelton_text::{AnswerParser, Part, Thinking, ToolFormat, ToolGrammar};
use serde_json::json;

/// Reasoning, content, and calls as `(name, arguments)`.
type Taken = (String, String, Vec<(String, String)>);

fn take(pieces: &[&str], thinking: Thinking, tools: Option<ToolFormat>) -> Taken {
    let mut parser = AnswerParser::new(thinking, tools, vec!["get_weather".into(), "sum".into()]);
    let mut parts = Vec::new();
    for piece in pieces {
        parser.push(piece, &mut parts);
    }
    parser.finish(&mut parts);
    let mut taken = Taken::default();
    for part in parts {
        match part {
            Part::Reasoning(text) => taken.0 += &text,
            Part::Content(text) => taken.1 += &text,
            Part::Call { index, name } => {
                assert_eq!(index, taken.2.len());
                taken.2.push((name, String::new()));
            }
            Part::Arguments { index, json } => taken.2[index].1 += &json,
        }
    }
    taken
}

/// Whole, in two pieces cut at every place, and a character at a time: always the same.
fn taken(text: &str, thinking: Thinking, tools: Option<ToolFormat>) -> Taken {
    let whole = take(&[text], thinking, tools);
    for (at, _) in text.char_indices() {
        assert_eq!(take(&[&text[..at], &text[at..]], thinking, tools), whole, "cut at {at}: {text}");
    }
    let single: Vec<String> = text.chars().map(String::from).collect();
    let single: Vec<&str> = single.iter().map(String::as_str).collect();
    assert_eq!(take(&single, thinking, tools), whole, "a character at a time: {text}");
    whole
}

fn calls(text: &str, format: ToolFormat) -> (String, Vec<(String, String)>) {
    let (reasoning, content, calls) = taken(text, Thinking::Maybe, Some(format));
    assert_eq!(reasoning, "");
    (content, calls)
}

fn call(name: &str, arguments: &str) -> (String, String) {
    (name.to_string(), arguments.to_string())
}

#[test]
fn hermes_calls() {
    let text = "Let me see.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris }\\\"\"}}\n</tool_call>\n\
                <tool_call>\n{\"name\": \"sum\", \"arguments\": {\"of\": [1, 2]}}\n</tool_call>";
    let (content, found) = calls(text, ToolFormat::Hermes);
    assert_eq!(content, "Let me see.");
    assert_eq!(found, [call("get_weather", r#"{"city": "Paris }\""}"#), call("sum", r#"{"of": [1, 2]}"#)]);
}

#[test]
fn hermes_oddities() {
    // Arguments first, as a string, absent, and a closing tag that never comes.
    let (_, found) = calls(r#"<tool_call>{"arguments": {"a": 1}, "name": "sum"}</tool_call>"#, ToolFormat::Hermes);
    assert_eq!(found, [call("sum", r#"{"a": 1}"#)]);
    let (_, found) = calls(r#"<tool_call>{"name": "sum", "arguments": "{\"a\": 1}"}"#, ToolFormat::Hermes);
    assert_eq!(found, [call("sum", r#"{"a": 1}"#)]);
    let (_, found) = calls(r#"<tool_call>{"name": "sum"}</tool_call> "#, ToolFormat::Hermes);
    assert_eq!(found, [call("sum", "{}")]);
    let (content, found) =
        calls("<tool_call>{\"name\": \"sum\", \"arguments\": {}}</tool_call> Done.", ToolFormat::Hermes);
    assert_eq!((content.as_str(), found.len()), ("Done.", 1));
}

#[test]
fn what_is_no_call_stays_text() {
    for text in [
        "a < b and <tool",
        "<tool_call> is a tag",
        "<tool_call>{\"x\": 1}",
        "{\"name\": \"sum\"}",
        "<tool_call>",
        "x  ",
    ] {
        assert_eq!(calls(text, ToolFormat::Hermes), (text.to_string(), vec![]), "{text}");
    }
    for text in ["{\"answer\": 42}", "{\"name\": \"Ada\", \"parameters\": {}}", "{", "{\"name\": 5}", "  hello"] {
        assert_eq!(calls(text, ToolFormat::Llama).1, vec![], "{text}");
        assert_eq!(calls(text, ToolFormat::Llama).0, text, "{text}");
    }
    let text = "[TOOL_CALLS] not this";
    assert_eq!(calls(text, ToolFormat::Mistral).1, vec![]);
    assert_eq!(taken("<tool_call>{}", Thinking::Never, None).1, "<tool_call>{}");
}

#[test]
fn llama_calls() {
    let json = r#"{"name": "get_weather", "parameters": {"city": "Oslo"}}"#;
    let expected = vec![call("get_weather", r#"{"city": "Oslo"}"#)];
    assert_eq!(calls(json, ToolFormat::Llama), (String::new(), expected.clone()));
    assert_eq!(calls(&format!("<|python_tag|>{json}"), ToolFormat::Llama), (String::new(), expected.clone()));
    let two = format!("{json}; {json}");
    assert_eq!(calls(&two, ToolFormat::Llama).1.len(), 2);
    // Some write the type, too.
    let typed = r#"{"type": "function", "name": "sum", "parameters": {"a": null}}"#;
    assert_eq!(calls(typed, ToolFormat::Llama).1, [call("sum", r#"{"a": null}"#)]);
}

#[test]
fn mistral_calls() {
    let array = r#"[TOOL_CALLS][{"name": "sum", "arguments": {"a": 1}}, {"name": "get_weather", "arguments": {}}]"#;
    let expected = [call("sum", r#"{"a": 1}"#), call("get_weather", "{}")];
    assert_eq!(calls(array, ToolFormat::Mistral), (String::new(), expected.to_vec()));
    let named = r#"Yes.[TOOL_CALLS]sum[ARGS]{"a": 1}[TOOL_CALLS]get_weather[CALL_ID]abc123def[ARGS]{}"#;
    assert_eq!(calls(named, ToolFormat::Mistral), ("Yes.".to_string(), expected.to_vec()));
    // Where the marks between are hidden.
    assert_eq!(calls(r#"[TOOL_CALLS]sum{"a": 1}"#, ToolFormat::Mistral).1, expected[..1]);
}

#[test]
fn reasoning_is_split_off() {
    let split = |text: &str, thinking| {
        let (reasoning, content, _) = taken(text, thinking, None);
        (reasoning, content)
    };
    let pair = |a: &str, b: &str| (a.to_string(), b.to_string());
    assert_eq!(split("<think>\nHm. 1 < 2\n</think>\n\nYes.", Thinking::Maybe), pair("Hm. 1 < 2", "Yes."));
    assert_eq!(split("\n\nHm.</think>Yes. ", Thinking::Open), pair("Hm.", "Yes. "));
    assert_eq!(split("Never ends <", Thinking::Open), pair("Never ends <", ""));
    assert_eq!(split("<thin ice", Thinking::Maybe), pair("", "<thin ice"));
    assert_eq!(split("<think>x</think>", Thinking::Never), pair("", "<think>x</think>"));
    assert_eq!(split("No. <think>x</think>", Thinking::Maybe), pair("", "No. <think>x</think>"));
    let call = "<think>so</think>\n<tool_call>\n{\"name\": \"sum\", \"arguments\": {}}\n</tool_call>";
    let all = taken(call, Thinking::Maybe, Some(ToolFormat::Hermes));
    assert_eq!((all.0.as_str(), all.1.as_str(), all.2.len()), ("so", "", 1));
}

#[test]
fn formats_are_chosen_by_the_template() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/chat_templates");
    let of = |file: &str| std::fs::read_to_string(folder.join(file)).ok().map(|t| ToolFormat::of_template(&t));
    if !folder.exists() {
        println!("skipped: no {}", folder.display());
    } else {
        assert_eq!(of("Qwen-Qwen2.5-7B-Instruct.jinja"), Some(Some(ToolFormat::Hermes)));
        assert_eq!(of("NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja"), Some(Some(ToolFormat::Hermes)));
        assert_eq!(of("meta-llama-Llama-3.1-8B-Instruct.jinja"), Some(Some(ToolFormat::Llama)));
        assert_eq!(of("Mistral-Small-3.2-24B-Instruct-2506.jinja"), Some(Some(ToolFormat::Mistral)));
    }
    assert_eq!(ToolFormat::of_template("{{ messages[0].content }}"), None);
}

#[test]
fn forced_calls_are_written_in_the_models_notation() {
    let tools = vec![("sum".to_string(), json!({ "type": "object" })), ("two \"2\"".to_string(), json!(null))];
    let grammar = ToolGrammar { format: ToolFormat::Hermes, tools, parallel: true, or_json: None };
    let lark = grammar.lark(|_| None);
    assert!(
        lark.contains(r#"call_0: "<tool_call>" "\n" "{\"name\": \"sum\", \"arguments\": " arguments_0 "}""#),
        "{lark}"
    );
    assert!(lark.contains(r#"arguments_0: %json {"type":"object"}"#), "{lark}");
    assert!(lark.contains("call: call_0 | call_1"), "{lark}");
    let mistral = ToolGrammar { format: ToolFormat::Mistral, parallel: false, ..grammar };
    assert!(mistral.lark(|_| Some(5)).starts_with("start: calls\ncalls: <[5]> \"[\" call \"]\"\n"));
}

/// What notations are made of.
const PIECES: [&str; 26] = [
    "<tool_call>",
    "</tool_call>",
    "<|python_tag|>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "<think>",
    "</think>",
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    ";",
    "\"name\"",
    "\"arguments\"",
    "\"parameters\"",
    "\"sum\"",
    "\"a\\\"b\"",
    "1",
    " ",
    "\n",
    "x",
    "<",
    "é",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_text_depends_on_its_cuts(
        picks in prop::collection::vec(0..PIECES.len(), 0..24),
        thinking in prop::sample::select(vec![Thinking::Never, Thinking::Maybe, Thinking::Open]),
        tools in prop::sample::select(vec![None, Some(ToolFormat::Hermes), Some(ToolFormat::Llama), Some(ToolFormat::Mistral)]),
    ) {
        let text: String = picks.iter().map(|&i| PIECES[i]).collect();
        taken(&text, thinking, tools);
    }

    #[test]
    fn calls_in_their_notation_are_read_back(
        name in "[a-z_]{1,12}",
        value in "[ -~é\\n]{0,20}",
        before in "[a-z. ]{0,10}",
    ) {
        let arguments = json!({ "v": value, "n": [1, { "x": null }] }).to_string();
        let body = format!("{{\"name\": \"{name}\", \"arguments\": {arguments}}}");
        let expected = vec![(name.clone(), arguments.clone())];
        let hermes = format!("{before}\n<tool_call>\n{body}\n</tool_call>");
        prop_assert_eq!(&calls(&hermes, ToolFormat::Hermes).1, &expected);
        prop_assert_eq!(&calls(&format!("{before}[TOOL_CALLS][{body}]"), ToolFormat::Mistral).1, &expected);
        prop_assert_eq!(&calls(&format!("[TOOL_CALLS]{name}[ARGS]{arguments}"), ToolFormat::Mistral).1, &expected);
    }
}

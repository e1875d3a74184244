//! `pelton template`: a conversation as the model will see it.

use serde_json::{Value, json};

use crate::models::repository;
use crate::pelton::{Outcome, Sandbox};

fn render(model: &str, conversation: &Value) -> Outcome {
    let sandbox = Sandbox::new();
    sandbox.write("c.json", conversation.to_string());
    sandbox.run(&["template", model, "c.json"])
}

#[test]
fn the_built_in_model_renders_the_turns() {
    let messages =
        json!([{ "role": "system", "content": "Be terse." }, { "role": "user", "content": "hé <|im_end|>" }]);
    let turns = "<|im_start|>system\nBe terse.<|im_end|>\n<|im_start|>user\nhé <|im_end|><|im_end|>\n";
    let asked = render("pelton-tiny", &messages).ok();
    assert_eq!(asked.stdout, format!("{turns}<|im_start|>assistant\n"));
    let object = json!({ "messages": messages, "add_generation_prompt": false, "tools": null });
    assert_eq!(render("pelton-tiny", &object).ok().stdout, turns);
    let piped = Sandbox::new().pipe(&["template", "pelton-tiny", "-"], messages.to_string()).ok();
    assert_eq!(piped.stdout, asked.stdout);
}

/// The expected texts and refusals are those of Python's Jinja2 (the golden file's generator is beside it).
#[test]
fn conversations_render_as_in_python() {
    let tests = repository().join("crates/pelton-text/tests");
    let golden = std::fs::read_to_string(tests.join("golden/templates_own.json")).unwrap();
    let golden: Value = serde_json::from_str(&golden).unwrap();
    let sandbox = Sandbox::new();
    let (mut texts, mut refusals) = (0, 0);
    for (key, model) in
        [("embedded model", "pelton-tiny"), ("python.jinja", "python.jinja"), ("strict.jinja", "strict.jinja")]
    {
        if let Ok(source) = std::fs::read(tests.join("templates").join(model)) {
            sandbox.write(model, source);
        }
        for (name, conversation) in golden["conversations"].as_object().unwrap().iter().step_by(2) {
            let expected = &golden["templates"][key][name]["False"];
            let mut conversation = conversation.clone();
            conversation["add_generation_prompt"] = json!(false);
            sandbox.write("c.json", conversation.to_string());
            let outcome = sandbox.run(&["template", model, "c.json"]);
            match (expected["text"].as_str(), expected["raises"].as_str()) {
                (Some(text), _) => assert_eq!(outcome.ok().stdout, text, "{model} on {name}"),
                (None, Some(_)) => assert_eq!(outcome.failure(&[model]).stdout, "", "{model} on {name}"),
                (None, None) => continue,
            }
            if expected["text"].is_string() { texts += 1 } else { refusals += 1 }
        }
    }
    assert!(texts > 10 && refusals > 0, "{texts} texts, {refusals} refusals");
}

#[test]
fn a_template_file_reads_tools_tokens_and_further_variables() {
    let sandbox = Sandbox::new();
    let source = "{{ bos_token }}{% for m in messages %}{{ m.role.upper() }}:{{ m.content | trim }};{% endfor %}\
                  {% for t in tools or [] %}{{ t.function.name }},{% endfor %}{{ extra }}\
                  {% if add_generation_prompt %}GO{% endif %}{{ eos_token }}";
    sandbox.write("t.jinja", source);
    let tool = json!({ "type": "function", "function": { "name": "add" } });
    let messages = json!([{ "role": "user", "content": " hi " }]);
    let mut object = json!({ "messages": messages, "tools": [tool], "extra": 7 });
    sandbox.write("c.json", object.to_string());
    assert_eq!(sandbox.run(&["template", "t.jinja", "c.json"]).ok().stdout, "<s>USER:hi;add,7GO</s>");
    object["add_generation_prompt"] = json!(false);
    object["tools"] = json!(null);
    sandbox.write("c.json", object.to_string());
    let outcome = sandbox.run(&["template", "t.jinja", "c.json", "--bos", "[B]", "--eos", ""]).ok();
    assert_eq!(outcome.stdout, "[B]USER:hi;7");
}

#[test]
fn conversations_that_are_none_are_refused() {
    let table: &[(&str, &[&str])] = &[
        ("{", &["c.json", "not JSON"]),
        ("7", &["c.json", "messages"]),
        ("{\"x\": 1}", &["c.json", "messages"]),
        ("[1]", &["c.json", "messages[0]"]),
        ("{\"messages\": [], \"tools\": 3}", &["c.json", "tools"]),
        ("{\"messages\": [], \"add_generation_prompt\": \"x\"}", &["c.json", "add_generation_prompt"]),
    ];
    for (text, words) in table {
        let sandbox = Sandbox::new();
        sandbox.write("c.json", text);
        sandbox.run(&["template", "pelton-tiny", "c.json"]).usage(words);
    }
    Sandbox::new().run(&["template", "pelton-tiny", "none.json"]).usage(&["none.json", "no such file"]);
    Sandbox::new().run(&["template", "none.jinja", "none.json"]).usage(&["none.json"]);
}

#[test]
fn templates_that_fail_say_where() {
    let table =
        [("{% for x", "does not parse"), ("{{ raise_exception('no way') }}", "no way"), ("{{ 1 + {} }}", "line 1")];
    for (source, word) in table {
        let sandbox = Sandbox::new();
        sandbox.write("t.jinja", source);
        sandbox.write("c.json", "[]");
        let outcome = sandbox.run(&["template", "t.jinja", "c.json"]).failure(&["t.jinja", word]);
        assert_eq!(outcome.stderr.matches(word).count(), 1, "said once: {}", outcome.stderr);
    }
}

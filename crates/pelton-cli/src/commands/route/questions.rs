//! Questions from a file of JSON lines.

use pelton_docs::{ItemKind, Language, Snippet};
use serde_json::{Value, json};

/// The messages of each line.
///
/// # Errors
/// Names the line that holds no question.
pub(super) fn parse(text: &str, limit: Option<usize>) -> Result<Vec<Vec<Value>>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let question = |(i, line): (usize, &str)| {
        let object: Value = serde_json::from_str(line).map_err(|e| format!("line {}: {e}", i + 1))?;
        messages(&object).map_err(|e| format!("line {}: {e}", i + 1))
    };
    let questions: Vec<_> = lines.take(limit.unwrap_or(usize::MAX)).map(question).collect::<Result<_, _>>()?;
    if questions.is_empty() { Err("there is no question in it".into()) } else { Ok(questions) }
}

fn messages(object: &Value) -> Result<Vec<Value>, String> {
    let user = |text: &str| vec![json!({ "role": "user", "content": text })];
    if let Some(messages) = object["messages"].as_array().filter(|m| !m.is_empty()) {
        return Ok(messages.clone());
    }
    if let Some(text) = object["question"].as_str().or(object["prompt"].as_str()).or(object["turns"][0].as_str()) {
        return Ok(user(text));
    }
    let (Some(lang), Some(code)) = (object["lang"].as_str(), object["code"].as_str()) else {
        return Err("expected `question`, `prompt`, `messages`, or `lang` and `code`".into());
    };
    let language = Language::ALL.into_iter().find(|l| l.tag() == lang).ok_or(format!("`{lang}` is no language"))?;
    let snippet = Snippet { language, kind: ItemKind::Function, code };
    let prompts = pelton_docs::prompts([snippet], &str::len, usize::MAX / 2, 1).map_err(|e| e.to_string())?;
    Ok(user(&prompts[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_line_is_a_question() {
        let text = concat!(
            "{\"question\": \"A?\", \"pmid\": 1}\n\n{\"prompt\": \"B?\"}\n",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"C?\"}]}\n{\"turns\": [\"D?\", \"E?\"]}\n",
            "{\"lang\": \"go\", \"code\": \"func f() {}\"}\n"
        );
        let questions = parse(text, None).unwrap();
        let said: Vec<&str> = questions.iter().map(|m| m[0]["content"].as_str().unwrap()).collect();
        assert_eq!(said[..4], ["A?", "B?", "C?", "D?"]);
        assert_eq!(said[4], "Document this Go function:\n```go\nfunc f() {}\n```");
        assert_eq!(parse(text, Some(2)).unwrap().len(), 2);
        for (bad, word) in [
            ("", "no question"),
            ("{}", "line 1"),
            ("{\"question\": \"a\"}\n[", "line 2"),
            ("{\"lang\": \"x\", \"code\": \"\"}", "`x`"),
        ] {
            assert!(parse(bad, None).unwrap_err().contains(word), "{bad}");
        }
    }
}

//! Questions from JSONL files, one object a line.
//!
//! Invariant: a line that cannot be used is refused with its number and what was expected; blank lines are no lines.

use pelton::Error;
use serde_json::{Map, Value};

/// Which members of a line's object are what. Members may be named by path: `question.text`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields {
    /// What is asked.
    pub question: String,
    /// What is to be read first: a string or an array of strings; may be missing.
    pub context: String,
    /// The right answer: a string, an array of acceptable ones, or, of choices, its number from 0 or its label.
    pub answer: String,
    /// The choices: an array of strings, or `{"text": […], "label": […]}`.
    pub choices: String,
    /// The choices of every question, in place of the member.
    pub fixed_choices: Vec<String>,
}

impl Default for Fields {
    /// Members of the names of these fields.
    fn default() -> Fields {
        let [question, context, answer, choices] = ["question", "context", "answer", "choices"].map(String::from);
        Fields { question, context, answer, choices, fixed_choices: Vec::new() }
    }
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The line it was in, counted from 1.
    pub line: usize,
    /// What is asked.
    pub question: String,
    /// What is to be read first; empty where there is nothing.
    pub context: String,
    /// The choices; empty where the answer is free.
    pub choices: Vec<String>,
    /// Acceptable answers; of choices, the right one.
    pub answers: Vec<String>,
    /// Which choice is right.
    pub right: usize,
}

/// Reads the questions of a file that messages call `name`. `with_choices` wants choices, else they are not looked for;
/// `limit` ends reading.
///
/// # Errors
/// [`Error::Usage`] names the line and what is wrong with it.
pub fn read_records(
    name: &str,
    text: &str,
    fields: &Fields,
    with_choices: bool,
    limit: Option<usize>,
) -> Result<Vec<Record>, Error> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let mut records = Vec::new();
    for (at, line) in lines.take(limit.unwrap_or(usize::MAX)) {
        let record = read_line(line, at + 1, fields, with_choices);
        records.push(record.map_err(|what| Error::Usage(format!("{name}: line {}: {what}", at + 1)))?);
    }
    if records.is_empty() {
        return Err(Error::Usage(format!("{name}: no questions; expected one JSON object a line")));
    }
    Ok(records)
}

fn read_line(line: &str, number: usize, fields: &Fields, with_choices: bool) -> Result<Record, String> {
    let object: Map<String, Value> =
        serde_json::from_str(line).map_err(|e| format!("expected a JSON object: {}", said(&e)))?;
    let at = |path: &str| {
        let mut parts = path.split('.');
        let first = object.get(path).or_else(|| object.get(parts.next()?));
        if object.contains_key(path) { first } else { parts.try_fold(first?, |value, part| value.get(part)) }
    };
    let missing = |path: &str, expected: &str| format!("`{path}`: expected {expected}");
    let question = at(&fields.question).and_then(Value::as_str).filter(|q| !q.trim().is_empty());
    let question = question.ok_or_else(|| missing(&fields.question, "a question"))?.to_string();
    let context = match at(&fields.context) {
        None | Some(Value::Null) => String::new(),
        Some(value) => {
            let parts = strings(value).ok_or_else(|| missing(&fields.context, "a string or an array of strings"))?;
            parts.join("\n\n")
        }
    };
    let answer = at(&fields.answer).ok_or_else(|| missing(&fields.answer, "the right answer"))?;
    if !with_choices {
        let answers = strings(answer).filter(|answers| !answers.is_empty());
        let answers = answers.ok_or_else(|| missing(&fields.answer, "a string or an array of strings"))?;
        return Ok(Record { line: number, question, context, choices: Vec::new(), answers, right: 0 });
    }
    let (choices, labels) = match (fields.fixed_choices.is_empty(), at(&fields.choices)) {
        (false, _) => (fields.fixed_choices.clone(), Vec::new()),
        (true, Some(Value::Object(both))) => {
            let texts = both.get("text").and_then(strings).unwrap_or_default();
            (texts, both.get("label").and_then(strings).unwrap_or_default())
        }
        (true, value) => (value.and_then(strings).unwrap_or_default(), Vec::new()),
    };
    if choices.len() < 2 || choices.iter().any(|c| c.trim().is_empty()) {
        return Err(missing(&fields.choices, "an array of two choices or more, none of them empty"));
    }
    let right = which(answer, &choices, &labels).ok_or_else(|| {
        let last = choices.len() - 1;
        missing(&fields.answer, &format!("one of the choices, its number (0 to {last}) or its letter, found {answer}"))
    })?;
    Ok(Record { line: number, question, context, answers: vec![choices[right].clone()], choices, right })
}

/// What is wrong with a line's JSON; every line is the first one to the parser.
fn said(e: &serde_json::Error) -> String {
    e.to_string().replace(" at line 1 column ", " at column ")
}

/// A string, or an array of nothing else.
fn strings(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(items) => items.iter().map(|v| v.as_str().map(str::to_string)).collect(),
        _ => None,
    }
}

/// The choice that an answer names.
fn which(answer: &Value, choices: &[String], labels: &[String]) -> Option<usize> {
    if let Some(number) = answer.as_u64() {
        return usize::try_from(number).ok().filter(|n| *n < choices.len());
    }
    let answer = answer.as_str()?.trim();
    let is = |text: &String| text.trim().eq_ignore_ascii_case(answer);
    let letter = || {
        let mut chars = answer.chars();
        let letter = chars.next().filter(|c| c.is_ascii_alphabetic() && chars.next().is_none())?;
        Some(usize::from(letter.to_ascii_uppercase() as u8 - b'A')).filter(|n| *n < choices.len())
    };
    labels.iter().position(is).filter(|n| *n < choices.len()).or_else(|| choices.iter().position(is)).or_else(letter)
}

/// The words around a question: `{question}` and `{context}` stand for the record's own, `\n` for a new line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(String);

impl Template {
    /// For continuing plain text, as the field asks base models.
    pub const PLAIN: &'static str = "{context}\n\nQuestion: {question}\nAnswer:";
    /// For a message to a model that chats.
    pub const CHAT: &'static str = "{context}\n\n{question}";

    /// Reads a template.
    ///
    /// # Errors
    /// [`Error::Usage`] where it has no `{question}` or names something else.
    pub fn parse(text: &str) -> Result<Template, Error> {
        let text = text.replace("\\n", "\n");
        let rest = text.replace("{question}", "").replace("{context}", "");
        if !text.contains("{question}") {
            return Err(Error::Usage(format!("--prompt {text:?}: expected {{question}} in it, {{context}} may be")));
        }
        if let Some(at) = rest.find(['{', '}']) {
            let near: String = rest[at..].chars().take(20).collect();
            return Err(Error::Usage(format!(
                "--prompt: {near:?}: only {{question}} and {{context}} stand for something"
            )));
        }
        Ok(Template(text))
    }

    /// The prompt of a record; without a context there are no blank lines in its place.
    pub fn fill(&self, record: &Record) -> String {
        // In one pass: a context that spells {question} is text.
        let mut out = String::new();
        let mut rest = self.0.as_str();
        while let Some(at) = rest.find('{') {
            out.push_str(&rest[..at]);
            let is_context = rest[at..].starts_with("{context}");
            out.push_str(if is_context { &record.context } else { &record.question });
            rest = &rest[at + if is_context { "{context}".len() } else { "{question}".len() }..];
        }
        out.push_str(rest);
        if record.context.is_empty() { out.trim_start_matches('\n').to_string() } else { out }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, with_choices: bool) -> Result<Vec<Record>, Error> {
        read_records("q.jsonl", text, &Fields::default(), with_choices, None)
    }

    #[test]
    fn answers_may_be_numbers_letters_labels_or_texts() {
        let right = |answer: &str, choices: &str| {
            let line = format!("{{\"question\": \"Q?\", \"choices\": {choices}, \"answer\": {answer}}}");
            read(&line, true).unwrap()[0].right
        };
        let plain = r#"["red", "green", "blue"]"#;
        assert_eq!([right("2", plain), right("\"b\"", plain), right("\" GREEN\"", plain)], [2, 1, 1]);
        let labelled = r#"{"text": ["red", "green"], "label": ["2", "A"]}"#;
        assert_eq!([right("\"A\"", labelled), right("\"2\"", labelled), right("\"red\"", labelled)], [1, 0, 0]);
    }

    #[test]
    fn members_may_have_other_names() {
        let line = r#"{"q": {"text": "Is it?"}, "contexts": ["One.", "Two."], "decision": "maybe", "a.b": 1}"#;
        let names = ["q.text", "contexts", "decision", "none"].map(String::from);
        let [question, context, answer, choices] = names;
        let fixed_choices = ["yes", "no", "maybe"].map(String::from).to_vec();
        let fields = Fields { question, context, answer, choices, fixed_choices };
        let record = &read_records("f", &format!("\n{line}\n\n"), &fields, true, None).unwrap()[0];
        assert_eq!((record.line, record.right, record.context.as_str()), (2, 2, "One.\n\nTwo."));
        let free = &read_records("f", line, &fields, false, None).unwrap()[0];
        assert_eq!((&free.answers[..], free.choices.len()), (&["maybe".to_string()][..], 0));
    }

    #[test]
    fn bad_lines_are_named() {
        let refused = |text: &str, with_choices, words: &[&str]| {
            let error = read(text, with_choices).unwrap_err().to_string();
            assert!(words.iter().all(|w| error.contains(w)), "{error}");
        };
        let good = r#"{"question": "Q?", "answer": "a"}"#;
        refused("", false, &["q.jsonl", "no questions"]);
        refused(&format!("{good}\n\n{{\"question\": 1"), false, &["line 3", "JSON object", "at column"]);
        refused("[1]", false, &["line 1", "JSON object"]);
        refused(r#"{"answer": "a"}"#, false, &["line 1", "`question`"]);
        refused(r#"{"question": " ", "answer": "a"}"#, false, &["`question`"]);
        refused(r#"{"question": "Q?", "answer": {"a": 1}}"#, false, &["`answer`", "array of strings"]);
        refused(r#"{"question": "Q?", "answer": [], "context": 5}"#, false, &["`context`"]);
        refused(good, true, &["`choices`", "two choices"]);
        refused(r#"{"question": "Q?", "answer": 3, "choices": ["a", "b", "c"]}"#, true, &["0 to 2", "found 3"]);
        refused(r#"{"question": "Q?", "answer": "D", "choices": ["x", "y"]}"#, true, &["`answer`"]);
        refused(r#"{"question": "Q?", "answer": 0, "choices": ["x", ""]}"#, true, &["none of them empty"]);
        assert_eq!(read(&format!("{good}\nnot read"), false).unwrap_err().to_string().matches("line 2").count(), 1);
        assert_eq!(
            read_records("f", &format!("{good}\nnot read"), &Fields::default(), false, Some(1)).unwrap().len(),
            1
        );
    }

    #[test]
    fn templates_are_filled_in_one_pass() {
        let line = r#"{"question": "Is {context} text?", "context": "A {question}.", "answer": "a"}"#;
        let record = &read(line, false).unwrap()[0];
        let plain = Template::parse(Template::PLAIN).unwrap();
        assert_eq!(plain.fill(record), "A {question}.\n\nQuestion: Is {context} text?\nAnswer:");
        let record = &read(r#"{"question": "Q?", "answer": "a"}"#, false).unwrap()[0];
        assert_eq!(plain.fill(record), "Question: Q?\nAnswer:");
        assert_eq!(Template::parse("Say:\\n{question}").unwrap().fill(record), "Say:\nQ?");
        assert!(Template::parse("no place").unwrap_err().to_string().contains("{question}"));
        assert!(Template::parse("{question} {answer}").unwrap_err().to_string().contains("{answer}"));
    }
}

//! A documentation text as a comment in the language's own style.
//!
//! Invariant: no text can end its comment or docstring early, make a doc test of prose, or form an escape
//! that the compiler reads inside comments.

use super::fence::{Fences, Line, fence_len};
use crate::item::Item;
use crate::language::Language;

/// Columns that a comment may take, with its indentation.
const WIDTH: usize = 100;
/// Columns that a tab counts.
const TAB: usize = 4;

/// The lines of the comment, each after `indent`, without line ends.
pub(super) fn render(item: &Item, doc: &str, indent: &str) -> Vec<String> {
    let columns: usize = indent.chars().map(|c| if c == '\t' { TAB } else { 1 }).sum();
    let room = |marks: usize| WIDTH.saturating_sub(columns + marks).max(40);
    let lines = match item.language {
        Language::Rust => prefixed("///", &wrap(&rust_text(doc), room(4))),
        Language::Go => prefixed("//", &wrap(&go_text(item, doc), room(3))),
        Language::Python => docstring(doc, room(0)),
        language => block(&wrap(&block_text(language, doc), room(3)), room(0)),
    };
    lines.into_iter().map(|line| if line.is_empty() { line } else { format!("{indent}{line}") }).collect()
}

fn prefixed(mark: &str, lines: &[String]) -> Vec<String> {
    lines.iter().map(|line| if line.is_empty() { mark.to_owned() } else { format!("{mark} {line}") }).collect()
}

/// `/** one line */`, or a block with a star on each line.
fn block(lines: &[String], room: usize) -> Vec<String> {
    if let [line] = lines
        && line.chars().count() + 7 <= room
    {
        return vec![format!("/** {line} */")];
    }
    let mut out = vec!["/**".to_owned()];
    out.extend(lines.iter().map(|line| if line.is_empty() { " *".to_owned() } else { format!(" * {line}") }));
    out.push(" */".to_owned());
    out
}

fn docstring(doc: &str, room: usize) -> Vec<String> {
    let doc = doc.replace('\\', "\\\\").replace("\"\"\"", "\\\"\\\"\\\"");
    // The quotes take three columns of the first line.
    let mut lines = wrap_after(&doc, room - 3, room);
    if let Some(first) = lines.first_mut() {
        // Four quotes in a row would close the string one too early.
        if let Some(rest) = first.strip_prefix('"') {
            *first = format!("\\\"{rest}");
        }
    }
    if let [line] = lines.as_mut_slice() {
        if let Some(rest) = line.strip_suffix('"').filter(|rest| !rest.ends_with('\\')) {
            *line = format!("{rest}\\\"");
        }
        if line.chars().count() + 6 <= room {
            return vec![format!("\"\"\"{line}\"\"\"")];
        }
    }
    if let Some(first) = lines.first_mut() {
        first.insert_str(0, "\"\"\"");
    }
    lines.push("\"\"\"".to_owned());
    lines
}

/// Escapes what ends a block comment, and in Java what the compiler reads as a Unicode escape.
fn block_text(language: Language, doc: &str) -> String {
    match language {
        Language::C | Language::Cpp => doc.replace("*/", "* /").replace("/*", "/ *"),
        Language::Java => doc.replace("*/", "*&#47;").replace("\\u", "&#92;u"),
        _ => doc.replace("*/", "*&#47;"),
    }
}

/// Keeps rustdoc from making doc tests: indented prose and fences of Rust or of no language would be compiled.
fn rust_text(doc: &str) -> String {
    let mut out = Vec::new();
    let mut fences = Fences::default();
    for line in doc.lines() {
        match fences.line(line) {
            Line::Open(fence, tag) => out.push(format!("{fence}{}", rust_tag(tag))),
            Line::Code(line) | Line::Close(line) => out.push(line.to_owned()),
            Line::Text(line) => {
                let text = line.trim_start();
                let indent = line.len() - text.len();
                // A fence behind the mark of a list or a quotation.
                let inner = text.trim_start_matches(|c: char| c.is_ascii_digit() || " \t>*+-.)".contains(c));
                if fence_len(inner) > 0 {
                    out.push(format!("{}\\{inner}", &text[..text.len() - inner.len()]));
                } else if indent < 4 {
                    out.push(line.to_owned());
                } else {
                    out.push(format!("{}{text}", if indent < 8 { "  " } else { "   " }));
                }
            }
        }
    }
    out.extend(fences.end());
    out.join("\n")
}

/// The tag of a fence such that rustdoc does not compile what it holds. (All words that rustdoc knows make a doc
/// test, so only a plain name of a language may pass.)
fn rust_tag(tag: &str) -> &str {
    const RUSTDOC: [&str; 5] = ["should_panic", "no_run", "compile_fail", "test_harness", "custom"];
    let word = tag.split_whitespace().next().unwrap_or_default();
    let is_name = !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "_+#-".contains(c));
    let is_code = word.len() == 5 && word.starts_with('E') && word[1..].bytes().all(|b| b.is_ascii_digit());
    let prefixes = ["rust", "ignore", "edition", "standalone"];
    if RUSTDOC.contains(&word) || is_code || prefixes.iter().any(|p| word.starts_with(p)) {
        "ignore"
    } else if is_name && word == tag {
        tag
    } else {
        "text"
    }
}

/// Go's comments begin with the name of what they document.
fn go_text(item: &Item, doc: &str) -> String {
    let name = &item.name;
    let word = doc.split_whitespace().next().unwrap_or_default();
    let bare = |word: &str| word.trim_matches(|c: char| !(c.is_alphanumeric() || c == '_')).to_owned();
    let second = doc.split_whitespace().nth(1).unwrap_or_default();
    if bare(word) == *name || (["A", "An", "The"].contains(&word) && bare(second) == *name) {
        return doc.to_owned();
    }
    let is_type = !item.kind.is_function();
    // The first word without the punctuation after it.
    let start = doc.find(word).unwrap_or(0);
    let letters = word.trim_end_matches(['.', ',', ':', ';']);
    let rest = &doc[start + letters.len()..];
    if is_type && ["A", "An", "The"].contains(&letters) {
        return format!("{name} is {}{rest}", letters.to_lowercase());
    }
    let plain =
        letters.chars().all(|c| c.is_ascii_alphabetic()) && !letters.chars().skip(1).any(|c| c.is_ascii_uppercase());
    match third_person(&letters.to_lowercase()).filter(|_| plain && !is_type) {
        Some(verb) => format!("{name} {verb}{rest}"),
        None => format!("{name}: {doc}"),
    }
}

/// `returns` of `return` and of `returns`; `None` for a word that is no verb known to open a comment.
fn third_person(word: &str) -> Option<String> {
    const VERBS: [&str; 52] = [
        "add",
        "append",
        "apply",
        "build",
        "calculate",
        "call",
        "check",
        "clear",
        "close",
        "compute",
        "convert",
        "copy",
        "count",
        "create",
        "decode",
        "delete",
        "determine",
        "encode",
        "ensure",
        "execute",
        "extract",
        "find",
        "format",
        "generate",
        "get",
        "handle",
        "implement",
        "initialize",
        "insert",
        "load",
        "make",
        "merge",
        "open",
        "parse",
        "perform",
        "print",
        "process",
        "provide",
        "read",
        "register",
        "remove",
        "render",
        "replace",
        "return",
        "run",
        "send",
        "set",
        "sort",
        "start",
        "update",
        "validate",
        "write",
    ];
    if VERBS.contains(&word) {
        return Some(format!("{word}s"));
    }
    let verb = word.len() > 3 && word.ends_with('s') && !["this", "thus", "class", "does", "always"].contains(&word);
    (verb && !word.ends_with("ss") && !word.ends_with("us")).then(|| word.to_owned())
}

/// Breaks long lines at spaces, outside of fenced code; what follows a break keeps the line's indentation.
fn wrap(text: &str, width: usize) -> Vec<String> {
    wrap_after(text, width, width)
}

/// [`wrap`], where the first line has another width.
fn wrap_after(text: &str, first_width: usize, other_width: usize) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut fences = Fences::default();
    for line in text.lines() {
        let mut width = if out.is_empty() { first_width } else { other_width };
        if !matches!(fences.line(line), Line::Text(_)) || line.chars().count() <= width {
            out.push(line.to_owned());
            continue;
        }
        let indent = &line[..line.len() - line.trim_start().len()];
        let item = ["- ", "* ", "+ "].iter().any(|bullet| line.trim_start().starts_with(bullet));
        let hanging = format!("{indent}{}", if item { "  " } else { "" });
        let mut current = indent.to_owned();
        let mut n_words = 0;
        for word in line.split_whitespace() {
            if n_words > 0 && current.chars().count() + 1 + word.chars().count() > width {
                out.push(std::mem::replace(&mut current, hanging.clone()));
                width = other_width;
                n_words = 0;
            }
            if n_words > 0 {
                current.push(' ');
            }
            current.push_str(word);
            n_words += 1;
        }
        out.push(current);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::item::{InsertPoint, ItemKind};
    use crate::skip::SkipReason;

    fn lines(language: Language, name: &str, doc: &str, indent: &str) -> String {
        let item = Item {
            language,
            kind: ItemKind::Function,
            name: name.into(),
            qualified_name: name.into(),
            path: "f".into(),
            line_start: 1,
            line_end: 1,
            bytes: 0..0,
            signature: String::new(),
            code: String::new(),
            doc: None,
            insert: InsertPoint::Nowhere(SkipReason::SharedLine),
            inherits_doc: false,
        };
        render(&item, doc, indent).join("\n")
    }

    #[test]
    fn nothing_breaks_out() {
        assert_eq!(lines(Language::C, "f", "Ends */ here /* x", ""), "/** Ends * / here / * x */");
        assert_eq!(lines(Language::Java, "f", "A \\u002a\\u002f */ b", ""), "/** A &#92;u002a&#92;u002f *&#47; b */");
        let text = lines(Language::JavaScript, "f", "**//**/", "");
        assert_eq!(text.matches("*/").count(), 1, "{text}");
        assert_eq!(lines(Language::Python, "f", "a \"\"\" b \\", "    "), "    \"\"\"a \\\"\\\"\\\" b \\\\\"\"\"");
        assert_eq!(lines(Language::Python, "f", "\"x\"", ""), "\"\"\"\\\"x\\\"\"\"\"");
    }

    #[test]
    fn rust_prose_never_becomes_a_doc_test() {
        let doc = "Adds.\n\nArgs:\n    a: One.\n\n```\nadd(1)\n```\n```rust\nadd(2)";
        let expected = "/// Adds.\n///\n/// Args:\n///   a: One.\n///\n/// ```text\n/// add(1)\n/// ```\n/// ```ignore\n/// add(2)\n/// ```";
        assert_eq!(lines(Language::Rust, "f", doc, ""), expected);
    }

    #[test]
    fn no_fence_becomes_a_doc_test() {
        for (doc, expected) in [
            ("~~~\nx\n~~~", "~~~text x ~~~"),
            ("````rust\n```\n````", "````ignore ``` ````"),
            ("```text,rust\nx\n```", "```text x ```"),
            ("```E0308\nx\n```", "```ignore x ```"),
            ("```edition2021\nx\n```", "```ignore x ```"),
            ("```python\nx\n```", "```python x ```"),
            ("- a\n  ```\nx\n  ```\nprose", "- a ```text x ``` prose"),
            ("> ```\n> x", "> \\``` > x"),
            ("1. ~~~\n   x", "1. \\~~~    x"),
        ] {
            let text = lines(Language::Rust, "f", doc, "");
            assert_eq!(text.replace("/// ", "").replace('\n', " "), expected, "{doc}");
        }
    }

    #[test]
    fn go_comments_begin_with_the_name() {
        assert_eq!(lines(Language::Go, "Sum", "Returns the sum.", "\t"), "\t// Sum returns the sum.");
        assert_eq!(lines(Language::Go, "Sum", "Return the sum.", ""), "// Sum returns the sum.");
        assert_eq!(lines(Language::Go, "Sum", "Sum adds.\n\nMore.", ""), "// Sum adds.\n//\n// More.");
        assert_eq!(lines(Language::Go, "Sum", "`x` is added.", ""), "// Sum: `x` is added.");
    }

    #[test]
    fn long_lines_wrap_at_one_hundred_columns() {
        let doc = "word ".repeat(60) + "\n- " + &"item ".repeat(40);
        for language in Language::ALL {
            let text = lines(language, "word", doc.trim(), "        ");
            assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{language}: {text}");
            assert_eq!(text.matches("word").count(), 60, "{language}");
        }
    }
}

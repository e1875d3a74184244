//! Text for Markdown pages: escapes, code spans, and documentation of any style as Markdown.
//!
//! Invariant: whatever an entry holds, the headings and fences of the page around it stay whole.

use super::fence::{Fences, Line};

/// Text with Markdown's signs escaped.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for sign in text.chars() {
        match sign {
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '#' | '|' => out.extend(['\\', sign]),
            // Either ends a line of Markdown.
            '\n' | '\r' => out.push(' '),
            _ => out.push(sign),
        }
    }
    out
}

/// A code span that holds any text.
pub(super) fn code_span(text: &str) -> String {
    let text = text.replace(['\n', '\r'], " ");
    let quotes = "`".repeat(longest_run(&text) + 1);
    let pad = if text.starts_with('`') || text.ends_with('`') { " " } else { "" };
    format!("{quotes}{pad}{text}{pad}{quotes}")
}

/// A fenced block that holds any text.
pub(super) fn fenced(tag: &str, text: &str) -> String {
    let quotes = "`".repeat((longest_run(text) + 1).max(3));
    format!("{quotes}{tag}\n{text}\n{quotes}\n")
}

fn longest_run(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

/// A documentation text as Markdown: sections such as `Args:` become lists, headings sink below the page's,
/// angle brackets outside of code are escaped, an open fence is closed.
pub(super) fn as_markdown(doc: &str) -> String {
    let mut out: Vec<String> = Vec::new();
    let mut fences = Fences::default();
    let mut in_section = false;
    // A carriage return alone is a line break too.
    for line in doc.replace("\r\n", "\n").replace('\r', "\n").lines() {
        let line = match fences.line(line) {
            Line::Open(fence, tag) => {
                out.push(format!("{fence}{tag}"));
                continue;
            }
            Line::Code(text) | Line::Close(text) => {
                out.push(text.to_owned());
                continue;
            }
            Line::Text(line) => line,
        };
        let text = line.trim_start();
        let indent = line.len() - text.len();
        in_section &= indent > 0 || text.is_empty();
        if indent == 0 && is_section(text) {
            in_section = true;
            out.extend([format!("**{text}**"), String::new()]);
        } else if in_section && !text.is_empty() {
            let mark = if indent <= 4 && !text.starts_with(['-', '*']) { "- " } else { "" };
            let pad = if indent > 4 { "  " } else { "" };
            out.push(format!("{pad}{mark}{}", inert(text)));
        } else if text.starts_with('#') {
            out.push(format!("###{}", inert(text)));
        } else if is_underline(text) {
            // Below a line of text, this would make a heading of it.
            out.extend([String::new(), text.to_owned()]);
        } else {
            if (text.starts_with('@') || text.starts_with(":param") || text.starts_with(":return"))
                && let Some(last) = out.last_mut().filter(|last| !last.is_empty())
            {
                last.push_str("  ");
            }
            out.push(inert(line));
        }
    }
    out.extend(fences.end());
    out.join("\n").trim_end().to_owned()
}

/// A line of `=` or of `-`.
fn is_underline(text: &str) -> bool {
    let text = text.trim_end();
    !text.is_empty() && (text.bytes().all(|b| b == b'=') || text.bytes().all(|b| b == b'-'))
}

/// `Args:`, `Returns:`, `Raises:` and the like, alone on a line.
fn is_section(text: &str) -> bool {
    let name = text.strip_suffix(':').unwrap_or_default();
    name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.len() <= 24
        && name.chars().all(|c| c.is_ascii_alphabetic() || c == ' ')
}

/// Escapes `<` outside of code spans, so that `Vec<T>` is not taken for HTML, and backticks that no others on the
/// line answer, so that no span reaches into the next line.
fn inert(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find(['<', '`', '\\']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let len = match rest.as_bytes()[0] {
            b'<' => {
                out.push_str("&lt;");
                1
            }
            // What a backslash escapes opens nothing.
            b'\\' if rest[1..].starts_with(['`', '\\']) => {
                out.push_str(&rest[..2]);
                2
            }
            b'\\' => {
                out.push('\\');
                1
            }
            _ => {
                let run = rest.len() - rest.trim_start_matches('`').len();
                let len = span_len(rest, run);
                match len {
                    Some(len) => out.push_str(&rest[..len]),
                    None => out.push_str(&"\\`".repeat(run)),
                }
                len.unwrap_or(run)
            }
        };
        rest = &rest[len..];
    }
    out + rest
}

/// Length of the code span that `text` begins with, between two runs of `run` backticks.
fn span_len(text: &str, run: usize) -> Option<usize> {
    let mut at = run;
    loop {
        at += text[at..].find('`')?;
        let len = text[at..].len() - text[at..].trim_start_matches('`').len();
        at += len;
        if len == run {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_past_its_entry() {
        // Fences: tildes, nested, longer, indented into a list, and one that is none.
        assert_eq!(as_markdown("~~~\nx"), "~~~\nx\n~~~");
        assert_eq!(as_markdown("````\n```\nx"), "````\n```\nx\n````");
        assert_eq!(as_markdown("- a\n  ```c\ncode\n  ```\nb"), "- a\n```c\ncode\n```\nb");
        assert_eq!(as_markdown("```a`b\nc"), "\\`\\`\\`a\\`b\nc");
        // HTML behind a backtick that nothing answers, on its own line or on the next.
        assert_eq!(as_markdown("it`s <!-- x"), "it\\`s &lt;!-- x");
        assert_eq!(as_markdown("a ` b\n` <i> `"), "a \\` b\n` <i> `");
        assert_eq!(as_markdown("``a`<b>`` \\`<c>`"), "``a`<b>`` \\`&lt;c>\\`");
        assert_eq!(as_markdown("a\r# b\r\n~~~\rc"), "a\n#### b\n~~~\nc\n~~~");
        assert_eq!((escape("a\r# b").as_str(), code_span("a\r\nb").as_str()), ("a \\# b", "`a  b`"));
        assert_eq!(as_markdown("Title\n===\nb\n---"), "Title\n\n===\nb\n\n---");
    }

    #[test]
    fn a_page_survives_its_entries() {
        assert_eq!(
            as_markdown("Makes a Vec<T> of `A<B>`.\n\n# Errors\n\n```\nx"),
            "Makes a Vec&lt;T> of `A<B>`.\n\n#### Errors\n\n```\nx\n```"
        );
        let doc = "Adds.\n\nArgs:\n    a: One.\n        More.\n    b: Two.\n\nReturns:\n    The sum.";
        let expected = "Adds.\n\n**Args:**\n\n- a: One.\n  More.\n- b: Two.\n\n**Returns:**\n\n- The sum.";
        assert_eq!(as_markdown(doc), expected);
        assert_eq!(code_span("a`b"), "``a`b``");
        assert_eq!(fenced("c", "```"), "````c\n```\n````\n");
        assert_eq!(escape("__init__|<x>"), "\\_\\_init\\_\\_\\|\\<x\\>");
    }
}

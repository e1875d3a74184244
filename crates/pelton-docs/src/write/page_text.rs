//! Text for Markdown pages: escapes, code spans, and documentation of any style as Markdown.
//!
//! Invariant: whatever an entry holds, the headings and fences of the page around it stay whole.

/// Text with Markdown's signs escaped.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for sign in text.chars() {
        match sign {
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '#' | '|' => out.extend(['\\', sign]),
            '\n' => out.push(' '),
            _ => out.push(sign),
        }
    }
    out
}

/// A code span that holds any text.
pub(super) fn code_span(text: &str) -> String {
    let text = text.replace('\n', " ");
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
    let mut fenced = false;
    let mut in_section = false;
    for line in doc.lines() {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        if text.starts_with("```") {
            fenced = !fenced;
            out.push(line.to_owned());
            continue;
        }
        if fenced {
            out.push(line.to_owned());
            continue;
        }
        in_section &= indent > 0 || text.is_empty();
        if indent == 0 && is_section(text) {
            in_section = true;
            out.extend([format!("**{text}**"), String::new()]);
        } else if in_section && !text.is_empty() {
            let mark = if indent <= 4 && !text.starts_with(['-', '*']) { "- " } else { "" };
            let pad = if indent > 4 { "  " } else { "" };
            out.push(format!("{pad}{mark}{}", angle_escaped(text)));
        } else if text.starts_with('#') {
            out.push(format!("###{}", angle_escaped(text)));
        } else {
            if (text.starts_with('@') || text.starts_with(":param") || text.starts_with(":return"))
                && let Some(last) = out.last_mut().filter(|last| !last.is_empty())
            {
                last.push_str("  ");
            }
            out.push(angle_escaped(line));
        }
    }
    if fenced {
        out.push("```".to_owned());
    }
    out.join("\n").trim_end().to_owned()
}

/// `Args:`, `Returns:`, `Raises:` and the like, alone on a line.
fn is_section(text: &str) -> bool {
    let name = text.strip_suffix(':').unwrap_or_default();
    name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.len() <= 24
        && name.chars().all(|c| c.is_ascii_alphabetic() || c == ' ')
}

/// Escapes `<` outside of code spans, so that `Vec<T>` is not taken for HTML.
fn angle_escaped(line: &str) -> String {
    let in_code = |at: usize| line[..at].matches('`').count() % 2 == 1;
    let mut out = String::with_capacity(line.len());
    for (at, sign) in line.char_indices() {
        if sign == '<' && !in_code(at) { out.push_str("&lt;") } else { out.push(sign) }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

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

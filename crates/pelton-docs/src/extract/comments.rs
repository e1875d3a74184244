//! Doc comments that a source already has: which comments before an item are its documentation, and their
//! text without marks.
//!
//! Invariant: licence headers, directives (`//go:noinline`, `eslint-disable…`) and comments that trail other
//! code are never taken for documentation.

use std::ops::Range;

use tree_sitter::Node;

use super::Collector;
use crate::item::ExistingDoc;

/// What stands before an item.
pub(super) struct Leading {
    pub(super) doc: Option<ExistingDoc>,
    /// Where a new doc comment goes before: directives, or the item.
    pub(super) insert: usize,
}

impl<'t> Collector<'_, 't> {
    /// JSDoc, TSDoc and Javadoc: the last `/** … */` among the comments before `start`.
    pub(super) fn block_doc(&self, before: &[Node<'t>], start: usize) -> Leading {
        let mut insert = start;
        let mut directives = true;
        for node in before.iter().rev().filter(|node| node.is_named()) {
            let text = self.text(*node);
            if !node.kind().ends_with("comment") || self.trails(*node) {
                break;
            }
            if text.starts_with("/**") && text.len() > 4 {
                let clean = clean_block(text);
                if is_header(&clean) {
                    break;
                }
                let doc = ExistingDoc { lines: self.whole_lines(&node.byte_range()), text: clean };
                return Leading { doc: Some(doc), insert };
            }
            directives &= is_directive(text);
            if directives {
                insert = node.start_byte();
            }
        }
        Leading { doc: None, insert }
    }

    /// Go, C and C++: the comments that touch the item with no blank line between.
    pub(super) fn adjacent_doc(&self, before: &[Node<'t>], item: Node<'t>) -> Leading {
        let mut first_row = item.start_position().row;
        let mut span: Option<Range<usize>> = None;
        let mut insert = item.start_byte();
        let mut parts: Vec<String> = Vec::new();
        for node in before.iter().rev().filter(|node| node.is_named()) {
            let text = self.text(*node).trim_end();
            let end_row = node.start_position().row + text.matches('\n').count();
            if node.kind() != "comment" || end_row + 1 < first_row || self.trails(*node) {
                break;
            }
            if text.starts_with("/*") && !parts.is_empty() {
                break;
            }
            first_row = node.start_position().row;
            if is_directive(text) {
                if parts.is_empty() {
                    insert = node.start_byte();
                }
                continue;
            }
            parts.push(if text.starts_with("/*") { clean_block(text) } else { clean_line(text) });
            let end = span.map_or(node.start_byte() + text.len(), |span| span.end);
            span = Some(node.start_byte()..end);
        }
        parts.reverse();
        let text = parts.join("\n").trim().to_owned();
        let text = if text.chars().any(char::is_alphanumeric) && !is_header(&text) { text } else { String::new() };
        let doc = span.filter(|_| !text.is_empty()).map(|span| ExistingDoc { lines: self.whole_lines(&span), text });
        Leading { doc, insert }
    }

    /// True where code precedes the comment on its line: it belongs to that code.
    pub(super) fn trails(&self, comment: Node<'_>) -> bool {
        let start = comment.start_byte();
        let line = super::finish::line_start(self.source, start);
        !self.source[line..start].trim().is_empty()
    }
}

/// A comment that speaks to a tool; it must stay next to the code.
fn is_directive(text: &str) -> bool {
    const STARTS: [&str; 7] = ["//go:", "//export ", "//nolint", "//lint:", "//line ", "// +build", "//sys"];
    const MARKS: [&str; 12] = [
        "eslint-",
        "@ts-",
        "prettier-ignore",
        "istanbul ",
        "biome-ignore",
        "NOLINT",
        "clang-format",
        "c8 ignore",
        "v8 ignore",
        "webpack",
        "@__PURE__",
        "#__PURE__",
    ];
    STARTS.iter().any(|start| text.starts_with(start))
        || (!text.starts_with("/**") && MARKS.iter().any(|mark| text.contains(mark)))
}

/// A comment about the file rather than the item.
fn is_header(text: &str) -> bool {
    const TAGS: [&str; 6] = ["@fileoverview", "@file", "@license", "@module", "@packageDocumentation", "@preserve"];
    let lower = text.to_ascii_lowercase();
    text.split_whitespace().any(|word| TAGS.contains(&word))
        || lower.starts_with("copyright")
        || lower.starts_with("spdx-")
        || lower.contains("licensed under")
        || lower.contains("all rights reserved")
}

/// A line comment without its marks.
pub(super) fn clean_line(text: &str) -> String {
    let text = text.trim_start_matches('/').trim_start_matches('!').trim_end();
    let text = text.strip_prefix('<').unwrap_or(text);
    text.strip_prefix(' ').unwrap_or(text).to_owned()
}

/// A block comment without its marks and its left edge of stars.
pub(super) fn clean_block(text: &str) -> String {
    let inner = text.strip_prefix("/*").unwrap_or(text);
    let inner = inner.strip_suffix("*/").unwrap_or(inner).trim_start_matches(['*', '!']).trim_end_matches('*');
    let lines: Vec<&str> = inner.lines().map(str::trim_end).collect();
    let starred =
        lines.iter().skip(1).filter(|line| !line.trim().is_empty()).all(|line| line.trim_start().starts_with('*'));
    let mut out: Vec<String> = Vec::with_capacity(lines.len());
    for (index, line) in lines.iter().enumerate() {
        if index == 0 {
            out.push(line.trim().to_owned());
        } else if starred {
            let rest = line.trim_start().trim_start_matches('*');
            out.push(rest.strip_prefix(' ').unwrap_or(rest).to_owned());
        } else {
            out.push((*line).to_owned());
        }
    }
    if !starred {
        dedent_rest(&mut out);
    }
    out.join("\n").trim().to_owned()
}

/// Removes the blanks that all lines after the first have in common.
pub(super) fn dedent_rest(lines: &mut [String]) {
    let blanks = |line: &String| line.len() - line.trim_start_matches([' ', '\t']).len();
    let common = lines.iter().skip(1).filter(|line| !line.trim().is_empty()).map(blanks).min().unwrap_or(0);
    for line in lines.iter_mut().skip(1) {
        let cut = common.min(blanks(line));
        line.drain(..cut);
    }
}

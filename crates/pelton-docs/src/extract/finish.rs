//! From what a language found to the [`Item`]: lines, signature, the code for the model, the insertion point.
//!
//! Invariant: the code for the model never holds the item's own doc comment.

use std::ops::Range;

use tree_sitter::Node;

use super::{Collector, Found, Insert, Scope, children, join};
use crate::item::{InsertPoint, Item};
use crate::language::Language;
use crate::skip::SkipReason;

/// A type longer than this many lines shows no method bodies.
const WHOLE_TYPE_LINES: usize = 60;
/// A signature longer than this is cut (a type alias may go on for pages).
const MAX_SIGNATURE_BYTES: usize = 2000;

/// Nodes with a `body` that a long type leaves out.
const MEMBERS: [&str; 19] = [
    "function_item",
    "function_definition",
    "method_definition",
    "method_declaration",
    "constructor_declaration",
    "compact_constructor_declaration",
    "class_definition",
    "class_declaration",
    "interface_declaration",
    "enum_declaration",
    "record_declaration",
    "annotation_type_declaration",
    "class_specifier",
    "field_definition",
    "public_field_definition",
    "decorated_definition",
    "template_declaration",
    "enum_body_declarations",
    "abstract_class_declaration",
];

impl<'t> Collector<'_, 't> {
    /// Adds the item, or reports why not.
    pub(super) fn add(&mut self, found: Found<'t>, scope: &Scope) {
        if has_own_error(&found) {
            self.skip(found.definition, Some(&found.name), SkipReason::SyntaxError);
            return;
        }
        let bytes = found.start..found.outer.end_byte();
        let separator = self.language.separator();
        let insert = match &found.insert {
            Insert::At(point) => point.clone(),
            Insert::Before(offset) => self.before(*offset),
        };
        let item = Item {
            language: self.language,
            kind: found.kind,
            qualified_name: join(&join(&self.module, &scope.path, separator), &found.name, separator),
            path: self.path.to_owned(),
            line_start: found.outer.start_position().row + 1 - self.breaks(bytes.start, found.outer.start_byte()),
            line_end: found.outer.end_position().row + usize::from(!self.ends_with_break(&found)),
            signature: self.signature(&found),
            code: self.code(&found, &bytes),
            doc: found.doc,
            insert,
            inherits_doc: found.inherits_doc,
            name: found.name,
            bytes,
        };
        self.out.items.push(item);
    }

    /// Line breaks between two offsets.
    pub(super) fn breaks(&self, from: usize, to: usize) -> usize {
        self.source[from..to].matches('\n').count()
    }

    /// Some nodes (C's preprocessor lines) end after their line break.
    fn ends_with_break(&self, found: &Found<'_>) -> bool {
        self.source[..found.outer.end_byte()].ends_with('\n')
    }

    /// The insertion point on the line of `offset`, which must begin with `offset`'s code.
    pub(super) fn before(&self, offset: usize) -> InsertPoint {
        let line = line_start(self.source, offset);
        let indent = &self.source[line..offset];
        if indent.chars().all(|c| c == ' ' || c == '\t') {
            InsertPoint::Lines { offset: line, indent: indent.to_owned() }
        } else {
            InsertPoint::Nowhere(SkipReason::SharedLine)
        }
    }

    /// The whole lines of `range`, line break included, where nothing else stands on them.
    pub(super) fn whole_lines(&self, range: &Range<usize>) -> Option<Range<usize>> {
        let start = line_start(self.source, range.start);
        let end = line_end(self.source, range.end.max(start));
        let blank = |text: &str| text.trim().is_empty();
        (blank(&self.source[start..range.start]) && blank(&self.source[range.end.min(end)..end])).then_some(start..end)
    }

    fn signature(&self, found: &Found<'_>) -> String {
        let start =
            if self.language == Language::Python { found.definition.start_byte() } else { found.outer.start_byte() };
        let end = found.body.map_or(found.outer.end_byte(), |body| body.start_byte()).max(start);
        let mut text = self.source[start..end].to_owned();
        if self.language == Language::Python {
            // A comment may stand between the colon and the body.
            if let Some(colon) = colon(found.definition) {
                text = self.source[start..colon.start_byte().max(start)].to_owned();
            }
        }
        let text = dedent(&self.indent_of(start), &text);
        let mut text = text.trim_end().trim_end_matches([';', ',']).trim_end();
        if found.body.is_some() {
            text = text.trim_end_matches("=>").trim_end();
        }
        let mut signature = text.to_owned();
        if signature.len() > MAX_SIGNATURE_BYTES {
            let mut cut = MAX_SIGNATURE_BYTES;
            while !signature.is_char_boundary(cut) {
                cut -= 1;
            }
            signature.truncate(cut);
            signature.push_str(" …");
        }
        signature
    }

    fn code(&self, found: &Found<'t>, bytes: &Range<usize>) -> String {
        let mut cuts: Vec<(Range<usize>, &str)> = found.exclude.iter().map(|range| (range.clone(), "")).collect();
        let n_lines = self.source[bytes.clone()].lines().count();
        if !found.kind.is_function()
            && n_lines > WHOLE_TYPE_LINES
            && let Some(body) = found.body
        {
            self.elide_bodies(body, &mut cuts);
        }
        cuts.sort_by_key(|(range, _)| range.start);
        let mut code = String::new();
        let mut at = bytes.start;
        for (range, with) in cuts {
            if range.start < at || range.end > bytes.end {
                continue;
            }
            code.push_str(&self.source[at..range.start]);
            code.push_str(with);
            at = range.end;
        }
        code.push_str(&self.source[at..bytes.end]);
        let mut code = dedent(&self.indent_of(bytes.start), &code.replace("\r\n", "\n"));
        code.truncate(code.trim_end().len());
        if self.language == Language::Python && code.ends_with(':') {
            code.push_str("\n    ...");
        }
        code
    }

    /// The bodies of a type's functions and nested types.
    fn elide_bodies(&self, body: Node<'t>, cuts: &mut Vec<(Range<usize>, &'static str)>) {
        let replacement = if self.language == Language::Python { "..." } else { "{ … }" };
        let mut open = children(body);
        while let Some(member) = open.pop() {
            if !MEMBERS.contains(&member.kind()) {
                continue;
            }
            let value = member.child_by_field_name("value").unwrap_or(member);
            match value.child_by_field_name("body") {
                Some(inner) => cuts.push((inner.byte_range(), replacement)),
                None => open.extend(children(member)),
            }
        }
    }

    /// The blanks before `offset` on its line, or nothing where code precedes it.
    fn indent_of(&self, offset: usize) -> String {
        let before = &self.source[line_start(self.source, offset)..offset];
        if before.trim().is_empty() { before.to_owned() } else { String::new() }
    }
}

/// The colon that opens a Python body.
pub(super) fn colon<'t>(definition: Node<'t>) -> Option<Node<'t>> {
    children(definition).into_iter().rfind(|child| child.kind() == ":")
}

/// Offset of the start of the line that holds `offset`, after a byte order mark.
pub(crate) fn line_start(source: &str, offset: usize) -> usize {
    match source[..offset].rfind('\n') {
        Some(at) => at + 1,
        None if source.starts_with('\u{feff}') && offset >= 3 => 3,
        None => 0,
    }
}

/// Offset just past the line break of the line that holds `offset`; a range that ends right after a line
/// break ends there.
pub(crate) fn line_end(source: &str, offset: usize) -> usize {
    if offset > 0 && source.as_bytes()[offset - 1] == b'\n' {
        return offset;
    }
    source[offset..].find('\n').map_or(source.len(), |at| offset + at + 1)
}

/// Removes `indent` from the start of every line but the first that has it, or as much of it as is there.
fn dedent(indent: &str, text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (index, line) in text.split('\n').enumerate() {
        if index > 0 {
            out.push('\n');
        }
        let line = line.strip_suffix('\r').unwrap_or(line);
        if index == 0 {
            out.push_str(line);
        } else if let Some(rest) = line.strip_prefix(indent) {
            out.push_str(rest.trim_end_matches([' ', '\t']));
        } else {
            out.push_str(line.trim_end_matches([' ', '\t']));
        }
    }
    out
}

/// A syntax error in a function, or in a type outside of its members' own code.
fn has_own_error(found: &Found<'_>) -> bool {
    if !found.outer.has_error() {
        return false;
    }
    let Some(body) = found.body.filter(|_| !found.kind.is_function()) else {
        return true;
    };
    let bad =
        |node: Node<'_>| node.is_error() || node.is_missing() || (node.has_error() && !MEMBERS.contains(&node.kind()));
    children(body).into_iter().any(bad)
        || children(found.definition).into_iter().any(|child| child.id() != body.id() && bad(child))
}

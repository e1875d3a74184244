//! Python: functions, methods and classes, also under `if`, `try` and `with`; docstrings.
//!
//! Invariant: a new docstring is the first statement of its body, so it goes right after the colon's line,
//! before comments.

use tree_sitter::Node;

use super::comments::dedent_rest;
use super::finish::{colon, line_end, line_start};
use super::{Collector, Found, Insert, Inside, Place, children};
use crate::item::{ExistingDoc, InsertPoint, ItemKind};
use crate::skip::SkipReason;

pub(super) fn visit<'t>(c: &mut Collector<'_, 't>, place: &Place<'_, 't>) {
    let outer = place.node;
    let definition = match outer.kind() {
        "function_definition" | "class_definition" => outer,
        "decorated_definition" => match outer.child_by_field_name("definition") {
            Some(definition) => definition,
            None => return,
        },
        "if_statement"
        | "elif_clause"
        | "else_clause"
        | "try_statement"
        | "except_clause"
        | "except_group_clause"
        | "finally_clause"
        | "with_statement"
        | "block"
        | "ERROR" => return c.pass_through(outer, place.scope),
        _ => return,
    };
    let Some(name) = c.field(definition, "name") else {
        return c.skip(definition, None, SkipReason::SyntaxError);
    };
    let is_class = definition.kind() == "class_definition";
    if is_class && c.field(definition, "superclasses").is_some_and(|bases| bases.contains("TestCase")) {
        return c.skip(definition, Some(&name), SkipReason::TestItem);
    }
    if is_overload(c, outer) {
        return c.skip(definition, Some(&name), SkipReason::Overload);
    }
    let Some(body) = definition.child_by_field_name("body") else {
        return c.skip(definition, Some(&name), SkipReason::SyntaxError);
    };
    if is_class {
        c.enter(body, place.scope, &name, Inside::Type);
    }
    let docstring = docstring(c, body);
    let exclude = docstring.map(|node| docstring_lines(c, node)).into_iter().collect();
    let found = Found {
        kind: match (is_class, place.scope.inside) {
            (true, _) => ItemKind::Class,
            (false, Inside::Module) => ItemKind::Function,
            (false, _) => ItemKind::Method,
        },
        name,
        outer,
        definition,
        body: Some(body),
        start: outer.start_byte(),
        insert: Insert::At(insert_point(c, definition, body)),
        doc: docstring.map(|node| ExistingDoc { text: clean(c.text(node)), lines: c.whole_lines(&node.byte_range()) }),
        exclude,
        inherits_doc: false,
    };
    c.add(found, place.scope);
}

/// True under `@overload` or `@typing.overload`.
fn is_overload(c: &Collector<'_, '_>, outer: Node<'_>) -> bool {
    let named = |node: &Node<'_>| matches!(c.text(*node).trim(), "@overload" | "@typing.overload" | "@t.overload");
    outer.kind() == "decorated_definition"
        && children(outer).iter().any(|node| node.kind() == "decorator" && named(node))
}

/// The string that is the body's first statement.
fn docstring<'t>(c: &Collector<'_, '_>, body: Node<'t>) -> Option<Node<'t>> {
    let first = children(body).into_iter().find(|node| node.is_named() && node.kind() != "comment")?;
    let text = first.named_child(0).filter(|_| first.kind() == "expression_statement")?;
    let prefix: String = c.text(text).chars().take_while(char::is_ascii_alphabetic).collect();
    let plain = !prefix.contains(['f', 'F', 'b', 'B', 't', 'T']);
    (matches!(text.kind(), "string" | "concatenated_string") && plain && first.named_child_count() == 1).then_some(text)
}

/// The docstring with its lines and the blank lines after it, or itself on a shared line.
fn docstring_lines(c: &Collector<'_, '_>, node: Node<'_>) -> std::ops::Range<usize> {
    let Some(mut lines) = c.whole_lines(&node.byte_range()) else {
        return node.byte_range();
    };
    while lines.end < c.source.len() {
        let next = c.source[lines.end..].find('\n').map_or(c.source.len(), |at| lines.end + at + 1);
        if !c.source[lines.end..next].trim().is_empty() {
            break;
        }
        lines.end = next;
    }
    lines
}

fn insert_point(c: &Collector<'_, '_>, definition: Node<'_>, body: Node<'_>) -> InsertPoint {
    let Some(colon) = colon(definition) else {
        return InsertPoint::Nowhere(SkipReason::SharedLine);
    };
    let first = body.start_byte();
    let line = line_start(c.source, first);
    if line > colon.end_byte() {
        let rest = &c.source[colon.end_byte()..line_end(c.source, colon.end_byte())];
        let indent = &c.source[line..first];
        let tail = rest.trim();
        if indent.trim().is_empty() && (tail.is_empty() || tail.starts_with('#')) {
            let offset = line_end(c.source, colon.end_byte());
            return InsertPoint::Lines { offset, indent: indent.to_owned() };
        }
        return InsertPoint::Nowhere(SkipReason::SharedLine);
    }
    let start = line_start(c.source, definition.start_byte());
    let outer: String = c.source[start..].chars().take_while(|c| matches!(c, ' ' | '\t')).collect();
    let step = if outer.contains('\t') { "\t" } else { "    " };
    InsertPoint::OneLineBody { gap: colon.end_byte()..first, indent: format!("{outer}{step}") }
}

/// The text of a docstring without quotes and common indentation.
fn clean(literal: &str) -> String {
    let raw = literal.trim_start_matches(|c: char| c.is_ascii_alphabetic());
    let is_raw = literal[..literal.len() - raw.len()].contains(['r', 'R']);
    let quote = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|quote| raw.starts_with(quote)).unwrap_or_default();
    let inner = raw.strip_prefix(quote).unwrap_or(raw);
    let inner = inner.strip_suffix(quote).unwrap_or(inner);
    let text = if is_raw { inner.to_owned() } else { inner.replace("\\\"", "\"").replace("\\\\", "\\") };
    let mut lines: Vec<String> = text.lines().map(|line| line.trim_end().to_owned()).collect();
    dedent_rest(&mut lines);
    lines.join("\n").trim().to_owned()
}

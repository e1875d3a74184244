//! Rust: functions, structs, enums, unions, traits and type aliases; attributes stay with their item.
//!
//! Invariant: anything under `#[cfg(test)]` or `#[test]` (any attribute whose last word is `test`) is a test.

use std::ops::Range;

use tree_sitter::Node;

use super::comments::{clean_block, clean_line};
use super::{Collector, Found, Insert, Inside, Place, one_line};
use crate::item::{ExistingDoc, ItemKind};
use crate::skip::SkipReason;

/// Attributes and doc comments before an item.
struct Head {
    start: usize,
    doc: Option<ExistingDoc>,
    doc_ranges: Vec<Range<usize>>,
    test: bool,
}

pub(super) fn visit<'t>(c: &mut Collector<'_, 't>, place: &Place<'_, 't>) {
    let node = place.node;
    let kind = match node.kind() {
        "function_item" | "function_signature_item" if place.scope.inside == Inside::Module => ItemKind::Function,
        "function_item" | "function_signature_item" => ItemKind::Method,
        "struct_item" => ItemKind::Struct,
        "enum_item" => ItemKind::Enum,
        "union_item" => ItemKind::Union,
        "trait_item" => ItemKind::Trait,
        "type_item" if place.scope.inside == Inside::Module => ItemKind::TypeAlias,
        "mod_item" | "impl_item" | "foreign_mod_item" => return container(c, place),
        "ERROR" => return c.pass_through(node, place.scope),
        _ => return,
    };
    let head = head(c, place);
    let Some(name) = c.field(node, "name") else {
        return c.skip(node, None, SkipReason::SyntaxError);
    };
    if head.test {
        return c.skip(node, Some(&name), SkipReason::TestItem);
    }
    let body = node.child_by_field_name("body").filter(|body| body.kind() != "ordered_field_declaration_list");
    if kind == ItemKind::Trait
        && let Some(body) = body
    {
        c.enter(body, place.scope, &name, Inside::Type);
    }
    let found = Found {
        kind,
        name,
        outer: node,
        definition: node,
        body,
        start: head.start,
        insert: Insert::Before(head.start),
        doc: head.doc,
        exclude: head.doc_ranges,
        inherits_doc: place.scope.inside == Inside::TraitImpl,
    };
    c.add(found, place.scope);
}

/// Modules, implementations and `extern` blocks.
fn container<'t>(c: &mut Collector<'_, 't>, place: &Place<'_, 't>) {
    let node = place.node;
    let name = match node.kind() {
        "mod_item" => c.field(node, "name"),
        "impl_item" => Some(impl_name(c, node)),
        _ => None,
    };
    let test = head(c, place).test;
    let Some(body) = node.child_by_field_name("body") else {
        if let Some(name) = name.filter(|_| test) {
            c.out.test_modules.push(name);
        }
        return;
    };
    if test {
        return c.skip(node, name.as_deref(), SkipReason::TestItem);
    }
    let inside = match node.kind() {
        "impl_item" if node.child_by_field_name("trait").is_some() => Inside::TraitImpl,
        "impl_item" => Inside::Type,
        _ => Inside::Module,
    };
    c.enter(body, place.scope, name.as_deref().unwrap_or_default(), inside);
}

/// `Type`, or `<Type as Trait>`, without generics.
fn impl_name(c: &Collector<'_, '_>, node: Node<'_>) -> String {
    let plain = |field: &str| {
        let node = node.child_by_field_name(field)?;
        let node = if node.kind() == "generic_type" { node.child_by_field_name("type")? } else { node };
        Some(one_line(c.text(node)))
    };
    let name = plain("type").unwrap_or_default();
    match plain("trait") {
        Some(implemented) => format!("<{name} as {implemented}>"),
        None => name,
    }
}

/// Walks back over attributes, doc comments and plain comments.
fn head<'t>(c: &Collector<'_, 't>, place: &Place<'_, 't>) -> Head {
    let mut start = place.node.start_byte();
    let mut test = false;
    let mut texts: Vec<String> = Vec::new();
    let mut doc_ranges: Vec<Range<usize>> = Vec::new();
    let mut attribute_doc = false;
    for node in place.before.iter().rev().filter(|node| node.is_named()) {
        let text = c.text(*node);
        match node.kind() {
            "attribute_item" => {
                start = node.start_byte();
                test |= is_test(text);
                if let Some(doc) = doc_attribute(text) {
                    texts.push(doc);
                    attribute_doc = true;
                }
            }
            "line_comment" | "block_comment" if c.trails(*node) => break,
            "line_comment" if text.starts_with("///") && !text.starts_with("////") => {
                texts.push(clean_line(text));
                doc_ranges.push(node.byte_range());
            }
            "block_comment" if text.starts_with("/**") && !text.starts_with("/***") && text.len() > 4 => {
                texts.push(clean_block(text));
                doc_ranges.push(node.byte_range());
            }
            "line_comment" | "block_comment" => {}
            _ => break,
        }
    }
    texts.reverse();
    doc_ranges.reverse();
    let text = texts.join("\n").trim().to_owned();
    let doc = (!text.is_empty()).then(|| {
        let contiguous =
            doc_ranges.windows(2).all(|pair| c.source[pair[0].end.min(pair[1].start)..pair[1].start].trim().is_empty());
        let span = doc_ranges.first().zip(doc_ranges.last()).map(|(first, last)| first.start..last.end);
        let lines = span.filter(|_| contiguous && !attribute_doc).and_then(|span| c.whole_lines(&span));
        ExistingDoc { text, lines }
    });
    // Doc comments among the attributes are not code; those before them are outside of the code already.
    let exclude = doc_ranges.into_iter().filter(|range| range.start > start);
    let exclude = exclude.map(|range| c.whole_lines(&range).unwrap_or(range)).collect();
    Head { start, doc, doc_ranges: exclude, test }
}

/// `#[test]`, `#[tokio::test]`, `#[cfg(test)]`, `#[rstest]`, `#[bench]`, …, but not `#[cfg(not(test))]`.
fn is_test(attribute: &str) -> bool {
    let inner: String = attribute.trim_start_matches("#[").trim_end_matches(']').split_whitespace().collect();
    let name = inner.split(['(', '=']).next().unwrap_or_default();
    match name.rsplit("::").next().unwrap_or_default() {
        "test" | "rstest" | "test_case" | "bench" | "quickcheck" | "wasm_bindgen_test" => true,
        "cfg" => {
            let words = inner[name.len()..].replace("not(test)", "");
            words.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '=' || c == '"')).any(|word| word == "test")
        }
        _ => false,
    }
}

/// The text of `#[doc = "…"]`; the expression itself where it is not a plain string.
fn doc_attribute(attribute: &str) -> Option<String> {
    let inner = attribute.trim_start_matches("#[").trim_end_matches(']').trim();
    let value = inner.strip_prefix("doc")?.trim_start().strip_prefix('=')?.trim();
    Some(value.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(value).trim().to_owned())
}

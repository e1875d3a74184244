//! Java: classes, interfaces, enums, records, annotation types, methods and constructors.
//!
//! Invariant: annotations are part of a declaration's modifiers, so a comment before the declaration is
//! before them.

use super::{Collector, Found, Insert, Inside, Place};
use crate::item::ItemKind;
use crate::skip::SkipReason;

pub(super) fn visit<'t>(c: &mut Collector<'_, 't>, place: &Place<'_, 't>) {
    let node = place.node;
    let kind = match node.kind() {
        "package_declaration" => {
            let mut cursor = node.walk();
            let name = node.named_children(&mut cursor).find(|child| child.kind().ends_with("identifier"));
            if let Some(name) = name {
                c.module = c.text(name).to_owned();
            }
            return;
        }
        "class_declaration" => ItemKind::Class,
        "interface_declaration" => ItemKind::Interface,
        "enum_declaration" => ItemKind::Enum,
        "record_declaration" => ItemKind::Record,
        "annotation_type_declaration" => ItemKind::Annotation,
        "method_declaration" => ItemKind::Method,
        "constructor_declaration" | "compact_constructor_declaration" => ItemKind::Constructor,
        "enum_body_declarations" | "ERROR" => return c.pass_through(node, place.scope),
        _ => return,
    };
    let Some(name) = c.field(node, "name") else {
        return c.skip(node, None, SkipReason::SyntaxError);
    };
    let mut cursor = node.walk();
    let modifiers = node.named_children(&mut cursor).find(|child| child.kind() == "modifiers");
    let modifiers = modifiers.map(|node| c.text(node).to_owned()).unwrap_or_default();
    let annotated = |name: &str| modifiers.split_whitespace().any(|word| word.split('(').next() == Some(name));
    if ["@Test", "@ParameterizedTest", "@RepeatedTest", "@TestFactory"].iter().any(|name| annotated(name)) {
        return c.skip(node, Some(&name), SkipReason::TestItem);
    }
    let body = node.child_by_field_name("body");
    if !kind.is_function()
        && let Some(body) = body
    {
        c.enter(body, place.scope, &name, Inside::Type);
    }
    let leading = c.block_doc(place.before, node.start_byte());
    let found = Found {
        kind,
        name,
        outer: node,
        definition: node,
        body,
        start: node.start_byte(),
        insert: Insert::Before(leading.insert),
        doc: leading.doc,
        exclude: Vec::new(),
        inherits_doc: annotated("@Override"),
    };
    c.add(found, place.scope);
}

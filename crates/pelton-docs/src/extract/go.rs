//! Go: functions, methods and types; the comment group that touches a declaration is its documentation.
//!
//! Invariant: in `type ( … )` each type is an item of its own; a lone type's comment precedes `type`.

use tree_sitter::Node;

use super::{Collector, Found, Insert, Place, children};
use crate::item::ItemKind;
use crate::skip::SkipReason;

pub(super) fn visit<'t>(c: &mut Collector<'_, 't>, place: &Place<'_, 't>) {
    let node = place.node;
    match node.kind() {
        "package_clause" => {
            if let Some(name) = node.named_child(0) {
                c.module = c.text(name).to_owned();
            }
        }
        "function_declaration" => item(c, place, node, ItemKind::Function, ""),
        "method_declaration" => {
            let receiver = node.child_by_field_name("receiver").and_then(|list| receiver_type(c, list));
            item(c, place, node, ItemKind::Method, &receiver.unwrap_or_default());
        }
        "type_declaration" => {
            let grouped = children(node).iter().any(|child| child.kind() == "(");
            if grouped {
                c.pass_through(node, place.scope);
            } else if let Some(spec) = children(node).into_iter().find(|child| is_spec(*child)) {
                item(c, place, spec, type_kind(spec), "");
            }
        }
        "type_spec" | "type_alias" => item(c, place, node, type_kind(node), ""),
        "ERROR" => c.pass_through(node, place.scope),
        _ => {}
    }
}

fn is_spec(node: Node<'_>) -> bool {
    matches!(node.kind(), "type_spec" | "type_alias")
}

fn type_kind(spec: Node<'_>) -> ItemKind {
    match spec.child_by_field_name("type").map(|node| node.kind()) {
        Some("struct_type") => ItemKind::Struct,
        Some("interface_type") => ItemKind::Interface,
        _ => ItemKind::TypeAlias,
    }
}

/// `Cart` of `(c *Cart)` and of `(p *Pair[K, V])`.
fn receiver_type(c: &Collector<'_, '_>, list: Node<'_>) -> Option<String> {
    let text = c.text(list).trim_matches(['(', ')']);
    let text = text.split('[').next()?.trim();
    let name = text.rsplit([' ', '*', '\t']).next()?;
    (!name.is_empty()).then(|| name.to_owned())
}

fn item<'t>(c: &mut Collector<'_, 't>, place: &Place<'_, 't>, definition: Node<'t>, kind: ItemKind, receiver: &str) {
    let Some(name) = c.field(definition, "name") else {
        return c.skip(definition, None, SkipReason::SyntaxError);
    };
    let body = definition.child_by_field_name("body").or_else(|| {
        let value = definition.child_by_field_name("type")?;
        match value.kind() {
            "struct_type" => value.named_child(0),
            // An interface's members stand directly after its brace.
            "interface_type" => children(value).into_iter().find(|child| child.kind() == "{"),
            _ => None,
        }
    });
    let leading = c.adjacent_doc(place.before, place.node);
    let found = Found {
        kind,
        name,
        outer: place.node,
        definition,
        body,
        start: place.node.start_byte(),
        insert: Insert::Before(leading.insert),
        doc: leading.doc,
        exclude: Vec::new(),
        inherits_doc: false,
    };
    let path = super::join(&place.scope.path, receiver, ".");
    c.add(found, &super::Scope { path: path.into(), ..place.scope.clone() });
}

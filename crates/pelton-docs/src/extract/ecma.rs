//! JavaScript and TypeScript: functions, classes, methods, functions held by constants, fields, exports and
//! top-level objects; interfaces, type aliases, enums.
//!
//! Invariant: a function counts only where a name reaches it from outside; closures inside functions never do.

use tree_sitter::Node;

use super::{Collector, Found, Insert, Inside, Place, one_line};
use crate::item::ItemKind;
use crate::skip::SkipReason;

pub(super) fn visit<'t>(c: &mut Collector<'_, 't>, place: &Place<'_, 't>) {
    let outer = place.node;
    match outer.kind() {
        "export_statement" => {
            let inner = outer.child_by_field_name("declaration").or_else(|| outer.child_by_field_name("value"));
            if let Some(inner) = inner {
                declared(c, place, inner, Some("default"));
            }
        }
        "ambient_declaration" => {
            let mut cursor = outer.walk();
            let inner = outer.named_children(&mut cursor).find(|node| !node.kind().ends_with("comment"));
            if let Some(inner) = inner {
                declared(c, place, inner, None);
            }
        }
        "expression_statement" => match outer.named_child(0) {
            Some(inner) if inner.kind() == "assignment_expression" => {
                let name = c.field(inner, "left").unwrap_or_default();
                let name = name.strip_prefix("module.exports.").unwrap_or(&name).to_owned();
                if let Some(value) = inner.child_by_field_name("right") {
                    held(c, place, value, &name);
                }
            }
            Some(inner) => declared(c, place, inner, None),
            None => {}
        },
        "pair" => {
            let name = c.field(outer, "key").unwrap_or_default();
            if let Some(value) = outer.child_by_field_name("value") {
                held(c, place, value, name.trim_matches(['"', '\'']));
            }
        }
        "statement_block" | "ERROR" => c.pass_through(outer, place.scope),
        _ => declared(c, place, outer, None),
    }
}

/// A declaration, perhaps inside of an export.
fn declared<'t>(c: &mut Collector<'_, 't>, place: &Place<'_, 't>, node: Node<'t>, default_name: Option<&str>) {
    let in_type = place.scope.inside == Inside::Type;
    let kind = match node.kind() {
        "function_declaration" | "generator_function_declaration" | "function_signature" => ItemKind::Function,
        "function_expression" | "generator_function" | "arrow_function" if default_name.is_some() => ItemKind::Function,
        "class_declaration" | "abstract_class_declaration" => ItemKind::Class,
        "class" if default_name.is_some() => ItemKind::Class,
        "method_definition" | "abstract_method_signature" | "method_signature" => ItemKind::Method,
        "interface_declaration" => ItemKind::Interface,
        "type_alias_declaration" => ItemKind::TypeAlias,
        "enum_declaration" => ItemKind::Enum,
        "field_definition" | "public_field_definition" if in_type => {
            let name = c.field(node, "property").or_else(|| c.field(node, "name")).unwrap_or_default();
            if let Some(value) = node.child_by_field_name("value").filter(|value| is_function(*value)) {
                item(c, place, value, &name, ItemKind::Method);
            }
            return;
        }
        "lexical_declaration" | "variable_declaration" => {
            let mut cursor = node.walk();
            let mut declarators =
                node.named_children(&mut cursor).filter(|child| child.kind() == "variable_declarator");
            // Two functions in one statement would share one comment.
            if let (Some(first), None) = (declarators.next(), declarators.next())
                && let (Some(name), Some(value)) = (c.field(first, "name"), first.child_by_field_name("value"))
            {
                held(c, place, value, &name);
            }
            return;
        }
        "internal_module" | "module" => {
            let name = c.field(node, "name").unwrap_or_default();
            if let Some(body) = node.child_by_field_name("body") {
                c.enter(body, place.scope, name.trim_matches(['"', '\'']), Inside::Module);
            }
            return;
        }
        "object" if default_name.is_some() => return c.enter(node, place.scope, "default", Inside::Type),
        _ => return,
    };
    let name = c.field(node, "name").or_else(|| default_name.map(str::to_owned));
    let Some(name) = name else {
        return c.skip(node, None, SkipReason::SyntaxError);
    };
    let kind = if name == "constructor" && kind == ItemKind::Method { ItemKind::Constructor } else { kind };
    item(c, place, node, &name, kind);
}

/// A value that a name holds: a function, a class or an object of functions.
fn held<'t>(c: &mut Collector<'_, 't>, place: &Place<'_, 't>, value: Node<'t>, name: &str) {
    if is_function(value) {
        let member = place.scope.inside == Inside::Type || name.contains(".prototype.");
        let kind = if member { ItemKind::Method } else { ItemKind::Function };
        item(c, place, value, &one_line(&name.replace(".prototype.", ".")), kind);
    } else if value.kind() == "class" {
        item(c, place, value, name, ItemKind::Class);
    } else if value.kind() == "object" {
        let name = if name == "module.exports" || name == "exports" { "exports" } else { name };
        c.enter(value, place.scope, name, Inside::Type);
    }
}

fn is_function(node: Node<'_>) -> bool {
    matches!(node.kind(), "arrow_function" | "function_expression" | "generator_function" | "function")
}

fn item<'t>(c: &mut Collector<'_, 't>, place: &Place<'_, 't>, definition: Node<'t>, name: &str, kind: ItemKind) {
    let body = definition.child_by_field_name("body");
    if kind == ItemKind::Class
        && let Some(body) = body
    {
        c.enter(body, place.scope, name, Inside::Type);
    }
    // Decorators of methods stand before them in TypeScript's class body.
    let mut start = place.node.start_byte();
    let mut before = place.before;
    while let Some((last, rest)) = before.split_last() {
        if last.kind() != "decorator" {
            break;
        }
        start = last.start_byte();
        before = rest;
    }
    let leading = c.block_doc(before, start);
    let found = Found {
        kind,
        name: name.to_owned(),
        outer: place.node,
        definition,
        body,
        start,
        insert: Insert::Before(leading.insert),
        doc: leading.doc,
        exclude: Vec::new(),
        inherits_doc: false,
    };
    c.add(found, place.scope);
}

//! C and C++: functions, methods, structs, classes, unions, enums and type aliases, also under `#if`,
//! `extern "C"` and namespaces.
//!
//! Invariant: a prototype is an item only in a header or in a class; elsewhere its definition is the item.

use tree_sitter::Node;

use super::{Collector, Found, Insert, Inside, Place, children, one_line};
use crate::item::ItemKind;
use crate::language::Language;
use crate::skip::SkipReason;

pub(super) fn visit<'t>(c: &mut Collector<'_, 't>, place: &Place<'_, 't>) {
    let node = place.node;
    match node.kind() {
        "preproc_if" | "preproc_ifdef" | "preproc_else" | "preproc_elif" | "preproc_elifdef" | "ERROR" => {
            c.pass_through(node, place.scope);
        }
        "linkage_specification" => {
            if let Some(body) = node.child_by_field_name("body") {
                if body.kind() == "declaration_list" {
                    c.pass_through(body, place.scope);
                } else {
                    declared(c, place, body);
                }
            }
        }
        "namespace_definition" => {
            let name = c.field(node, "name").unwrap_or_default();
            if let Some(body) = node.child_by_field_name("body") {
                c.enter(body, place.scope, &name, Inside::Module);
            }
        }
        "template_declaration" => {
            let inner = children(node).into_iter().rfind(|child| {
                child.is_named() && !matches!(child.kind(), "comment" | "template_parameter_list" | "requires_clause")
            });
            if let Some(inner) = inner {
                declared(c, place, inner);
            }
        }
        _ => declared(c, place, node),
    }
}

/// A declaration, perhaps inside of a template.
fn declared<'t>(c: &mut Collector<'_, 't>, place: &Place<'_, 't>, node: Node<'t>) {
    let in_type = place.scope.inside == Inside::Type;
    match node.kind() {
        "function_definition" => {
            if children(node)
                .iter()
                .any(|child| matches!(child.kind(), "default_method_clause" | "delete_method_clause"))
            {
                let name = function_name(c, node).map(|(name, _)| name);
                return c.skip(node, name.as_deref(), SkipReason::Defaulted);
            }
            function(c, place, node);
        }
        "declaration" | "field_declaration" if in_type || c.header => {
            if function_name(c, node).is_some() {
                function(c, place, node);
            } else if let Some(inner) = node.child_by_field_name("type") {
                tagged(c, place, inner, None);
            }
        }
        "declaration" => {
            if let Some(inner) = node.child_by_field_name("type") {
                tagged(c, place, inner, None);
            }
        }
        "type_definition" => {
            let name =
                node.child_by_field_name("declarator").and_then(|node| declared_name(c, node)).map(|(name, _)| name);
            let inner = node.child_by_field_name("type").filter(|inner| inner.child_by_field_name("body").is_some());
            match (inner, name) {
                (Some(inner), name) => tagged(c, place, inner, name),
                (None, Some(name)) => item(c, place, node, None, &name, ItemKind::TypeAlias),
                (None, None) => {}
            }
        }
        "alias_declaration" => {
            if let Some(name) = c.field(node, "name") {
                item(c, place, node, None, &name, ItemKind::TypeAlias);
            }
        }
        _ => tagged(c, place, node, None),
    }
}

/// A struct, class, union or enum with a body; `typedef_name` names one that a typedef wraps.
fn tagged<'t>(c: &mut Collector<'_, 't>, place: &Place<'_, 't>, node: Node<'t>, typedef_name: Option<String>) {
    let kind = match node.kind() {
        "struct_specifier" => ItemKind::Struct,
        "class_specifier" => ItemKind::Class,
        "union_specifier" => ItemKind::Union,
        "enum_specifier" => ItemKind::Enum,
        _ => return,
    };
    let (Some(body), Some(name)) = (node.child_by_field_name("body"), typedef_name.or_else(|| c.field(node, "name")))
    else {
        return;
    };
    if kind != ItemKind::Enum && c.language == Language::Cpp {
        c.enter(body, place.scope, &name, Inside::Type);
    }
    item(c, place, node, Some(body), &name, kind);
}

fn function<'t>(c: &mut Collector<'_, 't>, place: &Place<'_, 't>, node: Node<'t>) {
    let Some((name, qualified)) = function_name(c, node) else {
        return c.skip(node, None, SkipReason::SyntaxError);
    };
    let member = place.scope.inside == Inside::Type || qualified;
    let kind = if member { ItemKind::Method } else { ItemKind::Function };
    let type_name = place.scope.path.rsplit("::").next().unwrap_or_default();
    let constructs = member && !name.is_empty() && name.rsplit("::").next() == Some(type_name);
    let kind = if constructs { ItemKind::Constructor } else { kind };
    // A member's initializer list is not part of its signature.
    let list = children(node).into_iter().find(|child| child.kind() == "field_initializer_list");
    let body = list.or_else(|| node.child_by_field_name("body"));
    item(c, place, node, body, &name, kind);
}

/// The name that a function's declarator gives, and whether a scope qualifies it; `None` for a variable.
fn function_name(c: &Collector<'_, '_>, node: Node<'_>) -> Option<(String, bool)> {
    let mut at = node.child_by_field_name("declarator")?;
    // Pointers and references wrap the function's declarator: `int *f(void)`.
    for _ in 0..64 {
        if at.kind() == "function_declarator" {
            let inner = at.child_by_field_name("declarator")?;
            // `int (*f)(void)` is a variable.
            return (inner.kind() != "parenthesized_declarator").then(|| declared_name(c, inner))?;
        }
        if at.kind() == "operator_cast" {
            return Some((one_line(c.text(at).split('(').next().unwrap_or_default()), false));
        }
        at = at.child_by_field_name("declarator").or_else(|| {
            children(at).into_iter().find(|child| child.is_named() && child.kind().ends_with("declarator"))
        })?;
    }
    None
}

/// The identifier inside of a declarator, without template arguments of its scopes.
fn declared_name(c: &Collector<'_, '_>, declarator: Node<'_>) -> Option<(String, bool)> {
    let mut at = declarator;
    for _ in 0..64 {
        match at.kind() {
            "identifier" | "field_identifier" | "type_identifier" | "operator_name" | "destructor_name"
            | "primitive_type" => return Some((one_line(c.text(at)), false)),
            "qualified_identifier" => return Some((without_arguments(&one_line(c.text(at))), true)),
            "template_function" | "template_method" => at = at.child_by_field_name("name")?,
            _ => {
                at = at
                    .child_by_field_name("declarator")
                    .or_else(|| children(at).into_iter().rfind(|child| child.is_named()))?;
            }
        }
    }
    None
}

/// `a::B<T>::f` → `a::B::f`; operators keep their signs.
fn without_arguments(name: &str) -> String {
    let (head, operator) = name.split_at(name.find("operator").unwrap_or(name.len()));
    let mut out = String::new();
    let mut depth = 0usize;
    for sign in head.chars() {
        match sign {
            '<' => depth += 1,
            '>' => depth = depth.saturating_sub(1),
            _ if depth == 0 => out.push(sign),
            _ => {}
        }
    }
    out + operator
}

fn item<'t>(
    c: &mut Collector<'_, 't>,
    place: &Place<'_, 't>,
    definition: Node<'t>,
    body: Option<Node<'t>>,
    name: &str,
    kind: ItemKind,
) {
    let leading = c.adjacent_doc(place.before, place.node);
    let found = Found {
        kind,
        name: name.to_owned(),
        outer: place.node,
        definition,
        body,
        start: place.node.start_byte(),
        insert: Insert::Before(leading.insert),
        doc: leading.doc,
        exclude: Vec::new(),
        inherits_doc: false,
    };
    c.add(found, place.scope);
}

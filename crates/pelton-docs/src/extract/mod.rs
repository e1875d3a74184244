//! From one file's text to its items, by tree-sitter.
//!
//! The walk keeps its own stack, so that no nesting, however deep, can overflow the thread's. Function
//! bodies are never entered: what is nested in a function belongs to it. Invariant: an item that holds a
//! syntax error is reported as a skip, never as an item.

mod c_family;
mod comments;
mod ecma;
mod finish;
mod go;
mod java;
mod python;
mod rust;

pub(crate) use finish::{line_end, line_start};

use std::ops::{ControlFlow, Range};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tree_sitter::{Node, ParseOptions, Parser, Tree};

use crate::item::{ExistingDoc, InsertPoint, Item, ItemKind};
use crate::language::{Dialect, Language};
use crate::skip::{Skip, SkipReason};

/// A file that takes longer to parse is left out: hostile input makes error recovery slow.
const PARSE_LIMIT: Duration = Duration::from_secs(5);
/// Modules and types inside one another.
const MAX_DEPTH: usize = 64;

/// All that one file gave.
#[derive(Default)]
pub(crate) struct Extraction {
    /// The language, settled for headers.
    pub(crate) language: Option<Language>,
    /// Items in the order of the file.
    pub(crate) items: Vec<Item>,
    /// Items left out.
    pub(crate) skips: Vec<Skip>,
    /// Rust: names declared as `#[cfg(test)] mod name;`.
    pub(crate) test_modules: Vec<String>,
}

/// Finds the items of one file. `module` is what its path says of the qualified name.
pub(crate) fn extract(source: &str, dialect: Dialect, path: &str, module: &str) -> Result<Extraction, SkipReason> {
    let (tree, language) = parse(source, dialect)?;
    let mut collector = Collector {
        source,
        language,
        path,
        module: module.to_owned(),
        header: dialect == Dialect::Header || path.ends_with(".hpp") || path.ends_with(".hh"),
        out: Extraction { language: Some(language), ..Extraction::default() },
        stack: Vec::new(),
    };
    collector.descend(tree.root_node(), &Scope::default());
    while let Some(step) = collector.stack.pop() {
        let place = Place { node: step.siblings[step.index], before: &step.siblings[..step.index], scope: &step.scope };
        match language {
            Language::Rust => rust::visit(&mut collector, &place),
            Language::Python => python::visit(&mut collector, &place),
            Language::JavaScript | Language::TypeScript => ecma::visit(&mut collector, &place),
            Language::Go => go::visit(&mut collector, &place),
            Language::Java => java::visit(&mut collector, &place),
            Language::C | Language::Cpp => c_family::visit(&mut collector, &place),
        }
    }
    let mut out = collector.out;
    out.items.sort_by_key(|item| (item.bytes.start, item.bytes.end));
    Ok(out)
}

/// Parses, choosing C or C++ for a header.
fn parse(source: &str, dialect: Dialect) -> Result<(Tree, Language), SkipReason> {
    if dialect != Dialect::Header {
        return Ok((parse_as(source, dialect)?, dialect.language()));
    }
    if !looks_like_cpp(source) {
        let tree = parse_as(source, Dialect::Plain(Language::C))?;
        if !tree.root_node().has_error() {
            return Ok((tree, Language::C));
        }
        let other = parse_as(source, Dialect::Plain(Language::Cpp))?;
        if other.root_node().has_error() {
            return Ok((tree, Language::C));
        }
        return Ok((other, Language::Cpp));
    }
    Ok((parse_as(source, Dialect::Plain(Language::Cpp))?, Language::Cpp))
}

/// True where a line opens as only C++ does.
fn looks_like_cpp(source: &str) -> bool {
    const OPENINGS: [&str; 9] = [
        "class ",
        "namespace ",
        "template<",
        "template <",
        "using ",
        "public:",
        "private:",
        "protected:",
        "constexpr ",
    ];
    source.lines().any(|line| OPENINGS.iter().any(|opening| line.trim_start().starts_with(opening)))
}

fn parse_as(source: &str, dialect: Dialect) -> Result<Tree, SkipReason> {
    let mut parser = Parser::new();
    parser.set_language(&dialect.grammar()).expect("the grammars match the tree-sitter they were built for");
    let bytes = source.as_bytes();
    let started = Instant::now();
    let mut progress = |_: &tree_sitter::ParseState| {
        if started.elapsed() > PARSE_LIMIT { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let options = ParseOptions::new().progress_callback(&mut progress);
    parser
        .parse_with_options(&mut |at, _| bytes.get(at..).unwrap_or_default(), None, Some(options))
        .ok_or(SkipReason::SlowParse)
}

/// Where in the file's structure the walk is.
#[derive(Clone, Default)]
struct Scope {
    /// Names of the enclosing modules and types, joined.
    path: Rc<str>,
    /// The innermost enclosing thing.
    inside: Inside,
    depth: usize,
}

/// What encloses an item.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Inside {
    /// A module, namespace or file.
    #[default]
    Module,
    /// A type, whose functions are methods.
    Type,
    /// The implementation of a trait, whose methods inherit their comments.
    TraitImpl,
}

struct Step<'t> {
    siblings: Rc<[Node<'t>]>,
    index: usize,
    scope: Scope,
}

/// One node with what comes before it in its parent.
struct Place<'a, 't> {
    node: Node<'t>,
    before: &'a [Node<'t>],
    scope: &'a Scope,
}

/// What a language's file says of an item; `finish` makes the [`Item`] of it.
struct Found<'t> {
    kind: ItemKind,
    name: String,
    /// The whole, with its export, template or decorator wrapper.
    outer: Node<'t>,
    /// The definition itself.
    definition: Node<'t>,
    /// The body, which the signature leaves out.
    body: Option<Node<'t>>,
    /// Where the code begins: the first attribute, or `outer`.
    start: usize,
    /// What a doc comment must precede (may lie before `start`: directives).
    insert: Insert,
    doc: Option<ExistingDoc>,
    /// Doc comments inside the code.
    exclude: Vec<Range<usize>>,
    inherits_doc: bool,
}

/// Where the language wants a doc comment.
enum Insert {
    /// On lines of its own before this byte.
    Before(usize),
    /// Settled by the language.
    At(InsertPoint),
}

struct Collector<'s, 't> {
    source: &'s str,
    language: Language,
    path: &'s str,
    module: String,
    /// A header, where prototypes are items.
    header: bool,
    out: Extraction,
    stack: Vec<Step<'t>>,
}

impl<'t> Collector<'_, 't> {
    /// The text of a node.
    fn text(&self, node: Node<'_>) -> &str {
        &self.source[node.byte_range()]
    }

    /// The text of a node's field.
    fn field(&self, node: Node<'_>, field: &str) -> Option<String> {
        node.child_by_field_name(field).map(|node| one_line(self.text(node)))
    }

    /// Queues the children of a module, a type's body or another container.
    fn descend(&mut self, node: Node<'t>, scope: &Scope) {
        let siblings: Rc<[Node<'t>]> = children(node).into();
        for index in (0..siblings.len()).rev() {
            if siblings[index].is_named() {
                self.stack.push(Step { siblings: Rc::clone(&siblings), index, scope: scope.clone() });
            }
        }
    }

    /// Queues the children of `node` as what `name` encloses; reports and stops past the depth limit.
    fn enter(&mut self, node: Node<'t>, scope: &Scope, name: &str, inside: Inside) {
        if scope.depth >= MAX_DEPTH {
            self.skip(node, Some(name), SkipReason::TooDeep);
            return;
        }
        let path = join(&scope.path, name, self.language.separator());
        self.descend(node, &Scope { path: path.into(), inside, depth: scope.depth + 1 });
    }

    /// Queues the children of `node` in the same scope, such as those of `#ifdef`.
    fn pass_through(&mut self, node: Node<'t>, scope: &Scope) {
        if scope.depth >= MAX_DEPTH {
            self.skip(node, None, SkipReason::TooDeep);
            return;
        }
        self.descend(node, &Scope { depth: scope.depth + 1, ..scope.clone() });
    }

    /// Records an item that is left out.
    fn skip(&mut self, node: Node<'_>, name: Option<&str>, reason: SkipReason) {
        self.out.skips.push(Skip {
            path: self.path.to_owned(),
            line: Some(node.start_position().row + 1),
            name: name.map(str::to_owned),
            reason,
        });
    }
}

/// All children of a node, in order.
fn children<'t>(node: Node<'t>) -> Vec<Node<'t>> {
    let mut cursor = node.walk();
    node.children(&mut cursor).collect()
}

/// Joins two parts of a qualified name, either of which may be empty.
fn join(left: &str, right: &str, separator: &str) -> String {
    if left.is_empty() || right.is_empty() { format!("{left}{right}") } else { format!("{left}{separator}{right}") }
}

/// Text with every run of white space made one space.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

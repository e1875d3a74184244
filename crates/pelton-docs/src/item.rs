//! An item: one function or type that gets one documentation entry.
//!
//! Invariant: every byte range lies inside the file that it was found in, on character boundaries.

use std::ops::Range;

use serde::Serialize;

use crate::language::Language;
use crate::skip::SkipReason;

/// What an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ItemKind {
    /// A function outside of types.
    Function,
    /// A function of a type.
    Method,
    /// A constructor.
    Constructor,
    /// A struct.
    Struct,
    /// A class.
    Class,
    /// An enumeration.
    Enum,
    /// A union.
    Union,
    /// A Rust trait.
    Trait,
    /// An interface.
    Interface,
    /// A Java record.
    Record,
    /// A Java annotation type.
    Annotation,
    /// A name for another type.
    TypeAlias,
}

impl ItemKind {
    /// The kind in lower-case words, such as `type alias`.
    pub fn words(self) -> &'static str {
        match self {
            Self::Function => "function",
            Self::Method => "method",
            Self::Constructor => "constructor",
            Self::Struct => "struct",
            Self::Class => "class",
            Self::Enum => "enum",
            Self::Union => "union",
            Self::Trait => "trait",
            Self::Interface => "interface",
            Self::Record => "record",
            Self::Annotation => "annotation",
            Self::TypeAlias => "type alias",
        }
    }

    /// The word in the prompt: every kind of function is a `function`, as in training.
    pub(crate) fn prompt_noun(self) -> &'static str {
        match self {
            Self::Function | Self::Method | Self::Constructor => "function",
            Self::TypeAlias => "type",
            other => other.words(),
        }
    }

    /// True for functions, methods and constructors.
    pub fn is_function(self) -> bool {
        matches!(self, Self::Function | Self::Method | Self::Constructor)
    }
}

/// Where a new doc comment goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InsertPoint {
    /// Whole lines, at the start of the line at this byte offset, each after `indent`.
    Lines {
        /// Byte offset of a line start (after a byte order mark).
        offset: usize,
        /// Spaces and tabs before each line.
        indent: String,
    },
    /// A Python body on the line of its `def`: `gap` (the blanks after the colon) becomes a line break, the
    /// docstring, a line break and `indent`.
    OneLineBody {
        /// Bytes between the colon and the body.
        gap: Range<usize>,
        /// Spaces and tabs before the docstring and the body.
        indent: String,
    },
    /// No comment can be put here.
    Nowhere(SkipReason),
}

/// The doc comment that an item has in its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExistingDoc {
    /// The text, without comment marks.
    pub text: String,
    /// The whole lines that hold it and nothing else, as bytes; `None` where it shares lines with code, is
    /// split, or is an attribute.
    pub lines: Option<Range<usize>>,
}

/// A function or type found in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The language.
    pub language: Language,
    /// What it is.
    pub kind: ItemKind,
    /// Its own name.
    pub name: String,
    /// The name with its module and type, joined as the language does.
    pub qualified_name: String,
    /// Path relative to the root, with `/` between its parts.
    pub path: String,
    /// First line, from 1, attributes and decorators included, doc comment excluded.
    pub line_start: usize,
    /// Last line, from 1, inclusive.
    pub line_end: usize,
    /// The same span in bytes.
    pub bytes: Range<usize>,
    /// The declaration without its body.
    pub signature: String,
    /// The code that the model sees: dedented, with `\n` line ends, without its own doc comment; a type of
    /// more than 60 lines shows `{ … }` for the bodies of its methods.
    pub code: String,
    /// The doc comment that it already has.
    pub doc: Option<ExistingDoc>,
    /// Where a new doc comment goes.
    pub insert: InsertPoint,
    /// It implements a trait's method or overrides one, and so inherits that comment.
    pub inherits_doc: bool,
}

//! What is left out and why. Invariant: nothing is left out without a [`Skip`] that names it and its reason.

use std::collections::BTreeMap;

use serde::Serialize;

/// Why a file, a folder or an item was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SkipReason {
    /// File or folder: its name begins with a dot.
    Hidden,
    /// File or folder: `.gitignore`, `.ignore` or a global exclude names it.
    Ignored,
    /// Folder: other people's code or build output, such as `vendor` or `node_modules`.
    Vendored,
    /// File or folder: tests, by the convention of its language.
    Test,
    /// File: it says at its top, or in its name, that a program wrote it.
    Generated,
    /// File: its lines are too long for code written by hand.
    Minified,
    /// File: declarations without code (`.d.ts`).
    Declarations,
    /// File or folder: a symbolic link; what it points at is read where it lies.
    Symlink,
    /// File: larger than [`crate::MAX_FILE_BYTES`].
    TooLarge,
    /// File: holds NUL bytes.
    Binary,
    /// File: not UTF-8.
    NotUtf8,
    /// File or folder: could not be read.
    Unreadable,
    /// File: not in one of the eight languages.
    OtherKind,
    /// File: parsing took too long.
    SlowParse,
    /// Item: a test inside a source file.
    TestItem,
    /// Item: it did not parse cleanly.
    SyntaxError,
    /// Item: an overload that only declares a type (Python's `@overload`).
    Overload,
    /// Item: `= default` or `= delete`.
    Defaulted,
    /// Item: nested deeper than 64 modules or types.
    TooDeep,
    /// Item: past [`crate::DocsOptions::limit`].
    OverLimit,
    /// Patch only: the item shares its line with other code, so that no comment fits before it.
    SharedLine,
    /// Patch only: it implements a trait or overrides a method, whose comment it inherits.
    InheritsDoc,
    /// Patch only: its doc comment is an attribute or is split, and cannot be replaced.
    FixedDoc,
    /// Patch only: the file changed while the model was writing.
    FileChanged,
}

impl SkipReason {
    /// The reason in words that follow a count, such as `12 tests`.
    pub fn words(self) -> &'static str {
        match self {
            Self::Hidden => "hidden",
            Self::Ignored => "ignored by .gitignore or .ignore",
            Self::Vendored => "vendored or built folders",
            Self::Test => "test files or folders",
            Self::Generated => "generated files",
            Self::Minified => "minified files",
            Self::Declarations => "declaration files (.d.ts)",
            Self::Symlink => "symbolic links",
            Self::TooLarge => "files over 2 MiB",
            Self::Binary => "binary files",
            Self::NotUtf8 => "files that are not UTF-8",
            Self::Unreadable => "unreadable",
            Self::OtherKind => "files in other languages",
            Self::SlowParse => "files that parse too slowly",
            Self::TestItem => "tests inside source files",
            Self::SyntaxError => "items with syntax errors",
            Self::Overload => "overload declarations",
            Self::Defaulted => "defaulted or deleted functions",
            Self::TooDeep => "items nested too deeply",
            Self::OverLimit => "items past the limit",
            Self::SharedLine => "items that share a line",
            Self::InheritsDoc => "items that inherit their comment",
            Self::FixedDoc => "comments that cannot be replaced",
            Self::FileChanged => "files changed meanwhile",
        }
    }
}

/// One thing that was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skip {
    /// Path relative to the root, with `/` between its parts.
    pub path: String,
    /// The item's first line, from 1; `None` for a file or folder.
    pub line: Option<usize>,
    /// The item's name; `None` for a file or folder, or where it has none.
    pub name: Option<String>,
    /// Why.
    pub reason: SkipReason,
}

impl Skip {
    /// A file or folder.
    pub(crate) fn file(path: impl Into<String>, reason: SkipReason) -> Self {
        Self { path: path.into(), line: None, name: None, reason }
    }
}

/// How many were left out, for each reason.
pub fn count_by_reason(skips: &[Skip]) -> BTreeMap<SkipReason, usize> {
    let mut counts = BTreeMap::new();
    for skip in skips {
        *counts.entry(skip.reason).or_insert(0) += 1;
    }
    counts
}

//! The eight languages: file endings, grammars, the names and fence tags that the prompt uses.
//!
//! Invariant: this file alone names a grammar crate, so a ninth language is one grammar, one match arm per
//! function here, and one file in `extract/`.

use std::path::Path;

use serde::Serialize;

/// A language that Pelton documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// Rust (`.rs`).
    Rust,
    /// Python (`.py`).
    Python,
    /// JavaScript, with JSX (`.js`, `.mjs`, `.cjs`, `.jsx`).
    JavaScript,
    /// TypeScript, with TSX (`.ts`, `.mts`, `.cts`, `.tsx`).
    TypeScript,
    /// Go (`.go`).
    Go,
    /// Java (`.java`).
    Java,
    /// C (`.c`, and headers that are not C++).
    C,
    /// C++ (`.cc`, `.cpp`, `.cxx`, `.hpp`, …, and headers that hold C++).
    Cpp,
}

/// The grammar that parses a file; TSX is its own grammar, and a `.h` file is C or C++ by its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// The language's only grammar.
    Plain(Language),
    /// TypeScript with JSX.
    Tsx,
    /// A `.h` file.
    Header,
}

impl Language {
    /// Every language, in the order of the documentation.
    pub const ALL: [Self; 8] =
        [Self::Rust, Self::Python, Self::JavaScript, Self::TypeScript, Self::Go, Self::Java, Self::C, Self::Cpp];

    /// The name in prose and in the prompt, such as `C++`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rust => "Rust",
            Self::Python => "Python",
            Self::JavaScript => "JavaScript",
            Self::TypeScript => "TypeScript",
            Self::Go => "Go",
            Self::Java => "Java",
            Self::C => "C",
            Self::Cpp => "C++",
        }
    }

    /// The tag of a fenced code block, such as `cpp`.
    pub fn tag(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::Python => "python",
            Self::JavaScript => "javascript",
            Self::TypeScript => "typescript",
            Self::Go => "go",
            Self::Java => "java",
            Self::C => "c",
            Self::Cpp => "cpp",
        }
    }

    /// What joins the parts of a qualified name.
    pub(crate) fn separator(self) -> &'static str {
        match self {
            Self::Rust | Self::Cpp => "::",
            _ => ".",
        }
    }

    /// What opens a comment that ends with its line.
    pub(crate) fn line_comment(self) -> &'static str {
        match self {
            Self::Python => "#",
            _ => "//",
        }
    }

    /// The grammar. A `Header` is asked for as `Plain(C)` or `Plain(Cpp)`.
    fn grammar(self) -> tree_sitter::Language {
        match self {
            Self::Rust => tree_sitter_rust::LANGUAGE.into(),
            Self::Python => tree_sitter_python::LANGUAGE.into(),
            Self::JavaScript => tree_sitter_javascript::LANGUAGE.into(),
            Self::TypeScript => tree_sitter_typescript::LANGUAGE_TYPESCRIPT.into(),
            Self::Go => tree_sitter_go::LANGUAGE.into(),
            Self::Java => tree_sitter_java::LANGUAGE.into(),
            Self::C => tree_sitter_c::LANGUAGE.into(),
            Self::Cpp => tree_sitter_cpp::LANGUAGE.into(),
        }
    }
}

impl std::fmt::Display for Language {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Dialect {
    /// The dialect of a file by its ending; `None` for every other kind of file.
    pub(crate) fn of_path(path: &Path) -> Option<Self> {
        let ending = path.extension()?.to_str()?.to_ascii_lowercase();
        Some(match ending.as_str() {
            "rs" => Self::Plain(Language::Rust),
            "py" | "pyw" => Self::Plain(Language::Python),
            "js" | "mjs" | "cjs" | "jsx" => Self::Plain(Language::JavaScript),
            "ts" | "mts" | "cts" => Self::Plain(Language::TypeScript),
            "tsx" => Self::Tsx,
            "go" => Self::Plain(Language::Go),
            "java" => Self::Plain(Language::Java),
            "c" => Self::Plain(Language::C),
            "h" => Self::Header,
            "cc" | "cpp" | "cxx" | "c++" | "hh" | "hpp" | "hxx" | "h++" | "ipp" | "tpp" => Self::Plain(Language::Cpp),
            _ => return None,
        })
    }

    /// The language (a header counts as C until its content is known).
    pub(crate) fn language(self) -> Language {
        match self {
            Self::Plain(language) => language,
            Self::Tsx => Language::TypeScript,
            Self::Header => Language::C,
        }
    }

    /// The grammar.
    pub(crate) fn grammar(self) -> tree_sitter::Language {
        match self {
            Self::Tsx => tree_sitter_typescript::LANGUAGE_TSX.into(),
            other => other.language().grammar(),
        }
    }
}

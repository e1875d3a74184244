//! What is documented: functions of a folder, of a file of records, or the built-in ones.
//!
//! Invariant: the prompts are those of `pelton docs`, word for word, after a system prompt that all of them share.

use std::path::Path;

use pelton_docs::{ItemKind, Language, Scan, Snippet};
use serde::Deserialize;

use crate::Usage;
use crate::input::read_file;
use crate::setup::Context;

/// Functions of Pelton's own source, one a line.
const BUILT_IN: &str = include_str!("functions.jsonl");

/// A function or type to document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::commands::bench) struct Piece {
    pub(in crate::commands::bench) language: Language,
    pub(in crate::commands::bench) kind: ItemKind,
    pub(in crate::commands::bench) code: String,
}

impl Piece {
    pub(in crate::commands::bench) fn snippet(&self) -> Snippet<'_> {
        Snippet { language: self.language, kind: self.kind, code: &self.code }
    }
}

#[derive(Deserialize)]
struct Record {
    lang: String,
    code: String,
}

/// The first `n` pieces of `source`, and what people call where they are from.
pub(in crate::commands::bench) fn pieces(
    source: Option<&Path>,
    n: usize,
    context: &Context,
) -> anyhow::Result<(Vec<Piece>, String)> {
    let (mut pieces, name) = match source {
        None => (records(BUILT_IN).map_err(anyhow::Error::msg)?, "the built-in functions".to_string()),
        Some(path) if path.extension().is_some_and(|e| e == "jsonl") => {
            let name = path.display().to_string();
            (records(&read_file(path, context)?).map_err(|e| Usage(format!("{name}: {e}")))?, name)
        }
        Some(path) if !path.exists() => {
            return Err(Usage(format!("--source {}: no such file or folder", path.display())).into());
        }
        Some(path) => (of_folder(path)?, path.display().to_string()),
    };
    if pieces.is_empty() {
        return Err(Usage(format!("{name}: there is nothing to document")).into());
    }
    if pieces.len() < n && source.is_some() {
        context.note(&format!("{name} has {} to document, not {n}", pieces.len()));
    }
    pieces.truncate(n);
    Ok((pieces, name))
}

/// One object a line, with `lang` and `code`.
fn records(text: &str) -> Result<Vec<Piece>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let piece = |(i, line): (usize, &str)| {
        let record: Record = serde_json::from_str(line).map_err(|e| format!("line {}: {e}", i + 1))?;
        let language = Language::ALL.into_iter().find(|l| l.tag() == record.lang).ok_or_else(|| {
            let known: Vec<&str> = Language::ALL.iter().map(|l| l.tag()).collect();
            format!("line {}: `{}` is no language; expected one of {}", i + 1, record.lang, known.join(", "))
        })?;
        Ok(Piece { language, kind: ItemKind::Function, code: record.code })
    };
    lines.map(piece).collect()
}

/// Functions and types of source files, as `pelton docs` finds them.
fn of_folder(path: &Path) -> anyhow::Result<Vec<Piece>> {
    let scan = Scan::of(path)?;
    let items = scan.files.into_iter().flat_map(|file| file.items);
    Ok(items.map(|item| Piece { language: item.language, kind: item.kind, code: item.code }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_functions_are_a_hundred() {
        let pieces = records(BUILT_IN).unwrap();
        assert_eq!(pieces.len(), 100);
        assert!(pieces.iter().all(|p| p.code.len() >= 100 && p.code.lines().count() >= 4));
        let rust = pieces.iter().filter(|p| p.language == Language::Rust).count();
        assert!((50..100).contains(&rust), "{rust} of Rust");
    }

    #[test]
    fn records_that_cannot_be_read_name_their_line() {
        let good = r#"{"lang": "go", "code": "func a() {}"}"#;
        assert_eq!(records(&format!("{good}\n\n{good}\n")).unwrap().len(), 2);
        assert!(records(&format!("{good}\n{{}}")).unwrap_err().starts_with("line 2: "));
        let error = records(r#"{"lang": "cobol", "code": ""}"#).unwrap_err();
        assert!(error.contains("cobol") && error.contains("python"), "{error}");
    }
}

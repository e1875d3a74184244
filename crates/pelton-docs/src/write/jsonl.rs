//! JSON lines: one object for each entry.
//!
//! | field | type | meaning |
//! | --- | --- | --- |
//! | `path` | string | file, relative to PATH, with `/` |
//! | `language` | string | `rust`, `python`, `javascript`, `typescript`, `go`, `java`, `c`, `cpp` |
//! | `kind` | string | `function`, `method`, `constructor`, `struct`, `class`, `enum`, `union`, `trait`, `interface`, `record`, `annotation`, `type_alias` |
//! | `name`, `qualified_name` | string | own name; with module and type |
//! | `line_start`, `line_end` | number | lines from 1, both inclusive, without the doc comment |
//! | `signature` | string | the declaration without its body |
//! | `doc` | string or null | the documentation, without comment marks; null if there is none |
//! | `source` | string | `model`, or `existing` for a comment that stood in the source |
//! | `flags` | array of strings | `truncated_code`, `repetition_cut`, `truncated_reply`, `long_cut`, `no_answer`, `failed` |
//! | `prompt_tokens`, `cached_tokens`, `tokens` | number | prompt, part of it from the prefix cache, generated; 0 for `existing` |
//! | `author` | object | only where rules chose between two models: `to` (`small` or `large`), `model` (its name) and `why` |
//! | `error` | string | only with `failed`: what went wrong |
//!
//! Invariant: lines are in the order of the scan (by path, then by place in the file), each written as soon as
//! it and all before it are done.

use serde::Serialize;

use super::{Sink, Stream};
use crate::entry::{Entry, Flag, Source};
use crate::error::DocsError;
use crate::item::ItemKind;
use crate::language::Language;
use crate::scan::{Scan, SourceFile};
use crate::skip::Skip;
use crate::summary::Summary;
use crate::writer::Author;

/// The output.
pub(crate) struct JsonLines<'w>(pub(crate) Stream<'w>);

#[derive(Serialize)]
struct Record<'a> {
    path: &'a str,
    language: Language,
    kind: ItemKind,
    name: &'a str,
    qualified_name: &'a str,
    line_start: usize,
    line_end: usize,
    signature: &'a str,
    doc: Option<&'a str>,
    source: Source,
    flags: &'a [Flag],
    prompt_tokens: usize,
    cached_tokens: usize,
    tokens: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    author: Option<&'a Author>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

impl Sink for JsonLines<'_> {
    fn entry(&mut self, entry: &Entry<'_>) -> Result<(), DocsError> {
        let item = entry.item;
        let record = Record {
            path: &item.path,
            language: item.language,
            kind: item.kind,
            name: &item.name,
            qualified_name: &item.qualified_name,
            line_start: item.line_start,
            line_end: item.line_end,
            signature: &item.signature,
            doc: entry.doc.as_deref(),
            source: entry.source,
            flags: &entry.flags,
            prompt_tokens: entry.prompt_tokens,
            cached_tokens: entry.cached_tokens,
            tokens: entry.tokens,
            author: entry.author.as_ref(),
            error: entry.error.as_deref(),
        };
        let mut line = serde_json::to_string(&record).expect("strings and numbers always serialize");
        line.push('\n');
        self.0.push(&line)
    }

    fn file(&mut self, _: &SourceFile, _: &[Entry<'_>]) -> Result<Vec<Skip>, DocsError> {
        Ok(Vec::new())
    }

    fn finish(&mut self, _: &Scan, _: &Summary) -> Result<(), DocsError> {
        self.0.finish()
    }

    fn kept(&self) -> String {
        self.0.kept()
    }
}

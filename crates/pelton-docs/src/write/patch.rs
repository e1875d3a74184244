//! The patch: a unified diff that inserts, or with `--regenerate` replaces, doc comments.
//!
//! Inside a git repository the paths are relative to its top and the headers are git's, so that `git apply`
//! works from there; elsewhere they are relative to PATH. Invariant: a file that changed since it was scanned
//! is left out, so that the patch applies to what it was made from.

use std::path::{Path, PathBuf};

use super::comment::render;
use super::diff::{Edit, hunks, whole_lines};
use super::{Sink, Stream};
use crate::entry::{Entry, Source};
use crate::error::DocsError;
use crate::item::{InsertPoint, Item};
use crate::scan::{Scan, SourceFile, fingerprint, read_source};
use crate::skip::{Skip, SkipReason};
use crate::summary::Summary;

/// The output.
pub(crate) struct Patch<'w> {
    stream: Stream<'w>,
    root: PathBuf,
    /// What stands before PATH's own paths: the way from the repository's top, ending with `/`; `None` outside
    /// of a repository.
    prefix: Option<String>,
}

impl<'w> Patch<'w> {
    pub(crate) fn new(stream: Stream<'w>, root: &Path) -> Self {
        Self { stream, root: root.to_owned(), prefix: repository_prefix(root) }
    }
}

/// The way from the top of the repository that holds `root` to it.
fn repository_prefix(root: &Path) -> Option<String> {
    let top = root.ancestors().find(|folder| folder.join(".git").exists())?;
    let rest = root.strip_prefix(top).ok()?;
    let parts: Vec<_> = rest.components().map(|part| part.as_os_str().to_string_lossy()).collect();
    Some(if parts.is_empty() { String::new() } else { parts.join("/") + "/" })
}

/// Why an item gets no comment in a patch, before any model is asked.
pub(crate) fn obstacle(item: &Item) -> Option<SkipReason> {
    match (&item.doc, &item.insert) {
        _ if item.inherits_doc => Some(SkipReason::InheritsDoc),
        (Some(doc), _) => doc.lines.is_none().then_some(SkipReason::FixedDoc),
        (None, InsertPoint::Nowhere(reason)) => Some(*reason),
        (None, _) => None,
    }
}

impl Sink for Patch<'_> {
    fn entry(&mut self, _: &Entry<'_>) -> Result<(), DocsError> {
        Ok(())
    }

    fn file(&mut self, file: &SourceFile, entries: &[Entry<'_>]) -> Result<Vec<Skip>, DocsError> {
        let written = || entries.iter().filter(|entry| entry.source == Source::Model && entry.doc.is_some());
        if written().next().is_none() {
            return Ok(Vec::new());
        }
        let source = read_source(&self.root.join(&file.path)).ok();
        let Some(source) = source.filter(|source| fingerprint(source) == file.fingerprint) else {
            return Ok(vec![Skip::file(file.path.clone(), SkipReason::FileChanged)]);
        };
        let mut edits: Vec<(Edit, &Item)> = Vec::new();
        for entry in written() {
            if let Some(edit) = edit(&source, entry.item, entry.doc.as_deref().unwrap_or_default()) {
                edits.push((edit, entry.item));
            }
        }
        edits.sort_by_key(|(edit, _)| (edit.range.start, edit.range.end));
        let (edits, skips) = without_shared_lines(&source, edits);
        if edits.is_empty() {
            return Ok(skips);
        }
        self.stream.push(&format!("{}{}", self.header(&file.path), hunks(&source, &edits)))?;
        Ok(skips)
    }

    fn finish(&mut self, _: &Scan, _: &Summary) -> Result<(), DocsError> {
        self.stream.finish()
    }

    fn kept(&self) -> String {
        self.stream.kept()
    }
}

impl Patch<'_> {
    fn header(&self, path: &str) -> String {
        let path = format!("{}{path}", self.prefix.as_deref().unwrap_or_default());
        let (old, new) = (quoted(&format!("a/{path}")), quoted(&format!("b/{path}")));
        // Without the tab, a name would end at its first space.
        let tab = if path.contains(' ') { "\t" } else { "" };
        let git = if self.prefix.is_some() { format!("diff --git {old} {new}\n") } else { String::new() };
        format!("{git}--- {old}{tab}\n+++ {new}{tab}\n")
    }
}

/// A path as git writes it: quoted where it holds quotes, backslashes or control characters.
fn quoted(path: &str) -> String {
    if !path.chars().any(|c| c == '"' || c == '\\' || c.is_control()) {
        return path.to_owned();
    }
    let mut out = String::from("\"");
    for byte in path.bytes() {
        match byte {
            b'"' | b'\\' => out.extend(['\\', byte as char]),
            0x20..=0x7e => out.push(byte as char),
            _ => out.push_str(&format!("\\{byte:03o}")),
        }
    }
    out + "\""
}

/// The change that gives an item its comment.
fn edit(source: &str, item: &Item, doc: &str) -> Option<Edit> {
    if let Some(existing) = &item.doc {
        let range = existing.lines.clone()?;
        let text = &source[range.clone()];
        let indent = &text[..text.len() - text.trim_start_matches([' ', '\t']).len()];
        let line_break = line_break(source, range.start);
        let mut new = joined(&render(item, doc, indent), line_break);
        if !text.ends_with('\n') {
            new.truncate(new.len() - line_break.len());
        }
        // The same comment again is no change.
        return (new != text).then_some(Edit { range, text: new });
    }
    match &item.insert {
        InsertPoint::Lines { offset, indent } => {
            let text = joined(&render(item, doc, indent), line_break(source, *offset));
            Some(Edit { range: *offset..*offset, text })
        }
        InsertPoint::OneLineBody { gap, indent } => {
            let line_break = line_break(source, gap.start);
            let text = format!("{line_break}{}{indent}", joined(&render(item, doc, indent), line_break));
            Some(Edit { range: gap.clone(), text })
        }
        InsertPoint::Nowhere(_) => None,
    }
}

fn joined(lines: &[String], line_break: &str) -> String {
    lines.iter().flat_map(|line| [line.as_str(), line_break]).collect()
}

/// The line break of the line at `offset`, or of the one before where it is the last.
fn line_break(source: &str, offset: usize) -> &'static str {
    let end = source[offset..].find('\n').map(|at| offset + at).or_else(|| source[..offset].rfind('\n'));
    match end {
        Some(at) if source[..at].ends_with('\r') => "\r\n",
        _ => "\n",
    }
}

/// Leaves out edits that touch a line which the edit before touches, or the same place.
fn without_shared_lines(source: &str, edits: Vec<(Edit, &Item)>) -> (Vec<Edit>, Vec<Skip>) {
    let mut kept: Vec<Edit> = Vec::new();
    let mut skips = Vec::new();
    let mut last: Option<std::ops::Range<usize>> = None;
    for (edit, item) in edits {
        let lines = whole_lines(source, &edit.range);
        if last.as_ref().is_some_and(|last| lines.start < last.end || *last == lines) {
            skips.push(Skip {
                path: item.path.clone(),
                line: Some(item.line_start),
                name: Some(item.name.clone()),
                reason: SkipReason::SharedLine,
            });
        } else {
            last = Some(lines);
            kept.push(edit);
        }
    }
    (kept, skips)
}

//! Markdown pages: one for each source file, in mirrored folders, an index, and the list of what was left out.
//!
//! A page is written as soon as its last entry is done. Pages of an earlier run that this run does not write
//! stay where they are. Invariant: every link is relative, so that the folder can be read in any viewer that
//! sees the sources too.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::links::{encode, relative_link};
use super::page_text::{as_markdown, code_span, escape, fenced};
use super::{Sink, write_whole};
use crate::entry::{Entry, Source};
use crate::error::DocsError;
use crate::item::ItemKind;
use crate::scan::{Scan, SourceFile};
use crate::skip::{Skip, SkipReason, count_by_reason};
use crate::summary::Summary;

/// The output.
pub(crate) struct Pages {
    out: PathBuf,
    root: PathBuf,
    model: String,
    project: String,
    /// For each page: file, functions, types, written by the model, from the source, without text.
    rows: Vec<Row>,
}

#[derive(Default)]
struct Row {
    path: String,
    language: &'static str,
    functions: usize,
    types: usize,
    written: usize,
    existing: usize,
    empty: usize,
}

impl Pages {
    /// Makes the folder `out`.
    pub(crate) fn new(out: &Path, root: &Path, model: &str) -> Result<Self, DocsError> {
        if out.exists() && !out.is_dir() {
            return Err(DocsError::Out { path: out.to_owned(), reason: "is a file; pages need a folder" });
        }
        fs::create_dir_all(out).map_err(|error| DocsError::write(out, error))?;
        let out = fs::canonicalize(out).map_err(|error| DocsError::write(out, error))?;
        let project = root.file_name().map_or_else(|| "/".into(), |name| name.to_string_lossy().into_owned());
        Ok(Self { out, root: root.to_owned(), model: model.to_owned(), project, rows: Vec::new() })
    }

    fn page(&self, file: &SourceFile, entries: &[Entry<'_>]) -> String {
        let page = self.out.join(format!("{}.md", file.path));
        let folder = page.parent().unwrap_or(&self.out);
        let source = relative_link(folder, &self.root.join(&file.path));
        let index = relative_link(folder, &self.out.join("index.md"));
        let mut text = format!("# {}\n\n[Source]({source}) · [Index]({index})\n", escape(&file.path));
        for entry in entries {
            let item = entry.item;
            let _ = write!(
                text,
                "\n## {} {}\n\n[Lines {} to {}]({source}#L{}-L{})",
                item.kind.words(),
                code_span(&item.qualified_name),
                item.line_start,
                item.line_end,
                item.line_start,
                item.line_end,
            );
            let from = match entry.source {
                Source::Existing => Some("from source"),
                Source::Model => None,
            };
            for note in from.into_iter().chain(entry.flags.iter().map(|flag| flag.words())) {
                let _ = write!(text, " · *{note}*");
            }
            let _ = write!(text, "\n\n{}", fenced(item.language.tag(), &item.signature));
            let doc = entry.doc.as_deref().map(as_markdown);
            let error = entry.error.as_deref().map(escape);
            if let Some(body) = doc.or(error) {
                let _ = write!(text, "\n{body}\n");
            }
        }
        text
    }

    fn index(&self, summary: &Summary) -> String {
        let mut text = format!(
            "# {}\n\nDocumented by Pelton with the model {}.\n\n",
            escape(&self.project),
            code_span(&self.model)
        );
        for line in summary.to_string().lines() {
            let _ = writeln!(text, "- {}", escape(line));
        }
        let mut folders: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
        for row in &self.rows {
            folders.entry(row.path.rsplit_once('/').map_or("", |(folder, _)| folder)).or_default().push(row);
        }
        let heads = "| file | language | functions | types | by the model | from source | without text |\n| --- | --- | ---: | ---: | ---: | ---: | ---: |\n";
        for (folder, rows) in folders {
            let _ = write!(text, "\n## {}\n\n{heads}", if folder.is_empty() { "Top".into() } else { escape(folder) });
            for row in rows {
                let name = row.path.rsplit('/').next().unwrap_or(&row.path);
                let link = format!("[{}]({}.md)", escape(name), encode(&row.path));
                push_row(&mut text, &link, row);
            }
        }
        let mut total = Row::default();
        for row in &self.rows {
            total.functions += row.functions;
            total.types += row.types;
            total.written += row.written;
            total.existing += row.existing;
            total.empty += row.empty;
        }
        let _ = write!(text, "\n## Total\n\n{heads}");
        push_row(&mut text, &format!("{} files", self.rows.len()), &total);
        text.push_str("\n## Left out\n\n");
        if summary.skips.is_empty() {
            text.push_str("Nothing.\n");
        }
        for (reason, n) in count_by_reason(&summary.skips) {
            let _ = writeln!(text, "- {n} {}", reason.words());
        }
        if !summary.skips.is_empty() {
            text.push_str("\nEach of them is in [the list](skipped.md).\n");
        }
        text
    }
}

fn push_row(text: &mut String, name: &str, row: &Row) {
    let _ = writeln!(
        text,
        "| {name} | {} | {} | {} | {} | {} | {} |",
        row.language, row.functions, row.types, row.written, row.existing, row.empty
    );
}

/// The list of all that was left out, by reason.
fn skipped(skips: &[Skip]) -> String {
    let mut by_reason: BTreeMap<SkipReason, Vec<&Skip>> = BTreeMap::new();
    for skip in skips {
        by_reason.entry(skip.reason).or_default().push(skip);
    }
    let mut text = "# Left out\n".to_owned();
    for (reason, skips) in by_reason {
        let _ = write!(text, "\n## {} {}\n\n", skips.len(), reason.words());
        for skip in skips {
            let line = skip.line.map(|line| format!(":{line}")).unwrap_or_default();
            let name = skip.name.as_deref().map(|name| format!(" {}", code_span(name))).unwrap_or_default();
            let _ = writeln!(text, "- {}{line}{name}", escape(&skip.path));
        }
    }
    text
}

impl Sink for Pages {
    fn entry(&mut self, _: &Entry<'_>) -> Result<(), DocsError> {
        Ok(())
    }

    fn file(&mut self, file: &SourceFile, entries: &[Entry<'_>]) -> Result<Vec<Skip>, DocsError> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let count = |keep: &dyn Fn(&Entry<'_>) -> bool| entries.iter().filter(|entry| keep(entry)).count();
        let is_function = |kind: ItemKind| kind.is_function();
        self.rows.push(Row {
            path: file.path.clone(),
            language: file.language.name(),
            functions: count(&|entry| is_function(entry.item.kind)),
            types: count(&|entry| !is_function(entry.item.kind)),
            written: count(&|entry| entry.source == Source::Model && entry.doc.is_some()),
            existing: count(&|entry| entry.source == Source::Existing),
            empty: count(&|entry| entry.doc.is_none()),
        });
        write_whole(&self.out, &format!("{}.md", file.path), &self.page(file, entries))?;
        Ok(Vec::new())
    }

    fn finish(&mut self, _: &Scan, summary: &Summary) -> Result<(), DocsError> {
        if !summary.skips.is_empty() {
            write_whole(&self.out, "skipped.md", &skipped(&summary.skips))?;
        }
        write_whole(&self.out, "index.md", &self.index(summary))
    }

    fn kept(&self) -> String {
        format!("; finished pages are in {}", self.out.display())
    }
}

//! The three outputs behind one trait: records, pages, a patch.
//!
//! Invariant: entries arrive in the order of the scan, and no reader ever sees half a file under its final
//! name: files are written beside it and renamed. Nothing is written through a symbolic link below the output:
//! a project that is documented in place may bring a `docs-out` of its own.

mod comment;
mod diff;
mod fence;
mod jsonl;
mod links;
mod markdown;
mod page_text;
mod patch;

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

pub(crate) use jsonl::JsonLines;
pub(crate) use markdown::Pages;
pub(crate) use patch::{Patch, obstacle};

use crate::entry::Entry;
use crate::error::DocsError;
use crate::scan::{Scan, SourceFile};
use crate::skip::Skip;
use crate::summary::Summary;

/// Where entries go.
pub(crate) trait Sink {
    /// Takes one entry, as soon as it and all before it are done.
    fn entry(&mut self, entry: &Entry<'_>) -> Result<(), DocsError>;

    /// Takes a file's entries, once all are done; returns what it had to leave out.
    fn file(&mut self, file: &SourceFile, entries: &[Entry<'_>]) -> Result<Vec<Skip>, DocsError>;

    /// Ends the output.
    fn finish(&mut self, scan: &Scan, summary: &Summary) -> Result<(), DocsError>;

    /// Where an unfinished output lies, in words that follow an error; empty where nothing is kept.
    fn kept(&self) -> String;
}

/// A text that grows: a file, written as `NAME.partial` until it is whole, or the standard output.
pub(crate) enum Stream<'w> {
    /// To a file.
    File {
        /// The final name.
        path: PathBuf,
        /// The file under its name for now.
        file: fs::File,
    },
    /// To the caller's writer.
    Writer(&'w mut dyn Write),
}

impl<'w> Stream<'w> {
    /// Opens `path`, or takes `writer` where there is none.
    pub(crate) fn open(path: Option<&Path>, writer: &'w mut dyn Write) -> Result<Self, DocsError> {
        let Some(path) = path else {
            return Ok(Self::Writer(writer));
        };
        if path.is_dir() {
            return Err(DocsError::Out { path: path.to_owned(), reason: "is a folder; this format writes one file" });
        }
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(|error| DocsError::write(parent, error))?;
        }
        Ok(Self::File { path: path.to_owned(), file: create_partial(path)? })
    }

    /// Writes and hands on at once, so that a reader can follow.
    fn push(&mut self, text: &str) -> Result<(), DocsError> {
        match self {
            Self::File { path, file } => {
                file.write_all(text.as_bytes()).map_err(|error| DocsError::write(&partial(path), error))
            }
            Self::Writer(writer) => writer
                .write_all(text.as_bytes())
                .and_then(|()| writer.flush())
                .map_err(|error| DocsError::write(Path::new("standard output"), error)),
        }
    }

    /// Gives the file its final name.
    fn finish(&mut self) -> Result<(), DocsError> {
        match self {
            Self::File { path, .. } => fs::rename(partial(path), &*path).map_err(|error| DocsError::write(path, error)),
            Self::Writer(_) => Ok(()),
        }
    }

    fn kept(&self) -> String {
        match self {
            Self::File { path, .. } => format!("; what was finished is in {}", partial(path).display()),
            Self::Writer(_) => String::new(),
        }
    }
}

/// The name of a file while it is written.
fn partial(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    path.with_file_name(name)
}

/// A new, empty file under [`partial`]'s name. What lies there already is left over, or a link laid out by
/// somebody else: it is removed, never written through.
fn create_partial(path: &Path) -> Result<fs::File, DocsError> {
    let partial = partial(path);
    let outcome = match fs::remove_file(&partial) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => fs::OpenOptions::new().write(true).create_new(true).open(&partial),
    };
    outcome.map_err(|error| DocsError::write(&partial, error))
}

/// Writes a whole file `name`, a relative path with `/`, below the folder `out` at once, with its folders.
fn write_whole(out: &Path, name: &str, text: &str) -> Result<(), DocsError> {
    let path = out.join(name);
    let mut folder = out.to_owned();
    for part in name.split('/').rev().skip(1).collect::<Vec<_>>().into_iter().rev() {
        folder.push(part);
        if fs::symlink_metadata(&folder).is_ok_and(|metadata| metadata.is_symlink()) {
            return Err(DocsError::Out {
                path: folder,
                reason: "is a symbolic link; remove it or choose another --out",
            });
        }
    }
    fs::create_dir_all(&folder).map_err(|error| DocsError::write(&folder, error))?;
    let mut file = create_partial(&path)?;
    file.write_all(text.as_bytes()).map_err(|error| DocsError::write(&partial(&path), error))?;
    fs::rename(partial(&path), &path).map_err(|error| DocsError::write(&path, error))
}

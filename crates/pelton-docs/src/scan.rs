//! Discovery: which files of a folder are documented, and the items in them.
//!
//! Invariant: every entry that the walk meets ends either among the files or among the skips. Folders that
//! are left out are one skip each; what lies in them is not looked at.

use std::collections::HashSet;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex};

use ignore::WalkBuilder;

use crate::error::DocsError;
use crate::extract::extract;
use crate::item::Item;
use crate::language::{Dialect, Language};
use crate::qualify::Modules;
use crate::rules;
use crate::skip::{Skip, SkipReason};

/// Larger files are left out.
pub const MAX_FILE_BYTES: u64 = 2 << 20;

/// A source file with its items.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// Path relative to the root, with `/` between its parts.
    pub path: String,
    /// The language.
    pub language: Language,
    /// The items, in the order of the file.
    pub items: Vec<Item>,
    /// Tells whether the file has changed since.
    pub(crate) fingerprint: u64,
}

/// What discovery found under a path.
#[derive(Clone, Debug)]
pub struct Scan {
    /// The folder that paths are relative to (the file's folder where PATH is a file).
    pub root: PathBuf,
    /// Files that have items, by path.
    pub files: Vec<SourceFile>,
    /// What was left out, by path.
    pub skips: Vec<Skip>,
}

impl Scan {
    /// Walks `path`, a folder or one file.
    ///
    /// A file that is named outright is read even where its name or its folder says test, generated or
    /// vendored.
    ///
    /// # Errors
    ///
    /// The path does not exist, cannot be read, or is a file that cannot be documented.
    pub fn of(path: &Path) -> Result<Self, DocsError> {
        let found = fs::canonicalize(path).map_err(|error| DocsError::read(path, error))?;
        if found.is_dir() { Self::folder(found) } else { Self::one_file(&found) }
    }

    /// All items of all files.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.files.iter().flat_map(|file| &file.items)
    }

    fn one_file(path: &Path) -> Result<Self, DocsError> {
        let root = path.parent().unwrap_or(Path::new("/")).to_owned();
        let Some(dialect) = Dialect::of_path(path) else {
            return Err(DocsError::Unsupported { path: path.to_owned(), reason: SkipReason::OtherKind.words() });
        };
        let relative = relative(&root, path);
        let mut reader = Reader { root: &root, modules: Modules::default(), named: true, test_paths: HashSet::new() };
        let (file, skips) = reader
            .read(path, &relative, dialect)
            .map_err(|reason| DocsError::Unsupported { path: path.to_owned(), reason: reason.words() })?;
        Ok(Self { root, files: vec![file], skips })
    }

    fn folder(root: PathBuf) -> Result<Self, DocsError> {
        let (paths, mut skips) = walk(&root)?;
        let mut reader = Reader { root: &root, modules: Modules::default(), named: false, test_paths: HashSet::new() };
        let mut files = Vec::new();
        for path in paths {
            let relative = relative(&root, &path);
            let Some(dialect) = Dialect::of_path(&path) else {
                skips.push(Skip::file(relative, SkipReason::OtherKind));
                continue;
            };
            if let Some(reason) = rules::by_name(&relative, dialect.language()) {
                skips.push(Skip::file(relative, reason));
                continue;
            }
            match reader.read(&path, &relative, dialect) {
                Ok((file, more)) => {
                    skips.extend(more);
                    files.push(file);
                }
                Err(reason) => skips.push(Skip::file(relative, reason)),
            }
        }
        let test_paths = reader.test_paths;
        let is_test = |path: &str| {
            test_paths.contains(path)
                || test_paths.iter().any(|test| test.ends_with('/') && path.starts_with(test.as_str()))
        };
        for file in files.iter().filter(|file| is_test(&file.path)) {
            skips.retain(|skip| skip.path != file.path);
            skips.push(Skip::file(file.path.clone(), SkipReason::Test));
        }
        files.retain(|file| !is_test(&file.path) && !file.items.is_empty());
        files.sort_by(|a, b| a.path.cmp(&b.path));
        skips.sort_by(|a, b| (&a.path, a.line).cmp(&(&b.path, b.line)));
        Ok(Self { root, files, skips })
    }
}

/// The files under `root` that no ignore rule and no folder rule leaves out.
fn walk(root: &Path) -> Result<(Vec<PathBuf>, Vec<Skip>), DocsError> {
    let pruned: Arc<Mutex<Vec<Skip>>> = Arc::default();
    let (base, list) = (root.to_owned(), Arc::clone(&pruned));
    let walker = WalkBuilder::new(root)
        .require_git(false)
        .follow_links(false)
        .sort_by_file_name(|a, b| a.cmp(b))
        .filter_entry(move |entry| {
            if entry.depth() == 0 || !entry.file_type().is_some_and(|kind| kind.is_dir()) {
                return true;
            }
            let Some(reason) = rules::folder(&entry.file_name().to_string_lossy(), entry.path()) else {
                return true;
            };
            let skip = Skip::file(relative(&base, entry.path()), reason);
            list.lock().expect("no thread panics while it holds the list").push(skip);
            false
        })
        .build();
    let mut files = Vec::new();
    let mut folders = Vec::new();
    let mut skips = Vec::new();
    for entry in walker {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                if let Some(path) = failed_path(&error) {
                    skips.push(Skip::file(relative(root, &path), SkipReason::Unreadable));
                    continue;
                }
                return Err(DocsError::Walk { root: root.to_owned(), reason: error.to_string() });
            }
        };
        match entry.file_type() {
            Some(kind) if kind.is_dir() => folders.push(entry.into_path()),
            Some(kind) if kind.is_file() => files.push(entry.into_path()),
            Some(kind) if kind.is_symlink() => {
                skips.push(Skip::file(relative(root, entry.path()), SkipReason::Symlink))
            }
            _ => skips.push(Skip::file(relative(root, entry.path()), SkipReason::OtherKind)),
        }
    }
    skips.append(&mut pruned.lock().expect("the walk has ended"));
    ignored(root, &folders, &files, &mut skips);
    Ok((files, skips))
}

/// What lies in the visited folders and was neither yielded nor pruned was ignored or hidden.
fn ignored(root: &Path, folders: &[PathBuf], files: &[PathBuf], skips: &mut Vec<Skip>) {
    let mut met: HashSet<PathBuf> = folders.iter().chain(files).cloned().collect();
    met.extend(skips.iter().map(|skip| root.join(&skip.path)));
    for folder in folders {
        let Ok(entries) = fs::read_dir(folder) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if met.contains(&path) {
                continue;
            }
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            let reason = if hidden { SkipReason::Hidden } else { SkipReason::Ignored };
            skips.push(Skip::file(relative(root, &path), reason));
        }
    }
}

/// The path that a walking error is about.
fn failed_path(error: &ignore::Error) -> Option<PathBuf> {
    match error {
        ignore::Error::WithPath { path, .. } => Some(path.clone()),
        ignore::Error::WithDepth { err, .. } | ignore::Error::WithLineNumber { err, .. } => failed_path(err),
        ignore::Error::Loop { child, .. } => Some(child.clone()),
        _ => None,
    }
}

/// Reads files and takes their items.
struct Reader<'a> {
    root: &'a Path,
    modules: Modules,
    /// The file was named outright: no rule about tests or generated code applies.
    named: bool,
    /// Paths of Rust modules declared under `#[cfg(test)]`; a folder ends with `/`.
    test_paths: HashSet<String>,
}

impl Reader<'_> {
    fn read(&mut self, path: &Path, relative: &str, dialect: Dialect) -> Result<(SourceFile, Vec<Skip>), SkipReason> {
        let source = read_source(path)?;
        if !self.named
            && let Some(reason) = rules::by_content(&source, dialect.language())
        {
            return Err(reason);
        }
        let module = self.modules.of(self.root, path, dialect.language());
        let out = extract(&source, dialect, relative, &module)?;
        for name in &out.test_modules {
            self.test_paths.extend(rules::rust_module_paths(relative, name));
        }
        let language = out.language.unwrap_or(dialect.language());
        let fingerprint = fingerprint(&source);
        Ok((SourceFile { path: relative.to_owned(), language, items: out.items, fingerprint }, out.skips))
    }
}

/// The text of a file, or why it is left out.
pub(crate) fn read_source(path: &Path) -> Result<String, SkipReason> {
    let metadata = fs::metadata(path).map_err(|_| SkipReason::Unreadable)?;
    if !metadata.is_file() {
        return Err(SkipReason::Unreadable);
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(SkipReason::TooLarge);
    }
    let bytes = fs::read(path).map_err(|_| SkipReason::Unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(SkipReason::TooLarge);
    }
    if bytes.contains(&0) {
        return Err(SkipReason::Binary);
    }
    String::from_utf8(bytes).map_err(|_| SkipReason::NotUtf8)
}

/// A number that another text almost surely does not have (64-bit FNV-1a).
pub(crate) fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// `path` relative to `root`, with `/` between its parts.
fn relative(root: &Path, path: &Path) -> String {
    let rest = path.strip_prefix(root).unwrap_or(path);
    let parts = rest.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_string_lossy()),
        _ => None,
    });
    parts.collect::<Vec<_>>().join("/")
}

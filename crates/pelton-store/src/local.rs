//! What is in the cache: listing it, and turning a name into a path.
//!
//! Invariant: only what can be opened is reported, that is models of which every file is there; no network is used.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::choose::{Choice, SAFETENSORS, choose, complete_variants};
use crate::layout::{RepoDir, is_commit};
use crate::spec::repo_of_folder;
use crate::{ModelSpec, Store, StoreError};

/// Snapshots are shallow; deeper folders are not followed.
const MAX_DEPTH: usize = 6;
/// More files than any model has; the rest is not looked at.
const MAX_FILES: usize = 50_000;

/// A model in the cache.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StoredModel {
    /// `ORG/NAME`.
    pub repo: String,
    /// The commit.
    pub revision: String,
    /// The files, as named in the repository.
    pub files: Vec<String>,
    /// Bytes of all the files.
    pub bytes: u64,
    /// What to open: the GGUF file (its first shard) or the snapshot folder.
    pub path: PathBuf,
    /// The quantization that the name carries, GGUF only.
    pub quant: Option<String>,
    /// When the newest of the files was written.
    pub last_modified: Option<SystemTime>,
}

/// A model found in a snapshot.
pub(crate) struct Found {
    pub(crate) commit: String,
    pub(crate) choice: Choice,
    snapshot: PathBuf,
}

impl Found {
    /// What to open.
    pub(crate) fn path(&self) -> PathBuf {
        self.choice.open.as_ref().map_or_else(|| self.snapshot.clone(), |file| self.snapshot.join(file))
    }

    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        let len = |file: &String| fs::metadata(self.snapshot.join(file)).map_or(0, |found| found.len());
        self.choice.files.iter().map(len).sum()
    }
}

impl Store {
    /// The models in the cache, by name and quantization; those that Python downloaded included.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the cache exists and cannot be read.
    pub fn list(&self) -> Result<Vec<StoredModel>, StoreError> {
        let mut models = Vec::new();
        for folder in sub_folders(&self.options.root)? {
            let Some(repo) = repo_of_folder(&folder) else { continue };
            let dir = RepoDir::new(&self.options.root, &folder);
            for commit in commits(&dir)? {
                let snapshot = dir.snapshot(&commit);
                let files = snapshot_files(&snapshot);
                let gguf = complete_variants(&files);
                let gguf =
                    gguf.into_iter().map(|variant| (variant.files.first().cloned(), variant.label, variant.files));
                let folder = choose(&repo, &files, Some(SAFETENSORS)).ok().map(|choice| (None, None, choice.files));
                models.extend(gguf.chain(folder).map(|(open, quant, files)| {
                    let found = files.iter().filter_map(|file| fs::metadata(snapshot.join(file)).ok());
                    let (mut bytes, mut last_modified) = (0, None);
                    for metadata in found {
                        bytes += metadata.len();
                        last_modified = last_modified.max(metadata.modified().ok());
                    }
                    let path = open.map_or_else(|| snapshot.clone(), |file| snapshot.join(file));
                    let (repo, revision) = (repo.clone(), commit.clone());
                    StoredModel { repo, revision, files, bytes, path, quant, last_modified }
                }));
            }
        }
        models.sort_by(|a, b| (&a.repo, &a.quant, &a.path).cmp(&(&b.repo, &b.quant, &b.path)));
        Ok(models)
    }

    /// The path that a reader opens for a name, if the model is in the cache and whole: the GGUF file (its first shard)
    /// or the snapshot folder.
    ///
    /// Without `@REVISION` the commit that `main` stood at is searched first, then other snapshots, newest first.
    pub fn locate(&self, spec: &ModelSpec) -> Option<PathBuf> {
        self.find(spec).map(|found| found.path())
    }

    /// The model that `spec` names among the snapshots.
    pub(crate) fn find(&self, spec: &ModelSpec) -> Option<Found> {
        let dir = RepoDir::new(&self.options.root, &spec.folder());
        let mut searched: Vec<String> = dir.commit_of(spec.revision_or_main()).into_iter().collect();
        if spec.revision().is_none() {
            let written = |commit: &String| fs::metadata(dir.snapshot(commit)).and_then(|found| found.modified()).ok();
            let mut others = commits(&dir).ok()?;
            others.retain(|commit| !searched.contains(commit));
            others.sort_by_key(|commit| std::cmp::Reverse(written(commit)));
            searched.extend(others);
        }
        searched.into_iter().find_map(|commit| {
            let snapshot = dir.snapshot(&commit);
            let choice = choose(&spec.repo(), &snapshot_files(&snapshot), spec.quant()).ok()?;
            Some(Found { commit, choice, snapshot })
        })
    }
}

/// The names of the folders in `path`, sorted; none when it does not exist.
pub(crate) fn sub_folders(path: &Path) -> Result<Vec<String>, StoreError> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(StoreError::io("read", path))?,
    };
    let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut names: Vec<String> = folders.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// The commits that a repository has snapshots of.
pub(crate) fn commits(dir: &RepoDir) -> Result<Vec<String>, StoreError> {
    let mut names = sub_folders(&dir.snapshots())?;
    names.retain(|name| is_commit(name));
    Ok(names)
}

/// The files of a snapshot whose content is there, as paths with `/`, sorted. Linked folders are not entered.
pub(crate) fn snapshot_files(snapshot: &Path) -> Vec<String> {
    let mut files = Vec::new();
    walk(snapshot, "", MAX_DEPTH, &mut |file, path| {
        if path.is_file() {
            files.push(file);
        }
    });
    files.sort();
    files
}

/// Calls `visit` with each entry under `folder` that is not itself a folder: its relative path and its path.
pub(crate) fn walk(folder: &Path, prefix: &str, depth: usize, visit: &mut dyn FnMut(String, &Path)) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten().take(MAX_FILES) {
        let (Ok(name), Ok(kind)) = (entry.file_name().into_string(), entry.file_type()) else { continue };
        if !kind.is_dir() {
            visit(format!("{prefix}{name}"), &entry.path());
        } else if depth > 0 {
            walk(&entry.path(), &format!("{prefix}{name}/"), depth - 1, visit);
        }
    }
}

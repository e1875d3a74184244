//! Taking models out of the cache.
//!
//! Invariant: a blob goes only when no snapshot that stays links to it and nobody is downloading it; nothing outside
//! the repository's folder is touched, whatever the links in it point to.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::choose::{SAFETENSORS, choose, complete_variants};
use crate::error::name_list;
use crate::layout::{BlobLock, INCOMPLETE, RepoDir};
use crate::local::{commits, snapshot_files, walk};
use crate::{ModelSpec, Store, StoreError};

/// Deep enough for every folder that a name of at most 1,024 bytes can make.
const ANY_DEPTH: usize = 512;

/// What a removal freed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Removed {
    /// Bytes freed on the disk; files that other snapshots share stay and do not count.
    pub bytes: u64,
    /// How many files were taken out of snapshots.
    pub n_files: usize,
}

/// One file of a snapshot, and the name of its blob where it is a link to one.
struct Entry {
    path: PathBuf,
    file: String,
    blob: Option<String>,
}

impl Store {
    /// Removes a model: with `:QUANT` that GGUF file or its shards, else everything of the repository; with
    /// `@REVISION` in that snapshot only.
    ///
    /// # Errors
    /// [`StoreError::NotStored`] when there is nothing to remove, [`StoreError::Busy`] when one of the files is being
    /// downloaded, [`StoreError::Io`].
    pub fn remove(&self, spec: &ModelSpec) -> Result<Removed, StoreError> {
        let dir = RepoDir::new(&self.options.root, &spec.folder());
        if !dir.path.is_dir() {
            return Err(self.not_stored(spec, "`pelton list` shows what is"));
        }
        if spec.quant().is_none() && spec.revision().is_none() {
            return remove_repo(&dir);
        }
        let all = commits(&dir)?;
        let chosen: Vec<String> = match spec.revision() {
            Some(revision) => {
                let commit = dir.commit_of(revision).filter(|commit| all.contains(commit));
                vec![commit.ok_or_else(|| self.not_stored(spec, "that revision has no snapshot"))?]
            }
            None => all.clone(),
        };
        let (mut leaving, mut staying) = (Vec::new(), BTreeSet::new());
        for commit in &all {
            let (out, kept) = split(spec, &dir.snapshot(commit), chosen.contains(commit));
            leaving.extend(out);
            staying.extend(kept.into_iter().filter_map(|entry| entry.blob));
        }
        if leaving.is_empty() {
            let files: Vec<String> = all.iter().flat_map(|commit| snapshot_files(&dir.snapshot(commit))).collect();
            let hint = format!("the repository has: {}", name_list(files.iter().map(String::as_str)));
            return Err(self.not_stored(spec, &hint));
        }
        let removed = remove_entries(&dir, &leaving, &staying)?;
        for commit in &chosen {
            prune(&dir, commit)?;
        }
        if commits(&dir)?.is_empty() {
            let rest = remove_repo(&dir)?;
            return Ok(Removed { bytes: removed.bytes + rest.bytes, n_files: removed.n_files });
        }
        Ok(removed)
    }

    fn not_stored(&self, spec: &ModelSpec, hint: &str) -> StoreError {
        StoreError::NotStored { model: spec.to_string(), root: self.options.root.clone(), hint: hint.to_owned() }
    }
}

/// The entries of a snapshot, those to remove first.
fn split(spec: &ModelSpec, snapshot: &Path, is_chosen: bool) -> (Vec<Entry>, Vec<Entry>) {
    let mut entries = Vec::new();
    walk(snapshot, "", ANY_DEPTH, &mut |file, path| {
        let target = fs::read_link(path).ok();
        let in_blobs = |target: &PathBuf| target.parent().is_some_and(|parent| parent.ends_with("blobs"));
        let blob = target.filter(in_blobs).and_then(|target| target.file_name()?.to_str().map(str::to_owned));
        entries.push(Entry { path: path.to_path_buf(), file, blob });
    });
    let out: BTreeSet<String> = match spec.quant() {
        _ if !is_chosen => BTreeSet::new(),
        None => entries.iter().map(|entry| entry.file.clone()).collect(),
        Some(word) => {
            let files = snapshot_files(snapshot);
            let is_model = word.eq_ignore_ascii_case(SAFETENSORS) || !complete_variants(&files).is_empty();
            let choice = is_model.then(|| choose(&spec.repo(), &files, Some(word)).ok()).flatten();
            choice.into_iter().flat_map(|choice| choice.files).collect()
        }
    };
    entries.into_iter().partition(|entry| out.contains(&entry.file))
}

/// Removes links, and the blobs that nothing else links to.
fn remove_entries(dir: &RepoDir, leaving: &[Entry], staying: &BTreeSet<String>) -> Result<Removed, StoreError> {
    let blobs: BTreeSet<&String> =
        leaving.iter().filter_map(|entry| entry.blob.as_ref()).filter(|blob| !staying.contains(*blob)).collect();
    let _locks = blobs.iter().map(|blob| dir.try_lock(blob)).collect::<Result<Vec<BlobLock>, _>>()?;
    let mut bytes = 0;
    for entry in leaving {
        bytes += own_len(&entry.path);
        fs::remove_file(&entry.path).map_err(StoreError::io("remove", &entry.path))?;
    }
    for blob in blobs {
        let path = dir.blobs().join(blob);
        let len = own_len(&path);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::io("remove", &path)(error));
            }
            Ok(()) => bytes += len,
            Err(_) => {}
        }
    }
    Ok(Removed { bytes, n_files: leaving.len() })
}

/// Bytes of a plain file; a link has none of its own.
fn own_len(path: &Path) -> u64 {
    fs::symlink_metadata(path).map_or(0, |found| if found.is_file() { found.len() } else { 0 })
}

/// Removes the empty folders of a snapshot, and, if nothing is left of it, the refs that stand at it.
fn prune(dir: &RepoDir, commit: &str) -> Result<(), StoreError> {
    let snapshot = dir.snapshot(commit);
    remove_empty_folders(&snapshot, ANY_DEPTH);
    if snapshot.exists() {
        return Ok(());
    }
    let mut dangling = Vec::new();
    walk(&dir.refs(), "", ANY_DEPTH, &mut |revision, path| {
        if dir.commit_of(&revision).as_deref() == Some(commit) {
            dangling.push(path.to_path_buf());
        }
    });
    for path in dangling {
        fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
    }
    Ok(())
}

/// Removes `folder` and the folders in it as far as they are empty; `remove_dir` refuses the others by itself.
fn remove_empty_folders(folder: &Path, depth: usize) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_empty_folders(&entry.path(), depth - 1);
    }
    let _not_empty = fs::remove_dir(folder);
}

/// Removes a repository's whole folder, unless a download into it is under way.
fn remove_repo(dir: &RepoDir) -> Result<Removed, StoreError> {
    let mut incomplete = Vec::new();
    let mut bytes = 0;
    let mut n_files = 0;
    walk(&dir.path, "", ANY_DEPTH, &mut |file, path| {
        bytes += own_len(path);
        n_files += usize::from(file.starts_with("snapshots/"));
        incomplete
            .extend(file.strip_prefix("blobs/").and_then(|name| name.strip_suffix(INCOMPLETE)).map(str::to_owned));
    });
    let _locks = incomplete.iter().map(|blob| dir.try_lock(blob)).collect::<Result<Vec<BlobLock>, _>>()?;
    fs::remove_dir_all(&dir.path).map_err(StoreError::io("remove", &dir.path))?;
    Ok(Removed { bytes, n_files })
}

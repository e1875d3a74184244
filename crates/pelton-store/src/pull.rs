//! A pull from the listing to the snapshot.
//!
//! Invariant: the snapshot's links and the ref are made after the last file is whole, so an interrupted or refused
//! pull never leaves a snapshot that looks like a model.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use crate::choose::choose;
use crate::digest::ContentHash;
use crate::disk::check_room;
use crate::fetch::{Job, fetch};
use crate::layout::{Placed, RepoDir, Symlink, name_problem, place, system_symlink};
use crate::listing::HubFile;
use crate::local::walk;
use crate::{ModelSpec, Progress, ProgressState, Store, StoreError};

/// What a pull brought.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Pulled {
    /// `ORG/NAME`.
    pub repo: String,
    /// The commit that the revision stood at.
    pub commit: String,
    /// What to open: the GGUF file (its first shard) or the snapshot folder.
    pub path: PathBuf,
    /// The files, as named in the repository.
    pub files: Vec<String>,
    /// Bytes of all the files.
    pub bytes: u64,
    /// Bytes that came over the network this time.
    pub downloaded_bytes: u64,
    /// The quantization that was chosen, GGUF only.
    pub quant: Option<String>,
    /// What was chosen and why, for a person: `Q4_K_M, the default among Q4_K_M, Q8_0`.
    pub choice: String,
}

/// A file with all that is needed to fetch it.
struct Wanted {
    file: String,
    url: String,
    hash: ContentHash,
    size: u64,
}

impl Store {
    /// Downloads a model, or what is missing of it, and returns where it is.
    ///
    /// Which files make the model: with `:QUANT` the GGUF file, or all shards, that carries it; without, the GGUF file
    /// of a default order that begins with `Q4_K_M` and `Q8_0`, or, where the repository has safetensors and is not
    /// named a GGUF repository, those with their configuration and tokenizer. Pickled weights are never fetched.
    ///
    /// A cut connection is resumed where it stopped, here and in a later pull; a corrupted file is fetched once more.
    ///
    /// # Errors
    /// Any [`StoreError`]. What has arrived stays as blobs for the next pull, except corrupted files.
    pub fn pull(&self, spec: &ModelSpec, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Pulled, StoreError> {
        let root = &self.options.root;
        if self.options.offline {
            return self.pulled_before(spec);
        }
        let listing = self.hub.listing(spec)?;
        let names: Vec<String> = listing.files.iter().map(|file| file.name.clone()).collect();
        let choice = choose(&spec.repo(), &names, spec.quant())?;
        let repo = RepoDir::new(root, &spec.folder());
        let snapshot = repo.snapshot(&listing.commit);
        let wanted = self.resolve(spec, &listing.commit, listing.files, &choice.files)?;
        let total = wanted.iter().try_fold(0u64, |sum, wanted| sum.checked_add(wanted.size));
        let bytes = total.ok_or_else(|| StoreError::BadResponse {
            url: self.hub.endpoint().to_owned(),
            reason: format!("the sizes of the files of {} add up to more than a disk can hold", spec.repo()),
        })?;

        fs::create_dir_all(root).map_err(StoreError::io("make the folder", root))?;
        check_room(root, wanted.iter().map(|wanted| missing_bytes(&repo, &snapshot, wanted)).sum())?;
        let mut downloaded_bytes = 0;
        let mut before = 0;
        for (file_index, wanted) in wanted.iter().enumerate() {
            let mut report = |done_bytes, resumed_from, state: ProgressState<'_>| {
                progress(Progress {
                    file: &wanted.file,
                    file_index,
                    n_files: choice.files.len(),
                    done_bytes,
                    total_bytes: wanted.size,
                    resumed_from,
                    pull_done_bytes: before + done_bytes,
                    pull_total_bytes: bytes,
                    state,
                });
            };
            if is_placed(&snapshot, wanted) {
                report(wanted.size, 0, ProgressState::Cached);
            } else {
                let Wanted { file, url, hash, size } = wanted;
                let job = Job { spec, file, url, hash, size: *size };
                downloaded_bytes += fetch(&self.hub, &repo, &job, &mut report)?;
            }
            before += wanted.size;
        }
        place_all(&repo, &snapshot, &wanted, system_symlink)?;
        repo.write_ref(spec.revision_or_main(), &listing.commit)?;
        Ok(Pulled {
            repo: spec.repo(),
            path: choice.open.as_ref().map_or_else(|| snapshot.clone(), |file| snapshot.join(file)),
            commit: listing.commit,
            files: choice.files,
            bytes,
            downloaded_bytes,
            quant: choice.quant,
            choice: choice.reason,
        })
    }

    /// Checks the chosen names and completes what the listing left out.
    fn resolve(
        &self,
        spec: &ModelSpec,
        commit: &str,
        listed: Vec<HubFile>,
        chosen: &[String],
    ) -> Result<Vec<Wanted>, StoreError> {
        let mut by_name: HashMap<String, HubFile> = listed.into_iter().map(|file| (file.name.clone(), file)).collect();
        let resolve = |file: &String| {
            if let Some(reason) = name_problem(file) {
                return Err(StoreError::BadName { repo: spec.repo(), name: file.clone(), reason });
            }
            let url = self.hub.file_url(&spec.repo(), commit, file);
            let listed = by_name.remove(file).expect("the choice was made among the listed files");
            let (hash, size) = match listed.hash.zip(listed.size) {
                Some(known) => known,
                None => self.hub.headers_of(spec, &url, file)?,
            };
            Ok(Wanted { file: file.clone(), url, hash, size })
        };
        chosen.iter().map(resolve).collect()
    }

    /// The answer of a pull that may not use the network.
    fn pulled_before(&self, spec: &ModelSpec) -> Result<Pulled, StoreError> {
        let found = self
            .find(spec)
            .ok_or_else(|| StoreError::Offline { model: spec.to_string(), root: self.options.root.clone() })?;
        Ok(Pulled {
            repo: spec.repo(),
            path: found.path(),
            bytes: found.bytes(),
            commit: found.commit,
            files: found.choice.files,
            downloaded_bytes: 0,
            quant: found.choice.quant,
            choice: format!("{}, from the cache (offline)", found.choice.reason),
        })
    }
}

/// Makes the snapshot out of whole blobs. Blobs that became files of their own are removed, unless links need them.
fn place_all(repo: &RepoDir, snapshot: &Path, wanted: &[Wanted], symlink: Symlink) -> Result<(), StoreError> {
    let mut unlinked = BTreeSet::new();
    for wanted in wanted.iter().filter(|wanted| !is_placed(snapshot, wanted)) {
        let blob = repo.blob(&wanted.hash);
        if place(snapshot, &wanted.file, &blob, symlink)? == Placed::File {
            unlinked.insert(blob);
        }
    }
    if !unlinked.is_empty() {
        walk(&repo.snapshots(), "", usize::MAX, &mut |_, path| {
            let target = fs::read_link(path).ok();
            let target = target.as_deref().and_then(Path::file_name);
            unlinked.retain(|blob| target.is_none() || blob.file_name() != target);
        });
    }
    unlinked.iter().try_for_each(|blob| fs::remove_file(blob).map_err(StoreError::io("remove", blob)))
}

/// Whether the snapshot holds the file itself, as it does where links cannot be made.
fn is_placed(snapshot: &Path, wanted: &Wanted) -> bool {
    let found = fs::symlink_metadata(snapshot.join(&wanted.file));
    found.is_ok_and(|found| found.is_file() && found.len() == wanted.size)
}

/// Bytes of a file that are still to be written.
fn missing_bytes(repo: &RepoDir, snapshot: &Path, wanted: &Wanted) -> u64 {
    let len = |path: PathBuf| fs::metadata(path).map_or(0, |found| found.len());
    if len(repo.blob(&wanted.hash)) == wanted.size || is_placed(snapshot, wanted) {
        return 0;
    }
    wanted.size.saturating_sub(len(repo.incomplete(&wanted.hash)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_links_a_snapshot_holds_the_files_themselves() {
        let folder = tempfile::tempdir().unwrap();
        let repo = RepoDir::new(folder.path(), "models--a--b");
        let hash = ContentHash::parse(&"a".repeat(64)).unwrap();
        let wanted = |file: &str| Wanted { file: file.to_owned(), url: String::new(), hash: hash.clone(), size: 1 };
        let both = [wanted("x.json"), wanted("y/z.json")];
        let no_links: Symlink = |_, _| Err(std::io::ErrorKind::PermissionDenied.into());
        fs::create_dir_all(repo.blobs()).unwrap();
        fs::write(repo.blob(&hash), "1").unwrap();

        let linked = repo.snapshot("linked");
        place_all(&repo, &linked, &both[..1], system_symlink).unwrap();
        let plain = repo.snapshot("plain");
        place_all(&repo, &plain, &both, no_links).unwrap();
        assert!(repo.blob(&hash).exists(), "another snapshot links to it");
        fs::remove_dir_all(&linked).unwrap();
        fs::remove_dir_all(&plain).unwrap();

        place_all(&repo, &plain, &both, no_links).unwrap();
        assert!(!repo.blob(&hash).exists());
        assert!(both.iter().all(|wanted| is_placed(&plain, wanted) && missing_bytes(&repo, &plain, wanted) == 0));
        place_all(&repo, &plain, &both, no_links).unwrap();
    }
}

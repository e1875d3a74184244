//! The store against a hub in this process: pulls, faults of the network and of the hub, listing and removing.

mod faults;
mod hostile;
mod hub;
mod local;
mod pull;

use std::path::{Path, PathBuf};
use std::time::Duration;

use pelton_store::{ModelSpec, Progress, ProgressState, Pulled, Store, StoreError, StoreOptions};
use tempfile::TempDir;

/// A cache folder of one test; it goes when the test ends.
struct Cache {
    folder: TempDir,
}

impl Cache {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("hub")
    }

    fn options(&self, endpoint: &str) -> StoreOptions {
        let mut options = StoreOptions::new(self.root());
        options.endpoint = endpoint.to_owned();
        options.backoff = Duration::from_millis(1);
        options.timeout = Duration::from_secs(5);
        options
    }

    fn store(&self, hub: &hub::Hub) -> Store {
        Store::new(self.options(&hub.url())).unwrap()
    }

    /// Every file under `folder` of the repository `ORG/NAME`, links included, as sorted relative paths.
    fn tree(&self, repo: &str, folder: &str) -> Vec<String> {
        let start = self.root().join(format!("models--{}", repo.replace('/', "--"))).join(folder);
        let mut found = Vec::new();
        collect(&start, &start, &mut found);
        found.sort();
        found
    }
}

fn collect(start: &Path, folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().unwrap().is_dir() {
            collect(start, &entry.path(), found);
        } else {
            found.push(entry.path().strip_prefix(start).unwrap().to_str().unwrap().to_owned());
        }
    }
}

fn spec(text: &str) -> ModelSpec {
    text.parse().unwrap()
}

/// A pull whose progress nobody watches.
fn pull(store: &Store, name: &str) -> Result<Pulled, StoreError> {
    store.pull(&spec(name), &mut |_| {})
}

/// A report, owned.
#[derive(Debug, Clone, PartialEq)]
struct Report {
    file: String,
    done: u64,
    total: u64,
    resumed_from: u64,
    kind: &'static str,
}

/// A pull with all its reports.
fn watched_pull(store: &Store, name: &str) -> (Result<Pulled, StoreError>, Vec<Report>) {
    let mut reports = Vec::new();
    let mut watch = |progress: Progress<'_>| {
        assert!(progress.done_bytes <= progress.total_bytes, "{progress:?}");
        assert!(progress.pull_done_bytes <= progress.pull_total_bytes, "{progress:?}");
        assert!(progress.file_index < progress.n_files, "{progress:?}");
        reports.push(Report {
            file: progress.file.to_owned(),
            done: progress.done_bytes,
            total: progress.total_bytes,
            resumed_from: progress.resumed_from,
            kind: match progress.state {
                ProgressState::Waiting => "waiting",
                ProgressState::Checking => "checking",
                ProgressState::Downloading => "downloading",
                ProgressState::Retrying { .. } => "retrying",
                ProgressState::Corrupted => "corrupted",
                ProgressState::Cached => "cached",
                ProgressState::Done => "done",
                _ => "other",
            },
        });
    };
    let pulled = store.pull(&spec(name), &mut watch);
    (pulled, reports)
}

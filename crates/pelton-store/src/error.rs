//! What can go wrong, each with the thing it happened to and what to do about it.
//!
//! Invariant: no message carries a token or the query of an address (the hub's redirects are signed there).

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// An error of the model store.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The name that was typed is not `ORG/NAME[:QUANT][@REVISION]`.
    #[error("`{spec}` is not a model name: {reason}; write ORG/NAME, ORG/NAME:QUANT or ORG/NAME:QUANT@REVISION")]
    BadSpec {
        /// What was typed.
        spec: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An option of the store cannot be used.
    #[error("{option} cannot be used: {reason}")]
    BadOption {
        /// Which option, in the words of the environment variable that sets it.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// No connection to the hub, or only errors of its own that did not pass.
    #[error(
        "no usable answer from {endpoint}: {reason}; check the network or the proxy (HTTPS_PROXY), set HF_ENDPOINT to use a mirror, \
         or give a path to a model that is on this machine"
    )]
    Unreachable {
        /// Scheme, host and port that did not answer.
        endpoint: String,
        /// The last failure.
        reason: String,
    },
    /// The store was told to stay offline and does not hold the model.
    #[error("{model} is not in {root} and the store is offline (HF_HUB_OFFLINE); unset it to download")]
    Offline {
        /// The model that was asked for.
        model: String,
        /// The cache that was searched.
        root: PathBuf,
    },
    /// The hub answered 401 or 403.
    #[error("{endpoint} refuses {repo} (HTTP {status}{detail}): {advice}")]
    Denied {
        /// The hub's address.
        endpoint: String,
        /// `ORG/NAME`.
        repo: String,
        /// 401 or 403.
        status: u16,
        /// What the hub said, with a leading comma, or nothing.
        detail: String,
        /// What to do.
        advice: String,
    },
    /// The hub answered 404.
    #[error("{what} is not on {endpoint} (HTTP 404{detail}); check the spelling")]
    NotFound {
        /// The model, revision or file.
        what: String,
        /// The hub's address.
        endpoint: String,
        /// What the hub said, with a leading comma, or nothing.
        detail: String,
    },
    /// Any other HTTP status that is not success.
    #[error("{url} answered HTTP {status}{detail}")]
    Status {
        /// The address, without its query.
        url: String,
        /// The status.
        status: u16,
        /// What the hub said, with a leading comma, or nothing.
        detail: String,
    },
    /// An answer that does not follow the hub's protocol.
    #[error("the answer of {url} cannot be used: {reason}")]
    BadResponse {
        /// The address, without its query.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file name from the hub that would leave the snapshot folder or cannot be a file.
    #[error("{repo} lists a file named {name:?}, which is refused: {reason}")]
    BadName {
        /// `ORG/NAME`.
        repo: String,
        /// The name as the hub gave it.
        name: String,
        /// Why it is refused.
        reason: &'static str,
    },
    /// The repository holds nothing that Pelton opens.
    #[error("{repo} holds no model that can be opened ({reason}); it has: {found}")]
    NoModel {
        /// `ORG/NAME`.
        repo: String,
        /// What is missing.
        reason: String,
        /// The first files of the repository.
        found: String,
    },
    /// The quantization that was asked for is not there, or none was asked for and no default is there.
    #[error("{repo} has no {wanted}; choose one of: {available}")]
    NoQuant {
        /// `ORG/NAME`.
        repo: String,
        /// What was asked for.
        wanted: String,
        /// What is there.
        available: String,
    },
    /// Several files carry the quantization that was asked for.
    #[error("{wanted} names several files of {repo}: {candidates}; name one as ORG/NAME:FILE.gguf")]
    Ambiguous {
        /// `ORG/NAME`.
        repo: String,
        /// What was asked for.
        wanted: String,
        /// The files that carry it.
        candidates: String,
    },
    /// A sharded file of which some shards are not there.
    #[error("{file} of {repo} has {n_shards} shards, of which {missing} are not there")]
    MissingShards {
        /// `ORG/NAME`.
        repo: String,
        /// The name without its shard number.
        file: String,
        /// How many shards the names announce.
        n_shards: u32,
        /// How many of them are absent.
        missing: u32,
    },
    /// A downloaded file does not have the hash that the hub announced, twice in a row.
    #[error(
        "{file} arrived corrupted twice: expected hash {expected}, got {found}; both copies were deleted. \
         A proxy or mirror on the way may alter it"
    )]
    HashMismatch {
        /// The file in the repository.
        file: String,
        /// The announced hash, hexadecimal.
        expected: String,
        /// The hash of the bytes that arrived last, hexadecimal.
        found: String,
    },
    /// The connection was cut again and again.
    #[error(
        "{file} stopped at {done} of {total} bytes after {attempts} attempts: {reason}; pull again to resume there"
    )]
    Interrupted {
        /// The file in the repository.
        file: String,
        /// Bytes that are on disk.
        done: u64,
        /// Bytes of the file.
        total: u64,
        /// Attempts in a row that brought nothing.
        attempts: u32,
        /// The last failure.
        reason: String,
    },
    /// The disk has no room.
    #[error(
        "{path} has {free} bytes free and the download needs {needed}: free {short} more bytes, or set HF_HUB_CACHE to another disk"
    )]
    DiskFull {
        /// A folder on the disk in question.
        path: PathBuf,
        /// Bytes still to be written.
        needed: u64,
        /// Bytes free for this user.
        free: u64,
        /// `needed - free`.
        short: u64,
    },
    /// The model is not in the store.
    #[error("{model} is not in {root}; {hint}")]
    NotStored {
        /// What was asked for.
        model: String,
        /// The cache that was searched.
        root: PathBuf,
        /// What is there instead.
        hint: String,
    },
    /// Another process is downloading a file that was to be removed.
    #[error("{path} is being downloaded by another process; stop it first")]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// The file system refused something.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl StoreError {
    /// Wraps a file-system error; a disk that filled up while writing is named as such.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_path_buf(), source }
    }
}

/// Up to 24 names, comma-separated and escaped, for the lists in messages (the names are the hub's).
pub(crate) fn name_list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const MAX_NAMES: usize = 24;
    let names: Vec<String> = names.map(|name| clip(name, 120)).collect();
    let more = names.len().saturating_sub(MAX_NAMES);
    let shown = names[..names.len() - more].join(", ");
    match (shown.is_empty(), more) {
        (true, _) => "nothing".to_owned(),
        (false, 0) => shown,
        (false, more) => format!("{shown} and {more} more"),
    }
}

/// At most `max` characters of untrusted text, with control characters escaped, so that it cannot drive a terminal.
pub(crate) fn clip(text: &str, max: usize) -> String {
    let mut out: String = text
        .chars()
        .take(max)
        .flat_map(|c| {
            let escaped = c.is_control();
            c.escape_default().filter(move |_| escaped).chain((!escaped).then_some(c))
        })
        .collect();
    if text.chars().nth(max).is_some() {
        out.push('…');
    }
    out
}

//! What a pull tells its caller while it runs.
//!
//! Invariant: within one file `done_bytes` never exceeds `total_bytes`; it goes back only when a file starts over.

use std::time::Duration;

/// One report of a running pull; made often (per network read), so a receiver throttles its drawing itself.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The file in the repository.
    pub file: &'a str,
    /// Which of the pull's files this is, from 0.
    pub file_index: usize,
    /// How many files the pull has.
    pub n_files: usize,
    /// Bytes of this file that are on disk.
    pub done_bytes: u64,
    /// Bytes of this file.
    pub total_bytes: u64,
    /// Where this file was picked up from an earlier, cut download; 0 when it began at the beginning.
    pub resumed_from: u64,
    /// Bytes of the whole pull that are on disk, this file included.
    pub pull_done_bytes: u64,
    /// Bytes of the whole pull.
    pub pull_total_bytes: u64,
    /// What is going on with this file.
    pub state: ProgressState<'a>,
}

/// What a pull is doing with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProgressState<'a> {
    /// Another process has this file in work; this one waits for it.
    Waiting,
    /// What an earlier download left is being read again, to go on with its hash.
    Checking,
    /// Bytes arrive.
    Downloading,
    /// The connection failed; the next attempt starts after `wait`.
    Retrying {
        /// Which retry this is, from 1, counted since the last real progress.
        attempt: u32,
        /// How long until it starts.
        wait: Duration,
        /// What failed.
        reason: &'a str,
    },
    /// The file arrived with the wrong hash; it was deleted and starts over, once.
    Corrupted,
    /// The file was in the cache already.
    Cached,
    /// The file is whole and its hash is right.
    Done,
}

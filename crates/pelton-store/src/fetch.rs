//! One file from the hub into its blob: resumed, checked, renamed.
//!
//! ```text
//! lock the blob
//! whole already?                     -> done
//! twice at most:
//!   until the file has its size:     ask for `bytes=LEN-`; append; on a cut, wait and ask again
//!   hash right?                      -> rename, done
//!   delete
//! ```
//!
//! Invariants: the file on disk is never longer than the announced size; a server that ignores the range, or answers
//! with another one, makes the file start over and never leaves a gap or an overlap; only content whose hash is right
//! gets the blob's name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use crate::digest::{ContentHash, Hasher};
use crate::hub::{Fault, Hub, Reply};
use crate::layout::{RepoDir, make_parent};
use crate::{ModelSpec, ProgressState, StoreError};

/// Bytes per read; the hash and the disk like them large.
const CHUNK_BYTES: usize = 256 << 10;
/// Progress that forgives earlier failures, so that a server which drips and cuts does not go on for ever.
const FORGIVING_BYTES: u64 = 1 << 20;

/// What to fetch.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    /// The model it belongs to, for messages.
    pub(crate) spec: &'a ModelSpec,
    /// Path in the repository.
    pub(crate) file: &'a str,
    /// Address at the hub.
    pub(crate) url: &'a str,
    /// Announced content.
    pub(crate) hash: &'a ContentHash,
    /// Announced bytes.
    pub(crate) size: u64,
}

/// Receives (bytes on disk, where it was resumed, what goes on).
pub(crate) type Report<'a> = &'a mut dyn FnMut(u64, u64, ProgressState<'_>);

/// Brings the blob of `job` into `repo`; returns the bytes that came over the network.
pub(crate) fn fetch(hub: &Hub, repo: &RepoDir, job: &Job<'_>, report: Report<'_>) -> Result<u64, StoreError> {
    let blob = repo.blob(job.hash);
    make_parent(&blob)?;
    let _lock = repo.lock(job.hash.as_str(), &mut || report(0, 0, ProgressState::Waiting))?;
    match fs::metadata(&blob) {
        Ok(found) if found.is_file() && found.len() == job.size => {
            report(job.size, 0, ProgressState::Cached);
            return Ok(0);
        }
        // A name is only ever given to checked content, so this was cut or altered later.
        Ok(_) => fs::remove_file(&blob).map_err(StoreError::io("remove the damaged", &blob))?,
        Err(_) => {}
    }
    let mut n_received = 0;
    let mut found = String::new();
    for round in 0..2 {
        let mut part = Part::open(repo.incomplete(job.hash), job, report)?;
        n_received += part.fill(hub, job, report)?;
        let resumed_from = part.resumed_from;
        match part.finish(job.hash)? {
            Ok(path) => {
                fs::rename(&path, &blob).map_err(StoreError::io("rename", &path))?;
                report(job.size, resumed_from, ProgressState::Done);
                return Ok(n_received);
            }
            Err(wrong) => found = wrong,
        }
        if round == 0 {
            report(0, 0, ProgressState::Corrupted);
        }
    }
    Err(StoreError::HashMismatch { file: job.file.to_owned(), expected: job.hash.as_str().to_owned(), found })
}

/// A blob in the making: an open file, its length, and the hash of exactly those bytes.
struct Part {
    path: PathBuf,
    file: File,
    len: u64,
    hasher: Hasher,
    resumed_from: u64,
}

impl Part {
    /// Opens what an earlier download left, or a new file, and hashes what is there.
    fn open(path: PathBuf, job: &Job<'_>, report: Report<'_>) -> Result<Self, StoreError> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(StoreError::io("open", &path))?;
        let len = file.metadata().map_err(StoreError::io("read", &path))?.len();
        let mut part = Self { path, file, len: 0, hasher: job.hash.hasher(job.size), resumed_from: 0 };
        if len > job.size {
            part.restart(job)?;
        }
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let n = match part.file.read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read.map_err(StoreError::io("read", &part.path))?,
            };
            if n == 0 {
                break;
            }
            part.hasher.update(&chunk[..n]);
            part.len += n as u64;
            report(part.len, 0, ProgressState::Checking);
        }
        part.resumed_from = part.len;
        Ok(part)
    }

    /// Begins the file anew.
    fn restart(&mut self, job: &Job<'_>) -> Result<(), StoreError> {
        self.file.set_len(0).map_err(StoreError::io("empty", &self.path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(StoreError::io("empty", &self.path))?;
        (self.len, self.resumed_from) = (0, 0);
        self.hasher = job.hash.hasher(job.size);
        Ok(())
    }

    /// Asks until the file has its size; returns the bytes received.
    fn fill(&mut self, hub: &Hub, job: &Job<'_>, report: Report<'_>) -> Result<u64, StoreError> {
        let mut patience = hub.patience();
        let mut best = self.len;
        let mut n_received = 0;
        while self.len < job.size {
            let Err(fault) = self.attempt(hub, job, &mut n_received, report) else { continue };
            let (reason, wait, unreachable) = match fault {
                Fault::Stop(error) => return Err(error),
                Fault::Retry { reason, wait, unreachable } => (reason, wait, unreachable),
            };
            if self.len >= best.saturating_add(FORGIVING_BYTES) {
                patience.reset();
            }
            best = best.max(self.len);
            let Some(wait) = patience.next_wait(wait) else {
                let (done, total, attempts) = (self.len, job.size, patience.n_failed());
                return Err(if unreachable && done == 0 {
                    StoreError::Unreachable { endpoint: hub.endpoint().to_owned(), reason }
                } else {
                    StoreError::Interrupted { file: job.file.to_owned(), done, total, attempts, reason }
                });
            };
            let attempt = patience.n_failed();
            report(self.len, self.resumed_from, ProgressState::Retrying { attempt, wait, reason: &reason });
            std::thread::sleep(wait);
        }
        Ok(n_received)
    }

    /// One request and as much of its body as arrives.
    fn attempt(&mut self, hub: &Hub, job: &Job<'_>, n_received: &mut u64, report: Report<'_>) -> Result<(), Fault> {
        let offset = (self.len > 0).then_some(self.len);
        let reply = hub.get(job.url, offset)?;
        if reply.status == 416 {
            self.restart(job).map_err(Fault::Stop)?;
            return Err(Fault::retry(format!("{} does not have the rest of the file; starting over", reply.url)));
        }
        hub.check_status(&reply, job.spec, &format!("{} of {}", job.file, job.spec))?;
        self.accept(&reply, job)?;
        self.resumed_from = self.len;
        let url = reply.url.clone();
        let mut body = reply.into_reader();
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            report(self.len, self.resumed_from, ProgressState::Downloading);
            let n = match body.read(&mut chunk) {
                Ok(0) if self.len == job.size => return Ok(()),
                Ok(0) => return Err(Fault::retry(format!("{url} closed the connection early"))),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // The last byte is here; how the connection ended does not matter.
                Err(_) if self.len == job.size => return Ok(()),
                Err(error) => return Err(Fault::retry(format!("{url}: {error}"))),
            };
            *n_received += n as u64;
            if n as u64 > job.size - self.len {
                let reason = format!("it sends more than the {} bytes that {} has", job.size, job.file);
                return Err(Fault::Stop(StoreError::BadResponse { url, reason }));
            }
            self.append(&chunk[..n], job).map_err(Fault::Stop)?;
        }
    }

    /// Makes sure that the body continues this file where it ends, starting over where the server does.
    fn accept(&mut self, reply: &Reply, job: &Job<'_>) -> Result<(), Fault> {
        let bad = |reason: String| Fault::Stop(StoreError::BadResponse { url: reply.url.clone(), reason });
        if reply.status == 206 {
            if self.len == 0 {
                return Err(bad("it sends a part of the file where all of it was asked for".to_owned()));
            }
            let range = reply.header("content-range").and_then(parse_content_range);
            let continues = range.is_some_and(|(start, end, total)| {
                start == self.len && end < job.size && total.is_none_or(|total| total == job.size)
            });
            if !continues {
                let reason = format!("{} sends another range than bytes {}-; starting over", reply.url, self.len);
                self.restart(job).map_err(Fault::Stop)?;
                return Err(Fault::retry(reason));
            }
            return Ok(());
        }
        if self.len > 0 {
            self.restart(job).map_err(Fault::Stop)?;
        }
        match reply.content_length() {
            Some(length) if length != job.size => {
                Err(bad(format!("it sends {length} bytes and {} has {}", job.file, job.size)))
            }
            _ => Ok(()),
        }
    }

    fn append(&mut self, bytes: &[u8], job: &Job<'_>) -> Result<(), StoreError> {
        self.file.write_all(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                let needed = job.size - self.len;
                StoreError::DiskFull { path: self.path.clone(), needed, free: 0, short: needed }
            }
            _ => StoreError::io("write", &self.path)(error),
        })?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// The path of the file if its content is right; otherwise deletes it and returns the hash it has.
    fn finish(self, expected: &ContentHash) -> Result<Result<PathBuf, String>, StoreError> {
        let found = self.hasher.finish();
        if found == *expected {
            // On the disk before it gets its name: a power cut must not leave an empty file under a checked name.
            self.file.sync_all().map_err(StoreError::io("write", &self.path))?;
            return Ok(Ok(self.path));
        }
        drop(self.file);
        fs::remove_file(&self.path).map_err(StoreError::io("remove the corrupted", &self.path))?;
        Ok(Err(found.as_str().to_owned()))
    }
}

/// `bytes START-END/TOTAL`, where the total may be `*` (RFC 9110, section 14.4).
fn parse_content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.trim().split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    let (start, end) = (start.parse().ok()?, end.parse().ok()?);
    (start <= end).then_some((start, end, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read_strictly() {
        assert_eq!(parse_content_range("bytes 5-9/10"), Some((5, 9, Some(10))));
        assert_eq!(parse_content_range("bytes 5-9/*"), Some((5, 9, None)));
        for text in ["", "bytes */10", "bytes 9-5/10", "items 5-9/10", "bytes 5-9", "bytes 5-99999999999999999999/10"] {
            assert_eq!(parse_content_range(text), None, "{text}");
        }
    }
}

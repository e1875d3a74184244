//! Prefix pages on disk: what was computed before a restart need not be computed again.
//!
//! ```text
//! root = hash(what the pages depend on: model, KV type and layout, version)
//! key of a page = hash(key of the page before it, its tokens)          the file's name
//! ```
//!
//! A key therefore names all tokens of a page and before it. Pages are written by a thread of their own while the
//! engine goes on, each to a file aside that is then renamed: a process that is killed leaves whole files or none.
//! They are read back when a prompt asks for them, checked against their name, tokens and a hash of their bytes.
//!
//! Invariants: a page read back is the one that was written, or none; the folder stays below its limit (the pages
//! used longest ago go first), and what waits to be written is bounded; no error of the disk ever fails a request.

mod file;
mod index;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use sha2::{Digest, Sha256};

use index::Index;

/// Names a page by all tokens up to its end, and by what else its bytes depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PageKey(pub(crate) [u8; 32]);

impl PageKey {
    /// The key before the first page of sequences with this salt.
    pub(crate) fn root(identity: &[u8; 32], salt: u64) -> PageKey {
        PageKey(Sha256::new().chain_update(identity).chain_update(salt.to_le_bytes()).finalize().into())
    }

    /// The key of the page that holds `tokens` after this one.
    pub(crate) fn next(&self, tokens: &[u32]) -> PageKey {
        let mut hash = Sha256::new().chain_update(self.0);
        tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
        PageKey(hash.finalize().into())
    }
}

/// Where pages are kept, and how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// The folder; made where it is not there.
    pub folder: PathBuf,
    /// Bytes of all files at most.
    pub max_bytes: u64,
    /// What pages depend on besides their tokens: the model's weights and the version that computed them.
    pub identity: String,
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStats {
    /// Pages in the folder.
    pub pages: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Pages read back.
    pub read: u64,
    /// Pages written.
    pub written: u64,
    /// Files that were damaged or belonged to something else, and could not be used.
    pub rejected: u64,
    /// Pages that could not be written.
    pub failed: u64,
}

#[derive(Debug, Default)]
struct Counts {
    read: AtomicU64,
    written: AtomicU64,
    rejected: AtomicU64,
    failed: AtomicU64,
}

/// A page on its way to the disk.
pub(crate) struct NewPage {
    pub(crate) key: PageKey,
    pub(crate) tokens: Arc<[u32]>,
    pub(crate) bytes: Vec<u8>,
}

/// What engine and writer share.
struct Shared {
    folder: PathBuf,
    index: Mutex<Index>,
    counts: Counts,
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a page, and removes others where the folder would grow beyond its limit.
    fn write(&self, page: &NewPage) {
        let bytes = file::len(page.tokens.len(), page.bytes.len());
        let Some(surplus) = self.index().make_room(bytes) else { return };
        surplus.iter().for_each(|key| file::remove(&self.folder, key));
        match file::write(&self.folder, page) {
            Ok(()) => {
                self.index().insert(page.key, bytes);
                self.counts.written.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => {
                self.counts.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// The pages of one folder.
pub(crate) struct Disk {
    shared: Arc<Shared>,
    identity: [u8; 32],
    page_bytes: usize,
    write: Option<SyncSender<NewPage>>,
    writer: Option<JoinHandle<()>>,
}

/// Bytes that may wait for the writer.
const MAX_PENDING_BYTES: usize = 64 << 20;

impl Disk {
    /// Opens a folder for pages of `page_bytes` bytes; `layout` says how they lie.
    ///
    /// # Errors
    /// Where the folder cannot be made or listed, or the system refuses a thread.
    pub(crate) fn open(options: &DiskOptions, layout: &str, page_bytes: usize) -> std::io::Result<Disk> {
        let index = Index::scan(&options.folder, options.max_bytes)?;
        let shared =
            Arc::new(Shared { folder: options.folder.clone(), index: Mutex::new(index), counts: Counts::default() });
        let pending = (MAX_PENDING_BYTES / page_bytes.max(1)).clamp(2, 256);
        let (write, pages) = sync_channel::<NewPage>(pending);
        let writer = Arc::clone(&shared);
        let work = move || pages.iter().for_each(|page| writer.write(&page));
        let writer = std::thread::Builder::new().name("pelton-pages".into()).spawn(work)?;
        let identity = Sha256::new()
            .chain_update(b"pelton kv page 1\0")
            .chain_update(options.identity.as_bytes())
            .chain_update([0])
            .chain_update(layout.as_bytes())
            .finalize();
        Ok(Disk { shared, identity: identity.into(), page_bytes, write: Some(write), writer: Some(writer) })
    }

    /// The key before the first page.
    pub(crate) fn root(&self, salt: u64) -> PageKey {
        PageKey::root(&self.identity, salt)
    }

    /// Whether a page is there, as far as is known.
    pub(crate) fn contains(&self, key: &PageKey) -> bool {
        self.shared.index().contains(key)
    }

    /// These pages, the first one first, are in use: they are the last to be removed, the far end before the near.
    pub(crate) fn touch(&self, chain: &[PageKey]) {
        let mut index = self.shared.index();
        chain.iter().rev().for_each(|key| index.touch(key));
    }

    /// Reads a page back: its bytes, if it is whole and holds `tokens`.
    pub(crate) fn read(&self, key: &PageKey, tokens: &[u32]) -> Option<Vec<u8>> {
        let found = file::read(&self.shared.folder, key, tokens, self.page_bytes);
        if found.is_some() {
            self.shared.counts.read.fetch_add(1, Ordering::Relaxed);
        } else {
            self.shared.counts.rejected.fetch_add(1, Ordering::Relaxed);
            self.shared.index().remove(key);
            file::remove(&self.shared.folder, key);
        }
        found
    }

    /// Hands a page to the writer; gives it back where that has enough to do. A writer that has ended takes all.
    pub(crate) fn write(&self, page: NewPage) -> Result<(), NewPage> {
        match self.write.as_ref().map(|write| write.try_send(page)) {
            Some(Err(TrySendError::Full(page))) => Err(page),
            _ => Ok(()),
        }
    }

    /// The same, and waits for the writer.
    pub(crate) fn write_waiting(&self, page: NewPage) {
        if let Some(write) = &self.write {
            let _ = write.send(page);
        }
    }

    pub(crate) fn stats(&self) -> DiskStats {
        let (pages, bytes) = self.shared.index().size();
        let (c, get) = (&self.shared.counts, |count: &AtomicU64| count.load(Ordering::Relaxed));
        let (read, written) = (get(&c.read), get(&c.written));
        DiskStats { pages, bytes, read, written, rejected: get(&c.rejected), failed: get(&c.failed) }
    }
}

impl Drop for Disk {
    /// What was handed over is written.
    fn drop(&mut self) {
        self.write = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// The file of a page.
fn path_of(folder: &Path, key: &PageKey) -> PathBuf {
    let name: String = key.0.iter().map(|byte| format!("{byte:02x}")).collect();
    folder.join(format!("{name}.{EXTENSION}"))
}

/// What files of pages end with.
const EXTENSION: &str = "kvpage";

#[cfg(test)]
mod tests;

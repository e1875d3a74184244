//! Between the prefix index and the disk: which pages are to be written, and which sequences wait for pages to be
//! read.
//!
//! Invariants: a page is read from the KV pool only while the index still has it under the key it was noted with; a
//! step reads at most [`STEP_BYTES`], so pages from disk never hold up the others for long; a sequence waits for the
//! disk once, then goes on with what came.

use std::collections::{HashMap, VecDeque};

use pelton_backend::{Backend, PAGE_LEN};
use pelton_sched::{IndexedPage, Scheduler, SeqId, SeqOptions};

use crate::disk::{Disk, NewPage, PageKey};
use crate::{DiskOptions, DiskStats};

/// Bytes of pages that one step reads, at least one page.
const STEP_BYTES: usize = 32 << 20;

/// A sequence that waits for pages.
struct Fetch {
    seq: SeqId,
    salt: u64,
    /// Its full pages' tokens.
    tokens: Vec<u32>,
    /// The keys of all of them.
    keys: Vec<PageKey>,
}

/// The way to and from the disk; without a folder, nothing.
#[derive(Default)]
pub(crate) struct Pages {
    disk: Option<Disk>,
    page_bytes: usize,
    /// Keys of pages in the index; of others there may be old ones.
    keys: HashMap<u32, PageKey>,
    /// Pages to be written, in the order in which they became full.
    new: VecDeque<(PageKey, IndexedPage)>,
    /// The first of them, read already.
    read: Option<NewPage>,
    fetches: VecDeque<Fetch>,
}

impl Pages {
    pub(crate) fn open(&mut self, options: &DiskOptions, layout: &str, page_bytes: usize) -> std::io::Result<()> {
        self.disk = Some(Disk::open(options, layout, page_bytes)?);
        self.page_bytes = page_bytes;
        Ok(())
    }

    pub(crate) fn stats(&self) -> Option<DiskStats> {
        self.disk.as_ref().map(Disk::stats)
    }

    /// Whether `prompt` goes on, behind what the index has, with pages on disk: then the sequence waits until
    /// [`Pages::import`] names it.
    pub(crate) fn fetch(&mut self, seq: SeqId, prompt: &[u32], options: SeqOptions, sched: &Scheduler) -> bool {
        let Some(disk) = self.disk.as_ref().filter(|_| options.use_cache) else { return false };
        // The page of the last token is computed anyway.
        let n_pages = prompt.len().saturating_sub(1) / PAGE_LEN;
        let tokens = &prompt[..n_pages * PAGE_LEN];
        let mut key = disk.root(options.cache_salt);
        let keys: Vec<PageKey> = tokens
            .chunks(PAGE_LEN)
            .map(|tokens| {
                key = key.next(tokens);
                key
            })
            .collect();
        let n_known = sched.n_indexed(options.cache_salt, tokens);
        let Some(next) = keys.get(n_known) else { return false };
        if !disk.contains(next) {
            return false;
        }
        self.fetches.push_back(Fetch { seq, salt: options.cache_salt, tokens: tokens.to_vec(), keys });
        true
    }

    /// Reads some pages, and gives the sequences that wait no longer.
    pub(crate) fn import<B: Backend>(&mut self, sched: &mut Scheduler, backend: &mut B, kv: &mut B::Kv) -> Vec<SeqId> {
        let Some(disk) = &self.disk else { return Vec::new() };
        let mut budget = STEP_BYTES.max(self.page_bytes);
        let mut ready = Vec::new();
        while let Some(fetch) = self.fetches.front() {
            let n_known = sched.n_indexed(fetch.salt, &fetch.tokens);
            let next = fetch.keys.get(n_known).filter(|key| disk.contains(key));
            let page = next.and_then(|key| {
                if budget < self.page_bytes {
                    return None;
                }
                let (start, end) = (n_known * PAGE_LEN, (n_known + 1) * PAGE_LEN);
                let bytes = disk.read(key, &fetch.tokens[start..end])?;
                let page = sched.import_page(fetch.salt, &fetch.tokens[..end])?;
                backend.write_page(kv, page, &bytes);
                self.keys.insert(page, *key);
                Some(page)
            });
            if page.is_none() {
                if next.is_some() && budget < self.page_bytes {
                    return ready; // the rest in the next step
                }
                disk.touch(&fetch.keys);
                ready.push(fetch.seq);
                self.fetches.pop_front();
            }
            budget = budget.saturating_sub(self.page_bytes);
        }
        ready
    }

    /// Takes note of pages that entered the index, and hands over as many as the writer takes.
    pub(crate) fn keep<B: Backend>(
        &mut self,
        indexed: Vec<IndexedPage>,
        sched: &Scheduler,
        backend: &mut B,
        kv: &B::Kv,
    ) {
        let Some(disk) = &self.disk else { return };
        for page in indexed {
            let parent = match page.parent {
                None => Some(disk.root(page.salt)),
                // A page from before the folder was opened has no key, and its children have none.
                Some(parent) => self.keys.get(&parent).copied(),
            };
            let Some(parent) = parent else {
                self.keys.remove(&page.page);
                continue;
            };
            let key = parent.next(&page.tokens);
            self.keys.insert(page.page, key);
            if !disk.contains(&key) {
                self.new.push_back((key, page));
            }
        }
        while let Some(page) = self.next_page(sched, backend, kv) {
            let Some(disk) = &self.disk else { return };
            if let Err(page) = disk.write(page) {
                // The writer has enough to do; its turn comes at a later step.
                self.read = Some(page);
                return;
            }
        }
    }

    /// Whether pages wait for the writer.
    pub(crate) fn has_unwritten(&self) -> bool {
        self.read.is_some() || !self.new.is_empty()
    }

    /// The content of the first page to be written; those that the index has lost meanwhile are passed over.
    fn next_page<B: Backend>(&mut self, sched: &Scheduler, backend: &mut B, kv: &B::Kv) -> Option<NewPage> {
        if self.read.is_some() {
            return self.read.take();
        }
        while let Some((key, page)) = self.new.pop_front() {
            let is_there = sched.is_indexed(page.page) && self.keys.get(&page.page) == Some(&key);
            if is_there {
                let mut bytes = Vec::with_capacity(self.page_bytes);
                backend.read_page(kv, page.page, &mut bytes);
                return Some(NewPage { key, tokens: page.tokens, bytes });
            }
        }
        None
    }

    /// Hands over all that waits, and waits for the writer.
    pub(crate) fn flush<B: Backend>(&mut self, sched: &Scheduler, backend: &mut B, kv: &B::Kv) {
        while let Some(page) = self.next_page(sched, backend, kv) {
            if let Some(disk) = &self.disk {
                disk.write_waiting(page);
            }
        }
        self.disk = None;
    }
}

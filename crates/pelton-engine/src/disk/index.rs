//! Which pages a folder holds, by key, and which of them was used longest ago.
//!
//! Invariant: the sum of the sizes is that of the entries, and each entry has one place in the order of use.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::{EXTENSION, PageKey};

/// Files aside of processes that were killed are removed when they are so old.
const ABANDONED: Duration = Duration::from_secs(600);

#[derive(Debug)]
struct Entry {
    bytes: u64,
    used: u64,
}

#[derive(Debug)]
pub(super) struct Index {
    entries: HashMap<PageKey, Entry>,
    /// By time of last use, in the index's own count.
    order: BTreeMap<u64, PageKey>,
    bytes: u64,
    max_bytes: u64,
    clock: u64,
}

impl Index {
    /// Lists a folder, making it where it is not there; what is beyond the limit is removed, and what killed
    /// processes left behind.
    pub(super) fn scan(folder: &Path, max_bytes: u64) -> std::io::Result<Index> {
        make_folder(folder)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some((stem, extension)) = name.to_str().and_then(|name| name.split_once('.')) else { continue };
            let Ok(metadata) = entry.metadata() else { continue };
            let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            match key_of(stem) {
                Some(key) if extension == EXTENSION => found.push((modified, key, metadata.len())),
                Some(_) if extension.starts_with(EXTENSION) && is_old(modified) => drop(fs::remove_file(entry.path())),
                _ => {}
            }
        }
        found.sort_unstable();
        let mut index = Index { entries: HashMap::new(), order: BTreeMap::new(), bytes: 0, max_bytes, clock: 0 };
        found.into_iter().for_each(|(_, key, bytes)| index.insert(key, bytes));
        let surplus = index.make_room(0).unwrap_or_default();
        surplus.iter().for_each(|key| super::file::remove(folder, key));
        Ok(index)
    }

    pub(super) fn contains(&self, key: &PageKey) -> bool {
        self.entries.contains_key(key)
    }

    /// Pages and bytes.
    pub(super) fn size(&self) -> (usize, u64) {
        (self.entries.len(), self.bytes)
    }

    pub(super) fn insert(&mut self, key: PageKey, bytes: u64) {
        self.remove(&key);
        self.clock += 1;
        self.entries.insert(key, Entry { bytes, used: self.clock });
        self.order.insert(self.clock, key);
        self.bytes += bytes;
    }

    pub(super) fn touch(&mut self, key: &PageKey) {
        if let Some(entry) = self.entries.get(key) {
            let bytes = entry.bytes;
            self.insert(*key, bytes);
        }
    }

    pub(super) fn remove(&mut self, key: &PageKey) {
        if let Some(entry) = self.entries.remove(key) {
            self.order.remove(&entry.used);
            self.bytes -= entry.bytes;
        }
    }

    /// Takes the pages used longest ago out, until `bytes` more fit; `None` where they cannot.
    pub(super) fn make_room(&mut self, bytes: u64) -> Option<Vec<PageKey>> {
        let most = self.max_bytes.checked_sub(bytes)?;
        let mut surplus = Vec::new();
        while self.bytes > most {
            let (_, &key) = self.order.first_key_value().expect("bytes are those of entries");
            self.remove(&key);
            surplus.push(key);
        }
        Some(surplus)
    }
}

fn is_old(modified: SystemTime) -> bool {
    modified.elapsed().is_ok_and(|age| age > ABANDONED)
}

fn make_folder(folder: &Path) -> std::io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

/// The key that a file's name spells.
fn key_of(name: &str) -> Option<PageKey> {
    if name.len() != 64 || !name.is_ascii() {
        return None;
    }
    let mut key = [0; 32];
    for (byte, digits) in key.iter_mut().zip(name.as_bytes().as_chunks::<2>().0) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(PageKey(key))
}

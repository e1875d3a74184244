//! A model's packed weights in one file: written after packing, mapped by the next start instead of packing again.
//!
//! ```text
//! byte 0     8         12   16             24            32                   40                48
//!      │magic│ version │ 0  │ table offset │ table bytes │ table's checksum   │ checksum of 0–40 │ …
//!      4096: panels of the first matrix, panels of the second, …, each from a multiple of 4096
//!      table: source; number of matrices; of each: name, type, rows, columns, panel bytes, offset, checksum
//! ```
//!
//! All numbers are little-endian, u64 but for the version, the zero and lengths of text (u32). The *source* is a text
//! that says what the panels were packed from; whoever opens the file says what he expects.
//!
//! Invariant: stale or damaged panels are never used. Opening compares the source and checks every byte against its
//! checksum (at the speed of memory, and the pages are needed anyway); using a matrix packs its first and last panel
//! again and compares, which sees a changed layout or another tensor under the same name.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pelton_backend::Weight;
use pelton_quant::WeightType;

use super::kernel::Kernel;
use super::memory::{Map, PanelMemory};
use crate::pool::Pool;

const MAGIC: [u8; 8] = *b"PELTONPK";
/// Of this file's format; that of the panels is checked by content.
const VERSION: u32 = 4;
const HEAD: usize = 48;
/// Where matrices begin: pages, so that none shares one with another.
const PAGE: usize = 4096;
/// Larger than the table of any model.
const MOST_TABLE: u64 = 256 << 20;
/// Bytes that one task checks.
const CHUNK: usize = 1 << 20;
/// Chunks between two calls of the progress.
const CHUNKS_A_STEP: usize = 128;

/// Why a packed file cannot be used or written.
#[derive(Debug, thiserror::Error)]
pub enum PackedError {
    /// The system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not what was written.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The file belongs to something else: another state of the model, another version of the program.
    #[error("{} is out of date: {what}", path.display())]
    Stale {
        /// The file.
        path: PathBuf,
        /// What changed.
        what: String,
    },
    /// Another process is writing the same file.
    #[error("another process is writing {}", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
}

impl PackedError {
    fn io(action: &'static str, path: &Path) -> impl Fn(io::Error) -> PackedError {
        move |source| PackedError::Io { action, path: path.into(), source }
    }

    fn damaged(path: &Path, what: impl Into<String>) -> PackedError {
        PackedError::Damaged { path: path.into(), what: what.into() }
    }
}

/// One matrix in the table.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    name: String,
    dtype: String,
    rows: u64,
    cols: u64,
    panel_bytes: u64,
    offset: u64,
    checksum: u64,
}

impl Entry {
    /// Bytes of all panels.
    fn bytes(&self) -> Option<u64> {
        self.rows.div_ceil(16).checked_mul(self.panel_bytes)
    }
}

/// An opened file, checked as a whole.
#[derive(Debug)]
pub(crate) struct PackedFile {
    map: Arc<Map>,
    entries: HashMap<String, Entry>,
    /// Bytes of matrices that were taken.
    pub(crate) used_bytes: usize,
    /// Matrices that the file lacks or has otherwise.
    pub(crate) missed: usize,
}

impl PackedFile {
    /// Opens the file at `path`, which must have been packed from `source`, and checks all of it on all threads of
    /// `pool`; `progress` gets bytes done and of all. `None` where there is no such file.
    pub(crate) fn open(
        path: &Path,
        source: &str,
        pool: &Pool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Option<PackedFile>, PackedError> {
        let file = match File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(PackedError::io("open", path))?,
        };
        let map = Map::new(&file).map_err(PackedError::io("map", path))?;
        let (found, entries) = read_table(path, map.bytes())?;
        if found != source {
            let what = "the model's files or the program have changed since it was written";
            return Err(PackedError::Stale { path: path.into(), what: what.into() });
        }
        verify(path, map.bytes(), &entries, pool, progress)?;
        let entries = entries.into_iter().map(|e| (e.name.clone(), e)).collect();
        Ok(Some(PackedFile { map: Arc::new(map), entries, used_bytes: 0, missed: 0 }))
    }

    /// The panels of `weight` for `kernel`, where the file has them and they are what packing gives.
    pub(super) fn take(&mut self, weight: &Weight, kernel: &Kernel) -> Option<PanelMemory> {
        let taken = self.find(weight, kernel);
        match &taken {
            Some(panels) => self.used_bytes += panels.bytes().len(),
            None => self.missed += 1,
        }
        taken
    }

    fn find(&self, weight: &Weight, kernel: &Kernel) -> Option<PanelMemory> {
        let entry = self.entries.get(weight.name())?;
        let panel_bytes = (kernel.panel_bytes)(weight.dtype(), weight.cols());
        let shape = (entry.dtype.as_str(), entry.rows, entry.cols, entry.panel_bytes);
        let dtype = weight.dtype().to_string();
        if shape != (dtype.as_str(), weight.rows() as u64, weight.cols() as u64, panel_bytes as u64) {
            return None;
        }
        let n_panels = weight.rows().div_ceil(16);
        let panels = PanelMemory::mapped(&self.map, entry.offset as usize, n_panels * panel_bytes);
        let mut again = vec![0; panel_bytes];
        for panel in [0, n_panels - 1] {
            again.fill(0);
            (kernel.pack)(weight, panel, &mut again);
            if again != panels.bytes()[panel * panel_bytes..][..panel_bytes] {
                return None;
            }
        }
        Some(panels)
    }
}

/// What the file at `path` says that it was packed from. The panels are not looked at.
///
/// # Errors
/// [`PackedError`] where it cannot be read or is no packed file.
pub fn packed_source(path: &Path) -> Result<String, PackedError> {
    let file = File::open(path).map_err(PackedError::io("open", path))?;
    let map = Map::new(&file).map_err(PackedError::io("map", path))?;
    Ok(read_table(path, map.bytes())?.0)
}

/// The source and the matrices, every number of them checked against the file.
fn read_table(path: &Path, file: &[u8]) -> Result<(String, Vec<Entry>), PackedError> {
    let damaged = |what: &str| PackedError::damaged(path, what);
    let head = file.get(..HEAD).ok_or_else(|| damaged("it is cut short"))?;
    if head[..8] != MAGIC {
        return Err(damaged("it is no packed file"));
    }
    let mut fields = Fields(&head[8..]);
    let version = fields.u32().unwrap_or(0);
    if version != VERSION {
        let what = format!("it has version {version} of the format, this program writes {VERSION}");
        return Err(PackedError::Stale { path: path.into(), what });
    }
    let _zero = fields.u32();
    let [Some(offset), Some(len), Some(table_sum), Some(head_sum)] = std::array::from_fn(|_| fields.u64()) else {
        return Err(damaged("it is cut short"));
    };
    if checksum(&head[..HEAD - 8]) != head_sum {
        return Err(damaged("its first bytes have changed"));
    }
    if len > MOST_TABLE || offset.checked_add(len) != Some(file.len() as u64) {
        return Err(damaged("its length is not what its first bytes say"));
    }
    let table = &file[offset as usize..];
    if checksum(table) != table_sum {
        return Err(damaged("its table has changed"));
    }
    let mut fields = Fields(table);
    let parsed = fields.text().and_then(|source| {
        let n = fields.u32()?;
        let entries: Option<Vec<Entry>> = (0..n).map(|_| fields.entry()).collect();
        Some((source, entries?))
    });
    let (source, entries) = parsed.ok_or_else(|| damaged("its table ends early"))?;
    let fits = |e: &Entry| {
        let end = e.bytes().and_then(|bytes| e.offset.checked_add(bytes));
        e.offset >= PAGE as u64 && e.offset.is_multiple_of(PAGE as u64) && end.is_some_and(|end| end <= offset)
    };
    match entries.iter().find(|e| !fits(e)) {
        Some(odd) => Err(damaged(&format!("{} lies outside of it", odd.name))),
        None => Ok((source, entries)),
    }
}

/// Checks all panels, a step at a time.
fn verify(
    path: &Path,
    file: &[u8],
    entries: &[Entry],
    pool: &Pool,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(), PackedError> {
    let panels: Vec<&[u8]> =
        entries.iter().map(|e| &file[e.offset as usize..][..e.bytes().expect("checked") as usize]).collect();
    let chunks: Vec<&[u8]> = panels.iter().flat_map(|p| p.chunks(CHUNK)).collect();
    let total = panels.iter().map(|p| p.len()).sum();
    let (mut sums, mut done) = (Vec::with_capacity(chunks.len()), 0);
    for step in chunks.chunks(CHUNKS_A_STEP) {
        sums.extend(checksums(step, pool));
        done += step.iter().map(|c| c.len()).sum::<usize>();
        progress(done, total);
    }
    let mut sums = sums.into_iter();
    for (entry, panels) in entries.iter().zip(panels) {
        let sum = join(sums.by_ref().take(panels.len().div_ceil(CHUNK)));
        if sum != entry.checksum {
            return Err(PackedError::damaged(path, format!("the panels of {} have changed", entry.name)));
        }
    }
    Ok(())
}

/// The checksums of chunks, in parallel.
fn checksums(chunks: &[&[u8]], pool: &Pool) -> Vec<u64> {
    let sums: Vec<AtomicU64> = chunks.iter().map(|_| AtomicU64::new(0)).collect();
    pool.run(chunks.len(), &|i| sums[i].store(checksum(chunks[i]), Ordering::Relaxed));
    sums.into_iter().map(AtomicU64::into_inner).collect()
}

/// One checksum of several.
fn join(sums: impl Iterator<Item = u64>) -> u64 {
    sums.fold(0, |joined, sum| mix(joined.rotate_left(23) ^ sum))
}

/// A bijection that spreads every bit (the finalizer of MurmurHash3).
fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    x = (x ^ x >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ x >> 33
}

/// A checksum against damage, not against forgery: eight lanes of multiply and rotate, so that it runs as fast as
/// memory is read. Each step is a bijection of its word, so a single changed word always shows.
pub fn checksum(bytes: &[u8]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut lanes: [u64; 8] = [1, 2, 3, 4, 5, 6, 7, 8];
    let mut step = |block: &[u8; 64]| {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<8>().0) {
            *lane = (*lane ^ u64::from_le_bytes(*word)).wrapping_mul(ODD).rotate_left(29);
        }
    };
    let (blocks, rest) = bytes.as_chunks::<64>();
    blocks.iter().for_each(&mut step);
    let mut last = [0; 64];
    last[..rest.len()].copy_from_slice(rest);
    step(&last);
    join(lanes.into_iter().chain([bytes.len() as u64]))
}

/// Reads a table front to back; `None` past its end.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&mut self) -> Option<u32> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*first))
    }

    fn u64(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*first))
    }

    fn text(&mut self) -> Option<String> {
        let len = self.u32()? as usize;
        let (text, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).ok()
    }

    fn entry(&mut self) -> Option<Entry> {
        Some(Entry {
            name: self.text()?,
            dtype: self.text()?,
            rows: self.u64()?,
            cols: self.u64()?,
            panel_bytes: self.u64()?,
            offset: self.u64()?,
            checksum: self.u64()?,
        })
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Writes a packed file beside its place; it gets its name when it is whole.
#[derive(Debug)]
pub(crate) struct PackedWriter {
    path: PathBuf,
    temporary: PathBuf,
    file: BufWriter<File>,
    at: u64,
    source: String,
    entries: Vec<Entry>,
    is_finished: bool,
}

impl PackedWriter {
    /// Begins the file at `path`, whose folder is made where it is missing.
    pub(crate) fn create(path: &Path, source: &str) -> Result<PackedWriter, PackedError> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(PackedError::io("make the folder", folder))?;
        }
        // One name, so that what a killed process left is overwritten; locked, since two may store the same model.
        let temporary = path.with_extension("tmp");
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&temporary);
        let file = file.map_err(PackedError::io("create", &temporary))?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(PackedError::Busy { path: path.into() });
        }
        let mut writer = PackedWriter {
            path: path.into(),
            file: BufWriter::with_capacity(1 << 20, file),
            at: PAGE as u64,
            source: source.into(),
            entries: Vec::new(),
            is_finished: false,
            temporary,
        };
        let begun = writer.file.get_ref().set_len(0).and_then(|()| writer.file.seek(SeekFrom::Start(PAGE as u64)));
        begun.map_err(PackedError::io("write", &writer.temporary))?;
        Ok(writer)
    }

    /// Appends the panels of a matrix.
    pub(crate) fn push(
        &mut self,
        (name, dtype, rows, cols): (&str, WeightType, usize, usize),
        panel_bytes: usize,
        panels: &[u8],
        pool: &Pool,
    ) -> Result<(), PackedError> {
        let chunks: Vec<&[u8]> = panels.chunks(CHUNK).collect();
        let checksum = join(checksums(&chunks, pool).into_iter());
        let pad = panels.len().next_multiple_of(PAGE) - panels.len();
        let written = self.file.write_all(panels).and_then(|()| self.file.write_all(&[0; PAGE][..pad]));
        written.map_err(PackedError::io("write", &self.temporary))?;
        self.entries.push(Entry {
            name: name.into(),
            dtype: dtype.to_string(),
            rows: rows as u64,
            cols: cols as u64,
            panel_bytes: panel_bytes as u64,
            offset: self.at,
            checksum,
        });
        self.at += (panels.len() + pad) as u64;
        Ok(())
    }

    /// Writes the table and gives the file its name; says how long it is. The system may still be writing it to the
    /// disk: a file that a power cut leaves half written is found damaged and packed again.
    pub(crate) fn finish(mut self) -> Result<u64, PackedError> {
        let mut table = Vec::new();
        put_text(&mut table, &self.source);
        table.extend((self.entries.len() as u32).to_le_bytes());
        for e in &self.entries {
            put_text(&mut table, &e.name);
            put_text(&mut table, &e.dtype);
            [e.rows, e.cols, e.panel_bytes, e.offset, e.checksum].iter().for_each(|v| table.extend(v.to_le_bytes()));
        }
        let mut head = MAGIC.to_vec();
        head.extend(VERSION.to_le_bytes());
        head.extend(0u32.to_le_bytes());
        [self.at, table.len() as u64, checksum(&table)].iter().for_each(|v| head.extend(v.to_le_bytes()));
        head.extend(checksum(&head).to_le_bytes());
        let mut write = || {
            self.file.write_all(&table)?;
            self.file.seek(SeekFrom::Start(0))?;
            self.file.write_all(&head)?;
            self.file.flush()
        };
        write().map_err(PackedError::io("write", &self.temporary))?;
        fs::rename(&self.temporary, &self.path).map_err(PackedError::io("write", &self.path))?;
        self.is_finished = true;
        Ok(self.at + table.len() as u64)
    }
}

impl Drop for PackedWriter {
    fn drop(&mut self) {
        if !self.is_finished {
            // Best effort: the next writer overwrites what stays.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

#[cfg(test)]
#[path = "packed_tests.rs"]
mod tests;

//! The predictions of the model that others are held against, kept while those others run.
//!
//! In memory, logarithms of probabilities as f32, where there is room; else in a file, in the layout of llama.cpp's
//! `--kl-divergence-base`, which also may be read and written by name:
//!
//! ```text
//! "_logits_"  window: u32  vocab: i32  windows: i32  ids: [i32; window * windows]
//! then for each window and each of its window - 1 - window/2 predictions that count
//!   scale: f32  least: f32  steps: [u16; vocab, and one more where vocab is odd]      ln p = least + scale * steps
//! ```
//!
//! Probabilities below e^-16 of the likeliest are all `least` there. Invariants: everything that a file says is held
//! against its length before anything is allocated; a file that is written takes its place when it is complete.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, RwLock};

use pelton::Error;
use tempfile::NamedTempFile;

use crate::stretches::{Stretches, WindowOptions};

const MAGIC: &[u8; 8] = b"_logits_";
/// The magic and three numbers.
const HEADER_BYTES: u64 = 20;
/// What the steps of a row span, in nats.
const SPAN: f32 = 16.0;
/// Smaller logarithms of a file's probabilities stand for any below.
pub(crate) const LEAST_LN: f32 = -16.0;

enum Kept {
    Memory(RwLock<Vec<f32>>),
    /// A file, where its rows begin, and what it will be called.
    File {
        file: Mutex<File>,
        rows_at: u64,
        named: Option<(NamedTempFile, PathBuf)>,
    },
}

/// Predictions of a base model, `(rows, vocab)`.
pub struct Base {
    kept: Kept,
    rows: usize,
    vocab: usize,
}

/// What was in a file of predictions.
pub struct BaseFile {
    /// Tokens of a window.
    pub window: usize,
    /// All windows' tokens, one after another.
    pub ids: Vec<u32>,
    /// The predictions.
    pub base: Base,
}

/// Puts rows into a [`Base`], from any thread.
pub(crate) struct BaseWriter<'a>(&'a Base);

impl Base {
    /// Room for `rows` predictions: in memory where they take at most `most_memory` bytes, else in a file without a name
    /// in `scratch`.
    ///
    /// # Errors
    /// Where neither has room.
    pub fn new(rows: usize, vocab: usize, most_memory: u64, scratch: &Path) -> Result<Base, Error> {
        let floats = rows.saturating_mul(vocab);
        if (floats as u64).saturating_mul(4) <= most_memory {
            let mut data: Vec<f32> = Vec::new();
            if data.try_reserve_exact(floats).is_ok() {
                data.resize(floats, 0.0);
                return Ok(Base { kept: Kept::Memory(RwLock::new(data)), rows, vocab });
            }
        }
        check_room(scratch, rows, vocab, 0)?;
        let file = tempfile::tempfile_in(scratch).map_err(|e| cannot("make a file in", scratch, &e))?;
        Ok(Base { kept: Kept::File { file: Mutex::new(file), rows_at: 0, named: None }, rows, vocab })
    }

    /// Predictions.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Width of a row.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Whether the least probabilities are not kept exactly.
    pub fn is_rounded(&self) -> bool {
        matches!(self.kept, Kept::File { .. })
    }

    /// Refuses predictions of another vocabulary or of other stretches.
    pub(crate) fn check(&self, vocab: usize, counted: usize) -> Result<(), Error> {
        if vocab != self.vocab {
            let theirs = self.vocab;
            return Err(Error::Usage(format!("a vocabulary of {vocab} tokens, the base's has {theirs}")));
        }
        if counted != self.rows {
            let rows = self.rows;
            return Err(Error::Usage(format!("{counted} predictions, the base has {rows}: another text or windows")));
        }
        Ok(())
    }

    pub(crate) fn writer(&mut self) -> BaseWriter<'_> {
        BaseWriter(self)
    }

    /// The logarithms of a prediction's probabilities, `(vocab,)`.
    pub(crate) fn row(&self, nth: usize, out: &mut Vec<f32>) -> Result<(), Error> {
        assert!(nth < self.rows, "prediction {nth} of {}", self.rows);
        out.clear();
        match &self.kept {
            Kept::Memory(data) => {
                let data = data.read().expect("no writer panics");
                out.extend_from_slice(&data[nth * self.vocab..(nth + 1) * self.vocab]);
            }
            Kept::File { file, rows_at, .. } => {
                let mut bytes = vec![0; row_bytes(self.vocab)];
                {
                    let mut file = file.lock().expect("no reader panics");
                    let at = rows_at + nth as u64 * bytes.len() as u64;
                    let read = file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut bytes));
                    read.map_err(|e| Error::Failure(format!("cannot read the base's predictions: {e}")))?;
                }
                decode(&bytes, self.vocab, out);
            }
        }
        Ok(())
    }
}

impl BaseWriter<'_> {
    /// Keeps a row of logarithms of probabilities.
    pub(crate) fn put(&self, nth: usize, row: &[f32]) -> Result<(), Error> {
        let Base { kept, rows, vocab } = self.0;
        assert!(nth < *rows && row.len() == *vocab, "prediction {nth} of {rows}, {} of {vocab} wide", row.len());
        match kept {
            Kept::Memory(data) => {
                let mut data = data.write().expect("no writer panics");
                data[nth * vocab..(nth + 1) * vocab].copy_from_slice(row);
            }
            Kept::File { file, rows_at, .. } => {
                let bytes = encode(row);
                let mut file = file.lock().expect("no writer panics");
                let at = rows_at + nth as u64 * bytes.len() as u64;
                let written = file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(&bytes));
                written.map_err(|e| Error::Failure(format!("cannot write the base's predictions: {e}")))?;
            }
        }
        Ok(())
    }
}

impl BaseFile {
    /// Begins a file at `path` for the predictions of `stretches`; [`Base::finish`] puts it in its place.
    ///
    /// # Errors
    /// Where the stretches are not windows side by side, or the file cannot be made or has no room.
    pub fn create(path: &Path, stretches: &Stretches, vocab: usize) -> Result<Base, Error> {
        let Some((window, ids)) = stretches.side_by_side() else {
            return Err(Error::Usage("--write-base: only windows side by side can be kept; leave --stride out".into()));
        };
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        check_room(folder, stretches.counted(), vocab, ids.len())?;
        let named = named_in(folder).map_err(|e| cannot("make a file in", folder, &e))?;
        let mut header = MAGIC.to_vec();
        for number in [window, vocab, stretches.len()] {
            let number = i32::try_from(number).map_err(|_| Error::Usage(format!("{number} is too many for a file")))?;
            header.extend(number.to_le_bytes());
        }
        header.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        let file = named.reopen().and_then(|mut file| file.write_all(&header).map(|()| file));
        let file = Mutex::new(file.map_err(|e| cannot("write", path, &e))?);
        let kept = Kept::File { file, rows_at: header.len() as u64, named: Some((named, path.to_path_buf())) };
        Ok(Base { kept, rows: stretches.counted(), vocab })
    }

    /// Opens a file of predictions.
    ///
    /// # Errors
    /// Where it is not one, or its length is not what its header says.
    pub fn open(path: &Path) -> Result<BaseFile, Error> {
        let broken = |what: &str| Error::Failure(format!("{}: {what}", path.display()));
        let mut file = File::open(path).map_err(|e| cannot("read", path, &e))?;
        let length = file.metadata().map_err(|e| cannot("read", path, &e))?.len();
        let mut header = [0; HEADER_BYTES as usize];
        file.read_exact(&mut header).map_err(|_| broken("not a file of predictions (--write-base makes one)"))?;
        if header[..8] != *MAGIC {
            return Err(broken("not a file of predictions (--write-base makes one)"));
        }
        let number = |at: usize| {
            let value = i32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
            usize::try_from(value).map_err(|_| broken(&format!("its header says {value}")))
        };
        let (window, vocab, n_windows) = (number(8)?, number(12)?, number(16)?);
        let n_ids = window as u64 * n_windows as u64;
        let counted = (n_windows as u64).saturating_mul((window as u64).saturating_sub(1 + window as u64 / 2));
        let rows_at = HEADER_BYTES + 4 * n_ids;
        let expected = counted.saturating_mul(row_bytes(vocab) as u64).saturating_add(rows_at);
        if window < 4 || vocab == 0 || n_windows == 0 || expected != length {
            return Err(broken(&format!(
                "{n_windows} windows of {window} tokens over a vocabulary of {vocab} take {expected} bytes, the file has \
                 {length}: it was cut off or is of another kind"
            )));
        }
        // The file is that long.
        let mut bytes = vec![0; 4 * n_ids as usize];
        file.read_exact(&mut bytes).map_err(|e| cannot("read", path, &e))?;
        let ids: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            return Err(broken(&format!("it has token {id}, its vocabulary {vocab} tokens")));
        }
        let kept = Kept::File { file: Mutex::new(file), rows_at, named: None };
        Ok(BaseFile { window, ids, base: Base { kept, rows: counted as usize, vocab } })
    }

    /// The windows that were predicted; `bos` replaces their first tokens where the model wants it.
    ///
    /// # Errors
    /// As [`Stretches::windows`].
    pub fn stretches(&self, bos: Option<u32>) -> Result<Stretches, Error> {
        let options = WindowOptions { window: self.window, ..WindowOptions::default() };
        Stretches::windows(self.ids.clone(), bos, options)
    }
}

impl Base {
    /// Puts a file that was begun with [`BaseFile::create`] in its place; its length in bytes.
    ///
    /// # Errors
    /// Where the disk refuses.
    pub fn finish(self) -> Result<u64, Error> {
        let Kept::File { file, named: Some((named, path)), .. } = self.kept else { return Ok(0) };
        let file = file.into_inner().expect("no writer panics");
        let length = file.sync_all().and_then(|()| file.metadata()).map_err(|e| cannot("write", &path, &e))?.len();
        named.persist(&path).map_err(|e| cannot("write", &path, &e.error))?;
        Ok(length)
    }
}

/// A file that will be renamed, as readable as any that a program writes.
#[cfg(unix)]
fn named_in(folder: &Path) -> std::io::Result<NamedTempFile> {
    use std::os::unix::fs::PermissionsExt;
    // The process' mask takes from it what users want to be taken.
    let permissions = std::fs::Permissions::from_mode(0o666);
    tempfile::Builder::new().permissions(permissions).tempfile_in(folder)
}

#[cfg(not(unix))]
fn named_in(folder: &Path) -> std::io::Result<NamedTempFile> {
    NamedTempFile::new_in(folder)
}

/// Bytes of a row in a file.
fn row_bytes(vocab: usize) -> usize {
    8 + 2 * vocab.next_multiple_of(2)
}

fn encode(row: &[f32]) -> Vec<u8> {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let least = row.iter().copied().fold(f32::INFINITY, f32::min).max(most - SPAN);
    let scale = (most - least) / 65535.0;
    let mut bytes = Vec::with_capacity(row_bytes(row.len()));
    bytes.extend(scale.to_le_bytes());
    bytes.extend(least.to_le_bytes());
    for &ln in row {
        let steps = if scale > 0.0 && ln > least { ((ln - least) / scale).round_ties_even() } else { 0.0 };
        bytes.extend((steps as u16).to_le_bytes());
    }
    bytes.resize(row_bytes(row.len()), 0);
    bytes
}

fn decode(bytes: &[u8], vocab: usize, out: &mut Vec<f32>) {
    let float = |at: usize| f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (scale, least) = (float(0), float(4));
    let steps = bytes[8..].as_chunks::<2>().0.iter().take(vocab).map(|b| u16::from_le_bytes(*b));
    out.extend(steps.map(|steps| least + scale * f32::from(steps)));
}

/// Refuses where the disk has less room than the file will take.
fn check_room(folder: &Path, rows: usize, vocab: usize, n_ids: usize) -> Result<(), Error> {
    let rows = (rows as u64).saturating_mul(row_bytes(vocab) as u64);
    let needed = rows.saturating_add(4 * n_ids as u64).saturating_add(HEADER_BYTES);
    pelton_store::check_room(folder, needed)
        .map_err(|e| Error::Failure(format!("the base's predictions: {e}; fewer --windows take less")))
}

fn cannot(what: &str, path: &Path, e: &std::io::Error) -> Error {
    Error::Failure(format!("cannot {what} {}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::normalize;

    fn row(seed: u32, vocab: usize) -> Vec<f32> {
        let mut row: Vec<f32> = (0..vocab as u32).map(|i| ((i * 7919 + seed * 104_729) % 1000) as f32 / 40.0).collect();
        normalize(&mut row);
        row
    }

    #[test]
    fn memory_keeps_rows_exactly_and_files_within_a_step() {
        let folder = tempfile::tempdir().unwrap();
        for (most_memory, step) in [(u64::MAX, 0.0), (0, 16.0 / 65535.0)] {
            let mut base = Base::new(5, 33, most_memory, folder.path()).unwrap();
            assert_eq!(base.is_rounded(), step > 0.0);
            let writer = base.writer();
            [3, 0, 4, 1, 2].iter().for_each(|&i| writer.put(i, &row(i as u32, 33)).unwrap());
            let mut got = Vec::new();
            for i in [4, 0, 2] {
                base.row(i, &mut got).unwrap();
                let (expected, most) = (row(i as u32, 33), got.iter().copied().fold(f32::MIN, f32::max));
                let least = if step > 0.0 { most - 16.0 } else { f32::MIN };
                for (got, expected) in got.iter().zip(expected) {
                    assert!((got - expected.max(least)).abs() <= step, "{got} {expected}");
                }
            }
            assert_eq!(base.finish().unwrap(), 0);
        }
    }

    #[test]
    fn a_named_file_comes_back_and_takes_its_place_when_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("base.logits");
        let options = WindowOptions { window: 9, ..WindowOptions::default() };
        let stretches = Stretches::windows((0..20).collect(), None, options).unwrap();
        let mut base = BaseFile::create(&path, &stretches, 21).unwrap();
        (0..8).for_each(|i| base.writer().put(i, &row(i as u32, 21)).unwrap());
        assert!(!path.exists(), "nothing is there before it is complete");
        assert_eq!(base.finish().unwrap(), std::fs::metadata(&path).unwrap().len());
        let file = BaseFile::open(&path).unwrap();
        assert_eq!((file.window, file.base.rows(), file.base.vocab()), (9, 8, 21));
        assert_eq!(file.ids, (0..18).collect::<Vec<u32>>());
        assert_eq!(file.stretches(Some(7)).unwrap().get(1).ids[0], 7);
        let mut got = Vec::new();
        file.base.row(7, &mut got).unwrap();
        let (expected, most) = (row(7, 21), got.iter().copied().fold(f32::MIN, f32::max));
        assert!(got.iter().zip(expected).all(|(a, b)| (a - b.max(most - 16.0)).abs() < 1e-3));
        let strided = WindowOptions { stride: Some(2), ..options };
        let strided = Stretches::windows((0..20).collect(), None, strided).unwrap();
        assert!(BaseFile::create(&path, &strided, 21).err().unwrap().to_string().contains("--stride"));
    }

    #[test]
    fn files_of_other_kinds_and_lengths_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("base.logits");
        let options = WindowOptions { window: 8, ..WindowOptions::default() };
        let stretches = Stretches::windows((0..16).collect(), None, options).unwrap();
        let mut base = BaseFile::create(&path, &stretches, 20).unwrap();
        (0..6).for_each(|i| base.writer().put(i, &row(i as u32, 20)).unwrap());
        base.finish().unwrap();
        let good = std::fs::read(&path).unwrap();
        let refused = |bytes: &[u8], words: &str| {
            std::fs::write(&path, bytes).unwrap();
            let error = BaseFile::open(&path).err().unwrap().to_string();
            assert!(error.contains(words) && error.contains("base.logits"), "{error}");
        };
        (0..good.len()).for_each(|n| refused(&good[..n], if n < 20 { "not a file" } else { "cut off" }));
        let with = |at: usize, value: i32| {
            let mut bytes = good.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            bytes
        };
        refused(&with(0, 0), "not a file");
        for at in [8, 12, 16] {
            [0, i32::MAX, 9].iter().for_each(|&v| refused(&with(at, v), "cut off"));
            refused(&with(at, -1), "-1");
        }
        refused(&with(24, 20), "token 20");
        refused(&with(24, -1), "token 4294967295");
        assert!(BaseFile::open(&folder.path().join("none")).err().unwrap().to_string().contains("cannot read"));
    }
}

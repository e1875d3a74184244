//! Packed weights that are kept for the next start: where they lie, what they belong to, and looking after them.
//!
//! A folder holds one file for each model (by path), named after it. The file's *source* names the state of the
//! model's files and the version of Pelton that it was packed from; `pelton-cpu` checks that and all of its content
//! before it uses any.
//!
//! Invariant: a file that cannot be used is reported and replaced; a model runs with or without.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use pelton_cpu::{Cpu, PackedError, PackedOutcome, checksum, packed_source};
use pelton_model::LoadProgress;

use crate::{Error, Model};

/// The end of a packed file's name.
const EXTENSION: &str = "packed";
/// The folder of packed files in a model store, beside the hub's folders.
const FOLDER: &str = ".pelton-packed";
/// Of each file of a model, as much from its beginning is read to tell whether it has changed: the metadata …
const BEGINNING: u64 = 8 << 20;
/// … and as many samples of its rest, of as many bytes.
const SAMPLES: u64 = 64;
const SAMPLE: usize = 4096;

/// The folder of packed files in the model store at `root`.
pub fn packed_folder(root: &Path) -> PathBuf {
    root.join(FOLDER)
}

/// A model's packed weights on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPack {
    /// The file.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// The model's files; `None` where the packed file cannot be read.
    pub model: Option<Vec<PathBuf>>,
}

impl StoredPack {
    /// The packed files in `folder`, by name, those that a killed process left unfinished among them.
    ///
    /// # Errors
    /// Where the folder exists and cannot be read.
    pub fn list(folder: &Path) -> Result<Vec<StoredPack>, Error> {
        let entries = match fs::read_dir(folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|e| Error::Failure(format!("cannot read {}: {e}", folder.display())))?,
        };
        let ours = |path: &PathBuf| path.extension().is_some_and(|e| e == EXTENSION || e == "tmp");
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(ours).collect();
        paths.sort();
        let read = |path: PathBuf| {
            let bytes = fs::metadata(&path).map_or(0, |found| found.len());
            let model = packed_source(&path).ok().map(|source| source.lines().filter_map(file_of_line).collect());
            StoredPack { path, bytes, model }
        };
        Ok(paths.into_iter().map(read).collect())
    }

    /// Whether nothing can use it any more: it cannot be read, or a file of its model is gone.
    pub fn is_orphan(&self) -> bool {
        self.model.as_ref().is_none_or(|files| files.iter().any(|file| !file.exists()))
    }

    /// Whether it belongs to the model whose files, or one of them, are at or below `path`.
    pub fn belongs_to(&self, path: &Path) -> bool {
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        // A snapshot's files are links to blobs.
        let below = fs::read_dir(&path).into_iter().flatten().flatten();
        let targets: Vec<PathBuf> = below.filter_map(|entry| fs::canonicalize(entry.path()).ok()).collect();
        let is_there = |file: &PathBuf| file.starts_with(&path) || targets.contains(file);
        self.model.as_ref().is_some_and(|files| files.iter().any(is_there))
    }

    /// Removes the file.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn remove(&self) -> Result<(), Error> {
        fs::remove_file(&self.path).map_err(|e| Error::Failure(format!("cannot remove {}: {e}", self.path.display())))
    }
}

/// What became of the packed file of a model that was loaded: shown to the user, never silent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PackedReport {
    /// Packed weights are not kept.
    Off,
    /// Nothing was packed: the weights were mapped.
    Mapped {
        /// Bytes of them.
        bytes: u64,
    },
    /// The weights were packed and stored for the next start.
    Stored {
        /// Length of the file.
        bytes: u64,
    },
    /// The weights were packed and could not be stored.
    NotStored,
}

/// A model's packed file while the model is loaded.
pub(crate) struct Pack {
    path: PathBuf,
    report: PackedReport,
    /// What people should know.
    notes: Vec<String>,
}

impl Pack {
    /// Finds the packed file of `model` in `folder`, or begins to write it. Whatever goes wrong becomes a note.
    pub(crate) fn begin(
        cpu: &mut Cpu,
        model: &Model,
        folder: Option<&Path>,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Pack {
        let mut pack = Pack { path: PathBuf::new(), report: PackedReport::Off, notes: Vec::new() };
        let Some(folder) = folder else { return pack };
        pack.report = PackedReport::NotStored;
        let source = match source_of(model) {
            Ok(Some((name, source))) => {
                pack.path = folder.join(format!("{name}.{EXTENSION}"));
                source
            }
            Ok(None) => {
                pack.report = PackedReport::Off;
                pack.notes.push(format!("{} has no files: its packed weights are not kept", model.name));
                return pack;
            }
            Err(e) => {
                pack.notes.push(format!("packed weights are not kept: {e}"));
                return pack;
            }
        };
        match cpu.read_packed(&pack.path, &source, &mut |done, total| progress(LoadProgress { done, total })) {
            Ok(true) => return pack,
            Ok(false) => {}
            Err(e @ (PackedError::Damaged { .. } | PackedError::Stale { .. })) => {
                pack.notes.push(format!("{e}; packing the weights again"));
            }
            Err(e) => pack.notes.push(format!("{e}; packing the weights")),
        }
        if let Err(e) = pack
            .check_room(model, folder)
            .and_then(|()| cpu.write_packed(&pack.path, &source).map_err(|e| e.to_string()))
        {
            pack.notes.push(format!("packed weights are not stored: {e}"));
        }
        pack
    }

    /// Refuses where the disk has less room than the file will take.
    fn check_room(&self, model: &Model, folder: &Path) -> Result<(), String> {
        // Panels are at most 4% larger than the file's blocks.
        let total = model.files.source.total_bytes;
        let needed = total.saturating_add(total / 16).saturating_add(1 << 20);
        // The file that is replaced frees its room only afterwards. The folder may not exist yet.
        let there = folder.ancestors().find(|path| path.is_dir()).unwrap_or(folder);
        pelton_store::check_room(there, needed).map_err(|e| e.to_string())
    }

    /// Ends reading or writing; bytes of weights that are mapped.
    pub(crate) fn finish(&mut self, cpu: &mut Cpu) -> usize {
        match cpu.finish_packed() {
            PackedOutcome::Off => 0,
            PackedOutcome::Mapped { bytes, missed } => {
                self.report = PackedReport::Mapped { bytes: bytes as u64 };
                if missed > 0 {
                    self.give_up(missed);
                }
                bytes
            }
            PackedOutcome::Written { bytes } => {
                self.report = PackedReport::Stored { bytes };
                0
            }
            PackedOutcome::Failed(e) => {
                self.notes.push(format!("packed weights are not stored: {e}"));
                0
            }
        }
    }

    /// The file lacks matrices, or has others: it goes, and the next start makes a new one.
    fn give_up(&mut self, missed: usize) {
        let path = self.path.display();
        let next = match fs::remove_file(&self.path) {
            Ok(()) => "it is removed, the next start makes a new one".to_string(),
            Err(e) => format!("remove it ({e})"),
        };
        self.notes.push(format!("{path} does not fit the model: {missed} matrices were packed again; {next}"));
    }

    /// What became of it, and what people should know.
    pub(crate) fn into_report(self) -> (PackedReport, Vec<String>) {
        (self.report, self.notes)
    }

    /// For a backend whose weights are not kept, and why.
    pub(crate) fn off(folder: Option<&Path>, why: &str) -> Pack {
        let note = format!("packed weights are not kept: {why}");
        Pack { path: PathBuf::new(), report: PackedReport::Off, notes: folder.map(|_| note).into_iter().collect() }
    }
}

/// What names a model's weights, for things that were computed from them: the state of its files, or the content of a
/// model without.
pub(crate) fn identity_of(model: &Model) -> Result<String, String> {
    if let Some((_, source)) = source_of(model)? {
        return Ok(source);
    }
    let sum = |t: &pelton_formats::Tensor| checksum(t.source().unwrap_or(t).blocks().unwrap_or_default());
    let sums: Vec<u8> = model.files.tensors.iter().flat_map(|t| sum(t).to_le_bytes()).collect();
    let (version, arch) = (env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    let marks = checksum(model.marks().as_bytes());
    Ok(format!("pelton {version} {arch}\n{} {:016x} {marks:016x}", model.name, checksum(&sums)))
}

/// A name for the model's packed file, and the state that its files are in. `None` for a model without files.
///
/// Equal states mean equal files: the size, the inode and both times of a file change with every write to it (the
/// time of its last change of state cannot be set by programs), and the beginning and samples of the rest are read
/// besides, for systems that keep times badly. Reading all of it would take as long as packing it.
fn source_of(model: &Model) -> Result<Option<(String, String)>, String> {
    let version = env!("CARGO_PKG_VERSION");
    let mut source = format!("pelton {version} {}\n", std::env::consts::ARCH);
    let mut paths = String::new();
    for name in &model.files.source.files {
        let path = Path::new(name);
        if !path.is_file() {
            return Ok(None);
        }
        let state = state_of(path).map_err(|e| format!("cannot read {name}: {e}"))?;
        let path = fs::canonicalize(path).map_err(|e| format!("cannot read {name}: {e}"))?;
        source += &format!("{state} {}\n", path.display());
        paths += &format!("{}\n", path.display());
    }
    let short: String = model
        .name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' })
        .take(100)
        .collect();
    // The same files, quantized otherwise, are another model.
    let marks = model.marks();
    if !marks.is_empty() {
        source += &format!("quantized while loading {:016x}\n", checksum(marks.as_bytes()));
        paths += &marks;
    }
    Ok((!model.files.source.files.is_empty()).then(|| (format!("{short}-{:016x}", checksum(paths.as_bytes())), source)))
}

/// The path in a line of a source.
fn file_of_line(line: &str) -> Option<PathBuf> {
    let rest = line.strip_prefix("file ")?;
    rest.splitn(7, ' ').nth(6).map(PathBuf::from)
}

/// The state of a file as `file SIZE WRITTEN CHANGED INODE DEVICE CHECKSUM`.
fn state_of(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let found = file.metadata()?;
    let written = found.modified()?.duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos());
    let (changed, inode, device) = changed_of(&found);
    let mut bytes = Vec::new();
    file.by_ref().take(BEGINNING).read_to_end(&mut bytes)?;
    let mut sums = vec![checksum(&bytes)];
    for i in 0..SAMPLES {
        let mut sample = Vec::with_capacity(SAMPLE);
        file.seek(SeekFrom::Start(found.len() / SAMPLES * i))?;
        file.by_ref().take(SAMPLE as u64).read_to_end(&mut sample)?;
        sums.push(checksum(&sample));
    }
    let sums: Vec<u8> = sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
    Ok(format!("file {} {written} {changed} {inode} {device} {:016x}", found.len(), checksum(&sums)))
}

/// When the state of a file last changed, and which file it is.
#[cfg(unix)]
fn changed_of(found: &fs::Metadata) -> (i128, u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (i128::from(found.ctime()) * 1_000_000_000 + i128::from(found.ctime_nsec()), found.ino(), found.dev())
}

#[cfg(not(unix))]
fn changed_of(_: &fs::Metadata) -> (i128, u64, u64) {
    (0, 0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_changes_with_content_and_times() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("with space.gguf");
        fs::write(&path, vec![1; 100_000]).unwrap();
        let first = state_of(&path).unwrap();
        assert_eq!(state_of(&path).unwrap(), first);
        let line = format!("{first} {}", path.display());
        assert_eq!(file_of_line(&line), Some(path.clone()));
        assert_eq!(file_of_line("pelton 0.1.0 x86_64"), None);
        // The same bytes in a new file: another inode.
        let copy = folder.path().join("copy");
        fs::copy(&path, &copy).unwrap();
        assert_ne!(state_of(&copy).unwrap(), first);
        // The same length and the same time, another byte.
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        let mut bytes = vec![1; 100_000];
        bytes[50] = 2;
        fs::write(&path, bytes).unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        assert_ne!(state_of(&path).unwrap(), first);
    }

    #[test]
    fn a_folder_that_is_not_there_holds_nothing() {
        assert_eq!(StoredPack::list(Path::new("/nonexistent/packed")).unwrap(), []);
    }

    #[test]
    fn unreadable_files_are_listed_as_orphans() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.packed"), "junk").unwrap();
        fs::write(folder.path().join("b.tmp"), "").unwrap();
        fs::write(folder.path().join("notes.txt"), "").unwrap();
        let found = StoredPack::list(folder.path()).unwrap();
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(StoredPack::is_orphan));
        assert_eq!((found[0].bytes, &found[0].model), (4, &None));
        found.iter().for_each(|file| file.remove().unwrap());
        assert!(StoredPack::list(folder.path()).unwrap().is_empty());
    }
}

//! The output while it grows: `OUT.part` and, beside it, a journal of the tensors that are in it.
//!
//! ```text
//! OUT.part.journal    line 1:  pelton-quantize 1 FINGERPRINT          of the header, the source and the importance
//!                     then:    INDEX END HASH                         tensor INDEX ends at byte END; its bytes' FNV-1a
//! ```
//!
//! An interrupted run goes on after the last tensor that the journal names and whose bytes are what it says. Invariant:
//! `OUT` is replaced in one step, by a file that is whole and on the disk.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use crate::QuantizeError;

/// FNV-1a over words of 64 bits: tells changed bytes from the same ones, not an attacker from a friend. How the bytes are
/// cut into pieces makes no difference.
#[derive(Clone, Copy)]
pub(crate) struct Fnv {
    state: u64,
    /// Bytes that do not fill a word yet.
    rest: [u8; 8],
    n_rest: usize,
    len: u64,
}

impl Fnv {
    pub(crate) fn new() -> Fnv {
        Fnv { state: 0xCBF2_9CE4_8422_2325, rest: [0; 8], n_rest: 0, len: 0 }
    }

    pub(crate) fn add(&mut self, mut bytes: &[u8]) {
        self.len += bytes.len() as u64;
        if self.n_rest > 0 {
            let n = bytes.len().min(8 - self.n_rest);
            self.rest[self.n_rest..self.n_rest + n].copy_from_slice(&bytes[..n]);
            (self.n_rest, bytes) = (self.n_rest + n, &bytes[n..]);
            if self.n_rest < 8 {
                return;
            }
            self.state = mixed(self.state, u64::from_le_bytes(self.rest));
            self.n_rest = 0;
        }
        let (words, rest) = bytes.as_chunks::<8>();
        self.state = words.iter().fold(self.state, |state, word| mixed(state, u64::from_le_bytes(*word)));
        self.rest[..rest.len()].copy_from_slice(rest);
        self.n_rest = rest.len();
    }

    pub(crate) fn value(mut self) -> u64 {
        self.rest[self.n_rest..].fill(0);
        mixed(mixed(self.state, u64::from_le_bytes(self.rest)), self.len)
    }
}

fn mixed(state: u64, word: u64) -> u64 {
    let state = (state ^ word).wrapping_mul(0x0000_0100_0000_01B3);
    state ^ state >> 32
}

/// The growing file.
pub(crate) struct Part {
    out: PathBuf,
    path: PathBuf,
    journal_path: PathBuf,
    file: BufWriter<File>,
    journal: File,
    at: u64,
    hash: Fnv,
}

/// Bytes that a tensor's chunks are padded to.
const ALIGNMENT: u64 = 32;

fn beside(out: &Path, suffix: &str) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_os_string();
    name.push(suffix);
    out.with_file_name(name)
}

impl Part {
    /// Opens the part file of `out` and finds how many of the tensors, which end at `ends`, it holds already. Another
    /// fingerprint, or none, starts anew with `header`.
    pub(crate) fn open(
        out: &Path,
        header: &[u8],
        fingerprint: u64,
        lens: &[u64],
    ) -> Result<(Part, usize), QuantizeError> {
        let (path, journal_path) = (beside(out, ".part"), beside(out, ".part.journal"));
        let first_line = format!("pelton-quantize 1 {fingerprint:016x}");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = file.map_err(QuantizeError::io(&path, "open"))?;
        if file.try_lock().is_err() {
            let problem = format!("{}: another run writes it; wait for it or choose another output", path.display());
            return Err(QuantizeError::Usage(problem));
        }
        let entries = read_journal(&journal_path, &first_line);
        let start = (header.len() as u64).next_multiple_of(ALIGNMENT);
        let done = verified(&mut file, &entries, start, lens, &path)?;
        let at = if done == 0 { start } else { entries[done - 1].end };
        file.set_len(at).map_err(QuantizeError::io(&path, "resize"))?;
        if done == 0 {
            let begin = file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(header));
            begin.map_err(QuantizeError::io(&path, "write"))?;
        }
        file.seek(SeekFrom::Start(at)).map_err(QuantizeError::io(&path, "write"))?;
        let mut journal = File::create(&journal_path).map_err(QuantizeError::io(&journal_path, "create"))?;
        let mut text = format!("{first_line}\n");
        for entry in &entries[..done] {
            text.push_str(&entry.line());
        }
        journal.write_all(text.as_bytes()).map_err(QuantizeError::io(&journal_path, "write"))?;
        let file = BufWriter::with_capacity(1 << 20, file);
        let out = out.to_owned();
        Ok((Part { out, path, journal_path, file, journal, at, hash: Fnv::new() }, done))
    }

    /// Appends bytes of the current tensor.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), QuantizeError> {
        self.file.write_all(bytes).map_err(QuantizeError::io(&self.path, "write"))?;
        self.at += bytes.len() as u64;
        self.hash.add(bytes);
        Ok(())
    }

    /// Pads the current tensor and notes that it is there.
    pub(crate) fn end_tensor(&mut self, index: usize, len: u64) -> Result<(), QuantizeError> {
        let pad = (len.next_multiple_of(ALIGNMENT) - len) as usize;
        self.file.write_all(&[0; ALIGNMENT as usize][..pad]).map_err(QuantizeError::io(&self.path, "write"))?;
        self.at += pad as u64;
        self.file.flush().map_err(QuantizeError::io(&self.path, "write"))?;
        let entry = JournalEntry { index, end: self.at, hash: self.hash.value() };
        self.hash = Fnv::new();
        self.journal.write_all(entry.line().as_bytes()).map_err(QuantizeError::io(&self.journal_path, "write"))
    }

    /// Gives the whole file its name. Returns its length.
    pub(crate) fn finish(self) -> Result<u64, QuantizeError> {
        let file = self.file.into_inner().map_err(|e| QuantizeError::io(&self.path, "write")(e.into_error()))?;
        file.sync_all().map_err(QuantizeError::io(&self.path, "sync"))?;
        std::fs::rename(&self.path, &self.out).map_err(QuantizeError::io(&self.out, "rename into place"))?;
        #[cfg(unix)]
        if let Some(folder) = self.out.parent() {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            // The name is on the disk as well, where the system can sync folders.
            let _synced = File::open(folder).and_then(|folder| folder.sync_all());
        }
        // A journal without its file is ignored by the next run.
        let _removed = std::fs::remove_file(&self.journal_path);
        Ok(self.at)
    }
}

struct JournalEntry {
    index: usize,
    end: u64,
    hash: u64,
}

impl JournalEntry {
    fn line(&self) -> String {
        format!("{} {} {:016x}\n", self.index, self.end, self.hash)
    }

    fn parse(line: &str) -> Option<JournalEntry> {
        let mut words = line.split(' ');
        let (index, end) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let hash = u64::from_str_radix(words.next()?, 16).ok()?;
        words.next().is_none().then_some(JournalEntry { index, end, hash })
    }
}

/// The entries up to the first that is none; nothing where the first line is another.
fn read_journal(path: &Path, first_line: &str) -> Vec<JournalEntry> {
    let Ok(file) = File::open(path) else { return Vec::new() };
    let mut lines = BufReader::new(file).lines().map_while(Result::ok);
    if lines.next().as_deref() != Some(first_line) {
        return Vec::new();
    }
    let entries = lines.map_while(|line| JournalEntry::parse(&line)).enumerate();
    entries.take_while(|(i, entry)| entry.index == *i).map(|(_, entry)| entry).collect()
}

/// How many of the tensors are in the file as the journal says.
fn verified(
    file: &mut File,
    entries: &[JournalEntry],
    start: u64,
    lens: &[u64],
    path: &Path,
) -> Result<usize, QuantizeError> {
    let failed = QuantizeError::io(path, "read");
    let mut at = start;
    let mut buffer = Vec::new();
    for (i, (entry, &len)) in entries.iter().zip(lens).enumerate() {
        if entry.end != at + len.next_multiple_of(ALIGNMENT) {
            return Ok(i);
        }
        file.seek(SeekFrom::Start(at)).map_err(&failed)?;
        let mut hash = Fnv::new();
        let mut left = len;
        while left > 0 {
            buffer.resize(left.min(1 << 20) as usize, 0);
            match file.read_exact(&mut buffer) {
                Ok(()) => hash.add(&buffer),
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(i),
                Err(e) => return Err(failed(e)),
            }
            left -= buffer.len() as u64;
        }
        if hash.value() != entry.hash {
            return Ok(i);
        }
        at = entry.end;
    }
    Ok(entries.len().min(lens.len()))
}

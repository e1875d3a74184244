//! The memory map: the `unsafe` blocks of this crate.
//!
//! Invariant: a [`Map`] is read-only and is never remapped, so slices of it keep their address and length.

#![allow(unsafe_code, reason = "mapping a file is unsafe by nature; it happens here and nowhere else")]

use std::fs::File;
use std::path::Path;

use crate::FormatError;

/// A whole file, mapped read-only.
pub(crate) struct Map(memmap2::Mmap);

impl Map {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// [`FormatError::Io`] when the file cannot be opened or mapped, and for anything but a regular file.
    pub(crate) fn open(path: &Path) -> Result<Map, FormatError> {
        let file = File::open(path).map_err(FormatError::io(path, "open"))?;
        let meta = file.metadata().map_err(FormatError::io(path, "read the size"))?;
        if !meta.is_file() {
            let kind = if meta.is_dir() { "a folder" } else { "no regular file" };
            return Err(FormatError::malformed(&path.display().to_string(), "file type", kind, "a file"));
        }
        // SAFETY: the map is private to this process and only ever read. What remains is that another process
        // truncates or rewrites the file while it is mapped: a truncation ends the process by SIGBUS, and a rewrite
        // changes bytes that are only used as plain numbers (every length was checked and copied at open), so no
        // invariant of the type system hangs on the content. Model files are written once and renamed into place.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(FormatError::io(path, "map into memory"))?;
        Ok(Map(map))
    }

    /// Lets the pages of a range go; whoever reads them again reads the file again.
    pub(crate) fn release(&self, start: usize, len: usize) {
        #[cfg(unix)]
        {
            assert!(start <= self.0.len() && len <= self.0.len() - start, "a range inside the map");
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // It is advice: where the system does not take it, memory is freed later.
            // SAFETY: the map is shared with the file and read-only, so no page of it holds what the file does not: a page
            // that goes comes back with the same bytes. `start` and `len` lie inside the map (asserted).
            let _taken = unsafe { self.0.unchecked_advise_range(advice, start, len) };
        }
        #[cfg(not(unix))]
        let _ = (start, len);
    }
}

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

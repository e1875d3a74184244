//! The memory map: the one `unsafe` block of this crate.
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
}

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

//! A range of read-only bytes that clones for the price of a reference count.
//!
//! Invariant: `range` lies inside the backing, whose length never changes.

use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use crate::FormatError;
use crate::mmap::Map;

/// Bytes of a mapped file, of the program's own image, or of an owned buffer. No alignment is promised.
#[derive(Clone)]
pub struct Bytes {
    backing: Backing,
    range: Range<usize>,
}

#[derive(Clone)]
enum Backing {
    Map(Arc<Map>),
    Shared(Arc<[u8]>),
    Owned(Arc<Vec<u8>>),
    Static(&'static [u8]),
}

impl Bytes {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// [`FormatError::Io`] when the file cannot be opened or mapped.
    pub fn map(path: &Path) -> Result<Bytes, FormatError> {
        let map = Map::open(path)?;
        Ok(Bytes { range: 0..map.as_ref().len(), backing: Backing::Map(Arc::new(map)) })
    }

    /// The part of these bytes in `range`.
    ///
    /// # Panics
    /// If `range` is not inside these bytes: callers check what comes from a file first.
    pub fn slice(&self, range: Range<usize>) -> Bytes {
        assert!(range.start <= range.end && range.end <= self.range.len(), "byte range {range:?} is out of bounds");
        let start = self.range.start + range.start;
        Bytes { backing: self.backing.clone(), range: start..start + range.len() }
    }

    /// Lets the pages of a mapped file go; they are read again when they are needed again.
    pub(crate) fn release(&self) {
        if let Backing::Map(map) = &self.backing {
            map.release(self.range.start, self.range.len());
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &self.backing {
            Backing::Map(map) => (**map).as_ref(),
            Backing::Shared(bytes) => bytes,
            Backing::Owned(bytes) => bytes,
            Backing::Static(bytes) => bytes,
        };
        &all[self.range.clone()]
    }
}

impl From<&'static [u8]> for Bytes {
    fn from(bytes: &'static [u8]) -> Bytes {
        Bytes { range: 0..bytes.len(), backing: Backing::Static(bytes) }
    }
}

impl From<Arc<[u8]>> for Bytes {
    fn from(bytes: Arc<[u8]>) -> Bytes {
        Bytes { range: 0..bytes.len(), backing: Backing::Shared(bytes) }
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Bytes {
        Bytes { range: 0..bytes.len(), backing: Backing::Owned(Arc::new(bytes)) }
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({})", self.range.len())
    }
}

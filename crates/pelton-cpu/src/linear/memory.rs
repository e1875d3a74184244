//! Memory for packed weights: aligned, on huge pages where the system has them, filled by all threads; or a part of
//! a file that an earlier process packed, mapped.
//!
//! Invariant: a [`PanelMemory`] is initialized when its constructor returns, and does not change after that.

use std::alloc::{Layout, alloc, dealloc};
use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use super::activations::Shared;
use crate::pool::Pool;

/// Huge pages on x86-64 and most aarch64 systems.
const HUGE_PAGE: usize = 2 << 20;
/// A cache line.
const LINE: usize = 64;

/// Panels, one after another.
#[derive(Debug)]
pub(crate) struct PanelMemory {
    start: NonNull<u8>,
    len: usize,
    owner: Owner,
}

/// What keeps the panels alive.
#[derive(Debug)]
enum Owner {
    /// An allocation of this layout, ours alone.
    Heap(Layout),
    /// A mapped file that the panels are a part of.
    Map { _map: Arc<Map> },
}

// SAFETY: the memory is owned (or its owner is), and only read once it is built.
unsafe impl Send for PanelMemory {}
// SAFETY: as above.
unsafe impl Sync for PanelMemory {}

impl PanelMemory {
    /// `n` panels of `panel_bytes` bytes, each zeroed and then filled by `fill(panel, its bytes)`, in parallel: so
    /// that pages lie near the threads that touch them first. `None` where there is no such memory.
    pub(crate) fn new(
        n: usize,
        panel_bytes: usize,
        pool: &Pool,
        fill: &(dyn Fn(usize, &mut [u8]) + Sync),
    ) -> Option<PanelMemory> {
        let bytes = n.checked_mul(panel_bytes).filter(|&bytes| bytes > 0)?;
        let align = if bytes >= HUGE_PAGE { HUGE_PAGE } else { LINE };
        let layout = Layout::from_size_align(bytes, align).ok()?;
        // SAFETY: the layout's size is not zero.
        let start = NonNull::new(unsafe { alloc(layout) })?;
        let memory = PanelMemory { start, len: bytes, owner: Owner::Heap(layout) };
        if align == HUGE_PAGE {
            advise_huge_pages(start, bytes);
        }
        let base = Shared(start.as_ptr());
        pool.run(n, &|panel| {
            // SAFETY: panels are disjoint, within the allocation, and each is taken by one task; zeroing makes it
            // initialized before it becomes a slice.
            let out = unsafe {
                let first = base.get().add(panel * panel_bytes);
                first.write_bytes(0, panel_bytes);
                std::slice::from_raw_parts_mut(first, panel_bytes)
            };
            fill(panel, out);
        });
        Some(memory)
    }

    /// Panels that are `len` bytes of a mapped file, from `offset`.
    ///
    /// # Panics
    /// Where the file is shorter.
    pub(crate) fn mapped(map: &Arc<Map>, offset: usize, len: usize) -> PanelMemory {
        let start = NonNull::from(&map.bytes()[offset..][..len]).cast();
        PanelMemory { start, len, owner: Owner::Map { _map: Arc::clone(map) } }
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: allocated with this size and initialized by `new`, or a part of the map that `owner` keeps.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for PanelMemory {
    fn drop(&mut self) {
        if let Owner::Heap(layout) = self.owner {
            // SAFETY: allocated by `alloc` with this layout.
            unsafe { dealloc(self.start.as_ptr(), layout) }
        }
    }
}

/// A matrix takes hundreds of 4 KiB pages a millisecond to stream; huge pages save most of the walks.
fn advise_huge_pages(start: NonNull<u8>, len: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: the range is the caller's mapped memory, and the advice does not change its contents. It may be
    // refused, which costs only speed.
    unsafe {
        libc::madvise(start.as_ptr().cast(), len, libc::MADV_HUGEPAGE)
    };
    #[cfg(not(target_os = "linux"))]
    let _ = (start, len);
}

/// A whole file, mapped for reading; read into memory where the system cannot map.
#[derive(Debug)]
pub(crate) struct Map {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is owned, and only read.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// Maps a file.
    ///
    /// # Errors
    /// Where the system refuses, and for an empty file.
    #[cfg(unix)]
    pub(crate) fn new(file: &File) -> io::Result<Map> {
        use std::os::fd::AsRawFd;
        let len = usize::try_from(file.metadata()?.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        // SAFETY: a new mapping for reading, of an open file. What remains is that another process changes the file
        // meanwhile: a truncation ends this process by SIGBUS, a rewrite changes bytes that are plain numbers to the
        // kernels. Pelton itself writes such files beside their place and renames them.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        let start = NonNull::new(start).filter(|start| start.as_ptr() != libc::MAP_FAILED);
        let start = start.ok_or_else(io::Error::last_os_error)?.cast();
        advise_huge_pages(start, len);
        Ok(Map { start, len })
    }

    /// Reads a file.
    ///
    /// # Errors
    /// Where the system refuses, and for an empty file.
    #[cfg(not(unix))]
    pub(crate) fn new(mut file: &File) -> io::Result<Map> {
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut file, &mut bytes)?;
        let bytes = Box::leak(bytes.into_boxed_slice());
        let len = bytes.len();
        Ok(Map { start: NonNull::from(bytes).cast(), len })
    }

    /// The file.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: mapped with this length; it stays until it is dropped.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        #[cfg(unix)]
        // SAFETY: mapped by `new` with this length; nobody holds a slice of it any more.
        unsafe {
            libc::munmap(self.start.as_ptr().cast(), self.len)
        };
        #[cfg(not(unix))]
        // SAFETY: leaked by `new`, a boxed slice of this length.
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(self.start.as_ptr(), self.len)) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_are_zeroed_and_filled_once() {
        let pool = Pool::new(2).unwrap();
        for (n, panel_bytes) in [(1, 1), (3, 100), (5, 1 << 20)] {
            let memory = PanelMemory::new(n, panel_bytes, &pool, &|i, out| {
                assert!(out.iter().all(|&b| b == 0));
                out[0] = i as u8 + 1;
            });
            let memory = memory.unwrap();
            let firsts: Vec<u8> = memory.bytes().chunks(panel_bytes).map(|p| p[0]).collect();
            assert_eq!(firsts, (1..=n as u8).collect::<Vec<_>>());
        }
    }

    #[test]
    fn absurd_sizes_are_no_memory() {
        let pool = Pool::new(1).unwrap();
        assert!(PanelMemory::new(usize::MAX, 2, &pool, &|_, _| ()).is_none());
        assert!(PanelMemory::new(usize::MAX / 4, 1, &pool, &|_, _| ()).is_none());
    }
}

//! Memory for packed weights: aligned, on huge pages where the system has them, filled by all threads.
//!
//! Invariant: a [`PanelMemory`] is initialized when its constructor returns, and does not change after that.

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;

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
    layout: Layout,
}

// SAFETY: the memory is owned, and only read once it is built.
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
        let memory = PanelMemory { start, layout };
        memory.advise_huge_pages();
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

    /// All bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: allocated with this size and initialized by `new`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }

    /// A matrix takes hundreds of 4 KiB pages a millisecond to stream; huge pages save most of the walks.
    fn advise_huge_pages(&self) {
        #[cfg(target_os = "linux")]
        if self.layout.align() == HUGE_PAGE {
            // SAFETY: the range is this allocation's, and the advice does not change its contents. It may be
            // refused, which costs only speed.
            unsafe { libc::madvise(self.start.as_ptr().cast(), self.layout.size(), libc::MADV_HUGEPAGE) };
        }
    }
}

impl Drop for PanelMemory {
    fn drop(&mut self) {
        // SAFETY: allocated by `alloc` with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
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

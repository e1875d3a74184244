//! The KV pages as numbers: who holds how many references, which are free, which are kept for reuse.
//!
//! Invariant: every page is in exactly one state: *free* (no reference, no content worth keeping), *used*
//! (referenced by at least one page table) or *cached* (no reference, but its content is in the prefix
//! index). Cached pages are given up, oldest first, when no free page is left.

use crate::prefix::PrefixIndex;

/// Reference-counted pages `0..n_pages`.
#[derive(Debug)]
pub(crate) struct PagePool {
    n_pages: u32,
    /// References per page; grown as pages are first used, so a large pool costs nothing up front.
    refs: Vec<u32>,
    /// Pages given back, besides those never used (`refs.len()..n_pages`).
    free: Vec<u32>,
    /// What the full pages hold; `None` with the prefix cache off.
    pub(crate) prefix: Option<PrefixIndex>,
}

impl PagePool {
    pub(crate) fn new(n_pages: u32, prefix_cache: bool) -> Self {
        let prefix = prefix_cache.then(|| PrefixIndex::new(n_pages as usize));
        Self { n_pages, refs: Vec::new(), free: Vec::new(), prefix }
    }

    pub(crate) fn n_pages(&self) -> usize {
        self.n_pages as usize
    }

    pub(crate) fn n_free(&self) -> usize {
        self.free.len() + (self.n_pages as usize - self.refs.len())
    }

    /// Pages without a reference whose content is kept.
    pub(crate) fn n_cached(&self) -> usize {
        self.prefix.as_ref().map_or(0, PrefixIndex::n_idle)
    }

    /// Pages that `alloc` can still give.
    pub(crate) fn n_available(&self) -> usize {
        self.n_free() + self.n_cached()
    }

    pub(crate) fn refs(&self, page: u32) -> u32 {
        self.refs.get(page as usize).copied().unwrap_or(0)
    }

    /// Whether the page's content is in the prefix index (and must not be written).
    pub(crate) fn is_indexed(&self, page: u32) -> bool {
        self.prefix.as_ref().is_some_and(|prefix| prefix.contains(page))
    }

    /// A page with one reference and no content: a free one, else the least recently used cached leaf.
    pub(crate) fn alloc(&mut self) -> Option<u32> {
        let page = if let Some(page) = self.free.pop() {
            page
        } else if self.refs.len() < self.n_pages as usize {
            self.refs.push(0);
            self.refs.len() as u32 - 1
        } else {
            self.prefix.as_mut()?.evict()?
        };
        assert_eq!(self.refs[page as usize], 0, "page {page} was given out while in use");
        self.refs[page as usize] = 1;
        Some(page)
    }

    /// One more reference to a used or cached page.
    pub(crate) fn retain(&mut self, page: u32) {
        let refs = &mut self.refs[page as usize];
        if *refs == 0 {
            let prefix = self.prefix.as_mut().expect("only the prefix index keeps pages without references");
            prefix.set_busy(page);
        }
        *refs += 1;
    }

    /// One reference less; the last one makes the page cached, or free if its content is not indexed.
    pub(crate) fn release(&mut self, page: u32) {
        let refs = &mut self.refs[page as usize];
        assert!(*refs > 0, "page {page} was released more often than held");
        *refs -= 1;
        if *refs > 0 {
            return;
        }
        match self.prefix.as_mut() {
            Some(prefix) if prefix.contains(page) => prefix.set_idle(page),
            _ => self.free.push(page),
        }
    }

    /// Releases a page table from its end, so that of a prefix the far end is evicted first.
    pub(crate) fn release_table(&mut self, pages: &[u32]) {
        for &page in pages.iter().rev() {
            self.release(page);
        }
    }

    /// Asserts that the counts equal `held` (references per page, counted from the page tables) and that
    /// each page is in exactly one state.
    pub(crate) fn check_integrity(&self, held: &[u32]) {
        assert_eq!(held.len(), self.n_pages as usize);
        let mut free = vec![false; held.len()];
        for (index, slot) in free.iter_mut().enumerate() {
            *slot = index >= self.refs.len();
        }
        for &page in &self.free {
            assert!(!free[page as usize], "page {page} is twice in the free list");
            free[page as usize] = true;
        }
        let mut n_cached = 0;
        for (index, &held) in held.iter().enumerate() {
            let page = index as u32;
            let indexed = self.is_indexed(page);
            assert_eq!(self.refs(page), held, "page {page}: references counted and held differ");
            let cached = held == 0 && indexed;
            n_cached += usize::from(cached);
            assert!(!(free[index] && indexed), "page {page} is free and indexed");
            let states = u32::from(free[index]) + u32::from(held > 0) + u32::from(cached);
            assert_eq!(states, 1, "page {page} leaked, or is in two states");
        }
        assert_eq!(n_cached, self.n_cached(), "cached pages are miscounted");
        if let Some(prefix) = &self.prefix {
            prefix.check_integrity(|page| self.refs(page) > 0);
        }
    }
}

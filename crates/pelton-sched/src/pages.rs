//! Pages that come from elsewhere, and pages that go there: what a cache on disk needs to know of the prefix index.
//!
//! Invariant: a page is imported only behind pages that are in the index with exactly the tokens given, so it can
//! never be found by a sequence with another history.

use crate::prefix::{Parent, chain_next, chain_root};
use crate::scheduler::Scheduler;
use std::sync::Arc;

/// A page that entered the prefix index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexedPage {
    /// The page.
    pub page: u32,
    /// The page before it; none for the first page of a sequence. It is in the index, too.
    pub parent: Option<u32>,
    /// The salt of its sequences.
    pub salt: u64,
    /// Its tokens, a page full.
    pub tokens: Arc<[u32]>,
}

impl Scheduler {
    /// From now on keeps a list of the pages that enter the prefix index, for
    /// [`take_indexed`](Self::take_indexed); take it after every commit.
    pub fn report_indexed(&mut self) {
        self.indexed.get_or_insert_default();
    }

    /// The pages that entered the prefix index since the last call, parents first.
    pub fn take_indexed(&mut self) -> Vec<IndexedPage> {
        self.indexed.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Whether a page's content is in the prefix index: then it is not written until it is evicted.
    pub fn is_indexed(&self, page: u32) -> bool {
        self.pool.is_indexed(page)
    }

    /// How many full pages at the beginning of `tokens` the prefix index has.
    pub fn n_indexed(&self, salt: u64, tokens: &[u32]) -> usize {
        self.walk(salt, tokens).count()
    }

    /// A page for content that the caller has from elsewhere: that of the last `page_len` of `tokens`, behind those
    /// before them. It is in the index at once, so the caller writes it before the next plan's rows run. `None`
    /// where a page before it is missing, it is there already, or no page can be had (and with the prefix cache
    /// off). The pool gives up its oldest cached page for it where none is free.
    ///
    /// # Panics
    /// If `tokens` are not full pages, at least one.
    pub fn import_page(&mut self, salt: u64, tokens: &[u32]) -> Option<u32> {
        let page_len = self.limits.page_len;
        assert!(
            !tokens.is_empty() && tokens.len().is_multiple_of(page_len),
            "{} tokens are not full pages",
            tokens.len()
        );
        self.pool.prefix.as_ref()?;
        let pages: Vec<u32> = self.walk(salt, tokens).collect();
        let n_before = tokens.len() / page_len - 1;
        if pages.len() != n_before {
            return None;
        }
        // Held, so that the page to be given up is not one of them; a used page's parent is used.
        pages.iter().for_each(|&page| self.pool.retain(page));
        let page = self.pool.alloc();
        if let Some(page) = page {
            let parent = pages.last().map_or(Parent::Root(salt), |&parent| Parent::Page(parent));
            let chain = tokens.chunks(page_len).fold(chain_root(salt), chain_next);
            let prefix = self.pool.prefix.as_mut().expect("checked above");
            prefix.insert(parent, chain, &tokens[n_before * page_len..], page);
            self.pool.release(page);
        }
        self.pool.release_table(&pages);
        page
    }

    /// The indexed pages that hold the beginning of `tokens`.
    fn walk<'a>(&'a self, salt: u64, tokens: &'a [u32]) -> impl Iterator<Item = u32> + 'a {
        let mut parent = Parent::Root(salt);
        tokens.chunks_exact(self.limits.page_len).map_while(move |tokens| {
            let page = self.pool.prefix.as_ref()?.find(parent, tokens)?;
            parent = Parent::Page(page);
            Some(page)
        })
    }
}

//! The prefix index: which full page holds which tokens after which other page.
//!
//! A page's keys and values depend on all tokens before it, so a page is known by its *chain*: its parent
//! page (or the salt, at the start) and its own tokens. The index is keyed by exactly that, not by a hash
//! of it, so no collision can share a page wrongly. The chain hash of the field (parent's hash, tokens,
//! salt) is kept beside it, as the short name of a page that outlives its eviction.
//!
//! Invariant: the parent of an indexed page is indexed, and the parent of a used page is used. Pages
//! without users are therefore whole subtrees, and giving them up leaf first keeps every chain usable.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

/// Why no more of a prompt came from the prefix cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheMiss {
    /// The prompt does not fill a page and one token more: only full pages are kept.
    TooShort,
    /// Nothing that continues the cached part (or begins like this prompt) is cached.
    NeverSeen,
    /// The next page was cached once and was given up for want of pages.
    Evicted,
    /// What is cached has another token at position `at` of the prompt.
    Diverged {
        /// First position that differs, from 0.
        at: usize,
        /// What is cached from there to the end of the page.
        cached: Vec<u32>,
    },
}

/// What a page follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Parent {
    /// The start of a sequence with this salt.
    Root(u64),
    /// An indexed page.
    Page(u32),
}

impl Parent {
    /// The page, where it is one.
    pub(crate) fn page(self) -> Option<u32> {
        match self {
            Parent::Root(_) => None,
            Parent::Page(page) => Some(page),
        }
    }
}

#[derive(Debug)]
struct Node {
    parent: Parent,
    /// The page's tokens, `page_len` of them.
    tokens: Arc<[u32]>,
    chain: u64,
    /// When it lost its last user, in the index's own count; `None` while used.
    idle_since: Option<u64>,
}

/// The tree of indexed pages.
#[derive(Debug)]
pub(crate) struct PrefixIndex {
    nodes: BTreeMap<u32, Node>,
    children: BTreeMap<Parent, BTreeMap<Arc<[u32]>, u32>>,
    /// Idle pages without children, oldest first: the ones that can be given up.
    leaves: BTreeSet<(u64, u32)>,
    n_idle: usize,
    clock: u64,
    n_evicted: u64,
    /// Chain hashes of the last evicted pages, to tell `Evicted` from `NeverSeen`.
    ghosts: BTreeSet<u64>,
    ghost_order: VecDeque<u64>,
    max_ghosts: usize,
}

/// The chain hash at the start of a sequence.
pub(crate) fn chain_root(salt: u64) -> u64 {
    mix(salt ^ 0x5045_4c54_4f4e_0001)
}

/// The chain hash after one more page.
pub(crate) fn chain_next(chain: u64, tokens: &[u32]) -> u64 {
    tokens.iter().fold(chain, |hash, &token| mix(hash ^ u64::from(token)))
}

/// The output function of SplitMix64 (Steele, Lea, Flood, 2014), with its increment.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl PrefixIndex {
    pub(crate) fn new(max_ghosts: usize) -> Self {
        Self {
            nodes: BTreeMap::new(),
            children: BTreeMap::new(),
            leaves: BTreeSet::new(),
            n_idle: 0,
            clock: 0,
            n_evicted: 0,
            ghosts: BTreeSet::new(),
            ghost_order: VecDeque::new(),
            max_ghosts,
        }
    }

    pub(crate) fn n_idle(&self) -> usize {
        self.n_idle
    }

    pub(crate) fn n_evicted(&self) -> u64 {
        self.n_evicted
    }

    pub(crate) fn contains(&self, page: u32) -> bool {
        self.nodes.contains_key(&page)
    }

    /// The page that holds `tokens` after `parent`.
    pub(crate) fn find(&self, parent: Parent, tokens: &[u32]) -> Option<u32> {
        self.children.get(&parent)?.get(tokens).copied()
    }

    /// Enters a used page whose chain is not yet there; gives its tokens.
    pub(crate) fn insert(&mut self, parent: Parent, chain: u64, tokens: &[u32], page: u32) -> Arc<[u32]> {
        if let Parent::Page(parent) = parent {
            let node = self.nodes.get(&parent).expect("the parent of an indexed page is indexed");
            assert!(node.idle_since.is_none(), "the parent of a used page is used");
        }
        let tokens: Arc<[u32]> = tokens.into();
        let sibling = self.children.entry(parent).or_default().insert(Arc::clone(&tokens), page);
        assert!(sibling.is_none(), "a chain is entered once");
        let node = Node { parent, tokens: Arc::clone(&tokens), chain, idle_since: None };
        assert!(self.nodes.insert(page, node).is_none(), "page {page} is indexed twice");
        tokens
    }

    /// The page lost its last user.
    pub(crate) fn set_idle(&mut self, page: u32) {
        self.clock += 1;
        let node = self.nodes.get_mut(&page).expect("an idle page is indexed");
        node.idle_since = Some(self.clock);
        self.n_idle += 1;
        if !self.children.contains_key(&Parent::Page(page)) {
            self.leaves.insert((self.clock, page));
        }
    }

    /// The page has a user again.
    pub(crate) fn set_busy(&mut self, page: u32) {
        let node = self.nodes.get_mut(&page).expect("a cached page is indexed");
        let since = node.idle_since.take().expect("a cached page is idle");
        self.n_idle -= 1;
        self.leaves.remove(&(since, page));
    }

    /// Forgets the leaf that has been idle longest and gives its page.
    pub(crate) fn evict(&mut self) -> Option<u32> {
        let (_, page) = self.leaves.pop_first()?;
        let node = self.nodes.remove(&page).expect("a leaf is indexed");
        let siblings = self.children.get_mut(&node.parent).expect("a child is listed");
        siblings.remove(&node.tokens);
        if siblings.is_empty() {
            self.children.remove(&node.parent);
            if let Parent::Page(parent) = node.parent
                && let Some(since) = self.nodes[&parent].idle_since
            {
                self.leaves.insert((since, parent));
            }
        }
        self.n_idle -= 1;
        self.n_evicted += 1;
        self.remember(node.chain);
        Some(page)
    }

    fn remember(&mut self, chain: u64) {
        if self.ghosts.insert(chain) {
            self.ghost_order.push_back(chain);
        }
        if self.ghost_order.len() > self.max_ghosts
            && let Some(oldest) = self.ghost_order.pop_front()
        {
            self.ghosts.remove(&oldest);
        }
    }

    /// Why `tokens` (one page, beginning at position `start`) are not found after `parent`. `chain` is the
    /// chain hash up to `start`.
    pub(crate) fn explain(&self, parent: Parent, chain: u64, tokens: &[u32], start: usize) -> CacheMiss {
        if self.ghosts.contains(&chain_next(chain, tokens)) {
            return CacheMiss::Evicted;
        }
        let Some(siblings) = self.children.get(&parent) else { return CacheMiss::NeverSeen };
        // In lexicographic order the longest common beginning is with a neighbour.
        let before = siblings.range::<[u32], _>((Bound::Unbounded, Bound::Excluded(tokens))).next_back();
        let after = siblings.range::<[u32], _>((Bound::Excluded(tokens), Bound::Unbounded)).next();
        let common = |other: &[u32]| other.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let longest = before.into_iter().chain(after).map(|(other, _)| (common(other), other)).max_by_key(|c| c.0);
        longest.map_or(CacheMiss::NeverSeen, |(len, other)| CacheMiss::Diverged {
            at: start + len,
            cached: other[len..].to_vec(),
        })
    }

    /// Asserts the tree's invariants; `is_used` tells whether a page has references.
    pub(crate) fn check_integrity(&self, is_used: impl Fn(u32) -> bool) {
        let mut n_idle = 0;
        let mut n_leaves = 0;
        for (&page, node) in &self.nodes {
            assert_eq!(node.idle_since.is_none(), is_used(page), "page {page}: idle and used disagree");
            assert_eq!(self.find(node.parent, &node.tokens), Some(page), "page {page} is not found by its chain");
            let parent_chain = match node.parent {
                Parent::Root(salt) => chain_root(salt),
                Parent::Page(parent) => {
                    assert!(self.contains(parent), "page {page}: its parent was evicted first");
                    assert!(!is_used(page) || is_used(parent), "page {page} is used, its parent is not");
                    self.nodes[&parent].chain
                }
            };
            assert_eq!(chain_next(parent_chain, &node.tokens), node.chain, "page {page}: wrong chain hash");
            if let Some(since) = node.idle_since {
                n_idle += 1;
                let is_leaf = !self.children.contains_key(&Parent::Page(page));
                assert_eq!(self.leaves.contains(&(since, page)), is_leaf, "page {page}: wrongly (not) a leaf");
                n_leaves += usize::from(is_leaf);
            }
        }
        assert_eq!((n_idle, n_leaves), (self.n_idle, self.leaves.len()), "idle pages or leaves are miscounted");
        let n_children: usize = self.children.values().map(BTreeMap::len).sum();
        assert_eq!(n_children, self.nodes.len(), "a child is listed without a page");
        assert!(self.children.values().all(|siblings| !siblings.is_empty()), "an empty list of children is kept");
        assert_eq!(self.ghosts.len(), self.ghost_order.len(), "ghosts are miscounted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index_of(chains: &[(Parent, [u32; 2], u32)]) -> PrefixIndex {
        let mut index = PrefixIndex::new(4);
        for &(parent, tokens, page) in chains {
            let chain = match parent {
                Parent::Root(salt) => chain_root(salt),
                Parent::Page(page) => index.nodes[&page].chain,
            };
            index.insert(parent, chain_next(chain, &tokens), &tokens, page);
        }
        index
    }

    #[test]
    fn a_page_is_found_only_under_its_own_parent_and_salt() {
        let index = index_of(&[(Parent::Root(7), [1, 2], 0), (Parent::Page(0), [3, 4], 1)]);
        assert_eq!(index.find(Parent::Root(7), &[1, 2]), Some(0));
        assert_eq!(index.find(Parent::Root(8), &[1, 2]), None);
        assert_eq!(index.find(Parent::Page(0), &[3, 4]), Some(1));
        assert_eq!(index.find(Parent::Root(7), &[3, 4]), None);
    }

    #[test]
    fn eviction_takes_the_oldest_leaf_and_never_a_parent_before_its_child() {
        let mut index = index_of(&[
            (Parent::Root(0), [1, 2], 0),
            (Parent::Page(0), [3, 4], 1),
            (Parent::Page(0), [5, 6], 2),
            (Parent::Root(0), [9, 9], 3),
        ]);
        // The parent goes idle before its children and the stranger: it must still go after the children.
        for page in [2, 1, 0, 3] {
            index.set_idle(page);
        }
        index.check_integrity(|_| false);
        let order: Vec<u32> = std::iter::from_fn(|| index.evict()).collect();
        assert_eq!(order, [2, 1, 0, 3]);
        assert_eq!((index.n_idle(), index.n_evicted()), (0, 4));
    }

    #[test]
    fn a_miss_says_why() {
        let mut index =
            index_of(&[(Parent::Root(0), [1, 2], 0), (Parent::Root(0), [1, 9], 1), (Parent::Root(0), [4, 4], 2)]);
        let root = chain_root(0);
        assert_eq!(index.explain(Parent::Root(1), chain_root(1), &[1, 2], 0), CacheMiss::NeverSeen);
        let diverged = |at, cached: &[u32]| CacheMiss::Diverged { at, cached: cached.to_vec() };
        assert_eq!(index.explain(Parent::Root(0), root, &[1, 5], 0), diverged(1, &[9]));
        assert_eq!(index.explain(Parent::Root(0), root, &[7, 2], 10), diverged(10, &[4, 4]));
        index.set_idle(0);
        assert_eq!(index.evict(), Some(0));
        assert_eq!(index.explain(Parent::Root(0), root, &[1, 2], 0), CacheMiss::Evicted);
    }
}

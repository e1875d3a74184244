//! What a draft model's keys and values hold: its pool mirrors the target's, page for page.
//!
//! A draft model has no page tables of its own. It writes where the target's sequence has its pages, in a pool of its
//! own of as many pages, and remembers for each slot the hash of the text up to there. So it sees by itself what of a
//! sequence it has already, whatever became of the pages meanwhile: shared prefixes count for all who share them, and
//! preemption, copies, pages from disk and rejected drafts just leave slots whose hash is another.
//!
//! Invariant: a slot counts as filled only if the text up to it is the one it was filled with (hashes of 64 bits; a
//! collision would make a bad draft, not a wrong answer).

use pelton_backend::PAGE_LEN;

/// The hash of each slot of a pool.
#[derive(Clone, Debug)]
pub(crate) struct Mirror {
    /// `(n_pages, PAGE_LEN)`; 0 is an empty slot.
    slots: Vec<u64>,
}

/// The hash of a text, from that of the text before its last token.
pub(crate) fn next_hash(before: u64, token: u32) -> u64 {
    let x = (before ^ u64::from(token)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    (x ^ (x >> 31)).wrapping_add(0x9e37_79b9_7f4a_7c15) | 1
}

impl Mirror {
    pub(crate) fn new(n_pages: usize) -> Mirror {
        Mirror { slots: vec![0; n_pages * PAGE_LEN] }
    }

    fn slot(&self, pages: &[u32], at: usize) -> usize {
        pages[at / PAGE_LEN] as usize * PAGE_LEN + at % PAGE_LEN
    }

    /// How many leading tokens of a text its pages hold, and the hash of these. `pages` may end before the text does.
    pub(crate) fn filled(&self, pages: &[u32], text: &[u32]) -> (usize, u64) {
        let mut hash = 0;
        let backed = text.len().min(pages.len() * PAGE_LEN);
        for (at, &token) in text[..backed].iter().enumerate() {
            let next = next_hash(hash, token);
            if self.slots[self.slot(pages, at)] != next {
                return (at, hash);
            }
            hash = next;
        }
        (backed, hash)
    }

    /// Takes note of tokens that were written from position `start` on, behind a text of `hash`; gives the hash of all.
    pub(crate) fn fill(&mut self, pages: &[u32], start: usize, hash: u64, tokens: &[u32]) -> u64 {
        let mut hash = hash;
        for (offset, &token) in tokens.iter().enumerate() {
            hash = next_hash(hash, token);
            let slot = self.slot(pages, start + offset);
            self.slots[slot] = hash;
        }
        hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_found_as_far_as_it_is_the_same() {
        let mut mirror = Mirror::new(4);
        let text: Vec<u32> = (0..40).collect();
        assert_eq!(mirror.filled(&[2, 0], &text), (0, 0));
        let hash = mirror.fill(&[2, 0], 0, 0, &text);
        assert_eq!(mirror.filled(&[2, 0], &text), (40, hash));
        assert_eq!(mirror.filled(&[2], &text).0, 32, "a shorter table");
        let other: Vec<u32> = text[..35].iter().copied().chain([99, 36]).collect();
        assert_eq!(mirror.filled(&[2, 0], &other).0, 35, "another text from there on");
        assert_eq!(mirror.filled(&[2, 1], &text).0, 32, "another page");
        // Somebody else takes the first page, then it comes back: its later slots do not count.
        mirror.fill(&[2], 0, 0, &[7, 8]);
        assert_eq!(mirror.filled(&[2, 0], &text).0, 0);
    }
}

//! Prompt lookup: the text so far as its own draft.
//!
//! The last few tokens are looked up in what came before (prompt and answer); what followed them there is proposed.
//! Strong where answers repeat: edits of code, summaries, retrieved passages. (Saxena, "Prompt lookup decoding", 2023.)
//!
//! ```text
//! heads[hash of n tokens] ─▶ the last place they ended ─▶ chain[place] ─▶ the place before ─▶ …
//! ```
//!
//! These are the hash chains of LZ77 compressors: a place costs four bytes, a token one step of the index. Invariant:
//! memory is in proportion to the text; hashes only ever propose places, and the tokens there are compared.

use std::collections::HashMap;

use pelton_backend::Backend;
use pelton_sched::SeqId;

use super::{Asks, Drafter, MAX_DRAFT, Offer};

/// Tokens that places are found by: first the longer, which misses nothing among many shorter ones.
const LENGTHS: [usize; 2] = [5, 2];

/// Places of a chain that are compared.
const MAX_TRIES: usize = 24;

/// Matches longer than this are all alike.
const LONGEST: usize = 32;

/// No place.
const NONE: u32 = u32::MAX;

/// Where runs of `n` tokens ended.
#[derive(Clone, Debug)]
struct Chains {
    n: usize,
    /// By hash: the last end; a power of two of them.
    heads: Vec<u32>,
    /// By end: the one before with the same hash.
    before: Vec<u32>,
}

impl Chains {
    fn new(n: usize) -> Chains {
        Chains { n, heads: Vec::new(), before: Vec::new() }
    }

    fn slot(&self, run: &[u32]) -> usize {
        let hash = run
            .iter()
            .fold(0u64, |hash, &token| (hash ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29));
        (hash.wrapping_mul(0xd6e8_feb8_6659_fd93) >> 32) as usize & (self.heads.len() - 1)
    }

    /// Enters all ends up to `text.len()`.
    fn extend(&mut self, text: &[u32]) {
        let wanted = text.len().next_power_of_two().max(256);
        if wanted > self.heads.len() {
            // Twice the text, so that it is seldom made anew.
            self.heads = vec![NONE; wanted * 2];
            self.before.clear();
        }
        while self.before.len() < text.len() {
            let end = self.before.len() + 1;
            let link = match end.checked_sub(self.n) {
                Some(start) => {
                    let slot = self.slot(&text[start..end]);
                    std::mem::replace(&mut self.heads[slot], end as u32)
                }
                None => NONE,
            };
            self.before.push(link);
        }
    }

    /// The place whose tokens before it agree longest with the end of the text, and how many do. Of equals the latest.
    fn longest(&self, text: &[u32]) -> Option<(usize, usize)> {
        let mut end = self.before.last().copied().filter(|_| text.len() > self.n)?;
        let mut best = None;
        for _ in 0..MAX_TRIES {
            if end == NONE {
                break;
            }
            let place = end as usize;
            let pairs = text[..place].iter().rev().zip(text.iter().rev());
            let len = pairs.take(LONGEST).take_while(|(a, b)| a == b).count();
            if len >= self.n && best.is_none_or(|(_, longest)| len > longest) {
                best = Some((place, len));
                if len == LONGEST {
                    break;
                }
            }
            end = self.before[place - 1];
        }
        best
    }
}

/// The index of one sequence's text.
#[derive(Clone, Debug)]
struct Index {
    chains: [Chains; LENGTHS.len()],
    /// The place found last, and how long the match was.
    found: Option<(usize, usize)>,
}

impl Index {
    fn new() -> Index {
        Index { chains: LENGTHS.map(Chains::new), found: None }
    }

    fn look_up(&mut self, text: &[u32]) -> Option<(usize, usize)> {
        self.chains.iter_mut().for_each(|chains| chains.extend(text));
        self.found = self.chains.iter().find_map(|chains| chains.longest(text));
        self.found
    }
}

/// Drafts from the text itself.
#[derive(Clone, Debug, Default)]
pub struct Ngrams {
    indexes: HashMap<SeqId, Index>,
}

impl Ngrams {
    /// Without any text yet.
    pub fn new() -> Ngrams {
        Ngrams::default()
    }
}

/// How sure a match of `len` tokens is.
fn class_of(len: usize) -> u8 {
    const EDGES: [usize; 7] = [3, 4, 6, 8, 12, 16, 24];
    EDGES.iter().filter(|&&edge| len >= edge).count() as u8
}

impl<B: Backend> Drafter<B> for Ngrams {
    fn name(&self) -> &str {
        "n-grams"
    }

    fn model_bytes(&self) -> Option<usize> {
        None
    }

    fn offer(&mut self, seq: SeqId, text: &[u32], _pages: &[u32]) -> Offer {
        let index = self.indexes.entry(seq).or_insert_with(Index::new);
        match index.look_up(text) {
            Some((_, len)) => Offer { len: MAX_DRAFT, class: Some(class_of(len)), behind: 0 },
            None => Offer::default(),
        }
    }

    fn draft(&mut self, _backend: &mut B, asks: &mut Asks<'_>) {
        for ask in 0..asks.len() {
            let found = self.indexes.get(&asks.seq(ask)).and_then(|index| index.found);
            let Some((place, len)) = found else { continue };
            let mut at = place;
            // Where the match runs into the end of the text, the drafts go on after themselves: a period.
            while let Some(&token) = asks.text(ask).get(at) {
                if !asks.push(ask, token, class_of(len + at - place)) {
                    break;
                }
                at += 1;
            }
        }
    }

    fn forget(&mut self, seq: SeqId) {
        self.indexes.remove(&seq);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a plain search finds: the longest match, of equals the latest.
    fn naive(text: &[u32], least: usize) -> Option<usize> {
        let len_at = |place: usize| {
            let pairs = text[..place].iter().rev().zip(text.iter().rev());
            pairs.take(LONGEST).take_while(|(a, b)| a == b).count()
        };
        let best = (1..text.len()).map(len_at).max()?;
        (best >= least).then_some(best)
    }

    #[test]
    fn the_longest_match_is_found_however_the_text_grows() {
        let mut state = 7u64;
        let mut text = Vec::new();
        let mut index = Index::new();
        let mut matches = 0;
        for _ in 0..1500 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Few tokens, so that runs repeat; not so few that chains are longer than is searched.
            text.push((state % 23) as u32);
            let found = index.look_up(&text);
            if let Some((place, len)) = found {
                assert_eq!(text[place - len..place], text[text.len() - len..]);
                matches += 1;
            }
            assert_eq!(found.map(|(_, len)| len), naive(&text, LENGTHS[1]));
        }
        assert!(matches > 900, "{matches}");
    }

    #[test]
    fn memory_follows_the_text() {
        let mut index = Index::new();
        let text: Vec<u32> = (0..100_000).collect();
        assert_eq!(index.look_up(&text), None);
        let entries: usize = index.chains.iter().map(|chains| chains.heads.len() + chains.before.len()).sum();
        assert!(entries <= 10 * text.len(), "{entries}");
    }

    #[test]
    fn a_place_in_a_chain_of_thousands_is_searched_for_a_bounded_time() {
        let mut index = Index::new();
        let text = vec![5; 50_000];
        // Of a text that says one thing, the place just before is as good as any.
        assert_eq!(index.look_up(&text), Some((49_999, LONGEST)));
    }
}

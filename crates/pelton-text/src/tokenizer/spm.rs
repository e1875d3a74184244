//! SentencePiece BPE as GGUF's `llama` vocabularies hold it: merges by score, no merge list.
//!
//! ```text
//! symbols = the characters of the text, spaces written ▁
//! while two neighbours form a token: merge the pair with the highest score, the leftmost of equals
//! each symbol that is no token: its bytes as <0xAB> tokens
//! ```
//!
//! Source: T. Kudo and J. Richardson, "SentencePiece" (2018), and the reference ids of llama.cpp.
//! Invariant: control and byte tokens are never made from text.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

/// Pieces with their scores, and the byte tokens.
#[derive(Debug)]
pub(super) struct Spm {
    /// Text, in SentencePiece's spelling, to id and score.
    pub(super) pieces: HashMap<String, (u32, f32)>,
    /// Ids of `<0x00>` to `<0xFF>`, where the vocabulary has them.
    pub(super) byte_ids: Vec<Option<u32>>,
    /// What stands for text without a token, if there is no byte token either.
    pub(super) unk: Option<u32>,
    /// Bytes of the longest piece.
    pub(super) longest: usize,
}

/// A run of characters: bytes `start..start + len` of the text; merged away when `len` is 0.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    start: usize,
    len: usize,
    prev: Option<usize>,
    next: Option<usize>,
}

/// Two neighbours that form a token.
#[derive(Debug, Clone, Copy)]
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of both when the pair was found: the pair is stale if they grew since.
    len: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_score = self.score.total_cmp(&other.score);
        by_score.then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

impl Spm {
    /// Appends the ids of `text`, in which spaces are already written `▁`.
    pub(super) fn encode(&self, text: &str, out: &mut Vec<u32>) {
        let mut symbols = characters(text);
        let mut queue = BinaryHeap::new();
        for left in 0..symbols.len() {
            self.push_pair(text, &symbols, Some(left), &mut queue);
        }
        while let Some(pair) = queue.pop() {
            let (left, right) = (symbols[pair.left], symbols[pair.right]);
            if left.len == 0 || right.len == 0 || left.len + right.len != pair.len {
                continue;
            }
            symbols[pair.left].len = pair.len;
            symbols[pair.left].next = right.next;
            symbols[pair.right].len = 0;
            if let Some(after) = right.next {
                symbols[after].prev = Some(pair.left);
            }
            self.push_pair(text, &symbols, left.prev, &mut queue);
            self.push_pair(text, &symbols, Some(pair.left), &mut queue);
        }
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            self.emit(&text[symbol.start..symbol.start + symbol.len], out);
        }
    }

    /// Queues the pair that begins at `left`, if it forms a token.
    fn push_pair(&self, text: &str, symbols: &[Symbol], left: Option<usize>, queue: &mut BinaryHeap<Pair>) {
        let Some(left) = left else { return };
        let Some(right) = symbols[left].next else {
            return;
        };
        let len = symbols[left].len + symbols[right].len;
        if len > self.longest {
            return;
        }
        let start = symbols[left].start;
        if let Some(&(_, score)) = self.pieces.get(&text[start..start + len]) {
            queue.push(Pair { score, left, right, len });
        }
    }

    fn emit(&self, piece: &str, out: &mut Vec<u32>) {
        if let Some(&(id, _)) = self.pieces.get(piece) {
            out.push(id);
            return;
        }
        let bytes: Option<Vec<u32>> = piece.bytes().map(|b| self.byte_ids[usize::from(b)]).collect();
        match bytes {
            Some(ids) => out.extend(ids),
            None => out.extend(self.unk),
        }
    }
}

fn characters(text: &str) -> Vec<Symbol> {
    let mut symbols: Vec<Symbol> = text
        .char_indices()
        .enumerate()
        .map(|(index, (start, ch))| Symbol {
            start,
            len: ch.len_utf8(),
            prev: index.checked_sub(1),
            next: Some(index + 1),
        })
        .collect();
    if let Some(last) = symbols.last_mut() {
        last.next = None;
    }
    symbols
}

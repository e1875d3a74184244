//! The ragged batch: rows of many sequences, side by side, as plain arrays.
//!
//! Prefill chunks, decode rows and speculative verification are the same thing here: a [`Span`] of consecutive
//! rows of one sequence whose earlier tokens are in KV pages. Invariants, checked by [`BatchBuilder::push`]: a
//! span's page table covers its last position, spans follow one another without gaps, and every logit row exists.

use crate::PAGE_LEN;

/// The rows of one sequence in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First row.
    pub row: usize,
    /// Number of rows, at least 1.
    pub len: usize,
    /// Position of the first row: tokens of this sequence that are already in KV.
    pub cached_len: usize,
    /// Where this sequence's page table begins in [`Batch::pages`].
    pub page_start: usize,
    /// Entries of its page table.
    pub n_pages: usize,
}

impl Span {
    /// Tokens in KV once this step is stored.
    pub fn context_len(&self) -> usize {
        self.cached_len + self.len
    }
}

/// One step's work. Build it with a [`BatchBuilder`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// `(rows,)` token ids.
    pub ids: Vec<u32>,
    /// `(rows,)` position of each token in its sequence.
    pub positions: Vec<u32>,
    /// The sequences, in row order.
    pub spans: Vec<Span>,
    /// Page tables of all spans, one after another.
    pub pages: Vec<u32>,
    /// Rows whose logits are wanted, ascending.
    pub logit_rows: Vec<u32>,
}

impl Batch {
    /// Rows in the batch.
    pub fn rows(&self) -> usize {
        self.ids.len()
    }

    /// The page table of a span.
    pub fn page_table(&self, span: &Span) -> &[u32] {
        &self.pages[span.page_start..span.page_start + span.n_pages]
    }
}

/// Why a span was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// A span without tokens.
    #[error("a span of a batch needs at least one token")]
    Empty,
    /// The page table is too short for the span's last position.
    #[error("{tokens} tokens need {need} pages, the page table has {have}")]
    Pages {
        /// Tokens in KV after the step.
        tokens: usize,
        /// Pages that they need.
        need: usize,
        /// Pages given.
        have: usize,
    },
    /// A page number outside the pool.
    #[error("page {page} is outside the pool of {n_pages}")]
    Page {
        /// The number.
        page: u32,
        /// Pages in the pool.
        n_pages: usize,
    },
}

/// Builds a [`Batch`] span by span.
#[derive(Debug)]
pub struct BatchBuilder {
    batch: Batch,
    n_pages: usize,
}

impl BatchBuilder {
    /// A builder for a pool of `n_pages` pages.
    pub fn new(n_pages: usize) -> BatchBuilder {
        BatchBuilder { batch: Batch::default(), n_pages }
    }

    /// Adds a sequence's rows: `ids` at positions `cached_len..`, of which the last `n_logits` need logits.
    ///
    /// # Errors
    /// [`BatchError`] where the span is empty or its page table does not cover it.
    pub fn push(&mut self, ids: &[u32], cached_len: usize, pages: &[u32], n_logits: usize) -> Result<(), BatchError> {
        if ids.is_empty() {
            return Err(BatchError::Empty);
        }
        let tokens = cached_len + ids.len();
        let need = tokens.div_ceil(PAGE_LEN);
        if pages.len() < need {
            return Err(BatchError::Pages { tokens, need, have: pages.len() });
        }
        if let Some(&page) = pages[..need].iter().find(|&&p| p as usize >= self.n_pages) {
            return Err(BatchError::Page { page, n_pages: self.n_pages });
        }
        let b = &mut self.batch;
        let row = b.ids.len();
        let span = Span { row, len: ids.len(), cached_len, page_start: b.pages.len(), n_pages: need };
        b.spans.push(span);
        b.pages.extend_from_slice(&pages[..need]);
        b.positions.extend((cached_len..tokens).map(|p| p as u32));
        b.ids.extend_from_slice(ids);
        let end = row + ids.len();
        b.logit_rows.extend((end - n_logits.min(ids.len())..end).map(|r| r as u32));
        Ok(())
    }

    /// The finished batch.
    pub fn finish(self) -> Batch {
        self.batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_lie_side_by_side() {
        let mut b = BatchBuilder::new(8);
        b.push(&[5, 6, 7], 30, &[3, 4], 1).unwrap();
        b.push(&[9], 0, &[7], 1).unwrap();
        let b = b.finish();
        assert_eq!(b.positions, [30, 31, 32, 0]);
        assert_eq!(b.logit_rows, [2, 3]);
        assert_eq!(b.page_table(&b.spans[1]), [7]);
        assert_eq!(b.spans[0].context_len(), 33);
    }

    #[test]
    fn short_page_tables_and_foreign_pages_are_refused() {
        let mut b = BatchBuilder::new(8);
        assert_eq!(b.push(&[1], 32, &[0], 1), Err(BatchError::Pages { tokens: 33, need: 2, have: 1 }));
        assert_eq!(b.push(&[1], 0, &[8], 1), Err(BatchError::Page { page: 8, n_pages: 8 }));
        assert_eq!(b.push(&[], 0, &[0], 0), Err(BatchError::Empty));
        assert_eq!(b.finish(), Batch::default());
    }
}

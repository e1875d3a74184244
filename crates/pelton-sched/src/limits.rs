//! What the scheduler may use: pages, rows and sequences. A checked [`Limits`] can always run one
//! sequence of [`Limits::effective_context`] tokens alone, which is why nothing here can deadlock.

use crate::error::LimitsError;

/// The sizes the scheduler works within. All are counts, none is bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens in one KV page.
    pub page_len: usize,
    /// Pages in the pool; page numbers are `0..n_pages`.
    pub n_pages: usize,
    /// Token budget of one step: the sum of the rows' `tokens.len()` never exceeds it.
    pub max_batch_rows: usize,
    /// Sequences that may hold pages at once.
    pub max_seqs: usize,
    /// Longest sequence, prompt and generated tokens together.
    pub max_context: usize,
    /// Longest waiting queue; beyond it `add` refuses.
    pub max_waiting: usize,
    /// Whether full pages are kept and shared between sequences with the same beginning.
    pub prefix_cache: bool,
}

impl Default for Limits {
    /// Pages of 32 tokens, 1024 of them; 512 rows a step; 16 sequences; context 8192; prefix cache on.
    fn default() -> Self {
        Self {
            page_len: 32,
            n_pages: 1024,
            max_batch_rows: 512,
            max_seqs: 16,
            max_context: 8192,
            max_waiting: 4096,
            prefix_cache: true,
        }
    }
}

impl Limits {
    /// The context that one sequence can really have: `max_context`, or the whole pool if that is less.
    pub fn effective_context(&self) -> usize {
        self.max_context.min(self.pool_tokens())
    }

    /// Tokens that the whole pool holds.
    pub fn pool_tokens(&self) -> usize {
        self.n_pages.saturating_mul(self.page_len)
    }

    /// Pages that `n_tokens` tokens occupy.
    pub(crate) fn pages_for(&self, n_tokens: usize) -> usize {
        n_tokens.div_ceil(self.page_len)
    }

    /// Checks every field.
    ///
    /// # Errors
    /// The first field that is zero or too large to count with, and the range it must lie in.
    pub fn validate(&self) -> Result<(), LimitsError> {
        let fields = [
            ("page_len", self.page_len),
            ("n_pages", self.n_pages),
            ("max_batch_rows", self.max_batch_rows),
            ("max_seqs", self.max_seqs),
            ("max_waiting", self.max_waiting),
        ];
        // Page numbers and reference counts are 32 bits wide.
        let max = u32::MAX as usize;
        for (field, value) in fields {
            if value == 0 || value > max {
                return Err(LimitsError { field, value, min: 1, max });
            }
        }
        // One prompt token and one new token are the shortest sequence that does anything.
        let context = [("max_context", self.max_context), ("page_len * n_pages", self.pool_tokens())];
        for (field, value) in context {
            if value < 2 || value > max {
                return Err(LimitsError { field, value, min: 2, max });
            }
        }
        Ok(())
    }
}

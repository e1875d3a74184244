//! Rows that are quantized where they are made: behind a norm, while they are in the first-level cache.
//!
//! A norm does not know which layer will read its rows. So it goes by the last one that read a norm's rows in a step of as
//! many: whether it wanted them quantized, and how laid out ([`Wish`]). A layer recognises rows that it need not quantize
//! by the number of their contents, which the matrix loses with every change
//! ([`Tensor::stamp`](crate::tensor::Tensor::stamp)); where the guess was wrong, it quantizes as without.
//!
//! Invariants: rows quantized here are bit for bit those of [`LinearScratch::quantize`]; a matrix is read by the backend that
//! wrote it, so numbers are one backend's own.

use super::activations::{BlocksTo, LinearScratch};
use super::kernel::Input;
#[cfg(target_arch = "x86_64")]
use super::tiles::activations::RowsTo;
use crate::isa::Isa;

/// What is known of rows that came from a norm.
#[derive(Debug, Default)]
pub(super) struct Normed {
    /// The last number given.
    last: u64,
    /// Whose contents the next call's rows are; 0 where nobody says.
    next: u64,
    /// Whose contents are in `blocks`.
    blocks: u64,
    /// Whose contents are in `tiles`.
    #[cfg(target_arch = "x86_64")]
    tiles: u64,
    wish: Option<Wish>,
}

/// What a layer wanted of `rows` rows of `k` values.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Wish {
    rows: usize,
    k: usize,
    input: Input,
}

/// Where a norm's rows go besides.
pub(crate) struct Beside<'a>(Option<To<'a>>);

enum To<'a> {
    Blocks(BlocksTo<'a>),
    #[cfg(target_arch = "x86_64")]
    Tiles(RowsTo<'a>),
}

impl Beside<'_> {
    /// Whether rows are wanted.
    pub(crate) fn is_wanted(&self) -> bool {
        self.0.is_some()
    }

    /// Takes a row.
    ///
    /// # Safety
    /// Each row is one caller's.
    pub(crate) unsafe fn row(&self, row: usize, x: &[f32]) {
        match &self.0 {
            None => {}
            // SAFETY: the caller's.
            Some(To::Blocks(to)) => unsafe { to.row(row, x) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the caller's; tiles are wished for where their instructions are.
            Some(To::Tiles(to)) => unsafe { to.row(row, x) },
        }
    }
}

impl LinearScratch {
    /// The rows of the next call are the contents with this number (0: of none).
    pub(crate) fn rows_are(&mut self, stamp: u64) {
        self.normed.next = stamp;
    }

    /// A number for contents that a norm is about to make, `rows` rows of `k` values, and where it should put them besides.
    pub(crate) fn of_norm(&mut self, rows: usize, k: usize, isa: Isa) -> (u64, Beside<'_>) {
        self.normed.last += 1;
        let stamp = self.normed.last;
        let wish = self.normed.wish.filter(|wish| (wish.rows, wish.k) == (rows, k) && rows > 0);
        let to = match wish.map(|wish| wish.input) {
            Some(Input::Blocks) => {
                self.normed.blocks = stamp;
                Some(To::Blocks(self.begin_blocks(rows, k, isa)))
            }
            #[cfg(target_arch = "x86_64")]
            Some(Input::Tiles) => {
                self.normed.tiles = stamp;
                Some(To::Tiles(self.tiles.begin(rows, k)))
            }
            _ => None,
        };
        (stamp, Beside(to))
    }

    /// Whether the contents with this number are quantized already.
    #[cfg(test)]
    pub(crate) fn holds(&self, stamp: u64) -> bool {
        #[cfg(target_arch = "x86_64")]
        if self.normed.tiles == stamp {
            return true;
        }
        self.normed.blocks == stamp
    }

    /// Whether the next call's rows are quantized already, as `input`, which its layer wants. If they are not, they will be
    /// now.
    pub(super) fn has(&mut self, input: Input, rows: usize, k: usize) -> bool {
        let normed = &mut self.normed;
        if normed.next != 0 {
            normed.wish = Some(Wish { rows, k, input });
        }
        let held = match input {
            Input::Blocks => &mut normed.blocks,
            #[cfg(target_arch = "x86_64")]
            Input::Tiles => &mut normed.tiles,
            _ => return false,
        };
        let has = normed.next != 0 && *held == normed.next;
        if !has {
            *held = 0;
        }
        has
    }
}

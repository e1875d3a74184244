//! Matrices of 16-bit floats on tensor cores: how they lie in memory, and which kernel runs a number of rows.
//!
//! The layout and the order of additions are in `kernels/terms.cuh`; this is the other side of it. Types without kernels of
//! their own are decoded to f16.

use half::f16;
use pelton_backend::Weight;
use pelton_quant::DType;

use super::pack::{fits_f16, in_parallel};
use super::{MANY, Picks};
use crate::CudaError;
use crate::context::Context;
use crate::kernels::Kernels;
use crate::pool::Buffer;
use crate::queue::{Function, Shape, args};
use crate::tensor::Tensor;

/// Columns of a chunk.
pub(super) const CHUNK: usize = 64;
/// Rows of a tile; it has half a chunk of columns.
const ROWS: usize = 16;
const COLS: usize = 32;
/// Bytes that a row of activations takes for each chunk: two terms of two bytes.
const ACTIVATION_BYTES: usize = 4 * CHUNK;

/// Element types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Terms {
    F16,
    Bf16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TermKernels {
    /// 8, 16 and 32 rows.
    few: [Function; 3],
    /// [`MANY`] and more.
    many: Function,
}

/// A product's sizes and where its answer goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product<'a> {
    /// Columns of the answer.
    pub(super) n: usize,
    /// The first of them in `out`.
    pub(super) column: usize,
    pub(super) cols: usize,
    pub(super) out: &'a Tensor,
}

impl Terms {
    /// The type that a matrix becomes: its own, or, where it has no layout of its own, f16, whose 11 bits are more than any
    /// such type has; `None` for f32, and where the values are too large for f16.
    pub(super) fn of(weight: &Weight) -> Option<Terms> {
        match weight.dtype().blocks() {
            Some(DType::F32) => None,
            Some(DType::BF16) => Some(Terms::Bf16),
            Some(DType::F16) => Some(Terms::F16),
            _ => fits_f16(weight).then_some(Terms::F16),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Terms::F16 => "f16",
            Terms::Bf16 => "bf16",
        }
    }

    fn tile_bytes(self) -> usize {
        2 * ROWS * COLS
    }

    /// Shared memory of a block of `kernels/terms_many.cu`: four stages of 8 tiles and 64 rows.
    fn ring_bytes(self) -> usize {
        4 * (8 * self.tile_bytes() + 64 * (128 + 16))
    }

    /// Bytes of a matrix.
    pub(super) fn bytes(self, rows: usize, cols: usize) -> usize {
        let tiles = rows.div_ceil(ROWS).saturating_mul(2 * cols.div_ceil(CHUNK));
        tiles.saturating_mul(self.tile_bytes())
    }

    pub(super) fn load(self, kernels: &mut Kernels) -> Result<TermKernels, CudaError> {
        let name = self.name();
        let mut few = |n: usize| kernels.get("terms", &format!("terms_{name}_{n}"));
        let few = [few(8)?, few(16)?, few(32)?];
        let many = kernels.get_with_shared("terms_many", &format!("terms_{name}_many"), self.ring_bytes())?;
        Ok(TermKernels { few, many })
    }

    /// A matrix as tiles, row blocks first.
    pub(super) fn pack(self, weight: &Weight) -> Vec<u8> {
        let (rows, cols) = (weight.rows(), weight.cols());
        let n_tiles = 2 * cols.div_ceil(CHUNK);
        let mut out = vec![0; self.bytes(rows, cols)];
        let is_plain = matches!(weight.dtype().blocks(), Some(DType::BF16 | DType::F16));
        in_parallel(&mut out, n_tiles * self.tile_bytes(), |block, out| {
            let mut values = vec![0.0; cols];
            for (r, row) in (block * ROWS..rows.min((block + 1) * ROWS)).enumerate() {
                let mut put = |elements: &mut dyn Iterator<Item = [u8; 2]>| {
                    for (c, element) in elements.enumerate() {
                        let at = c / COLS * self.tile_bytes() + place(r, c % COLS);
                        out[at..at + 2].copy_from_slice(&element);
                    }
                };
                if is_plain {
                    put(&mut weight.row_range(row..row + 1).as_chunks::<2>().0.iter().copied());
                } else {
                    weight.decode_row(row, &mut values);
                    put(&mut values.iter().map(|&v| f16::from_f32(v).to_le_bytes()));
                }
            }
        });
        out
    }
}

/// Where an element of a tile lies.
fn place(row: usize, col: usize) -> usize {
    let (g, t, step) = (row % 8, col / 8, col % 8 / 4);
    let register = row / 8 + 2 * (col % 4 / 2);
    (step * 32 + 4 * g + t) * 16 + register * 4 + col % 2 * 2
}

impl TermKernels {
    pub(super) fn forward(
        &self,
        context: &mut Context,
        kind: Terms,
        (weights, x): (&Buffer, &Buffer),
        bias: u64,
        product: Product<'_>,
    ) {
        let Product { n, column, cols, out } = product;
        let (n_chunks, rows, width) = (cols.div_ceil(CHUNK), out.rows(), out.cols());
        if rows >= MANY {
            let mut shape = Shape::new(rows.div_ceil(64), n.div_ceil(128), 1, 256);
            shape.shared = kind.ring_bytes() as u32;
            let none = 0u64;
            let args =
                args![weights, none, none, none, none, 1, x, bias, out.buffer(), n, n_chunks, rows, width, column];
            return context.queue.launch(self.many, shape, args);
        }
        let (function, group) = match rows {
            ..=8 => (self.few[0], 8),
            9..=16 => (self.few[1], 16),
            _ => (self.few[2], 32),
        };
        let shape = Shape::new(n.div_ceil(ROWS), rows.div_ceil(group), 1, 128);
        let (none, share) = (0u64, 1);
        let args = args![weights, none, none, none, share, x, bias, out.buffer(), n, n_chunks, rows, width, column];
        context.queue.launch(function, shape, args);
    }

    /// One row for each pick.
    pub(super) fn forward_picks(
        &self,
        context: &mut Context,
        kind: Terms,
        x: &Buffer,
        picks: &Picks<'_>,
        product: Product<'_>,
    ) {
        let Product { n, column, cols, out } = product;
        let (n_chunks, slots, width) = (cols.div_ceil(CHUNK), picks.slots, out.cols());
        let (none, share) = (0u64, picks.share);
        let (weights, biases, chosen) = (picks.weights, picks.biases, picks.picks);
        if let Some(groups) = picks.groups {
            let mut shape = Shape::new(groups.n, n.div_ceil(128), 1, 256);
            shape.shared = kind.ring_bytes() as u32;
            let (list, order) = (&groups.list, &groups.order);
            let args = args![
                none,
                weights,
                biases,
                list,
                order,
                share,
                x,
                none,
                out.buffer(),
                n,
                n_chunks,
                slots,
                width,
                column
            ];
            return context.queue.launch(self.many, shape, args);
        }
        let shape = Shape::new(n.div_ceil(ROWS), slots, 1, 128);
        let args =
            args![none, weights, biases, chosen, share, x, none, out.buffer(), n, n_chunks, slots, width, column];
        context.queue.launch(self.few[0], shape, args);
    }
}

impl Context {
    /// Rows in terms of bf16.
    pub(super) fn split(&mut self, x: &Tensor) -> Buffer {
        let (rows, cols, n_chunks) = (x.rows(), x.cols(), x.cols().div_ceil(CHUNK));
        let terms = self.scratch("terms of activations", rows * n_chunks * ACTIVATION_BYTES);
        let shape = Shape::new((n_chunks * 8).div_ceil(128), rows, 1, 128);
        self.queue.launch(self.ops.split_rows, shape, args![x.buffer(), &terms, cols, n_chunks]);
        terms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_of_a_tile_has_a_place_of_its_own() {
        let mut places: Vec<usize> = (0..ROWS * COLS).map(|i| place(i / COLS, i % COLS)).collect();
        places.sort_unstable();
        assert!(places.iter().enumerate().all(|(i, &at)| at == 2 * i));
    }
}

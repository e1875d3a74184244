//! Matrices of floats of 16, 8 and 4 bits on tensor cores: how they lie in memory, and which kernel runs a number of rows.
//!
//! The layout and the order of additions are in `kernels/terms.cuh`; this is the other side of it. Types without kernels of
//! their own are decoded to f16.

use half::f16;
use pelton_backend::Weight;
use pelton_quant::{CodeBook, DType, Grouped, WeightType};

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
enum Elements {
    F16,
    Bf16,
    /// Codes with scales.
    E4m3,
    Nf4,
    Fp4,
}

/// A layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    elements: Elements,
    /// Chunks that share a scale.
    per_group: usize,
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

impl Elements {
    fn name(self) -> &'static str {
        match self {
            Elements::F16 => "f16",
            Elements::Bf16 => "bf16",
            Elements::E4m3 => "e4m3",
            Elements::Nf4 => "nf4",
            Elements::Fp4 => "fp4",
        }
    }

    fn bits(self) -> usize {
        match self {
            Elements::F16 | Elements::Bf16 => 16,
            Elements::E4m3 => 8,
            Elements::Nf4 | Elements::Fp4 => 4,
        }
    }

    fn has_scales(self) -> bool {
        self.bits() < 16
    }
}

impl Terms {
    /// What types become that have no layout of their own: f16, whose 11 bits are more than any of them has.
    pub(super) const F16: Terms = Terms { elements: Elements::F16, per_group: 1 };

    /// The layout of matrices of a type: its own, where there is one (of codes: where groups are whole chunks).
    pub(super) fn of_type(dtype: WeightType, cols: usize) -> Option<Terms> {
        let (elements, group) = match dtype {
            WeightType::Blocks(DType::BF16) => (Elements::Bf16, None),
            WeightType::Blocks(DType::F16) => return Some(Terms::F16),
            WeightType::Blocks(_) => return None,
            WeightType::Grouped(kind) => match kind.book {
                CodeBook::E4m3 => (Elements::E4m3, kind.group),
                CodeBook::Nf4 => (Elements::Nf4, kind.group),
                CodeBook::Fp4 => (Elements::Fp4, kind.group),
                CodeBook::Int { .. } => return None,
            },
        };
        let group = group.map_or(cols, |g| g as usize);
        let per_group = if group >= cols { cols.div_ceil(CHUNK) } else { group / CHUNK };
        (group >= cols || group.is_multiple_of(CHUNK)).then_some(Terms { elements, per_group })
    }

    /// The layout of a matrix; `None` for f32, and where values are too large for f16.
    pub(super) fn of(weight: &Weight) -> Option<Terms> {
        if weight.dtype() == DType::F32 {
            return None;
        }
        // Columns in an order of their own are put into that of the input features by decoding.
        let is_ordered = weight.as_grouped().is_some_and(|g| g.order().is_some());
        let own = Terms::of_type(weight.dtype(), weight.cols()).filter(|_| !is_ordered);
        own.or_else(|| fits_f16(weight).then_some(Terms::F16))
    }

    /// Whether weights stay as the file has them.
    pub(super) fn is_own(self, dtype: WeightType) -> bool {
        dtype.is_float() || self.elements.has_scales()
    }

    fn tile_bytes(self) -> usize {
        ROWS * COLS * self.elements.bits() / 8
    }

    fn n_groups(self, cols: usize) -> usize {
        if self.elements.has_scales() { cols.div_ceil(CHUNK).div_ceil(self.per_group) } else { 0 }
    }

    /// Shared memory of a block of `kernels/terms_many.cu`: four stages of 8 tiles and 64 rows.
    fn ring_bytes(self) -> usize {
        4 * (8 * self.tile_bytes() + 64 * (128 + 16))
    }

    /// Bytes of a matrix: of its tiles, and of its scales.
    fn parts(self, rows: usize, cols: usize) -> [usize; 2] {
        let blocks = rows.div_ceil(ROWS);
        let tiles = blocks.saturating_mul(2 * cols.div_ceil(CHUNK)).saturating_mul(self.tile_bytes());
        [tiles, blocks.saturating_mul(self.n_groups(cols)).saturating_mul(4 * ROWS)]
    }

    /// Bytes of a matrix.
    pub(super) fn bytes(self, rows: usize, cols: usize) -> usize {
        let [tiles, scales] = self.parts(rows, cols);
        tiles.saturating_add(scales)
    }

    pub(super) fn load(self, kernels: &mut Kernels) -> Result<TermKernels, CudaError> {
        let name = self.elements.name();
        let mut few = |n: usize| kernels.get("terms", &format!("terms_{name}_{n}"));
        let few = [few(8)?, few(16)?, few(32)?];
        let many = kernels.get_with_shared("terms_many", &format!("terms_{name}_many"), self.ring_bytes())?;
        Ok(TermKernels { few, many })
    }

    /// A matrix as tiles, row blocks first, and behind them their scales.
    pub(super) fn pack(self, weight: &Weight) -> Vec<u8> {
        match weight.as_grouped().filter(|_| self.elements.has_scales()) {
            Some(grouped) => self.pack_codes(grouped),
            None => self.pack_floats(weight),
        }
    }

    fn pack_codes(self, grouped: &Grouped) -> Vec<u8> {
        let (rows, cols, n_groups) = (grouped.rows(), grouped.cols(), grouped.n_groups());
        let [n_tiles, n_scales] = self.parts(rows, cols);
        let mut out = vec![0; n_tiles + n_scales];
        let (tiles, scales) = out.split_at_mut(n_tiles);
        let bits = self.elements.bits();
        let rows_of = |block: usize| block * ROWS..rows.min((block + 1) * ROWS);
        let codes_of = |block| {
            let mut codes = vec![0; rows_of(block).len() * cols];
            grouped.codes(rows_of(block), &mut codes);
            codes
        };
        in_parallel(tiles, 2 * cols.div_ceil(CHUNK) * self.tile_bytes(), |block, out| {
            for (r, codes) in codes_of(block).chunks_exact(cols).enumerate() {
                for (c, code) in codes.iter().enumerate() {
                    let at = c / COLS * self.tile_bytes();
                    match (bits, place(r, c % COLS, bits)) {
                        (4, bit) => out[at + bit / 8] |= (code & 15) << (bit % 8),
                        (_, bit) => out[at + bit / 8] = *code,
                    }
                }
            }
        });
        in_parallel(scales, n_groups * 4 * ROWS, |block, out| {
            let mut scales = vec![0.0; rows_of(block).len() * n_groups];
            grouped.scales(rows_of(block), &mut scales);
            if self.elements == Elements::E4m3 {
                // A code that is no number makes its group's scale none, and thereby the answer, as it would itself.
                let group = grouped.group();
                for (r, codes) in codes_of(block).chunks_exact(cols).enumerate() {
                    let odd = codes.chunks(group).enumerate().filter(|(_, c)| c.iter().any(|c| c & 0x7f == 0x7f));
                    odd.for_each(|(g, _)| scales[r * n_groups + g] = f32::NAN);
                }
            }
            let unit = if self.elements == Elements::Fp4 { 12.0 } else { 1.0 };
            for (at, scale) in scales.iter().enumerate() {
                let to = 4 * (at % n_groups * ROWS + at / n_groups);
                out[to..to + 4].copy_from_slice(&(scale / unit).to_le_bytes());
            }
        });
        out
    }

    fn pack_floats(self, weight: &Weight) -> Vec<u8> {
        let (rows, cols) = (weight.rows(), weight.cols());
        let n_tiles = 2 * cols.div_ceil(CHUNK);
        let mut out = vec![0; self.bytes(rows, cols)];
        let is_plain = matches!(weight.dtype().blocks(), Some(DType::BF16 | DType::F16));
        in_parallel(&mut out, n_tiles * self.tile_bytes(), |block, out| {
            let mut values = vec![0.0; cols];
            for (r, row) in (block * ROWS..rows.min((block + 1) * ROWS)).enumerate() {
                let mut put = |elements: &mut dyn Iterator<Item = [u8; 2]>| {
                    for (c, element) in elements.enumerate() {
                        let at = c / COLS * self.tile_bytes() + place(r, c % COLS, 16) / 8;
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

/// The bit of a tile where an element of `bits` bits begins.
fn place(row: usize, col: usize, bits: usize) -> usize {
    let (g, t, step) = (row % 8, col / 8, col % 8 / 4);
    let (lane, element) = (4 * g + t, 2 * (row / 8 + 2 * (col % 4 / 2)) + col % 2);
    match bits {
        16 => (step * 32 + lane) * 128 + element * 16,
        _ => (lane * 16 + step * 8 + element) * bits,
    }
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
            let args = args![
                weights,
                none,
                none,
                none,
                none,
                1,
                x,
                bias,
                out.buffer(),
                n,
                n_chunks,
                kind.per_group,
                rows,
                width,
                column
            ];
            return context.queue.launch(self.many, shape, args);
        }
        let (function, group) = match rows {
            ..=8 => (self.few[0], 8),
            9..=16 => (self.few[1], 16),
            _ => (self.few[2], 32),
        };
        let shape = Shape::new(n.div_ceil(ROWS), rows.div_ceil(group), 1, 128);
        let (none, share) = (0u64, 1);
        let args = args![
            weights,
            none,
            none,
            none,
            share,
            x,
            bias,
            out.buffer(),
            n,
            n_chunks,
            kind.per_group,
            rows,
            width,
            column
        ];
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
                kind.per_group,
                slots,
                width,
                column
            ];
            return context.queue.launch(self.many, shape, args);
        }
        let shape = Shape::new(n.div_ceil(ROWS), slots, 1, 128);
        let args = args![
            none,
            weights,
            biases,
            chosen,
            share,
            x,
            none,
            out.buffer(),
            n,
            n_chunks,
            kind.per_group,
            slots,
            width,
            column
        ];
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
        for bits in [4, 8, 16] {
            let mut places: Vec<usize> = (0..ROWS * COLS).map(|i| place(i / COLS, i % COLS, bits)).collect();
            places.sort_unstable();
            assert!(places.iter().enumerate().all(|(i, &at)| at == bits * i), "{bits} bits");
        }
    }
}

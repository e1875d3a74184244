//! Activations rounded to int8, in the order of columns that weights are stored in (act-order).
//!
//! Invariant: a row is rounded by itself, so it has the same bits in any company; layers that store their columns in the
//! order of the input round without looking at any.

use std::sync::Arc;

use pelton_backend::Weight;

use super::{Picks, Rounded, SUPERBLOCK};
use crate::CudaError;
use crate::context::Context;
use crate::pool::Buffer;
use crate::queue::{Shape, args};
use crate::tensor::Tensor;

/// Stored column `j` is input column `order[j]`.
#[derive(Debug)]
pub(crate) struct Order {
    columns: Arc<[u32]>,
    /// `(cols,)` int32.
    buffer: Buffer,
}

impl Order {
    /// The order of a weight's columns, where it is not that of the input: one of `known` or a new one.
    pub(super) fn of(
        context: &mut Context,
        weight: &Weight,
        known: &[Option<Arc<Order>>],
    ) -> Result<Option<Arc<Order>>, CudaError> {
        let Some(columns) = weight.as_grouped().and_then(|grouped| grouped.order()) else { return Ok(None) };
        if let Some(same) = known.iter().flatten().find(|order| order.columns == *columns) {
            return Ok(Some(same.clone()));
        }
        let buffer = context.upload_new("an order of columns", bytemuck::cast_slice(columns))?;
        Ok(Some(Arc::new(Order { columns: columns.clone(), buffer })))
    }

    /// Its address.
    pub(crate) fn pointer(&self) -> u64 {
        self.buffer.pointer()
    }
}

/// Whether two parts read rows in the same order.
pub(super) fn is_same(a: Option<&Arc<Order>>, b: Option<&Arc<Order>>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        _ => false,
    }
}

impl Context {
    /// Rows as int8, in an order.
    pub(super) fn round(&mut self, x: &Tensor, order: Option<&Arc<Order>>) -> Rounded {
        let rounded = self.rounded(x, x.rows());
        let (cols, n_sb) = (x.cols(), x.cols().div_ceil(SUPERBLOCK));
        let shape = Shape::new(n_sb.div_ceil(4), x.rows(), 1, 128);
        let Rounded { codes, units, sums } = &rounded;
        match order {
            None => {
                let args = args![x.buffer(), codes, units, sums, cols, n_sb];
                self.queue.launch(self.ops.quantize_rows, shape, args);
            }
            Some(order) => {
                let args = args![x.buffer(), order.pointer(), 0u64, 0u64, 1, codes, units, sums, cols, n_sb];
                self.queue.launch(self.ops.quantize_ordered, shape, args);
            }
        }
        rounded
    }

    /// A row for each slot, in the order of the slot's expert; `orders` are their addresses.
    pub(super) fn round_slots(&mut self, x: &Tensor, orders: &Buffer, picks: &Picks<'_>) -> Rounded {
        let rounded = self.rounded(x, picks.slots);
        let (cols, n_sb) = (x.cols(), x.cols().div_ceil(SUPERBLOCK));
        let shape = Shape::new(n_sb.div_ceil(4), picks.slots, 1, 128);
        let Rounded { codes, units, sums } = &rounded;
        let args = args![x.buffer(), 0u64, orders, picks.picks, picks.share, codes, units, sums, cols, n_sb];
        self.queue.launch(self.ops.quantize_ordered, shape, args);
        rounded
    }

    fn rounded(&mut self, x: &Tensor, rows: usize) -> Rounded {
        let n_sb = x.cols().div_ceil(SUPERBLOCK);
        Rounded {
            codes: self.scratch("rounded activations", rows * n_sb * SUPERBLOCK),
            units: self.scratch("units of activations", rows * n_sb * 4),
            sums: self.scratch("sums of activations", rows * n_sb * 32),
        }
    }
}

//! Linear layers on the device: packing, and which kernel runs a number of rows.
//!
//! Invariant: all kernels of a layout add the same numbers in the same order (`kernels/packed.cuh`, `terms.cuh`, `floats.cu`), so
//! that which of them runs, and with how many rows, changes no bit.

mod format;
mod groups;
mod order;
mod pack;
mod terms;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pelton_backend::{BackendError, Gate, LinearSpec, Placement, Weight};
use pelton_quant::{CodeBook, DType, GroupedType, WeightType};

#[cfg(test)]
pub(crate) use format::FORMATS;
pub(crate) use format::{SUPERBLOCK, TILE_ROWS};

use crate::CudaError;
use crate::context::{Context, out_of_memory};
use crate::kernels::Kernels;
use crate::pool::Buffer;
use crate::queue::{Function, Shape, args};
use crate::tensor::Tensor;
use format::Format;
use order::{Order, is_same};
use terms::{Product, TermKernels, Terms};

/// A packed linear layer.
#[derive(Debug)]
pub struct Linear {
    /// Distinguishes layers of a process.
    pub(crate) id: u64,
    pub(crate) in_features: usize,
    pub(crate) out_features: usize,
    pub(crate) parts: Vec<Part>,
    /// `(out_features,)`
    pub(crate) bias: Option<Buffer>,
}

/// One matrix of a layer.
#[derive(Debug)]
pub(crate) struct Part {
    name: String,
    dtype: WeightType,
    pub(crate) rows: usize,
    /// Where its columns of the answer begin.
    pub(crate) column: usize,
    pub(crate) kind: Kind,
    /// Of its columns, where it is not that of the input.
    pub(crate) order: Option<Arc<Order>>,
    pub(crate) weights: Buffer,
}

/// How a matrix lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Tiles of integers; rows of activations are rounded to int8.
    Packed(&'static Format, PackedKernels),
    /// Tiles of 16-bit floats; rows of activations are cut into two terms of bf16.
    Terms(Terms, TermKernels),
    /// f32, rows padded to whole chunks of [`CHUNK`]; activations as they are.
    Floats(FloatKernels),
}

/// Columns of a chunk of `kernels/floats.cu`.
const CHUNK: usize = 64;

/// From this number of rows on, products are staged through shared memory: groups of 64 rows read the weights once, where
/// groups of 32 would read them three times.
pub(crate) const MANY: usize = 65;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PackedKernels {
    /// 1, 2 and 4 rows.
    matvec: [Function; 3],
    gated: Function,
    /// 8, 16 and 32 rows.
    matmul: [Function; 3],
    /// [`MANY`] and more.
    many: Function,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FloatKernels {
    /// 1 and 4 rows.
    matvec: [Function; 2],
    matmul: Function,
}

/// Rows of activations as int8, see `Rounded` in `kernels/packed.cuh`.
pub(crate) struct Rounded {
    codes: Buffer,
    units: Buffer,
    sums: Buffer,
}

/// The picks of a mixture of experts: which expert each slot uses, and which input row.
pub(crate) struct Picks<'a> {
    /// `(n_experts,)` addresses of the experts' weights; 0 for those in another layout.
    pub(crate) weights: &'a Buffer,
    /// `(n_experts,)` addresses of their biases, or 0.
    pub(crate) biases: &'a Buffer,
    /// `(n_experts,)` addresses of the orders of their columns, or 0; `None` where none has one.
    pub(crate) orders: Option<&'a Buffer>,
    /// `(slots,)`
    pub(crate) picks: &'a Buffer,
    /// Where slots are grouped by expert.
    pub(crate) groups: Option<&'a Groups>,
    pub(crate) slots: usize,
    /// Slots that share an input row.
    pub(crate) share: usize,
}

/// Slots that have picked the same expert, see `kernels/moe.cu`.
#[derive(Debug)]
pub(crate) struct Groups {
    /// `(n, 4)`
    pub(crate) list: Buffer,
    /// `(slots,)`
    pub(crate) order: Buffer,
    pub(crate) n: usize,
}

impl PackedKernels {
    fn load(kernels: &mut Kernels, format: &Format) -> Result<PackedKernels, CudaError> {
        let name = format.name;
        let mut matvec = |n: usize| kernels.get("matvec", &format!("matvec_{name}_{n}"));
        let matvec = [matvec(1)?, matvec(2)?, matvec(4)?];
        let gated = kernels.get("matvec", &format!("gated_{name}"))?;
        let mut matmul = |n: usize| kernels.get("matmul_few", &format!("matmul_{name}_{n}"));
        let matmul = [matmul(8)?, matmul(16)?, matmul(32)?];
        let many = kernels.get_with_shared("matmul_many", &format!("matmul_{name}_many"), format.ring_bytes())?;
        Ok(PackedKernels { matvec, gated, matmul, many })
    }
}

impl FloatKernels {
    fn load(kernels: &mut Kernels) -> Result<FloatKernels, CudaError> {
        let matvec = [kernels.get("floats", "matvec_f32_1")?, kernels.get("floats", "matvec_f32_4")?];
        Ok(FloatKernels { matvec, matmul: kernels.get("floats", "matmul_f32")? })
    }
}

/// The tiles of a matrix of this type; `None` where it is rows of floats.
fn layout_of(dtype: WeightType, cols: usize) -> Option<&'static Format> {
    match dtype {
        WeightType::Blocks(dtype) => Format::of(dtype),
        WeightType::Grouped(kind) => groups::format_of(kind, cols),
    }
}

/// Bytes that a matrix of this type takes on a card: tiles (of f16 for types that are decoded), or padded rows of f32.
pub fn packed_bytes(dtype: WeightType, rows: usize, cols: usize) -> usize {
    let tiled = layout_of(dtype, cols);
    let bytes = |rows: usize, units: usize, each: usize| rows.saturating_mul(units).saturating_mul(each);
    match tiled {
        Some(format) => bytes(rows.div_ceil(TILE_ROWS), cols.div_ceil(SUPERBLOCK), format.tile_bytes()),
        None if dtype.blocks() == Some(DType::F32) => bytes(rows, cols.div_ceil(CHUNK).saturating_mul(CHUNK), 4),
        None => Terms::of_type(dtype, cols).unwrap_or(Terms::F16).bytes(rows, cols),
    }
}

fn is_integer(dtype: WeightType) -> bool {
    matches!(dtype, WeightType::Grouped(GroupedType { book: CodeBook::Int { .. }, .. }))
}

fn failed(weight: &Weight, error: CudaError) -> BackendError {
    match error {
        CudaError::OutOfMemory { what, bytes, .. } => BackendError::OutOfMemory { what, bytes },
        other => BackendError::Shape { tensor: weight.name().to_string(), problem: other.to_string() },
    }
}

impl Linear {
    /// Packs a layer and sends it to the device.
    pub(crate) fn load(context: &mut Context, spec: &LinearSpec) -> Result<Linear, BackendError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mut parts: Vec<Part> = Vec::with_capacity(spec.parts.len());
        let mut column = 0;
        for weight in &spec.parts {
            let orders: Vec<_> = parts.iter().map(|part| part.order.clone()).collect();
            parts.push(Part::load(context, weight, column, &orders)?);
            column += weight.rows();
        }
        let bias = match spec.bias.is_empty() {
            true => None,
            false => Some(context.upload_new("a bias", bytemuck::cast_slice(&spec.bias)).map_err(out_of_memory)?),
        };
        let (in_features, out_features) = (spec.in_features(), spec.out_features());
        Ok(Linear { id: NEXT.fetch_add(1, Ordering::Relaxed), in_features, out_features, parts, bias })
    }

    pub(crate) fn placement(&self) -> Vec<Placement> {
        let place = |p: &Part| Placement {
            name: p.name.clone(),
            dtype: p.dtype,
            kernel: p.kernel_name(),
            bytes: p.weights.bytes(),
        };
        self.parts.iter().map(place).collect()
    }

    /// `out[r] = W x[r] + bias`.
    pub(crate) fn forward(&self, context: &mut Context, x: &Tensor, out: &Tensor) {
        assert_eq!((x.cols(), out.cols(), out.rows()), (self.in_features, self.out_features, x.rows()));
        let inputs = Inputs::of(context, x, self.parts.iter());
        for part in &self.parts {
            let bias = self.bias.as_ref().map_or(0, |b| b.pointer() + 4 * part.column as u64);
            part.forward(context, &inputs, x.rows(), bias, out);
        }
    }

    /// `out = gate(h[..ffn]) * h[ffn..]` of one row in one launch, where there is a kernel for it.
    pub(crate) fn forward_gated(&self, context: &mut Context, x: &Tensor, gate: Gate, out: &Tensor) -> bool {
        let [a, b] = self.parts.as_slice() else { return false };
        let (Kind::Packed(_, kernels), true) = (a.kind, a.kind == b.kind) else { return false };
        let ffn = out.cols();
        if x.rows() != 1 || a.rows != ffn || b.rows != ffn || !is_same(a.order.as_ref(), b.order.as_ref()) {
            return false;
        }
        assert_eq!(x.cols(), self.in_features);
        let rounded = context.round(x, a.order.as_ref());
        let shape = Shape::new(ffn.div_ceil(TILE_ROWS), 1, 1, 128);
        let n_sb = self.in_features.div_ceil(SUPERBLOCK);
        let (codes, units, sums) = (&rounded.codes, &rounded.units, &rounded.sums);
        let args = args![
            &a.weights,
            &b.weights,
            codes,
            units,
            sums,
            self.bias.as_ref(),
            out.buffer(),
            ffn,
            n_sb,
            gate_kind(gate)
        ];
        context.queue.launch(kernels.gated, shape, args);
        true
    }
}

/// The number that kernels know a gate by.
pub(crate) fn gate_kind(gate: Gate) -> i32 {
    match gate {
        Gate::Silu => 0,
        Gate::GeluTanh => 1,
    }
}

/// The rows of activations in the forms that some parts want.
pub(crate) struct Inputs<'a> {
    /// In each order that a part has.
    rounded: Vec<(Option<Arc<Order>>, Rounded)>,
    terms: Option<Buffer>,
    padded: Option<Buffer>,
    x: &'a Tensor,
}

impl<'a> Inputs<'a> {
    pub(crate) fn of<'p>(
        context: &mut Context,
        x: &'a Tensor,
        mut parts: impl Iterator<Item = &'p Part> + Clone,
    ) -> Inputs<'a> {
        let is_packed = |p: &Part| matches!(p.kind, Kind::Packed(..));
        let mut rounded: Vec<(Option<Arc<Order>>, Rounded)> = Vec::new();
        for part in parts.clone().filter(|p| is_packed(p)) {
            if !rounded.iter().any(|(order, _)| is_same(order.as_ref(), part.order.as_ref())) {
                rounded.push((part.order.clone(), context.round(x, part.order.as_ref())));
            }
        }
        let terms = parts.clone().any(|p| matches!(p.kind, Kind::Terms(..))).then(|| context.split(x));
        let floats = parts.any(|p| matches!(p.kind, Kind::Floats(..))) && !x.cols().is_multiple_of(CHUNK);
        Inputs { rounded, terms, padded: floats.then(|| context.pad(x, CHUNK)), x }
    }

    fn rounded(&self, part: &Part) -> &Rounded {
        let of_part = self.rounded.iter().find(|(order, _)| is_same(order.as_ref(), part.order.as_ref()));
        &of_part.expect("a packed part was announced").1
    }

    fn terms(&self) -> &Buffer {
        self.terms.as_ref().expect("a part in terms was announced")
    }

    fn floats(&self) -> &Buffer {
        self.padded.as_ref().unwrap_or(self.x.buffer())
    }
}

impl Part {
    /// `orders` are those of the layer's parts before it.
    fn load(
        context: &mut Context,
        weight: &Weight,
        column: usize,
        orders: &[Option<Arc<Order>>],
    ) -> Result<Part, BackendError> {
        let (packed, is_loaded) = match layout_of(weight.dtype(), weight.cols()) {
            Some(format) => (
                pack::tiles(format, weight),
                PackedKernels::load(&mut context.kernels, format).map(|k| Kind::Packed(format, k)),
            ),
            None => match Terms::of(weight) {
                Some(terms) => (terms.pack(weight), terms.load(&mut context.kernels).map(|k| Kind::Terms(terms, k))),
                None => (pack::floats(weight, CHUNK), FloatKernels::load(&mut context.kernels).map(Kind::Floats)),
            },
        };
        let kind = is_loaded.map_err(|e| failed(weight, e))?;
        let weights = context.upload_new(weight.name(), &packed).map_err(|e| failed(weight, e))?;
        // Decoded weights lie in the order of the input.
        let order = match kind {
            Kind::Packed(..) => Order::of(context, weight, orders).map_err(|e| failed(weight, e))?,
            Kind::Terms(..) | Kind::Floats(..) => None,
        };
        let (name, dtype, rows) = (weight.name().to_string(), weight.dtype(), weight.rows());
        Ok(Part { name, dtype, rows, column, kind, order, weights })
    }

    fn kernel_name(&self) -> &'static str {
        match self.kind {
            Kind::Packed(..) => "cuda int8 (dp4a, mma)",
            Kind::Terms(terms, _) if terms.is_own(self.dtype) => "cuda bf16 (mma)",
            Kind::Terms(..) if is_integer(self.dtype) => {
                "cuda bf16 (mma), decoded to f16: groups or zero points without a layout"
            }
            Kind::Terms(..) => "cuda bf16 (mma), decoded to f16",
            Kind::Floats(..) if self.dtype.is_float() => "cuda f32",
            Kind::Floats(..) => "cuda f32, decoded to f32",
        }
    }

    fn forward(&self, context: &mut Context, inputs: &Inputs<'_>, rows: usize, bias: u64, out: &Tensor) {
        let (n, width, column) = (self.rows, out.cols(), self.column);
        match self.kind {
            Kind::Packed(format, kernels) => {
                let n_sb = inputs.x.cols().div_ceil(SUPERBLOCK);
                let Rounded { codes, units, sums } = inputs.rounded(self);
                if rows <= 4 {
                    let (function, group) = match rows {
                        1 => (kernels.matvec[0], 1),
                        2 => (kernels.matvec[1], 2),
                        _ => (kernels.matvec[2], 4),
                    };
                    let shape = Shape::new(n.div_ceil(TILE_ROWS), rows.div_ceil(group), 1, 128);
                    let args = args![
                        &self.weights,
                        0u64,
                        0u64,
                        0u64,
                        1,
                        codes,
                        units,
                        sums,
                        bias,
                        out.buffer(),
                        n,
                        n_sb,
                        rows,
                        width,
                        column
                    ];
                    return context.queue.launch(function, shape, args);
                }
                let (function, group) = match rows {
                    5..=8 => (kernels.matmul[0], 8),
                    9..=16 => (kernels.matmul[1], 16),
                    _ => (kernels.matmul[2], 32),
                };
                if rows >= MANY {
                    let mut shape = Shape::new(rows.div_ceil(64), n.div_ceil(128), 1, 256);
                    shape.shared = format.ring_bytes() as u32;
                    let (weights, none) = (&self.weights, 0u64);
                    let args = args![
                        weights,
                        none,
                        none,
                        none,
                        none,
                        1,
                        codes,
                        units,
                        sums,
                        bias,
                        out.buffer(),
                        n,
                        n_sb,
                        rows,
                        width,
                        column
                    ];
                    return context.queue.launch(kernels.many, shape, args);
                }
                let args = args![&self.weights, codes, units, sums, bias, out.buffer(), n, n_sb, rows, width, column];
                let shape = Shape::new(n.div_ceil(2 * TILE_ROWS), rows.div_ceil(group), 1, 128);
                context.queue.launch(function, shape, args);
            }
            Kind::Terms(terms, kernels) => {
                let product = Product { n, column, cols: inputs.x.cols(), out };
                kernels.forward(context, terms, (&self.weights, inputs.terms()), bias, product);
            }
            Kind::Floats(kernels) => {
                let (x, stride) = (inputs.floats(), inputs.x.cols().next_multiple_of(CHUNK));
                if rows <= 16 {
                    let (function, group) = if rows == 1 { (kernels.matvec[0], 1) } else { (kernels.matvec[1], 4) };
                    let shape = Shape::new(n.div_ceil(TILE_ROWS), rows.div_ceil(group), 1, 128);
                    let args = args![
                        &self.weights,
                        0u64,
                        0u64,
                        0u64,
                        1,
                        x,
                        bias,
                        out.buffer(),
                        n,
                        stride,
                        rows,
                        width,
                        column
                    ];
                    return context.queue.launch(function, shape, args);
                }
                let shape = Shape::new(n.div_ceil(64), rows.div_ceil(64), 1, 256);
                let args = args![&self.weights, x, bias, out.buffer(), n, stride, rows, width, column];
                context.queue.launch(kernels.matmul, shape, args);
            }
        }
    }

    /// This part's place in experts: `out[slot] = W[pick] x[slot / share]`, for those experts that lie like this one.
    pub(crate) fn forward_picks(&self, context: &mut Context, inputs: &Inputs<'_>, picks: &Picks<'_>, out: &Tensor) {
        let (n, width, column, slots) = (self.rows, out.cols(), self.column, picks.slots);
        let shape = Shape::new(n.div_ceil(TILE_ROWS), slots, 1, 128);
        let (weights, biases, chosen, share) = (picks.weights, picks.biases, picks.picks, picks.share);
        match self.kind {
            Kind::Packed(format, kernels) => {
                let n_sb = inputs.x.cols().div_ceil(SUPERBLOCK);
                // Of experts with orders of their own, each slot has a row.
                let own = picks.orders.map(|orders| context.round_slots(inputs.x, orders, picks));
                let share = if own.is_some() { 1 } else { share };
                let Rounded { codes, units, sums } = own.as_ref().unwrap_or_else(|| inputs.rounded(self));
                if let Some(groups) = picks.groups {
                    let mut shape = Shape::new(groups.n, n.div_ceil(128), 1, 256);
                    shape.shared = format.ring_bytes() as u32;
                    let args = args![
                        0u64,
                        weights,
                        biases,
                        &groups.list,
                        &groups.order,
                        share,
                        codes,
                        units,
                        sums,
                        0u64,
                        out.buffer(),
                        n,
                        n_sb,
                        slots,
                        width,
                        column
                    ];
                    return context.queue.launch(kernels.many, shape, args);
                }
                let args = args![
                    0u64,
                    weights,
                    biases,
                    chosen,
                    share,
                    codes,
                    units,
                    sums,
                    0u64,
                    out.buffer(),
                    n,
                    n_sb,
                    slots,
                    width,
                    column
                ];
                context.queue.launch(kernels.matvec[0], shape, args);
            }
            Kind::Terms(terms, kernels) => {
                let product = Product { n, column, cols: inputs.x.cols(), out };
                kernels.forward_picks(context, terms, inputs.terms(), picks, product);
            }
            Kind::Floats(kernels) => {
                let (x, stride) = (inputs.floats(), inputs.x.cols().next_multiple_of(CHUNK));
                let args =
                    args![0u64, weights, biases, chosen, share, x, 0u64, out.buffer(), n, stride, slots, width, column];
                context.queue.launch(kernels.matvec[0], shape, args);
            }
        }
    }
}

impl Context {
    /// Rows with zeros up to a multiple of `chunk` columns.
    fn pad(&mut self, x: &Tensor, chunk: usize) -> Buffer {
        let (rows, cols, stride) = (x.rows(), x.cols(), x.cols().next_multiple_of(chunk));
        let padded = self.scratch("padded activations", rows * stride * 4);
        let shape = Shape::new(stride.div_ceil(128), rows, 1, 128);
        self.queue.launch(self.ops.pad_rows, shape, args![x.buffer(), &padded, cols, stride]);
        padded
    }
}

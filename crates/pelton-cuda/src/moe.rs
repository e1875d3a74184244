//! Mixture of experts: all on the device, no answer read in between.
//!
//! A row's experts are its `top_k` largest router logits, the lower index first among equals; their answers are added best
//! first. Each pick is one row of `matvec`: the experts' addresses are a table on the device. Where there are several slots
//! for each expert, the device groups them by expert, and each group is one product of many rows. Where experts lie in several
//! layouts (a file may quantize them differently), each layout is a launch that passes over the others.

use std::borrow::Borrow;
use std::collections::HashMap;

use pelton_backend::{Gate, Moe};

use crate::context::Context;
use crate::linear::{Groups, Inputs, Linear, MANY, Picks, gate_kind};
use crate::pool::Buffer;
use crate::queue::{Shape, args};
use crate::tensor::Tensor;

/// Addresses of one part of all experts, for each layout that occurs.
#[derive(Debug)]
struct PartTable {
    kinds: Vec<KindTable>,
}

/// Addresses of those that lie alike.
#[derive(Debug)]
struct KindTable {
    /// The first of them.
    first: usize,
    weights: Buffer,
    biases: Buffer,
    /// Of their columns, where one has another than the input.
    orders: Option<Buffer>,
}

/// Addresses of a block's experts.
#[derive(Debug)]
struct Tables {
    gate_up: Vec<PartTable>,
    down: Vec<PartTable>,
}

/// What blocks have in common, by their router.
#[derive(Debug, Default)]
pub(crate) struct MoeTables {
    by_router: HashMap<u64, Tables>,
}

/// Rows of a group, as in `kernels/ring.cuh`.
const GROUP_ROWS: usize = 64;
/// Slots of an expert, on average, from which on they are grouped: with fewer, most rows of a group would be empty.
const FEWEST: usize = 8;
/// Most picks of a launch: the size of a grid.
const MAX_SLOTS: usize = 65_535;

fn part_tables<'a>(context: &mut Context, layers: impl Iterator<Item = &'a Linear> + Clone) -> Vec<PartTable> {
    let n_parts = layers.clone().next().map_or(0, |l| l.parts.len());
    assert!(layers.clone().all(|l| l.parts.len() == n_parts), "experts of the same parts");
    let mut tables = Vec::new();
    for p in 0..n_parts {
        let parts: Vec<_> = layers.clone().map(|l| (&l.parts[p], l.bias.as_ref())).collect();
        assert!(parts.iter().all(|(part, _)| part.rows == parts[0].0.rows), "experts of the same width");
        let mut kinds = Vec::new();
        for (e, (part, _)) in parts.iter().enumerate() {
            if parts[..e].iter().any(|(other, _)| other.kind == part.kind) {
                continue;
            }
            let address = |(other, _): &(&crate::linear::Part, _)| {
                if other.kind == part.kind { other.weights.pointer() } else { 0 }
            };
            let weights: Vec<u64> = parts.iter().map(address).collect();
            let bias = |(part, bias): &(&crate::linear::Part, Option<&Buffer>)| {
                bias.map_or(0, |b| b.pointer() + 4 * part.column as u64)
            };
            let biases: Vec<u64> = parts.iter().map(bias).collect();
            let mut upload = |values: &[u64]| {
                let table = context.upload_new("experts' addresses", bytemuck::cast_slice(values));
                table.unwrap_or_else(|e| e.end_step())
            };
            let order = |(part, _): &(&crate::linear::Part, _)| part.order.as_ref().map_or(0, |order| order.pointer());
            let orders: Vec<u64> = parts.iter().map(order).collect();
            let orders = orders.iter().any(|&order| order != 0).then(|| upload(&orders));
            kinds.push(KindTable { first: e, weights: upload(&weights), biases: upload(&biases), orders });
        }
        tables.push(PartTable { kinds });
    }
    tables
}

impl MoeTables {
    /// `out[r] = sum of weight * expert(x[r])` over the experts of each row.
    pub(crate) fn forward<L: Borrow<Linear>>(&mut self, context: &mut Context, x: &Tensor, moe: &Moe<L>, out: &Tensor) {
        let router = moe.router.borrow();
        assert_eq!((x.rows(), x.cols()), (out.rows(), router.in_features));
        let tables = self.by_router.entry(router.id).or_insert_with(|| Tables {
            gate_up: part_tables(context, moe.experts.iter().map(|e| e.gate_up.borrow())),
            down: part_tables(context, moe.experts.iter().map(|e| e.down.borrow())),
        });
        let (rows, n, top_k) = (x.rows(), moe.experts.len(), moe.top_k.min(moe.experts.len()));
        assert!(rows * top_k <= MAX_SLOTS, "{rows} rows of {top_k} experts in one step");
        let logits = scratch(context, rows, n);
        router.forward(context, x, &logits);
        let picks = context.scratch("experts' picks", rows * top_k * 4);
        let weights = context.scratch("experts' weights", rows * top_k * 4);
        let args = args![logits.buffer(), &picks, &weights, n, top_k, usize::from(moe.norm_topk)];
        context.queue.launch(context.ops.moe_route, Shape::new(rows, 1, 1, 32), args);
        let groups = Groups::of(context, &picks, rows * top_k, n);
        let slots = Slots { picks: &picks, groups, n: rows * top_k };
        let hidden = scratch(context, slots.n, 2 * moe.ffn);
        slots.forward(context, x, &tables.gate_up, |e| moe.experts[e].gate_up.borrow(), top_k, &hidden);
        let gated = scratch(context, slots.n, moe.ffn);
        gate_rows(context, &hidden, moe.gate, &gated);
        let answers = scratch(context, slots.n, out.cols());
        slots.forward(context, &gated, &tables.down, |e| moe.experts[e].down.borrow(), 1, &answers);
        let shape = Shape::new(out.cols().div_ceil(128), rows, 1, 128);
        let args = args![answers.buffer(), &weights, out.buffer(), out.cols(), top_k];
        context.queue.launch(context.ops.moe_combine, shape, args);
    }
}

/// The picks of a step's rows.
struct Slots<'a> {
    picks: &'a Buffer,
    groups: Option<Groups>,
    n: usize,
}

impl Groups {
    /// Groups slots by expert, where that lets weights be read for several slots at once. Until the device has counted, all
    /// that is known is how many groups there can be: those that are not needed are empty.
    fn of(context: &mut Context, picks: &Buffer, slots: usize, n_experts: usize) -> Option<Groups> {
        if slots < MANY.max(FEWEST * n_experts) {
            return None;
        }
        let n = slots / GROUP_ROWS + n_experts;
        let counts = context.scratch("experts' slots", n_experts * 4);
        let order = context.scratch("slots by expert", slots * 4);
        let list = context.scratch("groups of slots", n * 16);
        let shape = Shape::new(n_experts.div_ceil(4), 1, 1, 128);
        context.queue.launch(context.ops.moe_count, shape, args![picks, &counts, slots, n_experts]);
        let args = args![picks, &counts, &order, &list, slots, n_experts, n];
        context.queue.launch(context.ops.moe_group, shape, args);
        Some(Groups { list, order, n })
    }
}

impl Slots<'_> {
    /// `layer` gives the expert's one of its two layers.
    fn forward<'l>(
        &self,
        context: &mut Context,
        x: &Tensor,
        tables: &[PartTable],
        layer: impl Fn(usize) -> &'l Linear,
        share: usize,
        out: &Tensor,
    ) {
        let chosen = tables.iter().enumerate().flat_map(|(p, table)| table.kinds.iter().map(move |kind| (p, kind)));
        let chosen: Vec<_> = chosen.map(|(p, kind)| (&layer(kind.first).parts[p], kind)).collect();
        // Where experts have orders, rows are rounded for each slot.
        let in_order = chosen.iter().filter(|(_, kind)| kind.orders.is_none());
        let inputs = Inputs::of(context, x, in_order.map(|(part, _)| *part));
        for (part, KindTable { weights, biases, orders, .. }) in chosen {
            let picks = Picks {
                weights,
                biases,
                orders: orders.as_ref(),
                picks: self.picks,
                groups: self.groups.as_ref(),
                slots: self.n,
                share,
            };
            part.forward_picks(context, &inputs, &picks, out);
        }
    }
}

fn scratch(context: &mut Context, rows: usize, cols: usize) -> Tensor {
    let buffer = context.scratch("experts' activations", rows * cols * 4);
    Tensor::new(rows, cols, buffer)
}

/// `out = gate(x[.., ..ffn]) * x[.., ffn..]`.
pub(crate) fn gate_rows(context: &mut Context, x: &Tensor, gate: Gate, out: &Tensor) {
    let ffn = out.cols();
    assert_eq!((x.rows(), x.cols()), (out.rows(), 2 * ffn));
    let shape = Shape::new(ffn.div_ceil(128), x.rows(), 1, 128);
    context.queue.launch(context.ops.gate, shape, args![x.buffer(), out.buffer(), ffn, gate_kind(gate)]);
}

//! Linear layers: weights packed for the kernels, multiplied by many rows of activations at once.
//!
//! ```text
//! LinearSpec ── pack ─▶ segments (one a part: Q, K, V …) of panels of 16 output features   memory.rs, kernel.rs
//!   or taken from a file that an earlier start packed                                      packed.rs
//! x ── quantize, interleave ─▶ tiles of rows                                               activations.rs
//! panels × tiles ─▶ out                                                                    blocks.rs, floats.rs
//! ```
//!
//! The kernels are written once: `blocks.rs` for block-quantized formats (`formats.rs`, `superformats.rs`,
//! `gridformats.rs` and `groupedformats.rs` say how each is stored, `codes.rs` how its integers lie), `floats.rs` for
//! float formats (`terms.rs` for those of 16 bits on machines with AMX), `generic.rs` for the rest. `lanes.rs` is their
//! vocabulary, and `kernel.rs` the table of all of them. With many rows, machines with AMX take their products on tiles,
//! `tiles/`, to the same bits.
//!
//! Invariant: every output is the same bits alone or among other rows and on any number of threads, because no f32 sum
//! is ever split or reordered; and on every instruction set, but that F16 and BF16 weights are summed in another order
//! (and activations rounded to 16 bits) where there is AMX, see `terms.rs`.

mod activations;
mod blocks;
mod codes;
mod floats;
mod formats;
mod generic;
mod gridformats;
mod groupedformats;
mod kernel;
mod lanes;
#[cfg(target_arch = "aarch64")]
mod lanes_arm;
#[cfg(target_arch = "x86_64")]
mod lanes_x86;
pub(crate) mod memory;
mod normed;
mod packed;
mod products;
mod superformats;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "terms are for machines with AMX"))]
mod terms;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tiles;

use std::ops::Range;
use std::sync::Arc;

use pelton_backend::{BackendError, Gate, LinearSpec, Placement, Weight};

pub use activations::LinearScratch;
use activations::{PARALLEL, Shared};
use blocks::{Gated, Panels, STREAMS};
use kernel::{Input, Kernel, kernel_for};
use memory::PanelMemory;
pub use packed::{PackedError, checksum, packed_source};
pub(crate) use packed::{PackedFile, PackedWriter};

use crate::isa::Isa;
use crate::pool::Pool;

/// Weights that one task should read: long enough to hide the hand-over, and within the second-level cache
/// together with a tile of activations.
const TASK_BYTES: usize = 256 << 10;
/// Tasks that a thread should get at least, so that a slow thread can be helped.
const TASKS_PER_THREAD: usize = 4;
/// The same, of calls with many rows.
const TILED_TASKS_PER_THREAD: usize = 2;

/// One part of a linear layer, `(rows, k)` of one storage type.
#[derive(Debug)]
struct Segment {
    name: String,
    kernel: Kernel,
    rows: usize,
    /// First output column.
    first_col: usize,
    panel_bytes: usize,
    panels: PanelMemory,
    /// Where panels have the columns in another order than the input features: which feature each is.
    order: Option<Arc<[u32]>>,
    /// `(rows, rounded up to 16,)`, or empty.
    bias: Vec<f32>,
}

impl Segment {
    fn n_panels(&self) -> usize {
        self.rows.div_ceil(16)
    }

    /// How a call with `rows` rows of `k` features is cut into tasks.
    fn cut(&self, rows: usize, k: usize, threads: usize) -> Cut {
        let rows_each = self.kernel.rows_of_task(rows, k);
        let wanted = if self.kernel.is_tiled(rows) {
            // Each task reads all activations of its rows, which may not be in a cache.
            self.n_panels() * rows.div_ceil(rows_each) / (threads * TILED_TASKS_PER_THREAD)
        } else {
            (TASK_BYTES / self.panel_bytes.max(1)).min(self.n_panels() / (threads * TASKS_PER_THREAD))
        };
        // Whole groups of panels that are walked side by side, unless threads would go without work.
        let streams = STREAMS.min(self.n_panels() / threads).max(1);
        let panels_each = (wanted / streams * streams).max(streams);
        Cut { rows_each, panels_each, groups: self.n_panels().div_ceil(panels_each), parts: rows.div_ceil(rows_each) }
    }
}

/// The tasks of a call: the groups of panels of the first rows, then those of the next.
#[derive(Clone, Copy)]
struct Cut {
    rows_each: usize,
    panels_each: usize,
    /// Groups of panels.
    groups: usize,
    /// Parts of the rows.
    parts: usize,
}

impl Cut {
    fn tasks(self) -> usize {
        self.groups * self.parts
    }

    /// The rows, and the first panel and the number of panels, of a task: of all `rows` and `panels`.
    fn task(self, task: usize, rows: usize, panels: usize) -> (Range<usize>, usize, usize) {
        let (row, first) = (task / self.groups * self.rows_each, task % self.groups * self.panels_each);
        (row..rows.min(row + self.rows_each), first, self.panels_each.min(panels - first))
    }
}

/// A linear layer, packed for the kernels of one instruction set.
#[derive(Debug)]
pub struct PackedLinear {
    isa: Isa,
    in_features: usize,
    out_features: usize,
    segments: Vec<Segment>,
}

impl PackedLinear {
    /// Packs a layer with the best kernels of `isa`, on all threads of `pool`; reads the weights once.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`].
    ///
    /// # Panics
    /// Where the parts are not equally wide.
    pub fn pack(spec: &LinearSpec, isa: Isa, pool: &Pool) -> Result<PackedLinear, BackendError> {
        PackedLinear::pack_with(spec, isa, pool, &|weight| kernel_for(weight, isa))
    }

    /// [`PackedLinear::pack`], but for the parts whose panels a packed file has.
    pub(crate) fn take_or_pack(
        spec: &LinearSpec,
        isa: Isa,
        pool: &Pool,
        file: &mut PackedFile,
    ) -> Result<PackedLinear, BackendError> {
        let choose = |weight: &Weight| kernel_for(weight, isa);
        PackedLinear::assemble(spec, isa, pool, &choose, &mut |weight, kernel| file.take(weight, kernel))
    }

    /// Appends its parts to a packed file.
    pub(crate) fn store(&self, file: &mut PackedWriter, pool: &Pool) -> Result<(), PackedError> {
        for s in &self.segments {
            file.push((&s.name, s.kernel.dtype, s.rows, self.in_features), s.panel_bytes, s.panels.bytes(), pool)?;
        }
        Ok(())
    }

    /// Packs a layer with the kernels that `choose` picks.
    fn pack_with(
        spec: &LinearSpec,
        isa: Isa,
        pool: &Pool,
        choose: &dyn Fn(&Weight) -> Kernel,
    ) -> Result<PackedLinear, BackendError> {
        PackedLinear::assemble(spec, isa, pool, choose, &mut |_, _| None)
    }

    /// Takes the panels that `find` has and packs the others.
    fn assemble(
        spec: &LinearSpec,
        isa: Isa,
        pool: &Pool,
        choose: &dyn Fn(&Weight) -> Kernel,
        find: &mut dyn FnMut(&Weight, &Kernel) -> Option<PanelMemory>,
    ) -> Result<PackedLinear, BackendError> {
        let mut segments = Vec::with_capacity(spec.parts.len());
        let mut first_col = 0;
        for weight in &spec.parts {
            // `LinearSpec::new` saw to it, but its fields are open, and kernels walk `in_features` of every part.
            assert_eq!(weight.cols(), spec.in_features(), "{weight:?} in {}", spec.name);
            let kernel = choose(weight);
            let (rows, panel_bytes) = (weight.rows(), (kernel.panel_bytes)(weight.dtype(), weight.cols()));
            let n_panels = rows.div_ceil(16);
            let fill = |panel: usize, out: &mut [u8]| (kernel.pack)(weight, panel, out);
            let pack = || PanelMemory::new(n_panels, panel_bytes, pool, &fill);
            let panels = find(weight, &kernel).or_else(pack).ok_or_else(|| {
                let bytes = n_panels.saturating_mul(panel_bytes);
                BackendError::OutOfMemory { what: format!("packing {}", weight.name()), bytes }
            })?;
            let mut bias = spec.bias.get(first_col..first_col + rows).unwrap_or_default().to_vec();
            bias.resize(if bias.is_empty() { 0 } else { 16 * n_panels }, 0.0);
            let name = weight.name().to_string();
            let order = weight.as_grouped().filter(|_| kernel.in_groups).and_then(|grouped| grouped.order().cloned());
            segments.push(Segment { name, kernel, rows, first_col, panel_bytes, panels, order, bias });
            first_col += rows;
        }
        Ok(PackedLinear { isa, in_features: spec.in_features(), out_features: first_col, segments })
    }

    /// Width of the input.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Width of the output.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Bytes that one pass over the weights reads.
    pub fn bytes(&self) -> usize {
        self.segments.iter().map(|s| s.panels.bytes().len()).sum()
    }

    /// Which kernel reads each part.
    pub fn placement(&self) -> Vec<Placement> {
        let of = |s: &Segment| Placement {
            name: s.name.clone(),
            dtype: s.kernel.dtype,
            kernel: s.kernel.name,
            bytes: s.panels.bytes().len(),
        };
        self.segments.iter().map(of).collect()
    }

    /// `out (rows, out_features) = x (rows, in_features) W^T + bias`.
    ///
    /// Quantized formats see `x` rounded to signed bytes, with one scale for each 256 values of a row (the exact
    /// recipe is in `activations.rs`); float formats see it as it is. A value of `x` that is not finite makes its
    /// row's outputs NaN (or, for float formats, what IEEE arithmetic gives) and no other row's.
    ///
    /// # Panics
    /// Where `x` or `out` is not `rows` rows long.
    pub fn forward(&self, x: &[f32], rows: usize, out: &mut [f32], scratch: &mut LinearScratch, pool: &Pool) {
        // Checked: the kernels trust these lengths, and a product that wraps around would pass.
        assert_eq!(Some(x.len()), rows.checked_mul(self.in_features), "x is (rows, in_features)");
        assert_eq!(Some(out.len()), rows.checked_mul(self.out_features), "out is (rows, out_features)");
        if rows == 0 {
            return;
        }
        let out = Shared(out.as_mut_ptr());
        for segments in self.segments.chunk_by(|a, b| a.order == b.order) {
            match &segments[0].order {
                None => self.multiply(segments, x, rows, &out, scratch, pool),
                Some(order) => {
                    scratch.rows_are(0);
                    let mut dealt = std::mem::take(&mut scratch.dealt);
                    deal(x, order, &mut dealt, pool);
                    self.multiply(segments, &dealt, rows, &out, scratch, pool);
                    scratch.dealt = dealt;
                }
            }
        }
    }

    /// Multiplies segments whose columns are in the order of `x`; `out` is that of all segments.
    fn multiply(
        &self,
        segments: &[Segment],
        x: &[f32],
        rows: usize,
        out: &Shared<f32>,
        scratch: &mut LinearScratch,
        pool: &Pool,
    ) {
        self.prepare(segments, x, rows, scratch, pool);
        let floats = if rows > 1 { &scratch.floats } else { x };
        let threads = pool.threads();
        let cut = |s: &Segment| s.cut(rows, self.in_features, threads);
        let n_tasks = segments.iter().map(|s| cut(s).tasks()).sum();
        let scratch = &*scratch;
        pool.run(n_tasks, &|mut task| {
            for segment in segments {
                let cut = cut(segment);
                if task < cut.tasks() {
                    let part = cut.task(task, rows, segment.n_panels());
                    let activations = Activations { rows, k: self.in_features, scratch, floats };
                    // SAFETY: `out` has `rows` rows (forward saw to it), and tasks own disjoint parts of it.
                    unsafe { segment.run(part, &activations, (out.get(), self.out_features), None) };
                    return;
                }
                task -= cut.tasks();
            }
        });
    }
}

impl PackedLinear {
    /// Makes activations ready for some parts.
    fn prepare(&self, segments: &[Segment], x: &[f32], rows: usize, scratch: &mut LinearScratch, pool: &Pool) {
        let wants = |input| segments.iter().any(|s| s.kernel.input_of(rows) == input);
        let k = self.in_features;
        if wants(Input::Blocks) && !scratch.has(Input::Blocks, rows, k) {
            scratch.quantize(x, rows, self.isa, pool);
        }
        #[cfg(target_arch = "x86_64")]
        if wants(Input::Tiles) && !scratch.has(Input::Tiles, rows, k) {
            scratch.tiles.quantize(x, rows, pool);
        }
        if wants(Input::Terms) {
            scratch.terms.split(x, rows, self.isa, pool);
        }
        #[cfg(target_arch = "x86_64")]
        if wants(Input::TermTiles) {
            scratch.terms.tiles.split(x, rows, pool);
        }
        // A single row is its own interleaving.
        if wants(Input::Floats) && rows > 1 {
            scratch.interleave(x, rows, pool);
        }
    }

    /// `out (rows, out_features / 2) = gate(h) * up`, where the columns of `h` and then of `up` are those of
    /// [`PackedLinear::forward`]: the same bits as one after the other, but the outputs need not be stored and read
    /// again. Returns `false`, and does nothing, where these weights on this machine, or so few rows, gain nothing.
    ///
    /// # Panics
    /// Where `x` or `out` is not `rows` rows long.
    pub fn forward_gated(
        &self,
        x: &[f32],
        rows: usize,
        gate: Gate,
        out: &mut [f32],
        scratch: &mut LinearScratch,
        pool: &Pool,
    ) -> bool {
        let ffn = self.out_features / 2;
        let [first, .., last] = &*self.segments else { return false };
        let halves = self.segments.len() == 2 && first.rows == ffn && ffn.is_multiple_of(16);
        let alike = first.kernel.dtype == last.kernel.dtype && first.panel_bytes == last.panel_bytes;
        let in_order = self.segments.iter().all(|s| s.order.is_none());
        if !(halves && alike && in_order && [first, last].iter().all(|s| s.kernel.gates(rows, self.in_features))) {
            return false;
        }
        assert_eq!(Some(x.len()), rows.checked_mul(self.in_features), "x is (rows, in_features)");
        assert_eq!(Some(out.len()), rows.checked_mul(ffn), "out is (rows, out_features / 2)");
        self.prepare(&self.segments, x, rows, scratch, pool);
        let cut = first.cut(rows, self.in_features, pool.threads());
        let out = Shared(out.as_mut_ptr());
        let activations = Activations { rows, k: self.in_features, scratch, floats: &[] };
        pool.run(cut.tasks(), &|task| {
            let part = cut.task(task, rows, first.n_panels());
            // SAFETY: `out` has `rows` rows (asserted), and tasks own disjoint parts of it.
            unsafe {
                let (up, bias) = last.part(part.1, part.2);
                let gated = Gated { gate, weights: up.as_ptr(), bias };
                first.run(part, &activations, (out.get(), ffn), Some(gated));
            }
        });
        true
    }
}

/// Deals the columns of `x`, rows of as many as `order` has, in that order.
fn deal(x: &[f32], order: &[u32], out: &mut Vec<f32>, pool: &Pool) {
    let k = order.len();
    out.resize(x.len(), 0.0);
    let all = Shared(out.as_mut_ptr());
    let task = |row: usize| {
        let x = &x[row * k..(row + 1) * k];
        // SAFETY: each row belongs to one task.
        let out = unsafe { std::slice::from_raw_parts_mut(all.get().add(row * k), k) };
        out.iter_mut().zip(order).for_each(|(out, &j)| *out = x[j as usize]);
    };
    let rows = x.len() / k;
    if x.len() < PARALLEL { (0..rows).for_each(task) } else { pool.run(rows, &task) }
}

/// A call's activations, in tiles.
struct Activations<'a> {
    rows: usize,
    k: usize,
    scratch: &'a LinearScratch,
    floats: &'a [f32],
}

impl Segment {
    /// Panels `first..first + n` and their bias.
    fn part(&self, first: usize, n: usize) -> (&[u8], &[f32]) {
        let panels = &self.panels.bytes()[first * self.panel_bytes..][..n * self.panel_bytes];
        (panels, if self.bias.is_empty() { &[] } else { &self.bias[16 * first..16 * (first + n)] })
    }

    /// Multiplies panels `first..first + n` by rows; `gated` are those of another segment, gated by these.
    ///
    /// # Safety
    /// `out` points to `(rows, out_stride)` floats, and nobody else uses these rows and columns of it. `gated` are as many
    /// panels, of the same kernel, which [`Kernel::gates`].
    unsafe fn run(
        &self,
        (row_range, first, n): (Range<usize>, usize, usize),
        x: &Activations<'_>,
        (out, out_stride): (*mut f32, usize),
        gated: Option<Gated<'_>>,
    ) {
        let (weights, bias) = self.part(first, n);
        // SAFETY: the segment's columns are within a row.
        let out = unsafe { out.add(self.first_col + 16 * first) };
        let task = Panels {
            weights: weights.as_ptr(),
            panel_bytes: self.panel_bytes,
            n_panels: n,
            k: x.k,
            rows: x.rows,
            row_range,
            scratch: x.scratch,
            floats: x.floats,
            bias,
            out,
            out_stride,
            cols: self.rows - 16 * first,
            gated,
        };
        // SAFETY: the panels are this kernel's, and the columns are the caller's promise.
        unsafe { self.kernel.run(&task) }
    }
}

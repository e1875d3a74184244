//! [`Cpu`]: the ops of a model on this machine's cores.
//!
//! Each op checks shapes once, splits its rows over the pool where that pays, and runs a kernel compiled for the
//! instruction set. Invariant: a row's bits depend on the row, its sequence's KV and the instruction set; never on
//! the other rows, the number of threads or how a prompt was cut into chunks.

use std::cmp::Reverse;

use pelton_backend::{
    Attention, Backend, BackendError, Batch, Gate, HeadNorms, Heads, KvLayout, LinearSpec, Moe, PAGE_LEN, Placement,
    Rope, Weight,
};

use crate::attention::{TILE, Tile, TileAttention};
use crate::embed::Embedding;
use crate::gate::SoftCap;
use crate::isa::{Isa, IsaError};
use crate::kv::{Element, Kv, Layer};
use crate::linear::{LinearScratch, PackedLinear};
use crate::machine::Machine;
use crate::moe::{self, MoeScratch};
use crate::norm::{Add, AddRmsNorm, RmsNorm};
use crate::pool::Pool;
use crate::rope::RopeStore;
use crate::tensor::{Shared, Tensor};

/// How to set up a [`Cpu`].
#[derive(Clone, Debug, Default)]
pub struct CpuOptions {
    /// Threads that work on an op; all that the process may use where not given.
    pub threads: Option<usize>,
    /// Instruction set to use at most (`scalar`, `avx2`, `avx512`); the best of the machine where not given.
    pub isa: Option<String>,
}

/// Why a [`Cpu`] could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// A forced instruction set that the machine lacks.
    #[error(transparent)]
    Isa(#[from] IsaError),
    /// The system refused a thread.
    #[error("cannot start {threads} threads: {source}; ask for fewer")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// What the system said.
        source: std::io::Error,
    },
}

/// The CPU backend.
#[derive(Debug)]
pub struct Cpu {
    machine: Machine,
    linear: LinearScratch,
    moe: MoeScratch,
    tiles: Vec<Tile>,
}

impl Cpu {
    /// A backend with its own threads.
    ///
    /// # Errors
    /// [`CpuError`] where the machine lacks the forced instruction set or the threads.
    pub fn new(options: CpuOptions) -> Result<Cpu, CpuError> {
        let isa = options.isa.as_deref().map_or_else(|| Ok(Isa::detect()), Isa::best_at_most)?;
        let threads = options.threads.unwrap_or_else(Pool::default_threads);
        let pool = Pool::new(threads).map_err(|source| CpuError::Threads { threads, source })?;
        let machine = Machine { isa, pool };
        Ok(Cpu { machine, linear: LinearScratch::default(), moe: MoeScratch::default(), tiles: Vec::new() })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.machine.isa
    }

    /// Threads that work on an op.
    pub fn threads(&self) -> usize {
        self.machine.pool.threads()
    }

    /// GB/s that the threads read from memory together, measured over a buffer of `bytes` bytes.
    pub fn read_bandwidth(&self, bytes: usize) -> f64 {
        crate::measure_read_bandwidth(&self.machine.pool, bytes)
    }
}

/// Consecutive rows of one sequence that fall into one page.
#[derive(Clone, Copy, Debug, PartialEq)]
struct PageRun {
    row: usize,
    len: usize,
    page: u32,
    slot: usize,
}

/// A batch with the rotation of each row and the pages that rows go to.
#[derive(Debug)]
pub struct Prepared {
    batch: Batch,
    /// `(rows, half)` each.
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// Pairs that are rotated: half of the rotary dimension.
    half: usize,
    runs: Vec<PageRun>,
}

/// Cuts the spans of a batch at page boundaries.
///
/// # Panics
/// Where spans overlap or leave rows out, or two of them would write one page: tasks rely on that.
fn page_runs(batch: &Batch) -> Vec<PageRun> {
    let mut runs = Vec::with_capacity(batch.spans.len() + batch.rows() / PAGE_LEN);
    for span in &batch.spans {
        let pages = batch.page_table(span);
        let mut done = 0;
        while done < span.len {
            let position = span.cached_len + done;
            let slot = position % PAGE_LEN;
            let len = (PAGE_LEN - slot).min(span.len - done);
            runs.push(PageRun { row: span.row + done, len, page: pages[position / PAGE_LEN], slot });
            done += len;
        }
    }
    let mut next = 0;
    for run in &runs {
        assert_eq!(run.row, next, "spans lie side by side");
        next += run.len;
    }
    assert_eq!(next, batch.rows(), "every row is in a span");
    let mut written: Vec<u32> = runs.iter().map(|r| r.page).collect();
    written.sort_unstable();
    assert!(written.windows(2).all(|w| w[0] != w[1]), "a page is written by one sequence");
    runs
}

impl Backend for Cpu {
    type Tensor = Tensor;
    type Vector = Vec<f32>;
    type Linear = PackedLinear;
    type Embedding = Embedding;
    type Kv = Kv;
    type Prepared = Prepared;

    fn describe(&self) -> String {
        let isa = match self.machine.isa {
            Isa::Scalar => "scalar",
            Isa::Avx2(token) if token.has_vnni() => "avx2-vnni",
            Isa::Avx2(_) => "avx2",
            Isa::Avx512(_) => "avx512-vnni",
            Isa::Amx(_) => "avx512-vnni + amx",
        };
        let threads = self.threads();
        format!("cpu {isa}, {threads} thread{}", if threads == 1 { "" } else { "s" })
    }

    fn load_linear(&mut self, spec: &LinearSpec) -> Result<PackedLinear, BackendError> {
        PackedLinear::pack(spec, self.machine.isa, &self.machine.pool)
    }

    fn placement(&self, linear: &PackedLinear) -> Vec<Placement> {
        linear.placement()
    }

    fn load_embedding(&mut self, table: &Weight) -> Result<Embedding, BackendError> {
        Ok(Embedding::new(table))
    }

    fn load_vector(&mut self, values: &[f32]) -> Vec<f32> {
        values.to_vec()
    }

    fn kv_pool(&mut self, layout: &KvLayout) -> Result<Kv, BackendError> {
        Kv::new(layout)
    }

    fn copy_page(&mut self, kv: &mut Kv, from: u32, to: u32) {
        kv.copy_page(from, to);
    }

    fn alloc(&mut self, rows: usize, cols: usize) -> Tensor {
        Tensor::new(rows, cols)
    }

    fn set_rows(&mut self, tensor: &mut Tensor, rows: usize) {
        tensor.reshape(rows, tensor.cols());
    }

    fn prepare(&mut self, batch: &Batch, rope: &Rope) -> Prepared {
        let half = rope.inv_freq.len();
        let (mut cos, mut sin) = (vec![0.0; batch.rows() * half], vec![0.0; batch.rows() * half]);
        let (to_cos, to_sin) = (Shared::new(&mut cos), Shared::new(&mut sin));
        // A sine and a cosine of the system's mathematics library: some 100 operations.
        self.machine.rows(batch.rows(), 100 * half, &|rows| {
            for r in rows {
                // SAFETY: each row belongs to one task.
                let (cos, sin) =
                    unsafe { (to_cos.part(r * half..(r + 1) * half), to_sin.part(r * half..(r + 1) * half)) };
                let position = batch.positions[r] as f32;
                for (i, f) in rope.inv_freq.iter().enumerate() {
                    let (s, c) = (position * f).sin_cos();
                    (cos[i], sin[i]) = (c * rope.scale, s * rope.scale);
                }
            }
        });
        Prepared { runs: page_runs(batch), batch: batch.clone(), cos, sin, half }
    }

    fn embed(&mut self, batch: &Prepared, table: &Embedding, scale: f32, out: &mut Tensor) {
        let ids = &batch.batch.ids;
        let hidden = table.hidden();
        assert_eq!((out.rows(), out.cols()), (ids.len(), hidden));
        let to = Shared::new(out.data_mut());
        self.machine.rows(ids.len(), 8 * hidden, &|rows| {
            for r in rows {
                // SAFETY: each row belongs to one task.
                table.row(ids[r], scale, unsafe { to.part(r * hidden..(r + 1) * hidden) });
            }
        });
    }

    fn rms_norm(&mut self, x: &Tensor, weight: &Vec<f32>, eps: f32, out: &mut Tensor) {
        let cols = x.cols();
        assert_eq!((out.rows(), out.cols(), weight.len()), (x.rows(), cols, cols));
        let to = Shared::new(out.data_mut());
        self.machine.rows(x.rows(), 4 * cols, &|rows| {
            let range = rows.start * cols..rows.end * cols;
            // SAFETY: each row belongs to one task.
            let out = unsafe { to.part(range.clone()) };
            self.machine.run(RmsNorm { x: &x.data()[range], weight, eps, out });
        });
    }

    fn add(&mut self, x: &mut Tensor, y: &Tensor) {
        let cols = x.cols();
        assert_eq!((x.rows(), cols), (y.rows(), y.cols()));
        let rows = x.rows();
        let to = Shared::new(x.data_mut());
        self.machine.rows(rows, 2 * cols, &|rows| {
            let range = rows.start * cols..rows.end * cols;
            // SAFETY: each row belongs to one task.
            let x = unsafe { to.part(range.clone()) };
            self.machine.run(Add { x, y: &y.data()[range] });
        });
    }

    fn add_rms_norm(&mut self, x: &mut Tensor, y: &Tensor, weight: &Vec<f32>, eps: f32, out: &mut Tensor) {
        let (rows, cols) = (x.rows(), x.cols());
        assert_eq!((out.rows(), out.cols(), weight.len()), (rows, cols, cols));
        assert_eq!((y.rows(), y.cols()), (rows, cols));
        let (to_x, to_out) = (Shared::new(x.data_mut()), Shared::new(out.data_mut()));
        self.machine.rows(rows, 6 * cols, &|rows| {
            let range = rows.start * cols..rows.end * cols;
            // SAFETY: each row belongs to one task.
            let (x, out) = unsafe { (to_x.part(range.clone()), to_out.part(range.clone())) };
            self.machine.run(AddRmsNorm { x, y: &y.data()[range], weight, eps, out });
        });
    }

    fn linear(&mut self, x: &Tensor, linear: &PackedLinear, out: &mut Tensor) {
        let (rows, cols) = (linear.in_features(), linear.out_features());
        assert_eq!((x.cols(), out.cols(), out.rows()), (rows, cols, x.rows()));
        linear.forward(x.data(), x.rows(), out.data_mut(), &mut self.linear, &self.machine.pool);
    }

    fn rope_store_kv(
        &mut self,
        qkv: &mut Tensor,
        batch: &Prepared,
        heads: Heads,
        norms: Option<HeadNorms<'_, Vec<f32>>>,
        layer: usize,
        kv: &mut Kv,
    ) {
        let layout = kv.layout();
        assert_eq!((qkv.rows(), qkv.cols()), (batch.batch.rows(), heads.qkv_dim()));
        assert_eq!((layout.n_kv_heads, layout.head_dim), (heads.n_kv_heads, heads.head_dim));
        assert!(2 * batch.half <= heads.head_dim, "rotation of {} in {}", 2 * batch.half, heads.head_dim);
        if let Some(norms) = &norms {
            assert_eq!((norms.q.len(), norms.k.len()), (heads.head_dim, heads.head_dim));
        }
        let geometry = kv.geometry();
        let norms = norms.map(|n| (n.q.as_slice(), n.k.as_slice(), n.eps));
        let store = Store { machine: &self.machine, qkv: Shared::new(qkv.data_mut()), batch, heads, norms, geometry };
        match kv.layer_mut(layer) {
            Layer::F32(pool) => store.run(&pool),
            Layer::F16(pool) => store.run(&pool),
            Layer::Bf16(pool) => store.run(&pool),
        }
    }

    fn paged_attention(
        &mut self,
        qkv: &Tensor,
        batch: &Prepared,
        attention: &Attention,
        layer: usize,
        kv: &Kv,
        out: &mut Tensor,
    ) {
        let (heads, layout) = (&attention.heads, kv.layout());
        assert_eq!((qkv.rows(), qkv.cols()), (batch.batch.rows(), heads.qkv_dim()));
        assert_eq!((out.rows(), out.cols()), (qkv.rows(), heads.q_dim()));
        assert_eq!((layout.n_kv_heads, layout.head_dim), (heads.n_kv_heads, heads.head_dim));
        assert!(attention.window != Some(0), "a window of 0 sees nothing");
        tiles(&batch.batch, attention, &mut self.tiles);
        let out = Shared::new(out.data_mut());
        let attend = Attend { machine: &self.machine, tiles: &self.tiles, qkv, batch, attention, kv, out: &out };
        match kv.layer(layer) {
            Layer::F32(pool) => attend.run(pool),
            Layer::F16(pool) => attend.run(pool),
            Layer::Bf16(pool) => attend.run(pool),
        }
    }

    fn gate(&mut self, x: &Tensor, gate: Gate, out: &mut Tensor) {
        moe::gate_rows(&self.machine, x, gate, out);
    }

    fn moe(&mut self, x: &Tensor, moe: &Moe<PackedLinear>, out: &mut Tensor) {
        assert_eq!(x.rows(), out.rows());
        self.moe.forward(&self.machine, x, moe, out, &mut self.linear);
    }

    fn gather_logit_rows(&mut self, x: &Tensor, batch: &Prepared, out: &mut Tensor) {
        let wanted = &batch.batch.logit_rows;
        assert_eq!((out.rows(), out.cols()), (wanted.len(), x.cols()));
        for (out, &r) in out.data_mut().chunks_exact_mut(x.cols()).zip(wanted) {
            out.copy_from_slice(x.row(r as usize));
        }
    }

    fn softcap(&mut self, x: &mut Tensor, cap: f32) {
        let (rows, cols) = (x.rows(), x.cols());
        let to = Shared::new(x.data_mut());
        self.machine.rows(rows, 32 * cols, &|rows| {
            // SAFETY: each row belongs to one task.
            let x = unsafe { to.part(rows.start * cols..rows.end * cols) };
            self.machine.run(SoftCap { x, cap });
        });
    }

    fn read(&mut self, x: &Tensor, out: &mut Vec<f32>) {
        out.clear();
        out.extend_from_slice(x.data());
    }
}

/// `rope_store_kv` for one element type.
struct Store<'a> {
    machine: &'a Machine,
    qkv: Shared<'a, f32>,
    batch: &'a Prepared,
    heads: Heads,
    norms: Option<(&'a [f32], &'a [f32], f32)>,
    geometry: crate::kv::Geometry,
}

impl Store<'_> {
    fn run<E: Element>(&self, pool: &Shared<'_, E>) {
        let (width, half) = (self.heads.qkv_dim(), self.batch.half);
        let page_len = self.heads.n_kv_heads * self.geometry.block_len();
        self.machine.tasks(self.batch.runs.len(), 8 * self.batch.batch.rows() * width, &|i| {
            let run = self.batch.runs[i];
            let (first, end) = (run.row, run.row + run.len);
            let page = self.geometry.block(run.page, 0);
            // SAFETY: a run's rows belong to one task, and so does its page: a page that is written belongs to one
            // sequence, and a sequence's rows in one page are one run.
            let (qkv, page) = unsafe { (self.qkv.part(first * width..end * width), pool.part(page..page + page_len)) };
            self.machine.run(RopeStore {
                qkv,
                heads: self.heads,
                cos: &self.batch.cos[first * half..end * half],
                sin: &self.batch.sin[first * half..end * half],
                norms: self.norms,
                geometry: self.geometry,
                page,
                slot: run.slot,
            });
        });
    }
}

/// `paged_attention` for one element type.
struct Attend<'a> {
    machine: &'a Machine,
    tiles: &'a [Tile],
    qkv: &'a Tensor,
    batch: &'a Prepared,
    attention: &'a Attention,
    kv: &'a Kv,
    out: &'a Shared<'a, f32>,
}

impl Attend<'_> {
    fn run<E: Element>(&self, pool: &[E]) {
        let costs = self.tiles.iter().map(|t| t.cost(self.attention.window));
        // Two products, each an operation per element of the head, at some 8 operations a vector instruction.
        let operations = costs.fold(0, usize::saturating_add).saturating_mul(self.attention.heads.head_dim / 4);
        self.machine.tasks(self.tiles.len(), operations, &|i| {
            self.machine.run(TileAttention {
                tile: self.tiles[i],
                attention: self.attention,
                geometry: self.kv.geometry(),
                pool,
                pages: &self.batch.batch.pages,
                qkv: self.qkv.data(),
                out: self.out,
            });
        });
    }
}

/// Cuts a batch into tiles, the longest work first.
fn tiles(batch: &Batch, attention: &Attention, tiles: &mut Vec<Tile>) {
    let heads = &attention.heads;
    let group = heads.n_heads / heads.n_kv_heads;
    assert_eq!(group * heads.n_kv_heads, heads.n_heads, "whole groups of query heads");
    tiles.clear();
    let n_heads = group.min(TILE);
    let n_rows = TILE / n_heads;
    for span in &batch.spans {
        for first in (0..span.len).step_by(n_rows) {
            for kv_head in 0..heads.n_kv_heads {
                for head in (0..group).step_by(n_heads) {
                    tiles.push(Tile {
                        row: span.row + first,
                        n_rows: n_rows.min(span.len - first),
                        position: span.cached_len + first,
                        head: kv_head * group + head,
                        n_heads: n_heads.min(group - head),
                        page_start: span.page_start,
                        n_pages: span.n_pages,
                    });
                }
            }
        }
    }
    // Stable, and without allocation for the few tiles of a decode step.
    tiles.sort_by_key(|t| Reverse(t.cost(attention.window)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use pelton_backend::BatchBuilder;

    #[test]
    fn spans_are_cut_at_page_boundaries() {
        let mut b = BatchBuilder::new(8);
        b.push(&[0; 40], 30, &[3, 4, 6], 1).unwrap();
        b.push(&[0; 1], 0, &[7], 1).unwrap();
        let run = |row, len, page, slot| PageRun { row, len, page, slot };
        assert_eq!(page_runs(&b.finish()), [run(0, 2, 3, 30), run(2, 32, 4, 0), run(34, 6, 6, 0), run(40, 1, 7, 0)]);
    }

    #[test]
    fn tiles_cover_every_row_and_head_once() {
        let mut b = BatchBuilder::new(64);
        b.push(&[0; 33], 5, &[0, 1], 1).unwrap();
        b.push(&[0; 1], 300, &(2..13).collect::<Vec<_>>(), 1).unwrap();
        let batch = b.finish();
        for (n_heads, n_kv_heads) in [(14, 2), (3, 3), (96, 1), (7, 1), (65, 1)] {
            let heads = Heads { n_heads, n_kv_heads, head_dim: 8 };
            let mut out = Vec::new();
            tiles(&batch, &Attention { heads, scale: 1.0, softcap: None, window: None }, &mut out);
            let mut seen = vec![0; batch.rows() * n_heads];
            for t in &out {
                assert!(t.n_rows * t.n_heads <= TILE);
                assert_eq!(t.head / (n_heads / n_kv_heads), (t.head + t.n_heads - 1) / (n_heads / n_kv_heads));
                for r in t.row..t.row + t.n_rows {
                    (t.head..t.head + t.n_heads).for_each(|h| seen[r * n_heads + h] += 1);
                }
            }
            assert!(seen.iter().all(|&n| n == 1), "{n_heads}/{n_kv_heads}");
        }
    }

    #[test]
    fn a_missing_instruction_set_is_an_error() {
        let error = Cpu::new(CpuOptions { isa: Some("sve2".into()), ..CpuOptions::default() }).unwrap_err();
        assert!(error.to_string().contains("sve2"), "{error}");
    }
}

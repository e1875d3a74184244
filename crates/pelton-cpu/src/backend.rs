//! [`Cpu`]: the ops of a model on this machine's cores.
//!
//! Each op checks shapes once, splits its rows over the pool where that pays, and runs a kernel compiled for the
//! instruction set. Invariant: a row's bits depend on the row, its sequence's KV and the instruction set; never on
//! the other rows, the number of threads or how a prompt was cut into chunks.

use std::borrow::Borrow;
use std::ops::Range;
use std::path::Path;

use half::f16;
use pelton_backend::{
    Attention, Backend, BackendError, Batch, Gate, HeadNorms, Heads, KvLayout, LinearSpec, Moe, PAGE_LEN, Placement,
    Rope, Weight,
};

use crate::attention::{AttentionScratch, Operands};
use crate::cores::Cores;
use crate::embed::Embedding;
use crate::gate::SoftCap;
use crate::isa::{Isa, IsaError};
use crate::kv::paired::{Coded, Fp8, Int8, Pairs};
use crate::kv::wide::Wide;
use crate::kv::{Format, Kv, Typed};
use crate::linear::{LinearScratch, PackedError, PackedFile, PackedLinear, PackedWriter};
use crate::machine::Machine;
use crate::moe::{self, MoeScratch};
use crate::norm::{Add, AddRmsNorm, RmsNorm};
use crate::pool::Pool;
use crate::rope::RopeStore;
use crate::tensor::{Shared, Tensor};

/// How to set up a [`Cpu`].
#[derive(Clone, Debug, Default)]
pub struct CpuOptions {
    /// Threads that work on an op of a decoding step; where not given, one for each core that the process may use
    /// ([`Cores::default_threads`]).
    pub threads: Option<usize>,
    /// Threads for a step of more than [`DECODE_ROWS`] rows; as many as for decoding where not given.
    pub batch_threads: Option<usize>,
    /// Instruction set to use at most, by name ([`Isa::best_at_most`]); the best of the machine where not given.
    pub isa: Option<String>,
}

/// A step of more rows reads prompts: it is bound by arithmetic, and may gain from more threads than one that is
/// bound by memory.
pub const DECODE_ROWS: usize = 16;

/// Why a [`Cpu`] could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// A forced instruction set that the machine lacks.
    #[error(transparent)]
    Isa(#[from] IsaError),
    /// The system refused a thread.
    #[error("cannot start {threads} threads: {source}")]
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
    /// For steps of up to [`DECODE_ROWS`] rows.
    threads: usize,
    /// For steps of more.
    batch_threads: usize,
    packed: Packed,
    linear: LinearScratch,
    moe: MoeScratch,
    attention: AttentionScratch,
}

/// Where the panels of linear layers come from, and whether they are kept.
#[derive(Debug, Default)]
enum Packed {
    /// From packing.
    #[default]
    Off,
    /// From a file, as far as it has them.
    From(PackedFile),
    /// From packing, and into a file.
    Into(PackedWriter),
    /// From packing, since the file could not be written.
    Failed(PackedError),
}

/// What became of a packed file.
#[derive(Debug)]
pub enum PackedOutcome {
    /// There was none to read or write.
    Off,
    /// Panels were mapped.
    Mapped {
        /// Bytes of them.
        bytes: usize,
        /// Matrices that the file lacked and that were packed.
        missed: usize,
    },
    /// The file was written.
    Written {
        /// Its length.
        bytes: u64,
    },
    /// It could not be written; the model runs as without it.
    Failed(PackedError),
}

impl Cpu {
    /// A backend with its own threads.
    ///
    /// # Errors
    /// [`CpuError`] where the machine lacks the forced instruction set or the threads.
    pub fn new(options: CpuOptions) -> Result<Cpu, CpuError> {
        let isa = options.isa.as_deref().map_or_else(|| Ok(Isa::detect()), Isa::best_at_most)?;
        let threads = options.threads.unwrap_or_else(Pool::default_threads);
        let batch_threads = options.batch_threads.unwrap_or(threads);
        let most = if threads.min(batch_threads) == 0 { 0 } else { threads.max(batch_threads) };
        let pool = Pool::bound(most, Cores::detect()).map_err(|source| CpuError::Threads { threads: most, source })?;
        let machine = Machine { isa, pool };
        Ok(Cpu {
            machine,
            threads,
            batch_threads,
            packed: Packed::Off,
            linear: LinearScratch::default(),
            moe: MoeScratch::default(),
            attention: AttentionScratch::default(),
        })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.machine.isa
    }

    /// Threads that work on an op of a decoding step.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Threads that work on an op of a step of more than [`DECODE_ROWS`] rows.
    pub fn batch_threads(&self) -> usize {
        self.batch_threads
    }

    /// From now on takes the panels of linear layers from the packed file at `path`, if it was packed from `source`;
    /// `false` where there is none. All of it is checked first; `progress` gets bytes done and of all.
    ///
    /// # Errors
    /// [`PackedError`] where there is a file that cannot be used; layers are packed as without it.
    pub fn read_packed(
        &mut self,
        path: &Path,
        source: &str,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<bool, PackedError> {
        self.packed = Packed::Off;
        if let Some(file) = PackedFile::open(path, source, &self.machine.pool, progress)? {
            self.packed = Packed::From(file);
        }
        Ok(matches!(self.packed, Packed::From(_)))
    }

    /// From now on writes the panels of linear layers to a packed file, too. It appears at `path` with
    /// [`Cpu::finish_packed`].
    ///
    /// # Errors
    /// [`PackedError`] where no file can be made there.
    pub fn write_packed(&mut self, path: &Path, source: &str) -> Result<(), PackedError> {
        self.packed = Packed::Into(PackedWriter::create(path, source)?);
        Ok(())
    }

    /// Ends what [`Cpu::read_packed`] or [`Cpu::write_packed`] began.
    pub fn finish_packed(&mut self) -> PackedOutcome {
        match std::mem::take(&mut self.packed) {
            Packed::Off => PackedOutcome::Off,
            Packed::From(file) => PackedOutcome::Mapped { bytes: file.used_bytes, missed: file.missed },
            Packed::Into(file) => match file.finish() {
                Ok(bytes) => PackedOutcome::Written { bytes },
                Err(e) => PackedOutcome::Failed(e),
            },
            Packed::Failed(e) => PackedOutcome::Failed(e),
        }
    }

    /// How many threads there are and where they run, for people: `2 threads on their own cores`.
    fn describe_threads(&self) -> String {
        let (cores, pool) = (Cores::detect(), &self.machine.pool);
        let most = pool.most_threads();
        let mut text = format!("{} thread{}", self.threads, if self.threads == 1 { "" } else { "s" });
        if self.batch_threads != self.threads {
            text += &format!(" ({} for prompts)", self.batch_threads);
        }
        text += &match (cores.physical(), cores.logical()) {
            (physical, _) if most == physical && pool.is_bound() => ", each bound to a core".to_string(),
            (physical, _) if most < physical => format!(" on {physical} cores"),
            (_, logical) if most == logical && pool.is_bound() => ", each bound to a hardware thread".to_string(),
            (physical, logical) if most > logical => format!(" on only {physical} cores"),
            _ => String::new(),
        };
        if let Some(quota) = cores.quota() {
            text += &format!(", CPU quota {quota:.1}");
        }
        text
    }

    #[cfg(test)]
    pub(crate) fn linear_scratch(&self) -> &LinearScratch {
        &self.linear
    }

    /// GB/s that the threads read from memory together, measured over a buffer of `bytes` bytes.
    pub fn read_bandwidth(&self, bytes: usize) -> f64 {
        crate::measure_read_bandwidth(&self.machine.pool, bytes)
    }

    /// What the threads could do at best; `bytes` is the size of the buffer that is read from memory.
    pub fn ceilings(&self, bytes: usize) -> crate::Ceilings {
        crate::measure_ceilings(self.machine.isa, &self.machine.pool, bytes)
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
            Isa::Neon(token) => token.name(),
        };
        format!("cpu {isa}, {}", self.describe_threads())
    }

    fn bind_thread(&mut self) {
        self.machine.pool.bind_caller();
    }

    fn load_linear(&mut self, spec: &LinearSpec) -> Result<PackedLinear, BackendError> {
        let Machine { isa, pool } = &self.machine;
        if let Packed::From(file) = &mut self.packed {
            return PackedLinear::take_or_pack(spec, *isa, pool, file);
        }
        let linear = PackedLinear::pack(spec, *isa, pool)?;
        if let Packed::Into(file) = &mut self.packed
            && let Err(e) = linear.store(file, pool)
        {
            self.packed = Packed::Failed(e);
        }
        Ok(linear)
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

    fn page_bytes(&self, kv: &Kv) -> usize {
        kv.page_bytes()
    }

    fn read_page(&mut self, kv: &Kv, page: u32, out: &mut Vec<u8>) {
        kv.read_page(page, out);
    }

    fn write_page(&mut self, kv: &mut Kv, page: u32, bytes: &[u8]) {
        kv.write_page(page, bytes);
    }

    fn alloc(&mut self, rows: usize, cols: usize) -> Tensor {
        Tensor::new(rows, cols)
    }

    fn set_rows(&mut self, tensor: &mut Tensor, rows: usize) {
        tensor.reshape(rows, tensor.cols());
    }

    fn prepare(&mut self, batch: &Batch, rope: &Rope) -> Prepared {
        // Every step begins here.
        let threads = if batch.rows() > DECODE_ROWS { self.batch_threads } else { self.threads };
        self.machine.pool.use_threads(threads);
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
        let (stamp, beside) = self.linear.of_norm(rows, cols, self.machine.isa);
        let (to_x, to_out) = (Shared::new(x.data_mut()), Shared::new(out.data_mut()));
        let part = |rows: Range<usize>| {
            let range = rows.start * cols..rows.end * cols;
            // SAFETY: each row belongs to one task.
            let (x, out) = unsafe { (to_x.part(range.clone()), to_out.part(range.clone())) };
            self.machine.run(AddRmsNorm { x, y: &y.data()[range], weight, eps, out: &mut *out });
            &*out
        };
        self.machine.rows(rows, 6 * cols, &|rows| {
            if !beside.is_wanted() {
                part(rows);
                return;
            }
            for row in rows {
                // SAFETY: each row belongs to one task.
                unsafe { beside.row(row, part(row..row + 1)) };
            }
        });
        out.set_stamp(stamp);
    }

    fn linear(&mut self, x: &Tensor, linear: &PackedLinear, out: &mut Tensor) {
        let (rows, cols) = (linear.in_features(), linear.out_features());
        assert_eq!((x.cols(), out.cols(), out.rows()), (rows, cols, x.rows()));
        self.linear.rows_are(x.stamp());
        linear.forward(x.data(), x.rows(), out.data_mut(), &mut self.linear, &self.machine.pool);
        self.linear.rows_are(0);
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
            Typed::F32(pool) => store.run::<Wide<f32>>(&pool),
            Typed::F16(pool) => store.run::<Wide<f16>>(&pool),
            Typed::Bf16(pool) => store.run::<Pairs>(&pool),
            Typed::Int8(pool) => store.run::<Coded<Int8>>(&pool),
            Typed::Fp8(pool) => store.run::<Coded<Fp8>>(&pool),
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
        let operands = Operands {
            machine: &self.machine,
            attention,
            batch: &batch.batch,
            geometry: kv.geometry(),
            qkv: qkv.data(),
            out: out.data_mut(),
        };
        match kv.layer(layer) {
            Typed::F32(pool) => self.attention.run::<Wide<f32>>(operands, pool),
            Typed::F16(pool) => self.attention.run::<Wide<f16>>(operands, pool),
            Typed::Bf16(pool) => self.attention.run::<Pairs>(operands, pool),
            Typed::Int8(pool) => self.attention.run::<Coded<Int8>>(operands, pool),
            Typed::Fp8(pool) => self.attention.run::<Coded<Fp8>>(operands, pool),
        }
    }

    fn gated_linear(&mut self, x: &Tensor, linear: &PackedLinear, gate: Gate, hidden: &mut Tensor, out: &mut Tensor) {
        assert_eq!((x.cols(), 2 * out.cols()), (linear.in_features(), linear.out_features()));
        assert_eq!((x.rows(), x.rows()), (out.rows(), hidden.rows()));
        let pool = &self.machine.pool;
        self.linear.rows_are(x.stamp());
        let is_done = linear.forward_gated(x.data(), x.rows(), gate, out.data_mut(), &mut self.linear, pool);
        self.linear.rows_are(0);
        if !is_done {
            self.linear(x, linear, hidden);
            self.gate(hidden, gate, out);
        }
    }

    fn gate(&mut self, x: &Tensor, gate: Gate, out: &mut Tensor) {
        moe::gate_rows(&self.machine, x, gate, out);
    }

    fn moe<L: Borrow<PackedLinear>>(&mut self, x: &Tensor, moe: &Moe<L>, out: &mut Tensor) {
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

    fn on_host<'a>(&mut self, x: &'a mut Tensor, _: &'a mut Vec<f32>) -> &'a mut [f32] {
        x.data_mut()
    }

    fn on_threads(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        self.machine.pool.run(n, task);
    }

    fn write(&mut self, x: &mut Tensor, values: &[f32]) {
        x.data_mut().copy_from_slice(values);
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
    fn run<F: Format>(&self, pool: &Shared<'_, F::Element>) {
        let (width, half) = (self.heads.qkv_dim(), self.batch.half);
        let page_len = self.geometry.page_len();
        self.machine.tasks(self.batch.runs.len(), 8 * self.batch.batch.rows() * width, &|i| {
            let run = self.batch.runs[i];
            let (first, end) = (run.row, run.row + run.len);
            let page = self.geometry.block(run.page, 0);
            // SAFETY: a run's rows belong to one task, and so does its page: a page that is written belongs to one
            // sequence, and a sequence's rows in one page are one run.
            let (qkv, page) = unsafe { (self.qkv.part(first * width..end * width), pool.part(page..page + page_len)) };
            self.machine.run(RopeStore::<F> {
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
    fn a_step_uses_the_threads_of_its_kind() {
        let options = CpuOptions { threads: Some(1), batch_threads: Some(3), isa: None };
        let mut cpu = Cpu::new(options).unwrap();
        assert!(cpu.describe().contains("1 thread (3 for prompts)"), "{}", cpu.describe());
        let rope = Rope { inv_freq: vec![1.0], scale: 1.0 };
        for (rows, threads) in [(1, 1), (DECODE_ROWS + 1, 3), (DECODE_ROWS, 1)] {
            let mut batch = BatchBuilder::new(1);
            batch.push(&vec![0; rows], 0, &[0], 1).unwrap();
            let _prepared = cpu.prepare(&batch.finish(), &rope);
            assert_eq!(cpu.machine.pool.threads(), threads, "{rows} rows");
        }
    }

    #[test]
    fn the_host_reads_and_changes_a_matrix_in_place_and_its_work_is_shared() {
        let mut cpu = Cpu::new(CpuOptions { threads: Some(3), ..CpuOptions::default() }).unwrap();
        let (mut x, mut copy) = (cpu.alloc(2, 3), vec![7.0]);
        cpu.write(&mut x, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        cpu.on_host(&mut x, &mut copy)[4] = -5.0;
        assert_eq!((x.data(), &copy[..]), (&[1.0, 2.0, 3.0, 4.0, -5.0, 6.0][..], &[7.0][..]), "nothing is copied");
        // No task ends before three threads have one each.
        let barrier = std::sync::Barrier::new(3);
        cpu.on_threads(3, &|_| {
            barrier.wait();
        });
        let counts: Vec<_> = (0..50).map(|_| std::sync::atomic::AtomicUsize::new(0)).collect();
        cpu.on_threads(counts.len(), &|i| {
            counts[i].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        });
        assert!(counts.iter().all(|n| n.load(std::sync::atomic::Ordering::Relaxed) == 1), "{counts:?}");
    }

    #[test]
    fn no_threads_or_far_too_many_are_an_error() {
        for (threads, batch_threads) in [(0, None), (1, Some(0)), (1, Some(5000)), (5000, None)] {
            let options = CpuOptions { threads: Some(threads), batch_threads, isa: None };
            let error = Cpu::new(options).unwrap_err().to_string();
            assert!(error.contains("1 to 1024"), "{error}");
        }
    }

    #[test]
    fn a_missing_instruction_set_is_an_error() {
        let error = Cpu::new(CpuOptions { isa: Some("sve2".into()), ..CpuOptions::default() }).unwrap_err();
        assert!(error.to_string().contains("sve2"), "{error}");
    }
}

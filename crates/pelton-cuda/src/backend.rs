//! [`CudaBackend`]: the ops of a model on one GPU.
//!
//! Each op checks shapes and puts launches into the queue; nothing is read back before an answer is. Invariant: a row's bits
//! depend on the row, its sequence's KV and the card's architecture; never on the other rows, on how a prompt was cut into
//! chunks, or on graphs.

use std::borrow::Borrow;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;

use pelton_backend::{
    Ask, Attention, Backend, BackendError, Batch, Gate, HeadNorms, Heads, KvLayout, LinearSpec, Moe, Placement, Rope,
    Weighed, Weight,
};

use crate::CudaError;
use crate::attention::{AttentionKernels, tile_shape};
use crate::batch::{Prepared, TileShape};
use crate::choose::Chooser;
use crate::context::{Context, Ops, out_of_memory};
use crate::device::{Device, DeviceInfo};
use crate::embed::Embedding;
use crate::kernels::Kernels;
use crate::kv::Kv;
use crate::linear::Linear;
use crate::moe::{MoeTables, gate_rows};
use crate::pool::{Buffer, Pool};
use crate::queue::{Queue, QueueCounts, Shape, args};
use crate::tensor::Tensor;

/// How to open a GPU.
#[derive(Clone, Debug, Default)]
pub struct CudaOptions {
    /// Which card; the first where not given.
    pub device: usize,
    /// The driver's library, where it is not the system's.
    pub driver: Option<PathBuf>,
    /// The compiler's library (NVRTC), for builds without compiled kernels.
    pub compiler: Option<PathBuf>,
    /// Launch every kernel by itself.
    pub no_graphs: bool,
    /// Launch kernels before those before them have ended, on cards from 9.0 on (programmatic dependent launch). Has run
    /// on the simulator alone.
    pub early_launches: bool,
    /// Copy all logits to the host, which chooses tokens: to compare, and to look for faults.
    pub choose_on_host: bool,
}

/// A step of more rows is bound by arithmetic: its launches are not worth collecting.
const GRAPH_ROWS: usize = 64;

/// A vector on the device: norm weights.
#[derive(Debug)]
pub struct Vector {
    len: usize,
    buffer: Buffer,
}

/// The CUDA backend: one card.
#[derive(Debug)]
pub struct CudaBackend {
    attention: AttentionKernels,
    moe: MoeTables,
    /// Where tokens are not chosen on the host.
    chooser: Option<Chooser>,
    /// The frequencies of the last rotation, on the device.
    frequencies: Option<(Vec<f32>, Buffer)>,
    /// The model's, once it has been seen.
    tiles: TileShape,
    context: Context,
}

impl CudaBackend {
    /// Opens a card and loads its kernels.
    ///
    /// # Errors
    /// [`CudaError`]: no driver, no card, one that is too old, no kernels for it.
    pub fn open(options: &CudaOptions) -> Result<CudaBackend, CudaError> {
        let device = Device::open(options.driver.as_deref(), options.device)?;
        let mut kernels = Kernels::load(&device, options.compiler.as_deref())?;
        let ops = Ops::load(&mut kernels)?;
        let attention = AttentionKernels::load(&mut kernels)?;
        let chooser = if options.choose_on_host { None } else { Some(Chooser::load(&mut kernels)?) };
        let queue = Queue::new(device.clone(), !options.no_graphs, options.early_launches);
        let context = Context { queue, kernels, ops, pool: Pool::new(device.clone()), device };
        let tiles = TileShape { group: 1, many: 64 };
        Ok(CudaBackend { attention, moe: MoeTables::default(), chooser, frequencies: None, tiles, context })
    }

    /// The card.
    pub fn info(&self) -> &DeviceInfo {
        &self.context.device.info
    }

    /// Where the kernels came from: compiled ahead, or here.
    pub fn kernels(&self) -> &str {
        self.context.kernels.origin()
    }

    /// What has been launched so far.
    pub fn counts(&self) -> QueueCounts {
        self.context.queue.counts()
    }

    /// Bytes of device memory in use by this backend, and free.
    ///
    /// # Errors
    /// What the driver says.
    pub fn memory(&self) -> Result<(usize, usize), CudaError> {
        Ok((self.context.pool.allocated(), self.context.device.free_memory()?))
    }

    /// Whether this is the simulator, whose times mean nothing.
    pub fn is_simulated(&self) -> bool {
        self.context.device.driver.is_simulated()
    }

    /// Bytes a second that the card's memory moves, measured: the best of several additions of two long arrays, each of
    /// which reads two and writes one. What decoding could reach at most.
    ///
    /// # Errors
    /// What the driver says, and [`CudaError::OutOfMemory`].
    pub fn measure_bandwidth(&mut self) -> Result<f64, CudaError> {
        const PASSES: usize = 6;
        // Several times the largest of second caches; the simulator needs seconds for that.
        let most = if self.is_simulated() { 1 << 16 } else { 256 << 20 };
        let bytes = (self.memory()?.1 / 8).min(most) / 1024 * 1024;
        let x = self.context.memory_exact("an array", bytes)?;
        let y = self.context.memory_exact("an array", bytes)?;
        let mut best = f64::INFINITY;
        self.context.queue.collect(false);
        for _ in 0..PASSES {
            self.context.queue.drain()?;
            let start = Instant::now();
            self.context.queue.launch(self.context.ops.add, elements(bytes / 4), args![&x, &y, bytes / 4]);
            self.context.queue.drain()?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        Ok(3.0 * bytes as f64 / best.max(1e-9))
    }

    /// The frequencies of a rotation on the device, uploaded when they change.
    fn upload_frequencies(&mut self, rope: &Rope) {
        let is_known = self.frequencies.as_ref().is_some_and(|(known, _)| *known == rope.inv_freq);
        if rope.inv_freq.is_empty() || is_known {
            return;
        }
        let bytes: &[u8] = bytemuck::cast_slice(&rope.inv_freq);
        let buffer = self.context.scratch("frequencies", bytes.len());
        self.context.queue.upload(buffer.pointer(), bytes);
        self.frequencies = Some((rope.inv_freq.clone(), buffer));
    }
}

/// One thread for each of `n` elements.
fn elements(n: usize) -> Shape {
    Shape::new(n.div_ceil(256), 1, 1, 256)
}

impl Backend for CudaBackend {
    type Tensor = Tensor;
    type Vector = Vector;
    type Linear = Linear;
    type Embedding = Embedding;
    type Kv = Kv;
    type Prepared = Prepared;

    fn describe(&self) -> String {
        let info = self.info();
        let (major, minor) = info.driver;
        format!("cuda {}, {}, CUDA {major}.{minor}, kernels {}", info.name, info.arch(), self.kernels())
    }

    fn load_linear(&mut self, spec: &LinearSpec) -> Result<Linear, BackendError> {
        Linear::load(&mut self.context, spec)
    }

    fn placement(&self, linear: &Linear) -> Vec<Placement> {
        linear.placement()
    }

    fn load_embedding(&mut self, table: &Weight) -> Result<Embedding, BackendError> {
        Ok(Embedding::new(table))
    }

    fn load_vector(&mut self, values: &[f32]) -> Vector {
        // Loading a vector cannot fail at the seam; a card without room for it has failed at a matrix before.
        let buffer =
            self.context.upload_new("a vector", bytemuck::cast_slice(values)).unwrap_or_else(|e| panic!("{e}"));
        Vector { len: values.len(), buffer }
    }

    fn kv_pool(&mut self, layout: &KvLayout) -> Result<Kv, BackendError> {
        Kv::new(&mut self.context, layout)
    }

    fn copy_page(&mut self, kv: &mut Kv, from: u32, to: u32) {
        kv.copy_page(&mut self.context, from, to);
    }

    fn page_bytes(&self, kv: &Kv) -> usize {
        kv.page_bytes()
    }

    fn read_page(&mut self, kv: &Kv, page: u32, out: &mut Vec<u8>) {
        kv.read_page(&mut self.context, page, out);
    }

    fn write_page(&mut self, kv: &mut Kv, page: u32, bytes: &[u8]) {
        kv.write_page(&mut self.context, page, bytes);
    }

    fn alloc(&mut self, rows: usize, cols: usize) -> Tensor {
        let buffer = self.context.scratch("activations", rows * cols * 4);
        Tensor::new(rows, cols, buffer)
    }

    fn set_rows(&mut self, tensor: &mut Tensor, rows: usize) {
        if !tensor.set_rows(rows) {
            *tensor = self.alloc(rows, tensor.cols());
        }
    }

    fn prepare(&mut self, batch: &Batch, rope: &Rope) -> Prepared {
        // Every step begins here.
        self.context.queue.collect(batch.rows() <= GRAPH_ROWS);
        self.upload_frequencies(rope);
        let frequencies = self.frequencies.as_ref().map(|(_, buffer)| buffer);
        Prepared::new(&mut self.context, batch, rope, frequencies, self.tiles)
    }

    fn embed(&mut self, batch: &Prepared, table: &Embedding, scale: f32, out: &mut Tensor) {
        assert_eq!((out.rows(), out.cols()), (batch.batch.rows(), table.hidden()));
        let rows = table.rows(&batch.batch.ids, scale);
        self.context.queue.upload(out.buffer().pointer(), bytemuck::cast_slice(&rows));
    }

    fn rms_norm(&mut self, x: &Tensor, weight: &Vector, eps: f32, out: &mut Tensor) {
        let (rows, cols) = (x.rows(), x.cols());
        assert_eq!((out.rows(), out.cols(), weight.len), (rows, cols, cols));
        let args = args![x.buffer(), &weight.buffer, out.buffer(), cols, eps];
        self.context.queue.launch(self.context.ops.rms_norm, Shape::new(rows, 1, 1, 256), args);
    }

    fn add(&mut self, x: &mut Tensor, y: &Tensor) {
        assert_eq!((x.rows(), x.cols()), (y.rows(), y.cols()));
        let n = x.rows() * x.cols();
        self.context.queue.launch(self.context.ops.add, elements(n), args![x.buffer(), y.buffer(), n]);
    }

    fn add_rms_norm(&mut self, x: &mut Tensor, y: &Tensor, weight: &Vector, eps: f32, out: &mut Tensor) {
        let (rows, cols) = (x.rows(), x.cols());
        assert_eq!((out.rows(), out.cols(), weight.len), (rows, cols, cols));
        assert_eq!((y.rows(), y.cols()), (rows, cols));
        let args = args![x.buffer(), y.buffer(), &weight.buffer, out.buffer(), cols, eps];
        self.context.queue.launch(self.context.ops.add_rms_norm, Shape::new(rows, 1, 1, 256), args);
    }

    fn linear(&mut self, x: &Tensor, linear: &Linear, out: &mut Tensor) {
        linear.forward(&mut self.context, x, out);
    }

    fn rope_store_kv(
        &mut self,
        qkv: &mut Tensor,
        batch: &Prepared,
        heads: Heads,
        norms: Option<HeadNorms<'_, Vector>>,
        layer: usize,
        kv: &mut Kv,
    ) {
        self.tiles = tile_shape(&heads);
        if let Some(norms) = &norms {
            assert_eq!((norms.q.len, norms.k.len), (heads.head_dim, heads.head_dim));
        }
        let norms = norms.map(|n| HeadNorms { q: &n.q.buffer, k: &n.k.buffer, eps: n.eps });
        self.attention.store(&mut self.context, qkv, batch, heads, norms, (layer, kv));
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
        self.attention.attend(&mut self.context, qkv, batch, attention, (layer, kv), out);
    }

    fn gate(&mut self, x: &Tensor, gate: Gate, out: &mut Tensor) {
        gate_rows(&mut self.context, x, gate, out);
    }

    fn gated_linear(&mut self, x: &Tensor, linear: &Linear, gate: Gate, hidden: &mut Tensor, out: &mut Tensor) {
        assert_eq!((x.rows(), 2 * out.cols()), (out.rows(), linear.out_features));
        if !linear.forward_gated(&mut self.context, x, gate, out) {
            linear.forward(&mut self.context, x, hidden);
            gate_rows(&mut self.context, hidden, gate, out);
        }
    }

    fn moe<L: Borrow<Linear>>(&mut self, x: &Tensor, moe: &Moe<L>, out: &mut Tensor) {
        self.moe.forward(&mut self.context, x, moe, out);
    }

    fn gather_logit_rows(&mut self, x: &Tensor, batch: &Prepared, out: &mut Tensor) {
        let (n, cols) = (batch.batch.logit_rows.len(), x.cols());
        assert_eq!((out.rows(), out.cols()), (n, cols));
        assert!(batch.batch.logit_rows.iter().all(|&r| (r as usize) < x.rows()), "a row outside of the batch");
        let shape = Shape::new(cols.div_ceil(256), n, 1, 256);
        let args = args![x.buffer(), batch.logit_rows, out.buffer(), cols];
        self.context.queue.launch(self.context.ops.gather_rows, shape, args);
    }

    fn softcap(&mut self, x: &mut Tensor, cap: f32) {
        let n = x.rows() * x.cols();
        self.context.queue.launch(self.context.ops.softcap, elements(n), args![x.buffer(), cap, n]);
    }

    /// # Panics
    /// Where the device has failed since the last answer (a lost card, a fault in a kernel): its contents are gone, and ops
    /// have no other way to say so. The engine's thread ends, and its requests are told.
    fn read(&mut self, x: &Tensor, out: &mut Vec<f32>) {
        out.clear();
        out.resize(x.rows() * x.cols(), 0.0);
        let read = self.context.queue.finish(x.buffer().pointer(), bytemuck::cast_slice_mut(out));
        read.unwrap_or_else(|e| e.end_step());
    }

    fn read_rows(&mut self, x: &Tensor, rows: Range<usize>, cols: usize, out: &mut Vec<f32>) {
        assert!(rows.end <= x.rows() && cols == x.cols(), "rows {rows:?} of {} x {}", x.rows(), x.cols());
        out.clear();
        out.resize(rows.len() * cols, 0.0);
        let from = x.buffer().pointer() + 4 * (rows.start * cols) as u64;
        let read = self.context.queue.finish(from, bytemuck::cast_slice_mut(out));
        read.unwrap_or_else(|e| e.end_step());
    }

    fn weigh(&mut self, logits: &Tensor, asks: &[Ask], out: &mut Vec<Weighed>) -> bool {
        let Some(chooser) = &mut self.chooser else { return false };
        chooser.weigh(&mut self.context, logits, asks, out).unwrap_or_else(|e| e.end_step());
        true
    }

    fn write(&mut self, x: &mut Tensor, values: &[f32]) {
        assert_eq!(values.len(), x.rows() * x.cols());
        self.context.queue.upload(x.buffer().pointer(), bytemuck::cast_slice(values));
    }
}

/// An error of opening, as loading a model knows it.
impl From<CudaError> for BackendError {
    fn from(error: CudaError) -> BackendError {
        out_of_memory(error)
    }
}

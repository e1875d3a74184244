//! Single ops at the shapes of a model, each storage type and number of rows: where a step's time can come from.
//!
//! Invariant: weights, keys and values come from memory where a step's would: copies of a matrix are walked until they
//! exceed any cache, and attention walks as many layers as the model has.

use std::sync::Arc;
use std::time::Instant;

use pelton_backend::{
    Attention, Backend, BackendError, BatchBuilder, Gate, Heads, KvLayout, LinearSpec, PAGE_LEN, Rope, Weight,
};
use pelton_cpu::Cpu;
use pelton_formats::{Activation, ModelConfig};
use pelton_quant::DType;

use super::ledger::{Ledger, Work};
use super::median;
use super::metered::Metered;
use crate::shape::blocks::random_blocks;
use crate::{Error, Options};

/// More than the last-level caches of most machines.
const STREAM: usize = 256 << 20;
/// From here on a product is bound by arithmetic, and one copy of the matrix will do.
const MANY_ROWS: usize = 64;

/// What to measure.
#[derive(Clone, Debug)]
pub struct KernelPlan {
    /// Whose widths are measured.
    pub shape: ModelConfig,
    /// Storage types of weights.
    pub types: Vec<DType>,
    /// Rows of a batch.
    pub rows: Vec<usize>,
    /// Tokens before the rows, for attention.
    pub depths: Vec<usize>,
    /// Repetitions, of which the median is given.
    pub repeat: usize,
}

/// What an op gave.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelFigure {
    /// The op.
    pub op: String,
    /// Storage type of the weights, or of keys and values; empty where there are none.
    pub dtype: &'static str,
    /// The kernel's name, where there are several.
    pub kernel: &'static str,
    /// The sizes besides the rows.
    pub shape: String,
    /// Rows of the batch.
    pub rows: usize,
    /// Seconds of a call, the median.
    pub seconds: f64,
    /// Bytes and operations of a call.
    pub work: Work,
}

impl KernelPlan {
    /// How many figures [`KernelPlan::run`] gives.
    pub fn len(&self) -> usize {
        let linear: usize = matrices(&self.shape).iter().map(|m| self.types_of(m.cols).count()).sum();
        self.rows.len() * (linear + 3 + self.depths.len())
    }

    /// Whether there is nothing to measure.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The types whose blocks divide a row.
    fn types_of(&self, cols: usize) -> impl Iterator<Item = DType> {
        self.types.iter().copied().filter(move |t| cols.is_multiple_of(t.block_len()))
    }

    /// Measures on the CPU; `each` is called with each figure.
    ///
    /// # Errors
    /// Where the options ask for kernels that the machine lacks, or the memory does not suffice.
    pub fn run(&self, options: &Options, each: &mut dyn FnMut(KernelFigure)) -> Result<(), Error> {
        let mut bench = OpBench { backend: Metered::new(super::cpu(options)?), plan: self, options };
        for m in matrices(&self.shape) {
            for dtype in self.types_of(m.cols) {
                bench.linear(&m, dtype, each)?;
            }
        }
        for &rows in &self.rows {
            bench.norm(rows, each)?;
            bench.gate(rows, each)?;
            bench.attention(rows, 0, true, each)?;
            for &depth in &self.depths {
                bench.attention(rows, depth, false, each)?;
            }
        }
        Ok(())
    }
}

/// A linear layer's name, inputs and outputs.
struct Matrix {
    op: &'static str,
    cols: usize,
    rows: usize,
}

/// The linear layers of a model; of the head as many rows as a large layer has, since its time is proportional.
fn matrices(c: &ModelConfig) -> Vec<Matrix> {
    let qkv = c.q_dim() + 2 * c.kv_dim();
    let ffn = c.moe.as_ref().map_or(c.ffn, |m| m.expert_ffn);
    vec![
        Matrix { op: "attn_qkv", cols: c.hidden, rows: qkv },
        Matrix { op: "attn_output", cols: c.q_dim(), rows: c.hidden },
        Matrix { op: "ffn_gate_up", cols: c.hidden, rows: 2 * ffn },
        Matrix { op: "ffn_down", cols: ffn, rows: c.hidden },
    ]
}

struct OpBench<'a> {
    backend: Metered<Cpu>,
    plan: &'a KernelPlan,
    options: &'a Options,
}

type Matrix32 = <Metered<Cpu> as Backend>::Tensor;

impl OpBench<'_> {
    /// Random activations `(rows, cols)`: looked up in an embedding table, the one way up.
    fn activations(&mut self, rows: usize, cols: usize) -> Result<Matrix32, BackendError> {
        let values: Vec<f32> = (0..rows * cols).map(|i| (i * 7919 % 1009) as f32 / 504.5 - 1.0).collect();
        let table = Weight::from_f32("activations", rows, cols, &values)?;
        let table = self.backend.load_embedding(&table)?;
        let ids: Vec<u32> = (0..rows as u32).collect();
        let n_pages = rows.div_ceil(PAGE_LEN);
        let mut batch = BatchBuilder::new(n_pages);
        batch.push(&ids, 0, &(0..n_pages as u32).collect::<Vec<_>>(), 0)?;
        let prepared = self.backend.prepare(&batch.finish(), &Rope { inv_freq: Vec::new(), scale: 1.0 });
        let mut out = self.backend.alloc(rows, cols);
        self.backend.embed(&prepared, &table, 1.0, &mut out);
        Ok(out)
    }

    /// The median of `repeat` rounds of `calls` calls, and the work of one; the first round warms up.
    fn time(&mut self, calls: usize, mut call: impl FnMut(&mut Metered<Cpu>, usize)) -> (f64, Work) {
        self.backend.start();
        (0..calls).for_each(|i| call(&mut self.backend, i));
        let ledger: Ledger = self.backend.stop(std::time::Duration::ZERO);
        let mut seconds: Vec<f64> = Vec::with_capacity(self.plan.repeat);
        for _ in 0..self.plan.repeat.max(1) {
            let start = Instant::now();
            (0..calls).for_each(|i| call(&mut self.backend, i));
            seconds.push(start.elapsed().as_secs_f64() / calls as f64);
        }
        seconds.sort_by(f64::total_cmp);
        (median(&seconds), ledger.work() * (1.0 / calls as f64))
    }

    fn linear(&mut self, m: &Matrix, dtype: DType, each: &mut dyn FnMut(KernelFigure)) -> Result<(), Error> {
        let bytes = random_blocks(dtype, m.rows * m.cols / dtype.block_len());
        let weight = Weight::new(m.op, dtype, m.rows, m.cols, Arc::new(bytes))?;
        let spec = LinearSpec::new(m.op, vec![weight], Vec::new())?;
        let mut copies = vec![self.backend.load_linear(&spec)?];
        let placed = self.backend.placement(&copies[0]);
        let bytes: usize = placed.iter().map(|p| p.bytes).sum();
        if self.plan.rows.iter().any(|&rows| rows < MANY_ROWS) {
            while copies.len() * bytes < STREAM {
                copies.push(self.backend.load_linear(&spec)?);
            }
        }
        for &rows in &self.plan.rows {
            let x = self.activations(rows, m.cols)?;
            let mut out = self.backend.alloc(rows, m.rows);
            let copies = if rows < MANY_ROWS { &copies[..] } else { &copies[..1] };
            let (seconds, work) = self.time(copies.len(), |b, i| b.linear(&x, &copies[i], &mut out));
            let shape = format!("{} → {}", m.cols, m.rows);
            let (op, kernel) = (format!("linear {}", m.op), placed.first().map_or("", |p| p.kernel));
            each(KernelFigure { op, dtype: dtype.name(), kernel, shape, rows, seconds, work });
        }
        Ok(())
    }

    fn norm(&mut self, rows: usize, each: &mut dyn FnMut(KernelFigure)) -> Result<(), Error> {
        let hidden = self.plan.shape.hidden;
        let (mut x, y) = (self.activations(rows, hidden)?, self.activations(rows, hidden)?);
        let (weight, mut out) = (self.backend.load_vector(&vec![1.0; hidden]), self.backend.alloc(rows, hidden));
        let (seconds, work) = self.time(16, |b, _| b.add_rms_norm(&mut x, &y, &weight, 1e-6, &mut out));
        let (op, shape) = ("add_rms_norm".to_string(), hidden.to_string());
        each(KernelFigure { op, dtype: "", kernel: "", shape, rows, seconds, work });
        Ok(())
    }

    fn gate(&mut self, rows: usize, each: &mut dyn FnMut(KernelFigure)) -> Result<(), Error> {
        let c = &self.plan.shape;
        let ffn = c.moe.as_ref().map_or(c.ffn, |m| m.expert_ffn);
        let gate = if c.activation == Activation::Silu { Gate::Silu } else { Gate::GeluTanh };
        let (x, mut out) = (self.activations(rows, 2 * ffn)?, self.backend.alloc(rows, ffn));
        let (seconds, work) = self.time(16, |b, _| b.gate(&x, gate, &mut out));
        each(KernelFigure { op: "gate".into(), dtype: "", kernel: "", shape: ffn.to_string(), rows, seconds, work });
        Ok(())
    }

    /// Attention of `rows` rows after `depth` tokens: of one sequence, as a prefill has them, or of as many sequences
    /// that share those tokens, as a decode step has them.
    fn attention(
        &mut self,
        rows: usize,
        depth: usize,
        prefill: bool,
        each: &mut dyn FnMut(KernelFigure),
    ) -> Result<(), Error> {
        let c = &self.plan.shape;
        let heads = Heads { n_heads: c.n_heads, n_kv_heads: c.n_kv_heads, head_dim: c.head_dim };
        let n_shared = depth / PAGE_LEN;
        let own = if prefill { (depth % PAGE_LEN + rows).div_ceil(PAGE_LEN) } else { 1 };
        let n_pages = n_shared + own * if prefill { 1 } else { rows };
        let cached = if prefill { depth } else { n_shared * PAGE_LEN };
        let mut builder = BatchBuilder::new(n_pages);
        let pages = |s: usize| -> Vec<u32> {
            (0..n_shared).chain(n_shared + s * own..n_shared + (s + 1) * own).map(|p| p as u32).collect()
        };
        match prefill {
            true => builder.push(&vec![0; rows], cached, &pages(0), 1).map_err(BackendError::from)?,
            false => {
                (0..rows).try_for_each(|s| builder.push(&[0], cached, &pages(s), 1)).map_err(BackendError::from)?
            }
        }
        let dtype = self.options.kv_type;
        let layout = KvLayout { n_layers: c.n_layers, n_kv_heads: c.n_kv_heads, head_dim: c.head_dim, n_pages, dtype };
        let kv = self.backend.kv_pool(&layout)?;
        let qkv = self.activations(rows, heads.qkv_dim())?;
        let mut out = self.backend.alloc(rows, heads.q_dim());
        let prepared = self.backend.prepare(&builder.finish(), &Rope { inv_freq: Vec::new(), scale: 1.0 });
        let attention = Attention { heads, scale: c.attn_scale, softcap: c.attn_softcap, window: None };
        let n_layers = c.n_layers;
        let (seconds, work) =
            self.time(n_layers, |b, layer| b.paged_attention(&qkv, &prepared, &attention, layer, &kv, &mut out));
        let op = if prefill { "attention, prefill" } else { "attention, decode" };
        let shape = format!("{}/{} × {} after {cached}", heads.n_heads, heads.n_kv_heads, heads.head_dim);
        each(KernelFigure { op: op.into(), dtype: dtype.name(), kernel: "", shape, rows, seconds, work });
        Ok(())
    }
}

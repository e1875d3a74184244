//! A backend that meters another one: every op is handed on, and while the meter runs its time, bytes and operations
//! go into a [`Ledger`].
//!
//! Invariant: every op of [`Backend`] is delegated, also those with a default, so that what is measured is what runs
//! without the meter; a meter that does not run costs one branch an op.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::time::{Duration, Instant};

use pelton_backend::{
    Ask, Attention, Backend, BackendError, Batch, Gate, HeadNorms, Heads, KvLayout, KvType, LinearSpec, Moe, PAGE_LEN,
    Part, Place, Placement, Rope, Weighed, Weight,
};
use pelton_quant::WeightType;

use super::ledger::{Ledger, Work};

/// A matrix whose shape is known here.
pub(crate) struct Shaped<T> {
    inner: T,
    rows: usize,
    cols: usize,
}

impl<T> Shaped<T> {
    fn bytes(&self) -> f64 {
        4.0 * (self.rows * self.cols) as f64
    }
}

/// An embedding table, and the bytes of a row.
pub(crate) struct Table<T> {
    inner: T,
    row_bytes: usize,
}

/// A batch, and of each sequence the tokens before it and in it.
pub(crate) struct Spans<T> {
    inner: T,
    spans: Vec<(usize, usize)>,
    /// Tokens in pages that an earlier sequence of the batch has too: these come from memory once.
    shared: usize,
}

impl<T> Spans<T> {
    /// Tokens whose keys and values attention reads, and pairs of a row and a token that it sees.
    fn seen(&self, window: Option<usize>) -> (f64, f64) {
        let window = window.unwrap_or(usize::MAX);
        let (mut read, mut pairs) = (0.0, 0.0);
        for &(cached, len) in &self.spans {
            read += (cached + len).min(window.saturating_add(len - 1)) as f64;
            // Row i sees i + 1 tokens and those before, at most the window.
            let first = (cached + 1).min(window) as f64;
            let last = (cached + len).min(window) as f64;
            let growing = last - first + 1.0;
            pairs += growing * (first + last) / 2.0 + (len as f64 - growing) * last;
        }
        // Within a window what is shared may be out of sight.
        let shared = if window == usize::MAX { self.shared as f64 } else { 0.0 };
        (read - shared, pairs)
    }
}

/// Tokens of a batch's sequences in pages that an earlier one has too.
fn shared_tokens(batch: &Batch) -> usize {
    let mut seen = HashSet::new();
    let mut shared = 0;
    for span in &batch.spans {
        for (i, page) in batch.page_table(span).iter().enumerate() {
            if !seen.insert(page) {
                shared += (span.context_len() - i * PAGE_LEN).min(PAGE_LEN);
            }
        }
    }
    shared
}

/// What is known of a linear layer beyond what its backend tells.
struct Layer {
    role: String,
    /// Type, inputs and outputs of each part.
    parts: Vec<(WeightType, usize, usize)>,
}

/// `B`, metered.
pub(crate) struct Metered<B: Backend> {
    inner: B,
    /// The meter, while it runs.
    ledger: Option<Ledger>,
    /// By the name of the first part.
    layers: HashMap<String, Layer>,
    kv: Option<KvLayout>,
}

impl<B: Backend> Metered<B> {
    pub(crate) fn new(inner: B) -> Metered<B> {
        Metered { inner, ledger: None, layers: HashMap::new(), kv: None }
    }

    /// Starts the meter.
    pub(crate) fn start(&mut self) {
        self.ledger = Some(Ledger::default());
    }

    /// Stops the meter after a step that took `time`.
    pub(crate) fn stop(&mut self, time: Duration) -> Ledger {
        self.ledger.take().unwrap_or_default().close(time)
    }

    /// Runs an op; `work` is asked only while the meter runs, and outside of the op's time.
    fn op<R>(&mut self, name: &str, work: impl FnOnce(&Self) -> Work, run: impl FnOnce(&mut B) -> R) -> R {
        if self.ledger.is_none() {
            return run(&mut self.inner);
        }
        let work = work(self);
        let start = Instant::now();
        let result = run(&mut self.inner);
        let time = start.elapsed();
        if let Some(ledger) = &mut self.ledger {
            ledger.add(name, time, work);
        }
        result
    }

    /// A linear layer's role, and its work on `rows` rows.
    fn linear_work(&self, linear: &B::Linear, rows: f64) -> (&str, Work) {
        let placed = self.inner.placement(linear);
        let layer = placed.first().and_then(|p| self.layers.get(&p.name));
        let memory_bytes = placed.iter().map(|p| p.bytes as f64).sum();
        let mut work = Work { memory_bytes, ..Work::default() };
        for &(dtype, cols_in, cols_out) in layer.map_or(&[][..], |l| &l.parts) {
            work += Work::product(rows, dtype, cols_in, cols_out);
        }
        (layer.map_or("linear", |l| l.role.as_str()), work)
    }

    /// Bytes and operations of a block of experts. Which ones a batch of several rows uses is not known here: the
    /// number of different ones is what independent choices would give.
    fn moe_work<L: Borrow<B::Linear>>(&self, moe: &Moe<L>, rows: usize) -> Work {
        let (n, k) = (moe.experts.len() as f64, moe.top_k as f64);
        let used = n * (1.0 - (1.0 - k / n).powi(i32::try_from(rows).unwrap_or(i32::MAX)));
        let (_, mut work) = self.linear_work(moe.router.borrow(), rows as f64);
        if let Some(expert) = moe.experts.first() {
            for linear in [expert.gate_up.borrow(), expert.down.borrow()] {
                let (_, one) = self.linear_work(linear, rows as f64 * k / used);
                work += one * used;
            }
        }
        work
    }
}

/// Work of an op that touches matrices of these bytes and does some operations on each element.
fn elementwise(bytes: f64, operations_per_element: f64) -> Work {
    Work { activation_bytes: bytes, f32_operations: bytes / 4.0 * operations_per_element, ..Work::default() }
}

/// `blk.3.ffn_down` is `ffn_down`, and so is `blk.3.ffn_down.17`.
fn role(name: &str) -> String {
    let rest = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map_or(name, |(_, rest)| rest);
    let rest = rest.rsplit_once('.').filter(|(_, n)| n.parse::<usize>().is_ok()).map_or(rest, |(rest, _)| rest);
    format!("linear {rest}")
}

impl<B: Backend> Backend for Metered<B> {
    type Tensor = Shaped<B::Tensor>;
    type Vector = B::Vector;
    type Linear = B::Linear;
    type Embedding = Table<B::Embedding>;
    type Kv = B::Kv;
    type Prepared = Spans<B::Prepared>;

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn bind_thread(&mut self) {
        self.inner.bind_thread();
    }

    fn load_for(&mut self, place: Place) {
        self.inner.load_for(place);
    }

    fn parts(&self, n_layers: usize) -> Vec<Part> {
        self.inner.parts(n_layers)
    }

    fn load_linear(&mut self, spec: &LinearSpec) -> Result<B::Linear, BackendError> {
        let linear = self.inner.load_linear(spec)?;
        if let Some(first) = self.inner.placement(&linear).first() {
            let parts = spec.parts.iter().map(|p| (p.dtype(), p.cols(), p.rows())).collect();
            self.layers.insert(first.name.clone(), Layer { role: role(&spec.name), parts });
        }
        Ok(linear)
    }

    fn placement(&self, linear: &B::Linear) -> Vec<Placement> {
        self.inner.placement(linear)
    }

    fn load_embedding(&mut self, table: &Weight) -> Result<Self::Embedding, BackendError> {
        Ok(Table { row_bytes: table.row_bytes(), inner: self.inner.load_embedding(table)? })
    }

    fn load_vector(&mut self, values: &[f32]) -> B::Vector {
        self.inner.load_vector(values)
    }

    fn kv_pool(&mut self, layout: &KvLayout) -> Result<B::Kv, BackendError> {
        self.kv = Some(*layout);
        self.inner.kv_pool(layout)
    }

    fn copy_page(&mut self, kv: &mut B::Kv, from: u32, to: u32) {
        self.inner.copy_page(kv, from, to);
    }

    fn page_bytes(&self, kv: &B::Kv) -> usize {
        self.inner.page_bytes(kv)
    }

    fn read_page(&mut self, kv: &B::Kv, page: u32, out: &mut Vec<u8>) {
        self.inner.read_page(kv, page, out);
    }

    fn write_page(&mut self, kv: &mut B::Kv, page: u32, bytes: &[u8]) {
        self.inner.write_page(kv, page, bytes);
    }

    fn alloc(&mut self, rows: usize, cols: usize) -> Self::Tensor {
        Shaped { inner: self.inner.alloc(rows, cols), rows, cols }
    }

    fn set_rows(&mut self, tensor: &mut Self::Tensor, rows: usize) {
        tensor.rows = rows;
        self.inner.set_rows(&mut tensor.inner, rows);
    }

    fn prepare(&mut self, batch: &Batch, rope: &Rope) -> Self::Prepared {
        let spans = batch.spans.iter().map(|s| (s.cached_len, s.len)).collect();
        let inner = self.op("prepare", |_| Work::default(), |b| b.prepare(batch, rope));
        let shared = if self.ledger.is_some() { shared_tokens(batch) } else { 0 };
        Spans { inner, spans, shared }
    }

    fn embed(&mut self, batch: &Self::Prepared, table: &Self::Embedding, scale: f32, out: &mut Self::Tensor) {
        let rows = (out.rows * table.row_bytes) as f64;
        let work = Work { memory_bytes: rows, ..elementwise(out.bytes(), 1.0) };
        self.op("embed", |_| work, |b| b.embed(&batch.inner, &table.inner, scale, &mut out.inner));
    }

    fn rms_norm(&mut self, x: &Self::Tensor, weight: &B::Vector, eps: f32, out: &mut Self::Tensor) {
        let work = elementwise(x.bytes() + out.bytes(), 2.0);
        self.op("rms_norm", |_| work, |b| b.rms_norm(&x.inner, weight, eps, &mut out.inner));
    }

    fn add(&mut self, x: &mut Self::Tensor, y: &Self::Tensor) {
        let work = elementwise(2.0 * x.bytes() + y.bytes(), 1.0 / 3.0);
        self.op("add", |_| work, |b| b.add(&mut x.inner, &y.inner));
    }

    fn add_rms_norm(
        &mut self,
        x: &mut Self::Tensor,
        y: &Self::Tensor,
        weight: &B::Vector,
        eps: f32,
        out: &mut Self::Tensor,
    ) {
        let work = elementwise(2.0 * x.bytes() + y.bytes() + out.bytes(), 1.25);
        self.op("add_rms_norm", |_| work, |b| b.add_rms_norm(&mut x.inner, &y.inner, weight, eps, &mut out.inner));
    }

    fn linear(&mut self, x: &Self::Tensor, linear: &B::Linear, out: &mut Self::Tensor) {
        if self.ledger.is_none() {
            return self.inner.linear(&x.inner, linear, &mut out.inner);
        }
        let (role, work) = self.linear_work(linear, x.rows as f64);
        let role = role.to_string();
        self.op(&role, |_| work, |b| b.linear(&x.inner, linear, &mut out.inner));
    }

    fn rope_store_kv(
        &mut self,
        qkv: &mut Self::Tensor,
        batch: &Self::Prepared,
        heads: Heads,
        norms: Option<HeadNorms<'_, B::Vector>>,
        layer: usize,
        kv: &mut B::Kv,
    ) {
        let stored = (2 * qkv.rows * heads.kv_dim()) as f64;
        let element = self.kv.map_or(4.0, |l| element_bytes(l, heads));
        let work = elementwise(2.0 * qkv.bytes() + stored * element, 1.5);
        let run = |b: &mut B| b.rope_store_kv(&mut qkv.inner, &batch.inner, heads, norms, layer, kv);
        self.op("rope_store_kv", |_| work, run);
    }

    fn paged_attention(
        &mut self,
        qkv: &Self::Tensor,
        batch: &Self::Prepared,
        attention: &Attention,
        layer: usize,
        kv: &B::Kv,
        out: &mut Self::Tensor,
    ) {
        let heads = attention.heads;
        let q_bytes = out.bytes();
        let work = |m: &Self| {
            let (read, pairs) = batch.seen(attention.window);
            let bytes = m.kv.map_or(4.0, |l| element_bytes(l, heads));
            Work {
                memory_bytes: read * 2.0 * heads.kv_dim() as f64 * bytes,
                activation_bytes: 2.0 * q_bytes,
                ..attention_operations(m.kv, 4.0 * pairs * heads.q_dim() as f64)
            }
        };
        let run = |b: &mut B| b.paged_attention(&qkv.inner, &batch.inner, attention, layer, kv, &mut out.inner);
        self.op("paged_attention", work, run);
    }

    fn gate(&mut self, x: &Self::Tensor, gate: Gate, out: &mut Self::Tensor) {
        let work = elementwise(x.bytes() + out.bytes(), 4.0);
        self.op("gate", |_| work, |b| b.gate(&x.inner, gate, &mut out.inner));
    }

    fn gated_linear(
        &mut self,
        x: &Self::Tensor,
        linear: &B::Linear,
        gate: Gate,
        hidden: &mut Self::Tensor,
        out: &mut Self::Tensor,
    ) {
        if self.ledger.is_none() {
            return self.inner.gated_linear(&x.inner, linear, gate, &mut hidden.inner, &mut out.inner);
        }
        let (role, mut work) = self.linear_work(linear, x.rows as f64);
        let role = format!("{role}, gated");
        work += elementwise(out.bytes(), 8.0);
        let run = |b: &mut B| b.gated_linear(&x.inner, linear, gate, &mut hidden.inner, &mut out.inner);
        self.op(&role, |_| work, run);
    }

    fn moe<L: Borrow<B::Linear>>(&mut self, x: &Self::Tensor, moe: &Moe<L>, out: &mut Self::Tensor) {
        let rows = x.rows;
        self.op("moe", |m| m.moe_work(moe, rows), |b| b.moe(&x.inner, moe, &mut out.inner));
    }

    fn gather_logit_rows(&mut self, x: &Self::Tensor, batch: &Self::Prepared, out: &mut Self::Tensor) {
        let work = elementwise(2.0 * out.bytes(), 0.0);
        self.op("gather_logit_rows", |_| work, |b| b.gather_logit_rows(&x.inner, &batch.inner, &mut out.inner));
    }

    fn softcap(&mut self, x: &mut Self::Tensor, cap: f32) {
        let work = elementwise(2.0 * x.bytes(), 4.0);
        self.op("softcap", |_| work, |b| b.softcap(&mut x.inner, cap));
    }

    fn read(&mut self, x: &Self::Tensor, out: &mut Vec<f32>) {
        let work = elementwise(2.0 * x.bytes(), 0.0);
        self.op("read", |_| work, |b| b.read(&x.inner, out));
    }

    fn read_rows(&mut self, x: &Self::Tensor, rows: Range<usize>, cols: usize, out: &mut Vec<f32>) {
        let work = elementwise(8.0 * (rows.len() * cols) as f64, 0.0);
        self.op("read_rows", |_| work, |b| b.read_rows(&x.inner, rows, cols, out));
    }

    fn weigh(&mut self, logits: &Self::Tensor, asks: &[Ask], out: &mut Vec<Weighed>) -> bool {
        // The best, the sums, and the likeliest each pass over the logits. Where the backend does not weigh, it is no op.
        let work = elementwise(3.0 * logits.bytes(), 0.0);
        let start = Instant::now();
        let is_weighed = self.inner.weigh(&logits.inner, asks, out);
        if let Some(ledger) = self.ledger.as_mut().filter(|_| is_weighed) {
            ledger.add("weigh", start.elapsed(), work);
        }
        is_weighed
    }

    fn on_host<'a>(&mut self, x: &'a mut Self::Tensor, copy: &'a mut Vec<f32>) -> &'a mut [f32] {
        // Nothing is moved where the host reaches the numbers; elsewhere time without bytes says that they were.
        self.op("on_host", |_| Work::default(), |b| b.on_host(&mut x.inner, copy))
    }

    fn on_threads(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        self.inner.on_threads(n, task);
    }

    fn write(&mut self, x: &mut Self::Tensor, values: &[f32]) {
        let work = elementwise(2.0 * x.bytes(), 0.0);
        self.op("write", |_| work, |b| b.write(&mut x.inner, values));
    }
}

/// Attention over bfloat16 keys and values may use the unit for that type.
fn attention_operations(layout: Option<KvLayout>, operations: f64) -> Work {
    match layout.map(|l| l.dtype) {
        Some(KvType::Bf16) => Work { bf16_operations: operations, ..Work::default() },
        _ => Work { f32_operations: operations, ..Work::default() },
    }
}

/// Bytes of an element of keys or values, scales and padding included.
fn element_bytes(layout: KvLayout, heads: Heads) -> f64 {
    layout.dtype.bytes_per_head(heads.head_dim) as f64 / (2 * heads.head_dim) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use pelton_backend::Reference;
    use pelton_backend::conformance::{Suite, Tolerances};

    #[test]
    fn a_metered_backend_gives_what_the_backend_gives_with_the_meter_off_and_on() {
        let suite = Suite::new(Tolerances::default());
        let (bare, mut metered) = (suite.outputs(&mut Reference), Metered::new(Reference));
        assert!(suite.outputs(&mut metered) == bare);
        metered.start();
        assert!(suite.outputs(&mut metered) == bare);
        let ledger = metered.stop(Duration::from_secs(1_000_000));
        let ops = ["linear ", "paged_attention", "rope_store_kv", "moe", "gate", "embed", "add_rms_norm", "read"];
        for op in ops {
            assert!(ledger.entries.iter().any(|e| e.op.starts_with(op) && e.calls > 0), "{op}");
        }
    }

    #[test]
    fn logits_that_stay_where_they_are_have_their_line_in_the_ledger() {
        let mut metered = Metered::new(Reference);
        let mut x = metered.alloc(1, 3);
        metered.write(&mut x, &[1.0, 2.0, 3.0]);
        metered.start();
        assert_eq!(metered.on_host(&mut x, &mut Vec::new()), [1.0, 2.0, 3.0]);
        let ledger = metered.stop(Duration::from_secs(1));
        assert!(ledger.entries.iter().any(|e| e.op == "on_host" && e.calls == 1));
    }

    #[test]
    fn pages_that_two_sequences_have_are_shared_once_each() {
        let mut batch = pelton_backend::BatchBuilder::new(8);
        batch.push(&[1], 40, &[0, 1], 1).unwrap();
        batch.push(&[1], 40, &[0, 2], 1).unwrap();
        batch.push(&[1], 4, &[2], 1).unwrap();
        assert_eq!(shared_tokens(&batch.finish()), 32 + 5);
    }

    #[test]
    fn roles_are_names_without_numbers() {
        assert_eq!(role("blk.3.ffn_down"), "linear ffn_down");
        assert_eq!(role("blk.13.ffn_gate_up.17"), "linear ffn_gate_up");
        assert_eq!(role("output (tied)"), "linear output (tied)");
    }

    #[test]
    fn attention_sees_what_comes_before_within_the_window() {
        let spans =
            |spans: &[(usize, usize)], window| Spans { inner: (), spans: spans.to_vec(), shared: 0 }.seen(window);
        // One row after 9: ten tokens. Three rows after 2: 3 + 4 + 5 pairs over 5 tokens.
        assert_eq!(spans(&[(9, 1), (2, 3)], None), (15.0, 22.0));
        // A window of 4: 4 pairs over 4 tokens; 3 + 4 + 4 pairs over 5 tokens.
        assert_eq!(spans(&[(9, 1), (2, 3)], Some(4)), (9.0, 15.0));
    }
}

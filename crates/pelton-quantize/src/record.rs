//! Runs a text through a model and sums, of what each linear layer reads, the squares (an importance matrix) and for some
//! layers the products ([`Gram`]).
//!
//! [`Recorder`] is a backend around another one. Invariant: every op is handed on, so the model computes what it computes
//! without it. The layers of a block of experts are not recorded: which expert reads what is decided inside one op.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};

use pelton::{KvType, Model};
use pelton_backend::{
    Attention, Backend, BackendError, Batch, BatchBuilder, Gate, HeadNorms, Heads, KvLayout, LinearSpec, Moe, PAGE_LEN,
    Part, Place, Placement, Rope, Weight,
};
use pelton_cpu::{Cpu, CpuOptions};
use pelton_formats::ModelConfig;

use crate::gram::Gram;
use crate::{Imatrix, QuantizeError};

/// Rows of a chunk whose logits are computed, so that the head is recorded too: few, for vocabularies are wide.
const LOGIT_ROWS: usize = 32;

/// What was collected.
#[derive(Debug)]
pub struct Recorded {
    /// The sums.
    pub imatrix: Imatrix,
    /// Matrices that no entry was collected for, such as those of experts.
    pub left_out: Vec<String>,
}

/// Runs `ids` through the model in chunks of `chunk` tokens, each for itself, and records. `progress` gets chunks done and
/// in all.
///
/// # Errors
/// [`QuantizeError::Usage`] where there is not one whole chunk, or a chunk is longer than the model's context;
/// [`QuantizeError::Run`] where the model cannot be loaded.
pub fn record(
    model: &Model,
    ids: &[u32],
    chunk: usize,
    threads: Option<usize>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Recorded, QuantizeError> {
    let config = &model.files.config;
    let n_chunks = whole_chunks(model, ids, chunk)?;
    let mut imatrix = run(model, ids, chunk, threads, BTreeSet::new(), progress)?.into_imatrix();
    imatrix.chunk_size = u32::try_from(chunk).unwrap_or(u32::MAX);
    imatrix.chunks = u32::try_from(n_chunks).unwrap_or(u32::MAX);
    Ok(Recorded { left_out: left_out(&imatrix, config, model), imatrix })
}

/// The products of the inputs of the layers whose first matrices are named, by that name. `ids` are whole chunks.
pub(crate) fn grams(
    model: &Model,
    ids: &[u32],
    chunk: usize,
    threads: Option<usize>,
    wanted: BTreeSet<String>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<BTreeMap<String, Gram>, QuantizeError> {
    let layers = run(model, ids, chunk, threads, wanted, progress)?.layers;
    Ok(layers.into_iter().filter_map(|(name, sums)| Some((name, sums.gram?))).collect())
}

/// Runs whole chunks, each for itself.
fn run(
    model: &Model,
    ids: &[u32],
    chunk: usize,
    threads: Option<usize>,
    wanted: BTreeSet<String>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Recorder<Cpu>, QuantizeError> {
    let config = &model.files.config;
    let n_chunks = ids.len() / chunk;
    let failed = |e: &dyn std::fmt::Display| QuantizeError::Usage(format!("{}: {e}", model.name));
    let options = CpuOptions { threads, batch_threads: None, isa: None };
    let mut backend = Recorder::new(Cpu::new(options).map_err(|e| failed(&e))?);
    backend.wanted = wanted;
    backend.threads = threads.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
    let decoder = pelton_model::load(&mut backend, config, &model.files.tensors, chunk, &mut |_| ());
    let decoder = decoder.map_err(|e| failed(&e))?;
    let n_pages = chunk.div_ceil(PAGE_LEN);
    let pages: Vec<u32> = (0..n_pages as u32).collect();
    let layout = decoder.kv_layout(n_pages, KvType::F32);
    let mut kv = backend.kv_pool(&layout).map_err(|e| failed(&e))?;
    let (mut work, mut logits) = (decoder.workspace(&mut backend), Vec::new());
    for (n, ids) in ids.chunks_exact(chunk).enumerate() {
        progress(n, n_chunks);
        let mut batch = BatchBuilder::new(n_pages);
        batch.push(ids, 0, &pages, LOGIT_ROWS.min(chunk)).map_err(|e| failed(&e))?;
        decoder.forward(&mut backend, &batch.finish(), &mut kv, &mut work, &mut logits);
    }
    progress(n_chunks, n_chunks);
    Ok(backend)
}

/// How many chunks the ids are.
pub(crate) fn whole_chunks(model: &Model, ids: &[u32], chunk: usize) -> Result<usize, QuantizeError> {
    let config = &model.files.config;
    if chunk == 0 || chunk > config.max_context {
        let most = config.max_context;
        return Err(QuantizeError::Usage(format!("chunks of {chunk} tokens: {} takes 1 to {most}", model.name)));
    }
    if let Some(id) = ids.iter().find(|id| **id as usize >= config.vocab_size) {
        return Err(QuantizeError::Usage(format!("id {id} is outside the vocabulary of {}", config.vocab_size)));
    }
    let n_chunks = ids.len() / chunk;
    if n_chunks == 0 {
        let n = ids.len();
        let problem = format!("the text has {n} tokens, which is not one chunk of {chunk}; give more text or --chunk");
        return Err(QuantizeError::Usage(problem));
    }
    Ok(n_chunks)
}

fn left_out(imatrix: &Imatrix, config: &ModelConfig, model: &Model) -> Vec<String> {
    let known: BTreeSet<&str> = imatrix.names().collect();
    let matrices = model.files.tensors.iter().filter(|t| t.shape.len() > 1 && !known.contains(t.name.as_str()));
    let unread = |name: &&str| !config.tied_embeddings && *name == "token_embd.weight";
    matrices.map(|t| t.name.as_str()).filter(|name| !unread(name)).map(str::to_owned).collect()
}

/// Sums of squares of what a linear layer read.
struct Sums {
    /// The matrices that the layer is made of.
    names: Vec<String>,
    squares: Vec<f64>,
    rows: usize,
    gram: Option<Gram>,
}

/// `B`, listened to.
pub(crate) struct Recorder<B: Backend> {
    inner: B,
    /// By the name of the first matrix.
    layers: BTreeMap<String, Sums>,
    /// The first matrices of layers whose products are summed.
    wanted: BTreeSet<String>,
    threads: usize,
    values: Vec<f32>,
}

impl<B: Backend> Recorder<B> {
    pub(crate) fn new(inner: B) -> Recorder<B> {
        Recorder { inner, layers: BTreeMap::new(), wanted: BTreeSet::new(), threads: 1, values: Vec::new() }
    }

    pub(crate) fn into_imatrix(self) -> Imatrix {
        let mut imatrix = Imatrix::default();
        for sums in self.layers.into_values().filter(|sums| sums.rows > 0) {
            for name in &sums.names {
                imatrix.add(name, &sums.squares, sums.rows);
            }
        }
        imatrix
    }

    fn listen(&mut self, x: &B::Tensor, linear: &B::Linear) {
        let placed = self.inner.placement(linear);
        let Some(sums) = placed.first().and_then(|first| self.layers.get_mut(&first.name)) else { return };
        self.inner.read(x, &mut self.values);
        for row in self.values.chunks_exact(sums.squares.len()) {
            for (square, value) in sums.squares.iter_mut().zip(row) {
                *square += f64::from(*value) * f64::from(*value);
            }
            sums.rows += 1;
        }
        if let Some(gram) = &mut sums.gram {
            gram.add(&self.values, self.threads);
        }
    }
}

impl<B: Backend> Backend for Recorder<B> {
    type Tensor = B::Tensor;
    type Vector = B::Vector;
    type Linear = B::Linear;
    type Embedding = B::Embedding;
    type Kv = B::Kv;
    type Prepared = B::Prepared;

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
            let names = spec.parts.iter().map(|part| part.name().to_owned()).collect();
            let squares = vec![0.0; spec.in_features()];
            let gram = self.wanted.contains(&first.name).then(|| Gram::new(spec.in_features()));
            self.layers.insert(first.name.clone(), Sums { names, squares, rows: 0, gram });
        }
        Ok(linear)
    }

    fn placement(&self, linear: &B::Linear) -> Vec<Placement> {
        self.inner.placement(linear)
    }

    fn load_embedding(&mut self, table: &Weight) -> Result<B::Embedding, BackendError> {
        self.inner.load_embedding(table)
    }

    fn load_vector(&mut self, values: &[f32]) -> B::Vector {
        self.inner.load_vector(values)
    }

    fn kv_pool(&mut self, layout: &KvLayout) -> Result<B::Kv, BackendError> {
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

    fn alloc(&mut self, rows: usize, cols: usize) -> B::Tensor {
        self.inner.alloc(rows, cols)
    }

    fn set_rows(&mut self, tensor: &mut B::Tensor, rows: usize) {
        self.inner.set_rows(tensor, rows);
    }

    fn prepare(&mut self, batch: &Batch, rope: &Rope) -> B::Prepared {
        self.inner.prepare(batch, rope)
    }

    fn embed(&mut self, batch: &B::Prepared, table: &B::Embedding, scale: f32, out: &mut B::Tensor) {
        self.inner.embed(batch, table, scale, out);
    }

    fn rms_norm(&mut self, x: &B::Tensor, weight: &B::Vector, eps: f32, out: &mut B::Tensor) {
        self.inner.rms_norm(x, weight, eps, out);
    }

    fn add(&mut self, x: &mut B::Tensor, y: &B::Tensor) {
        self.inner.add(x, y);
    }

    fn add_rms_norm(&mut self, x: &mut B::Tensor, y: &B::Tensor, weight: &B::Vector, eps: f32, out: &mut B::Tensor) {
        self.inner.add_rms_norm(x, y, weight, eps, out);
    }

    fn linear(&mut self, x: &B::Tensor, linear: &B::Linear, out: &mut B::Tensor) {
        self.listen(x, linear);
        self.inner.linear(x, linear, out);
    }

    fn rope_store_kv(
        &mut self,
        qkv: &mut B::Tensor,
        batch: &B::Prepared,
        heads: Heads,
        norms: Option<HeadNorms<'_, B::Vector>>,
        layer: usize,
        kv: &mut B::Kv,
    ) {
        self.inner.rope_store_kv(qkv, batch, heads, norms, layer, kv);
    }

    fn paged_attention(
        &mut self,
        qkv: &B::Tensor,
        batch: &B::Prepared,
        attention: &Attention,
        layer: usize,
        kv: &B::Kv,
        out: &mut B::Tensor,
    ) {
        self.inner.paged_attention(qkv, batch, attention, layer, kv, out);
    }

    fn gate(&mut self, x: &B::Tensor, gate: Gate, out: &mut B::Tensor) {
        self.inner.gate(x, gate, out);
    }

    fn gated_linear(
        &mut self,
        x: &B::Tensor,
        linear: &B::Linear,
        gate: Gate,
        hidden: &mut B::Tensor,
        out: &mut B::Tensor,
    ) {
        self.listen(x, linear);
        self.inner.gated_linear(x, linear, gate, hidden, out);
    }

    fn moe<L: Borrow<B::Linear>>(&mut self, x: &B::Tensor, moe: &Moe<L>, out: &mut B::Tensor) {
        self.inner.moe(x, moe, out);
    }

    fn gather_logit_rows(&mut self, x: &B::Tensor, batch: &B::Prepared, out: &mut B::Tensor) {
        self.inner.gather_logit_rows(x, batch, out);
    }

    fn softcap(&mut self, x: &mut B::Tensor, cap: f32) {
        self.inner.softcap(x, cap);
    }

    fn read(&mut self, x: &B::Tensor, out: &mut Vec<f32>) {
        self.inner.read(x, out);
    }

    fn write(&mut self, x: &mut B::Tensor, values: &[f32]) {
        self.inner.write(x, values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pelton_backend::Reference;
    use pelton_backend::conformance::{Suite, Tolerances};

    #[test]
    fn a_backend_that_is_listened_to_gives_what_it_gives_alone() {
        let suite = Suite::new(Tolerances::default());
        let bare = suite.outputs(&mut Reference);
        assert!(suite.outputs(&mut Recorder::new(Reference)) == bare);
    }

    #[test]
    fn squares_are_summed_for_every_part_of_a_layer() {
        let mut backend = Recorder::new(Reference);
        let part = |name: &str| Weight::from_f32(name, 1, 2, &[1.0, 1.0]).unwrap();
        let spec = LinearSpec::new("qkv", vec![part("q.weight"), part("k.weight")], Vec::new()).unwrap();
        let linear = backend.load_linear(&spec).unwrap();
        // Rows come from a table, as nothing else makes a tensor.
        let table = Weight::from_f32("table", 2, 2, &[1.0, -2.0, 3.0, 0.5]).unwrap();
        let table = backend.load_embedding(&table).unwrap();
        let mut batch = BatchBuilder::new(1);
        batch.push(&[0, 1], 0, &[0], 0).unwrap();
        let batch = backend.prepare(&batch.finish(), &Rope { inv_freq: vec![1.0], scale: 1.0 });
        let (mut x, mut out) = (backend.alloc(2, 2), backend.alloc(2, 2));
        backend.embed(&batch, &table, 1.0, &mut x);
        backend.linear(&x, &linear, &mut out);
        backend.linear(&x, &linear, &mut out);
        let imatrix = backend.into_imatrix();
        for name in ["q.weight", "k.weight"] {
            assert_eq!(imatrix.of(name, 2, 1).unwrap(), Some(vec![5.0, 2.125]), "{name}");
        }
        assert_eq!(imatrix.of("v.weight", 2, 1).unwrap(), None);
    }
}

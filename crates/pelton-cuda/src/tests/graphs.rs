//! What a step becomes on the device: graphs, memory that is short, a device that is lost.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pelton_backend::{Attention, Backend, BackendError, BatchBuilder, Gate, Heads, KvLayout, KvType, LinearSpec, Rope};
use pelton_quant::DType;

use super::mutants::{numbers, upload, weight};
use crate::sim::{self, Build, Simulator};
use crate::{CudaBackend, CudaError, CudaOptions, QueueCounts};

const HEADS: Heads = Heads { n_heads: 4, n_kv_heads: 2, head_dim: 32 };
const HIDDEN: usize = 128;

/// A layer of a model and its buffers.
struct Model {
    cuda: CudaBackend,
    qkv: <CudaBackend as Backend>::Linear,
    output: <CudaBackend as Backend>::Linear,
    gate_up: <CudaBackend as Backend>::Linear,
    norm: <CudaBackend as Backend>::Vector,
    table: <CudaBackend as Backend>::Embedding,
    kv: <CudaBackend as Backend>::Kv,
    work: [<CudaBackend as Backend>::Tensor; 7],
}

impl Model {
    fn new(no_graphs: bool) -> Model {
        let options = CudaOptions { driver: Some(sim::library()), no_graphs, ..CudaOptions::default() };
        let mut cuda = CudaBackend::open(&options).unwrap();
        let mut load = |dtypes: &[(DType, usize)], cols, seed| {
            let parts = dtypes.iter().map(|&(t, rows)| weight(t, rows, cols, seed)).collect();
            cuda.load_linear(&LinearSpec::new("layer", parts, Vec::new()).unwrap()).unwrap()
        };
        let qkv = load(&[(DType::Q8_0, HEADS.qkv_dim())], HIDDEN, 1);
        let output = load(&[(DType::Q4_0, HIDDEN)], HEADS.q_dim(), 2);
        let gate_up = load(&[(DType::Q4_0, HIDDEN), (DType::Q4_0, HIDDEN)], HIDDEN, 3);
        let norm = cuda.load_vector(&numbers(HIDDEN, 4));
        let table = cuda.load_embedding(&weight(DType::Q8_0, 50, HIDDEN, 5)).unwrap();
        let layout = KvLayout { n_layers: 1, n_kv_heads: 2, head_dim: 32, n_pages: 12, dtype: KvType::Bf16 };
        let kv = cuda.kv_pool(&layout).unwrap();
        let widths = [HIDDEN, HIDDEN, HEADS.qkv_dim(), HEADS.q_dim(), HIDDEN, 2 * HIDDEN, HIDDEN];
        let work = widths.map(|w| cuda.alloc(1, w));
        Model { cuda, qkv, output, gate_up, norm, table, kv, work }
    }

    /// One step: `ids` of two sequences after `cached` tokens each.
    fn step(&mut self, ids: [&[u32]; 2], cached: usize) -> Vec<f32> {
        let mut batch = BatchBuilder::new(12);
        for (ids, pages) in ids.into_iter().zip([[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]) {
            batch.push(ids, cached, &pages, 1).unwrap();
        }
        let batch = batch.finish();
        let Model { cuda, work: [x, normed, qkv, attn, delta, hidden, gated], .. } = self;
        for tensor in [&mut *x, normed, qkv, attn, delta, hidden, gated] {
            cuda.set_rows(tensor, batch.rows());
        }
        let rope = Rope { inv_freq: (0..16).map(|i| 0.8f32.powi(i)).collect(), scale: 1.0 };
        let prepared = cuda.prepare(&batch, &rope);
        cuda.embed(&prepared, &self.table, 1.0, x);
        cuda.rms_norm(x, &self.norm, 1e-6, normed);
        cuda.linear(normed, &self.qkv, qkv);
        cuda.rope_store_kv(qkv, &prepared, HEADS, None, 0, &mut self.kv);
        let attention = Attention { heads: HEADS, scale: 0.2, softcap: None, window: None };
        cuda.paged_attention(qkv, &prepared, &attention, 0, &self.kv, attn);
        cuda.linear(attn, &self.output, delta);
        cuda.add_rms_norm(x, delta, &self.norm, 1e-6, normed);
        cuda.gated_linear(normed, &self.gate_up, Gate::Silu, hidden, gated);
        let mut out = Vec::new();
        cuda.read(gated, &mut out);
        out
    }

    /// A prompt and then 60 steps of one token each; the answers of the steps.
    fn generate(&mut self) -> (Vec<Vec<f32>>, QueueCounts) {
        let prompt: Vec<u32> = (0..35).collect();
        self.step([&prompt, &prompt], 0);
        let before = self.cuda.counts();
        let steps = (0..60).map(|i| self.step([&[i % 50], &[(7 * i) % 50]], 35 + i as usize)).collect();
        let after = self.cuda.counts();
        (steps, QueueCounts { graph_launches: after.graph_launches - before.graph_launches, ..after })
    }
}

#[test]
fn a_step_becomes_one_graph_and_gives_the_same_bits() {
    let (plain, counts) = Model::new(true).generate();
    assert_eq!((counts.graphs_made, counts.graph_launches), (0, 0));
    let (graphs, counts) = Model::new(false).generate();
    assert!(counts.graph_launches >= 50, "{counts:?}");
    assert!(counts.graphs_made <= 4, "a graph is made once, not every step: {counts:?}");
    let bits = |steps: &[Vec<f32>]| -> Vec<u32> { steps.iter().flatten().map(|v| v.to_bits()).collect() };
    assert_eq!(bits(&plain), bits(&graphs));
}

#[test]
fn memory_that_is_not_there_is_an_error_with_numbers() {
    // A library of its own: its memory is limited.
    let library = sim::build(&Build {
        changes: &[("fakecuda.cpp", "memory_limit = 1ull << 30", "memory_limit = 1ull << 22")],
        ..Build::default()
    });
    let mut cuda = CudaBackend::open(&CudaOptions { driver: Some(library), ..CudaOptions::default() }).unwrap();
    let layout = KvLayout { n_layers: 8, n_kv_heads: 2, head_dim: 128, n_pages: 100, dtype: KvType::Bf16 };
    let error = cuda.kv_pool(&layout).unwrap_err();
    assert!(matches!(error, BackendError::OutOfMemory { bytes, .. } if bytes == layout.bytes().unwrap()), "{error}");
    assert!(error.to_string().contains("on the GPU"), "{error}");
    let error = cuda.kv_pool(&KvLayout { n_pages: usize::MAX / 2, ..layout }).unwrap_err();
    assert!(matches!(error, BackendError::OutOfMemory { .. }), "{error}");
    // What fits still works, and idle memory makes room for what is needed.
    drop((0..3).map(|i| cuda.alloc(100 + 100 * i, 1000)).collect::<Vec<_>>());
    let x = cuda.alloc(800, 1000);
    drop(x);
    let error = cuda.kv_pool(&KvLayout { head_dim: 300, ..layout }).unwrap_err();
    assert!(error.to_string().contains("256"), "{error}");
}

#[test]
fn a_lost_device_is_a_clear_end_and_not_a_wrong_answer() {
    let library =
        sim::build(&Build { changes: &[("fakecuda.cpp", "\"Simulator\"", "\"Lost simulator\"")], ..Build::default() });
    let simulator = Simulator::of(&library);
    let mut cuda = CudaBackend::open(&CudaOptions { driver: Some(library), ..CudaOptions::default() }).unwrap();
    let x = upload(&mut cuda, 2, 8, &numbers(16, 1));
    simulator.lose_device();
    let mut out = Vec::new();
    for _ in 0..2 {
        let end = catch_unwind(AssertUnwindSafe(|| cuda.read(&x, &mut out))).unwrap_err();
        let text = end.downcast_ref::<String>().expect("a text");
        assert!(text.contains("the GPU stopped") && text.contains("LAUNCH_FAILED"), "{text}");
        simulator.find_device();
    }
    drop(x);
}

#[test]
fn a_backend_moves_to_the_thread_that_runs_steps() {
    fn assert_send<T: Send>(value: T) -> T {
        value
    }
    let mut model = Model::new(false);
    let here = model.step([&[1], &[2]], 0);
    let mut moved = assert_send(Model::new(false));
    let there = std::thread::spawn(move || moved.step([&[1], &[2]], 0)).join().unwrap();
    assert_eq!(here, there);
}

#[test]
fn a_card_that_is_not_there_is_named() {
    let options = CudaOptions { driver: Some(sim::library()), device: 3, ..CudaOptions::default() };
    let error = CudaBackend::open(&options).unwrap_err();
    assert!(matches!(error, CudaError::NoSuchDevice { index: 3, count: 1 }), "{error}");
    let infos = crate::devices(Some(&sim::library())).unwrap();
    assert_eq!((infos.len(), infos[0].arch().as_str()), (1, "sm_80"));
    let cuda = super::conformance::backend(false);
    assert!(cuda.describe().contains("Simulator, sm_80"), "{}", cuda.describe());
}

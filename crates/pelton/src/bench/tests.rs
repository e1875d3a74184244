//! Workloads on a small random model: counts, sums, refusals.

use std::path::PathBuf;

use super::*;
use crate::ModelRef;

fn model() -> Model {
    let fixture = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/qwen3");
    Model::open(&ModelRef::Path(fixture), None).unwrap()
}

fn work(kind: Kind, tokens: usize, depth: usize, batch: usize) -> Workload {
    Workload { kind, tokens, depth, batch }
}

fn bench(workloads: &[Workload]) -> Bench {
    let options = Options { batch_rows: 16, threads: Some(1), kv_type: crate::KvType::F16, ..Options::default() };
    Bench::load(model(), &options, workloads, &mut |_| ()).unwrap()
}

#[test]
fn every_workload_gives_a_figure_for_each_repetition() {
    let workloads = [
        work(Kind::Prefill, 40, 0, 1),
        work(Kind::Prefill, 20, 45, 1),
        work(Kind::Decode, 5, 0, 1),
        work(Kind::Decode, 40, 45, 3),
    ];
    let mut bench = bench(&workloads);
    for w in &workloads {
        let mut calls = 0;
        let m = bench.measure(w, 4, &mut || calls += 1).unwrap();
        assert_eq!((m.tokens_per_second.len(), calls), (4, 5));
        assert!(m.least() > 0.0 && m.least() <= m.median() && m.median() <= m.most());
    }
}

#[test]
fn a_decode_step_reads_the_weights_once_and_shared_keys_and_values_once() {
    let (one, three) = (work(Kind::Decode, 1, 64, 1), work(Kind::Decode, 1, 64, 3));
    let mut bench = bench(&[one, three]);
    let config = model().files.config.clone();
    let kv = (2 * config.n_layers * config.kv_dim() * 2 * 65) as f64;
    let bytes = |m: Measurement| m.work.memory_bytes;
    let (a, b) = (bench.measure(&one, 1, &mut || ()).unwrap(), bench.measure(&three, 1, &mut || ()).unwrap());
    let embedding = a.work.memory_bytes - bench.weight_bytes() as f64 - kv;
    assert!(embedding > 0.0 && embedding <= 4.0 * config.hidden as f64, "a row of the table: {embedding}");
    // The two full pages of the prompt are shared.
    assert_eq!(bytes(b) - bytes(a.clone()), 2.0 * (kv / 65.0 + embedding));
    // Two operations for each weight and row.
    let linear = a.work.int8_operations + a.work.bf16_operations;
    assert!(linear <= 2.0 * bench_parameters() && a.work.operations() > 1.9 * matrix_parameters(), "{linear}");
}

fn bench_parameters() -> f64 {
    model().parameters() as f64
}

/// Parameters of the matrices that are multiplied with.
fn matrix_parameters() -> f64 {
    let files = model().files;
    let tied = if files.config.tied_embeddings { 0 } else { files.config.vocab_size * files.config.hidden };
    let all: usize = files.tensors.iter().filter(|t| t.shape.len() == 2).map(|t| t.elements()).sum();
    (all - tied) as f64
}

#[test]
fn ledgers_sum_to_their_step_and_agree_with_the_measurement() {
    let workloads = [work(Kind::Prefill, 40, 7, 1), work(Kind::Decode, 9, 7, 2)];
    let mut bench = bench(&workloads);
    for w in &workloads {
        let ledger = bench.ledger(w).unwrap();
        let sum: f64 = ledger.entries.iter().map(|e| e.seconds).sum();
        assert!((sum - ledger.seconds).abs() <= 1e-9 * ledger.seconds, "{sum} of {}", ledger.seconds);
        let layers = model().files.config.n_layers;
        // 40 rows are three chunks of at most 16.
        let passes = if w.kind == Kind::Prefill { 3 } else { 1 };
        for (op, calls) in [("linear attn_qkv", layers), ("paged_attention", layers), ("embed", 1)] {
            let entry = ledger.entries.iter().find(|e| e.op == op).unwrap();
            assert_eq!(entry.calls, calls * passes, "{op}");
            assert!(entry.work.bytes() > 0.0);
        }
        let steps = if w.kind == Kind::Decode { w.tokens as f64 } else { 1.0 };
        let measured = bench.measure(w, 1, &mut || ()).unwrap().work;
        let (a, b) = (ledger.work().operations() * steps, measured.operations());
        assert!((a / b - 1.0).abs() < 0.02, "{a} {b}");
    }
}

#[test]
fn what_the_model_or_the_memory_cannot_hold_is_refused() {
    let model = model();
    let options = Options::default();
    let error =
        |w: Workload, free| check_memory(&model, &options, &[w], free, &Placed::default()).unwrap_err().to_string();
    let most = model.files.config.max_context;
    let text = error(work(Kind::Prefill, most, 1, 1), None);
    assert!(text.contains(&format!("--prompt {most} --depth 1")) && text.contains("at most"), "{text}");
    assert!(error(work(Kind::Decode, usize::MAX, 1, 1), None).contains("--generate"));
    let text = error(work(Kind::Decode, 8, 64, 1000), Some(1 << 20));
    assert!(text.contains("does not fit") && text.contains("--batch"), "{text}");
    assert!(check_memory(&model, &options, &[work(Kind::Decode, most - 1, 1, 1)], None, &Placed::default()).is_ok());
}

#[test]
fn kernels_are_measured_for_every_type_shape_and_number_of_rows() {
    let shape = model().files.config.clone();
    let plan = KernelPlan { shape, types: vec![crate::DType::Q8_0], rows: vec![64], depths: vec![40], repeat: 1 };
    let mut figures = Vec::new();
    plan.run(&Options::default(), &mut |f| figures.push(f)).unwrap();
    assert_eq!(figures.len(), plan.len());
    for f in &figures {
        assert!(f.seconds > 0.0 && f.work.bytes() > 0.0 && f.rows == 64, "{f:?}");
    }
    let linear = figures.iter().find(|f| f.op == "linear attn_output").unwrap();
    let c = &plan.shape;
    assert_eq!(linear.work.int8_operations, (2 * 64 * c.q_dim() * c.hidden) as f64);
    assert!(!linear.kernel.is_empty() && linear.dtype == "Q8_0");
}

#[test]
fn medians_of_even_numbers_lie_between_two() {
    assert_eq!((median(&[1.0, 2.0, 9.0]), median(&[1.0, 2.0, 4.0, 9.0])), (2.0, 3.0));
}

//! Rows together and apart: the same bits.

use pelton_quant::DType;

use super::attention::{AttentionCase, Sequences};
use super::grouped;
use super::linear::{self, MoeCase};
use super::{Failure, Random, download, upload};
use crate::{Backend, Gate, Heads, KvType};

/// Runs rows in one batch, in pieces and alone, and compares bits; empty where they are the same.
pub fn batch_invariance<B: Backend>(b: &mut B) -> Vec<Failure> {
    let mut failures = Vec::new();
    row_ops(b, &mut failures);
    linear_layers(b, &mut failures);
    experts(b, &mut failures);
    for (i, (group, n_kv_heads, head_dim)) in
        [(7, 1, 64), (1, 2, 20), (2, 1, 128), (3, 1, 80), (5, 1, 96), (8, 1, 48)].into_iter().enumerate()
    {
        let head_dims = Heads { n_heads: group * n_kv_heads, n_kv_heads, head_dim };
        attention(b, head_dims, i, &mut failures);
    }
    failures
}

/// Runs `op` on all rows, on pieces of 1, 2, 5 and 32 rows, and reports the first row that differs.
fn pieces<B: Backend>(
    b: &mut B,
    (op, case): (&'static str, String),
    (rows, cols): (usize, usize),
    mut run: impl FnMut(&mut B, B::Tensor, usize) -> Vec<f32>,
    failures: &mut Vec<Failure>,
) {
    let values = Random(rows as u64 + cols as u64).normals(rows * cols);
    let x = upload(b, rows, cols, &values);
    let whole = run(b, x, rows);
    let width = whole.len() / rows;
    for size in [1, 2, 5, 32] {
        let mut parts = Vec::new();
        for piece in values.chunks(size * cols) {
            let n = piece.len() / cols;
            let x = upload(b, n, cols, piece);
            parts.extend(run(b, x, n));
        }
        report((op, &case), size, width, &whole, &parts, failures);
    }
}

fn report(
    (op, case): (&'static str, &str),
    size: usize,
    width: usize,
    whole: &[f32],
    parts: &[f32],
    failures: &mut Vec<Failure>,
) {
    assert_eq!(whole.len(), parts.len());
    let differs = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits();
    if let Some(at) = whole.iter().zip(parts).position(differs) {
        let (row, col, a, b) = (at / width, at % width, whole[at], parts[at]);
        let problem = format!("row {row}, column {col} is {a:e} among all rows and {b:e} in pieces of {size}");
        failures.push(Failure { op, case: case.to_string(), problem });
    }
}

fn row_ops<B: Backend>(b: &mut B, failures: &mut Vec<Failure>) {
    for (rows, cols) in [(33, 48), (70, 1030), (130, 2050)] {
        let case = format!("rows {rows}, cols {cols}");
        let weight = Random(5).normals(cols);
        let weight = b.load_vector(&weight);
        let norm = |b: &mut B, x: B::Tensor, n: usize| {
            let mut out = b.alloc(n, cols);
            b.rms_norm(&x, &weight, 1e-6, &mut out);
            download(b, &out)
        };
        pieces(b, ("rms_norm", case.clone()), (rows, cols), norm, failures);
        let add_norm = |b: &mut B, mut x: B::Tensor, n: usize| {
            let mut out = b.alloc(n, cols);
            let y = download(b, &x);
            let y = upload(b, n, cols, &y);
            b.add_rms_norm(&mut x, &y, &weight, 1e-6, &mut out);
            download(b, &out)
        };
        pieces(b, ("add_rms_norm", case.clone()), (rows, cols), add_norm, failures);
        for kind in [Gate::Silu, Gate::GeluTanh] {
            let gate = |b: &mut B, x: B::Tensor, n: usize| {
                let mut out = b.alloc(n, cols / 2);
                b.gate(&x, kind, &mut out);
                download(b, &out)
            };
            pieces(b, ("gate", case.clone()), (rows, cols), gate, failures);
        }
        let softcap = |b: &mut B, mut x: B::Tensor, _: usize| {
            b.softcap(&mut x, 1.5);
            download(b, &x)
        };
        pieces(b, ("softcap", case), (rows, cols), softcap, failures);
    }
}

fn linear_layers<B: Backend>(b: &mut B, failures: &mut Vec<Failure>) {
    for case in linear::cases() {
        let spec = case.spec(&mut Random(77));
        let layer = b.load_linear(&spec).expect("a type that can be decoded has a kernel");
        let run = |b: &mut B, x: B::Tensor, n: usize| {
            let mut out = b.alloc(n, spec.out_features());
            b.linear(&x, &layer, &mut out);
            download(b, &out)
        };
        pieces(b, ("linear", case.to_string()), (67, spec.in_features()), run, failures);
    }
}

fn experts<B: Backend>(b: &mut B, failures: &mut Vec<Failure>) {
    for (stored, seed) in [(DType::F32.into(), 1), (DType::Q4_0.into(), 2), (grouped::shuffled()[1], 3)] {
        let (hidden, ffn, gate) = (64, 96, Gate::Silu);
        let (n_experts, top_k, norm_topk) = (6, 3, true);
        let case = MoeCase { stored, hidden, ffn, n_experts, top_k, norm_topk, gate, rows: Vec::new(), seed };
        let moe = case.load(b, &mut Random(seed));
        let run = |b: &mut B, x: B::Tensor, n: usize| {
            let mut out = b.alloc(n, hidden);
            b.moe(&x, &moe, &mut out);
            download(b, &out)
        };
        pieces(b, ("moe", case.to_string()), (67, hidden), run, failures);
    }
}

/// A prompt of 200 rows at once, in chunks of 1, 5 and 32, and beside another sequence.
fn attention<B: Backend>(b: &mut B, heads: Heads, variant: usize, failures: &mut Vec<Failure>) {
    const ROWS: usize = 200;
    let width = heads.qkv_dim();
    let values = Random(variant as u64 + 31).normals(ROWS * width);
    let noise = Random(variant as u64 + 97).normals(ROWS * width);
    let mut case = AttentionCase {
        heads,
        dtype: [KvType::Bf16, KvType::F32, KvType::Bf16, KvType::F16, KvType::Int8, KvType::Fp8][variant],
        rope_dim: heads.head_dim,
        norms: variant == 1,
        softcap: (variant == 2).then_some(20.0),
        window: [None, Some(45), None, Some(7), Some(70), None][variant],
        steps: vec![vec![ROWS, ROWS]],
        copy: false,
        seed: 4000 + variant as u64,
    };
    // The answers to all rows of the first sequence; `beside` rows of another go before it in each step.
    let mut run = |size: usize, beside: usize| {
        let mut sequences = Sequences::new(b, &case);
        let mut all = Vec::new();
        let mut seed = 0;
        for chunk in values.chunks(size * width) {
            let n = chunk.len() / width;
            let mut rows = vec![n, 0];
            let mut step_values = chunk.to_vec();
            if beside > 0 {
                rows[1] = beside;
                seed += beside * width;
                step_values.extend_from_slice(&noise[seed - beside * width..seed]);
            }
            let batch = sequences.batch(&rows);
            let (queries, answers) = sequences.step(b, &batch, &step_values);
            for (q, a) in queries.chunks_exact(heads.q_dim()).zip(answers.chunks_exact(heads.q_dim())).take(n) {
                all.extend_from_slice(q);
                all.extend_from_slice(a);
            }
        }
        all
    };
    let whole = run(ROWS, 0);
    let runs = [(1, 0), (5, 0), (32, 0), (ROWS, 1), (32, 9)].map(|(size, beside)| (size, run(size, beside)));
    case.steps.clear();
    for (size, parts) in runs {
        let name = ("paged_attention", case.to_string());
        report((name.0, &name.1), size, 2 * heads.q_dim(), &whole, &parts, failures);
    }
}

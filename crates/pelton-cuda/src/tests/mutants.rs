//! Mistakes planted in the kernels, as people make them: each must be noticed. What is not noticed here could be wrong in
//! the kernels, too.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use pelton_backend::conformance::random_groups;
use pelton_backend::{
    Attention, Backend, Batch, BatchBuilder, Expert, Gate, Heads, KvLayout, KvType, LinearSpec, Moe, Reference, Rope,
    Weight,
};
use pelton_quant::{CodeBook, DType, GroupedType, ZeroPoint};

use super::codes::codes;
use crate::sim::{self, Build, Simulator};
use crate::{CudaBackend, CudaOptions};

/// Seeded numbers between -1 and 1.
pub(super) fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

pub(super) fn weight(dtype: DType, rows: usize, cols: usize, seed: u64) -> Weight {
    let mut bytes = Vec::new();
    pelton_quant::encode(dtype, &numbers(rows * cols, seed), &mut bytes).unwrap();
    Weight::new(dtype.name(), dtype, rows, cols, Arc::new(bytes)).unwrap()
}

const NO_ROPE: Rope = Rope { inv_freq: Vec::new(), scale: 1.0 };

fn plain_batch(rows: usize) -> Batch {
    let pages: Vec<u32> = (0..rows.div_ceil(32) as u32).collect();
    let mut builder = BatchBuilder::new(pages.len());
    builder.push(&(0..rows as u32).collect::<Vec<_>>(), 0, &pages, 1).unwrap();
    builder.finish()
}

pub(super) fn upload<B: Backend>(b: &mut B, rows: usize, cols: usize, values: &[f32]) -> B::Tensor {
    let table = Weight::from_f32("x", rows, cols, values).unwrap();
    let table = b.load_embedding(&table).unwrap();
    let prepared = b.prepare(&plain_batch(rows), &NO_ROPE);
    let mut out = b.alloc(rows, cols);
    b.embed(&prepared, &table, 1.0, &mut out);
    out
}

fn read<B: Backend>(b: &mut B, x: &B::Tensor) -> Vec<f32> {
    let mut out = Vec::new();
    b.read(x, &mut out);
    out
}

fn norms<B: Backend>(b: &mut B) -> Vec<Vec<f32>> {
    let (rows, cols) = (3, 300);
    let mut x = upload(b, rows, cols, &numbers(rows * cols, 1));
    let y = upload(b, rows, cols, &numbers(rows * cols, 2));
    let weight = b.load_vector(&numbers(cols, 3));
    let mut out = b.alloc(rows, cols);
    b.add_rms_norm(&mut x, &y, &weight, 1e-5, &mut out);
    vec![read(b, &out), read(b, &x)]
}

fn linears<B: Backend>(b: &mut B) -> Vec<Vec<f32>> {
    let (out_features, cols) = (21, 1280);
    let mut outputs = Vec::new();
    for dtype in [DType::Q4_K, DType::Q6_K, DType::Q5_0, DType::Q8_0] {
        let spec =
            LinearSpec::new("layer", vec![weight(dtype, out_features, cols, 7)], numbers(out_features, 8)).unwrap();
        let layer = b.load_linear(&spec).unwrap();
        for rows in [1, 3, 11, 20] {
            let x = upload(b, rows, cols, &numbers(rows * cols, 10 + rows as u64));
            let mut out = b.alloc(rows, out_features);
            b.linear(&x, &layer, &mut out);
            outputs.push(read(b, &out));
        }
    }
    outputs
}

/// Integers in groups of columns, some in orders of their own.
fn groups<B: Backend>(b: &mut B) -> Vec<Vec<f32>> {
    let (out_features, cols) = (21, 640);
    let kind = |bits, group, zero| GroupedType { book: CodeBook::Int { bits }, group: Some(group), zero };
    let (middle, own) = (ZeroPoint::At(8), ZeroPoint::PerGroup);
    let mut outputs = Vec::new();
    for (seed, kind) in (60..).zip([kind(4, 128, middle), kind(4, 64, own), kind(8, 128, own), kind(3, 128, own)]) {
        let weight = random_groups(kind, out_features, cols, seed > 61, seed);
        let layer = b.load_linear(&LinearSpec::new("layer", vec![weight], Vec::new()).unwrap()).unwrap();
        for rows in [1, 3, 11] {
            let x = upload(b, rows, cols, &numbers(rows * cols, seed + rows as u64));
            let mut out = b.alloc(rows, out_features);
            b.linear(&x, &layer, &mut out);
            outputs.push(read(b, &out));
        }
    }
    outputs.extend(experts_of(b, |rows, cols, seed| random_groups(kind(4, 32, own), rows, cols, true, seed)));
    outputs
}

/// Products of many rows, and how many of their bits are not those of `few` rows.
fn many_rows<B: Backend>(b: &mut B, weights: &[Weight], few: usize) -> Vec<Vec<f32>> {
    let rows = 70;
    let mut outputs = Vec::new();
    for weight in weights {
        let (out_features, cols) = (weight.rows(), weight.cols());
        let spec = LinearSpec::new("layer", vec![weight.clone()], numbers(out_features, 8)).unwrap();
        let layer = b.load_linear(&spec).unwrap();
        let values = numbers(rows * cols, 60);
        let mut product = |values: &[f32]| {
            let x = upload(b, values.len() / cols, cols, values);
            let mut out = b.alloc(values.len() / cols, out_features);
            b.linear(&x, &layer, &mut out);
            read(b, &out)
        };
        let together = product(&values);
        let apart: Vec<f32> = values.chunks(few * cols).flat_map(&mut product).collect();
        let differ = together.iter().zip(&apart).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        outputs.extend([together, vec![1.0 + differ as f32]]);
    }
    outputs
}

fn experts<B: Backend>(b: &mut B) -> Vec<Vec<f32>> {
    experts_of(b, |rows, cols, seed| weight(DType::Q8_0, rows, cols, seed))
}

fn experts_of<B: Backend>(b: &mut B, weights: impl Fn(usize, usize, u64) -> Weight) -> Vec<Vec<f32>> {
    let (hidden, ffn, n) = (64, 32, 5);
    let mut load = |parts| b.load_linear(&LinearSpec::new("moe", parts, Vec::new()).unwrap()).unwrap();
    let router = load(vec![weight(DType::F32, n, hidden, 50)]);
    let expert = |e: u64| {
        let part = |rows, cols, seed| weights(rows, cols, 100 * e + seed);
        Expert {
            gate_up: load(vec![part(ffn, hidden, 1), part(ffn, hidden, 2)]),
            down: load(vec![part(hidden, ffn, 3)]),
        }
    };
    let experts = (0..n as u64).map(expert).collect();
    let moe = Moe { router, experts, top_k: 2, norm_topk: true, ffn, gate: Gate::Silu };
    let answer = |rows: usize| {
        let x = upload(b, rows, hidden, &numbers(rows * hidden, 51));
        let mut out = b.alloc(rows, hidden);
        b.moe(&x, &moe, &mut out);
        read(b, &out)
    };
    // The second time slots are grouped by expert.
    [3, 40].into_iter().map(answer).collect()
}

/// A prompt beside another sequence, then single rows, over pages in no order.
fn attention<B: Backend>(b: &mut B) -> Vec<Vec<f32>> {
    let heads = Heads { n_heads: 4, n_kv_heads: 2, head_dim: 64 };
    let rope = Rope { inv_freq: (0..20).map(|i| 0.9f32.powi(i)).collect(), scale: 1.0 };
    let mut outputs = Vec::new();
    for dtype in [KvType::Bf16, KvType::Int8, KvType::F16] {
        let layout = KvLayout { n_layers: 1, n_kv_heads: 2, head_dim: 64, n_pages: 16, dtype };
        let mut kv = b.kv_pool(&layout).unwrap();
        let tables = [vec![9, 2, 11, 0, 5, 7], vec![3, 1]];
        let mut cached = [0, 0];
        for step in [[150, 3], [1, 0], [2, 40]] {
            let mut builder = BatchBuilder::new(16);
            for (s, n) in step.into_iter().enumerate().filter(|(_, n)| *n > 0) {
                builder.push(&vec![0; n], cached[s], &tables[s], 1).unwrap();
                cached[s] += n;
            }
            let batch = builder.finish();
            let width = heads.qkv_dim();
            let mut qkv = upload(b, batch.rows(), width, &numbers(batch.rows() * width, 30 + cached[0] as u64));
            let prepared = b.prepare(&batch, &rope);
            b.rope_store_kv(&mut qkv, &prepared, heads, None, 0, &mut kv);
            let attention = Attention { heads, scale: 0.3, softcap: None, window: None };
            let mut out = b.alloc(batch.rows(), heads.q_dim());
            b.paged_attention(&qkv, &prepared, &attention, 0, &kv, &mut out);
            outputs.push(read(b, &out));
        }
    }
    outputs
}

/// Root mean square of the difference, over that of the truth.
fn error(got: &[f32], truth: &[f32]) -> f64 {
    assert_eq!(got.len(), truth.len());
    let sum = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let difference = sum(&mut got.iter().zip(truth).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    (difference / sum(&mut truth.iter().map(|&v| f64::from(v)))).sqrt()
}

/// Which ops a change is in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ops {
    Norms,
    Linears,
    Groups,
    ManyRows,
    Floats,
    Experts,
    Attention,
}

pub(super) fn outputs<B: Backend>(b: &mut B, ops: Ops) -> Vec<Vec<f32>> {
    match ops {
        Ops::Norms => norms(b),
        Ops::Linears => linears(b),
        Ops::Groups => groups(b),
        Ops::ManyRows => {
            let dtypes = [DType::Q4_K, DType::Q6_K, DType::Q5_1, DType::Q8_0];
            many_rows(b, &dtypes.map(|dtype| weight(dtype, 21, 1280, 7)), 4)
        }
        Ops::Floats => {
            let mut weights = [DType::BF16, DType::F16, DType::F32].map(|dtype| weight(dtype, 21, 330, 7)).to_vec();
            weights.extend([CodeBook::E4m3, CodeBook::Nf4, CodeBook::Fp4].map(|book| codes(book, 64, 21, 330, false)));
            many_rows(b, &weights, 11)
        }
        Ops::Experts => experts(b),
        Ops::Attention => attention(b),
    }
}

/// The largest error of some ops on a library; a fault that the simulator reports is endless.
fn largest_error(library: &Path, ops: Ops, seed: u32) -> f64 {
    let run = || {
        let simulator = Simulator::of(library);
        simulator.find_device();
        simulator.set_seed(seed);
        let mut cuda =
            CudaBackend::open(&CudaOptions { driver: Some(library.into()), ..CudaOptions::default() }).unwrap();
        let got = outputs(&mut cuda, ops);
        let truth = outputs(&mut Reference, ops);
        got.iter()
            .zip(&truth)
            .map(|(a, b)| error(a, b))
            .fold(0.0, |m, e| if e.is_nan() { f64::INFINITY } else { f64::max(m, e) })
    };
    catch_unwind(AssertUnwindSafe(run)).unwrap_or(f64::INFINITY)
}

/// What rounding to int8 and bf16 costs at most in these ops; to two terms of bf16, in those of floats.
fn tolerance(ops: Ops) -> f64 {
    match ops {
        Ops::Floats => 1e-5,
        _ => 0.015,
    }
}

#[test]
fn without_a_mistake_every_order_of_lanes_is_right() {
    let library = sim::build(&Build {
        changes: &[("sim.h", "// What it cannot show:", "// (Mutants) what it cannot show:")],
        ..Build::default()
    });
    for ops in [Ops::Norms, Ops::Linears, Ops::Groups, Ops::ManyRows, Ops::Floats, Ops::Experts, Ops::Attention] {
        for seed in [0, 1, 2, 3] {
            let error = largest_error(&library, ops, seed);
            assert!(error < tolerance(ops), "{ops:?}, seed {seed}: {error}");
        }
    }
}

macro_rules! mutants {
    ($($name:ident: $ops:expr, $file:literal, $text:literal => $instead:literal;)*) => {$(
        #[test]
        fn $name() {
            let library = sim::build(&Build { changes: &[($file, $text, $instead)], ..Build::default() });
            // In some order of lanes, the first one mostly.
            let is_noticed = (0..4).any(|seed| largest_error(&library, $ops, seed) > tolerance($ops));
            assert!(is_noticed, "{} without {:?} gives the same answers", $file, $text);
        }
    )*};
}

mutants! {
    a_missing_barrier_between_warps: Ops::Norms, "norm.cu",
        "parts[warp] = v;\n  __syncthreads();" => "parts[warp] = v;";
    a_barrier_that_half_a_block_reaches: Ops::Norms, "norm.cu",
        "parts[warp] = v;\n  __syncthreads();" => "parts[warp] = v;\n  if (threadIdx.x < 128) __syncthreads();";
    a_shuffle_that_half_a_warp_reaches: Ops::Linears, "quantize.cu",
        "const float unit = warp_max(largest) / 127.f;" => "const float unit = (lane < 16 ? warp_max(largest) : largest) / 127.f;";
    a_missing_barrier_of_a_warp: Ops::Attention, "rope.cu",
        "v[i] = from[i];\n  __syncwarp();" => "v[i] = from[i];";
    a_slot_of_the_wrong_size: Ops::Attention, "rope.cu",
        "positions[row] & 31" => "positions[row] & 15";
    a_missing_barrier_before_classes_are_added: Ops::Linears, "matvec.cu",
        "__syncthreads();\n  if (threadIdx.x >= 8 * TOKENS)" => "if (threadIdx.x >= 8 * TOKENS)";
    a_quarter_that_is_not_added: Ops::Linears, "matvec.cu",
        "sum[i] += __shfl_xor_sync(ALL_LANES, sum[i], 2);" => "";
    nibbles_the_wrong_way_round: Ops::Linears, "packed.cuh",
        "words[j] >> (4 * p) & 0x0f0f0f0fu" => "words[j] >> (4 * (1 - p)) & 0x0f0f0f0fu";
    a_wrong_shift_of_a_scale: Ops::Linears, "packed.cuh",
        "v[i + 1] = (int8_t)(w >> 8);" => "v[i + 1] = (int8_t)(w >> 4);";
    a_scale_of_the_other_half: Ops::Groups, "packed.cuh",
        "v[2] = v[3] = (int)w >> 16;" => "v[2] = v[3] = (int16_t)w;";
    one_scale_for_both_halves: Ops::Groups, "packed.cuh",
        "reinterpret_cast<const int16_t*>(at)[first];" => "reinterpret_cast<const int16_t*>(at)[g];";
    zero_points_that_are_not_taken_off: Ops::Groups, "packed.cuh",
        "__int2float_rn(sum - minima)" => "__int2float_rn(sum)";
    columns_in_the_order_of_the_input: Ops::Groups, "quantize.cu",
        "row[order ? order[first + i] : first + i]" => "row[first + i]";
    columns_in_the_order_of_another_expert: Ops::Groups, "quantize.cu",
        "order = orders[picks[blockIdx.y]];" => "order = orders[0];";
    a_row_of_another_slot: Ops::Groups, "quantize.cu",
        "from /= share;" => "from = 0;";
    swapped_registers_of_activations: Ops::Linears, "matmul_few.cu",
        "mma_s8_k32(c, a, lows[j], highs[j]);" => "mma_s8_k32(c, a, highs[j], lows[j]);";
    swapped_registers_of_weights: Ops::Linears, "matmul_few.cu",
        "codes[1].four(j, 0), codes[0].four(j, 1), codes[1]" => "codes[0].four(j, 1), codes[1].four(j, 0), codes[1]";
    a_stage_that_has_not_arrived: Ops::ManyRows, "ring.cuh",
        "copy_async_wait<STAGES - 2>();" => "copy_async_wait<STAGES - 1>();";
    a_stage_overwritten_while_it_is_read: Ops::ManyRows, "ring.cuh",
        "copy_async_wait<STAGES - 2>();\n        __syncthreads();" => "copy_async_wait<STAGES - 2>();";
    terms_of_the_wrong_step: Ops::Floats, "terms.cuh",
        "step ? lo.z : lo.x, step ? lo.w : lo.y" => "step ? lo.x : lo.z, step ? lo.w : lo.y";
    chunks_dealt_to_other_classes: Ops::Floats, "terms.cu",
        "int chunk = warp; chunk < n_chunks; chunk += 4" => "int chunk = 3 - warp; chunk < n_chunks; chunk += 4";
    a_bit_lost_between_terms: Ops::Floats, "terms.cuh",
        "a[1][r] = __byte_perm(rest[0], rest[1], 0x7632);" => "a[1][r] = __byte_perm(rest[1], rest[0], 0x7632);";
    codes_of_the_wrong_row: Ops::Floats, "terms.cuh",
        "r & 1 ? 0x3424 : 0x1404" => "r & 1 ? 0x1404 : 0x3424";
    levels_the_wrong_way_round: Ops::Floats, "terms.cuh",
        "a[w][r] = __byte_perm(low, high, 0x5140);" => "a[w][r] = __byte_perm(low, high, 0x4051);";
    scales_of_the_first_group: Ops::Floats, "terms.cuh",
        "chunk / per_group) * 16" => "chunk / per_group / 2) * 16";
    sums_of_another_chunk: Ops::Floats, "terms_many.cu",
        "if (p.half == 0) {" => "if (p.half == 1) {";
    classes_in_another_order: Ops::ManyRows, "ring.cuh",
        "CLASSES = 4" => "CLASSES = 2";
    fragments_of_the_wrong_rows: Ops::ManyRows, "matmul_many.cu",
        "a[j][2 * p + r] =" => "a[j][p + 2 * r] =";
    scales_of_the_first_half_twice: Ops::ManyRows, "matmul_many.cu",
        "step = F::SCALES_BYTES / 2;" => "step = 0;";
    a_digit_of_the_wrong_weight: Ops::ManyRows, "matmul_many.cu",
        "c[e] *= 128;" => "c[e] *= 256;";
    a_missing_barrier_after_loading: Ops::Floats, "floats.cu",
        "xs[c + 3][r] = v.w;\n        }\n        __syncthreads();" => "xs[c + 3][r] = v.w;\n        }";
    slots_of_another_expert: Ops::Experts, "moe.cu",
        "((1u << lane) - 1))] = i;" => "((1u << lane) - 1))] = i ^ 1;";
    groups_that_end_too_soon: Ops::Experts, "moe.cu",
        "min(64, count - 64 * k)" => "min(16, count - 64 * k)";
    rows_of_other_slots: Ops::Experts, "ring.cuh",
        "return slot(r) / share;" => "return slot(r) % share;";
    answers_in_the_order_of_experts: Ops::Experts, "ring.cuh",
        "r < group.count ? group.slot(r) : -1" => "r < group.count ? group.first + r : -1";
    an_expert_of_another_slot: Ops::Experts, "moe.cu",
        "weights[slot], answers[slot * cols + i]" => "weights[slot], answers[(slot ^ 1) * cols + i]";
    a_wait_that_is_too_short: Ops::Attention, "attention.cu",
        "copy_async_wait<1>();" => "copy_async_wait<2>();";
    a_page_overwritten_while_it_is_read: Ops::Attention, "attention.cu",
        "    }\n    __syncthreads();\n  }\n}\n" => "    }\n  }\n}\n";
    slots_that_nobody_wrote: Ops::Attention, "attention.cu",
        "page * 32 + (r & 31) <= last" => "page * 32 + (r & 31) <= last + 32";
    swapped_registers_of_softmax_weights: Ops::Attention, "attention.cu",
        "pack(score[2 * j][0], score[2 * j][1]), pack(score[2 * j][2], score[2 * j][3])" =>
        "pack(score[2 * j][2], score[2 * j][3]), pack(score[2 * j][0], score[2 * j][1])";
    a_row_that_sees_the_next_position: Ops::Attention, "attention.cu",
        "at <= position[r] &&" => "at <= position[r] + 1 &&";
    chunks_joined_without_scaling: Ops::Attention, "attention.cuh",
        "j.take = exp2f(m - now);" => "j.take = 1.f;";
}

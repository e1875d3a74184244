//! Products of many rows: the bits of one row alone, whatever the number of rows, columns and superblocks.

use pelton_backend::conformance::random_groups;
use pelton_backend::{Backend, Expert, Gate, LinearSpec, Moe, Weight};
use pelton_quant::{CodeBook, DType, GroupedType, ZeroPoint};

use super::conformance::backend;
use super::mutants::{numbers, upload, weight};
use crate::CudaBackend;
use crate::linear::FORMATS;

type Linear = <CudaBackend as Backend>::Linear;

fn layer(cuda: &mut CudaBackend, weight: Weight) -> Linear {
    let bias = numbers(weight.rows(), 4);
    cuda.load_linear(&LinearSpec::new("layer", vec![weight], bias).unwrap()).unwrap()
}

fn product(cuda: &mut CudaBackend, layer: &Linear, x: &[f32], rows: usize) -> Vec<u32> {
    let k = x.len() / rows;
    let x = upload(cuda, rows, k, x);
    let mut out = cuda.alloc(rows, layer.out_features);
    cuda.linear(&x, layer, &mut out);
    let mut values = Vec::new();
    cuda.read(&out, &mut values);
    values.iter().map(|v| v.to_bits()).collect()
}

/// Holds products of several numbers of rows, up to the last of `counts`, against each row alone.
fn assert_same_bits(cuda: &mut CudaBackend, weight: Weight, counts: impl Iterator<Item = usize> + Clone) {
    let most = counts.clone().max().unwrap();
    let (name, n, k) = (weight.name().to_string(), weight.rows(), weight.cols());
    let layer = layer(cuda, weight);
    let x = numbers(most * k, 5);
    let alone: Vec<u32> = x.chunks(k).flat_map(|x| product(cuda, &layer, x, 1)).collect();
    for rows in counts {
        // Not always the same rows in the same places.
        let first = (most - rows) / 2;
        let together = product(cuda, &layer, &x[first * k..(first + rows) * k], rows);
        let differs = together.iter().zip(&alone[first * n..]).position(|(a, b)| a != b);
        assert_eq!(differs.map(|at| (at / n, at % n)), None, "{name} ({n}, {k}), {rows} rows");
    }
}

#[test]
fn every_format_has_the_same_bits_with_many_rows() {
    let mut cuda = backend(true);
    for (i, dtype) in FORMATS.iter().filter_map(|format| format.dtype).enumerate() {
        // One, two, and five superblocks, the last of them in part where blocks are small.
        let block = dtype.block_len();
        for (n, k) in
            [(1, 256 / block * block), (21, 512), (8 * i + 37, 1280 - if block < 256 { 3 * block } else { 0 })]
        {
            assert_same_bits(&mut cuda, weight(dtype, n, k, 3), [4, 32, 65, 129].into_iter());
        }
    }
}

#[test]
fn integers_in_groups_have_the_same_bits_with_many_rows() {
    let mut cuda = backend(true);
    let (middle, own) = (ZeroPoint::At, ZeroPoint::PerGroup);
    let kinds = [(4, 128, middle(8)), (8, 128, middle(128)), (2, 128, own), (3, 128, own), (4, 32, own), (4, 64, own)];
    for (bits, group, zero) in kinds.into_iter().chain([(4, 128, own), (8, 32, own), (8, 128, own)]) {
        let kind = GroupedType { book: CodeBook::Int { bits }, group: Some(group), zero };
        for (n, k, is_shuffled) in [(21, 512, false), (140, 1152, true)] {
            let weight = random_groups(kind, n, k, is_shuffled, 6);
            assert_same_bits(&mut cuda, weight, [4, 32, 65, 129].into_iter());
        }
    }
}

#[test]
fn floats_have_the_same_bits_with_many_rows() {
    let mut cuda = backend(true);
    for dtype in [DType::BF16, DType::F16] {
        for (n, k) in [(1, 64), (21, 70), (140, 257), (37, 640)] {
            assert_same_bits(&mut cuda, weight(dtype, n, k, 3), [3, 8, 9, 17, 40, 65, 129].into_iter());
        }
    }
}

#[test]
fn experts_give_the_same_bits_to_many_rows() {
    let (hidden, ffn, n, most) = (96, 160, 5, 110);
    let mut cuda = backend(true);
    // Of each expert's matrices the types differ: groups of one layout pass over those of the other.
    let experts = [DType::Q4_0, DType::BF16, DType::Q4_0, DType::F16, DType::F32].map(|dtype| {
        let mut load = |parts| cuda.load_linear(&LinearSpec::new("moe", parts, Vec::new()).unwrap()).unwrap();
        let part = |dtype, rows, cols, seed| weight(dtype, rows, cols, seed);
        let down = if dtype == DType::BF16 { DType::Q8_0 } else { dtype };
        Expert {
            gate_up: load(vec![part(dtype, ffn, hidden, 21), part(dtype, ffn, hidden, 22)]),
            down: load(vec![part(down, hidden, ffn, 23)]),
        }
    });
    let router = layer(&mut cuda, weight(DType::F32, n, hidden, 3));
    let (experts, top_k, norm_topk) = (experts.into(), 3, true);
    let moe = Moe { router, experts, top_k, norm_topk, ffn, gate: Gate::Silu };
    let x = numbers(most * hidden, 24);
    let mut answer = |rows: &[f32]| {
        let rows = upload(&mut cuda, rows.len() / hidden, hidden, rows);
        let mut out = cuda.alloc(rows.rows(), hidden);
        cuda.moe(&rows, &moe, &mut out);
        let mut values = Vec::new();
        cuda.read(&out, &mut values);
        values.iter().map(|v| v.to_bits()).collect::<Vec<u32>>()
    };
    let alone: Vec<u32> = x.chunks(hidden).flat_map(&mut answer).collect();
    // 13 rows: as they come; 22 and more: by expert.
    for rows in [13, 22, 64, most] {
        let together = answer(&x[..rows * hidden]);
        let differs = together.iter().zip(&alone).position(|(a, b)| a != b);
        assert_eq!(differs.map(|at| (at / hidden, at % hidden)), None, "{rows} rows");
    }
}

#[test]
fn every_number_of_rows_has_the_same_bits() {
    assert_same_bits(&mut backend(true), weight(DType::Q4_K, 9, 512, 3), 1..=200);
}

#[test]
fn columns_past_a_block_have_the_same_bits() {
    for (dtype, n) in [(DType::Q6_K, 128), (DType::Q4_0, 131), (DType::Q5_1, 257)] {
        assert_same_bits(&mut backend(true), weight(dtype, n, 256, 3), [66, 70].into_iter());
    }
}

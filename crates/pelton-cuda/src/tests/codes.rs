//! Weights as codes for floats (8-bit floats, NF4, FP4): near what they decode to, and the same bits for any number of rows.

use std::ops::Range;
use std::sync::Arc;

use pelton_backend::{Backend, LinearSpec, Reference, Weight};
use pelton_quant::{CodeBook, Grouped, GroupedRows, GroupedType, ZeroPoint};

use super::conformance::backend;
use super::mutants::{numbers, upload};
use crate::packed_bytes;

/// The arrays as a file without tricks would have them.
struct Plain {
    cols: usize,
    n_groups: usize,
    codes: Vec<u8>,
    scales: Vec<f32>,
}

impl GroupedRows for Plain {
    fn codes(&self, rows: Range<usize>, out: &mut [u8]) {
        out.copy_from_slice(&self.codes[rows.start * self.cols..rows.end * self.cols]);
    }
    fn scales(&self, rows: Range<usize>, out: &mut [f32]) {
        out.copy_from_slice(&self.scales[rows.start * self.n_groups..rows.end * self.n_groups]);
    }
    fn zeros(&self, _: Range<usize>, _: &mut [i16]) {
        unreachable!("codes for floats have no zero points")
    }
    fn row_bytes(&self) -> usize {
        self.cols
    }
}

/// Random codes, none of which is no number, and scales of either sign.
pub(super) fn codes(book: CodeBook, group: u32, rows: usize, cols: usize, ordered: bool) -> Weight {
    let kind = GroupedType { book, group: (group > 0).then_some(group), zero: ZeroPoint::At(0) };
    let n_groups = kind.group.map_or(1, |g| cols.div_ceil(g as usize));
    let codes = numbers(rows * cols, 31).into_iter().map(|v| (v.to_bits() >> 8) as u8);
    let codes = codes.map(|c| if book == CodeBook::E4m3 { c & 0xf7 } else { c & 15 }).collect();
    let scales = numbers(rows * n_groups, 32).iter().map(|v| 0.02 * (v + v.signum())).collect();
    let order = ordered.then(|| (0..cols as u32).rev().collect());
    let source = Arc::new(Plain { cols, n_groups, codes, scales });
    Weight::grouped(format!("{kind}"), Grouped::new(kind, (rows, cols), order, source))
}

fn product<B: Backend>(b: &mut B, weight: &Weight, x: &[f32], few: usize) -> Vec<f32> {
    let (n, cols) = (weight.rows(), weight.cols());
    let layer = b.load_linear(&LinearSpec::new("layer", vec![weight.clone()], numbers(n, 33)).unwrap()).unwrap();
    let some = |values: &[f32]| {
        let rows = values.len() / cols;
        let x = upload(b, rows, cols, values);
        let mut out = b.alloc(rows, n);
        b.linear(&x, &layer, &mut out);
        let mut values = Vec::new();
        b.read(&out, &mut values);
        values
    };
    x.chunks(few * cols).flat_map(some).collect()
}

/// The largest error, as a share of the largest answer.
fn error(got: &[f32], truth: &[f32]) -> f32 {
    let largest =
        |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, |m, v| if v.is_nan() { v } else { v.abs().max(m) });
    largest(&mut got.iter().zip(truth).map(|(a, b)| a - b)) / largest(&mut truth.iter().copied())
}

#[test]
fn codes_are_multiplied_as_what_they_stand_for() {
    let mut cuda = backend(true);
    for (book, group, n, cols) in [
        (CodeBook::E4m3, 0, 21, 70),
        (CodeBook::E4m3, 128, 140, 320),
        (CodeBook::Nf4, 64, 37, 320),
        (CodeBook::Nf4, 0, 1, 64),
        (CodeBook::Fp4, 64, 37, 650),
        // Groups of half a chunk are decoded to f16.
        (CodeBook::Fp4, 32, 17, 96),
    ] {
        for ordered in [false, true] {
            let weight = codes(book, group, n, cols, ordered);
            let x = numbers(70 * cols, 34);
            let apart = product(&mut cuda, &weight, &x, 3);
            for rows in [1, 11, 40, 70] {
                let together = product(&mut cuda, &weight, &x, rows);
                let is_same = together.iter().zip(&apart).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(is_same, "{weight:?}, {rows} rows");
            }
            let truth = product(&mut Reference, &weight, &x, 70);
            // f16 rounds what is not kept as it is.
            let most = if ordered || group == 32 { 1e-3 } else { 1e-5 };
            let error = error(&apart, &truth);
            assert!(error < most, "{weight:?}, ordered {ordered}: {error}");
        }
    }
}

#[test]
fn codes_take_their_own_bits_and_scales() {
    let mut cuda = backend(true);
    for (book, group, bits) in
        [(CodeBook::E4m3, 0, 8), (CodeBook::E4m3, 128, 8), (CodeBook::Nf4, 64, 4), (CodeBook::Fp4, 128, 4)]
    {
        let (rows, cols) = (32, 512);
        let weight = codes(book, group, rows, cols, false);
        let layer = cuda.load_linear(&LinearSpec::new("layer", vec![weight.clone()], Vec::new()).unwrap()).unwrap();
        let n_scales = if group == 0 { rows } else { rows * cols / group as usize };
        let bytes = cuda.placement(&layer)[0].bytes;
        assert_eq!(bytes, rows * cols * bits / 8 + 4 * n_scales, "{weight:?}");
        assert_eq!(packed_bytes(weight.dtype(), rows, cols), bytes);
    }
}

#[test]
fn a_code_that_is_no_number_makes_its_rows_answers_none() {
    let mut bytes = vec![0x38; 2 * 64];
    bytes[70] = 0xff;
    let source = Plain { cols: 64, n_groups: 1, codes: bytes, scales: vec![1.0, 1.0] };
    let kind = GroupedType { book: CodeBook::E4m3, group: None, zero: ZeroPoint::At(0) };
    let weight = Weight::grouped("odd", Grouped::new(kind, (2, 64), None, Arc::new(source)));
    let answers = product(&mut backend(true), &weight, &[1.0; 64], 1);
    assert!((answers[0] - 64.0).abs() < 2.0 && answers[1].is_nan(), "{answers:?}");
}

//! Codes in groups: every kernel the same bits, and near what `pelton_quant` decodes; in any order of columns.

use std::ops::Range;

use pelton_quant::{CodeBook, Grouped, GroupedRows, GroupedType, WeightType, ZeroPoint};

use super::*;

/// The arrays as a file without tricks would have them.
struct Plain {
    cols: usize,
    n_groups: usize,
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<i16>,
    /// The stored column of each feature.
    place: Vec<usize>,
}

impl GroupedRows for Plain {
    fn codes(&self, rows: Range<usize>, out: &mut [u8]) {
        for (row, out) in rows.zip(out.chunks_exact_mut(self.cols)) {
            for (out, place) in out.iter_mut().zip(&self.place) {
                *out = self.codes[row * self.cols + place];
            }
        }
    }
    fn scales(&self, rows: Range<usize>, out: &mut [f32]) {
        out.copy_from_slice(&self.scales[rows.start * self.n_groups..rows.end * self.n_groups]);
    }
    fn zeros(&self, rows: Range<usize>, out: &mut [i16]) {
        out.copy_from_slice(&self.zeros[rows.start * self.n_groups..rows.end * self.n_groups]);
    }
    fn row_bytes(&self) -> usize {
        self.cols
    }
}

const INT4: CodeBook = CodeBook::Int { bits: 4 };
const INT8: CodeBook = CodeBook::Int { bits: 8 };

fn kind(book: CodeBook, group: u32, zero: ZeroPoint) -> GroupedType {
    GroupedType { book, group: (group > 0).then_some(group), zero }
}

/// Random codes with scales of either sign, as different as a power of two within a row.
fn grouped(kind: GroupedType, rows: usize, cols: usize, ordered: bool, random: &mut Random) -> Weight {
    let most = (1u64 << kind.book.bits()) - 1;
    let n_groups = kind.group.map_or(1, |group| cols.div_ceil(group as usize));
    let mut order: Vec<u32> = (0..cols as u32).collect();
    for i in (1..cols).rev().filter(|_| ordered) {
        order.swap(i, (random.bits() % (i as u64 + 1)) as usize);
    }
    let mut place = vec![0; cols];
    order.iter().enumerate().for_each(|(i, &feature)| place[feature as usize] = i);
    let scale = |random: &mut Random| random.signed().signum() * 0.02 * (1.0 + random.signed().abs());
    // Of FP8 no NaN.
    let mask = if kind.book == CodeBook::E4m3 { 0xf7 } else { 0xff };
    let codes = (0..rows * cols).map(|_| (random.bits() % (most + 1)) as u8 & mask).collect();
    let scales = (0..rows * n_groups).map(|_| scale(random)).collect();
    let zeros = (0..rows * n_groups).map(|_| (random.bits() % (most + 2)) as i16).collect();
    let source = Plain { cols, n_groups, codes, scales, zeros, place };
    let order = ordered.then(|| order.into());
    Weight::grouped(format!("{kind} {rows}x{cols}"), Grouped::new(kind, (rows, cols), order, Arc::new(source)))
}

/// As [`rounding_of`], see `groupedformats.rs`.
fn bound(kind: GroupedType) -> f32 {
    1.5 * match (kind.book, kind.zero) {
        (CodeBook::Int { bits: 1..=4 }, ZeroPoint::At(8)) => 0.51 / 4079.0,
        (CodeBook::Int { bits: 1..=4 }, _) => 7.6 / 32_600.0,
        (CodeBook::Int { .. }, ZeroPoint::At(128)) => 1.0 / 30_000.0,
        (CodeBook::Int { .. }, _) => 4.0 / 32_600.0,
        (CodeBook::E4m3, _) => 1.6 / 16_300.0,
        _ => 1.6 / 32_639.0,
    }
}

/// The weights that a layer sees, against the decoded ones.
fn assert_near(seen: &[f32], weight: &Weight, bound: f32) {
    let (k, n) = (weight.cols(), weight.rows());
    let order = weight.as_grouped().unwrap().order().cloned();
    let mut w = vec![0.0; k];
    for row in 0..n {
        weight.decode_row(row, &mut w);
        let features: Vec<usize> = (0..k).map(|j| order.as_ref().map_or(j, |order| order[j] as usize)).collect();
        for features in features.chunks(256) {
            let largest = features.iter().fold(0.0f32, |a, &j| a.max(w[j].abs()));
            for &j in features {
                let (got, want) = (seen[j * n + row], w[j]);
                assert!((got - want).abs() <= bound * largest, "{weight:?} row {row} is {got}, not {want}, at {j}");
                assert!(want != 0.0 || got == 0.0, "{weight:?} row {row}: zero is {got} at {j}");
            }
        }
    }
}

/// One type: all kernels, widths and batches; the rows' sums by the oracle.
fn check(kind: GroupedType) {
    let pools = [Pool::new(1).unwrap(), Pool::new(2).unwrap()];
    let mut random = Random(0x51ed_270b ^ u64::from(kind.group.unwrap_or(7)) << 8 ^ u64::from(kind.book.bits()));
    for (k, n, ordered) in [(32, 1, false), (96, 17, false), (256, 33, true), (288, 16, true), (1280, 48, false)] {
        let weight = grouped(kind, n, k, ordered, &mut random);
        let x = random.vec(MAX_M * k);
        let mut want = Vec::new();
        for (isa, kernel) in exact_kernels(kind) {
            let what = format!("{weight:?}, {}", kernel.name);
            let linear = PackedLinear::pack_with(&spec(&weight), isa, &pools[1], &|_| kernel).unwrap();
            if want.is_empty() {
                assert_eq!(kernel.name, "scalar");
                want = row_by_row(&linear, &x, &pools[0]);
                let fast = PackedLinear::pack(&spec(&weight), Isa::detect(), &pools[1]).unwrap();
                assert_ne!(fast.placement()[0].kernel, "generic");
                let seen = seen_weights(&fast, &pools[1]);
                assert_near(&seen, &weight, bound(kind));
                if !ordered {
                    assert_close(&want[..n], &weight, &seen, &x[..k], true);
                }
            }
            for (i, m) in [1, 2, 4, 9, 17, 40].into_iter().enumerate() {
                let out = forward(&linear, &x[..m * k], m, &pools[i % 2]);
                assert_same(&out, &want[..m * n], &format!("{what} by {m} rows"));
            }
        }
    }
}

#[test]
fn int4_about_8_has_the_same_bits_everywhere() {
    check(kind(INT4, 32, ZeroPoint::At(8)));
    check(kind(INT4, 128, ZeroPoint::At(8)));
}

#[test]
fn int4_with_zero_points_has_the_same_bits_everywhere() {
    check(kind(INT4, 128, ZeroPoint::PerGroup));
    check(kind(INT4, 64, ZeroPoint::PerGroup));
    check(kind(CodeBook::Int { bits: 3 }, 128, ZeroPoint::At(4)));
    check(kind(CodeBook::Int { bits: 2 }, 32, ZeroPoint::PerGroup));
}

#[test]
fn int8_about_128_has_the_same_bits_everywhere() {
    check(kind(INT8, 0, ZeroPoint::At(128)));
    check(kind(INT8, 128, ZeroPoint::At(128)));
}

#[test]
fn int8_with_zero_points_has_the_same_bits_everywhere() {
    check(kind(INT8, 128, ZeroPoint::PerGroup));
    check(kind(INT8, 0, ZeroPoint::PerGroup));
}

#[test]
fn tables_of_levels_have_the_same_bits_everywhere() {
    check(kind(CodeBook::Nf4, 64, ZeroPoint::At(0)));
    check(kind(CodeBook::Fp4, 64, ZeroPoint::At(0)));
    check(kind(CodeBook::Nf4, 32, ZeroPoint::At(0)));
}

#[test]
fn fp8_has_the_same_bits_everywhere() {
    check(kind(CodeBook::E4m3, 0, ZeroPoint::At(0)));
    check(kind(CodeBook::E4m3, 128, ZeroPoint::At(0)));
}

#[test]
fn fp8_that_is_no_number_stays_in_its_row() {
    let pool = Pool::new(1).unwrap();
    let kind = kind(CodeBook::E4m3, 0, ZeroPoint::At(0));
    let mut codes = vec![0x38; 3 * 64];
    codes[64 + 9] = 0xff;
    let place = (0..64).collect();
    let source = Plain { cols: 64, n_groups: 1, codes, scales: vec![1.0; 3], zeros: vec![0; 3], place };
    let weight = Weight::grouped("odd", Grouped::new(kind, (3, 64), None, Arc::new(source)));
    for isa in Isa::available() {
        let out = forward(&PackedLinear::pack(&spec(&weight), isa, &pool).unwrap(), &[1.0; 64], 1, &pool);
        assert!((out[0] - 64.0).abs() < 0.01 && out[1].is_nan() && out[2] == out[0], "{out:?}");
    }
}

#[test]
fn zero_points_anywhere_are_kept() {
    let pool = Pool::new(2).unwrap();
    for zero in [-1000, -1, 0, 1, 7, 15, 16, 17, 127, 200, 255, 256, 3000] {
        for book in [INT4, INT8] {
            let kind = kind(book, 64, ZeroPoint::At(zero));
            let weight = grouped(kind, 17, 256, false, &mut Random(3));
            let linear = PackedLinear::pack(&spec(&weight), Isa::detect(), &pool).unwrap();
            assert_near(&seen_weights(&linear, &pool), &weight, bound(kind));
        }
    }
}

#[test]
fn odd_shapes_are_packed_as_floats() {
    let pool = Pool::new(2).unwrap();
    let mut random = Random(21);
    for (kind, k) in [
        (kind(INT8, 0, ZeroPoint::At(128)), 100),
        (kind(INT4, 48, ZeroPoint::At(8)), 96),
        (kind(INT4, 32, ZeroPoint::At(100)), 96),
        (kind(CodeBook::E4m3, 0, ZeroPoint::At(0)), 40),
    ] {
        let weight = grouped(kind, 20, k, true, &mut random);
        let linear = PackedLinear::pack(&spec(&weight), Isa::detect(), &pool).unwrap();
        assert!(linear.bytes() >= 20 * k * 2, "{weight:?}");
        let mut row = vec![0.0; k];
        let seen = seen_weights(&linear, &pool);
        for n in 0..20 {
            weight.decode_row(n, &mut row);
            let seen: Vec<f32> = seen[n..].iter().copied().step_by(20).collect();
            assert_eq!(seen, row, "{weight:?} row {n}");
        }
    }
}

#[test]
fn parts_in_different_orders_stay_apart() {
    let pool = Pool::new(2).unwrap();
    let mut random = Random(23);
    let kind = kind(INT4, 128, ZeroPoint::PerGroup);
    let parts: Vec<Weight> =
        [(48, true), (17, false), (33, true)].map(|(n, ordered)| grouped(kind, n, 256, ordered, &mut random)).into();
    let all = LinearSpec::new("all", parts.clone(), Vec::new()).unwrap();
    let x = random.vec(9 * 256);
    for isa in Isa::available() {
        let linear = PackedLinear::pack(&all, isa, &pool).unwrap();
        assert!(linear.placement().iter().all(|p| p.dtype == WeightType::from(kind)));
        let out = forward(&linear, &x, 9, &pool);
        let mut col = 0;
        for part in &parts {
            let alone = forward(&PackedLinear::pack(&spec(part), isa, &pool).unwrap(), &x, 9, &pool);
            for row in 0..9 {
                let got = &out[row * linear.out_features() + col..][..part.rows()];
                assert_same(got, &alone[row * part.rows()..][..part.rows()], &format!("{part:?} row {row} {isa}"));
            }
            col += part.rows();
        }
    }
}

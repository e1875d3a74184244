//! Every kernel of every format at awkward sizes: the same bits everywhere, and close to f64 arithmetic over the
//! weights that `pelton_quant` decodes.

use std::sync::Arc;

use half::{bf16, f16};
use pelton_backend::{Gate, LinearSpec, Weight};
use pelton_quant::{DType, WeightType};

use super::kernel::{Kernel, kernels_for};
use super::{LinearScratch, PackedLinear};
use crate::gate::Gated;
use crate::isa::Isa;
use crate::pool::Pool;
use crate::simd::run;

#[path = "grouped_tests.rs"]
mod grouped;
#[path = "normed_tests.rs"]
mod normed;

const NS: [usize; 7] = [1, 15, 16, 17, 33, 48, 130];
const MS: [usize; 8] = [1, 2, 3, 7, 8, 9, 17, 40];
const MAX_M: usize = 40;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// In -1..1.
    fn signed(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn vec(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.signed()).collect()
    }
}

/// Where a block keeps its f16 scales; the other bytes may be anything.
fn scale_offsets(dtype: DType) -> &'static [usize] {
    match dtype {
        DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => &[0, 2],
        DType::Q2_K => &[80, 82],
        DType::Q3_K => &[108],
        DType::Q6_K => &[208],
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 | DType::IQ4_NL | DType::IQ4_XS => &[0],
        DType::IQ3_XXS | DType::IQ3_S | DType::IQ2_XXS | DType::IQ2_XS | DType::IQ2_S | DType::IQ1_S => &[0],
        DType::TQ1_0 => &[52],
        DType::TQ2_0 => &[64],
        _ => &[],
    }
}

/// A weight in which every code occurs: random bytes with scales of either sign.
fn weight(dtype: DType, rows: usize, cols: usize, random: &mut Random) -> Weight {
    let mut bytes = Vec::new();
    let n = rows * cols;
    match dtype {
        DType::F32 => bytes.extend(random.vec(n).iter().flat_map(|v| v.to_le_bytes())),
        DType::F16 => bytes.extend(random.vec(n).iter().flat_map(|&v| f16::from_f32(v).to_le_bytes())),
        DType::BF16 => bytes.extend(random.vec(n).iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes())),
        _ => {
            bytes.resize(dtype.row_bytes(cols).unwrap() * rows, 0);
            for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
                block.fill_with(|| random.bits() as u8);
                for &at in scale_offsets(dtype) {
                    block[at..at + 2].copy_from_slice(&f16::from_f32(random.signed() * 0.1).to_le_bytes());
                }
                if dtype == DType::MXFP4 {
                    block[0] = 110 + block[0] % 32;
                }
                if dtype == DType::IQ1_M {
                    // The top nibble of d: its exponent is some 2^-6.
                    block[55] = block[55] & 0x8f | 0x20;
                }
            }
        }
    }
    Weight::new(format!("{dtype} {rows}x{cols}"), dtype, rows, cols, Arc::new(bytes)).unwrap()
}

fn spec(weight: &Weight) -> LinearSpec {
    LinearSpec::new("test", vec![weight.clone()], Vec::new()).unwrap()
}

fn widths(dtype: DType) -> Vec<usize> {
    match dtype.block_len() {
        1 => vec![1, 7, 31, 33, 100],
        32 => [1, 3, 8, 9, 28, 40].map(|n| n * 32).to_vec(),
        block => [1, 2, 3, 9].map(|n| n * block).to_vec(),
    }
}

/// All kernels of this machine but the generic one, by name; the scalar ones before those of the same recipe, which
/// promise the same bits.
fn exact_kernels(dtype: impl Into<WeightType>) -> Vec<(Isa, Kernel)> {
    let dtype = dtype.into();
    let mut all: Vec<(Isa, Kernel)> = Vec::new();
    for isa in Isa::available() {
        for kernel in kernels_for(dtype, isa) {
            // Of grouped weights not those that decode them.
            let is_own = kernel.name != "generic" && kernel.in_groups == dtype.blocks().is_none();
            if is_own && all.iter().all(|(_, k)| k.name != kernel.name) {
                all.push((isa, kernel));
            }
        }
    }
    all.sort_by_key(|(_, k)| (k.recipe(), !k.name.starts_with("scalar")));
    all
}

fn forward(linear: &PackedLinear, x: &[f32], rows: usize, pool: &Pool) -> Vec<f32> {
    let mut out = vec![f32::INFINITY; rows * linear.out_features()];
    linear.forward(x, rows, &mut out, &mut LinearScratch::new(), pool);
    out
}

/// Each row alone.
fn row_by_row(linear: &PackedLinear, x: &[f32], pool: &Pool) -> Vec<f32> {
    x.chunks_exact(linear.in_features()).flat_map(|x| forward(linear, x, 1, pool)).collect()
}

/// The same bits, where NaNs are all the same.
#[track_caller]
fn assert_same(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(g.to_bits() == w.to_bits() || g.is_nan() && w.is_nan(), "{what}: output {i} is {g}, not {w}");
    }
}

/// What the kernels of quantized types see of a row: its values, rounded, and half a step of each.
fn rounded(x: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let mut scratch = LinearScratch::new();
    scratch.quantize(x, 1, Isa::Scalar, &Pool::new(1).unwrap());
    let values = scratch.blocks.iter().flat_map(|b| b.codes.map(|c| f64::from(c) * f64::from(b.scale)));
    let half_steps = scratch.blocks.iter().flat_map(|b| [f64::from(b.scale) / 2.0; 256]);
    (values.take(x.len()).collect(), half_steps.take(x.len()).collect())
}

/// How far a weight that the kernels see may be from the file's, in parts of the largest one of 256, see `formats.rs`
/// and `superformats.rs`. Half as much again, since the largest code need not occur; and random scales and minima
/// are the worst case of the types with both.
fn rounding_of(dtype: DType) -> f32 {
    1.5 * match dtype {
        DType::Q8_0 | DType::IQ4_NL => 1.0 / 30_000.0,
        DType::Q4_0 => 0.51 / 4079.0,
        DType::Q5_0 => 0.51 / 2039.0,
        DType::Q4_1 => 8.1 / 32_000.0,
        DType::Q5_1 => 16.1 / 32_000.0,
        DType::MXFP4 => 6.1 / 24_576.0,
        DType::Q2_K | DType::Q4_K | DType::Q5_K => 1.0 / 64.0,
        _ => 1e-6,
    }
}

/// The weights that a layer sees, `(k, n)`: its outputs for inputs of one 1 among zeros.
fn seen_weights(linear: &PackedLinear, pool: &Pool) -> Vec<f32> {
    let k = linear.in_features();
    let mut ones = vec![0.0; k * k];
    ones.iter_mut().step_by(k + 1).for_each(|x| *x = 1.0);
    forward(linear, &ones, k, pool)
}

/// Checks the weights that a layer sees against the decoded ones.
fn assert_near(seen: &[f32], weight: &Weight) {
    let (k, n) = (weight.cols(), weight.rows());
    let mut w = vec![0.0; k];
    for row in 0..n {
        weight.decode_row(row, &mut w);
        for (b, w) in w.chunks(256).enumerate() {
            let largest = w.iter().fold(0.0f32, |a, w| a.max(w.abs()));
            for (i, &want) in w.iter().enumerate() {
                let got = seen[(256 * b + i) * n + row];
                let bound = rounding_of(weight.dtype().blocks().unwrap()) * largest;
                assert!((got - want).abs() <= bound, "{weight:?} row {row} is {got}, not {want}, at {b}, {i}");
            }
        }
    }
}

/// Checks one row's outputs against f64 sums over `weights`: those that the kernels see, `(k, n)`.
fn assert_close(out: &[f32], weight: &Weight, weights: &[f32], x: &[f32], quantized: bool) {
    let exact: Vec<f64> = x.iter().copied().map(f64::from).collect();
    let (seen, half_steps) = if quantized { rounded(x) } else { (exact.clone(), vec![0.0; x.len()]) };
    for (n, &got) in out.iter().enumerate() {
        let w: Vec<f32> = weights[n..].iter().copied().step_by(weight.rows()).collect();
        let dot = |x: &[f64]| w.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum::<f64>();
        let absolute = |x: &[f64]| w.iter().zip(x).map(|(&w, x)| (f64::from(w) * x).abs()).sum::<f64>();
        let rounding = 1e-5 * absolute(&seen) + 1e-6;
        let (got, want) = (f64::from(got), dot(&seen));
        assert!((got - want).abs() <= rounding, "{weight:?} output {n}: {got}, want {want}");
        let bound = absolute(&half_steps) * 1.0001 + rounding;
        assert!((got - dot(&exact)).abs() <= bound, "{weight:?} output {n}: {got} is too far from f32 activations");
    }
}

/// One format: all kernels, widths, heights and batches.
fn check(dtype: DType) {
    let pools = [Pool::new(1).unwrap(), Pool::new(2).unwrap()];
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ dtype as u64);
    for k in widths(dtype) {
        for n in NS {
            let weight = weight(dtype, n, k, &mut random);
            let x = random.vec(MAX_M * k);
            let kernels = exact_kernels(dtype);
            let (mut want, mut recipe) = (Vec::new(), "");
            for (isa, kernel) in kernels {
                let linear = PackedLinear::pack_with(&spec(&weight), isa, &pools[1], &|_| kernel).unwrap();
                if recipe != kernel.recipe() {
                    recipe = kernel.recipe();
                    assert!(kernel.name.starts_with("scalar"), "{}", kernel.name);
                    want = row_by_row(&linear, &x, &pools[0]);
                    // By the fastest kernels, whose bits are compared below.
                    let fast = PackedLinear::pack(&spec(&weight), Isa::detect(), &pools[1]).unwrap();
                    let weights = seen_weights(&fast, &pools[1]);
                    assert_near(&weights, &weight);
                    for row in 0..3 {
                        let out = &want[row * n..(row + 1) * n];
                        assert_close(out, &weight, &weights, &x[row * k..(row + 1) * k], dtype.block_len() > 1);
                    }
                }
                for (i, m) in MS.into_iter().enumerate() {
                    let out = forward(&linear, &x[..m * k], m, &pools[i % 2]);
                    assert_same(&out, &want[..m * n], &format!("{weight:?} by {} rows, {}", m, kernel.name));
                }
            }
        }
    }
}

macro_rules! check_all {
    ($($name:ident: $dtype:ident;)*) => {
        $(#[test] fn $name() { check(DType::$dtype); })*

        #[test]
        fn every_decodable_type_is_checked() {
            let checked = [$(DType::$dtype),*];
            assert!(DType::DECODABLE.iter().all(|dtype| checked.contains(dtype)));
        }
    };
}

check_all! {
    f32_has_the_same_bits_everywhere: F32;
    f16_has_the_same_bits_everywhere: F16;
    bf16_has_the_same_bits_everywhere: BF16;
    q4_0_has_the_same_bits_everywhere: Q4_0;
    q4_1_has_the_same_bits_everywhere: Q4_1;
    q5_0_has_the_same_bits_everywhere: Q5_0;
    q5_1_has_the_same_bits_everywhere: Q5_1;
    q8_0_has_the_same_bits_everywhere: Q8_0;
    q2_k_has_the_same_bits_everywhere: Q2_K;
    q3_k_has_the_same_bits_everywhere: Q3_K;
    q4_k_has_the_same_bits_everywhere: Q4_K;
    q5_k_has_the_same_bits_everywhere: Q5_K;
    q6_k_has_the_same_bits_everywhere: Q6_K;
    iq4_nl_has_the_same_bits_everywhere: IQ4_NL;
    iq4_xs_has_the_same_bits_everywhere: IQ4_XS;
    mxfp4_has_the_same_bits_everywhere: MXFP4;
    iq3_xxs_has_the_same_bits_everywhere: IQ3_XXS;
    iq3_s_has_the_same_bits_everywhere: IQ3_S;
    iq2_xxs_has_the_same_bits_everywhere: IQ2_XXS;
    iq2_xs_has_the_same_bits_everywhere: IQ2_XS;
    iq2_s_has_the_same_bits_everywhere: IQ2_S;
    iq1_s_has_the_same_bits_everywhere: IQ1_S;
    iq1_m_has_the_same_bits_everywhere: IQ1_M;
    tq1_0_has_the_same_bits_everywhere: TQ1_0;
    tq2_0_has_the_same_bits_everywhere: TQ2_0;
}

#[test]
fn the_generic_kernel_reads_every_type() {
    let pool = Pool::new(2).unwrap();
    let mut random = Random(7);
    for &dtype in DType::DECODABLE {
        for k in widths(dtype) {
            let weight = weight(dtype, 33, k, &mut random);
            let x = random.vec(9 * k);
            let mut want = Vec::new();
            for isa in Isa::available() {
                let generic = *kernels_for(dtype, isa).last().unwrap();
                assert_eq!(generic.name, "generic");
                let linear = PackedLinear::pack_with(&spec(&weight), isa, &pool, &|_| generic).unwrap();
                let out = forward(&linear, &x, 9, &pool);
                if want.is_empty() {
                    want = row_by_row(&linear, &x, &pool);
                }
                assert_same(&out, &want, &format!("{weight:?} {isa}"));
                let weights = seen_weights(&linear, &pool);
                assert_near(&weights, &weight);
                assert_close(&out[..33], &weight, &weights, &x[..k], false);
            }
        }
    }
}

#[test]
fn parts_of_several_types_write_their_own_columns() {
    let pool = Pool::new(2).unwrap();
    let mut random = Random(11);
    let types = [(DType::Q4_K, 48), (DType::Q6_K, 17), (DType::F16, 33), (DType::Q8_0, 1), (DType::F32, 130)];
    let parts: Vec<Weight> = types.iter().map(|&(dtype, n)| weight(dtype, n, 512, &mut random)).collect();
    let n: usize = parts.iter().map(Weight::rows).sum();
    let bias = random.vec(n);
    let spec_all = LinearSpec::new("all", parts.clone(), bias.clone()).unwrap();
    let x = random.vec(9 * 512);
    for isa in Isa::available() {
        let linear = PackedLinear::pack(&spec_all, isa, &pool).unwrap();
        assert_eq!((linear.in_features(), linear.out_features()), (512, n));
        let out = forward(&linear, &x, 9, &pool);
        let mut col = 0;
        for part in &parts {
            let alone = PackedLinear::pack(&spec(part), isa, &pool).unwrap();
            let want = forward(&alone, &x, 9, &pool);
            for row in 0..9 {
                let bias = &bias[col..col + part.rows()];
                let with_bias = |(w, b): (&f32, &f32)| w + b;
                let want = want[row * part.rows()..(row + 1) * part.rows()].iter().zip(bias).map(with_bias);
                let got = &out[row * n + col..][..part.rows()];
                assert_same(got, &want.collect::<Vec<_>>(), &format!("{part:?} row {row} {isa}"));
            }
            col += part.rows();
        }
        let placement = linear.placement();
        assert_eq!(placement.len(), parts.len());
        assert_eq!(placement.iter().map(|p| p.bytes).sum::<usize>(), linear.bytes());
        assert!(placement.iter().zip(&parts).all(|(p, w)| p.dtype == w.dtype() && p.kernel != "generic"));
    }
}

#[test]
fn strange_activations_stay_in_their_row() {
    let pool = Pool::new(2).unwrap();
    let mut random = Random(5);
    let strange: [fn(&mut [f32]); 7] = [
        |x| x.fill(0.0),
        |x| x[40] = f32::NAN,
        |x| x[63] = f32::INFINITY,
        |x| x[0] = f32::NEG_INFINITY,
        |x| x.fill(f32::from_bits(3)),
        |x| x.fill(1e30),
        |x| x.iter_mut().for_each(|x| *x = -0.0),
    ];
    for &dtype in DType::DECODABLE {
        let weight = weight(dtype, 40, 256, &mut random);
        for (isa, kernel) in exact_kernels(dtype) {
            let linear = PackedLinear::pack_with(&spec(&weight), isa, &pool, &|_| kernel).unwrap();
            let mut x = random.vec(15 * 256);
            for (row, make) in x.chunks_exact_mut(256).skip(1).step_by(2).zip(strange) {
                make(row);
            }
            let out = forward(&linear, &x, 15, &pool);
            assert_same(&out, &row_by_row(&linear, &x, &pool), &format!("{weight:?} {}", kernel.name));
            for (row, out) in out.chunks_exact(40).enumerate() {
                match row {
                    1 | 13 => assert!(out.iter().all(|&v| v == 0.0), "{dtype}: rows of zeros give zeros"),
                    3 => assert!(out.iter().all(|v| v.is_nan()), "{dtype}: NaN gives NaN"),
                    5 | 7 => assert!(out.iter().all(|v| !v.is_finite()), "{dtype}: infinities stay visible"),
                    9 => assert!(out.iter().all(|v| v.abs() < 1e-30), "{dtype}: denormals are next to nothing"),
                    _ => assert!(out.iter().all(|v| v.is_finite()), "{dtype} row {row}"),
                }
            }
        }
    }
}

#[test]
fn gates_have_the_bits_of_both_steps() {
    let pool = Pool::new(2).unwrap();
    let mut random = Random(13);
    let mut fused = 0;
    for (dtype, k, ffn) in
        [(DType::Q8_0, 96, 16), (DType::Q4_K, 512, 208), (DType::Q5_0, 288, 40), (DType::F32, 33, 48)]
    {
        let parts = vec![weight(dtype, ffn, k, &mut random), weight(dtype, ffn, k, &mut random)];
        for bias in [Vec::new(), random.vec(2 * ffn)] {
            let spec = LinearSpec::new("gated", parts.clone(), bias).unwrap();
            for isa in Isa::available() {
                let linear = PackedLinear::pack(&spec, isa, &pool).unwrap();
                for rows in [1, 9, 16, 17, 40, 530] {
                    let x = random.vec(rows * k);
                    let (mut out, mut want) = (vec![0.0; rows * ffn], vec![0.0; rows * ffn]);
                    let mut scratch = LinearScratch::new();
                    if !linear.forward_gated(&x, rows, Gate::Silu, &mut out, &mut scratch, &pool) {
                        continue;
                    }
                    fused += 1;
                    let hidden = forward(&linear, &x, rows, &pool);
                    run(isa, Gated { x: &hidden, gate: Gate::Silu, ffn, out: &mut want });
                    assert_same(&out, &want, &format!("{dtype} {rows}x{k}x{ffn} on {isa}"));
                }
            }
        }
    }
    // Two types of whole panels, with and without a bias, from 9 rows on.
    let amx = Isa::available().iter().any(|isa| isa.name() == "amx");
    assert_eq!(fused, if amx { 2 * 2 * 5 } else { 0 });
}

#[test]
fn long_rows_are_cut_into_chunks() {
    let pool = Pool::new(2).unwrap();
    let mut random = Random(17);
    let (n, k, rows) = (40, 11 * 512, 300);
    let weight = weight(DType::Q4_K, n, k, &mut random);
    let bias = random.vec(n);
    let spec = LinearSpec::new("long", vec![weight], bias).unwrap();
    let linear = PackedLinear::pack(&spec, Isa::detect(), &pool).unwrap();
    let x = random.vec(rows * k);
    assert_same(&forward(&linear, &x, rows, &pool), &row_by_row(&linear, &x, &pool), "300 long rows");
}

#[test]
fn no_rows_are_no_work() {
    let pool = Pool::new(2).unwrap();
    let weight = weight(DType::Q4_0, 16, 32, &mut Random(3));
    let linear = PackedLinear::pack(&spec(&weight), Isa::detect(), &pool).unwrap();
    assert!(forward(&linear, &[], 0, &pool).is_empty());
}

#[test]
#[should_panic(expected = "x is (rows, in_features)")]
fn rows_that_overflow_are_refused() {
    let pool = Pool::new(1).unwrap();
    let weight = weight(DType::F32, 16, 32, &mut Random(3));
    let linear = PackedLinear::pack(&spec(&weight), Isa::Scalar, &pool).unwrap();
    // So many rows of 32 wrap around to none.
    linear.forward(&[], usize::MAX / 32 + 1, &mut [], &mut LinearScratch::new(), &pool);
}

#[test]
#[should_panic(expected = "F32 16x32 (16, 32) F32 in odd")]
fn parts_of_other_widths_are_refused() {
    let mut random = Random(3);
    let parts = vec![weight(DType::F32, 16, 64, &mut random), weight(DType::F32, 16, 32, &mut random)];
    let spec = LinearSpec { name: "odd".into(), parts, bias: Vec::new() };
    let _ = PackedLinear::pack(&spec, Isa::Scalar, &Pool::new(1).unwrap());
}

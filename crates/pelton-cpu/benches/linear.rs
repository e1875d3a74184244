//! Speed of the linear kernels beside the machine's read bandwidth.
//!
//! `cargo bench -p pelton-cpu --bench linear -- [isa=avx512] [types=Q4_K,Q6_K] [threads=2] [rows=16,512]`
//!
//! With one row (decoding) the weights' bytes are the limit: GB/s, and in percent of a plain streaming read that is
//! measured just before. So that no weight stays in a cache, copies of the matrix are walked until they exceed
//! [`STREAM`] bytes. Few rows should cost little more: the time of 2 to 32 in units of one row's. With many the
//! arithmetic is the limit: GFLOP/s, a multiplication and an addition being two.

use std::sync::Arc;
use std::time::Instant;

use pelton_backend::{LinearSpec, Weight};
use pelton_cpu::{Isa, LinearScratch, PackedLinear, Pool, measure_read_bandwidth};
use pelton_quant::DType;

/// `(in, out)`: up and down projections of a model of 1.5 billion parameters, up projection of one of 0.5.
const SHAPES: [(usize, usize); 3] = [(1536, 8960), (8960, 1536), (896, 4864)];
/// More than the last-level cache.
const STREAM: usize = 256 << 20;
/// Types with kernels of their own.
const TYPES: &str = "Q4_0,Q5_0,Q8_0,Q4_K,Q5_K,Q6_K,F16,BF16,F32,MXFP4,Q4_1,Q5_1,Q2_K,Q3_K,IQ4_NL,IQ4_XS,IQ3_XXS,IQ3_S,\
                     IQ2_XXS,IQ2_XS,IQ2_S,IQ1_S,IQ1_M,TQ1_0,TQ2_0";

/// A matrix whose rows are all the same: the kernels do not care.
fn weight(dtype: DType, k: usize, n: usize) -> Weight {
    let row: Vec<f32> = (0..k).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0) * 0.05).collect();
    let mut bytes = Vec::new();
    if dtype.can_encode() {
        pelton_quant::encode(dtype, &row, &mut bytes).expect("whole blocks");
    } else {
        // Kernels do not care for what the bytes stand, either.
        bytes.resize(dtype.row_bytes(k).expect("whole blocks"), 0x15);
    }
    Weight::new("bench", dtype, n, k, Arc::new(bytes.repeat(n))).expect("n rows of k")
}

/// Seconds of one forward call of `rows` rows, the best of several rounds over all copies.
fn seconds(copies: &[PackedLinear], rows: usize, rounds: usize, pool: &Pool) -> f64 {
    let (k, n) = (copies[0].in_features(), copies[0].out_features());
    let x: Vec<f32> = (0..rows * k).map(|i| (i * 31 % 257) as f32 / 128.0 - 1.0).collect();
    // Rows of an activation begin at a cache line.
    let (mut out, mut scratch) = (vec![0.0f32; rows * n + 16], LinearScratch::new());
    let line = out.as_ptr().align_offset(64);
    let out = &mut out[line..line + rows * n];
    let mut round = || {
        let start = Instant::now();
        for linear in copies {
            linear.forward(&x, rows, out, &mut scratch, pool);
        }
        start.elapsed().as_secs_f64() / copies.len() as f64
    };
    (0..rounds).map(|_| round()).fold(f64::INFINITY, f64::min)
}

fn bench(dtype: DType, isa: Isa, (k, n): (usize, usize), pool: &Pool) {
    // K-quants come in blocks of 256; a width that is not a multiple is stored in another type.
    if k % dtype.block_len() != 0 {
        return;
    }
    let spec = LinearSpec::new("bench", vec![weight(dtype, k, n)], Vec::new()).expect("one part");
    let start = Instant::now();
    let mut copies = vec![PackedLinear::pack(&spec, isa, pool).expect("memory")];
    let bytes = copies[0].bytes();
    while copies.len() * bytes < STREAM {
        copies.push(PackedLinear::pack(&spec, isa, pool).expect("memory"));
    }
    let pack = (copies.len() * bytes) as f64 / start.elapsed().as_secs_f64() / 1e9;
    let read = measure_read_bandwidth(pool, STREAM);
    let flops = |rows: usize, seconds: f64| (2 * rows * k * n) as f64 / seconds / 1e9;
    let one = seconds(&copies, 1, 8, pool);
    let few = [2, 4, 8, 16, 32].map(|rows| seconds(&copies, rows, 4, pool) / one);
    let many = [64, 512].map(|rows| flops(rows, seconds(&copies[..1], rows, 5, pool)));
    let gb = bytes as f64 / one / 1e9;
    println!(
        "| {k}x{n} | {dtype} | {} | {gb:.1} | {read:.1} | {:.0}% | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.0} | {:.0} | {pack:.1} |",
        copies[0].placement()[0].kernel,
        100.0 * gb / read,
        few[0],
        few[1],
        few[2],
        few[3],
        few[4],
        many[0],
        many[1],
    );
}

/// Microseconds of a run with nothing to do, the median of many.
fn dispatch_us(pool: &Pool) -> f64 {
    let mut times: Vec<f64> = Vec::new();
    for _ in 0..2001 {
        let start = Instant::now();
        pool.run(pool.threads() * 2, &|i| {
            std::hint::black_box(i);
        });
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// GFLOP/s at chosen numbers of rows, for profiles.
fn bench_rows(dtype: DType, isa: Isa, (k, n): (usize, usize), rows: &[usize], pool: &Pool) {
    if k % dtype.block_len() != 0 {
        return;
    }
    let spec = LinearSpec::new("bench", vec![weight(dtype, k, n)], Vec::new()).expect("one part");
    let mut linear = vec![PackedLinear::pack(&spec, isa, pool).expect("memory")];
    while linear.len() * linear[0].bytes() < STREAM {
        linear.push(PackedLinear::pack(&spec, isa, pool).expect("memory"));
    }
    for &rows in rows {
        let rounds = (2_000_000_000_000 / (2 * rows * k * n) / linear.len()).clamp(3, 1000);
        let seconds = seconds(&linear, rows, rounds, pool);
        let gflops = (2 * rows * k * n) as f64 / seconds / 1e9;
        println!("| {k}x{n} | {dtype} | {isa} | {rows} rows | {gflops:.0} GFLOP/s | {:.1} us |", seconds * 1e6);
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let option = |name: &str| args.iter().find_map(|a| a.strip_prefix(name)?.strip_prefix('='));
    let threads = option("threads").and_then(|t| t.parse().ok()).unwrap_or_else(Pool::default_threads);
    let pool = Pool::new(threads).expect("threads");
    let isas = match option("isa") {
        Some(name) => vec![Isa::best_at_most(name).expect("an available instruction set")],
        None => Isa::available().into_iter().rev().filter(|isa| *isa != Isa::Scalar).collect(),
    };
    if let Some(rows) = option("rows") {
        let rows: Vec<usize> = rows.split(',').map(|r| r.parse().expect("a number of rows")).collect();
        for shape in SHAPES {
            for name in option("types").unwrap_or(TYPES).split(',') {
                let dtype = DType::from_name(name).expect("the name of a type");
                isas.iter().for_each(|&isa| bench_rows(dtype, isa, shape, &rows, &pool));
            }
        }
        return;
    }
    println!("{threads} threads, an empty run of the pool takes {:.2} us", dispatch_us(&pool));
    println!(
        "| in x out | type | kernel | GB/s | read | share | M=2 | 4 | 8 | 16 | 32 | GFLOP/s M=64 | 512 | pack GB/s |"
    );
    println!("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for shape in SHAPES {
        for name in option("types").unwrap_or(TYPES).split(',') {
            let dtype = DType::from_name(name).expect("the name of a type");
            for &isa in &isas {
                bench(dtype, isa, shape, &pool);
            }
        }
    }
}

//! Speed of packing weights: GB of the file's bytes a second.
//!
//! `cargo bench -p pelton-cpu --bench pack -- [threads=1] [types=Q4_K,Q6_K] [shape=1536x8960]`
//!
//! Loading a model is little else. The blocks are random bytes: packing moves bits and computes nothing.

use std::sync::Arc;
use std::time::Instant;

use pelton_backend::{LinearSpec, Weight};
use pelton_cpu::{Isa, PackedLinear, Pool};
use pelton_quant::DType;

/// Types that panels exist for.
const TYPES: &str = "Q4_0,Q4_1,Q5_0,Q5_1,Q8_0,Q2_K,Q3_K,Q4_K,Q5_K,Q6_K,IQ4_NL,IQ4_XS,IQ3_XXS,IQ3_S,IQ2_XXS,IQ2_XS,\
                     IQ2_S,IQ1_S,IQ1_M,TQ1_0,TQ2_0,MXFP4,F16,BF16,F32";
const ROUNDS: usize = 5;

fn weight(dtype: DType, k: usize, n: usize) -> Weight {
    let len = n * dtype.row_bytes(k).expect("whole blocks");
    let mut state = 1u64;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let bytes: Vec<u8> = (0..len).map(|_| byte()).collect();
    Weight::new("bench", dtype, n, k, Arc::new(bytes)).expect("n rows of k")
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let option = |name: &str| args.iter().find_map(|a| a.strip_prefix(name)?.strip_prefix('='));
    let threads = option("threads").map_or(1, |t| t.parse().expect("a number"));
    let shape = option("shape").unwrap_or("1536x8960").split_once('x').expect("KxN");
    let (k, n) = (shape.0.parse().expect("a number"), shape.1.parse().expect("a number"));
    let pool = Pool::new(threads).expect("threads");
    println!("| type | GB/s, {threads} threads |\n| --- | ---: |");
    for name in option("types").unwrap_or(TYPES).split(',') {
        let weight = weight(DType::from_name(name).expect("the name of a type"), k, n);
        let bytes = weight.bytes().len();
        let spec = LinearSpec::new("bench", vec![weight], Vec::new()).expect("one part");
        let round = || {
            let start = Instant::now();
            let packed = PackedLinear::pack(&spec, Isa::detect(), &pool).expect("memory");
            let seconds = start.elapsed().as_secs_f64();
            drop(packed);
            seconds
        };
        let best = (0..ROUNDS).map(|_| round()).fold(f64::INFINITY, f64::min);
        println!("| {name} | {:.2} |", bytes as f64 / best / 1e9);
    }
}

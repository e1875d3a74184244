//! Error and speed of the encoders on weights of your own.
//!
//! ```text
//! cargo run --release -p pelton-quant --example encoders -- WEIGHTS.f32 IMPORTANCE.f32 [TYPE…]
//! ```
//!
//! `WEIGHTS.f32` holds rows of little-endian floats, `IMPORTANCE.f32` one number for each column. Prints for each type,
//! without an importance, with an equal one and with the given one: the root mean square error as a share of the
//! weights' root mean square, the same weighted, and millions of elements a second on one core.

use std::error::Error;
use std::time::Instant;

use pelton_quant::{DType, decode, encode_weighted};

fn floats(path: &str) -> Result<Vec<f32>, Box<dyn Error>> {
    let bytes = std::fs::read(path).map_err(|e| format!("{path}: {e}"))?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [weights, importance, types @ ..] = args.as_slice() else {
        return Err("give a file of weights, a file of importances, and types if not all".into());
    };
    let (x, importance) = (floats(weights)?, floats(importance)?);
    let cols = importance.len();
    let equal = vec![1.0; cols];
    let wanted = |d: &DType| d.block_len() > 1 && (types.is_empty() || types.iter().any(|t| t == d.name()));
    for (name, given) in [("none", None), ("ones", Some(&equal)), ("imp", Some(&importance))] {
        for &dtype in DType::ENCODABLE.iter().filter(|d| wanted(d)) {
            let mut blocks = Vec::new();
            let start = Instant::now();
            for row in x.chunks_exact(cols) {
                encode_weighted(dtype, row, given.map(Vec::as_slice), &mut blocks)?;
            }
            let seconds = start.elapsed().as_secs_f64();
            let mut back = vec![0.0; x.len() / cols * cols];
            decode(dtype, &blocks, &mut back)?;
            let share = |weight: &dyn Fn(usize) -> f64| {
                let sums = x.iter().zip(&back).enumerate().fold((0.0, 0.0), |(error, size), (i, (&x, &back))| {
                    let (x, back) = (f64::from(x), f64::from(back));
                    (error + weight(i) * (x - back).powi(2), size + weight(i) * x * x)
                });
                (sums.0 / sums.1).sqrt()
            };
            let (plain, weighted) = (share(&|_| 1.0), share(&|i| f64::from(importance[i % cols])));
            let speed = back.len() as f64 / seconds / 1e6;
            println!("{name} {dtype} rmse {plain:.6} weighted {weighted:.6} Mel/s {speed:.2}");
        }
    }
    Ok(())
}

//! The backend on a device: conformance, then how near its kernels come to the memory's bandwidth. One JSON object on
//! standard output. `benches/gpu_run.sh` runs it on a GPU; with `--driver` it runs on the simulator, where times mean nothing.

use std::sync::Arc;
use std::time::Instant;

use pelton_backend::conformance::{Suite, Tolerances, batch_invariance, random_groups, weighing};
use pelton_backend::{
    Ask, Attention, Backend, BatchBuilder, Heads, KvLayout, KvType, LinearSpec, PAGE_LEN, Rope, Weight,
};
use pelton_cuda::{CudaBackend, CudaOptions};
use pelton_quant::{CodeBook, DType, GroupedType, ZeroPoint};

const USAGE: &str =
    "usage: device info | conform | bench [--tiny] [--driver LIBRARY] [--device N] [--no-graphs] [--early]";

fn main() {
    if let Err(problem) = run() {
        eprintln!("device: {problem}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), String> {
    let mut args = std::env::args().skip(1);
    let task = args.next().ok_or(USAGE)?;
    let (mut options, mut is_tiny) = (CudaOptions::default(), false);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--tiny" => is_tiny = true,
            "--no-graphs" => options.no_graphs = true,
            "--early" => options.early_launches = true,
            "--driver" => options.driver = Some(args.next().ok_or(USAGE)?.into()),
            "--device" => options.device = args.next().and_then(|n| n.parse().ok()).ok_or(USAGE)?,
            _ => return Err(USAGE.to_string()),
        }
    }
    let mut cuda = CudaBackend::open(&options).map_err(|e| e.to_string())?;
    match task.as_str() {
        "info" => println!("{{\"device\": \"{}\", \"memory\": {}}}", cuda.describe(), cuda.info().memory),
        "conform" => return conform(&mut cuda),
        "bench" => bench(&mut cuda, is_tiny),
        _ => return Err(USAGE.to_string()),
    }
    Ok(())
}

fn conform(cuda: &mut CudaBackend) -> Result<(), String> {
    let mut failures = Suite::new(Tolerances::default()).run(cuda);
    failures.extend(batch_invariance(cuda));
    failures.extend(weighing(cuda));
    failures.iter().for_each(|f| eprintln!("{f}"));
    println!("{{\"device\": \"{}\", \"conformance_failures\": {}}}", cuda.describe(), failures.len());
    if failures.is_empty() { Ok(()) } else { Err(format!("{} failures", failures.len())) }
}

/// Seconds that one call takes, of `n` in a row.
fn seconds(cuda: &mut CudaBackend, n: usize, mut call: impl FnMut(&mut CudaBackend)) -> f64 {
    let tiny = cuda.alloc(1, 1);
    let mut sink = Vec::new();
    call(cuda);
    cuda.read(&tiny, &mut sink);
    let start = Instant::now();
    (0..n).for_each(|_| call(cuda));
    cuda.read(&tiny, &mut sink);
    start.elapsed().as_secs_f64() / n as f64
}

/// Any bytes with small scales: what they decode to does not matter for time, but must be finite.
fn random_weight(dtype: DType, rows: usize, cols: usize) -> Weight {
    let row: Vec<f32> = (0..cols).map(|i| ((i * 7919) % 1000) as f32 / 1000.0 - 0.5).collect();
    let mut one = Vec::new();
    pelton_quant::encode(dtype, &row, &mut one).expect("finite values in whole blocks");
    Weight::new(dtype.name(), dtype, rows, cols, Arc::new(one.repeat(rows))).expect("whole rows")
}

fn bench(cuda: &mut CudaBackend, is_tiny: bool) {
    let scale = if is_tiny { 16 } else { 1 };
    let (hidden, ffn) = (4096 / scale, 11008 / scale / 256 * 256 + 256);
    let repeats = if is_tiny { 1 } else { 20 };
    let n = (1 << 28) / scale / scale;
    let (mut x, y) = (cuda.alloc(n / hidden, hidden), cuda.alloc(n / hidden, hidden));
    let add = seconds(cuda, repeats, |c| c.add(&mut x, &y));
    let bandwidth = 3.0 * 4.0 * (n / hidden * hidden) as f64 / add;
    println!("{{\"device\": \"{}\",\n \"bandwidth_gbps\": {:.1},\n \"linear\": [", cuda.describe(), bandwidth / 1e9);
    drop((x, y));
    let blocks = [DType::Q4_0, DType::Q4_K, DType::Q6_K, DType::Q8_0, DType::BF16];
    let groups = [(4, Some(128), ZeroPoint::PerGroup), (4, Some(128), ZeroPoint::At(8)), (8, None, ZeroPoint::At(128))]
        .map(|(bits, group, zero)| GroupedType { book: CodeBook::Int { bits }, group, zero });
    let weights = blocks.map(|dtype| random_weight(dtype, ffn, hidden)).into_iter();
    let weights = weights.chain(groups.map(|kind| random_groups(kind, ffn, hidden, false, 1)));
    for (d, weight) in weights.enumerate() {
        let dtype = weight.dtype();
        let spec = LinearSpec::new("layer", vec![weight], Vec::new()).expect("one part");
        let layer = cuda.load_linear(&spec).expect("memory for one layer");
        let bytes: usize = cuda.placement(&layer).iter().map(|p| p.bytes).sum();
        for rows in [1, 2, 4, 8, 16, 32, 64, 512, 2048].into_iter().take(if is_tiny { 4 } else { 9 }) {
            let (x, mut out) = (cuda.alloc(rows, hidden), cuda.alloc(rows, ffn));
            let time = seconds(cuda, repeats, |c| c.linear(&x, &layer, &mut out));
            let comma = if (d, rows) == (0, 1) { "" } else { "," };
            println!(
                "  {comma}{{\"type\": \"{dtype}\", \"rows\": {rows}, \"us\": {:.2}, \"gbps\": {:.1}, \"share\": {:.3}, \"tops\": {:.2}}}",
                time * 1e6,
                bytes as f64 / time / 1e9,
                bytes as f64 / time / bandwidth,
                2.0 * (rows * hidden * ffn) as f64 / time / 1e12,
            );
        }
    }
    println!(" ],\n \"decode_attention\": [");
    decode_attention(cuda, is_tiny, repeats, bandwidth);
    println!(" ],\n \"choose\": [");
    choose(cuda, is_tiny, repeats);
    println!(" ]}}");
}

/// Tokens chosen where the logits are, greedily and by a draw from the likeliest, beside logits that are read.
fn choose(cuda: &mut CudaBackend, is_tiny: bool, repeats: usize) {
    let vocab = if is_tiny { 5000 } else { 151_936 };
    let mut comma = "";
    for rows in [1, 16, 64] {
        let mut logits = cuda.alloc(rows, vocab);
        let values: Vec<f32> = (0..rows * vocab).map(|i| ((i * 7919) % 10_007) as f32 * 1e-3).collect();
        cuda.write(&mut logits, &values);
        let (mut weighed, mut read) = (Vec::new(), Vec::new());
        let mut weigh = |cuda: &mut CudaBackend, ask: Ask| {
            let asks = vec![ask; rows];
            seconds(cuda, repeats, |c| assert!(c.weigh(&logits, &asks, &mut weighed), "the device weighs"))
        };
        let best = weigh(cuda, Ask::default());
        let likeliest = weigh(cuda, Ask { temperature: 0.7, point: None, likeliest: true });
        let drawn = weigh(cuda, Ask { temperature: 1.0, point: Some(0.5), likeliest: false });
        let all = seconds(cuda, repeats, |c| c.read(&logits, &mut read));
        println!(
            "  {comma}{{\"rows\": {rows}, \"vocab\": {vocab}, \"best_us\": {:.2}, \"likeliest_us\": {:.2}, \"drawn_us\": {:.2}, \"read_us\": {:.2}}}",
            best * 1e6,
            likeliest * 1e6,
            drawn * 1e6,
            all * 1e6,
        );
        comma = ",";
    }
}

/// One row of each of some sequences over a long context.
fn decode_attention(cuda: &mut CudaBackend, is_tiny: bool, repeats: usize, bandwidth: f64) {
    let heads = Heads { n_heads: 32, n_kv_heads: 8, head_dim: 128 };
    let depths = if is_tiny { vec![200] } else { vec![512, 4096, 32_768] };
    let mut comma = "";
    for (dtype, depth, n) in [KvType::Bf16, KvType::Int8, KvType::Fp8]
        .into_iter()
        .flat_map(|t| depths.iter().flat_map(move |&d| [(t, d, 1), (t, d, 16)]))
    {
        let pages = depth / PAGE_LEN + 1;
        let layout = KvLayout { n_layers: 1, n_kv_heads: 8, head_dim: 128, n_pages: pages * n, dtype };
        let Ok(kv) = cuda.kv_pool(&layout) else { continue };
        let mut batch = BatchBuilder::new(layout.n_pages);
        for s in 0..n {
            let table: Vec<u32> = (0..pages).map(|p| (p * n + s) as u32).collect();
            batch.push(&[0], depth, &table, 1).expect("pages for the context");
        }
        let batch = batch.finish();
        let prepared = cuda.prepare(&batch, &Rope { inv_freq: Vec::new(), scale: 1.0 });
        let (qkv, mut out) = (cuda.alloc(n, heads.qkv_dim()), cuda.alloc(n, heads.q_dim()));
        let attention = Attention { heads, scale: 0.09, softcap: None, window: None };
        let time = seconds(cuda, repeats, |c| c.paged_attention(&qkv, &prepared, &attention, 0, &kv, &mut out));
        let bytes = (n * (depth + 1) * layout.bytes_per_token()) as f64;
        println!(
            "  {comma}{{\"kv\": \"{}\", \"depth\": {depth}, \"rows\": {n}, \"us\": {:.2}, \"gbps\": {:.1}, \"share\": {:.3}}}",
            dtype.name(),
            time * 1e6,
            bytes / time / 1e9,
            bytes / time / bandwidth,
        );
        comma = ",";
    }
}

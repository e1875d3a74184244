//! Attention by itself: milliseconds, GB/s of keys and values or GFLOP/s, and the share of what the machine can.
//!
//! ```text
//! cargo bench -p pelton-cpu --bench attention [-- key=value ...]
//!   model=0.5B,1.5B  kv=bf16,f16,f32,int8,fp8  depth=512,4096,32768,131072  batch=1,8,32  prefill=0,4096
//!   threads=N  isa=NAME  repeat=N
//! ```
//!
//! Times are medians of one layer, times the layers of the model. A pool holds at most 1 GiB (`POOL`): as many layers as
//! fit, so that no layer is found in the caches; combinations that do not fit with one layer are left out.

use std::hint::black_box;
use std::time::Instant;

use pelton_backend::{Attention, Backend, BatchBuilder, Heads, KvLayout, KvType, PAGE_LEN, Rope};
use pelton_cpu::{Cpu, CpuOptions, Kv, Tensor};

/// Bytes of a pool.
const POOL: usize = 1 << 30;

struct Shape {
    name: &'static str,
    n_layers: usize,
    heads: Heads,
}

const SHAPES: [Shape; 2] = [
    Shape { name: "0.5B", n_layers: 24, heads: Heads { n_heads: 14, n_kv_heads: 2, head_dim: 64 } },
    Shape { name: "1.5B", n_layers: 28, heads: Heads { n_heads: 12, n_kv_heads: 2, head_dim: 128 } },
];

/// What was asked for on the command line.
struct Asked(Vec<(String, String)>);

impl Asked {
    fn read() -> Asked {
        let pair = |a: String| a.split_once('=').map(|(k, v)| (k.to_string(), v.to_string()));
        Asked(std::env::args().skip(1).filter_map(pair).collect())
    }

    fn list(&self, key: &str, default: &str) -> Vec<String> {
        let asked = self.0.iter().find(|(k, _)| k == key).map_or(default, |(_, v)| v);
        asked.split(',').filter(|v| !v.is_empty()).map(str::to_string).collect()
    }

    fn numbers(&self, key: &str, default: &str) -> Vec<usize> {
        self.list(key, default).iter().map(|v| v.parse().expect("a number")).collect()
    }
}

fn main() {
    let asked = Asked::read();
    let threads = asked.numbers("threads", "").first().copied();
    let isa = asked.list("isa", "").pop();
    let repeat = asked.numbers("repeat", "9")[0];
    let mut cpu = Cpu::new(CpuOptions { threads, isa, ..CpuOptions::default() }).expect("a backend");
    let bandwidth = cpu.read_bandwidth(1 << 30);
    println!("{}, {bandwidth:.1} GB/s", cpu.describe());
    println!(
        "{:5} {:5} {:>8} {:>7} {:>6} {:>10} {:>8} {:>9} {:>6}",
        "model", "kv", "kind", "depth", "batch", "ms", "GB/s", "GFLOP/s", "share"
    );
    let models = asked.list("model", "0.5B,1.5B");
    for shape in SHAPES.iter().filter(|s| models.iter().any(|m| m == s.name)) {
        for kv in asked.list("kv", "bf16,f16,f32,int8,fp8") {
            let dtype = KvType::from_name(&kv).expect("a KV type");
            for &depth in &asked.numbers("depth", "512,4096,32768,131072") {
                for &batch in &asked.numbers("batch", "1,8,32") {
                    run(&mut cpu, shape, dtype, (depth, batch, 1), repeat, bandwidth);
                }
            }
            for &depth in &asked.numbers("prefill", "0,4096") {
                run(&mut cpu, shape, dtype, (depth, 1, 512), repeat, bandwidth);
            }
        }
    }
}

/// A filled pool and the sequences in it.
struct Bench<'a> {
    shape: &'a Shape,
    layers: usize,
    kv: Kv,
    rope: Rope,
    attention: Attention,
    qkv: Tensor,
    out: Tensor,
    tables: Vec<Vec<u32>>,
    n_pages: usize,
}

/// `rows` rows after `depth` positions, of `batch` sequences.
fn run(
    cpu: &mut Cpu,
    shape: &Shape,
    dtype: KvType,
    (depth, batch, rows): (usize, usize, usize),
    repeat: usize,
    limit: f64,
) {
    let heads = shape.heads;
    let pages_each = (depth + rows).div_ceil(PAGE_LEN);
    let n_pages = pages_each * batch;
    let Heads { n_kv_heads, head_dim, .. } = heads;
    let one = KvLayout { n_layers: 1, n_kv_heads, head_dim, n_pages, dtype };
    let layers = (POOL / one.bytes().expect("a pool")).min(shape.n_layers);
    if layers == 0 {
        return;
    }
    let layout = KvLayout { n_layers: layers, ..one };
    // Pages in no order, as after some time of serving: an odd step through all of them.
    let step = ((n_pages / 2) | 1..).find(|s| gcd(*s, n_pages) == 1).expect("a step without common factor");
    let pages: Vec<u32> = (0..n_pages).map(|i| (i * step % n_pages) as u32).collect();
    let frequency = |i: usize| 1e4f32.powf(-2.0 * i as f32 / head_dim as f32);
    let mut bench = Bench {
        shape,
        layers,
        kv: cpu.kv_pool(&layout).expect("memory for the pool"),
        rope: Rope { inv_freq: (0..head_dim / 2).map(frequency).collect(), scale: 1.0 },
        attention: Attention { heads, scale: (head_dim as f32).powf(-0.5), softcap: None, window: None },
        qkv: cpu.alloc(512, heads.qkv_dim()),
        out: cpu.alloc(512, heads.q_dim()),
        tables: pages.chunks(pages_each).map(<[u32]>::to_vec).collect(),
        n_pages,
    };
    for sequence in 0..batch {
        for start in (0..depth).step_by(512) {
            bench.step(cpu, &[(sequence, start, 512.min(depth - start))], false);
        }
    }
    let all: Vec<_> = (0..batch).map(|s| (s, depth, rows)).collect();
    let mut times: Vec<f64> = (0..repeat).flat_map(|_| bench.step(cpu, &all, true)).collect();
    times.sort_by(f64::total_cmp);
    let seconds = times[times.len() / 2] * shape.n_layers as f64;
    let seen = (depth * rows + rows * (rows + 1) / 2) * batch;
    let flops = (4 * seen * heads.q_dim() * shape.n_layers) as f64;
    let bytes = ((depth + rows) * batch * dtype.bytes_per_head(head_dim) * n_kv_heads * shape.n_layers) as f64;
    let (kind, share) = if rows == 1 {
        ("decode", format!("{:.0}%", bytes / seconds / 1e9 / limit * 100.0))
    } else {
        ("prefill", String::from("-"))
    };
    println!(
        "{:5} {:5} {kind:>8} {depth:>7} {batch:>6} {:>10.3} {:>8.2} {:>9.1} {share:>6}",
        shape.name,
        dtype.name(),
        seconds * 1e3,
        bytes / seconds / 1e9,
        flops / seconds / 1e9,
    );
}

impl Bench<'_> {
    /// Stores rows `(sequence, position, count)` in all layers, and attends: seconds of each layer.
    fn step(&mut self, cpu: &mut Cpu, rows: &[(usize, usize, usize)], attend: bool) -> Vec<f64> {
        let mut builder = BatchBuilder::new(self.n_pages);
        for &(sequence, position, n) in rows {
            builder.push(&vec![0; n], position, &self.tables[sequence], 1).expect("pages for the rows");
        }
        let batch = builder.finish();
        let prepared = cpu.prepare(&batch, &self.rope);
        cpu.set_rows(&mut self.qkv, batch.rows());
        cpu.set_rows(&mut self.out, batch.rows());
        let mut seconds = Vec::new();
        fill(self.qkv.data_mut(), rows[0].1 as u32);
        for layer in 0..self.layers {
            cpu.rope_store_kv(&mut self.qkv, &prepared, self.shape.heads, None, layer, &mut self.kv);
            if attend {
                let begin = Instant::now();
                cpu.paged_attention(&self.qkv, &prepared, &self.attention, layer, &self.kv, &mut self.out);
                seconds.push(begin.elapsed().as_secs_f64());
            }
        }
        black_box(self.out.data());
        seconds
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Numbers in -1..1.
fn fill(values: &mut [f32], seed: u32) {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    for v in values {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *v = (state >> 8) as f32 / 8_388_608.0 - 1.0;
    }
}

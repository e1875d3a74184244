//! Decode attention at depth: milliseconds a token and GB/s of keys and values read, for two model shapes.
//!
//! `cargo bench -p pelton-cpu --bench attention` (optional arguments: depth, threads, instruction set).

use std::hint::black_box;
use std::time::Instant;

use pelton_backend::{Attention, Backend, BatchBuilder, Heads, KvLayout, KvType, PAGE_LEN, Rope};
use pelton_cpu::{Cpu, CpuOptions};

struct Shape {
    name: &'static str,
    n_layers: usize,
    heads: Heads,
}

const SHAPES: [Shape; 2] = [
    Shape { name: "0.5B", n_layers: 24, heads: Heads { n_heads: 14, n_kv_heads: 2, head_dim: 64 } },
    Shape { name: "1.5B", n_layers: 28, heads: Heads { n_heads: 12, n_kv_heads: 2, head_dim: 128 } },
];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let depth = args.first().map_or(4096, |a| a.parse().expect("a depth in tokens"));
    let threads = args.get(1).map(|a| a.parse().expect("a number of threads"));
    let mut cpu = Cpu::new(CpuOptions { threads, isa: args.get(2).cloned() }).expect("a backend");
    println!("{}, depth {depth}", cpu.describe());
    println!(
        "{:6} {:5} {:>12} {:>10} {:>14} {:>16}",
        "model", "kv", "ms/token", "GB/s", "store ms/token", "prefill tokens/s"
    );
    for shape in &SHAPES {
        for dtype in [KvType::F16, KvType::Bf16, KvType::F32] {
            bench(&mut cpu, shape, dtype, depth);
        }
    }
}

fn bench(cpu: &mut Cpu, shape: &Shape, dtype: KvType, depth: usize) {
    let heads = shape.heads;
    let n_pages = (depth + 1).div_ceil(PAGE_LEN);
    let Heads { n_kv_heads, head_dim, .. } = heads;
    let layout = KvLayout { n_layers: shape.n_layers, n_kv_heads, head_dim, n_pages, dtype };
    let mut kv = cpu.kv_pool(&layout).expect("memory for the pool");
    // Pages in no order, as after some time of serving: an odd step through all of them.
    let step = (n_pages / 2) | 1;
    let step = (step..).find(|s| gcd(*s, n_pages) == 1).expect("a step without common factor");
    let pages: Vec<u32> = (0..n_pages).map(|i| (i * step % n_pages) as u32).collect();
    let rope = Rope {
        inv_freq: (0..head_dim / 2).map(|i| 1e4f32.powf(-2.0 * i as f32 / head_dim as f32)).collect(),
        scale: 1.0,
    };
    let attention = Attention { heads, scale: (head_dim as f32).powf(-0.5), softcap: None, window: None };
    let mut qkv = cpu.alloc(512, heads.qkv_dim());
    let mut out = cpu.alloc(512, heads.q_dim());

    // The prompt in chunks of 512, one layer timed, all layers filled.
    let mut prefill = 0.0;
    for start in (0..depth).step_by(512) {
        let n = 512.min(depth - start);
        let mut builder = BatchBuilder::new(n_pages);
        builder.push(&vec![0; n], start, &pages, 1).expect("pages for the prompt");
        let prepared = cpu.prepare(&builder.finish(), &rope);
        cpu.set_rows(&mut qkv, n);
        cpu.set_rows(&mut out, n);
        for layer in 0..shape.n_layers {
            fill(qkv.data_mut(), (start + layer) as u32);
            cpu.rope_store_kv(&mut qkv, &prepared, heads, None, layer, &mut kv);
            if layer == 0 {
                let begin = Instant::now();
                cpu.paged_attention(&qkv, &prepared, &attention, layer, &kv, &mut out);
                prefill += begin.elapsed().as_secs_f64() * shape.n_layers as f64;
            }
        }
    }
    let mut builder = BatchBuilder::new(n_pages);
    builder.push(&[0], depth, &pages, 1).expect("pages for the prompt");
    let prepared = cpu.prepare(&builder.finish(), &rope);
    cpu.set_rows(&mut qkv, 1);
    cpu.set_rows(&mut out, 1);
    fill(qkv.data_mut(), 7);
    // Best of 30 for each layer: a layer is short enough to fall between other programs' time slices.
    let (mut best, mut best_store) = (vec![f64::INFINITY; shape.n_layers], vec![f64::INFINITY; shape.n_layers]);
    for _ in 0..30 {
        for layer in 0..shape.n_layers {
            let begin = Instant::now();
            cpu.rope_store_kv(&mut qkv, &prepared, heads, None, layer, &mut kv);
            let middle = Instant::now();
            cpu.paged_attention(&qkv, &prepared, &attention, layer, &kv, &mut out);
            best[layer] = best[layer].min(middle.elapsed().as_secs_f64());
            best_store[layer] = best_store[layer].min((middle - begin).as_secs_f64());
        }
        black_box(out.data());
    }
    let (best, best_store) = (best.iter().sum::<f64>(), best_store.iter().sum::<f64>());
    let bytes = (layout.bytes_per_token() * (depth + 1)) as f64;
    let (ms, rate, store) = (best * 1e3, bytes / best / 1e9, best_store * 1e3);
    let prompt = depth as f64 / prefill;
    println!("{:6} {:5} {ms:12.3} {rate:10.2} {store:14.3} {prompt:16.0}", shape.name, dtype.name());
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

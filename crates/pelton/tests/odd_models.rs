//! Models of valid but odd shapes: every one loads, and the CPU's kernels agree with the scalar reference on it.
//!
//! Shapes come from a seeded generator that favours the edges of blocks, panels and tiles: widths of 1, 15, 17 and
//! 33, odd heads, one token of vocabulary, windows of 1, as many experts used as there are.

use pelton_backend::{Backend, BatchBuilder, KvType, PAGE_LEN, Reference};
use pelton_cpu::{Cpu, CpuOptions, Isa};
use pelton_engine::{Engine, EngineLimits, Event, Request};
use pelton_formats::{Activation, Arch, ModelConfig, MoeConfig, RopeConfig, RopeScaling, Tensor, Tensors};
use pelton_quant::DType;
use pelton_sample::SamplingParams;

/// Models tried in a run.
const MODELS: u64 = 60;
/// Tokens of the longer sequence: past one page.
const LONG: usize = PAGE_LEN + 9;

/// SplitMix64 (Steele, Lea, Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[(self.next() % of.len() as u64) as usize].clone()
    }

    /// True once in `n` times.
    fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }

    /// Values around 0 with a standard deviation of about `scale`.
    fn values(&mut self, n: usize, scale: f32) -> Vec<f32> {
        let uniform = |random: &mut Random| (random.next() >> 40) as f32 / (1 << 24) as f32 - 0.5;
        (0..n).map(|_| scale * 2.0 * (uniform(self) + uniform(self) + uniform(self))).collect()
    }
}

fn scaling(random: &mut Random, half: usize) -> RopeScaling {
    let factors: Vec<f32> = (0..half).map(|i| 1.0 + i as f32 / 4.0).collect();
    match random.next() % 6 {
        0 => RopeScaling::Linear { factor: 4.0 },
        1 => RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 1 },
        2 => RopeScaling::Yarn {
            factor: 4.0,
            original_context: 16,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.1,
        },
        3 => RopeScaling::Factors { short: factors.clone(), long: factors, original_context: 8, attention_factor: 1.2 },
        _ => RopeScaling::None,
    }
}

fn config(random: &mut Random) -> ModelConfig {
    let n_layers = random.pick(&[1, 2]);
    let head_dim = random.pick(&[2, 3, 4, 7, 8, 15, 16, 17, 24, 32, 33, 48, 80]);
    let n_kv_heads = random.pick(&[1, 1, 2, 3]);
    let group = random.pick(&[1, 2, 3, 7, 8, 65]);
    let n_heads = n_kv_heads * if n_kv_heads * head_dim > 48 { group.min(3) } else { group };
    let rope_dim = 2 * (1 + random.next() as usize % (head_dim / 2));
    let windows = [None, Some(1), Some(3), Some(PAGE_LEN), Some(PAGE_LEN + 1), Some(usize::MAX)];
    let widths = [1, 3, 15, 16, 17, 31, 32, 33, 64, 96, 256];
    let n_experts = random.pick(&[1, 2, 5]);
    let moe = random.one_in(3).then(|| MoeConfig {
        n_experts,
        n_experts_used: if random.one_in(2) { n_experts } else { 1 },
        expert_ffn: random.pick(&widths),
        norm_topk: random.one_in(2),
        moe_layers: (0..n_layers).map(|_| !random.one_in(3)).collect(),
    });
    ModelConfig {
        arch: Arch::Llama,
        name: "odd".into(),
        n_layers,
        hidden: random.pick(&widths),
        n_heads,
        n_kv_heads,
        head_dim,
        ffn: random.pick(&widths),
        vocab_size: random.pick(&[1, 2, 15, 16, 17, 33, 100]),
        max_context: 4096,
        norm_eps: 1e-5,
        norm_weight_offset: random.pick(&[0.0, 1.0]),
        rope: RopeConfig {
            theta: random.pick(&[1.0, 100.0, 10_000.0]),
            dim: rope_dim,
            scaling: scaling(random, rope_dim / 2),
        },
        activation: random.pick(&[Activation::Silu, Activation::GeluTanh]),
        qk_norm: random.one_in(2),
        post_norms: random.one_in(2),
        sliding_window: (0..n_layers).map(|_| random.pick(&windows)).collect(),
        attn_scale: 1.0 / (head_dim as f32).sqrt(),
        attn_softcap: random.pick(&[None, Some(5.0)]),
        logit_softcap: random.pick(&[None, Some(3.0)]),
        embed_scale: random.pick(&[1.0, 2.5]),
        tied_embeddings: random.one_in(2),
        moe,
    }
}

/// Fills a model's tensors.
struct Weights<'a> {
    random: &'a mut Random,
    tensors: Tensors,
    /// Types of matrices, where their rows allow it.
    types: Vec<DType>,
}

impl Weights<'_> {
    fn put(&mut self, name: &str, dtype: DType, shape: &[usize], values: &[f32]) {
        let mut bytes = Vec::new();
        pelton_quant::encode(dtype, values, &mut bytes).unwrap();
        self.tensors.insert(Tensor::new("odd", name, dtype, shape.to_vec(), bytes.into()).unwrap()).unwrap();
    }

    fn matrix(&mut self, part: &str, rows: usize, cols: usize) {
        let fits: Vec<DType> = self.types.iter().copied().filter(|t| t.row_bytes(cols).is_some()).collect();
        let dtype = self.random.pick(&fits);
        let values = self.random.values(rows * cols, 1.0 / (cols as f32).sqrt());
        self.put(&format!("{part}.weight"), dtype, &[rows, cols], &values);
        if self.random.one_in(4) && part != "token_embd" {
            let values = self.random.values(rows, 0.1);
            self.put(&format!("{part}.bias"), DType::F32, &[rows], &values);
        }
    }

    fn norm(&mut self, name: &str, len: usize) {
        let values: Vec<f32> = self.random.values(len, 0.2).iter().map(|v| 1.0 + v).collect();
        self.put(&format!("{name}.weight"), DType::F32, &[len], &values);
    }
}

fn tensors(random: &mut Random, c: &ModelConfig, types: &[DType]) -> Tensors {
    let mut w = Weights { random, tensors: Tensors::new("odd"), types: types.to_vec() };
    w.matrix("token_embd", c.vocab_size, c.hidden);
    w.norm("output_norm", c.hidden);
    if !c.tied_embeddings {
        w.matrix("output", c.vocab_size, c.hidden);
    }
    for i in 0..c.n_layers {
        let name = |part: &str| format!("blk.{i}.{part}");
        w.matrix(&name("attn_q"), c.q_dim(), c.hidden);
        w.matrix(&name("attn_k"), c.kv_dim(), c.hidden);
        w.matrix(&name("attn_v"), c.kv_dim(), c.hidden);
        w.matrix(&name("attn_output"), c.hidden, c.q_dim());
        for part in ["attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm"] {
            w.norm(&name(part), c.hidden);
        }
        w.norm(&name("attn_q_norm"), c.head_dim);
        w.norm(&name("attn_k_norm"), c.head_dim);
        match c.moe.as_ref().filter(|m| m.moe_layers[i]) {
            Some(m) => {
                w.matrix(&name("ffn_gate_inp"), m.n_experts, c.hidden);
                for e in 0..m.n_experts {
                    w.matrix(&name(&format!("ffn_gate.{e}")), m.expert_ffn, c.hidden);
                    w.matrix(&name(&format!("ffn_up.{e}")), m.expert_ffn, c.hidden);
                    w.matrix(&name(&format!("ffn_down.{e}")), c.hidden, m.expert_ffn);
                }
            }
            None => {
                w.matrix(&name("ffn_gate"), c.ffn, c.hidden);
                w.matrix(&name("ffn_up"), c.ffn, c.hidden);
                w.matrix(&name("ffn_down"), c.hidden, c.ffn);
            }
        }
    }
    w.tensors
}

/// Logits of every token of two sequences, `(LONG + 5, vocab)`. The longer one comes in chunks of `chunk`, the
/// shorter one in the first batch.
fn logits<B: Backend>(mut backend: B, c: &ModelConfig, tensors: &Tensors, chunk: usize) -> Vec<f32> {
    let model = pelton_model::load(&mut backend, c, tensors, LONG, &mut |_| ()).unwrap();
    let mut kv = backend.kv_pool(&model.kv_layout(5, KvType::F32)).unwrap();
    let mut work = model.workspace(&mut backend);
    let id = |i: usize| (i * 7 % c.vocab_size) as u32;
    let (long, short): (Vec<u32>, Vec<u32>) = ((0..LONG).map(id).collect(), (3..8).map(id).collect());
    let (mut all, mut company, mut out) = (Vec::new(), Vec::new(), Vec::new());
    for start in (0..LONG).step_by(chunk) {
        let end = (start + chunk).min(LONG);
        let mut batch = BatchBuilder::new(5);
        batch.push(&long[start..end], start, &[4, 1], end - start).unwrap();
        if start == 0 {
            batch.push(&short, 0, &[2], short.len()).unwrap();
        }
        model.forward(&mut backend, &batch.finish(), &mut kv, &mut work, &mut out);
        if start == 0 {
            company = out.split_off((end - start) * c.vocab_size);
        }
        all.append(&mut out);
    }
    all.append(&mut company);
    assert_eq!(all.len(), (LONG + short.len()) * c.vocab_size);
    all
}

fn cpu(isa: &str, threads: usize) -> Cpu {
    Cpu::new(CpuOptions { threads: Some(threads), isa: Some(isa.into()), ..CpuOptions::default() }).unwrap()
}

/// Root mean square of the differences, relative to that of the values (and at least to 1e-3).
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |v: f64| v * v;
    let differences: f64 = a.iter().zip(b).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    let size: f64 = a.iter().map(|&a| square(f64::from(a))).sum();
    (differences / size.max(1e-6 * a.len() as f64)).sqrt()
}

#[test]
fn odd_shapes_run_as_on_the_reference() {
    const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
    let isas: Vec<&str> = Isa::available().iter().map(|isa| isa.name()).collect();
    for seed in 0..MODELS {
        let mut random = Random(seed);
        let mut config = config(&mut random);
        config.validate().unwrap();
        let whole = config.moe.as_ref().is_none_or(|m| m.n_experts_used == m.n_experts);
        // Where experts are chosen, a rounded activation may choose another: floats only.
        let quantized = whole && random.one_in(2);
        // A norm right after a block of width 1 turns the rounding of its one value into a sign: no comparison.
        config.post_norms &= !quantized;
        let types = if quantized { DType::ENCODABLE } else { &FLOATS };
        let tensors = tensors(&mut random, &config, types);
        let reference = logits(Reference, &config, &tensors, LONG);
        let isa = random.pick(&isas);
        let on_cpu = logits(cpu(isa, 2), &config, &tensors, LONG);
        // Activations of quantized layers are rounded to 8 bits.
        let limit = if quantized { 0.05 } else { 1e-3 };
        let far = distance(&reference, &on_cpu);
        assert!(far < limit, "seed {seed} on {isa}: {far} from the reference\n{config:?}");
        let chunk = random.pick(&[1, 7, PAGE_LEN]);
        let in_chunks = logits(cpu(isa, 1), &config, &tensors, chunk);
        let same = on_cpu.iter().zip(&in_chunks).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "seed {seed} on {isa}: chunks of {chunk} change bits\n{config:?}");
    }
}

#[test]
fn weights_that_are_no_numbers_fail_the_requests_that_read_them_and_no_others() {
    let mut random = Random(1);
    let plain = ModelConfig {
        hidden: 64,
        vocab_size: 100,
        tied_embeddings: false,
        logit_softcap: None,
        moe: None,
        ..config(&mut random)
    };
    for dtype in [DType::F32, DType::Q8_0] {
        let mut random = Random(2);
        let mut damaged = Tensors::new("odd");
        for tensor in tensors(&mut random, &plain, &[DType::F32]).iter() {
            let mut bytes = tensor.data().to_vec();
            let mut kind = tensor.dtype.blocks().unwrap();
            if tensor.name == "token_embd.weight" {
                let values = tensor.to_f32().unwrap();
                bytes.clear();
                pelton_quant::encode(dtype, &values, &mut bytes).unwrap();
                // The first scale (f16) or value (f32) of row 5 becomes NaN.
                let row = dtype.row_bytes(plain.hidden).unwrap();
                bytes[5 * row..5 * row + 4].fill(0xff);
                kind = dtype;
            }
            let tensor = Tensor::new("odd", &tensor.name, kind, tensor.shape.clone(), bytes.into()).unwrap();
            damaged.insert(tensor).unwrap();
        }
        let answers = |prompts: &[&[u32]]| -> Vec<Vec<Event>> {
            let mut backend = cpu(Isa::detect().name(), 2);
            let model = pelton_model::load(&mut backend, &plain, &damaged, 64, &mut |_| ()).unwrap();
            let limits = EngineLimits {
                context: 64,
                n_pages: 16,
                kv_type: KvType::F16,
                max_batch_rows: 64,
                max_seqs: 4,
                max_waiting: 4,
                prefix_cache: true,
            };
            let mut engine = Engine::new(backend, model, None, Vec::new(), limits).unwrap();
            let greedy = SamplingParams { temperature: 0.0, logit_bias: vec![(5, -1e9)], ..SamplingParams::default() };
            let submit = |prompt: &&[u32]| engine.submit(Request::new(prompt.to_vec(), greedy.clone(), 8)).unwrap();
            let ids: Vec<_> = prompts.iter().map(submit).collect();
            let mut events = Vec::new();
            while engine.has_work() {
                engine.step(&mut events).unwrap();
            }
            let of = |id| events.iter().filter(|(i, _)| *i == id).map(|(_, event)| event.clone()).collect();
            ids.into_iter().map(of).collect()
        };
        let tokens = |events: &[Event]| -> Vec<u32> {
            events.iter().filter_map(|e| if let Event::Token { id, .. } = e { Some(*id) } else { None }).collect()
        };
        let alone = answers(&[&[1, 2, 3]]);
        let together = answers(&[&[1, 5, 3], &[1, 2, 3]]);
        let failed = &together[0];
        assert!(matches!(&failed[..], [Event::Failed(message)] if message.contains("NaN")), "{failed:?}");
        assert_eq!(tokens(&together[1]), tokens(&alone[0]));
        assert_eq!(tokens(&alone[0]).len(), 8);
    }
}

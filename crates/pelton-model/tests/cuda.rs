//! Whole models on the GPU's kernels, in the simulator: transformers' logits of the fixture folders, and quantized weights
//! beside the scalar reference; the same answers alone and in company, with graphs and without.

use std::path::{Path, PathBuf};

use pelton_backend::{Backend, BatchBuilder, KvType, PAGE_LEN, Reference};
use pelton_cuda::{CudaBackend, CudaOptions, sim};
use pelton_formats::{ModelFiles, write_gguf};
use pelton_model::{Decoder, Workspace};
use pelton_quant::DType;
use safetensors::SafeTensors;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

fn cuda(no_graphs: bool) -> CudaBackend {
    let options = CudaOptions { driver: Some(sim::library()), no_graphs, ..CudaOptions::default() };
    CudaBackend::open(&options).expect("the simulator is a device")
}

/// A model with the KV of two sequences.
struct Runner<B: Backend> {
    backend: B,
    model: Decoder<B>,
    kv: B::Kv,
    work: Workspace<B>,
    tables: [Vec<u32>; 2],
}

impl<B: Backend> Runner<B> {
    fn new(mut backend: B, files: &ModelFiles, kv_type: KvType) -> Runner<B> {
        let (config, tensors) = (&files.config, &files.tensors);
        let model = pelton_model::load(&mut backend, config, tensors, config.max_context, &mut |_| ()).unwrap();
        let n_pages = 256 / PAGE_LEN;
        let kv = backend.kv_pool(&model.kv_layout(2 * n_pages, kv_type)).unwrap();
        let work = model.workspace(&mut backend);
        // Not in order, and by turns.
        let table = |which: usize| (0..n_pages).rev().map(|p| (2 * p + which) as u32).collect();
        Runner { backend, model, kv, work, tables: [table(0), table(1)] }
    }

    /// Logits of the last `n_logits` of each sequence's ids.
    fn run(&mut self, sequences: &[(usize, &[u32], usize)], n_logits: usize) -> Vec<f32> {
        let mut batch = BatchBuilder::new(self.tables[0].len() * 2);
        for &(s, ids, cached) in sequences {
            batch.push(ids, cached, &self.tables[s], n_logits).unwrap();
        }
        let mut logits = Vec::new();
        self.model.forward(&mut self.backend, &batch.finish(), &mut self.kv, &mut self.work, &mut logits);
        logits
    }

    /// Logits at every position, in uneven chunks.
    fn all_logits(&mut self, ids: &[u32]) -> Vec<f32> {
        let (mut logits, mut done) = (Vec::new(), 0);
        for len in [1, 33, ids.len() - 34] {
            logits.extend(self.run(&[(0, &ids[done..done + len], done)], len));
            done += len;
        }
        logits
    }

    /// Greedy tokens of sequence 0; another runs beside it where `company` is given.
    fn greedy(&mut self, prompt: &[u32], n: usize, company: Option<&[u32]>) -> (Vec<u32>, Vec<f32>) {
        let (mut out, mut all) = (Vec::new(), Vec::new());
        let vocab = self.model.vocab_size();
        let mut sequences = vec![(0, prompt, 0)];
        sequences.extend(company.map(|other| (1, &other[..other.len() - n], 0)));
        let mut logits = self.run(&sequences, 1);
        for i in 0..n {
            logits.truncate(vocab);
            let best = (0..vocab).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a))).unwrap();
            out.push(best as u32);
            all.extend_from_slice(&logits);
            let mut sequences = vec![(0, &out[i..], prompt.len() + i)];
            let at = company.map_or(0, |other| other.len() - n + i);
            sequences.extend(company.map(|other| (1, &other[at..=at], at)));
            logits = self.run(&sequences, 1);
        }
        (out, all)
    }
}

fn tensor(folder: &Path, name: &str) -> Vec<u8> {
    let bytes = std::fs::read(folder.join("exact_rope.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    match tensors.tensor(name) {
        Ok(tensor) => tensor.data().to_vec(),
        Err(_) => {
            let bytes = std::fs::read(folder.join("reference.safetensors")).unwrap();
            SafeTensors::deserialize(&bytes).unwrap().tensor(name).unwrap().data().to_vec()
        }
    }
}

fn ids(folder: &Path, name: &str) -> Vec<u32> {
    tensor(folder, name).as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d.is_nan() { f32::INFINITY } else { m.max(d) })
}

/// Float weights and a float pool: transformers' logits and tokens.
fn check_floats(name: &str) {
    let folder = fixture(name);
    let input: Vec<u32> = ids(&folder, "input_ids")[..70].to_vec();
    let mut runner = Runner::new(cuda(false), &pelton_formats::open(&folder).unwrap(), KvType::F32);
    let expected: Vec<f32> =
        tensor(&folder, "logits").as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let logits = runner.all_logits(&input);
    let error = largest_difference(&logits, &expected[..logits.len()]);
    println!("{name}: max abs logit error {error:.1e}");
    assert!(error <= 2e-3, "{name}: max abs logit error {error}");
    let greedy = ids(&folder, "greedy");
    let n = greedy.len().min(8);
    assert_eq!(runner.greedy(&ids(&folder, "greedy_prompt"), n, None).0, greedy[..n], "{name}: greedy continuation");
}

#[test]
fn float_models_have_the_logits_of_transformers() {
    for name in ["qwen3", "gemma2", "mistral-window", "qwen3-moe"] {
        check_floats(name);
    }
}

#[test]
fn quantized_models_are_near_the_reference_and_the_same_bits_in_company_and_in_graphs() {
    let folder = fixture("qwen2-tied");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    write_gguf(&pelton_formats::open(&folder).unwrap(), &path, |_, _| DType::Q8_0).unwrap();
    let files = pelton_formats::open(&path).unwrap();
    let input: Vec<u32> = ids(&folder, "input_ids")[..60].to_vec();
    let truth = Runner::new(Reference, &files, KvType::F32).all_logits(&input);
    let mut runner = Runner::new(cuda(false), &files, KvType::Bf16);
    let error = largest_difference(&runner.all_logits(&input), &truth);
    let size = truth.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    println!("qwen2-tied in Q8_0: max abs logit error {error:.1e}, largest logit {size:.1}");
    assert!(error <= 0.03 * size, "max abs logit error {error} of {size}");

    let prompt = ids(&folder, "greedy_prompt");
    let alone = runner.greedy(&prompt, 8, None);
    let bits = |(tokens, logits): &(Vec<u32>, Vec<f32>)| -> (Vec<u32>, Vec<u32>) {
        (tokens.clone(), logits.iter().map(|v| v.to_bits()).collect())
    };
    let company = runner.greedy(&prompt, 8, Some(&input));
    assert!(runner.backend.counts().graph_launches > 0, "{:?}", runner.backend.counts());
    assert_eq!(bits(&company), bits(&alone), "in company");
    let mut plain = Runner::new(cuda(true), &files, KvType::Bf16);
    assert_eq!(bits(&plain.greedy(&prompt, 8, None)), bits(&alone), "without graphs");
    assert_eq!(plain.backend.counts().graph_launches, 0);
}

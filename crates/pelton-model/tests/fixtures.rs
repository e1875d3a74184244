//! Every fixture folder against its reference logits, on the scalar path, from safetensors and from GGUF.
//!
//! Two references, both from Hugging Face transformers in float32 over the same bf16 weights (see
//! `tests/fixtures/README.md`): `reference.safetensors` comes from a model that had been cast to bf16 as a whole,
//! which rounds the rotary frequencies; `exact_rope.safetensors` from the model as its files load.

use std::path::{Path, PathBuf};

use pelton_backend::{Backend, BatchBuilder, KvType, PAGE_LEN, Reference};
use pelton_formats::{ModelFiles, write_gguf};
use pelton_model::rounded_to_bf16;
use pelton_quant::DType;
use safetensors::SafeTensors;

const FOLDERS: [&str; 10] = [
    "gemma2",
    "llama-mha",
    "llama3-rope",
    "mistral-window",
    "phi3",
    "qwen2-tied",
    "qwen2-untied",
    "qwen3",
    "qwen3-moe",
    "qwen3-yarn",
];

/// What transformers computed.
struct Expected {
    ids: Vec<u32>,
    /// `(ids, vocab)`, frequencies in float32.
    exact: Vec<f32>,
    /// `(ids, vocab)`, frequencies rounded to bf16.
    rounded: Vec<f32>,
    greedy_prompt: Vec<u32>,
    greedy: Vec<u32>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

fn expected(folder: &Path) -> Expected {
    let read = |file: &str| std::fs::read(folder.join(file)).unwrap();
    let (given, exact) = (read("reference.safetensors"), read("exact_rope.safetensors"));
    let given = SafeTensors::deserialize(&given).unwrap();
    let exact = SafeTensors::deserialize(&exact).unwrap();
    let ids = |tensors: &SafeTensors<'_>, name: &str| -> Vec<u32> {
        let data = tensors.tensor(name).unwrap();
        data.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect()
    };
    let logits = |tensors: &SafeTensors<'_>| -> Vec<f32> {
        let data = tensors.tensor("logits").unwrap();
        data.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let greedy = ids(&exact, "greedy");
    assert_eq!(greedy, ids(&given, "greedy"), "both references continue alike");
    Expected {
        ids: ids(&given, "input_ids"),
        exact: logits(&exact),
        rounded: logits(&given),
        greedy_prompt: ids(&given, "greedy_prompt"),
        greedy,
    }
}

/// A model on the scalar backend with one sequence's KV.
struct Runner {
    backend: Reference,
    model: pelton_model::Decoder<Reference>,
    kv: <Reference as Backend>::Kv,
    work: pelton_model::Workspace<Reference>,
    pages: Vec<u32>,
}

impl Runner {
    fn new(files: &ModelFiles, context: usize) -> Runner {
        let mut backend = Reference;
        let (config, tensors) = (&files.config, &files.tensors);
        let model = pelton_model::load(&mut backend, config, tensors, config.max_context, &mut |_| ()).unwrap();
        let n_pages = context.div_ceil(PAGE_LEN);
        let kv = backend.kv_pool(&model.kv_layout(n_pages, KvType::F32)).unwrap();
        let work = model.workspace(&mut backend);
        // Not in order, so that a page table that is ignored shows.
        let pages = (0..n_pages as u32).rev().collect();
        Runner { backend, model, kv, work, pages }
    }

    /// Logits of the last `n_logits` of `ids`, which follow `cached` tokens.
    fn run(&mut self, ids: &[u32], cached: usize, n_logits: usize) -> Vec<f32> {
        let mut batch = BatchBuilder::new(self.pages.len());
        batch.push(ids, cached, &self.pages, n_logits).unwrap();
        let mut logits = Vec::new();
        self.model.forward(&mut self.backend, &batch.finish(), &mut self.kv, &mut self.work, &mut logits);
        logits
    }

    /// Logits at every position. Uneven chunks: the ragged batch and the KV pages are part of what is checked.
    fn all_logits(&mut self, ids: &[u32]) -> Vec<f32> {
        let mut logits = Vec::new();
        let mut done = 0;
        for len in [1, 63, 70, ids.len() - 134] {
            logits.extend(self.run(&ids[done..done + len], done, len));
            done += len;
        }
        logits
    }

    fn greedy(&mut self, prompt: &[u32], n: usize) -> Vec<u32> {
        let mut out = Vec::new();
        let mut logits = self.run(prompt, 0, 1);
        for i in 0..n {
            out.push(argmax(&logits));
            logits = self.run(&out[i..], prompt.len() + i, 1);
        }
        out
    }
}

fn argmax(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)));
    best.unwrap() as u32
}

fn max_abs_error(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn check(files: &ModelFiles, expected: &Expected, what: &str) {
    let mut runner = Runner::new(files, 256);
    let error = max_abs_error(&runner.all_logits(&expected.ids), &expected.exact);
    let greedy = runner.greedy(&expected.greedy_prompt, expected.greedy.len());
    let rope = rounded_to_bf16(runner.model.rope());
    runner.model.set_rope(rope);
    let rounded = max_abs_error(&runner.all_logits(&expected.ids), &expected.rounded);
    println!("{what}: max abs logit error {error:.1e}, with rounded frequencies {rounded:.1e}");
    assert!(error <= 2e-3, "{what}: max abs logit error {error}");
    assert!(rounded <= 2e-3, "{what}: max abs logit error {rounded} with rounded frequencies");
    assert_eq!(greedy, expected.greedy, "{what}: greedy continuation");
}

fn check_folder(name: &str) {
    let folder = fixture(name);
    let expected = expected(&folder);
    let files = pelton_formats::open(&folder).unwrap();
    check(&files, &expected, name);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    write_gguf(&files, &path, |_, _| DType::BF16).unwrap();
    check(&pelton_formats::open(&path).unwrap(), &expected, &format!("{name} as GGUF"));
}

macro_rules! fixtures {
    ($($test:ident: $name:literal,)*) => {
        $(#[test] fn $test() { check_folder($name); })*

        #[test]
        fn every_folder_is_tested() {
            let mut tested = vec![$($name),*];
            tested.sort_unstable();
            assert_eq!(tested, FOLDERS);
            let entries = std::fs::read_dir(fixture("")).unwrap().map(|e| e.unwrap());
            let mut found: Vec<_> = entries.filter(|e| e.path().join("config.json").is_file()).map(|e| e.file_name()).collect();
            found.sort_unstable();
            assert_eq!(found, FOLDERS);
        }
    };
}

fixtures! {
    gemma2: "gemma2",
    llama_mha: "llama-mha",
    llama3_rope: "llama3-rope",
    mistral_window: "mistral-window",
    phi3: "phi3",
    qwen2_tied: "qwen2-tied",
    qwen2_untied: "qwen2-untied",
    qwen3: "qwen3",
    qwen3_moe: "qwen3-moe",
    qwen3_yarn: "qwen3-yarn",
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    let files = pelton_formats::open(&fixture("qwen2-tied")).unwrap();
    let mut tensors = pelton_formats::Tensors::new("broken");
    for tensor in files.tensors.iter().filter(|t| t.name != "blk.1.ffn_down.weight") {
        tensors.insert(tensor.clone()).unwrap();
    }
    let load = |config: &_, tensors: &_| {
        let loaded = pelton_model::load(&mut Reference, config, tensors, 512, &mut |_| ());
        loaded.err().map(|e| e.to_string()).unwrap_or_default()
    };
    let error = load(&files.config, &tensors);
    assert!(error.contains("blk.1.ffn_down.weight"), "{error}");
    let mut config = files.config.clone();
    config.ffn += 32;
    let error = load(&config, &files.tensors);
    assert!(error.contains("blk.0.ffn_gate.weight") && error.contains("shape"), "{error}");
}

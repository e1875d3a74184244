//! The same model in other containers and types: bf16 in a GGUF is the same bits, quantized ones run as the scalar
//! reference runs the very same file, and stay close to what they were made from.

use pelton::{BackendChoice, KvType, Logits, Model, Options, Special};
use pelton_quant::DType;

use crate::support::{Expected, embedded, fixture, load, max_error, open, options, relative_error};

/// Writes the model as GGUF with all matrices of one type, and opens that; says how many matrices fell back to F16.
fn converted(model: &Model, dtype: DType) -> (Model, usize) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let report = pelton_formats::write_gguf(&model.files, &path, |_, _| dtype).unwrap();
    // The map outlives the file's name.
    (open(&path), report.notes.iter().filter(|n| n.contains("is F16")).count())
}

const FIXTURES: [&str; 10] = [
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

#[test]
fn bf16_in_a_gguf_gives_the_same_bits() {
    for name in FIXTURES {
        let (model, ids) = (open(&fixture(name)), Expected::of(name).ids);
        let folder = Logits::compute(&model, &ids, &options(), false).unwrap();
        let gguf = Logits::compute(&converted(&model, DType::BF16).0, &ids, &options(), false).unwrap();
        let differ = folder.data.iter().zip(&gguf.data).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        let error = max_error(&folder.data, &gguf.data);
        // GGUF holds Llama 3's frequency scaling as one f32 factor a frequency, where the folder has the formula: the
        // frequencies differ in their last bit.
        if name == "llama3-rope" {
            println!("{name}: {differ} logits differ, by up to {error:.1e}");
            assert!(error < 1e-3, "{name}: {error}");
            continue;
        }
        assert_eq!(differ, 0, "{name}: {differ} logits differ, by up to {error:e}");
    }
}

/// A storage type and how far it may be off.
struct Bounds {
    dtype: DType,
    /// Largest and relative error against the logits before quantization: what the type loses.
    lost: (f32, f64),
    /// Largest and relative error against the scalar reference on the same file: what the kernels add, by rounding
    /// activations to bytes, and keys and values to the type that is asked for.
    added: (f32, f64),
}

/// Converts, runs and compares; prints a line of the table.
fn check(model: &Model, ids: &[u32], before: &[f32], bounds: &Bounds, kv_type: KvType) {
    let (name, dtype) = (&model.name, bounds.dtype);
    let (model, fell_back) = converted(model, dtype);
    let ours = Options { kv_type, ..options() };
    let ours = Logits::compute(&model, ids, &ours, false).unwrap();
    let reference = Options { backend: BackendChoice::Reference, ..options() };
    let reference = Logits::compute(&model, ids, &reference, false).unwrap();
    let lost = (max_error(&ours.data, before), relative_error(&ours.data, before));
    let added = (max_error(&ours.data, &reference.data), relative_error(&ours.data, &reference.data));
    let placements = load(&model, &options()).report().placements.clone();
    let matrices = placements.iter().filter(|p| p.dtype == dtype).count();
    println!(
        "| {name} | {} | lost {:.1e} ({:.4}) | added {:.1e} ({:.4}) | {matrices} matrices, {fell_back} fell back |",
        dtype.name(),
        lost.0,
        lost.1,
        added.0,
        added.1,
    );
    let wanted = if fell_back == 0 { dtype } else { DType::F16 };
    assert!(placements.iter().all(|p| p.dtype == wanted), "{name} {}: every matrix is {}", dtype.name(), wanted.name());
    for (what, got, most) in [("lost", lost, bounds.lost), ("added", added, bounds.added)] {
        let fine = got.0 <= most.0 && got.1 <= most.1;
        assert!(fine, "{name} {}: {what} {got:?}, at most {most:?}", dtype.name());
    }
}

#[test]
fn quantized_ggufs_of_random_weights_run_and_stay_close() {
    // Random weights are the worst case for a quantization: nothing in them is redundant. Rows of 128 or 192 hold no
    // superblock, so K types fall back to F16, as the conversion's notes say.
    let types = [
        Bounds { dtype: DType::F16, lost: (0.02, 0.002), added: (0.02, 0.002) },
        Bounds { dtype: DType::Q8_0, lost: (0.4, 0.06), added: (0.3, 0.05) },
        Bounds { dtype: DType::Q4_0, lost: (4.0, 0.6), added: (0.3, 0.05) },
        Bounds { dtype: DType::Q4_K, lost: (0.02, 0.002), added: (0.02, 0.002) },
    ];
    for name in ["qwen2-tied", "qwen2-untied", "llama-mha", "phi3"] {
        let (model, expected) = (open(&fixture(name)), Expected::of(name));
        // Attention looks back only: the first positions' logits are those of the whole text.
        let ids = &expected.ids[..64];
        let before = &expected.logits[..ids.len() * model.files.config.vocab_size];
        // Keys and values in f16 lose less than F16 weights: what is left comes from the linear layers.
        types.iter().for_each(|bounds| check(&model, ids, before, bounds, KvType::F16));
    }
}

#[test]
fn quantized_ggufs_of_the_embedded_model_run_and_stay_close() {
    let model = embedded();
    let text =
        "fn area(width: f64, height: f64) -> f64 {\n    width * height\n}\n\nclass Stack:\n    def push(self, item):\n";
    let ids = model.tokenizer.as_ref().unwrap().encode(text, Special::AsText);
    let reference = Options { backend: BackendChoice::Reference, ..options() };
    let before = Logits::compute(&model, &ids, &reference, false).unwrap().data;
    // With activations in blocks of 256 the largest difference, one logit's, was 0.3 to 0.67, by the type of the keys and
    // the order of sums; all of them together are within 0.021.
    let types = [
        Bounds { dtype: DType::Q4_K, lost: (5.0, 0.2), added: (0.7, 0.025) },
        Bounds { dtype: DType::Q5_K, lost: (2.5, 0.1), added: (0.6, 0.025) },
        Bounds { dtype: DType::Q6_K, lost: (1.5, 0.06), added: (0.6, 0.025) },
        Bounds { dtype: DType::Q4_0, lost: (5.0, 0.25), added: (0.6, 0.025) },
    ];
    types.iter().for_each(|bounds| check(&model, &ids, &before, bounds, options().kv_type));
}

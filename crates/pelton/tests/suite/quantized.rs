//! Quantized Hugging Face folders and models quantized while they are loaded: logits and reports.
//!
//! The reference has the logits of float32 from the same decoded weights. The kernels round activations to bytes: all
//! logits together may be off by 3%, and none by more than three times what transformers in bf16 is.

use pelton::{BackendChoice, Inspection, KvType, Logits, Options, Quantization};
use safetensors::SafeTensors;

use crate::support::{ask, fixture, greedy, load, max_error, open, options, relative_error};

struct Expected {
    ids: Vec<u32>,
    logits: Vec<f32>,
    bf16_error: f32,
}

fn expected(name: &str) -> Expected {
    let bytes = std::fs::read(fixture(name).join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        let data = file.tensor(name).unwrap();
        data.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let ids = file.tensor("input_ids").unwrap();
    let ids = ids.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect();
    Expected { ids, logits: floats("logits"), bf16_error: floats("bf16_error")[0] }
}

#[test]
fn logits_are_those_of_the_decoded_weights() {
    let folder = fixture("quantized");
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let name = format!("quantized/{}", name.to_str().unwrap());
        let (model, expected) = (open(&fixture(&name)), expected(&name));
        let production = Logits::compute(&model, &expected.ids, &options(), false).unwrap();
        let reference = Options { backend: BackendChoice::Reference, ..options() };
        let reference = Logits::compute(&model, &expected.ids, &reference, false).unwrap();
        let error = |logits: &Logits| max_error(&logits.data, &expected.logits);
        let (reference, logits, bf16) = (error(&reference), production, expected.bf16_error);
        let production = error(&logits);
        let relative = relative_error(&logits.data, &expected.logits);
        let llm = load(&model, &options());
        let placement = &llm.report().placements[0];
        println!(
            "| {name} | {} on {} | {reference:.1e} | {production:.1e} ({relative:.4}) | bf16 {bf16:.1e} |",
            placement.dtype, placement.kernel
        );
        assert!(reference <= 1e-4, "{name}: the reference errs by {reference}");
        assert!(production <= 3.0 * bf16, "{name}: production errs by {production}, bf16 by {bf16}");
        assert!(relative <= 0.03, "{name}: production errs by {relative} of the logits");
        let quantization = model.files.source.quantization.clone().unwrap();
        assert!(llm.report().notes.contains(&quantization), "{name}: {:?}", llm.report().notes);
    }
}

#[test]
fn models_are_quantized_while_they_are_loaded() {
    let model = open(&fixture("qwen3"));
    let ids: Vec<u32> = (3..40).collect();
    let exact = Logits::compute(&model, &ids, &options(), false).unwrap();
    let size = exact.data.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    for (q, most) in Quantization::ALL.into_iter().zip([0.5, 0.3, 0.2, 0.1, 0.3, 0.1, 0.6]) {
        let with = |backend| Options { quantization: Some(q), backend, ..options() };
        let production = Logits::compute(&model, &ids, &with(BackendChoice::Cpu), false).unwrap();
        let reference = Logits::compute(&model, &ids, &with(BackendChoice::Reference), false).unwrap();
        // Both see the same weights; they differ by the rounding of activations and of the cache alone.
        let (apart, cost) = (max_error(&production.data, &reference.data), max_error(&reference.data, &exact.data));
        println!("| {} | kernels {:.1e} | quantization {:.1e} | of {size} |", q.name(), apart, cost);
        assert!(cost > 0.0 && cost <= most * size, "{}: {cost} of {size}", q.name());
        assert!(apart <= 0.05 * size, "{}: {apart} of {size}", q.name());
        let llm = load(&model, &with(BackendChoice::Cpu));
        let note = llm.report().notes.iter().find(|n| n.contains("quantized while loading")).unwrap();
        assert!(note.contains("MiB") && llm.report().memory.weight_bytes > 0, "{note}");
        assert_eq!(ask(&llm, greedy(&ids, 8)).ids.len(), 8);
    }
}

#[test]
fn inspect_names_the_quantization() {
    let model = open(&fixture("quantized/gptq-4-actorder"));
    let inspection = Inspection::new(&model, None, 1, KvType::Bf16).unwrap();
    assert_eq!(inspection.quantization.unwrap(), "GPTQ 4 bit, group size 32, asymmetric, act-order");
    let matrices = inspection.tensors.iter().find(|g| g.role == "blk.attn_q.weight").unwrap();
    // Four bits, and per 32 of them a scale of 16 bits and a zero point of 4.
    assert_eq!(
        (matrices.dtype.as_str(), matrices.bytes * 8),
        ("INT4 asym g32", matrices.elements * 4 + matrices.elements / 32 * 20)
    );
}

#[test]
fn quantized_models_are_not_quantized_again() {
    let model = open(&fixture("quantized/ct-w8a8"));
    let options = Options { quantization: Some(Quantization::Bits4), ..options() };
    let message = Logits::compute(&model, &[1, 2], &options, false).unwrap_err().to_string();
    assert!(message.contains("--quantization 4bit") && message.contains("INT8 per row"), "{message}");
}

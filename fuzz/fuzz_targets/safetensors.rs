//! A safetensors file from a stranger: parsed, and opened beside the configuration of a tiny model.
//!
//! The first byte picks the architecture, the rest is the file.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pelton_formats::hf::{HfParts, SafetensorsFile, open_parts};

#[allow(dead_code, reason = "each program uses a part of it")]
#[path = "../../crates/pelton-formats/tests/tiny/mod.rs"]
mod tiny;

fuzz_target!(|data: &[u8]| {
    let Some((&pick, data)) = data.split_first() else { return };
    if let Ok(file) = SafetensorsFile::parse(data.to_vec().into(), "fuzz.safetensors") {
        for info in &file.tensors {
            let _ = file.tensor(info).and_then(|t| t.to_f32());
        }
    }
    let arch = tiny::ARCHS[usize::from(pick) % tiny::ARCHS.len()];
    let parts = HfParts {
        config_json: serde_json::to_vec(&tiny::config(arch)).unwrap(),
        weights: vec![("model.safetensors".into(), data.to_vec().into())],
        ..HfParts::default()
    };
    if let Ok(files) = open_parts(parts) {
        for tensor in files.tensors.iter() {
            tensor.to_f32().expect("a tensor that a reader returned decodes");
        }
    }
});

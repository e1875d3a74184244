//! The weights and the `quantization_config` of a quantized Hugging Face folder from a stranger.
//!
//! The first byte picks a fixture. The rest, up to a byte 0xff, is merged into its `quantization_config` (JSON); what
//! follows is written over its safetensors file, in runs of a position (3 bytes), a length (1 byte) and as many bytes.
//! What opens is decoded.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pelton_formats::hf::{HfParts, open_parts};
use serde_json::Value;

struct Folder {
    config: Value,
    weights: Vec<u8>,
}

/// The fixtures, read once.
static FOLDERS: LazyLock<Vec<Folder>> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/quantized");
    let mut names: Vec<_> = std::fs::read_dir(root).expect("fixtures").flatten().map(|e| e.path()).collect();
    names.sort();
    let read = |path: std::path::PathBuf| std::fs::read(path).expect("a fixture's file");
    let folder = |path: &std::path::PathBuf| Folder {
        config: serde_json::from_slice(&read(path.join("config.json"))).expect("JSON"),
        weights: read(path.join("model.safetensors")),
    };
    names.iter().map(folder).collect()
});

fuzz_target!(|data: &[u8]| {
    let Some((&pick, data)) = data.split_first() else { return };
    let folder = &FOLDERS[usize::from(pick) % FOLDERS.len()];
    let (json, mut runs) = data.split_at(data.iter().position(|&b| b == 0xff).unwrap_or(data.len()));
    let mut config = folder.config.clone();
    if let (Ok(Value::Object(changes)), Some(own)) =
        (serde_json::from_slice(json), config["quantization_config"].as_object_mut())
    {
        own.extend(changes);
    }
    let mut weights = folder.weights.clone();
    runs = runs.get(1..).unwrap_or_default();
    while let [a, b, c, len, rest @ ..] = runs {
        let at = u32::from_le_bytes([*a, *b, *c, 0]) as usize % weights.len();
        let (bytes, rest) = rest.split_at(rest.len().min(usize::from(*len)));
        let room = bytes.len().min(weights.len() - at);
        weights[at..at + room].copy_from_slice(&bytes[..room]);
        runs = rest;
    }
    let parts = HfParts {
        name: "fuzz".into(),
        config_json: serde_json::to_vec(&config).unwrap_or_default(),
        weights: vec![("model.safetensors".into(), weights.into())],
        ..HfParts::default()
    };
    let Ok(files) = open_parts(parts) else { return };
    for tensor in files.tensors.iter() {
        if let Ok(stored) = tensor.stored("fuzz") {
            let values = stored.to_f32().expect("what is stored decodes");
            assert_eq!(values.len(), stored.elements());
        }
    }
});

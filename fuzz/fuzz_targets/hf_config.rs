//! The JSON files of a Hugging Face folder from a stranger, beside the weights of a tiny model.
//!
//! The first byte picks the architecture. The rest, cut at bytes 0xff (which JSON cannot hold), is `config.json`,
//! `generation_config.json`, `tokenizer_config.json`, `model.safetensors.index.json` and `tokenizer.json`.
//! What opens is written to a GGUF file and read again.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pelton_formats::hf::{HfParts, open_parts};

#[allow(dead_code, reason = "each program uses a part of it")]
#[path = "../../crates/pelton-formats/tests/tiny/mod.rs"]
mod tiny;

/// The tiny models, made once.
static PARTS: LazyLock<Vec<HfParts>> = LazyLock::new(|| tiny::ARCHS.map(tiny::parts).into());

fuzz_target!(|data: &[u8]| {
    let Some((&pick, data)) = data.split_first() else { return };
    let pick = usize::from(pick) % tiny::ARCHS.len();
    let mut json = data.split(|&b| b == 0xff).map(<[u8]>::to_vec);
    let mut next = || json.next().filter(|j| !j.is_empty());
    let parts = HfParts {
        config_json: next().unwrap_or_default(),
        generation_config_json: next(),
        tokenizer_config_json: next(),
        index_json: next(),
        tokenizer_json: next(),
        ..PARTS[pick].clone()
    };
    let Ok(files) = open_parts(parts) else { return };
    files.config.validate().expect("a configuration that a reader returned is valid");
    let path = std::env::temp_dir().join(format!("pelton-fuzz-{}.gguf", std::process::id()));
    if pelton_formats::write_gguf(&files, &path, |_, _| pelton_quant::DType::Q8_0).is_ok() {
        let _ = pelton_formats::open(&path);
    }
    let _ = std::fs::remove_file(&path);
});

//! Every file in `tests/regressions` is refused without a panic.

use std::path::Path;

use pelton_formats::hf::{HfParts, SafetensorsFile, open_parts};
use pelton_formats::open_bytes;

#[allow(dead_code, reason = "each test uses a part of it")]
mod tiny;

/// Calls `opens` with the name and content of each file of a folder.
fn each(target: &str, opens: impl Fn(&[u8]) -> bool) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/regressions").join(target);
    let mut n = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        assert!(!opens(&std::fs::read(&path).unwrap()), "{} opened", path.display());
        n += 1;
    }
    assert!(n >= 3, "{target}: {n} files");
}

fn arch(pick: u8) -> &'static str {
    tiny::ARCHS[usize::from(pick) % tiny::ARCHS.len()]
}

#[test]
fn gguf() {
    each("gguf", |bytes| open_bytes(bytes.to_vec(), "regression.gguf").is_ok());
}

#[test]
fn safetensors() {
    each("safetensors", |bytes| {
        let (&pick, bytes) = bytes.split_first().unwrap();
        let parts =
            HfParts { weights: vec![("w.safetensors".into(), bytes.to_vec().into())], ..tiny::parts(arch(pick)) };
        SafetensorsFile::parse(bytes.to_vec().into(), "w.safetensors").is_ok() || open_parts(parts).is_ok()
    });
}

#[test]
fn hf_config() {
    each("hf_config", |bytes| {
        let (&pick, bytes) = bytes.split_first().unwrap();
        let mut json = bytes.split(|&b| b == 0xff).map(<[u8]>::to_vec);
        let mut next = || json.next().filter(|j| !j.is_empty());
        let parts = HfParts {
            config_json: next().unwrap_or_default(),
            generation_config_json: next(),
            tokenizer_config_json: next(),
            index_json: next(),
            tokenizer_json: next(),
            ..tiny::parts(arch(pick))
        };
        open_parts(parts).is_ok()
    });
}

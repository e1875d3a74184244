//! Writes the fuzzers' first inputs: tiny models of every architecture, the requests and answers in `seeds/`, and the
//! regressions kept as tests.
//!
//! Run from the `fuzz` folder: `cargo run --example seeds`.

use std::path::Path;

use pelton_formats::hf::{HfParts, open_parts};
use pelton_quant::DType;

#[allow(dead_code, reason = "each program uses a part of it")]
#[path = "../../crates/pelton-formats/tests/tiny/mod.rs"]
mod tiny;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for target in ["gguf", "safetensors", "hf_config", "requests", "answers"] {
        std::fs::create_dir_all(corpus.join(target))?;
    }
    for (i, arch) in tiny::ARCHS.into_iter().enumerate() {
        let pick = [u8::try_from(i)?];
        let parts = tiny::parts(arch);
        let weights = tiny::safetensors(&tiny::tensors(arch));
        std::fs::write(corpus.join("safetensors").join(arch), [&pick, weights.as_slice()].concat())?;
        let rest: &[&[u8]] = &[
            br#"{"eos_token_id":[2,3],"temperature":0.7,"top_k":20,"top_p":0.8,"do_sample":true}"#,
            br#"{"add_bos_token":true,"bos_token":"a","chat_template":[{"name":"default","template":"x"}]}"#,
            b"",
            br#"{"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"use_regex":true},"added_tokens":[{"id":2,"content":"c","special":true}],"model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":["a b",["a","b"]]}}"#,
        ];
        let json = rest.iter().fold(parts.config_json.clone(), |all, r| [all.as_slice(), &[0xff], r].concat());
        std::fs::write(corpus.join("hf_config").join(arch), [&pick, json.as_slice()].concat())?;
        let json = |i: usize| Some(rest[i].to_vec());
        let (tokenizer_config_json, tokenizer_json) = (json(1), json(3));
        let files = open_parts(HfParts { tokenizer_config_json, tokenizer_json, ..parts })?;
        for (name, dtype) in [("q8", DType::Q8_0), ("f16", DType::F16)] {
            let out = corpus.join("gguf").join(format!("{arch}-{name}"));
            pelton_formats::write_gguf(&files, &out, |_, _| dtype)?;
        }
    }
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/pelton-formats/tests");
    std::fs::copy(tests.join("golden/python.gguf"), corpus.join("gguf/python"))?;
    for target in ["gguf", "safetensors", "hf_config"] {
        for entry in std::fs::read_dir(tests.join("regressions").join(target))? {
            let entry = entry?;
            std::fs::copy(entry.path(), corpus.join(target).join(entry.file_name()))?;
        }
    }
    for target in ["requests", "answers"] {
        for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target))? {
            let entry = entry?;
            std::fs::copy(entry.path(), corpus.join(target).join(entry.file_name()))?;
        }
    }
    Ok(())
}

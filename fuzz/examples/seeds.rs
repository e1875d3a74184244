//! Writes the fuzzers' first inputs: tiny models of every architecture, quantized folders as they are and with a part of
//! them changed, the requests and answers in `seeds/`, and the regressions kept as tests.
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
    for target in ["gguf", "safetensors", "hf_config", "quantized", "requests", "answers"] {
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
    quantized(&corpus.join("quantized"))?;
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

/// Of each quantized fixture: itself, with a member of its `quantization_config` changed, and with bytes of its weights.
fn quantized(corpus: &Path) -> Result<(), Box<dyn std::error::Error>> {
    const CHANGES: &[&str] = &[
        r#"{"bits":8}"#,
        r#"{"bits":3,"sym":true}"#,
        r#"{"group_size":7}"#,
        r#"{"group_size":-1,"desc_act":true}"#,
        r#"{"quant_method":"awq","version":"gemm"}"#,
        r#"{"quant_method":"gptq","checkpoint_format":"gptq_v2"}"#,
        r#"{"weight_block_size":[0,128]}"#,
        r#"{"load_in_8bit":true,"load_in_4bit":true}"#,
        r#"{"bnb_4bit_quant_type":"fp4","bnb_4bit_use_double_quant":true}"#,
        r#"{"config_groups":{"group_0":{"targets":["Linear"],"weights":{"num_bits":4,"type":"int","strategy":"group","group_size":16,"symmetric":false}}}}"#,
    ];
    // A position, a length and the bytes: in the header, and past it.
    const RUNS: &[&[u8]] = &[&[0, 0, 0, 2, 0xff, 0xff], &[0x40, 0, 0, 1, b'9'], &[0, 0x20, 0, 4, 0, 0, 0xc0, 0x7f]];
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/quantized");
    for pick in 0..u8::try_from(std::fs::read_dir(fixtures)?.count())? {
        let write =
            |name: &str, rest: &[u8]| std::fs::write(corpus.join(format!("{pick}-{name}")), [&[pick], rest].concat());
        write("whole", b"")?;
        for (i, change) in CHANGES.iter().enumerate() {
            write(&format!("config{i}"), change.as_bytes())?;
        }
        for (i, run) in RUNS.iter().enumerate() {
            write(&format!("bytes{i}"), &[&[0xff], *run].concat())?;
        }
    }
    Ok(())
}

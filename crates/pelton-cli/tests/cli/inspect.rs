//! `pelton inspect`: for people and for programs.

use crate::models::{draft, fixture};
use crate::pelton::{Sandbox, arg, assert_keys};

#[test]
fn the_built_in_model_is_described() {
    let text = Sandbox::new().run(&["inspect"]).ok().stdout;
    for line in [
        "model       pelton-tiny (qwen2, GGUF v3)",
        "parameters  6,822,144",
        "built into pelton",
        "Q8_0",
        "<|im_end|> 2",
    ] {
        assert!(text.contains(line), "`{line}` is missing: {text}");
    }
}

#[test]
fn verbose_adds_metadata_and_template() {
    let text = Sandbox::new().run(&["inspect", "-v", arg(&draft())]).ok().stdout;
    assert!(text.contains("general.architecture = qwen2") && text.contains("add_generation_prompt"), "{text}");
}

#[test]
fn json_has_what_the_text_has() {
    let folder = fixture("qwen3-moe");
    let object = Sandbox::new().run(&["inspect", "--json", arg(&folder), "-c", "100", "-b", "3"]).ok().json();
    let keys = "name format files file_bytes architecture parameters quantization bits_per_weight n_layers hidden n_heads n_kv_heads \
                head_dim ffn experts vocab_size max_context sliding_window rope tied_embeddings tensors unused_tensors \
                context batch kv_type kv_bytes_per_token kv_bytes memory_bytes packed_bytes tokenizer special_tokens eos \
                chat_template metadata";
    assert_keys(&object, &keys.split_whitespace().collect::<Vec<_>>());
    assert_eq!((&object["architecture"], &object["experts"][0]), (&"qwen3_moe".into(), &8.into()));
    // 2 (keys, values) × 3 layers × 2 heads × 32 elements × 2 bytes, for 3 sequences of 100 tokens.
    assert_eq!((&object["kv_bytes_per_token"], &object["kv_bytes"]), (&768.into(), &230_400.into()));
    let sum: u64 = object["tensors"].as_array().unwrap().iter().map(|g| g["elements"].as_u64().unwrap()).sum();
    assert_eq!(object["parameters"].as_u64(), Some(sum));
}

#[test]
fn every_fixture_is_described() {
    for entry in std::fs::read_dir(fixture("")).unwrap() {
        let path = entry.unwrap().path();
        // `quantized` holds models, and is none; its tests are in quantized.rs.
        if path.is_dir() && !path.ends_with("quantized") {
            let text = Sandbox::new().run(&["inspect", arg(&path)]).ok().stdout;
            assert!(text.contains("safetensors") && text.contains("none: the model takes ids only"), "{text}");
        }
    }
}

#[test]
fn memory_figures_stay_within_the_model() {
    let run = |args: &[&str]| Sandbox::new().run(&[&["inspect"], args].concat());
    run(&["-c", "5000"]).usage(&["--context 5000", "1024"]);
    run(&["-c", "0"]).usage(&["--context"]);
    run(&["-b", "0"]).usage(&["--batch"]);
    run(&["-b", "18446744073709551615"]).usage(&["--batch"]);
}

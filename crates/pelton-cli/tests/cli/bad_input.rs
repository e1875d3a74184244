//! Files from strangers: truncated, corrupt, hostile. Each is refused with the file, the fault and what to do, and a
//! claimed length is never believed.

use std::path::Path;

use crate::models::{copy_of, draft, fixture, replace};
use crate::pelton::{Outcome, Sandbox, arg};

fn inspect(sandbox: &Sandbox, model: &Path) -> Outcome {
    sandbox.run(&["inspect", arg(&model)])
}

#[test]
fn truncated_gguf_files_name_what_is_missing() {
    let bytes = std::fs::read(draft()).unwrap();
    for len in [0, 3, 4, 8, 20, 100, 5_000, 150_000, bytes.len() / 2, bytes.len() - 1] {
        let sandbox = Sandbox::new();
        let file = sandbox.write("cut.gguf", &bytes[..len]);
        inspect(&sandbox, &file).failure(&["cut.gguf", ", expected "]);
        sandbox.run(&["run", "x", "-m", "cut.gguf"]).failure(&["cut.gguf"]);
    }
}

#[test]
fn corrupt_gguf_headers_are_refused() {
    let bytes = std::fs::read(draft()).unwrap();
    let with = |at: usize, new: &[u8]| {
        let mut damaged = bytes.clone();
        damaged[at..at + new.len()].copy_from_slice(new);
        damaged
    };
    let huge = u64::MAX.to_le_bytes();
    let table: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("magic", with(0, b"JUNK"), &["GGUF"]),
        ("version", with(4, &99_u32.to_le_bytes()), &["version"]),
        ("tensor count", with(8, &huge), &["tensor"]),
        ("metadata count", with(16, &huge), &["key count"]),
        ("key length", with(24, &huge), &["key"]),
    ];
    for (name, content, words) in table {
        let sandbox = Sandbox::new();
        let file = sandbox.write("bad.gguf", content);
        let outcome = inspect(&sandbox, &file).failure(&["bad.gguf"]);
        let stderr = outcome.stderr.to_lowercase();
        assert!(words.iter().any(|w| stderr.contains(&w.to_lowercase())), "{name}: {stderr}");
    }
}

#[test]
fn hostile_safetensors_headers_are_refused() {
    let header =
        |json: &str, data: usize| [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &vec![0; data]].concat();
    let one = |shape: &str, offsets: &str| {
        format!("{{\"model.norm.weight\":{{\"dtype\":\"BF16\",\"shape\":{shape},\"data_offsets\":{offsets}}}}}")
    };
    let table = [
        ("empty", Vec::new()),
        ("length past the end", u64::MAX.to_le_bytes().to_vec()),
        ("not json", header("{{{{", 0)),
        ("offsets past the end", header(&one("[128]", "[0,256]"), 10)),
        ("offsets that end before they start", header(&one("[128]", "[256,0]"), 256)),
        ("shape that overflows", header(&one("[18446744073709551615,3]", "[0,256]"), 256)),
        ("shape that differs from the bytes", header(&one("[64]", "[0,256]"), 256)),
        ("negative offsets", header(&one("[128]", "[-1,255]"), 256)),
    ];
    for (name, content) in table {
        let sandbox = Sandbox::new();
        let model = copy_of("qwen3", &sandbox);
        std::fs::write(model.join("model.safetensors"), content).unwrap();
        let outcome = inspect(&sandbox, &model).failure(&["model.safetensors"]);
        assert!(outcome.stderr.lines().count() == 1, "{name}: {outcome:?}");
    }
}

#[test]
fn configs_that_do_not_fit_are_refused_by_field_or_tensor() {
    let table: &[(&str, &str, &[&str])] = &[
        (
            "\"model_type\": \"qwen3\"",
            "\"model_type\": \"mamba\"",
            &["mamba", "not supported", "qwen2", "llama", "gemma2"],
        ),
        ("\"hidden_size\": 128", "\"hidden_size\": 64", &["blk.0.attn_norm.weight", "[128]", "[64]"]),
        ("\"hidden_size\": 128", "\"hidden_size\": 18446744073709551615", &["config.json", "hidden size"]),
        ("\"hidden_size\": 128", "\"hidden_size\": -1", &["config.json", "`hidden_size`"]),
        ("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4", &["config.json", "`layer_types`"]),
        ("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4000000000", &["config.json", "number of layers"]),
        ("\"num_attention_heads\": 4", "\"num_attention_heads\": 0", &["config.json", "number of heads"]),
        ("\"vocab_size\": 512", "\"vocab_size\": 513", &["token_embd.weight", "[512, 128]", "[513, 128]"]),
        ("\"vocab_size\": 512", "\"vocab_size\": \"512\"", &["config.json", "`vocab_size`"]),
        ("\"rms_norm_eps\": 1e-06", "\"rms_norm_eps\": -1", &["config.json", "norm epsilon"]),
        ("{", "", &["config.json", "JSON"]),
    ];
    for (from, to, words) in table {
        let sandbox = Sandbox::new();
        let model = copy_of("qwen3", &sandbox);
        replace(&model.join("config.json"), from, to);
        // Shapes are checked where weights are bound: at the latest when something is computed.
        sandbox.write("ids.json", "[1, 2]");
        let args = ["eval", "logits", "model", "--ids", "ids.json", "--out", "out.safetensors"];
        let outcome = sandbox.run(&args).failure(words);
        assert!(!sandbox.path("out.safetensors").exists(), "{outcome:?}");
    }
}

#[test]
fn a_norm_that_is_not_a_number_is_named() {
    let sandbox = Sandbox::new();
    let model = copy_of("qwen3", &sandbox);
    let file = model.join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let norm = &header["model.layers.1.input_layernorm.weight"];
    let at = 8 + header_len + norm["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[at..at + 2].copy_from_slice(&0x7FC0_u16.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    sandbox.write("ids.json", "[1, 2]");
    let args = ["eval", "logits", "model", "--ids", "ids.json", "--out", "out.safetensors"];
    for more in [&[][..], &["--reference"]] {
        sandbox.run(&[&args, more].concat()).failure(&["blk.1.attn_norm.weight", "NaN", "damaged"]);
    }
}

#[test]
fn missing_files_are_named() {
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.path("empty")).unwrap();
    inspect(&sandbox, &sandbox.path("empty")).failure(&["empty", "model.safetensors", ".gguf"]);
    let model = copy_of("qwen3", &sandbox);
    std::fs::rename(model.join("model.safetensors"), model.join("model-00001-of-00002.safetensors")).unwrap();
    let header = std::fs::read(fixture("qwen3").join("model.safetensors")).unwrap();
    let header_len = u64::from_le_bytes(header[..8].try_into().unwrap()) as usize;
    let tensors: serde_json::Value = serde_json::from_slice(&header[8..8 + header_len]).unwrap();
    let names = tensors.as_object().unwrap().keys().filter(|name| *name != "__metadata__");
    let map: serde_json::Map<_, _> = names
        .map(|name| {
            let shard = if name.contains("layers.2") { 2 } else { 1 };
            (name.clone(), format!("model-0000{shard}-of-00002.safetensors").into())
        })
        .collect();
    let index = serde_json::json!({ "metadata": {}, "weight_map": map });
    std::fs::write(model.join("model.safetensors.index.json"), index.to_string()).unwrap();
    inspect(&sandbox, &model).failure(&["model-00002-of-00002.safetensors"]);
    std::fs::remove_file(model.join("config.json")).unwrap();
    inspect(&sandbox, &model).failure(&["config.json"]);
}

#[test]
fn files_that_are_no_models_are_refused() {
    let sandbox = Sandbox::new();
    let text = sandbox.write("notes.txt", "these are notes");
    inspect(&sandbox, &text).failure(&["notes.txt", "not a GGUF file"]);
    let weights = fixture("qwen3").join("model.safetensors");
    inspect(&sandbox, &weights).usage(&["model.safetensors", "folder"]);
    sandbox.write("two/a.gguf", std::fs::read(draft()).unwrap());
    sandbox.write("two/b.gguf", std::fs::read(draft()).unwrap());
    inspect(&sandbox, &sandbox.path("two")).failure(&["a.gguf", "b.gguf", "name one"]);
}

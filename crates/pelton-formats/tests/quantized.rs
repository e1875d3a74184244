//! Quantized Hugging Face folders: decoded bit for bit as their formats define them, and refused by name where they
//! contradict themselves. The fixtures are made by `tests/fixtures/make_quantized.py`.

use std::path::{Path, PathBuf};

use pelton_formats::hf::{HfParts, SafetensorsFile, open_parts};
use pelton_formats::{Bytes, ModelFiles, open, write_gguf};
use pelton_quant::DType;
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/quantized")
}

fn names() -> Vec<String> {
    let entries = std::fs::read_dir(root()).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names.len(), 24);
    names
}

/// Canonical names of the rows that a module of the file holds.
fn canonical(name: &str) -> Vec<String> {
    let rest = name.strip_prefix("model.layers.0.").unwrap().strip_suffix(".weight").unwrap();
    let parts: &[&str] = match rest {
        "self_attn.qkv_proj" => &["attn_q", "attn_k", "attn_v"],
        "mlp.gate_up_proj" => &["ffn_gate", "ffn_up"],
        "self_attn.q_proj" => &["attn_q"],
        "self_attn.k_proj" => &["attn_k"],
        "self_attn.v_proj" => &["attn_v"],
        "self_attn.o_proj" => &["attn_output"],
        "mlp.gate_proj" => &["ffn_gate"],
        "mlp.up_proj" => &["ffn_up"],
        "mlp.down_proj" => &["ffn_down"],
        other => panic!("{other}"),
    };
    parts.iter().map(|part| format!("blk.0.{part}.weight")).collect()
}

fn fnv(values: &[f32]) -> String {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = values.iter().flat_map(|v| v.to_le_bytes()).fold(0xcbf2_9ce4_8422_2325, step);
    format!("{hash:016x}")
}

#[test]
fn weights_are_those_of_the_definition_bit_for_bit() {
    for name in names() {
        let files = open(&root().join(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let expected = std::fs::read(root().join(&name).join("expected.json")).unwrap();
        let expected: Value = serde_json::from_slice(&expected).unwrap();
        let expected = expected.as_object().unwrap();
        let mut bytes = 0;
        for (module, want) in expected {
            let mut values = Vec::new();
            for part in canonical(module) {
                let tensor = files.tensors.get(&part).unwrap_or_else(|| panic!("{name}: no {part}"));
                assert!(
                    tensor.as_grouped().is_some() && tensor.blocks().is_none(),
                    "{name}: {part} is {}",
                    tensor.dtype
                );
                values.extend(tensor.stored("model").unwrap().to_f32().unwrap());
                bytes += tensor.byte_len();
            }
            let first: Vec<f32> =
                want["first"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
            assert_eq!(values[..8], first, "{name}: {module}");
            assert_eq!(fnv(&values), want["fnv"], "{name}: {module}");
        }
        let quantization = files.source.quantization.as_deref().unwrap();
        println!("{name}: {quantization}: {} as {}", bytes, files.tensors.get("blk.0.attn_q.weight").unwrap().dtype);
        // What is not quantized stays what it is.
        assert!(files.tensors.get("output.weight").unwrap().dtype.is_float());
    }
}

#[test]
fn types_name_the_form() {
    let dtype =
        |name: &str| open(&root().join(name)).unwrap().tensors.get("blk.0.attn_q.weight").unwrap().dtype.to_string();
    for (name, want) in [
        ("awq-g32", "INT4 asym g32"),
        ("awq-g128", "INT4 asym per row"),
        ("gptq-4-sym", "INT4 per row"),
        ("gptq-4-actorder", "INT4 asym g32"),
        ("gptq-8", "INT8 asym per row"),
        ("gptq-3", "INT3 asym g64"),
        ("bnb-nf4-double", "NF4 g64"),
        ("bnb-fp4", "FP4 g64"),
        ("bnb-int8", "INT8 per row"),
        ("fp8-block", "FP8 per row"),
        ("ct-w4a16-asym", "INT4 asym g32"),
        ("ct-w8a8", "INT8 per row"),
    ] {
        assert_eq!(dtype(name), want, "{name}");
    }
    let down = open(&root().join("fp8-block")).unwrap();
    assert_eq!(down.tensors.get("blk.0.ffn_down.weight").unwrap().dtype.to_string(), "FP8 g128");
}

/// A folder whose tensors can be changed before it is opened.
struct Folder {
    config: Value,
    tensors: Vec<(String, String, Vec<usize>, Vec<u8>)>,
}

impl Folder {
    fn of(name: &str) -> Folder {
        let read = |file: &str| std::fs::read(root().join(name).join(file)).unwrap();
        let config = serde_json::from_slice(&read("config.json")).unwrap();
        let bytes = read("model.safetensors");
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let entries: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        let tensors = entries.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__");
        let tensors = tensors.map(|(name, entry)| {
            let offset = |i: usize| 8 + header + entry["data_offsets"][i].as_u64().unwrap() as usize;
            let shape = entry["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
            (name.clone(), entry["dtype"].as_str().unwrap().into(), shape, bytes[offset(0)..offset(1)].to_vec())
        });
        Folder { config, tensors: tensors.collect() }
    }

    fn tensor(&mut self, name: &str) -> &mut (String, String, Vec<usize>, Vec<u8>) {
        self.tensors.iter_mut().find(|t| t.0.ends_with(name)).unwrap_or_else(|| panic!("{name}"))
    }

    fn quantization(&mut self) -> &mut Value {
        &mut self.config["quantization_config"]
    }

    fn bytes(&self) -> Vec<u8> {
        let (mut entries, mut data) = (serde_json::Map::new(), Vec::new());
        for (name, dtype, shape, bytes) in &self.tensors {
            let range = [data.len(), data.len() + bytes.len()];
            entries.insert(name.clone(), serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": range }));
            data.extend_from_slice(bytes);
        }
        let header = serde_json::to_vec(&entries).unwrap();
        [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
    }

    fn open(&self) -> Result<ModelFiles, pelton_formats::FormatError> {
        let weights = vec![("model.safetensors".to_string(), Bytes::from(self.bytes()))];
        let config_json = serde_json::to_vec(&self.config).unwrap();
        open_parts(HfParts { name: "folder".into(), config_json, weights, ..HfParts::default() })
    }

    /// The error's text, which has to name all of `parts`.
    #[track_caller]
    fn refused(&self, parts: &[&str]) {
        let result = self.open().and_then(|files| {
            files.tensors.iter().try_for_each(|tensor| tensor.stored(files.tensors.file()).map(|_| ()))
        });
        let message = result.expect_err("refused").to_string();
        for part in parts {
            assert!(message.contains(part), "{part} is not in: {message}");
        }
    }
}

#[test]
fn fixtures_pass_through_the_changer_unharmed() {
    for name in names() {
        let files = Folder::of(&name).open().unwrap();
        assert!(files.tensors.iter().all(|tensor| tensor.stored("x").is_ok()), "{name}");
    }
}

#[test]
fn unknown_methods_and_layouts_are_refused_by_name() {
    let refused = |fixture: &str, key: &str, value: Value, parts: &[&str]| {
        let mut folder = Folder::of(fixture);
        folder.quantization()[key] = value;
        folder.refused(parts);
    };
    for method in ["hqq", "quanto", "aqlm", "torchao", "mxfp4", "auto-round"] {
        refused(
            "awq-g32",
            "quant_method",
            method.into(),
            &["config.json", "quantization_config.quant_method", method, "gptq"],
        );
    }
    refused("awq-g32", "version", "gemv".into(), &["quantization_config.version", "gemv", "gemm"]);
    refused("awq-g32", "zero_point", false.into(), &["zero_point", "true"]);
    refused("awq-g32", "bits", 8.into(), &["quantization_config.bits", "8", "4"]);
    refused("gptq-8", "checkpoint_format", "marlin".into(), &["checkpoint_format", "marlin", "gptq_v2"]);
    refused("gptq-8", "bits", 5.into(), &["quantization_config.bits", "5"]);
    refused("gptq-8", "dynamic", serde_json::json!({"-:.*mlp.*": {}}), &["quantization_config.dynamic", "same bits"]);
    refused("gptq-8", "group_size", (-2).into(), &["group_size", "-2"]);
    refused("bnb-nf4", "bnb_4bit_quant_type", "int4".into(), &["bnb_4bit_quant_type", "int4"]);
    refused("fp8-block", "fmt", "e5m2".into(), &["fmt", "e5m2", "e4m3"]);
    refused("fp8-block", "weight_block_size", serde_json::json!([128]), &["weight_block_size", "[128, 128]"]);
    refused("ct-w8a8", "format", "nvfp4-pack-quantized".into(), &["format", "nvfp4-pack-quantized"]);
    refused(
        "ct-w8a8",
        "sparsity_config",
        serde_json::json!({"format": "sparse-24-bitmask"}),
        &["sparsity_config.format", "dense"],
    );
    refused("ct-w8a8", "quant_method", Value::Null, &["quant_method", "no such field"]);
}

#[test]
fn a_configuration_that_contradicts_the_tensors_is_refused() {
    let refused = |fixture: &str, key: &str, value: Value, parts: &[&str]| {
        let mut folder = Folder::of(fixture);
        folder.quantization()[key] = value;
        folder.refused(parts);
    };
    refused("gptq-4-v2", "bits", 8.into(), &["folder/model.safetensors", "contradicts"]);
    refused("gptq-4-v2", "group_size", 32.into(), &["scales", "contradicts the tensors"]);
    refused("gptq-4-v2", "group_size", 48.into(), &["input features", "multiple of the group size 48"]);
    refused("awq-g32", "group_size", 64.into(), &["scales", "contradicts the tensors"]);
    refused("awq-g32", "group_size", 96.into(), &["qweight", "group size 96"]);
    refused("fp8-block", "weight_block_size", serde_json::json!([64, 64]), &["weight_scale_inv", "contradicts"]);
    refused("awq-g32", "quant_method", "fp8".into(), &["AWQ", "quantization_config"].map(|_| "quantization_config"));
    refused("awq-g32", "modules_to_not_convert", serde_json::json!(["o_proj"]), &["o_proj", "leaves alone"]);
    let mut other = Folder::of("ct-w4a16");
    other.quantization()["config_groups"]["group_0"]["weights"]["group_size"] = 32.into();
    other.refused(&["weight_scale", "config_groups", "Group(32)"]);
    let mut float = Folder::of("ct-w8a8");
    float.quantization()["config_groups"]["group_0"]["weights"]["type"] = "float".into();
    float.refused(&["weight_scale", "config_groups"]);
    // Without the configuration, the tensors tell what is missing.
    for fixture in ["awq-g32", "bnb-int8", "fp8-row", "ct-w4a16", "bnb-nf4"] {
        let mut folder = Folder::of(fixture);
        folder.config["quantization_config"] = Value::Null;
        folder.refused(&["folder/model.safetensors", "expected"]);
    }
    // And without the tensors, the configuration does.
    let mut plain = Folder::of("gptq-8");
    plain.tensors.retain(|t| !t.0.contains("layers"));
    plain.refused(&["quantization_config", "GPTQ 8 bit", "do not belong together"]);
}

#[test]
fn missing_parts_are_named() {
    for (fixture, part) in [
        ("gptq-4-actorder", "q_proj.scales"),
        ("gptq-4-actorder", "q_proj.qzeros"),
        ("gptq-4-actorder", "q_proj.g_idx"),
        ("awq-g32", "o_proj.qzeros"),
        ("awq-g32", "o_proj.scales"),
        ("bnb-nf4", "down_proj.weight.absmax"),
        ("bnb-nf4", "down_proj.weight.quant_map"),
        ("bnb-nf4-double", "down_proj.weight.nested_absmax"),
        ("bnb-nf4-double", "down_proj.weight.nested_quant_map"),
        ("bnb-int8", "up_proj.weight"),
        ("ct-w4a16-asym", "up_proj.weight_zero_point"),
        ("ct-w8a8-asym", "up_proj.weight_zero_point"),
        ("ct-w4a16", "up_proj.weight_scale"),
        ("ct-w4a16", "up_proj.weight_shape"),
    ] {
        let mut folder = Folder::of(fixture);
        folder.tensors.retain(|t| !t.0.ends_with(part));
        folder.refused(&["folder/model.safetensors", part, "got nothing"]);
    }
    // Without a scale, the weights are bytes of a type that is no float.
    for (fixture, part) in [("fp8-row", "k_proj.weight_scale"), ("bnb-int8", "k_proj.SCB")] {
        let mut folder = Folder::of(fixture);
        folder.tensors.retain(|t| !t.0.ends_with(part));
        folder.refused(&["k_proj.weight", "not supported"]);
    }
}

#[test]
fn numbers_that_cannot_be_are_refused() {
    let mut outside = Folder::of("gptq-4-actorder");
    outside.tensor("q_proj.g_idx").3[8..12].copy_from_slice(&4i32.to_le_bytes());
    outside.refused(&["q_proj.g_idx", "4 at column 2", "groups 0 to 3"]);
    let mut negative = Folder::of("gptq-4-actorder");
    negative.tensor("q_proj.g_idx").3[..4].copy_from_slice(&(-7i32).to_le_bytes());
    negative.refused(&["q_proj.g_idx", "-7 at column 0"]);
    let mut uneven = Folder::of("ct-w4a16-actorder");
    uneven.tensor("q_proj.weight_g_idx").3.fill(0);
    uneven.refused(&["q_proj.weight_g_idx", "128 columns in group 0", "64 in each"]);
    for (fixture, part, nan) in [
        ("gptq-8", "q_proj.scales", &[0x00, 0x7e][..]),
        ("awq-g32", "o_proj.scales", &[0x00, 0x7c]),
        ("bnb-nf4", "v_proj.weight.absmax", &[0, 0, 0xc0, 0x7f]),
        ("bnb-int8", "v_proj.SCB", &[0, 0, 0x80, 0xff]),
        ("fp8-tensor", "v_proj.weight_scale", &[0, 0, 0xc0, 0x7f]),
        ("ct-w4a16", "v_proj.weight_scale", &[0x80, 0x7f]),
    ] {
        let mut folder = Folder::of(fixture);
        folder.tensor(part).3[..nan.len()].copy_from_slice(nan);
        folder.refused(&["blk.0.attn_", "row 0, group 0", "NaN or infinite", "download it again"]);
    }
    let mut levels = Folder::of("bnb-nf4");
    levels.tensor("v_proj.weight.quant_map").3[..4].copy_from_slice(&(-0.5f32).to_le_bytes());
    levels.refused(&["quant_map", "level 0 as -0.5", "NF4"]);
    let mut shape = Folder::of("ct-w4a16");
    shape.tensor("v_proj.weight_shape").3[8..16].copy_from_slice(&(1i64 << 60).to_le_bytes());
    shape.refused(&["v_proj.weight_packed", "4 or 8 bits"]);
}

#[test]
fn mangled_folders_are_refused_or_read_but_never_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % n.max(1) as u64) as usize
    };
    let shapes =
        [vec![], vec![1], vec![1, 1], vec![0, 4], vec![3, 5], vec![128, 16], vec![usize::MAX, 2], vec![4, 4, 4]];
    let dtypes = ["I32", "F16", "F32", "U8", "I8", "BF16", "F8_E4M3", "I64"];
    let values =
        ["null", "-1", "0", "3", "4", "8", "128", "1e30", "\"gptq\"", "true", "false", "[]", "{}", "[1, -1]", "[[2]]"];
    let (mut opened, mut refused) = (0, 0);
    for name in names() {
        for _ in 0..150 {
            let mut folder = Folder::of(&name);
            for _ in 0..=random(2) {
                let at = random(folder.tensors.len());
                let value: Value = serde_json::from_str(values[random(values.len())]).unwrap();
                let tensor = &mut folder.tensors[at];
                match random(7) {
                    0 => drop(folder.tensors.remove(at)),
                    1 => tensor.1 = dtypes[random(dtypes.len())].into(),
                    2 => tensor.2 = shapes[random(shapes.len())].clone(),
                    3 => {
                        // Another shape with as many bytes.
                        let factor = [2, 3, 4, 8][random(4)];
                        if let [a, b] = tensor.2[..]
                            && b % factor == 0
                        {
                            tensor.2 = vec![a * factor, b / factor];
                        }
                    }
                    4 => {
                        let len = tensor.3.len();
                        for _ in 0..4 {
                            tensor.3[random(len)] = random(256) as u8;
                        }
                    }
                    5 => mangle(folder.quantization(), value, &mut random),
                    _ => {
                        let len = random(tensor.3.len());
                        tensor.3.truncate(len);
                    }
                }
            }
            let read = folder
                .open()
                .and_then(|files| files.tensors.iter().try_for_each(|t| t.stored("x")?.to_f32().map(|_| ())));
            match read {
                Ok(()) => opened += 1,
                Err(e) => {
                    assert!(!e.to_string().is_empty());
                    refused += 1;
                }
            }
        }
    }
    assert!(opened > 100 && refused > 1000, "{opened} opened, {refused} refused");
}

/// Replaces a field somewhere in `object`.
fn mangle(object: &mut Value, value: Value, random: &mut impl FnMut(usize) -> usize) {
    let Some(map) = object.as_object_mut() else { return };
    let keys: Vec<String> = map.keys().cloned().collect();
    let key = &keys[random(keys.len())];
    if map[key].is_object() && random(4) > 0 {
        mangle(&mut map[key], value, random);
    } else {
        map.insert(key.clone(), value);
    }
}

#[test]
fn gguf_files_have_the_decoded_weights() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["gptq-4-sym", "awq-g32", "bnb-nf4-double", "fp8-block"] {
        let (files, path) = (open(&root().join(name)).unwrap(), dir.path().join(format!("{name}.gguf")));
        write_gguf(&files, &path, |_, _| DType::F32).unwrap();
        let written = open(&path).unwrap();
        for tensor in files.tensors.iter() {
            let (want, got) = (tensor.to_f32().unwrap(), written.tensors.get(&tensor.name).unwrap().to_f32().unwrap());
            assert!(want == got, "{name}: {}", tensor.name);
        }
    }
}

#[test]
fn headers_tell_what_the_changer_wrote() {
    let folder = Folder::of("gptq-8");
    let file = SafetensorsFile::parse(folder.bytes().into(), "again").unwrap();
    assert_eq!(file.tensors.len(), folder.tensors.len());
}

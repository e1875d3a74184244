//! The rules of choice, on listings as the hub has them.

use super::*;

fn pick(repo: &str, files: &[&str], quant: Option<&str>) -> Result<Choice, StoreError> {
    let files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
    choose(repo, &files, quant)
}

const GGUF: &[&str] = &[
    ".gitattributes",
    "README.md",
    "imatrix.gguf",
    "m-IQ4_XS.gguf",
    "m-Q4_K_M.gguf",
    "m-Q4_K_S.gguf",
    "m-Q8_0.gguf",
    "m-UD-Q4_K_XL.gguf",
    "mmproj-F16.gguf",
    "big/m-BF16-00001-of-00003.gguf",
    "big/m-BF16-00002-of-00003.gguf",
    "big/m-BF16-00003-of-00003.gguf",
];

#[test]
fn a_named_quantization_is_found_whatever_its_case() {
    for (word, file) in [
        ("q4_k_m", "m-Q4_K_M.gguf"),
        ("IQ4_XS", "m-IQ4_XS.gguf"),
        ("UD-Q4_K_XL", "m-UD-Q4_K_XL.gguf"),
        ("Q4_K_XL", "m-UD-Q4_K_XL.gguf"),
        ("m-Q8_0.gguf", "m-Q8_0.gguf"),
    ] {
        let choice = pick("a/b", GGUF, Some(word)).unwrap();
        assert_eq!(choice.files, [file], "{word}");
        assert_eq!(choice.open.as_deref(), Some(file));
    }
}

#[test]
fn the_default_is_q4_k_m_and_then_q8_0() {
    let choice = pick("a/b", GGUF, None).unwrap();
    assert_eq!(choice.files, ["m-Q4_K_M.gguf"]);
    assert!(choice.reason.contains("the default among") && choice.reason.contains("Q8_0"), "{}", choice.reason);
    let choice = pick("a/b", &["m-F16.gguf", "m-Q8_0.gguf", "m-Q2_K.gguf"], None).unwrap();
    assert_eq!(choice.quant.as_deref(), Some("Q8_0"));
    let choice = pick("a/b", &["m-IQ1_S.gguf"], None).unwrap();
    assert_eq!(choice.quant.as_deref(), Some("IQ1_S"), "the only one is taken whatever it is");
}

#[test]
fn shards_come_together_and_in_order() {
    let choice = pick("a/b", GGUF, Some("bf16")).unwrap();
    assert_eq!(choice.files.len(), 3);
    assert_eq!(choice.open.as_deref(), Some("big/m-BF16-00001-of-00003.gguf"));
    let error = pick("a/b", &["m-BF16-00001-of-00003.gguf", "m-BF16-00003-of-00003.gguf"], None).unwrap_err();
    assert!(matches!(error, StoreError::MissingShards { n_shards: 3, missing: 1, .. }), "{error}");
}

#[test]
fn what_is_missing_or_ambiguous_is_an_error_with_the_list() {
    let error = pick("a/b", GGUF, Some("Q4_K")).unwrap_err().to_string();
    assert!(error.contains("has no Q4_K") && error.contains("Q4_K_S") && error.contains("BF16"), "{error}");
    let error = pick("a/b", &["x-Q8_0.gguf", "y-Q8_0.gguf"], Some("Q8_0")).unwrap_err().to_string();
    assert!(error.contains("x-Q8_0.gguf, y-Q8_0.gguf") && error.contains("ORG/NAME:FILE.gguf"), "{error}");
    let error = pick("a/b", &["m-IQ1_S.gguf", "m-IQ2_XXS.gguf"], None).unwrap_err().to_string();
    assert!(error.contains("default quantization") && error.contains("IQ1_S, IQ2_XXS"), "{error}");
}

const FOLDER: &[&str] = &[
    "LICENSE",
    "chat_template.jinja",
    "config.json",
    "consolidated.safetensors",
    "generation_config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "onnx/model.safetensors",
    "pytorch_model.bin",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "training_args.json",
];

#[test]
fn a_safetensors_folder_is_taken_whole_and_without_pickles_or_copies() {
    let expected = [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ];
    let choice = pick("a/b", FOLDER, None).unwrap();
    assert_eq!(choice.files, expected);
    assert_eq!(choice.open, None);
    let single = pick("a/b", &["config.json", "model.safetensors", "model.fp16.safetensors"], None).unwrap();
    assert_eq!(single.files, ["config.json", "model.safetensors"]);
}

#[test]
fn folders_that_cannot_be_opened_are_refused_by_name() {
    let error = pick("a/b", &["config.json", "pytorch_model.bin"], None).unwrap_err().to_string();
    assert!(error.contains("pickled") && error.contains("pytorch_model.bin"), "{error}");
    let error = pick("a/b", &["model.safetensors"], None).unwrap_err().to_string();
    assert!(error.contains("no config.json"), "{error}");
    let error = pick("a/b", FOLDER, Some("Q8_0")).unwrap_err().to_string();
    assert!(error.contains("safetensors only"), "{error}");
    let cut: Vec<&str> = FOLDER.iter().copied().filter(|file| !file.contains("00001-of")).collect();
    assert!(matches!(pick("a/b", &cut, None), Err(StoreError::MissingShards { missing: 1, .. })));
    assert!(matches!(pick("a/b", &[], None), Err(StoreError::NoModel { .. })));
}

#[test]
fn in_a_mixed_repository_the_name_decides() {
    let files = ["config.json", "model.safetensors", "m-Q4_K_M.gguf"];
    assert_eq!(pick("a/b", &files, None).unwrap().open, None);
    assert!(pick("a/b-GGUF", &files, None).unwrap().open.is_some());
    assert!(pick("a/b", &files, Some("Q4_K_M")).unwrap().open.is_some());
    assert_eq!(pick("a/b-GGUF", &files, Some("SafeTensors")).unwrap().open, None);
}

//! Shapes against what real files hold.

use super::*;

fn parse_error(text: &str) -> String {
    Shape::parse(text).unwrap_err().to_string()
}

#[test]
fn names_and_types_that_are_unknown_are_refused_with_those_that_are_known() {
    let error = parse_error("qwen9-1t");
    assert!(error.contains("qwen9-1t") && error.contains("qwen2.5-7b") && error.contains("llama-3.1-70b"), "{error}");
    let error = parse_error("qwen2.5-7b:Q4_K_X");
    assert!(error.contains("Q4_K_X") && error.contains("Q4_K_M") && error.contains("BF16"), "{error}");
    assert!(parse_error("").contains("config.json"));
    assert!(parse_error(":Q8_0").contains("config.json"));
    assert_eq!(Shape::parse("Qwen2.5-7B:q8_0").unwrap().types().keys().collect::<Vec<_>>(), [&"Q8_0"]);
}

/// Counts of `llama-quantize` (llama.cpp of 2026-10) on files of these shapes.
#[test]
fn mixtures_are_those_of_the_files_that_people_download() {
    let types = |text: &str| {
        let types = Shape::parse(text).unwrap().types();
        types.into_iter().map(|(name, (count, _))| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
    };
    assert_eq!(types("qwen2.5-0.5b:Q4_K_M"), "Q4_K 12, Q5_0 132, Q6_K 12, Q8_0 13");
    assert_eq!(types("qwen2.5-1.5b:Q4_K_M"), "Q4_K 168, Q6_K 29");
    assert_eq!(types("qwen2.5-7b:Q4_K_M"), "Q4_K 169, Q6_K 29");
    assert_eq!(types("qwen2.5-1.5b:Q8_0"), "Q8_0 197");
}

#[test]
fn weights_take_the_bytes_of_the_files() {
    // The published files without their metadata, within a thousandth.
    for (text, bytes) in [("llama-3.1-8b:Q4_K_M", 4.912e9), ("qwen2.5-7b:Q8_0", 8.093e9)] {
        let ours = Shape::parse(text).unwrap().weight_bytes() as f64;
        assert!((ours / bytes - 1.0).abs() < 2e-3, "{text}: {ours}");
    }
}

#[test]
fn what_memory_cannot_hold_is_refused_with_figures() {
    let shape = Shape::parse("qwen2.5-72b:F32").unwrap();
    let error = shape.model(Some(16 << 30)).err().expect("270 GiB do not fit 16").to_string();
    assert!(error.contains("270.") && error.contains("14.4 GiB") && error.contains("smaller"), "{error}");
}

#[test]
fn a_config_json_is_a_shape_too_and_loads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let config = r#"{"model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 256, "vocab_size": 300,
        "max_position_embeddings": 128, "tie_word_embeddings": true}"#;
    std::fs::write(&path, config).unwrap();
    for mixture in MIXTURES {
        let shape = Shape::parse(&format!("{}:{}", path.display(), mixture.name)).unwrap();
        let model = shape.model(None).unwrap();
        assert_eq!(model.parameters(), shape.parameters());
        let logits = crate::Logits::compute(&model, &[1, 2, 3], &crate::Options::default(), false).unwrap();
        assert!(logits.data.iter().all(|v| v.is_finite()), "{}", mixture.name);
    }
    std::fs::write(&path, "{}").unwrap();
    assert!(parse_error(path.to_str().unwrap()).contains("model_type"));
}

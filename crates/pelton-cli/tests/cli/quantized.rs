//! Quantized folders and `--quantization`, as a user sees them.

use crate::models::{copy_of, fixture, replace};
use crate::pelton::{Sandbox, arg};

#[test]
fn inspect_names_the_quantization() {
    let folder = fixture("quantized/awq-g32");
    let text = Sandbox::new().run(&["inspect", arg(&folder)]).ok().stdout;
    for part in ["quantized   AWQ 4 bit, group size 32", "bits a weight)", "INT4 asym g32"] {
        assert!(text.contains(part), "`{part}` is missing: {text}");
    }
    let object = Sandbox::new().run(&["inspect", "--json", arg(&folder)]).ok().json();
    assert_eq!(object["quantization"], "AWQ 4 bit, group size 32");
    let matrices = object["tensors"].as_array().unwrap().iter().find(|g| g["role"] == "blk.ffn_up.weight").unwrap();
    assert_eq!(matrices["dtype"], "INT4 asym g32");
}

#[test]
fn logits_are_computed_from_quantized_folders_and_while_loading() {
    let logits = |model: &str, more: &[&str]| {
        let sandbox = Sandbox::new();
        let model = fixture(model);
        sandbox.write("ids.json", "[5, 6, 7]");
        let all = [&["eval", "logits", arg(&model), "--ids", "ids.json", "--out", "out.safetensors"], more].concat();
        sandbox.run(&all).ok();
        std::fs::read(sandbox.path("out.safetensors")).unwrap()
    };
    assert_eq!(logits("quantized/gptq-4-actorder", &[]), logits("quantized/gptq-4-actorder", &["--threads", "1"]));
    let plain = logits("qwen3", &[]);
    assert_eq!(plain, logits("qwen3", &["--quantization", "none"]));
    for quantization in ["4bit", "5bit", "6bit", "8bit", "fp8", "int8", "nf4"] {
        assert_ne!(plain, logits("qwen3", &["--quantization", quantization]), "{quantization}");
    }
}

#[test]
fn what_cannot_be_quantized_is_a_usage_error() {
    let sandbox = Sandbox::new();
    sandbox.run(&["run", "hi", "--quantization", "4bit"]).usage(&["--quantization 4bit", "quantized already"]);
    sandbox.run(&["run", "hi", "--quantization", "3bit"]).usage(&["3bit", "4bit", "nf4"]);
}

#[test]
fn unknown_methods_are_refused_by_name() {
    let sandbox = Sandbox::new();
    let folder = copy_of("quantized/gptq-8", &sandbox);
    replace(&folder.join("config.json"), "\"quant_method\": \"gptq\"", "\"quant_method\": \"hqq\"");
    let words = ["config.json", "quantization_config.quant_method", "hqq", "compressed-tensors"];
    sandbox.run(&["inspect", arg(&folder)]).failure(&words);
}

//! A GGUF file from a stranger: opened as a model and as a tokenizer, small tensors decoded.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = pelton_formats::open_tokenizer_bytes(data.to_vec(), "fuzz.gguf");
    if let Ok(files) = pelton_formats::open_bytes(data.to_vec(), "fuzz.gguf") {
        files.config.validate().expect("a configuration that a reader returned is valid");
        for tensor in files.tensors.iter().filter(|t| t.elements() <= 1 << 16) {
            tensor.to_f32().expect("a tensor that a reader returned decodes");
        }
    }
});

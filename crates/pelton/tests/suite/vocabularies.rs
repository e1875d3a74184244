//! Real vocabularies through [`Model::open_text`]: ids equal to the reference's on every text. Reads the shared data;
//! without it, says so and does nothing.

use std::path::{Path, PathBuf};

use pelton::{Model, ModelRef, Special};

fn shared() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/vocab");
    if !folder.is_dir() {
        println!("no ../shared/data/vocab beside the repository: vocabularies skipped");
        return None;
    }
    Some(folder)
}

fn check(folder: &Path, name: &str) {
    let file = folder.join(format!("ggml-vocab-{name}.gguf"));
    let text = Model::open_text(&ModelRef::Path(file.clone()), None).unwrap();
    let read = |extra: &str| std::fs::read_to_string(format!("{}{extra}", file.display())).unwrap();
    let (inputs, outputs) = (read(".inp"), read(".out"));
    let expected: Vec<Vec<u32>> =
        outputs.lines().map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect()).collect();
    let inputs: Vec<&str> = inputs.split("\n__ggml_vocab_test__\n").take(expected.len()).collect();
    assert_eq!((inputs.len(), expected.len()), (46, 46));
    let wrong: Vec<_> = inputs
        .iter()
        .zip(&expected)
        .filter(|(text_in, ids)| &text.tokenizer.encode(text_in, Special::AsText) != *ids)
        .collect();
    println!("| {name} | {} tokens | {} of {} texts |", text.tokenizer.vocab_size(), 46 - wrong.len(), 46);
    assert!(wrong.is_empty(), "{name}: {wrong:?}");
}

#[test]
fn every_text_has_the_reference_ids() {
    let Some(folder) = shared() else { return };
    for name in ["gpt-2", "llama-spm", "qwen2"] {
        check(&folder, name);
    }
}

#[test]
fn a_vocabulary_is_no_model() {
    let Some(folder) = shared() else { return };
    let file = folder.join("ggml-vocab-gpt-2.gguf");
    let Err(error) = Model::open(&ModelRef::Path(file), None) else { panic!("it has no weights") };
    assert!(error.to_string().contains("ggml-vocab-gpt-2"), "{error}");
}

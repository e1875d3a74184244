//! The models that the tests run: the checked-in fixtures and the embedded weights, whole or damaged.

use std::path::{Path, PathBuf};

use pelton::{Model, ModelRef};

use crate::pelton::Sandbox;

/// The root of the repository.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// A folder of `tests/fixtures`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    repository().join("tests/fixtures").join(name)
}

/// The embedded draft as a file: small, and with a tokenizer and a chat template.
pub(crate) fn draft() -> PathBuf {
    repository().join("models/pelton-draft-q8_0.gguf")
}

/// A fixture's config and weights, copied into the sandbox as `model`, to be damaged.
pub(crate) fn copy_of(name: &str, sandbox: &Sandbox) -> PathBuf {
    for file in ["config.json", "model.safetensors"] {
        sandbox.write(&format!("model/{file}"), std::fs::read(fixture(name).join(file)).unwrap());
    }
    sandbox.path("model")
}

/// Replaces text in a file, which must contain it.
pub(crate) fn replace(file: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{from} is not in {}", file.display());
    std::fs::write(file, text.replace(from, to)).unwrap();
}

/// The embedded model with the first of its layers alone and F16 matrices, as `small.gguf` in the sandbox: it has a
/// tokenizer and rows that every type's blocks divide.
pub(crate) fn small(sandbox: &Sandbox) -> PathBuf {
    small_of_context(sandbox, 1024)
}

/// The same with a context of so many tokens.
pub(crate) fn small_of_context(sandbox: &Sandbox, context: usize) -> PathBuf {
    use pelton_quantize::{Mix, Plan, Types, write};
    let mut files = Model::open(&ModelRef::Embedded, None).unwrap().files;
    files.config.max_context = context;
    files.config.n_layers = 1;
    files.config.sliding_window.truncate(1);
    let mut plan = Plan::new(&files, &Types::Mix(Mix::F16), None).unwrap();
    plan.tensors.retain(|t| !t.source.name().starts_with("blk.") || t.source.name().starts_with("blk.0."));
    let path = sandbox.path("small.gguf");
    write(&files, &mut plan, &path, 2, &mut |_| ()).unwrap();
    path
}

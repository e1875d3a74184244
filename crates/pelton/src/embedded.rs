//! The model that every Pelton carries: replace the file in `models/`, and the line here.

/// The default model: a small one trained for this project to write documentation (see `models/README.md`).
pub(crate) const DEFAULT: &[u8] = include_bytes!("../../../models/pelton-tiny-q8_0.gguf");
/// Its name, where a model's name is expected.
pub const DEFAULT_NAME: &str = "pelton-tiny";

/// Its draft: smaller still, with the same vocabulary.
pub(crate) const DRAFT: &[u8] = include_bytes!("../../../models/pelton-draft-q8_0.gguf");
/// The draft's name.
pub const DRAFT_NAME: &str = "pelton-draft";

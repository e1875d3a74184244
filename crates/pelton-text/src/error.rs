//! The one error type of this crate. Invariant: each message names the field, what was expected, and
//! where it helps what to do.

/// What can go wrong between text and tokens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A tokenizer file could not be read.
    #[error("{file}: {detail}")]
    File {
        /// Which file (`tokenizer.json`, `tokenizer_config.json`).
        file: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// A field of a GGUF vocabulary is inconsistent.
    #[error("{field}: {detail}")]
    Vocab {
        /// The GGUF metadata key.
        field: &'static str,
        /// What was found and what was expected.
        detail: String,
    },
    /// A kind of tokenizer, pre-tokenizer or decoder that this crate does not implement.
    #[error("{what} `{name}` is not supported; supported: {supported}")]
    Unsupported {
        /// The kind of thing.
        what: &'static str,
        /// The name that the file gives.
        name: String,
        /// What would have been accepted.
        supported: String,
    },
    /// The chat template is not valid Jinja.
    #[error("chat template does not parse: {0}")]
    TemplateSyntax(String),
    /// The chat template refused the conversation by calling `raise_exception`.
    #[error("the model's chat template refuses this conversation: {0}")]
    TemplateRaised(String),
    /// The chat template failed on this conversation.
    #[error("chat template failed: {0}")]
    TemplateRender(String),
    /// The chat template ran past its limit of steps or of output.
    #[error("chat template stopped: it exceeded {limit}")]
    TemplateLimit {
        /// The limit, in words.
        limit: String,
    },
}

impl TextError {
    pub(crate) fn file(file: &'static str, detail: impl std::fmt::Display) -> Self {
        Self::File { file, detail: detail.to_string() }
    }

    pub(crate) fn vocab(field: &'static str, detail: impl Into<String>) -> Self {
        Self::Vocab { field, detail: detail.into() }
    }
}

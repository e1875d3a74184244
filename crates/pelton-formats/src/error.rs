//! What can be wrong with a model's files.
//!
//! Invariant: each message names the file (or the field that a caller built), the tensor, key or field, what was
//! found, what was expected, and what to do.

use std::path::Path;

/// Why a model's files could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The operating system refused.
    #[error("{file}: cannot {action}: {source}")]
    Io {
        /// The file or folder.
        file: String,
        /// What was tried, such as `open`.
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file's structure is broken.
    #[error("{file}: {what}: got {got}, expected {want}")]
    Malformed {
        /// The file.
        file: String,
        /// Which part of it.
        what: String,
        /// What was found.
        got: String,
        /// What was expected, or what to do.
        want: String,
    },
    /// A metadata key or a field of a JSON file has a wrong type or value.
    #[error("{file}: key `{key}`: got {got}, expected {want}")]
    Key {
        /// The file.
        file: String,
        /// The key.
        key: String,
        /// What was found.
        got: String,
        /// What was expected.
        want: String,
    },
    /// A tensor's description or content is wrong.
    #[error("{file}: tensor `{tensor}`: got {got}, expected {want}")]
    Tensor {
        /// The file.
        file: String,
        /// The tensor, by the name in the file.
        tensor: String,
        /// What was found.
        got: String,
        /// What was expected, or what to do.
        want: String,
    },
    /// A configuration that cannot be right.
    #[error("{field}: got {got}, expected {want}")]
    Config {
        /// The field.
        field: String,
        /// Its value.
        got: String,
        /// What was expected.
        want: String,
    },
    /// Any other error, in the context of a file.
    #[error("{file}: {source}")]
    InFile {
        /// The file.
        file: String,
        /// What is wrong with it.
        #[source]
        source: Box<FormatError>,
    },
    /// An architecture that Pelton does not run.
    #[error("{file}: architecture `{arch}` is not supported; supported: {supported}")]
    UnsupportedArch {
        /// The file.
        file: String,
        /// The name that the file gives.
        arch: String,
        /// The names that would do, separated by commas.
        supported: String,
    },
    /// A tensor type that Pelton does not decode.
    #[error("{file}: tensor `{tensor}` has type {dtype}, which is not supported; supported: {supported}")]
    UnsupportedType {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its type's name.
        dtype: String,
        /// The types that would do, separated by commas.
        supported: String,
    },
    /// A file that belongs to a set is not there.
    #[error("{file}: {missing} is missing; put it beside the other files of this model")]
    MissingFile {
        /// The file or folder that asks for it.
        file: String,
        /// The missing file.
        missing: String,
    },
}

impl FormatError {
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> FormatError {
        let file = path.display().to_string();
        move |source| FormatError::Io { file, action, source }
    }

    pub(crate) fn malformed(
        file: &str,
        what: impl Into<String>,
        got: impl Into<String>,
        want: impl Into<String>,
    ) -> FormatError {
        FormatError::Malformed { file: file.into(), what: what.into(), got: got.into(), want: want.into() }
    }

    pub(crate) fn key(
        file: &str,
        key: impl Into<String>,
        got: impl Into<String>,
        want: impl Into<String>,
    ) -> FormatError {
        FormatError::Key { file: file.into(), key: key.into(), got: got.into(), want: want.into() }
    }

    pub(crate) fn tensor(
        file: &str,
        tensor: impl Into<String>,
        got: impl Into<String>,
        want: impl Into<String>,
    ) -> FormatError {
        FormatError::Tensor { file: file.into(), tensor: tensor.into(), got: got.into(), want: want.into() }
    }

    /// Names the file of an error that does not name one yet.
    pub(crate) fn in_file(self, file: &str) -> FormatError {
        match self {
            FormatError::Config { .. } => FormatError::InFile { file: file.into(), source: Box::new(self) },
            other => other,
        }
    }
}

/// A value from a file, shortened so that an error message stays one line.
pub(crate) fn brief(text: &str) -> String {
    const MAX_CHARS: usize = 120;
    let mut out: String = text.chars().take(MAX_CHARS).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_CHARS).is_some() {
        out.push('…');
    }
    out
}

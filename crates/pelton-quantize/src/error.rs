//! What can be wrong with making a model.
//!
//! Invariant: each message names the file or tensor, what was found and what to do.

use std::path::Path;

use pelton_formats::FormatError;

/// Why a quantized model could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// The source cannot be read, or GGUF cannot say what it says.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The model cannot be run.
    #[error(transparent)]
    Run(#[from] pelton::Error),
    /// The operating system refused.
    #[error("{file}: cannot {action}: {source}{advice}")]
    Io {
        /// The file.
        file: String,
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// A tensor that cannot be encoded.
    #[error("tensor `{tensor}`: {problem}")]
    Tensor {
        /// The tensor, by its name in the file.
        tensor: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An importance matrix that cannot be read or does not fit the model.
    #[error("{file}: {problem}")]
    Imatrix {
        /// The file.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A call that cannot succeed as it was made.
    #[error("{0}")]
    Usage(String),
}

impl QuantizeError {
    pub(crate) fn io(file: &Path, action: &'static str) -> impl Fn(std::io::Error) -> QuantizeError + use<> {
        let file = file.display().to_string();
        move |source| {
            use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
            let advice = match source.kind() {
                StorageFull | QuotaExceeded | FileTooLarge => {
                    "; what was written is kept: free some space and run the same command again, it goes on there"
                }
                _ => "",
            };
            QuantizeError::Io { file: file.clone(), action, source, advice }
        }
    }

    pub(crate) fn tensor(tensor: &str, problem: impl Into<String>) -> QuantizeError {
        QuantizeError::Tensor { tensor: tensor.into(), problem: problem.into() }
    }
}

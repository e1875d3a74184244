//! One error for everything that can go wrong between options and an answer.

use pelton_backend::BackendError;
use pelton_cpu::CpuError;
use pelton_engine::{EngineError, SubmitError};
use pelton_formats::FormatError;
use pelton_model::LoadError;
use pelton_sample::GrammarError;
use pelton_store::StoreError;
use pelton_text::TextError;

/// Whether the caller asked for something impossible or something failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// An option or a name is wrong: the same call cannot succeed.
    Usage,
    /// A file, the memory or the network is at fault.
    Failure,
}

/// Why a model could not be opened, loaded or run. Messages name the file, tensor or option and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model's files.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A tokenizer or a chat template.
    #[error("{name}: {source}")]
    Text {
        /// The model.
        name: String,
        /// What is wrong.
        source: TextError,
    },
    /// The model store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Loading onto the backend.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The backend.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The CPU backend: kernels that were asked for and are not there.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A request.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// A grammar.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
    /// Something that the options ask for and that cannot be had.
    #[error("{0}")]
    Usage(String),
    /// What the options ask for does not fit the memory that may be used.
    #[error("{0}")]
    Memory(String),
    /// Anything else, in words.
    #[error("{0}")]
    Failure(String),
}

impl Error {
    /// Usage or failure: the binary's exit code follows it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Usage(_) | Error::Memory(_) | Error::Submit(_) | Error::Cpu(_) | Error::Grammar(_) => {
                ErrorKind::Usage
            }
            _ => ErrorKind::Failure,
        }
    }

    pub(crate) fn text(name: &str) -> impl Fn(TextError) -> Error {
        move |source| Error::Text { name: name.to_string(), source }
    }
}

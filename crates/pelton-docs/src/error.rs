//! Errors of the job. Invariant: each names the path or option, and says what to do where that is not plain.

use std::io;
use std::path::{Path, PathBuf};

/// Why the job stopped.
#[derive(Debug, thiserror::Error)]
pub enum DocsError {
    /// A path cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A path cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The walk itself failed.
    #[error("cannot walk {}: {reason}", root.display())]
    Walk {
        /// The folder.
        root: PathBuf,
        /// What the walker said.
        reason: String,
    },
    /// A file was named that cannot be documented.
    #[error("{} cannot be documented ({reason}); supported are Rust, Python, JavaScript, TypeScript, Go, Java, C and C++ in UTF-8", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: &'static str,
    },
    /// `--out` does not suit the format.
    #[error("--out {}: {reason}", path.display())]
    Out {
        /// The path given.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: &'static str,
    },
    /// The context cannot hold a prompt and its answer.
    #[error(
        "a context of {context} tokens cannot hold a prompt and {max_tokens} tokens of answer; lower the answer's limit or raise the context"
    )]
    Context {
        /// The context in tokens.
        context: usize,
        /// The most tokens of an answer.
        max_tokens: usize,
    },
    /// The model stopped the job.
    #[error("the model stopped after {done} of {total} items: {reason}{kept}")]
    Model {
        /// Items finished before.
        done: usize,
        /// All items for the model.
        total: usize,
        /// What it said.
        reason: String,
        /// Where the finished part lies, in words that follow the reason; may be empty.
        kept: String,
    },
}

impl DocsError {
    pub(crate) fn read(path: &Path, source: io::Error) -> Self {
        Self::Read { path: path.to_owned(), source }
    }

    pub(crate) fn write(path: &Path, source: io::Error) -> Self {
        Self::Write { path: path.to_owned(), source }
    }
}

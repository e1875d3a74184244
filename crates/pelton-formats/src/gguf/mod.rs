//! GGUF files (versions 2 and 3, little endian): reader, typed metadata, configuration, writer.
//!
//! Source: the GGUF specification in ggml's `docs/gguf.md`, and the constants of the PyPI package `gguf`.
//! Invariant: what [`GgufFile::parse`] returns is checked; counts, offsets and lengths lie inside the file.

mod config;
mod cursor;
mod metadata;
mod open;
mod read;
mod tokenizer;
mod write;

pub use metadata::{Array, Metadata, Value};
pub use read::{GgufFile, TensorInfo};
pub use write::{Body, Writer};

pub(crate) use config::{NORM_SUFFIX, PELTON_EOS_KEY};
pub(crate) use open::{open_path, open_single, shard_of, text_from_bytes, text_from_path};

/// The first four bytes of a GGUF file.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// Alignment of tensor data where a file does not say.
pub const DEFAULT_ALIGNMENT: usize = 32;

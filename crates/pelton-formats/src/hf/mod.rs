//! Hugging Face folders: `config.json`, safetensors (one file, or several by an index), and the files beside them.
//!
//! Invariant: names of files that come from a file are plain names in the same folder.

mod config;
mod fields;
mod folder;
mod generation;
mod quantized;
mod rope;
mod safetensors;

pub use folder::{HfParts, open_parts, read_config};
pub use safetensors::{SafetensorsFile, SafetensorsInfo};

pub(crate) use folder::{has_weights, no_weights, open_folder, text_from_folder};

//! GGUF and safetensors files, read into one model configuration and named tensors.
//!
//! [`open`] takes a path (a `.gguf` file, any shard of a sharded set, a Hugging Face folder, or a folder that
//! holds one GGUF set) and returns [`ModelFiles`]: a validated [`ModelConfig`], [`Tensors`] under canonical
//! names, the tokenizer's files, chat templates and sampling defaults. [`open_bytes`] does the same for a GGUF
//! file in memory, [`hf::open_parts`] for a Hugging Face folder in memory, and [`write_gguf`] goes back to a file.
//!
//! # Canonical names
//!
//! They are GGUF's, with two differences, so that the model crate sees one form only:
//!
//! | tensor | shape |
//! | --- | --- |
//! | `token_embd.weight` | `[vocab_size, hidden]` |
//! | `output.weight` (absent where the head is the embedding) | `[vocab_size, hidden]` |
//! | `output_norm.weight` | `[hidden]` |
//! | `blk.N.attn_norm.weight`, `blk.N.ffn_norm.weight` | `[hidden]` |
//! | `blk.N.attn_q.weight` (`.bias`) | `[q_dim, hidden]` (`[q_dim]`) |
//! | `blk.N.attn_k.weight`, `blk.N.attn_v.weight` (`.bias`) | `[kv_dim, hidden]` (`[kv_dim]`) |
//! | `blk.N.attn_output.weight` (`.bias`) | `[hidden, q_dim]` (`[hidden]`) |
//! | `blk.N.attn_q_norm.weight`, `blk.N.attn_k_norm.weight` | `[head_dim]` |
//! | `blk.N.ffn_gate.weight`, `blk.N.ffn_up.weight` | `[ffn, hidden]` |
//! | `blk.N.ffn_down.weight` | `[hidden, ffn]` |
//! | `blk.N.post_attention_norm.weight`, `blk.N.post_ffw_norm.weight` (Gemma 2) | `[hidden]` |
//! | `blk.N.ffn_gate_inp.weight` (router) | `[n_experts, hidden]` |
//! | `blk.N.ffn_gate.E.weight`, `blk.N.ffn_up.E.weight` | `[expert_ffn, hidden]` |
//! | `blk.N.ffn_down.E.weight` | `[hidden, expert_ffn]` |
//!
//! The differences: fused tensors (`attn_qkv`, Phi-3's `ffn_up` of twice the width) are presented as row slices
//! of the mapped file, and so is each expert of a stacked `ffn_*_exps`. Rows of Q and K that a file stores for
//! interleaved rotary pairs are put back in half-split order, whole quantized rows at a time.
//!
//! Matrices of quantized Hugging Face folders (AWQ, GPTQ, bitsandbytes, FP8, compressed-tensors, as `quantization_config`
//! names them) are [`pelton_quant::Grouped`], see [`Tensor::as_grouped`]: read in place, a few rows at a time.
//!
//! Invariant: nothing in here trusts a number from a file before it is checked against the file's size, and a
//! [`Tensor`]'s bytes are exactly as long as its type and shape say.

#![deny(unsafe_code)]

mod bytes;
pub mod config;
mod convert;
mod convert_meta;
mod convert_tokenizer;
mod error;
pub mod gguf;
pub mod hf;
pub mod in_situ;
mod mix;
mod mmap;
mod model;
mod names;
mod rope;
mod shape;
mod tensors;

pub use bytes::Bytes;
pub use config::{Activation, Arch, GenerationDefaults, ModelConfig, MoeConfig, RopeConfig, RopeScaling};
pub use convert::{
    Conversion, ConvertedTensor, OutputTensor, describe_output, output_tensors, write_gguf, write_gguf_sharded,
};
pub use error::FormatError;
pub use mix::{Mix, fallback};
pub use model::{
    GgufTokenizer, ModelFiles, Source, SourceKind, TextFiles, TokenizerFiles, open, open_bytes, open_tokenizer,
    open_tokenizer_bytes,
};
pub use tensors::{Tensor, Tensors};

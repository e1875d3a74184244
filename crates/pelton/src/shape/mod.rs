//! Models of a published shape with random weights, made in memory: people measure before they download.
//!
//! All tensors of a type are cut from one block of random bytes that is as long as the longest of them, so no more
//! than that is held beside the packed weights; packing copies each tensor to memory of its own, so every step reads
//! as many different bytes as with a real file. Invariant: names, shapes and types of the tensors are those of the
//! file that `llama-quantize` would make.

pub(crate) mod blocks;
mod mixture;
mod published;

use std::collections::BTreeMap;
use std::path::Path;

use mixture::{MIXTURES, Mixture, Role};
use pelton_formats::{Arch, Bytes, ModelConfig, ModelFiles, Source, SourceKind, Tensor, Tensors, TokenizerFiles};
use pelton_quant::DType;

use crate::{Error, Model};

/// Largest `config.json` that is read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// A model's shape and the types of its weights.
#[derive(Clone, Debug)]
pub struct Shape {
    name: String,
    config: ModelConfig,
    mixture: Mixture,
}

/// A tensor of a shape.
struct Part {
    name: String,
    dtype: DType,
    dims: Vec<usize>,
}

impl Part {
    fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    fn bytes(&self) -> usize {
        self.elements() / self.dtype.block_len() * self.dtype.block_bytes()
    }
}

impl Shape {
    /// The type of the weights where none is named.
    pub const DEFAULT_TYPES: &'static str = "Q4_K_M";

    /// Reads `NAME[:TYPES]`: a published shape or the path of a `config.json`, and a mixture of types such as
    /// `Q4_K_M` (the default) or `Q8_0`.
    ///
    /// # Errors
    /// [`Error::Usage`] for a name or a type that is unknown, with those that are known; [`Error`] for a
    /// `config.json` that does not describe a model that Pelton runs.
    pub fn parse(text: &str) -> Result<Shape, Error> {
        let (model, types) = match text.rsplit_once(':') {
            // What follows the last colon of a path is a type only if it is no part of the path.
            Some((model, types)) if !types.contains(['/', '\\']) => (model, types),
            _ => (text, Shape::DEFAULT_TYPES),
        };
        let mixture = Mixture::from_name(types).ok_or_else(|| {
            let known: Vec<_> = MIXTURES.iter().map(|m| m.name).collect();
            Error::Usage(format!("--shape {text}: no type `{types}`; choose among {}", known.join(", ")))
        })?;
        let lower = model.to_lowercase();
        let (json, file) = match published::config_json(&lower) {
            Some(json) => (json.to_string().into_bytes(), lower.clone()),
            None => (read_config(model)?, model.to_string()),
        };
        let config = pelton_formats::hf::read_config(&json, &file, &lower)?;
        Ok(Shape { name: format!("{} {} (random)", config.name, mixture.name), config, mixture })
    }

    /// The names of the published shapes.
    pub fn names() -> Vec<&'static str> {
        published::names()
    }

    /// The decoder's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Parameters of all tensors.
    pub fn parameters(&self) -> usize {
        self.parts().iter().map(Part::elements).sum()
    }

    /// Bytes of all weights, as their file would hold them.
    pub fn weight_bytes(&self) -> usize {
        self.parts().iter().map(Part::bytes).fold(0, usize::saturating_add)
    }

    /// Bytes that [`Shape::model`] holds itself: the longest tensor of each type.
    pub fn source_bytes(&self) -> usize {
        longest(&self.parts()).values().fold(0, |sum, &bytes| sum.saturating_add(bytes))
    }

    /// How many matrices each type has, and their bytes, by the type's name.
    pub fn types(&self) -> BTreeMap<&'static str, (usize, usize)> {
        let mut types = BTreeMap::new();
        for part in self.parts().iter().filter(|p| p.dims.len() == 2) {
            let (count, bytes) = types.entry(part.dtype.name()).or_insert((0, 0));
            *count += 1;
            *bytes += part.bytes();
        }
        types
    }

    /// Makes the model. It has no tokenizer.
    ///
    /// # Errors
    /// [`Error::Usage`] where its weights and what else it takes exceed `free` bytes of memory.
    pub fn model(&self, free: Option<u64>) -> Result<Model, Error> {
        let (weights, source) = (self.weight_bytes(), self.source_bytes());
        let needed = weights.saturating_add(source);
        if free.is_some_and(|free| needed as u64 > free / 10 * 9) {
            let gib = |bytes: f64| bytes / f64::from(1 << 30);
            return Err(Error::Usage(format!(
                "{} does not fit: {:.1} GiB of weights (and {:.1} GiB to make them from), of {:.1} GiB that may be \
                 used; choose a smaller shape or smaller types",
                self.name,
                gib(weights as f64),
                gib(source as f64),
                gib(free.unwrap_or(0) as f64 * 0.9),
            )));
        }
        let parts = self.parts();
        let pools: BTreeMap<DType, Bytes> = longest(&parts)
            .into_iter()
            .map(|(dtype, bytes)| (dtype, blocks::random_blocks(dtype, bytes / dtype.block_bytes()).into()))
            .collect();
        let mut tensors = Tensors::new(&self.name);
        for part in parts {
            let bytes = match part.dims.len() {
                1 => self.vector(&part),
                _ => pools[&part.dtype].slice(0..part.bytes()),
            };
            tensors.insert(Tensor::new(&self.name, &part.name, part.dtype, part.dims, bytes)?)?;
        }
        let source = Source {
            kind: SourceKind::Gguf { version: 3 },
            name: self.name.clone(),
            files: Vec::new(),
            total_bytes: weights as u64,
            quantization: None,
            metadata: Vec::new(),
            unused: Vec::new(),
        };
        let files = ModelFiles {
            config: self.config.clone(),
            tensors,
            tokenizer: TokenizerFiles::Missing,
            chat_templates: None,
            generation: pelton_formats::GenerationDefaults::default(),
            source,
        };
        Ok(Model { files, name: self.name.clone(), tokenizer: None })
    }

    /// Norms are 1, biases small.
    fn vector(&self, part: &Part) -> Bytes {
        let norm = 1.0 - self.config.norm_weight_offset;
        let value = |i: usize| if part.name.ends_with(".bias") { (i % 7) as f32 * 0.01 - 0.03 } else { norm };
        (0..part.elements()).flat_map(|i| value(i).to_le_bytes()).collect::<Vec<u8>>().into()
    }

    /// Every tensor, in the order of a file.
    fn parts(&self) -> Vec<Part> {
        let c = &self.config;
        let mut list = List { shape: self, parts: Vec::new() };
        list.matrix("token_embd".into(), Role::Embedding, 0, [c.vocab_size, c.hidden]);
        for i in 0..c.n_layers {
            list.layer(i);
        }
        list.vector("output_norm.weight".into(), c.hidden);
        if !c.tied_embeddings {
            list.matrix("output".into(), Role::Output, 0, [c.vocab_size, c.hidden]);
        }
        list.parts
    }
}

/// The tensors of a shape, as they are listed.
struct List<'a> {
    shape: &'a Shape,
    parts: Vec<Part>,
}

impl List<'_> {
    fn matrix(&mut self, name: String, role: Role, layer: usize, dims: [usize; 2]) {
        let dtype = self.shape.mixture.dtype(&self.shape.config, role, layer, dims[1]);
        self.parts.push(Part { name: name + ".weight", dtype, dims: dims.to_vec() });
    }

    fn vector(&mut self, name: String, len: usize) {
        self.parts.push(Part { name, dtype: DType::F32, dims: vec![len] });
    }

    fn layer(&mut self, i: usize) {
        let c = &self.shape.config;
        let name = |part: &str| format!("blk.{i}.{part}");
        self.vector(name("attn_norm.weight"), c.hidden);
        // Phi-3's files hold Q, K and V as one matrix.
        let of = |role| if c.arch == Arch::Phi3 { Role::FusedQkv } else { role };
        let projections = [
            ("attn_q", Role::Plain, c.q_dim()),
            ("attn_k", Role::Plain, c.kv_dim()),
            ("attn_v", Role::Value, c.kv_dim()),
        ];
        for (part, role, rows) in projections {
            self.matrix(name(part), of(role), i, [rows, c.hidden]);
            if c.arch == Arch::Qwen2 {
                self.vector(name(part) + ".bias", rows);
            }
        }
        if c.qk_norm {
            self.vector(name("attn_q_norm.weight"), c.head_dim);
            self.vector(name("attn_k_norm.weight"), c.head_dim);
        }
        self.matrix(name("attn_output"), Role::AttentionOutput, i, [c.hidden, c.q_dim()]);
        if c.post_norms {
            self.vector(name("post_attention_norm.weight"), c.hidden);
            self.vector(name("post_ffw_norm.weight"), c.hidden);
        }
        self.vector(name("ffn_norm.weight"), c.hidden);
        match &c.moe {
            Some(moe) if moe.moe_layers[i] => {
                // Routers are F32 in all files.
                let dims = vec![moe.n_experts, c.hidden];
                self.parts.push(Part { name: name("ffn_gate_inp.weight"), dtype: DType::F32, dims });
                for e in 0..moe.n_experts {
                    self.matrix(name(&format!("ffn_gate.{e}")), Role::Expert, i, [moe.expert_ffn, c.hidden]);
                    self.matrix(name(&format!("ffn_up.{e}")), Role::Expert, i, [moe.expert_ffn, c.hidden]);
                    self.matrix(name(&format!("ffn_down.{e}")), Role::Down, i, [c.hidden, moe.expert_ffn]);
                }
            }
            _ => {
                self.matrix(name("ffn_gate"), Role::Plain, i, [c.ffn, c.hidden]);
                self.matrix(name("ffn_up"), Role::Plain, i, [c.ffn, c.hidden]);
                self.matrix(name("ffn_down"), Role::Down, i, [c.hidden, c.ffn]);
            }
        }
    }
}

/// Bytes of the longest matrix of each type.
fn longest(parts: &[Part]) -> BTreeMap<DType, usize> {
    let mut out = BTreeMap::new();
    for part in parts.iter().filter(|p| p.dims.len() == 2) {
        let longest = out.entry(part.dtype).or_insert(0);
        *longest = part.bytes().max(*longest);
    }
    out
}

fn read_config(path: &str) -> Result<Vec<u8>, Error> {
    let file = Path::new(path);
    if !file.is_file() {
        let known = Shape::names().join(", ");
        return Err(Error::Usage(format!("--shape {path}: neither a config.json nor one of {known}")));
    }
    let failed = |e: std::io::Error| Error::Failure(format!("{path}: cannot read: {e}"));
    if file.metadata().map_err(failed)?.len() > MAX_CONFIG_BYTES {
        return Err(Error::Usage(format!("--shape {path}: too long for a config.json")));
    }
    std::fs::read(file).map_err(failed)
}

#[cfg(test)]
mod tests;

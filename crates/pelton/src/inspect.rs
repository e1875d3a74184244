//! What is in a model's files, for people and programs.

use std::collections::BTreeMap;

use pelton_formats::SourceKind;
use serde::Serialize;

use crate::{Error, KvType, Model, Options};

/// Tensors of one role and one type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorGroup {
    /// The role: a name with the layer's and the expert's number left out.
    pub role: String,
    /// Storage type.
    pub dtype: String,
    /// How many.
    pub count: usize,
    /// Elements of all.
    pub elements: usize,
    /// Bytes of all.
    pub bytes: usize,
}

/// A model, described.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The name for people.
    pub name: String,
    /// What contains it: `GGUF v3`, `safetensors`.
    pub format: String,
    /// Its files.
    pub files: Vec<String>,
    /// Their length.
    pub file_bytes: u64,
    /// The architecture's name.
    pub architecture: String,
    /// Parameters.
    pub parameters: usize,
    /// How the weights are quantized, where the folder says so.
    pub quantization: Option<String>,
    /// Bits a weight, over all tensors.
    pub bits_per_weight: f64,
    /// Layers.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Feed-forward size.
    pub ffn: usize,
    /// Experts and how many a token uses.
    pub experts: Option<(usize, usize)>,
    /// Vocabulary.
    pub vocab_size: usize,
    /// Longest context.
    pub max_context: usize,
    /// Layers with a sliding window and its length.
    pub sliding_window: Option<(usize, usize)>,
    /// Rotary positions.
    pub rope: String,
    /// Whether the output head is the embedding.
    pub tied_embeddings: bool,
    /// Tensors by role and type.
    pub tensors: Vec<TensorGroup>,
    /// Tensors of the file that the model does not use.
    pub unused_tensors: Vec<String>,
    /// Context of the memory figures, in tokens.
    pub context: usize,
    /// Sequences of the memory figures.
    pub batch: usize,
    /// KV type of the memory figures.
    pub kv_type: String,
    /// KV bytes of one token.
    pub kv_bytes_per_token: usize,
    /// KV bytes of `batch` sequences of `context` tokens.
    pub kv_bytes: usize,
    /// Weights and KV together.
    pub memory_bytes: u64,
    /// Kind of tokenizer, where there is one.
    pub tokenizer: Option<String>,
    /// Special tokens.
    pub special_tokens: Vec<(u32, String)>,
    /// Ids that end an answer.
    pub eos: Vec<u32>,
    /// The chat template, where there is one.
    pub chat_template: Option<String>,
    /// The container's own keys.
    pub metadata: Vec<(String, String)>,
}

impl Inspection {
    /// Describes a model; memory is that of `batch` sequences of `context` tokens (the model's default where
    /// `None`).
    ///
    /// # Errors
    /// Where the context is longer than the model's.
    pub fn new(model: &Model, context: Option<usize>, batch: usize, kv_type: KvType) -> Result<Inspection, Error> {
        let c = &model.files.config;
        let context = context.unwrap_or(c.max_context.min(Options::DEFAULT_CONTEXT));
        if context == 0 || context > c.max_context {
            let most = c.max_context;
            return Err(Error::Usage(format!("--context {context}: {} holds 1 to {most} tokens", model.name)));
        }
        let tensors = groups(model);
        let parameters = model.parameters();
        let weight_bytes: usize = tensors.iter().map(|g| g.bytes).sum();
        let kv_bytes_per_token = c.n_layers * c.n_kv_heads * kv_type.bytes_per_head(c.head_dim);
        let kv_bytes = kv_bytes_per_token.saturating_mul(context).saturating_mul(batch);
        let text = model.text().ok();
        let template = text.as_ref().and_then(|t| t.templates.as_ref());
        let windows: Vec<usize> = c.sliding_window.iter().flatten().copied().collect();
        let specials = model.tokenizer.iter().flat_map(|t| t.special_tokens());
        Ok(Inspection {
            name: model.name.clone(),
            format: match model.files.source.kind {
                SourceKind::Gguf { version } => format!("GGUF v{version}"),
                SourceKind::Safetensors => "safetensors".into(),
            },
            files: model.files.source.files.clone(),
            file_bytes: model.files.source.total_bytes,
            architecture: c.arch.hf_name().into(),
            parameters,
            quantization: model.quantization_text(),
            bits_per_weight: weight_bytes as f64 * 8.0 / parameters.max(1) as f64,
            n_layers: c.n_layers,
            hidden: c.hidden,
            n_heads: c.n_heads,
            n_kv_heads: c.n_kv_heads,
            head_dim: c.head_dim,
            ffn: c.ffn,
            experts: c.moe.as_ref().map(|m| (m.n_experts, m.n_experts_used)),
            vocab_size: c.vocab_size,
            max_context: c.max_context,
            sliding_window: windows.first().map(|&w| (windows.len(), w)),
            rope: rope_text(c),
            tied_embeddings: c.tied_embeddings,
            tensors,
            unused_tensors: model.files.source.unused.clone(),
            context,
            batch,
            kv_type: kv_type.name().into(),
            kv_bytes_per_token,
            kv_bytes,
            memory_bytes: weight_bytes.saturating_add(kv_bytes) as u64,
            tokenizer: tokenizer_text(model),
            special_tokens: specials.map(|(id, t)| (id, t.to_string())).collect(),
            eos: text.as_ref().map_or_else(|| model.files.generation.eos.clone(), |t| t.eos_ids()),
            chat_template: template.and_then(|t| pelton_text::ChatTemplate::pick(t, false)),
            metadata: model.files.source.metadata.clone(),
        })
    }
}

fn tokenizer_text(model: &Model) -> Option<String> {
    use pelton_formats::TokenizerFiles;
    match &model.files.tokenizer {
        TokenizerFiles::Missing => None,
        TokenizerFiles::Hf { .. } => Some("tokenizer.json".into()),
        TokenizerFiles::Gguf(g) => Some(match &g.pre {
            Some(pre) => format!("{} ({pre})", g.model),
            None => g.model.clone(),
        }),
    }
}

fn rope_text(c: &pelton_formats::ModelConfig) -> String {
    use pelton_formats::RopeScaling;
    let scaling = match &c.rope.scaling {
        RopeScaling::None => String::new(),
        RopeScaling::Linear { factor } => format!(", linear ×{factor}"),
        RopeScaling::Llama3 { factor, original_context, .. } => {
            format!(", llama3 ×{factor} past {original_context}")
        }
        RopeScaling::Yarn { factor, original_context, .. } => format!(", YaRN ×{factor} past {original_context}"),
        RopeScaling::Factors { original_context, .. } => format!(", factors, original context {original_context}"),
    };
    format!("theta {}, {} dimensions{scaling}", c.rope.theta, c.rope.dim)
}

/// The name without its numbers: `blk.3.attn_q.weight` and `blk.4.attn_q.weight` are one role.
fn role(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').filter(|p| p.parse::<usize>().is_err()).collect();
    parts.join(".")
}

fn groups(model: &Model) -> Vec<TensorGroup> {
    let mut order = Vec::new();
    let mut groups: BTreeMap<(String, String), TensorGroup> = BTreeMap::new();
    for tensor in model.files.tensors.iter() {
        let key = (role(&tensor.name), tensor.dtype.to_string());
        let group = groups.entry(key.clone()).or_insert_with(|| {
            order.push(key.clone());
            TensorGroup { role: key.0.clone(), dtype: key.1.clone(), count: 0, elements: 0, bytes: 0 }
        });
        group.count += 1;
        group.elements += tensor.elements();
        group.bytes += tensor.byte_len();
    }
    order.into_iter().filter_map(|key| groups.remove(&key)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_have_no_numbers() {
        assert_eq!(role("blk.3.ffn_up.7.weight"), "blk.ffn_up.weight");
        assert_eq!(role("output_norm.weight"), "output_norm.weight");
    }
}

//! Logits at every position of a text: what people compare who port or check models.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};

use crate::{Error, Model, Options, Passage, Scorer, ScorerSize, available_memory};

/// The logits of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    /// Positions.
    pub rows: usize,
    /// Width of a row.
    pub vocab: usize,
    /// `(rows, vocab)`.
    pub data: Vec<f32>,
}

impl Logits {
    /// Runs `ids` through the model in chunks of [`Options::batch_rows`]. Needs no tokenizer. `rope_bf16` rounds the
    /// rotary frequencies, for comparing with a model that was cast to bf16 as a whole.
    ///
    /// # Errors
    /// Where the ids are empty, outside the vocabulary or too many, or the result does not fit memory.
    pub fn compute(model: &Model, ids: &[u32], options: &Options, rope_bf16: bool) -> Result<Logits, Error> {
        let config = &model.files.config;
        let vocab = config.vocab_size;
        if ids.is_empty() || ids.len() > config.max_context {
            let most = config.max_context;
            return Err(Error::Usage(format!("{} ids: {} takes 1 to {most}", ids.len(), model.name)));
        }
        if let Some((at, id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= vocab) {
            return Err(Error::Usage(format!("id {id} at position {at} is outside the vocabulary of {vocab}")));
        }
        let bytes = ids.len().saturating_mul(vocab).saturating_mul(4);
        if available_memory().is_some_and(|free| bytes as u64 > free / 2) {
            let need = bytes >> 20;
            return Err(Error::Usage(format!("logits of {} positions need {need} MiB; give fewer ids", ids.len())));
        }
        let size = ScorerSize { context: ids.len(), sequences: 1 };
        let options = Options { batch_rows: options.batch_rows.clamp(1, ids.len()), ..options.clone() };
        let mut scorer = Scorer::load_with(model, &options, size, rope_bf16, &mut |_| ())?;
        let mut data = Vec::with_capacity(ids.len() * vocab);
        scorer.run(&[Passage { ids, from: 0 }], &mut |_, rows| {
            data.extend_from_slice(rows);
            Ok(())
        })?;
        Ok(Logits { rows: ids.len(), vocab, data })
    }

    /// The logits of one position, `(vocab,)`.
    pub fn row(&self, r: usize) -> &[f32] {
        &self.data[r * self.vocab..(r + 1) * self.vocab]
    }
}

/// Writes logits as a safetensors file with two tensors: `logits` f32 `(rows, vocab)` and `input_ids` i64 `(rows,)`.
///
/// # Errors
/// Where the file cannot be written.
pub fn write_logits(path: &Path, ids: &[u32], logits: &Logits) -> Result<(), Error> {
    let failed = |e: &dyn std::fmt::Display| Error::Failure(format!("{}: cannot write: {e}", path.display()));
    let bytes: Vec<u8> = logits.data.iter().flat_map(|v| v.to_le_bytes()).collect();
    let id_bytes: Vec<u8> = ids.iter().flat_map(|&id| i64::from(id).to_le_bytes()).collect();
    let logits = TensorView::new(Dtype::F32, vec![logits.rows, logits.vocab], &bytes).map_err(|e| failed(&e))?;
    let input_ids = TensorView::new(Dtype::I64, vec![ids.len()], &id_bytes).map_err(|e| failed(&e))?;
    let tensors = HashMap::from([("logits", logits), ("input_ids", input_ids)]);
    safetensors::serialize_to_file(tensors, None, path).map_err(|e| failed(&e))
}

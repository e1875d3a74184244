//! Logits at every position of a text: what people compare who port or check models.

use std::collections::HashMap;
use std::path::Path;

use pelton_backend::{Backend, BatchBuilder, KvType, PAGE_LEN, Reference};
use pelton_cpu::Cpu;
use safetensors::tensor::{Dtype, TensorView};

use crate::{BackendChoice, Error, Model, Options, available_memory};

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
        match options.backend {
            BackendChoice::Reference => {
                compute(Reference, model, ids, &Options { kv_type: KvType::F32, ..options.clone() }, rope_bf16)
            }
            BackendChoice::Cpu => {
                let cpu = Cpu::new(options.cpu())?;
                compute(cpu, model, ids, options, rope_bf16)
            }
        }
    }

    /// The logits of one position, `(vocab,)`.
    pub fn row(&self, r: usize) -> &[f32] {
        &self.data[r * self.vocab..(r + 1) * self.vocab]
    }
}

fn compute<B: Backend>(
    mut backend: B,
    model: &Model,
    ids: &[u32],
    options: &Options,
    rope_bf16: bool,
) -> Result<Logits, Error> {
    let config = &model.files.config;
    let vocab = config.vocab_size;
    if ids.is_empty() || ids.len() > config.max_context {
        let most = config.max_context;
        return Err(Error::Usage(format!("{} ids: {} takes 1 to {most}", ids.len(), model.name)));
    }
    if let Some((at, id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= vocab) {
        return Err(Error::Usage(format!("id {id} at position {at} is outside the vocabulary of {vocab}")));
    }
    let chunk_rows = options.batch_rows.clamp(1, ids.len());
    // The result, and a chunk of it in the workspace and on the way out.
    let bytes = (ids.len() + 2 * chunk_rows).saturating_mul(vocab).saturating_mul(4);
    if available_memory().is_some_and(|free| bytes as u64 > free / 2) {
        let need = bytes >> 20;
        return Err(Error::Usage(format!("logits of {} positions need {need} MiB; give fewer ids", ids.len())));
    }
    let mut decoder = pelton_model::load(&mut backend, config, &model.files.tensors, ids.len(), &mut |_| ())?;
    if rope_bf16 {
        decoder.set_rope(pelton_model::rounded_to_bf16(decoder.rope()));
    }
    let n_pages = ids.len().div_ceil(PAGE_LEN);
    let pages: Vec<u32> = (0..n_pages as u32).collect();
    let mut kv = backend.kv_pool(&decoder.kv_layout(n_pages, options.kv_type))?;
    let mut work = decoder.workspace(&mut backend);
    let (mut data, mut chunk_logits) = (Vec::with_capacity(ids.len() * vocab), Vec::new());
    for (i, chunk) in ids.chunks(chunk_rows).enumerate() {
        let mut batch = BatchBuilder::new(n_pages);
        let start = i * chunk_rows;
        batch.push(chunk, start, &pages, chunk.len()).map_err(pelton_backend::BackendError::from)?;
        decoder.forward(&mut backend, &batch.finish(), &mut kv, &mut work, &mut chunk_logits);
        data.extend_from_slice(&chunk_logits);
    }
    Ok(Logits { rows: ids.len(), vocab, data })
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

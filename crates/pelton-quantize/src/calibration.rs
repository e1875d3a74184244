//! The products of inputs of every layer, a few layers at a time: a text is run through the model as often as the layers
//! do not fit in memory together.
//!
//! Invariant: what a layer gets depends on the model and the text alone, not on which layers were in memory with it.

use std::collections::{BTreeMap, BTreeSet};

use pelton::Model;

use crate::gram::{self, Gram};
use crate::plan::PlannedTensor;
use crate::{QuantizeError, record};

/// Bytes of products that are kept at a time; one layer may be larger.
const MOST_BYTES: u64 = 1 << 30;

/// Activations of a calibration text.
pub struct Calibration<'a> {
    model: &'a Model,
    ids: &'a [u32],
    chunk: usize,
    threads: Option<usize>,
    most_bytes: u64,
    /// By the first matrix of a layer. A layer that the text was run for and that has none is one of experts.
    grams: BTreeMap<String, Option<Gram>>,
    runs: usize,
}

impl<'a> Calibration<'a> {
    /// Of a text as ids, in chunks that are run each for itself.
    ///
    /// # Errors
    /// [`QuantizeError::Usage`] where there is not one whole chunk, or a chunk is longer than the model's context.
    pub fn new(
        model: &'a Model,
        ids: &'a [u32],
        chunk: usize,
        threads: Option<usize>,
    ) -> Result<Calibration<'a>, QuantizeError> {
        record::whole_chunks(model, ids, chunk)?;
        Ok(Calibration { model, ids, chunk, threads, most_bytes: MOST_BYTES, grams: BTreeMap::new(), runs: 0 })
    }

    /// Keeps at most so many bytes at a time, but one layer always.
    pub fn with_memory(mut self, bytes: u64) -> Calibration<'a> {
        self.most_bytes = bytes;
        self
    }

    /// How often the text was run.
    pub fn runs(&self) -> usize {
        self.runs
    }

    /// What the result of a use of it depends on.
    pub(crate) fn ids(&self) -> &[u32] {
        self.ids
    }

    /// The products for the first of `tensors`; with them, those for as many of the others as fit are collected.
    pub(crate) fn gram<'n>(
        &mut self,
        tensors: impl Iterator<Item = &'n str> + Clone,
        cols_of: impl Fn(&str) -> usize,
    ) -> Result<Option<&Gram>, QuantizeError> {
        let Some(first) = tensors.clone().next().map(layer_of) else { return Ok(None) };
        if !self.grams.contains_key(&first) {
            let (mut wanted, mut bytes) = (BTreeSet::new(), 0);
            for name in tensors {
                let layer = layer_of(name);
                if wanted.contains(&layer) {
                    continue;
                }
                bytes += gram::bytes(cols_of(name));
                if bytes > self.most_bytes && !wanted.is_empty() {
                    break;
                }
                wanted.insert(layer);
            }
            self.grams.clear();
            let found = record::grams(self.model, self.ids, self.chunk, self.threads, wanted.clone(), &mut |_, _| ())?;
            self.runs += 1;
            self.grams = wanted.into_iter().map(|layer| (layer, None)).collect();
            self.grams.extend(found.into_iter().map(|(layer, gram)| (layer, Some(gram))));
        }
        Ok(self.grams.get(&first).and_then(Option::as_ref))
    }
}

/// The first matrix of the layer that a matrix is part of: some read the same input, in one go.
fn layer_of(name: &str) -> String {
    let first = [("attn_k.", "attn_q."), ("attn_v.", "attn_q."), ("ffn_up.", "ffn_gate.")];
    let found = first.iter().find(|(part, _)| name.contains(part));
    found.map_or_else(|| name.to_owned(), |(part, first)| name.replace(part, first))
}

/// The name in the model of the first matrix in a tensor of the file, where its inputs can be recorded: those of the
/// layers' plain matrices. The embedding and the head keep the plain encoder.
pub(crate) fn recorded_name(tensor: &PlannedTensor) -> Option<&str> {
    let name = tensor.source.sources().first()?.name.as_str();
    (tensor.source.shape().len() == 2 && name.starts_with("blk.") && tensor.source.is_matrix()).then_some(name)
}

//! A model with its weights as they were before they were quantized, as near as its file still tells: in bfloat16.

use std::sync::Arc;

use pelton_formats::{Tensor, Tensors};
use pelton_quant::DType;

use crate::{Error, Model, available_memory};

/// The model with every quantized matrix decoded to bfloat16; `None` where none is quantized.
///
/// # Errors
/// [`Error::Usage`] where that does not fit memory; [`Error`] where a tensor does not decode.
pub fn in_bf16(model: &Model) -> Result<Option<Model>, Error> {
    let is_quantized = |t: &Tensor| !t.dtype.is_float();
    let quantized = model.files.tensors.iter().filter(|t| is_quantized(t));
    let bytes: usize = quantized.map(|t| t.elements().saturating_mul(2)).sum();
    if bytes == 0 {
        return Ok(None);
    }
    // Once here, once as the kernels want it.
    if available_memory().is_some_and(|free| (bytes as u64).saturating_mul(2) > free / 10 * 9) {
        let (name, gib) = (&model.name, bytes as f64 * 2.0 / f64::from(1 << 30));
        return Err(Error::Usage(format!(
            "{name} in bfloat16 takes {gib:.1} GiB while it is loaded, which is not free: give --base-model, or \
             --skip-baseline"
        )));
    }
    let mut tensors = Tensors::new(model.files.tensors.file());
    for tensor in model.files.tensors.iter() {
        let tensor = if is_quantized(tensor) { bf16(tensor)? } else { tensor.clone() };
        tensors.insert(tensor)?;
    }
    let mut files = model.files.clone();
    files.source.total_bytes = tensors.iter().map(|t| t.byte_len() as u64).sum();
    files.tensors = tensors;
    let tokenizer = model.tokenizer.as_ref().map(Arc::clone);
    Ok(Some(Model { files, name: format!("{} in bfloat16", model.name), tokenizer }))
}

fn bf16(tensor: &Tensor) -> Result<Tensor, Error> {
    let failed = |e: pelton_quant::QuantError| Error::Failure(format!("{}: {e}", tensor.name));
    let mut bytes = Vec::with_capacity(tensor.elements() * 2);
    pelton_quant::encode(DType::BF16, &tensor.to_f32()?, &mut bytes).map_err(failed)?;
    Ok(Tensor::new("the copy in bfloat16", &tensor.name, DType::BF16, tensor.shape.clone(), bytes.into())?)
}

//! Quantized weights of Hugging Face folders, as `quantization_config` in `config.json` names them.
//!
//! ```text
//! quantization_config ─▶ Scheme          scheme.rs
//! names and shapes    ─▶ Parts           parts.rs: which tensors belong to a module, and which were used
//! a module's parts    ─▶ Grouped         gptq.rs, awq.rs, bitsandbytes.rs, fp8.rs, compressed.rs
//!                        its arrays      arrays.rs, numbers.rs: read in place, whenever somebody asks for rows
//! ```
//!
//! Invariant: a tensor of codes is read only as the configuration says, and every length in it is checked first. What
//! the configuration names and the files do not have, or have in another form, is an error that names the tensor.

mod arrays;
mod awq;
mod bitsandbytes;
mod compressed;
mod fp8;
mod gptq;
mod numbers;
mod parts;
mod scheme;

use std::collections::HashSet;

use super::SafetensorsFile;
use crate::{FormatError, Tensor};
use parts::Parts;
pub(super) use scheme::Scheme;
use scheme::{GroupSize, Method};

/// What quantized tensors became.
pub(super) struct Assembled {
    /// The matrices, each under the name that its float would have, and the file it comes from.
    pub(super) tensors: Vec<(Tensor, String)>,
    /// Names of the tensors that they were made from.
    pub(super) used: HashSet<String>,
    /// Names of tensors that only say how activations were to be quantized.
    pub(super) of_activations: Vec<String>,
}

/// Ends of names of tensors that say how activations or caches were to be quantized: Pelton does it in its own way,
/// with a scale for each row and 256 values.
const OF_ACTIVATIONS: [&str; 9] = [
    ".input_scale",
    ".input_zero_point",
    ".input_global_scale",
    ".input_scale_ub",
    ".activation_scale",
    ".output_scale",
    ".k_scale",
    ".v_scale",
    ".q_scale",
];

impl Scheme {
    /// Finds the quantized matrices of the files.
    ///
    /// # Errors
    /// [`FormatError`] names the file, the tensor and what is wrong: a part that is missing, has another type or shape
    /// than the configuration says, or holds an impossible number.
    pub(super) fn assemble(&self, files: &[SafetensorsFile]) -> Result<Assembled, FormatError> {
        let mut parts = Parts::new(files);
        let marks: &[&str] = match &self.method {
            Method::Awq(_) | Method::Gptq(_) => &[".qweight"],
            Method::Nf4Fp4 => &[".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4"],
            Method::Int8Rows => &[".SCB"],
            Method::Fp8(_) => &[".weight_scale_inv", ".weight_scale"],
            Method::Compressed(_) => &[".weight_packed", ".weight_scale"],
        };
        let mut modules: Vec<&str> = Vec::new();
        for name in parts.names() {
            let module = marks.iter().find_map(|mark| name.strip_suffix(mark));
            modules.extend(module.filter(|module| modules.last() != Some(module)));
        }
        modules.dedup();
        let mut tensors = Vec::with_capacity(modules.len());
        for module in modules {
            if parts.has_used(module) {
                continue;
            }
            let (file, name) = (parts.file_of(module).to_owned(), format!("{module}.weight"));
            if let Some(kept) = self.kept.iter().find(|kept| is_within(module, kept)) {
                let want = format!("floats: `{kept}` is among the modules that `quantization_config` leaves alone");
                return Err(FormatError::tensor(&file, crate::error::brief(&name), "codes with scales", want));
            }
            let grouped = match &self.method {
                Method::Awq(group) => awq::read(&mut parts, module, *group)?,
                Method::Gptq(gptq) => gptq::read(&mut parts, module, gptq)?,
                Method::Nf4Fp4 => bitsandbytes::four_bits(&mut parts, module)?,
                Method::Int8Rows => bitsandbytes::eight_bits(&mut parts, module)?,
                Method::Fp8(block) => fp8::read(&mut parts, module, *block)?,
                Method::Compressed(groups) => compressed::read(&mut parts, module, groups)?,
            };
            tensors.push((Tensor::grouped(&name, grouped), file));
        }
        if tensors.is_empty() {
            let got = format!("{}, but no tensor `…{}`", self.name, marks.join("`, `…"));
            let want = "quantized tensors, or no quantization_config; the files and config.json do not belong together";
            return Err(FormatError::key(&self.file, "quantization_config", got, want));
        }
        let of_activations: Vec<String> = parts.names().filter(|n| is_of_activations(n)).map(str::to_owned).collect();
        let mut used = parts.into_used();
        used.extend(of_activations.iter().cloned());
        Ok(Assembled { tensors, used, of_activations })
    }
}

fn is_of_activations(name: &str) -> bool {
    OF_ACTIVATIONS.iter().any(|end| name.ends_with(end))
}

/// Whether `module` is `kept`, or part of it: `model.layers.0.mlp.gate` is part of `mlp.gate` and of `model.layers.0`.
fn is_within(module: &str, kept: &str) -> bool {
    let dotted = format!(".{module}.");
    !kept.is_empty() && dotted.contains(&format!(".{kept}."))
}

/// Checks that whole groups cover `cols` columns; columns of a group (`None`: all), and how many groups.
fn groups(file: &str, tensor: &str, cols: usize, group: GroupSize) -> Result<(Option<u32>, usize), FormatError> {
    let Some(size) = group else { return Ok((None, 1)) };
    if size > 0 && cols.is_multiple_of(size) {
        let size32 = u32::try_from(size).ok().filter(|_| size < cols);
        return Ok((size32, cols / size));
    }
    let want = format!("a multiple of the group size {size} in quantization_config");
    Err(FormatError::tensor(file, crate::error::brief(tensor), format!("{cols} input features"), want))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_modules_are_told_by_whole_words() {
        assert!(is_within("model.layers.0.mlp.gate", "mlp.gate"));
        assert!(is_within("model.layers.0.mlp.gate", "model.layers.0"));
        assert!(is_within("lm_head", "lm_head"));
        assert!(!is_within("model.layers.0.mlp.gate_proj", "mlp.gate"));
        assert!(!is_within("model.layers.10.mlp", "layers.1"));
        assert!(!is_within("model", ""));
    }

    #[test]
    fn groups_must_divide() {
        assert_eq!(groups("f", "t", 256, Some(64)).unwrap(), (Some(64), 4));
        assert_eq!(groups("f", "t", 64, Some(64)).unwrap(), (None, 1));
        assert_eq!(groups("f", "t", 100, None).unwrap(), (None, 1));
        for size in [0, 3, 96] {
            assert!(groups("f", "t", 256, Some(size)).unwrap_err().to_string().contains(&format!("size {size}")));
        }
    }
}

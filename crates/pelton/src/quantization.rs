//! Quantizing a model of 16- or 32-bit weights while it is loaded (`--quantization`).
//!
//! Tensors are only marked here ([`Tensor::marked`]); the loader makes each when its turn comes, so that one tensor at a
//! time takes memory. Invariant: a model that is quantized already is refused, never rounded twice.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use pelton_formats::{Mix, ModelFiles, Tensor, Tensors, TokenizerFiles, fallback, in_situ};
use pelton_quant::WeightType;

use crate::{Error, Model};

/// What floats become while a model is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// The mix `Q4_K_M`.
    Bits4,
    /// The mix `Q5_K_M`.
    Bits5,
    /// The mix `Q6_K`.
    Bits6,
    /// The mix `Q8_0`.
    Bits8,
    /// E4M3 with a scale for each row; embedding and head stay.
    Fp8,
    /// Bytes with a scale for each row; embedding and head stay.
    Int8,
    /// NF4 in blocks of 64, as bitsandbytes; embedding and head stay.
    Nf4,
}

impl Quantization {
    /// All of them.
    pub const ALL: [Quantization; 7] = [
        Quantization::Bits4,
        Quantization::Bits5,
        Quantization::Bits6,
        Quantization::Bits8,
        Quantization::Fp8,
        Quantization::Int8,
        Quantization::Nf4,
    ];

    /// What people type.
    pub fn name(self) -> &'static str {
        match self {
            Quantization::Bits4 => "4bit",
            Quantization::Bits5 => "5bit",
            Quantization::Bits6 => "6bit",
            Quantization::Bits8 => "8bit",
            Quantization::Fp8 => "fp8",
            Quantization::Int8 => "int8",
            Quantization::Nf4 => "nf4",
        }
    }

    /// The type of a matrix; `None` where it stays as it is.
    fn type_of(self, model: &ModelFiles, tensor: &Tensor) -> Option<WeightType> {
        let name = tensor.name.as_str();
        let &[_, cols] = &tensor.shape[..] else { return None };
        // Experts are chosen by small differences, and routers are small.
        if name.ends_with("ffn_gate_inp.weight") {
            return None;
        }
        let mix = match self {
            Quantization::Bits4 => Mix::Q4_K_M,
            Quantization::Bits5 => Mix::Q5_K_M,
            Quantization::Bits6 => Mix::Q6_K,
            Quantization::Bits8 => Mix::Q8_0,
            Quantization::Fp8 | Quantization::Int8 | Quantization::Nf4 => {
                let kind = match self {
                    Quantization::Fp8 => in_situ::FP8_ROWS,
                    Quantization::Int8 => in_situ::INT8_ROWS,
                    _ => in_situ::NF4_BLOCKS,
                };
                return name.starts_with("blk.").then(|| kind.into());
            }
        };
        let dtype = fallback(mix.type_of(&model.config, false, name), cols);
        Some(dtype.into())
    }
}

impl FromStr for Quantization {
    type Err = Error;

    fn from_str(text: &str) -> Result<Quantization, Error> {
        let found = Quantization::ALL.into_iter().find(|q| q.name() == text);
        found.ok_or_else(|| {
            let names = Quantization::ALL.map(Quantization::name).join(", ");
            Error::Usage(format!("--quantization {text}: expected one of {names}, or none"))
        })
    }
}

impl Model {
    /// The model with its matrices marked to become `quantization` when it is loaded, on so many threads.
    ///
    /// # Errors
    /// [`Error::Usage`] where weights are quantized already.
    pub fn quantized(&self, quantization: Quantization, threads: usize) -> Result<Model, Error> {
        let mut tensors = Tensors::new(self.files.tensors.file());
        for tensor in self.files.tensors.iter() {
            if !tensor.dtype.is_float() {
                let (asked, model, name) = (quantization.name(), &self.name, &tensor.name);
                return Err(Error::Usage(format!(
                    "--quantization {asked}: {model} is quantized already ({name} is {}); leave the option out, or start \
                     from the model's 16-bit files",
                    tensor.dtype
                )));
            }
            let wanted = quantization.type_of(&self.files, tensor).filter(|wanted| !wanted.is_float());
            tensors.insert(match wanted {
                Some(wanted) => tensor.marked(wanted, threads)?,
                None => tensor.clone(),
            })?;
        }
        let files = &self.files;
        let files = ModelFiles {
            config: files.config.clone(),
            tensors,
            // The tokenizer is built already.
            tokenizer: TokenizerFiles::Missing,
            chat_templates: files.chat_templates.clone(),
            generation: files.generation.clone(),
            source: files.source.clone(),
        };
        Ok(Model { files, name: self.name.clone(), tokenizer: self.tokenizer.as_ref().map(Arc::clone) })
    }

    /// Bytes of the weights as they are stored, or will be once the model is loaded.
    pub fn weight_bytes(&self) -> usize {
        self.files.tensors.iter().map(Tensor::byte_len).fold(0, usize::saturating_add)
    }

    /// How the weights are quantized, where a Hugging Face folder or [`Model::quantized`] says so: for people.
    pub fn quantization_text(&self) -> Option<String> {
        let tensors = || self.files.tensors.iter();
        if !tensors().any(|t| t.source().is_some()) {
            return self.files.source.quantization.clone();
        }
        let mut types: BTreeMap<String, usize> = BTreeMap::new();
        tensors().filter(|t| t.shape.len() > 1).for_each(|t| *types.entry(t.dtype.to_string()).or_default() += 1);
        let types: Vec<String> = types.iter().map(|(name, n)| format!("{n} {name}")).collect();
        let before: usize = tensors().map(|t| t.source().unwrap_or(t).byte_len()).sum();
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        let (before, after) = (mib(before), mib(self.weight_bytes()));
        Some(format!("quantized while loading: {} matrices ({before:.1} → {after:.1} MiB)", types.join(", ")))
    }

    /// What tells this model's types from those of the same files loaded otherwise; empty for the files as they are.
    pub(crate) fn marks(&self) -> String {
        let marked = self.files.tensors.iter().filter(|t| t.source().is_some());
        marked.map(|t| format!("{} {}\n", t.name, t.dtype)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelRef;

    fn open(name: &str) -> Model {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name);
        Model::open(&ModelRef::Path(path), None).unwrap()
    }

    fn types(model: &Model) -> BTreeMap<String, usize> {
        let mut types = BTreeMap::new();
        model.files.tensors.iter().filter(|t| t.shape.len() > 1).for_each(|t| {
            *types.entry(t.dtype.to_string()).or_default() += 1;
        });
        types
    }

    #[test]
    fn names_lead_back_to_their_quantization() {
        for q in Quantization::ALL {
            assert_eq!(q.name().parse::<Quantization>().unwrap(), q);
        }
        assert!("3bit".parse::<Quantization>().unwrap_err().to_string().contains("4bit"));
    }

    #[test]
    fn marked_models_say_what_they_become() {
        let model = open("qwen2-untied");
        assert_eq!((model.quantization_text(), model.marks()), (None, String::new()));
        let eight = model.quantized(Quantization::Bits8, 2).unwrap();
        assert_eq!(types(&eight).keys().map(String::as_str).collect::<Vec<_>>(), ["Q8_0"]);
        assert!(
            eight.weight_bytes() < model.weight_bytes() * 6 / 10 && eight.marks().contains("blk.0.attn_q.weight Q8_0")
        );
        assert!(eight.quantization_text().unwrap().contains("Q8_0 matrices"), "{:?}", eight.quantization_text());
        let nf4 = types(&model.quantized(Quantization::Nf4, 1).unwrap());
        assert_eq!((nf4["BF16"], nf4.len()), (2, 2), "embedding and head stay: {nf4:?}");
        // Rows of 128 are no superblocks: the mix's stand-ins.
        assert!(!types(&model.quantized(Quantization::Bits4, 1).unwrap()).contains_key("BF16"));
    }

    #[test]
    fn quantized_models_are_refused() {
        let model = open("quantized/gptq-8");
        assert_eq!(model.quantization_text().unwrap(), "GPTQ 8 bit, a scale for each row, asymmetric");
        let message = model.quantized(Quantization::Int8, 1).err().unwrap().to_string();
        assert!(message.contains("quantized already") && message.contains("INT8 asym per row"), "{message}");
    }
}

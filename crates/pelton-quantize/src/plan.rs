//! Which type each tensor gets, before anything is written.

use std::collections::BTreeMap;

use pelton_formats::{Mix, ModelFiles, OutputTensor, fallback, output_tensors};
use pelton_quant::DType;

use crate::awq::Factors;
use crate::{Imatrix, QuantizeError};

/// How types are chosen.
#[derive(Clone, Debug)]
pub enum Types {
    /// By a mix's rules.
    Mix(Mix),
    /// One type for all matrices.
    All(DType),
    /// By name; what is not named keeps the type of the first entry's kind, see [`Plan::new`].
    Each(BTreeMap<String, DType>),
}

/// A model that is to be written.
pub struct Plan {
    /// Every tensor, in the order of the file.
    pub tensors: Vec<PlannedTensor>,
    /// Whatever is not as the caller chose, a sentence each.
    pub notes: Vec<String>,
    /// `general.file_type`.
    pub(crate) file_type: Option<u32>,
}

/// One tensor of a [`Plan`].
pub struct PlannedTensor {
    /// Where its values come from.
    pub source: OutputTensor,
    /// The type that it gets.
    pub to: DType,
    /// How much each column counts, a row for each expert.
    pub importance: Option<Vec<f32>>,
    /// What it is multiplied with first.
    pub(crate) factors: Factors,
}

impl PlannedTensor {
    /// Bytes of its blocks.
    pub fn bytes(&self) -> u64 {
        let row = self.to.row_bytes(self.source.cols()).unwrap_or(0);
        row as u64 * self.source.n_rows() as u64
    }

    /// Elements.
    pub fn elements(&self) -> u64 {
        self.source.cols() as u64 * self.source.n_rows() as u64
    }

    /// Rows of one expert; all of them for a plain matrix.
    pub(crate) fn expert_rows(&self) -> usize {
        match self.source.shape() {
            [_, rows, _] => *rows,
            _ => self.source.n_rows(),
        }
    }

    /// The importance of the columns of row `row`.
    pub(crate) fn importance_of(&self, row: usize) -> Option<&[f32]> {
        let cols = self.source.cols();
        let expert = row / self.expert_rows().max(1);
        self.importance.as_ref().map(|all| &all[expert * cols..(expert + 1) * cols])
    }
}

impl Plan {
    /// Plans the model. Vectors, norms and routers are F32; a type whose blocks do not divide the rows is replaced by one
    /// of smaller blocks, else F16; matrices that [`Types::Each`] does not name stay as they are stored.
    ///
    /// # Errors
    /// Types without an encoder, tensors that do not fit together, and an importance matrix of another model.
    pub fn new(files: &ModelFiles, types: &Types, importance: Option<&Imatrix>) -> Result<Plan, QuantizeError> {
        let (mut tensors, mut notes) = (Vec::new(), Vec::new());
        let mut blind = 0;
        for source in output_tensors(files)? {
            if !source.is_matrix() {
                tensors.push(PlannedTensor { source, to: DType::F32, importance: None, factors: Factors::default() });
                continue;
            }
            let wanted = match types {
                Types::Mix(mix) => mix.type_of(&files.config, importance.is_some(), source.name()),
                Types::All(dtype) => *dtype,
                Types::Each(named) => {
                    let stored = source.stored_as().blocks().filter(|dtype| dtype.can_encode());
                    named.get(source.name()).copied().or(stored).unwrap_or(DType::F16)
                }
            };
            if !wanted.can_encode() {
                let supported: Vec<&str> = DType::ENCODABLE.iter().map(|t| t.name()).collect();
                let supported = supported.join(", ");
                return Err(QuantizeError::Usage(format!("{wanted} has no encoder; supported: {supported}")));
            }
            let to = fallback(wanted, source.cols());
            if to != wanted {
                let (name, cols, block) = (source.name(), source.cols(), wanted.block_len());
                notes.push(format!("{name} is {to}, not {wanted}: its rows of {cols} are no multiple of {block}"));
            }
            let n_experts = if source.shape().len() == 3 { source.shape()[0] } else { 1 };
            let of = |matrix: &Imatrix| matrix.of(source.name(), source.cols(), n_experts);
            let importance = importance.map(of).transpose()?.flatten();
            if importance.is_none() && needs_importance(to) {
                blind += 1;
            }
            tensors.push(PlannedTensor { source, to, importance, factors: Factors::default() });
        }
        if blind > 0 {
            notes.push(format!(
                "{blind} matrices get types below 3 bits without an importance matrix: `pelton imatrix` makes one, and \
                 --imatrix uses it"
            ));
        }
        let file_type = match types {
            Types::Mix(mix) => Some(mix.file_type()),
            Types::All(_) | Types::Each(_) => None,
        };
        Ok(Plan { tensors, notes, file_type })
    }

    /// Bytes of all blocks together.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(PlannedTensor::bytes).sum()
    }

    /// Elements of all tensors.
    pub fn elements(&self) -> u64 {
        self.tensors.iter().map(PlannedTensor::elements).sum()
    }

    /// Matrices and bytes of each type, the most bytes first.
    pub fn by_type(&self) -> Vec<(DType, usize, u64)> {
        let mut types: BTreeMap<DType, (usize, u64)> = BTreeMap::new();
        for tensor in &self.tensors {
            let of = types.entry(tensor.to).or_default();
            *of = (of.0 + 1, of.1 + tensor.bytes());
        }
        let mut list: Vec<_> = types.into_iter().map(|(dtype, (n, bytes))| (dtype, n, bytes)).collect();
        list.sort_by_key(|(_, _, bytes)| std::cmp::Reverse(*bytes));
        list
    }
}

/// Types so coarse that they are of little use without an importance.
fn needs_importance(dtype: DType) -> bool {
    let bits = 8.0 * dtype.block_bytes() as f64 / dtype.block_len() as f64;
    bits < 2.6 && !matches!(dtype, DType::TQ1_0 | DType::TQ2_0)
}

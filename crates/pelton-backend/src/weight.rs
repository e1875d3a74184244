//! Weights on their way from a file to a backend: a type, a shape, and shared bytes.
//!
//! Invariant: the bytes of a [`Weight`] in blocks are `rows` whole rows of its type, so a backend may slice rows freely;
//! grouped weights give any of their rows.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use pelton_quant::{DType, Grouped, WeightType};

use crate::BackendError;

/// Bytes that somebody keeps alive: a memory map, a buffer, the binary itself.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A matrix `(rows, cols)`, row-major, in any storage type.
#[derive(Clone)]
pub struct Weight {
    name: String,
    rows: usize,
    cols: usize,
    storage: Storage,
}

#[derive(Clone)]
enum Storage {
    /// Rows of blocks; those of this weight begin at byte `start`.
    Blocks {
        dtype: DType,
        bytes: SharedBytes,
        start: usize,
    },
    Grouped(Grouped),
}

impl Weight {
    /// Wraps `bytes` as a `(rows, cols)` matrix of `dtype`.
    ///
    /// # Errors
    /// [`BackendError::UnsupportedType`] where the type cannot be decoded, [`BackendError::Shape`] where the
    /// bytes are not exactly `rows` rows of `cols` elements.
    pub fn new(
        name: impl Into<String>,
        dtype: DType,
        rows: usize,
        cols: usize,
        bytes: SharedBytes,
    ) -> Result<Weight, BackendError> {
        let name = name.into();
        if !dtype.can_decode() {
            return Err(BackendError::UnsupportedType { tensor: name, dtype });
        }
        let want = dtype.row_bytes(cols).and_then(|r| r.checked_mul(rows));
        let got = (*bytes).as_ref().len();
        if want != Some(got) || rows == 0 || cols == 0 {
            let want = want.map_or_else(|| "a row of whole blocks".to_string(), |w| format!("{w} bytes"));
            let problem = format!("({rows}, {cols}) of {} needs {want}, the tensor has {got} bytes", dtype.name());
            return Err(BackendError::Shape { tensor: name, problem });
        }
        Ok(Weight { name, rows, cols, storage: Storage::Blocks { dtype, bytes, start: 0 } })
    }

    /// A matrix of codes in groups, as Hugging Face files have them.
    pub fn grouped(name: impl Into<String>, grouped: Grouped) -> Weight {
        let (name, rows, cols) = (name.into(), grouped.rows(), grouped.cols());
        Weight { name, rows, cols, storage: Storage::Grouped(grouped) }
    }

    /// A float32 matrix from values, mostly for tests.
    ///
    /// # Errors
    /// [`BackendError::Shape`] where `values` is not `rows * cols` long.
    pub fn from_f32(name: impl Into<String>, rows: usize, cols: usize, values: &[f32]) -> Result<Weight, BackendError> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Weight::new(name, DType::F32, rows, cols, Arc::new(bytes))
    }

    /// The tensor's name in its file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Storage type.
    pub fn dtype(&self) -> WeightType {
        match &self.storage {
            Storage::Blocks { dtype, .. } => (*dtype).into(),
            Storage::Grouped(grouped) => grouped.kind().into(),
        }
    }

    /// The arrays of grouped weights; `None` for blocks.
    pub fn as_grouped(&self) -> Option<&Grouped> {
        match &self.storage {
            Storage::Blocks { .. } => None,
            Storage::Grouped(grouped) => Some(grouped),
        }
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of all rows as they are stored.
    pub fn byte_len(&self) -> usize {
        match &self.storage {
            Storage::Blocks { dtype, .. } => {
                let row = dtype.row_bytes(self.cols).expect("whole blocks were checked by Weight::new");
                self.rows * row
            }
            Storage::Grouped(grouped) => grouped.byte_len(),
        }
    }

    /// Bytes of one row, rounded up.
    pub fn row_bytes(&self) -> usize {
        self.byte_len().div_ceil(self.rows)
    }

    /// All bytes of a weight in blocks, row after row.
    ///
    /// # Panics
    /// For grouped weights, whose rows are not contiguous: see [`Weight::as_grouped`].
    pub fn bytes(&self) -> &[u8] {
        match &self.storage {
            Storage::Blocks { bytes, start, .. } => &(**bytes).as_ref()[*start..][..self.byte_len()],
            Storage::Grouped(_) => panic!("{self:?} has no contiguous bytes"),
        }
    }

    /// Some of the rows, sharing the bytes.
    ///
    /// # Panics
    /// Where the range is empty or reaches past the last row.
    pub fn part(&self, rows: Range<usize>) -> Weight {
        assert!(rows.start < rows.end && rows.end <= self.rows, "rows {rows:?} of {self:?}");
        let (n_rows, row_bytes) = (rows.len(), self.row_bytes());
        let storage = match self.storage.clone() {
            Storage::Blocks { dtype, bytes, start } => {
                Storage::Blocks { dtype, bytes, start: start + rows.start * row_bytes }
            }
            Storage::Grouped(grouped) => Storage::Grouped(grouped.part(rows)),
        };
        Weight { name: self.name.clone(), rows: n_rows, cols: self.cols, storage }
    }

    /// The bytes of some rows of a weight in blocks.
    ///
    /// # Panics
    /// Where the range reaches past the last row; for grouped weights.
    pub fn row_range(&self, rows: Range<usize>) -> &[u8] {
        let n = self.row_bytes();
        &self.bytes()[rows.start * n..rows.end * n]
    }

    /// Decodes one row into `out`, `(cols,)`.
    ///
    /// # Panics
    /// Where `row` or the length of `out` is out of range.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "a row of {} has {} elements", self.name, self.cols);
        match &self.storage {
            Storage::Blocks { dtype, .. } => {
                let bytes = self.row_range(row..row + 1);
                pelton_quant::decode(*dtype, bytes, out).expect("type and length were checked by Weight::new");
            }
            Storage::Grouped(grouped) => grouped.decode_row(row, out),
        }
    }
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {}) {}", self.name, self.rows, self.cols, self.dtype())
    }
}

/// What a backend packs into one linear layer: one or more matrices of the same input width, stacked along the
/// output (Q, K and V; gate and up), each of its own type, and an optional bias.
#[derive(Clone, Debug)]
pub struct LinearSpec {
    /// A name for messages, e.g. `blk.3.attn_qkv`.
    pub name: String,
    /// The matrices, in the order of the output columns.
    pub parts: Vec<Weight>,
    /// `(sum of parts' rows,)`; empty where there is none.
    pub bias: Vec<f32>,
}

impl LinearSpec {
    /// Checks that the parts fit together.
    ///
    /// # Errors
    /// [`BackendError::Shape`] where there is no part, widths differ or the bias has another length.
    pub fn new(name: impl Into<String>, parts: Vec<Weight>, bias: Vec<f32>) -> Result<LinearSpec, BackendError> {
        let name = name.into();
        let Some(cols) = parts.first().map(Weight::cols) else {
            return Err(BackendError::Shape { tensor: name, problem: "no weights given".into() });
        };
        if let Some(odd) = parts.iter().find(|p| p.cols() != cols) {
            let problem = format!("{odd:?} is not {cols} wide as the parts before it");
            return Err(BackendError::Shape { tensor: name, problem });
        }
        let spec = LinearSpec { name, parts, bias };
        if !spec.bias.is_empty() && spec.bias.len() != spec.out_features() {
            let problem = format!("a bias of {} for {} outputs", spec.bias.len(), spec.out_features());
            return Err(BackendError::Shape { tensor: spec.name, problem });
        }
        Ok(spec)
    }

    /// Width of the input.
    pub fn in_features(&self) -> usize {
        self.parts[0].cols()
    }

    /// Width of the output.
    pub fn out_features(&self) -> usize {
        self.parts.iter().map(Weight::rows).sum()
    }
}

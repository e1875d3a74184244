//! Named tensors: a type, a row-major shape, and bytes in place.
//!
//! Invariant: a [`Tensor`] made by a reader has rows that are whole blocks of its type, and
//! `data().len() == rows * row_bytes`; [`Tensor::new`] is the only way in.

use std::collections::HashMap;
use std::ops::Range;

use pelton_quant::DType;

use crate::{Bytes, FormatError};

/// One tensor of a model, in its stored type. Cloning shares the bytes.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Canonical name.
    pub name: String,
    /// Type of the stored blocks.
    pub dtype: DType,
    /// Row-major: `[rows, cols]`, the last dimension is contiguous.
    pub shape: Vec<usize>,
    bytes: Bytes,
}

impl Tensor {
    /// A tensor over `bytes`.
    ///
    /// # Errors
    /// [`FormatError::Tensor`] unless the shape has 1 to 4 dimensions, its rows are whole blocks of `dtype`, and
    /// `bytes` is exactly as long as that needs.
    pub fn new(file: &str, name: &str, dtype: DType, shape: Vec<usize>, bytes: Bytes) -> Result<Tensor, FormatError> {
        let want = byte_len(file, name, dtype, &shape)?;
        if bytes.len() != want {
            let got = format!("{} bytes", bytes.len());
            return Err(FormatError::tensor(file, name, got, format!("{want} bytes for {} {shape:?}", dtype.name())));
        }
        Ok(Tensor { name: name.into(), dtype, shape, bytes })
    }

    /// The stored blocks, row after row. No alignment is promised.
    pub fn data(&self) -> &[u8] {
        &self.bytes
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Elements of one slice along the first dimension; 1 for a vector.
    pub fn row_elements(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// Every element as `f32`, row-major.
    ///
    /// # Errors
    /// [`FormatError::UnsupportedType`] for a type that cannot be decoded.
    pub fn to_f32(&self) -> Result<Vec<f32>, FormatError> {
        let mut out = vec![0.0; self.elements()];
        self.decode_into(&mut out)?;
        Ok(out)
    }

    /// [`Tensor::to_f32`] into `out`, which must have [`Tensor::elements`] elements.
    pub(crate) fn decode_into(&self, out: &mut [f32]) -> Result<(), FormatError> {
        check_decodable("model", &self.name, self.dtype)?;
        pelton_quant::decode(self.dtype, self.data(), out)
            .map_err(|e| FormatError::tensor("model", &self.name, e.to_string(), "blocks that decode"))
    }

    /// The slices `range` along the first dimension, without copying.
    ///
    /// # Panics
    /// If `range` is out of bounds, or if the tensor is a vector of a type with blocks of several elements.
    pub fn rows(&self, range: Range<usize>) -> Tensor {
        let n_rows = self.shape[0];
        assert!(range.start <= range.end && range.end <= n_rows, "rows {range:?} of {n_rows} in `{}`", self.name);
        assert!(self.shape.len() > 1 || self.dtype.block_len() == 1, "rows of the blocked vector `{}`", self.name);
        let row_bytes = self.bytes.len().checked_div(n_rows).unwrap_or(0);
        let mut shape = self.shape.clone();
        shape[0] = range.len();
        let bytes = self.bytes.slice(range.start * row_bytes..range.end * row_bytes);
        Tensor { name: self.name.clone(), dtype: self.dtype, shape, bytes }
    }

    /// Refuses NaN and infinity in any element.
    ///
    /// # Errors
    /// [`FormatError::Tensor`] with the first bad element's index.
    pub fn check_finite(&self, file: &str) -> Result<(), FormatError> {
        match self.to_f32()?.iter().position(|v| !v.is_finite()) {
            None => Ok(()),
            Some(i) => {
                let want = "finite weights; the file is damaged, download it again";
                Err(FormatError::tensor(file, &self.name, format!("NaN or infinity at element {i}"), want))
            }
        }
    }

    pub(crate) fn named(mut self, name: String) -> Tensor {
        self.name = name;
        self
    }

    /// The same bytes under another shape with as many elements and the same rows.
    pub(crate) fn reshaped(mut self, shape: Vec<usize>) -> Tensor {
        assert_eq!(shape.iter().product::<usize>(), self.elements(), "reshape of `{}`", self.name);
        assert_eq!(shape.last(), self.shape.last(), "reshape of `{}` keeps its rows", self.name);
        self.shape = shape;
        self
    }

    pub(crate) fn with_bytes(mut self, bytes: Vec<u8>) -> Tensor {
        assert_eq!(bytes.len(), self.bytes.len(), "new bytes of `{}`", self.name);
        self.bytes = bytes.into();
        self
    }
}

/// Bytes that a tensor of this type and shape takes.
///
/// # Errors
/// [`FormatError::Tensor`] for no or more than four dimensions, an overflow, or rows that are no whole blocks.
pub(crate) fn byte_len(file: &str, name: &str, dtype: DType, shape: &[usize]) -> Result<usize, FormatError> {
    let bad = |want: String| FormatError::tensor(file, name, format!("{} {shape:?}", dtype.name()), want);
    if shape.is_empty() || shape.len() > 4 {
        return Err(bad("1 to 4 dimensions".into()));
    }
    let (cols, outer) = shape.split_last().map(|(&c, o)| (c, o)).unwrap_or((0, &[]));
    let row = dtype
        .row_bytes(cols)
        .ok_or_else(|| bad(format!("rows that are a multiple of {} elements", dtype.block_len())))?;
    let rows = outer.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let elements = rows.and_then(|n| n.checked_mul(cols));
    match (rows.and_then(|n| n.checked_mul(row)), elements) {
        (Some(bytes), Some(_)) => Ok(bytes),
        _ => Err(bad("a shape whose size fits in memory".into())),
    }
}

/// Refuses a type that Pelton cannot decode, by name.
pub(crate) fn check_decodable(file: &str, tensor: &str, dtype: DType) -> Result<(), FormatError> {
    if dtype.can_decode() {
        return Ok(());
    }
    Err(FormatError::UnsupportedType {
        file: file.into(),
        tensor: tensor.into(),
        dtype: dtype.name().into(),
        supported: supported_types(),
    })
}

/// The names of all types that decode, separated by commas.
pub(crate) fn supported_types() -> String {
    let names = DType::DECODABLE.iter().map(|t| t.name());
    names.collect::<Vec<_>>().join(", ")
}

/// A model's tensors by canonical name, in the order of the file.
#[derive(Clone, Debug, Default)]
pub struct Tensors {
    file: String,
    list: Vec<Tensor>,
    index: HashMap<String, usize>,
}

impl Tensors {
    /// No tensors yet; `file` is what error messages name.
    pub fn new(file: &str) -> Tensors {
        Tensors { file: file.into(), ..Tensors::default() }
    }

    /// Adds a tensor under its name.
    ///
    /// # Errors
    /// [`FormatError::Tensor`] when there is one of that name already.
    pub fn insert(&mut self, tensor: Tensor) -> Result<(), FormatError> {
        if self.index.contains_key(&tensor.name) {
            return Err(FormatError::tensor(&self.file, &tensor.name, "it twice", "each tensor once"));
        }
        self.index.insert(tensor.name.clone(), self.list.len());
        self.list.push(tensor);
        Ok(())
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.index.get(name).map(|&i| &self.list[i])
    }

    /// The tensor of that name, which must have that shape.
    ///
    /// # Errors
    /// [`FormatError::Tensor`] when it is missing or has another shape.
    pub fn require(&self, name: &str, shape: &[usize]) -> Result<&Tensor, FormatError> {
        let Some(tensor) = self.get(name) else {
            let want = format!("a tensor of shape {shape:?}; the file is incomplete");
            return Err(FormatError::tensor(&self.file, name, "nothing", want));
        };
        if tensor.shape != shape {
            let got = format!("shape {:?}", tensor.shape);
            return Err(FormatError::tensor(&self.file, name, got, format!("shape {shape:?}")));
        }
        Ok(tensor)
    }

    /// All tensors, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Tensor> {
        self.list.iter()
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// What error messages call the file.
    pub fn file(&self) -> &str {
        &self.file
    }
}

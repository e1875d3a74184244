//! Named tensors: a type, a row-major shape, and bytes in place.
//!
//! Invariant: a [`Tensor`] in blocks has rows that are whole blocks of its type, and `data().len() == rows * row_bytes`;
//! [`Tensor::new`] checks it. Grouped tensors are matrices, whose arrays their readers have checked ([`Tensor::grouped`]).

use std::collections::HashMap;
use std::ops::Range;

use pelton_quant::{DType, Grouped, WeightType};

use crate::{Bytes, FormatError, in_situ};

/// One tensor of a model, in its stored type. Cloning shares the bytes.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Canonical name.
    pub name: String,
    /// What it is stored as.
    pub dtype: WeightType,
    /// Row-major: `[rows, cols]`, the last dimension is contiguous.
    pub shape: Vec<usize>,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Blocks(Bytes),
    Grouped(Grouped),
    /// To be made from this tensor when the model is loaded.
    Marked(Box<Tensor>, usize),
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
        Ok(Tensor { name: name.into(), dtype: dtype.into(), shape, content: Content::Blocks(bytes) })
    }

    /// A matrix of codes in groups.
    pub fn grouped(name: &str, grouped: Grouped) -> Tensor {
        let (dtype, shape) = (grouped.kind().into(), vec![grouped.rows(), grouped.cols()]);
        Tensor { name: name.into(), dtype, shape, content: Content::Grouped(grouped) }
    }

    /// The stored blocks, row after row. No alignment is promised.
    ///
    /// # Panics
    /// For a tensor that is not stored in blocks: see [`Tensor::blocks`].
    pub fn data(&self) -> &[u8] {
        self.blocks().unwrap_or_else(|| panic!("`{}` is {}, which has no blocks", self.name, self.dtype))
    }

    /// The stored blocks; `None` for grouped tensors and for those that are yet to be made.
    pub fn blocks(&self) -> Option<&[u8]> {
        match &self.content {
            Content::Blocks(bytes) => Some(bytes),
            Content::Grouped(_) | Content::Marked(..) => None,
        }
    }

    /// The arrays of a grouped tensor.
    pub fn as_grouped(&self) -> Option<&Grouped> {
        match &self.content {
            Content::Grouped(grouped) => Some(grouped),
            Content::Blocks(_) | Content::Marked(..) => None,
        }
    }

    /// Bytes that it takes as it is stored (or will be).
    pub fn byte_len(&self) -> usize {
        match (&self.content, self.dtype) {
            (Content::Blocks(bytes), _) => bytes.len(),
            (Content::Grouped(grouped), _) => grouped.byte_len(),
            (Content::Marked(from, _), dtype) => in_situ::byte_len(from, dtype),
        }
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
        match &self.content {
            Content::Blocks(bytes) => {
                let dtype = self.dtype.blocks().expect("blocks have a block type");
                check_decodable("model", &self.name, dtype)?;
                pelton_quant::decode(dtype, bytes, out)
                    .map_err(|e| FormatError::tensor("model", &self.name, e.to_string(), "blocks that decode"))
            }
            Content::Grouped(grouped) => {
                let rows = out.chunks_exact_mut(grouped.cols()).enumerate();
                rows.for_each(|(row, out)| grouped.decode_row(row, out));
                Ok(())
            }
            Content::Marked(..) => self.stored("model")?.decode_into(out),
        }
    }

    /// The tensor with the type `dtype`, which [`Tensor::stored`] will give it, on so many threads.
    ///
    /// # Errors
    /// [`FormatError::Tensor`] where this one is no matrix of floats, or its rows are no whole blocks of `dtype`.
    pub fn marked(&self, dtype: WeightType, threads: usize) -> Result<Tensor, FormatError> {
        in_situ::check(self, dtype)?;
        let content = Content::Marked(Box::new(self.clone()), threads.max(1));
        Ok(Tensor { name: self.name.clone(), dtype, shape: self.shape.clone(), content })
    }

    /// The tensor that this one is made from, where it is marked to be made.
    pub fn source(&self) -> Option<&Tensor> {
        match &self.content {
            Content::Marked(from, _) => Some(from),
            Content::Blocks(_) | Content::Grouped(_) => None,
        }
    }

    /// The tensor as it is, or as it was [`marked`](Tensor::marked) to become: blocks are encoded now, grouped weights
    /// whenever rows of them are asked for.
    ///
    /// # Errors
    /// [`FormatError::Tensor`] where the type cannot hold the values, or a scale is NaN or infinite.
    pub fn stored(&self, file: &str) -> Result<Tensor, FormatError> {
        match &self.content {
            Content::Blocks(_) => Ok(self.clone()),
            Content::Grouped(grouped) => match grouped.odd_scale() {
                None => Ok(self.clone()),
                Some((row, group)) => {
                    let got = format!("a scale of row {row}, group {group}, that is NaN or infinite");
                    let want = "finite scales; the file is damaged, download it again";
                    Err(FormatError::tensor(file, &self.name, got, want))
                }
            },
            Content::Marked(from, threads) => in_situ::encode(file, from, self.dtype, *threads),
        }
    }

    /// The slices `range` along the first dimension, without copying.
    ///
    /// # Panics
    /// If `range` is out of bounds, or if the tensor is a vector of a type with blocks of several elements.
    pub fn rows(&self, range: Range<usize>) -> Tensor {
        let n_rows = self.shape[0];
        assert!(range.start <= range.end && range.end <= n_rows, "rows {range:?} of {n_rows} in `{}`", self.name);
        let is_plain = self.dtype.blocks().is_some_and(|dtype| dtype.block_len() == 1);
        assert!(self.shape.len() > 1 || is_plain, "rows of the blocked vector `{}`", self.name);
        let mut shape = self.shape.clone();
        shape[0] = range.len();
        let content = match &self.content {
            Content::Blocks(bytes) => {
                let row_bytes = bytes.len().checked_div(n_rows).unwrap_or(0);
                Content::Blocks(bytes.slice(range.start * row_bytes..range.end * row_bytes))
            }
            Content::Grouped(grouped) => Content::Grouped(grouped.part(range)),
            Content::Marked(from, threads) => Content::Marked(Box::new(from.rows(range)), *threads),
        };
        Tensor { name: self.name.clone(), dtype: self.dtype, shape, content }
    }

    /// Lets the pages of a mapped file go that hold this tensor.
    pub(crate) fn release(&self) {
        match &self.content {
            Content::Blocks(bytes) => bytes.release(),
            Content::Marked(from, _) => from.release(),
            Content::Grouped(_) => {}
        }
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
        assert_eq!(bytes.len(), self.data().len(), "new bytes of `{}`", self.name);
        self.content = Content::Blocks(bytes.into());
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

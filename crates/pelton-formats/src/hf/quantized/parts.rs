//! The tensors of a folder by name, and which of them were used.
//!
//! Invariant: a [`Part`]'s bytes are as long as its type and shape say; [`Part::is`] tells type and shape.

use std::collections::{BTreeMap, HashSet};

use super::numbers::Numbers;
use crate::error::brief;
use crate::hf::{SafetensorsFile, SafetensorsInfo};
use crate::{Bytes, FormatError};

/// All tensors of a folder.
pub(super) struct Parts<'a> {
    by_name: BTreeMap<&'a str, (&'a SafetensorsFile, &'a SafetensorsInfo)>,
    used: HashSet<String>,
}

/// One of them.
#[derive(Clone)]
pub(super) struct Part<'a> {
    pub(super) file: &'a str,
    pub(super) name: &'a str,
    pub(super) dtype: &'a str,
    pub(super) shape: &'a [usize],
    pub(super) bytes: Bytes,
}

impl<'a> Parts<'a> {
    pub(super) fn new(files: &'a [SafetensorsFile]) -> Parts<'a> {
        let all = files.iter().flat_map(|f| f.tensors.iter().map(move |t| (t.name.as_str(), (f, t))));
        Parts { by_name: all.collect(), used: HashSet::new() }
    }

    /// All names, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.by_name.keys().copied().collect::<Vec<_>>().into_iter()
    }

    /// Whether the module's codes were taken.
    pub(super) fn has_used(&self, module: &str) -> bool {
        ["weight", "qweight", "weight_packed"].iter().any(|suffix| self.used.contains(&format!("{module}.{suffix}")))
    }

    /// The file that holds the first tensor of a module.
    pub(super) fn file_of(&self, module: &str) -> &'a str {
        let first = self.by_name.range(module..).next();
        first.map_or("", |(_, (file, _))| file.name())
    }

    /// Takes the tensor `module.suffix`.
    pub(super) fn take(&mut self, module: &str, suffix: &str) -> Option<Part<'a>> {
        let (name, (file, info)) = self.by_name.get_key_value(format!("{module}.{suffix}").as_str())?;
        self.used.insert((*name).to_owned());
        Some(Part { file: file.name(), name, dtype: &info.dtype, shape: &info.shape, bytes: file.bytes_of(info) })
    }

    /// Takes a tensor that must be there.
    ///
    /// # Errors
    /// [`FormatError::Tensor`] says that it is missing.
    pub(super) fn need(&mut self, module: &str, suffix: &str) -> Result<Part<'a>, FormatError> {
        let file = self.file_of(module);
        self.take(module, suffix).ok_or_else(|| {
            let want =
                "it beside the other tensors of this module, as quantization_config says; the file is incomplete";
            FormatError::tensor(file, brief(&format!("{module}.{suffix}")), "nothing", want)
        })
    }

    /// Names of what was taken.
    pub(super) fn into_used(self) -> HashSet<String> {
        self.used
    }
}

impl Part<'_> {
    /// An error about this tensor.
    pub(super) fn wrong(&self, got: impl Into<String>, want: impl Into<String>) -> FormatError {
        FormatError::tensor(self.file, brief(self.name), got, want)
    }

    /// Its type and its shape as an error shows them.
    pub(super) fn what(&self) -> String {
        format!("{} {:?}", brief(self.dtype), self.shape)
    }

    /// The bytes, where the tensor has that type and shape.
    ///
    /// # Errors
    /// [`FormatError::Tensor`] with both.
    pub(super) fn is(&self, dtype: &str, shape: &[usize], why: &str) -> Result<Bytes, FormatError> {
        if self.dtype == dtype && self.shape == shape {
            return Ok(self.bytes.clone());
        }
        Err(self.wrong(self.what(), format!("{dtype} {shape:?}{}{why}", if why.is_empty() { "" } else { ", " })))
    }

    /// Rows and columns of a matrix that is not empty.
    ///
    /// # Errors
    /// [`FormatError::Tensor`] for another type or shape.
    pub(super) fn matrix(&self, dtypes: &[&str]) -> Result<(usize, usize), FormatError> {
        match *self.shape {
            [rows, cols] if rows > 0 && cols > 0 && dtypes.contains(&self.dtype) => Ok((rows, cols)),
            _ => {
                Err(self
                    .wrong(self.what(), format!("a matrix of {}, as quantization_config says", dtypes.join(" or "))))
            }
        }
    }

    /// Floats of one of the shapes.
    ///
    /// # Errors
    /// [`FormatError::Tensor`] for another type or shape.
    pub(super) fn floats(&self, shapes: &[&[usize]], why: &str) -> Result<Numbers, FormatError> {
        let numbers = match self.dtype {
            "F32" => Numbers::F32(self.bytes.clone()),
            "F16" => Numbers::F16(self.bytes.clone()),
            "BF16" => Numbers::Bf16(self.bytes.clone()),
            _ => return Err(self.wrong(self.what(), "F32, F16 or BF16")),
        };
        if shapes.contains(&self.shape) {
            return Ok(numbers);
        }
        let shapes: Vec<String> = shapes.iter().map(|s| format!("{s:?}")).collect();
        Err(self.wrong(self.what(), format!("shape {}, {why}", shapes.join(" or "))))
    }

    /// Signed 32- or 64-bit integers.
    ///
    /// # Errors
    /// [`FormatError::Tensor`] for another type.
    pub(super) fn integers(&self) -> Result<Vec<i64>, FormatError> {
        let bytes: &[u8] = &self.bytes;
        match self.dtype {
            "I32" => Ok(bytes.as_chunks().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect()),
            "I64" => Ok(bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()),
            _ => Err(self.wrong(self.what(), "I32 or I64")),
        }
    }
}

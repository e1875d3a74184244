//! Parses the header of one GGUF file.
//!
//! Layout: magic, version, tensor count, key count, keys, tensor descriptions, padding, tensor data.
//! Invariant: each [`TensorInfo`] names a range inside the file that fits its type and shape and overlaps no other.

use pelton_quant::DType;

use super::cursor::Cursor;
use super::metadata::{Metadata, Value};
use super::{DEFAULT_ALIGNMENT, MAGIC};
use crate::error::brief;
use crate::tensors::{byte_len, check_decodable, supported_types};
use crate::{Bytes, FormatError, Tensor};

/// Where a tensor lies in its file.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Name in the file.
    pub name: String,
    /// Type of its blocks.
    pub dtype: DType,
    /// Row-major shape (the file has it reversed).
    pub shape: Vec<usize>,
    /// Bytes from the start of the file.
    pub start: usize,
    /// Length in bytes.
    pub len: usize,
}

/// A parsed GGUF file.
#[derive(Clone, Debug)]
pub struct GgufFile {
    /// 2 or 3.
    pub version: u32,
    /// Its keys and values.
    pub metadata: Metadata,
    /// Its tensors, in the file's order.
    pub tensors: Vec<TensorInfo>,
    name: String,
    bytes: Bytes,
}

impl GgufFile {
    /// Parses `bytes`; `name` is what error messages call the file.
    ///
    /// # Errors
    /// [`FormatError`] for anything that is not a sound little-endian GGUF file of version 2 or 3.
    pub fn parse(bytes: Bytes, name: &str) -> Result<GgufFile, FormatError> {
        let mut cursor = Cursor::new(name, &bytes);
        let version = read_version(&mut cursor, name)?;
        // A tensor's description takes at least 8 + 4 + 8 + 4 + 8 bytes, a key at least 8 + 4 + 1.
        let n_tensors = cursor.count(32, "tensor count")?;
        let n_keys = cursor.count(13, "key count")?;
        let mut metadata = Metadata::new(name);
        for i in 0..n_keys {
            let key = cursor.string(&format!("key {i}"))?;
            let value = cursor.value(&key)?;
            metadata.insert(&key, value)?;
        }
        let alignment = alignment(&metadata)?;
        let mut described = Vec::with_capacity(n_tensors);
        for i in 0..n_tensors {
            described.push(read_description(&mut cursor, name, i)?);
        }
        let data_start = cursor.at().next_multiple_of(alignment);
        let tensors = place(described, data_start, alignment, bytes.len(), name)?;
        Ok(GgufFile { version, metadata, tensors, name: name.into(), bytes })
    }

    /// What error messages call the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Length of the file in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the file has no bytes (never true of a parsed file).
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The tensor that `info`, one of this file's, describes.
    ///
    /// # Errors
    /// [`FormatError::UnsupportedType`] when its type cannot be decoded.
    pub fn tensor(&self, info: &TensorInfo) -> Result<Tensor, FormatError> {
        check_decodable(&self.name, &info.name, info.dtype)?;
        let bytes = self.bytes.slice(info.start..info.start + info.len);
        Tensor::new(&self.name, &info.name, info.dtype, info.shape.clone(), bytes)
    }
}

fn read_version(cursor: &mut Cursor<'_>, name: &str) -> Result<u32, FormatError> {
    let magic: [u8; 4] = cursor.array("magic")?;
    if magic != MAGIC {
        let got = format!("bytes {magic:02x?}");
        return Err(FormatError::malformed(name, "magic", got, "`GGUF`; this is not a GGUF file"));
    }
    let version = cursor.u32("version")?;
    match version {
        2 | 3 => Ok(version),
        1 => Err(FormatError::malformed(name, "version", "1", "2 or 3; convert the model again with a current tool")),
        v if v & 0xffff == 0 && v != 0 => {
            let got = format!("a big-endian file (version {})", v.swap_bytes());
            Err(FormatError::malformed(name, "byte order", got, "little endian; get the little-endian file"))
        }
        v => Err(FormatError::malformed(name, "version", v.to_string(), "2 or 3")),
    }
}

fn alignment(metadata: &Metadata) -> Result<usize, FormatError> {
    const KEY: &str = "general.alignment";
    match metadata.get(KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(n)) if n.is_power_of_two() && *n <= 1 << 20 => Ok(*n as usize),
        Some(other) => {
            Err(FormatError::key(metadata.file(), KEY, other.to_string(), "a u32 power of two up to 1048576"))
        }
    }
}

/// A description as it stands in the file: the offset counts from the start of the data section.
struct Described {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    offset: u64,
}

fn read_description(cursor: &mut Cursor<'_>, file: &str, i: usize) -> Result<Described, FormatError> {
    let name = cursor.string(&format!("name of tensor {i}"))?;
    let bad = |got: String, want: &str| Err(FormatError::tensor(file, brief(&name), got, want));
    let n_dims = cursor.u32(&format!("dimension count of tensor `{name}`"))?;
    if !(1..=4).contains(&n_dims) {
        return bad(format!("{n_dims} dimensions"), "1 to 4 dimensions");
    }
    let mut shape = Vec::with_capacity(n_dims as usize);
    for _ in 0..n_dims {
        let dim = cursor.u64(&format!("dimensions of tensor `{name}`"))?;
        match usize::try_from(dim) {
            Ok(dim) if dim > 0 => shape.push(dim),
            _ => return bad(format!("a dimension of {dim}"), "dimensions of at least 1"),
        }
    }
    shape.reverse();
    let id = cursor.u32(&format!("type of tensor `{name}`"))?;
    let Some(dtype) = DType::from_ggml_id(id) else {
        return Err(FormatError::UnsupportedType {
            file: file.into(),
            tensor: brief(&name),
            dtype: format!("number {id}"),
            supported: supported_types(),
        });
    };
    let offset = cursor.u64(&format!("offset of tensor `{name}`"))?;
    Ok(Described { name, dtype, shape, offset })
}

/// Turns offsets into checked ranges of the file.
fn place(
    described: Vec<Described>,
    data_start: usize,
    alignment: usize,
    file_len: usize,
    file: &str,
) -> Result<Vec<TensorInfo>, FormatError> {
    let mut names = std::collections::HashSet::with_capacity(described.len());
    let mut out = Vec::with_capacity(described.len());
    for Described { name, dtype, shape, offset } in described {
        if !names.insert(name.clone()) {
            return Err(FormatError::tensor(file, brief(&name), "it twice", "each tensor once"));
        }
        if !offset.is_multiple_of(alignment as u64) {
            let want = format!("a multiple of the alignment {alignment}");
            return Err(FormatError::tensor(file, brief(&name), format!("offset {offset}"), want));
        }
        let len = byte_len(file, &brief(&name), dtype, &shape)?;
        let start = usize::try_from(offset).ok().and_then(|o| o.checked_add(data_start));
        let end = start.and_then(|s| s.checked_add(len));
        match (start, end) {
            (Some(start), Some(end)) if end <= file_len => out.push(TensorInfo { name, dtype, shape, start, len }),
            _ => {
                let got = format!("{len} bytes at data offset {offset}");
                let want =
                    format!("an end within the file's {file_len} bytes; the file is cut short, download it again");
                return Err(FormatError::tensor(file, brief(&name), got, want));
            }
        }
    }
    let mut order: Vec<&TensorInfo> = out.iter().collect();
    order.sort_by_key(|t| t.start);
    for pair in order.windows(2) {
        if pair[0].start + pair[0].len > pair[1].start {
            let got = format!("bytes that `{}` uses too", brief(&pair[0].name));
            return Err(FormatError::tensor(file, brief(&pair[1].name), got, "tensors that do not overlap"));
        }
    }
    Ok(out)
}

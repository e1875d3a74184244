//! Reads the header of a safetensors file.
//!
//! Format: `u64` header length, a JSON object from names to `{dtype, shape, data_offsets}`, then the data, which the
//! tensors cover without gaps (the safetensors README). The `safetensors` crate's parser adds lengths unchecked, so
//! the header is parsed here. Invariant: each [`SafetensorsInfo`] names a range inside the file that fits its shape.

use std::ops::Range;

use pelton_quant::DType;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::error::brief;
use crate::{Bytes, FormatError, Tensor};

/// The reference implementation refuses longer headers too.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Where a tensor lies in its file.
#[derive(Clone, Debug)]
pub struct SafetensorsInfo {
    /// Name in the file.
    pub name: String,
    /// Type as the file spells it.
    pub dtype: String,
    /// Row-major shape.
    pub shape: Vec<usize>,
    range: Range<usize>,
}

/// A parsed safetensors file.
#[derive(Clone, Debug)]
pub struct SafetensorsFile {
    /// Its tensors, by position in the file.
    pub tensors: Vec<SafetensorsInfo>,
    name: String,
    bytes: Bytes,
}

impl SafetensorsFile {
    /// Parses `bytes`; `name` is what error messages call the file.
    ///
    /// # Errors
    /// [`FormatError`] for anything that is not a sound safetensors file.
    pub fn parse(bytes: Bytes, name: &str) -> Result<SafetensorsFile, FormatError> {
        let (header, data_start) = header(&bytes, name)?;
        let Header(entries) = serde_json::from_slice(header)
            .map_err(|e| FormatError::malformed(name, "header", e.to_string(), "JSON that describes tensors"))?;
        let mut tensors = Vec::with_capacity(entries.len());
        let mut names = std::collections::HashSet::with_capacity(entries.len());
        for (tensor, entry) in entries {
            if !names.insert(tensor.clone()) {
                return Err(FormatError::tensor(name, brief(&tensor), "it twice", "each tensor once"));
            }
            tensors.push(entry.check(name, tensor, data_start, bytes.len())?);
        }
        tensors.sort_by_key(|t| (t.range.start, t.range.end));
        let mut end = data_start;
        for t in &tensors {
            if t.range.start != end {
                let got = format!("data at offset {}", t.range.start - data_start);
                let want = format!("offset {}: tensors follow each other without gaps", end - data_start);
                return Err(FormatError::tensor(name, brief(&t.name), got, want));
            }
            end = t.range.end;
        }
        if end != bytes.len() {
            let got = format!("{} bytes in all", bytes.len());
            return Err(FormatError::malformed(name, "data", got, format!("{end}, where the last tensor ends")));
        }
        Ok(SafetensorsFile { tensors, name: name.into(), bytes })
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

    /// The bytes of the tensor that `info`, one of this file's, describes.
    pub(crate) fn bytes_of(&self, info: &SafetensorsInfo) -> Bytes {
        self.bytes.slice(info.range.clone())
    }

    /// The tensor that `info`, one of this file's, describes.
    ///
    /// # Errors
    /// [`FormatError::UnsupportedType`] for a type other than F32, F16 and BF16; [`FormatError::Tensor`] for scalars
    /// and empty tensors.
    pub fn tensor(&self, info: &SafetensorsInfo) -> Result<Tensor, FormatError> {
        let dtype = match info.dtype.as_str() {
            "F32" => DType::F32,
            "F16" => DType::F16,
            "BF16" => DType::BF16,
            other => {
                return Err(FormatError::UnsupportedType {
                    file: self.name.clone(),
                    tensor: brief(&info.name),
                    dtype: brief(other),
                    supported: "F32, F16, BF16 (or a GGUF file for quantized weights)".into(),
                });
            }
        };
        if info.shape.contains(&0) {
            let got = format!("shape {:?}", info.shape);
            return Err(FormatError::tensor(&self.name, brief(&info.name), got, "dimensions of at least 1"));
        }
        Tensor::new(&self.name, &info.name, dtype, info.shape.clone(), self.bytes.slice(info.range.clone()))
    }
}

/// The header's bytes and where the data starts.
fn header<'a>(bytes: &'a [u8], name: &str) -> Result<(&'a [u8], usize), FormatError> {
    let short = |want: String| {
        let got = format!("a file of {} bytes", bytes.len());
        FormatError::malformed(name, "header", got, format!("{want}; the file is cut short, download it again"))
    };
    let Some((len, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(short("at least 8 bytes".into()));
    };
    let len = u64::from_le_bytes(*len);
    if len > MAX_HEADER_BYTES {
        let want = format!("at most {MAX_HEADER_BYTES} bytes; this is no safetensors file");
        return Err(FormatError::malformed(name, "header length", len.to_string(), want));
    }
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    match rest.get(..len) {
        Some(header) => Ok((header, 8 + len)),
        None => Err(short(format!("a header of {len} bytes"))),
    }
}

/// The JSON object in its order, duplicates kept so that they can be refused.
struct Header(Vec<(String, Entry)>);

#[derive(serde::Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Header, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object from tensor names to descriptions")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl Entry {
    fn check(self, file: &str, name: String, data_start: usize, len: usize) -> Result<SafetensorsInfo, FormatError> {
        let bad = |got: String, want: String| Err(FormatError::tensor(file, brief(&name), got, want));
        let offset = |o: u64| usize::try_from(o).ok().and_then(|o| o.checked_add(data_start)).filter(|&o| o <= len);
        let (start, end) = match (offset(self.data_offsets.0), offset(self.data_offsets.1)) {
            (Some(start), Some(end)) if start <= end => (start, end),
            _ => {
                let got = format!("data offsets {:?}", self.data_offsets);
                return bad(
                    got,
                    format!("a range within the {} bytes of data; the file is cut short", len - data_start),
                );
            }
        };
        let shape: Option<Vec<usize>> = self.shape.iter().map(|&d| usize::try_from(d).ok()).collect();
        let shape = shape.unwrap_or_else(|| vec![usize::MAX; 2]);
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        // Types that Pelton does not read are refused by name only where the model needs the tensor.
        let bits = match self.dtype.as_str() {
            "F64" | "I64" | "U64" | "C64" => 64,
            "F32" | "I32" | "U32" => 32,
            "F16" | "BF16" | "I16" | "U16" => 16,
            "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => 8,
            "F6_E2M3" | "F6_E3M2" => 6,
            "F4" => 4,
            other => {
                let supported = "F32, F16, BF16".into();
                let (file, tensor, dtype) = (file.into(), brief(&name), brief(other));
                return Err(FormatError::UnsupportedType { file, tensor, dtype, supported });
            }
        };
        match elements.and_then(|n| n.checked_mul(bits)) {
            Some(n) if n.is_multiple_of(8) && n / 8 == end - start => {
                Ok(SafetensorsInfo { name, dtype: self.dtype, shape, range: start..end })
            }
            _ => {
                let want = format!("as many as {} {:?} needs", brief(&self.dtype), self.shape);
                bad(format!("{} bytes of data", end - start), want)
            }
        }
    }
}

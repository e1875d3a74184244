//! Reads a GGUF header front to back.
//!
//! Invariant: every read is checked against the end of the bytes, and every count against the bytes that are left,
//! before anything is allocated.

use super::metadata::{Array, Value};
use crate::FormatError;
use crate::error::brief;

/// Arrays of arrays may nest this deep.
const MAX_NESTING: usize = 4;

pub(super) struct Cursor<'a> {
    file: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a str, bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { file, bytes, at: 0 }
    }

    /// Bytes read so far.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], FormatError> {
        if n > self.left() {
            let got = format!("the end of the file after {} bytes", self.bytes.len());
            let want = format!("{n} bytes at offset {}; the file is cut short, download it again", self.at);
            return Err(FormatError::malformed(self.file, brief(what), got, want));
        }
        let out = &self.bytes[self.at..self.at + n];
        self.at += n;
        Ok(out)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], FormatError> {
        let bytes = self.take(N, what)?;
        let mut out = [0; N];
        out.copy_from_slice(bytes);
        Ok(out)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, FormatError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, FormatError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of things that take at least `min_bytes` each, checked against what is left of the file.
    pub(super) fn count(&mut self, min_bytes: usize, what: &str) -> Result<usize, FormatError> {
        let n = self.u64(what)?;
        let fits = self.left() / min_bytes;
        match usize::try_from(n) {
            Ok(n) if n <= fits => Ok(n),
            _ => {
                let want = format!("at most {fits}, which is what the rest of the file has room for");
                Err(FormatError::malformed(self.file, brief(what), n.to_string(), want))
            }
        }
    }

    pub(super) fn string(&mut self, what: &str) -> Result<String, FormatError> {
        let n = self.count(1, what)?;
        let bytes = self.take(n, what)?;
        match std::str::from_utf8(bytes) {
            Ok(s) => Ok(s.to_owned()),
            Err(e) => {
                let got = format!("invalid UTF-8 at byte {}", e.valid_up_to());
                Err(FormatError::malformed(self.file, brief(what), got, "UTF-8 text"))
            }
        }
    }

    pub(super) fn value(&mut self, key: &str) -> Result<Value, FormatError> {
        let what = format!("value of `{key}`");
        let what = what.as_str();
        Ok(match self.u32(&format!("type of `{key}`"))? {
            0 => Value::U8(self.array::<1>(what)?[0]),
            1 => Value::I8(i8::from_le_bytes(self.array(what)?)),
            2 => Value::U16(u16::from_le_bytes(self.array(what)?)),
            3 => Value::I16(i16::from_le_bytes(self.array(what)?)),
            4 => Value::U32(self.u32(what)?),
            5 => Value::I32(i32::from_le_bytes(self.array(what)?)),
            6 => Value::F32(f32::from_le_bytes(self.array(what)?)),
            7 => Value::Bool(self.bool(what)?),
            8 => Value::String(self.string(what)?),
            9 => Value::Array(self.typed_array(what, 0)?),
            10 => Value::U64(self.u64(what)?),
            11 => Value::I64(i64::from_le_bytes(self.array(what)?)),
            12 => Value::F64(f64::from_le_bytes(self.array(what)?)),
            other => return Err(self.unknown_type(key, other)),
        })
    }

    fn unknown_type(&self, what: &str, id: u32) -> FormatError {
        FormatError::malformed(self.file, brief(what), format!("value type {id}"), "a type between 0 and 12")
    }

    fn bool(&mut self, what: &str) -> Result<bool, FormatError> {
        match self.array::<1>(what)?[0] {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(FormatError::malformed(self.file, brief(what), other.to_string(), "0 or 1 for a boolean")),
        }
    }

    fn typed_array(&mut self, what: &str, depth: usize) -> Result<Array, FormatError> {
        if depth == MAX_NESTING {
            let want = format!("at most {MAX_NESTING} levels");
            return Err(FormatError::malformed(self.file, brief(what), "arrays nested deeper", want));
        }
        let kind = self.u32(&format!("element type of {what}"))?;
        Ok(match kind {
            0 => Array::U8(self.elements(what, u8::from_le_bytes)?),
            1 => Array::I8(self.elements(what, i8::from_le_bytes)?),
            2 => Array::U16(self.elements(what, u16::from_le_bytes)?),
            3 => Array::I16(self.elements(what, i16::from_le_bytes)?),
            4 => Array::U32(self.elements(what, u32::from_le_bytes)?),
            5 => Array::I32(self.elements(what, i32::from_le_bytes)?),
            6 => Array::F32(self.elements(what, f32::from_le_bytes)?),
            7 => {
                let n = self.count(1, what)?;
                Array::Bool((0..n).map(|_| self.bool(what)).collect::<Result<_, _>>()?)
            }
            8 => {
                let n = self.count(8, what)?;
                Array::String((0..n).map(|_| self.string(what)).collect::<Result<_, _>>()?)
            }
            9 => {
                let n = self.count(12, what)?;
                Array::Array((0..n).map(|_| self.typed_array(what, depth + 1)).collect::<Result<_, _>>()?)
            }
            10 => Array::U64(self.elements(what, u64::from_le_bytes)?),
            11 => Array::I64(self.elements(what, i64::from_le_bytes)?),
            12 => Array::F64(self.elements(what, f64::from_le_bytes)?),
            other => return Err(self.unknown_type(what, other)),
        })
    }

    fn elements<T, const N: usize>(&mut self, what: &str, read: fn([u8; N]) -> T) -> Result<Vec<T>, FormatError> {
        let n = self.count(N, what)?;
        let bytes = self.take(n * N, what)?;
        let (chunks, _) = bytes.as_chunks::<N>();
        Ok(chunks.iter().map(|&c| read(c)).collect())
    }
}

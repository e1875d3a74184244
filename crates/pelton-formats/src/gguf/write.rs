//! Writes GGUF version 3, streaming.
//!
//! First every key and tensor is declared, so that all offsets are known; then the tensors' bytes follow in that
//! order. Invariant: the file appears under its name only when it is whole (temporary file, sync, rename).

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use pelton_quant::DType;

use super::metadata::{Array, Metadata, Value};
use super::{DEFAULT_ALIGNMENT, MAGIC};
use crate::FormatError;
use crate::tensors::byte_len;

/// Declares the content of a GGUF file.
#[derive(Debug)]
pub struct Writer {
    file: String,
    metadata: Metadata,
    tensors: Vec<(String, DType, Vec<usize>, usize)>,
    names: HashSet<String>,
}

impl Writer {
    /// An empty file; `file` is what error messages call it.
    pub fn new(file: &str) -> Writer {
        Writer { file: file.into(), metadata: Metadata::new(file), tensors: Vec::new(), names: HashSet::new() }
    }

    /// Adds a key.
    ///
    /// # Errors
    /// [`FormatError::Key`] when it is there already, or is `general.alignment`, which is always the default here.
    pub fn set(&mut self, key: &str, value: Value) -> Result<(), FormatError> {
        if key == "general.alignment" {
            return Err(FormatError::key(
                &self.file,
                key,
                value.to_string(),
                "no such key: the alignment is always 32",
            ));
        }
        self.metadata.insert(key, value)
    }

    /// Declares the next tensor, with its row-major shape.
    ///
    /// # Errors
    /// [`FormatError::Tensor`] for a name used before, or a shape that does not fit the type.
    pub fn declare(&mut self, name: &str, dtype: DType, shape: &[usize]) -> Result<(), FormatError> {
        let len = byte_len(&self.file, name, dtype, shape)?;
        if !self.names.insert(name.into()) {
            return Err(FormatError::tensor(&self.file, name, "it twice", "each tensor once"));
        }
        self.tensors.push((name.into(), dtype, shape.to_vec(), len));
        Ok(())
    }

    /// Writes the header to a temporary file beside `path` and returns what takes the tensors' bytes.
    ///
    /// # Errors
    /// [`FormatError::Io`].
    pub fn create(self, path: &Path) -> Result<Body, FormatError> {
        let header = self.header();
        let temp = temp_path(path);
        let file =
            OpenOptions::new().write(true).create_new(true).open(&temp).map_err(FormatError::io(&temp, "create"))?;
        let lens = self.tensors.iter().map(|t| (t.0.clone(), t.3)).collect();
        let mut body = Body {
            out: Some(BufWriter::with_capacity(1 << 20, file)),
            temp,
            path: path.into(),
            lens,
            next: 0,
            written: 0,
        };
        body.put(&header)?;
        body.pad(header.len())?;
        Ok(body)
    }

    /// Everything before the tensors' bytes. These begin at the next multiple of [`DEFAULT_ALIGNMENT`], each tensor's at
    /// one after the end of the one before.
    pub fn header(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&3u32.to_le_bytes());
        put_len(&mut out, self.tensors.len());
        put_len(&mut out, self.metadata.len());
        for (key, value) in self.metadata.iter() {
            put_string(&mut out, key);
            put_value(&mut out, value);
        }
        let mut offset = 0u64;
        for (name, dtype, shape, len) in &self.tensors {
            put_string(&mut out, name);
            put_u32(&mut out, shape.len());
            for &dim in shape.iter().rev() {
                put_len(&mut out, dim);
            }
            out.extend_from_slice(&dtype.ggml_id().to_le_bytes());
            out.extend_from_slice(&offset.to_le_bytes());
            offset += len.next_multiple_of(DEFAULT_ALIGNMENT) as u64;
        }
        out
    }
}

/// Takes the bytes of the declared tensors, in order. Dropped before [`Body::finish`], it removes what it wrote.
#[derive(Debug)]
pub struct Body {
    out: Option<BufWriter<File>>,
    temp: PathBuf,
    path: PathBuf,
    lens: Vec<(String, usize)>,
    next: usize,
    written: usize,
}

impl Body {
    /// Appends to the current tensor; when it is full, the next one begins.
    ///
    /// # Errors
    /// [`FormatError::Io`], and [`FormatError::Tensor`] for bytes past the end of the current tensor.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let file = self.path.display().to_string();
        let Some((name, len)) = self.lens.get(self.next).cloned() else {
            return Err(FormatError::malformed(&file, "tensor data", "bytes after the last tensor", "no more"));
        };
        if bytes.len() > len - self.written {
            let got = format!("{} bytes after the first {}", bytes.len(), self.written);
            return Err(FormatError::tensor(&file, name, got, format!("{len} bytes in all")));
        }
        self.put(bytes)?;
        self.written += bytes.len();
        if self.written == len {
            self.pad(len)?;
            self.next += 1;
            self.written = 0;
        }
        Ok(())
    }

    /// Completes the file and gives it its name. Returns its length in bytes.
    ///
    /// # Errors
    /// [`FormatError::Io`], and [`FormatError::Tensor`] when a tensor's bytes are not all there.
    pub fn finish(mut self) -> Result<u64, FormatError> {
        if let Some((name, len)) = self.lens.get(self.next) {
            let got = format!("{} bytes", self.written);
            let file = self.path.display().to_string();
            return Err(FormatError::tensor(&file, name, got, format!("{len} bytes before the file is finished")));
        }
        let out = self.out.take().expect("the file is open until it is finished");
        let file = out.into_inner().map_err(|e| FormatError::io(&self.temp, "write")(e.into_error()))?;
        file.sync_all().map_err(FormatError::io(&self.temp, "sync"))?;
        let len = file.metadata().map_err(FormatError::io(&self.temp, "read the size"))?.len();
        std::fs::rename(&self.temp, &self.path).map_err(FormatError::io(&self.path, "rename into place"))?;
        Ok(len)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let out = self.out.as_mut().expect("the file is open until it is finished");
        out.write_all(bytes).map_err(FormatError::io(&self.temp, "write"))
    }

    fn pad(&mut self, len: usize) -> Result<(), FormatError> {
        self.put(&[0; DEFAULT_ALIGNMENT][..len.next_multiple_of(DEFAULT_ALIGNMENT) - len])
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        // After a successful rename there is nothing under the temporary name, and an error here changes nothing.
        let _ = std::fs::remove_file(&self.temp);
    }
}

fn temp_path(path: &Path) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}-{n}.part", std::process::id()));
    path.with_file_name(name)
}

fn put_len(out: &mut Vec<u8>, n: usize) {
    out.extend_from_slice(&(n as u64).to_le_bytes());
}

fn put_u32(out: &mut Vec<u8>, n: usize) {
    let n = u32::try_from(n).expect("at most four dimensions");
    out.extend_from_slice(&n.to_le_bytes());
}

fn put_string(out: &mut Vec<u8>, s: &str) {
    put_len(out, s.len());
    out.extend_from_slice(s.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    let mut put = |id: u32, bytes: &[u8]| {
        out.extend_from_slice(&id.to_le_bytes());
        out.extend_from_slice(bytes);
    };
    match value {
        Value::U8(v) => put(0, &v.to_le_bytes()),
        Value::I8(v) => put(1, &v.to_le_bytes()),
        Value::U16(v) => put(2, &v.to_le_bytes()),
        Value::I16(v) => put(3, &v.to_le_bytes()),
        Value::U32(v) => put(4, &v.to_le_bytes()),
        Value::I32(v) => put(5, &v.to_le_bytes()),
        Value::F32(v) => put(6, &v.to_le_bytes()),
        Value::Bool(v) => put(7, &[u8::from(*v)]),
        Value::U64(v) => put(10, &v.to_le_bytes()),
        Value::I64(v) => put(11, &v.to_le_bytes()),
        Value::F64(v) => put(12, &v.to_le_bytes()),
        Value::String(s) => {
            put(8, &[]);
            put_string(out, s);
        }
        Value::Array(a) => {
            put(9, &[]);
            put_array(out, a);
        }
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    fn numbers<T: Copy, const N: usize>(out: &mut Vec<u8>, id: u32, v: &[T], bytes: fn(T) -> [u8; N]) {
        out.extend_from_slice(&id.to_le_bytes());
        put_len(out, v.len());
        v.iter().for_each(|&x| out.extend_from_slice(&bytes(x)));
    }
    match array {
        Array::U8(v) => numbers(out, 0, v, u8::to_le_bytes),
        Array::I8(v) => numbers(out, 1, v, i8::to_le_bytes),
        Array::U16(v) => numbers(out, 2, v, u16::to_le_bytes),
        Array::I16(v) => numbers(out, 3, v, i16::to_le_bytes),
        Array::U32(v) => numbers(out, 4, v, u32::to_le_bytes),
        Array::I32(v) => numbers(out, 5, v, i32::to_le_bytes),
        Array::F32(v) => numbers(out, 6, v, f32::to_le_bytes),
        Array::Bool(v) => numbers(out, 7, v, |b| [u8::from(b)]),
        Array::U64(v) => numbers(out, 10, v, u64::to_le_bytes),
        Array::I64(v) => numbers(out, 11, v, i64::to_le_bytes),
        Array::F64(v) => numbers(out, 12, v, f64::to_le_bytes),
        Array::String(v) => {
            out.extend_from_slice(&8u32.to_le_bytes());
            put_len(out, v.len());
            v.iter().for_each(|s| put_string(out, s));
        }
        Array::Array(v) => {
            out.extend_from_slice(&9u32.to_le_bytes());
            put_len(out, v.len());
            v.iter().for_each(|a| put_array(out, a));
        }
    }
}

//! Importance matrices: for each weight matrix, the mean square of the input of each column.
//!
//! Files are those of llama.cpp: GGUF of type `imatrix`, with tensors `NAME.in_sum2` (sums of squares, a row for each
//! expert) and `NAME.counts` (rows that were summed), or the older binary form:
//!
//! ```text
//! i32 number of entries, then for each:  i32 length of the name, the name, i32 number of calls, i32 number of values,
//!                                        that many f32: mean squares times the number of calls
//! then, in later versions:               i32 last chunk, i32 length of the data set's name, the name
//! ```
//!
//! Invariant: values are finite and not negative.

use std::collections::BTreeMap;
use std::path::Path;

use pelton_formats::Bytes;
use pelton_formats::gguf::{Array, GgufFile, Value, Writer};
use pelton_quant::DType;

use crate::QuantizeError;

/// How much each column of each matrix counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imatrix {
    entries: BTreeMap<String, Entry>,
    /// What it was computed on.
    pub datasets: Vec<String>,
    /// Tokens of a chunk.
    pub chunk_size: u32,
    /// Chunks that were run.
    pub chunks: u32,
}

/// Of one matrix: sums of squares, `(experts, cols)`, and of how many rows for each expert.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    sums: Vec<f32>,
    counts: Vec<f32>,
}

impl Imatrix {
    /// Adds to a matrix the sums of squares of `count` more inputs. `sums` has a number for each column.
    pub(crate) fn add(&mut self, name: &str, sums: &[f64], count: usize) {
        let new = || Entry { sums: vec![0.0; sums.len()], counts: vec![0.0] };
        let entry = self.entries.entry(name.to_owned()).or_insert_with(new);
        for (total, sum) in entry.sums.iter_mut().zip(sums) {
            *total += *sum as f32;
        }
        entry.counts[0] += count as f32;
    }

    /// How many matrices it knows.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it knows none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The names of the matrices it knows.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The mean squares for the matrix `name` of `cols` columns and `n_experts` experts (1 for plain matrices), a row for
    /// each expert; `None` where it knows nothing of it. An expert that no token reached gets equal numbers.
    ///
    /// # Errors
    /// [`QuantizeError::Tensor`] where it is of another shape.
    pub fn of(&self, name: &str, cols: usize, n_experts: usize) -> Result<Option<Vec<f32>>, QuantizeError> {
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        let per_count = entry.sums.len() / entry.counts.len();
        if per_count * entry.counts.len() != cols * n_experts {
            let n = entry.sums.len();
            let want = cols * n_experts;
            let problem =
                format!("the importance matrix has {n} columns for it, expected {want}; it is of another model");
            return Err(QuantizeError::tensor(name, problem));
        }
        let means = entry
            .sums
            .chunks(per_count)
            .zip(&entry.counts)
            .flat_map(|(sums, &count)| sums.iter().map(move |sum| if count > 0.0 { sum / count } else { 1.0 }));
        Ok(Some(means.collect()))
    }

    /// Reads a file of either form.
    ///
    /// # Errors
    /// [`QuantizeError::Imatrix`] says what is wrong with it.
    pub fn read(path: &Path) -> Result<Imatrix, QuantizeError> {
        let bytes = Bytes::map(path)?;
        let file = path.display().to_string();
        let matrix = if bytes.starts_with(&pelton_formats::gguf::MAGIC) {
            from_gguf(&file, bytes)?
        } else {
            from_binary(&bytes).map_err(|problem| QuantizeError::Imatrix { file: file.clone(), problem })?
        };
        let bad = |v: &&f32| !(v.is_finite() && **v >= 0.0);
        for (name, entry) in &matrix.entries {
            if let Some(v) = entry.sums.iter().chain(&entry.counts).find(bad) {
                let problem = format!("`{name}` has {v}; sums of squares are finite and not negative");
                return Err(QuantizeError::Imatrix { file, problem });
            }
        }
        if matrix.is_empty() {
            let problem = "no importance of any matrix is in it; make one with `pelton imatrix`".into();
            return Err(QuantizeError::Imatrix { file, problem });
        }
        Ok(matrix)
    }

    /// Writes it as GGUF. The file appears only when it is whole.
    ///
    /// # Errors
    /// [`QuantizeError::Format`].
    pub fn write(&self, path: &Path) -> Result<(), QuantizeError> {
        let mut w = Writer::new(&path.display().to_string());
        w.set("general.type", Value::String("imatrix".into()))?;
        w.set("imatrix.datasets", Value::Array(Array::String(self.datasets.clone())))?;
        w.set("imatrix.chunk_count", Value::U32(self.chunks))?;
        w.set("imatrix.chunk_size", Value::U32(self.chunk_size))?;
        for (name, entry) in &self.entries {
            let n = entry.counts.len();
            w.declare(&format!("{name}.in_sum2"), DType::F32, &[n, entry.sums.len() / n])?;
            w.declare(&format!("{name}.counts"), DType::F32, &[n, 1])?;
        }
        let mut body = w.create(path)?;
        for entry in self.entries.values() {
            for values in [&entry.sums, &entry.counts] {
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                body.write(&bytes)?;
            }
        }
        body.finish()?;
        Ok(())
    }
}

fn from_gguf(file: &str, bytes: Bytes) -> Result<Imatrix, QuantizeError> {
    let bad = |problem: String| QuantizeError::Imatrix { file: file.to_owned(), problem };
    let gguf = GgufFile::parse(bytes, file)?;
    let kind = gguf.metadata.get("general.type");
    if kind != Some(&Value::String("imatrix".into())) {
        return Err(bad("is a GGUF file, but no importance matrix (`general.type` is not `imatrix`)".into()));
    }
    let number = |key: &str| match gguf.metadata.get(key) {
        Some(Value::U32(n)) => *n,
        _ => 0,
    };
    let datasets = match gguf.metadata.get("imatrix.datasets") {
        Some(Value::Array(Array::String(names))) => names.clone(),
        _ => Vec::new(),
    };
    let (chunks, chunk_size) = (number("imatrix.chunk_count"), number("imatrix.chunk_size"));
    let mut matrix = Imatrix { entries: BTreeMap::new(), datasets, chunk_size, chunks };
    let floats = |name: &str| -> Result<Option<Vec<f32>>, QuantizeError> {
        let Some(info) = gguf.tensors.iter().find(|t| t.name == name) else { return Ok(None) };
        if info.dtype != DType::F32 {
            return Err(bad(format!("`{name}` is {}, expected F32", info.dtype)));
        }
        Ok(Some(gguf.tensor(info)?.to_f32()?))
    };
    for info in &gguf.tensors {
        let Some(name) = info.name.strip_suffix(".in_sum2") else { continue };
        let sums = floats(&info.name)?.unwrap_or_default();
        let counts = floats(&format!("{name}.counts"))?.ok_or_else(|| bad(format!("`{name}.counts` is missing")))?;
        if counts.is_empty() || sums.is_empty() || sums.len() % counts.len() != 0 {
            return Err(bad(format!("`{name}` has {} sums for {} experts", sums.len(), counts.len())));
        }
        matrix.entries.insert(name.to_owned(), Entry { sums, counts });
    }
    Ok(matrix)
}

/// Little-endian numbers of the older form.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, n: usize, what: &str) -> Result<&'a [u8], String> {
        let (head, rest) = self
            .0
            .split_at_checked(n)
            .ok_or_else(|| format!("ends inside {what}; it is cut off, or no importance matrix"))?;
        self.0 = rest;
        Ok(head)
    }

    fn count(&mut self, what: &str) -> Result<usize, String> {
        let n = i32::from_le_bytes(self.bytes(4, what)?.try_into().expect("four bytes"));
        usize::try_from(n).map_err(|_| format!("{what} is {n}; it is no importance matrix"))
    }
}

fn from_binary(bytes: &[u8]) -> Result<Imatrix, String> {
    let mut r = Reader(bytes);
    let n = r.count("the number of entries")?;
    let mut entries = BTreeMap::new();
    for _ in 0..n {
        let len = r.count("the length of a name")?;
        let name = String::from_utf8_lossy(r.bytes(len, "a name")?).into_owned();
        let calls = r.count("a number of calls")?;
        let n_values = r.count("a number of values")?;
        let bytes = n_values.checked_mul(4).ok_or("a number of values is too large")?;
        let values = r.bytes(bytes, "the values of an entry")?;
        let sums: Vec<f32> = values.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        if sums.is_empty() {
            return Err(format!("`{name}` has no values"));
        }
        entries.insert(name, Entry { sums, counts: vec![calls.max(1) as f32] });
    }
    let mut matrix = Imatrix { entries, ..Imatrix::default() };
    if !r.0.is_empty() {
        matrix.chunks = u32::try_from(r.count("the last chunk")?).unwrap_or(u32::MAX);
        let len = r.count("the length of the data set's name")?;
        matrix.datasets.push(String::from_utf8_lossy(r.bytes(len, "the data set's name")?).into_owned());
    }
    Ok(matrix)
}

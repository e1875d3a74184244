//! Typed metadata of a GGUF file.
//!
//! Invariant: keys are unique and keep the file's order.

use std::collections::HashMap;

use crate::FormatError;
use crate::error::brief;

/// One metadata value.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the variants are the types of the format, by their names")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array of one type.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the variants are the types of the format, by their names")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl Array {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(v) => v.len(),
            Array::I8(v) => v.len(),
            Array::U16(v) => v.len(),
            Array::I16(v) => v.len(),
            Array::U32(v) => v.len(),
            Array::I32(v) => v.len(),
            Array::F32(v) => v.len(),
            Array::Bool(v) => v.len(),
            Array::String(v) => v.len(),
            Array::Array(v) => v.len(),
            Array::U64(v) => v.len(),
            Array::I64(v) => v.len(),
            Array::F64(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn type_name(&self) -> &'static str {
        match self {
            Array::U8(_) => "u8",
            Array::I8(_) => "i8",
            Array::U16(_) => "u16",
            Array::I16(_) => "i16",
            Array::U32(_) => "u32",
            Array::I32(_) => "i32",
            Array::F32(_) => "f32",
            Array::Bool(_) => "bool",
            Array::String(_) => "string",
            Array::Array(_) => "array",
            Array::U64(_) => "u64",
            Array::I64(_) => "i64",
            Array::F64(_) => "f64",
        }
    }

    /// The elements as integers, where they are integers.
    fn to_i64(&self) -> Option<Vec<i64>> {
        Some(match self {
            Array::U8(v) => v.iter().map(|&x| i64::from(x)).collect(),
            Array::I8(v) => v.iter().map(|&x| i64::from(x)).collect(),
            Array::U16(v) => v.iter().map(|&x| i64::from(x)).collect(),
            Array::I16(v) => v.iter().map(|&x| i64::from(x)).collect(),
            Array::U32(v) => v.iter().map(|&x| i64::from(x)).collect(),
            Array::I32(v) => v.iter().map(|&x| i64::from(x)).collect(),
            Array::I64(v) => v.clone(),
            Array::U64(v) => v.iter().map(|&x| i64::try_from(x)).collect::<Result<_, _>>().ok()?,
            _ => return None,
        })
    }
}

impl Value {
    fn to_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::U64(v) => Some(v),
            Value::I8(v) => v.try_into().ok(),
            Value::I16(v) => v.try_into().ok(),
            Value::I32(v) => v.try_into().ok(),
            Value::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }
}

/// For people: numbers and strings as they are, long arrays by their length.
impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::U8(v) => write!(f, "{v}"),
            Value::I8(v) => write!(f, "{v}"),
            Value::U16(v) => write!(f, "{v}"),
            Value::I16(v) => write!(f, "{v}"),
            Value::U32(v) => write!(f, "{v}"),
            Value::I32(v) => write!(f, "{v}"),
            Value::U64(v) => write!(f, "{v}"),
            Value::I64(v) => write!(f, "{v}"),
            Value::F32(v) => write!(f, "{v}"),
            Value::F64(v) => write!(f, "{v}"),
            Value::Bool(v) => write!(f, "{v}"),
            Value::String(v) => write!(f, "{}", brief(v)),
            Value::Array(v) => write!(f, "[{} × {}]", v.len(), v.type_name()),
        }
    }
}

/// The key-value section of a GGUF file, in the file's order.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    file: String,
    entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

impl Metadata {
    /// No entries yet; `file` is what error messages name.
    pub fn new(file: &str) -> Metadata {
        Metadata { file: file.into(), ..Metadata::default() }
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// [`FormatError::Key`] when the key is there already.
    pub fn insert(&mut self, key: &str, value: Value) -> Result<(), FormatError> {
        if self.index.contains_key(key) {
            return Err(FormatError::key(&self.file, brief(key), "the key twice", "each key once"));
        }
        self.index.insert(key.into(), self.entries.len());
        self.entries.push((key.into(), value));
        Ok(())
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&i| &self.entries[i].1)
    }

    /// All entries, in the file's order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What error messages call the file.
    pub fn file(&self) -> &str {
        &self.file
    }

    fn wrong(&self, key: &str, got: &Value, want: &str) -> FormatError {
        FormatError::key(&self.file, key, got.to_string(), want)
    }

    /// The error for a key that is not there.
    pub(crate) fn missing(&self, key: &str, want: &str) -> FormatError {
        FormatError::key(&self.file, key, "no such key", want)
    }

    /// A string.
    ///
    /// # Errors
    /// [`FormatError::Key`] when the key has another type.
    pub fn str(&self, key: &str) -> Result<Option<&str>, FormatError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(self.wrong(key, other, "a string")),
        }
    }

    /// A boolean.
    ///
    /// # Errors
    /// [`FormatError::Key`] when the key has another type.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, FormatError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(self.wrong(key, other, "true or false")),
        }
    }

    /// A count, of any integer type.
    ///
    /// # Errors
    /// [`FormatError::Key`] when the key has another type or is negative.
    pub fn count(&self, key: &str) -> Result<Option<usize>, FormatError> {
        match self.get(key) {
            None => Ok(None),
            Some(v) => match v.to_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(n) => Ok(Some(n)),
                None => Err(self.wrong(key, v, "an integer that is not negative")),
            },
        }
    }

    /// A count that a file may also give once a layer, as long as all layers agree.
    ///
    /// # Errors
    /// [`FormatError::Key`] when the key has another type, or when the layers differ.
    pub fn uniform_count(&self, key: &str) -> Result<Option<usize>, FormatError> {
        let Some(Value::Array(array)) = self.get(key) else { return self.count(key) };
        let all = array.to_i64().unwrap_or_default();
        match all.first() {
            Some(&n) if n >= 0 && all.iter().all(|&x| x == n) => Ok(usize::try_from(n).ok()),
            _ => {
                let want = "one integer, the same in every layer (models whose layers differ are not supported)";
                let got = format!("{} entries: {:?} …", array.len(), all.iter().take(8).collect::<Vec<_>>());
                Err(FormatError::key(&self.file, key, got, want))
            }
        }
    }

    /// A token id.
    ///
    /// # Errors
    /// [`FormatError::Key`] when the key is no integer. An id of -1 means none.
    pub fn token_id(&self, key: &str) -> Result<Option<u32>, FormatError> {
        match self.get(key) {
            None | Some(Value::I32(-1) | Value::I64(-1) | Value::U32(u32::MAX)) => Ok(None),
            Some(v) => match v.to_u64().and_then(|n| u32::try_from(n).ok()) {
                Some(n) => Ok(Some(n)),
                None => Err(self.wrong(key, v, "a token id")),
            },
        }
    }

    /// A number.
    ///
    /// # Errors
    /// [`FormatError::Key`] when the key is no number.
    pub fn float(&self, key: &str) -> Result<Option<f32>, FormatError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::F32(v)) => Ok(Some(*v)),
            #[allow(clippy::cast_possible_truncation, reason = "configuration is f32 throughout")]
            Some(Value::F64(v)) => Ok(Some(*v as f32)),
            Some(v) => match v.to_u64() {
                #[allow(clippy::cast_precision_loss, reason = "a whole number where a float is expected")]
                Some(n) => Ok(Some(n as f32)),
                None => Err(self.wrong(key, v, "a number")),
            },
        }
    }

    /// An array of strings.
    ///
    /// # Errors
    /// [`FormatError::Key`] when the key has another type.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>, FormatError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::String(v))) => Ok(Some(v)),
            Some(Value::Array(a)) if a.is_empty() => Ok(Some(&[])),
            Some(other) => Err(self.wrong(key, other, "an array of strings")),
        }
    }

    /// An array of `f32`.
    ///
    /// # Errors
    /// [`FormatError::Key`] when the key has another type.
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>, FormatError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::F32(v))) => Ok(Some(v)),
            Some(Value::Array(a)) if a.is_empty() => Ok(Some(&[])),
            Some(other) => Err(self.wrong(key, other, "an array of f32")),
        }
    }

    /// An array of integers of any width.
    ///
    /// # Errors
    /// [`FormatError::Key`] when the key has another type.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>, FormatError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(a)) if a.is_empty() => Ok(Some(Vec::new())),
            Some(v) => {
                let all = if let Value::Array(a) = v { a.to_i64() } else { None };
                all.map(Some).ok_or_else(|| self.wrong(key, v, "an array of integers"))
            }
        }
    }

    /// An array of booleans.
    ///
    /// # Errors
    /// [`FormatError::Key`] when the key has another type.
    pub fn bools(&self, key: &str) -> Result<Option<&[bool]>, FormatError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::Bool(v))) => Ok(Some(v)),
            Some(other) => Err(self.wrong(key, other, "an array of booleans")),
        }
    }
}

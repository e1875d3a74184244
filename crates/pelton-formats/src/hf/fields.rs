//! Typed access to the fields of a JSON object.
//!
//! Invariant: a field of a wrong type is an error that names it; `null` is the same as absent.

use serde_json::{Map, Value};

use crate::FormatError;
use crate::error::brief;

/// A JSON object of a file. `path` names the object inside the file, with a dot at its end, or is empty.
#[derive(Clone)]
pub(super) struct Fields<'a> {
    pub(super) file: &'a str,
    path: String,
    map: &'a Map<String, Value>,
}

/// Parses a JSON file whose content is one object.
pub(super) fn parse_object(bytes: &[u8], file: &str) -> Result<Map<String, Value>, FormatError> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(FormatError::malformed(file, "JSON", "no object", "a JSON object")),
        Err(e) => Err(FormatError::malformed(file, "JSON", e.to_string(), "a JSON object")),
    }
}

impl<'a> Fields<'a> {
    pub(super) fn new(file: &'a str, map: &'a Map<String, Value>) -> Fields<'a> {
        Fields { file, path: String::new(), map }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Whether the key is there, if only as `null`.
    pub(super) fn has_key(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    pub(super) fn wrong(&self, key: &str, got: &Value, want: impl Into<String>) -> FormatError {
        FormatError::key(self.file, format!("{}{key}", self.path), brief(&got.to_string()), want)
    }

    pub(super) fn missing(&self, key: &str, want: &str) -> FormatError {
        FormatError::key(self.file, format!("{}{key}", self.path), "no such field", want)
    }

    pub(super) fn object(&self, key: &str) -> Result<Option<Fields<'a>>, FormatError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { file: self.file, path: format!("{}{key}.", self.path), map })),
            Some(other) => Err(self.wrong(key, other, "an object")),
        }
    }

    pub(super) fn str(&self, key: &str) -> Result<Option<&'a str>, FormatError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(self.wrong(key, other, "a string")),
        }
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, FormatError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(self.wrong(key, other, "true or false")),
        }
    }

    pub(super) fn count(&self, key: &str) -> Result<Option<usize>, FormatError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match whole(value).and_then(|n| usize::try_from(n).ok()) {
            Some(n) => Ok(Some(n)),
            None => Err(self.wrong(key, value, "an integer that is not negative")),
        }
    }

    /// An integer that may be negative.
    pub(super) fn integer(&self, key: &str) -> Result<Option<i64>, FormatError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_i64().or_else(|| whole(value).and_then(|n| i64::try_from(n).ok()));
        number.map(Some).ok_or_else(|| self.wrong(key, value, "an integer"))
    }

    /// The names of all fields.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.map.keys().map(String::as_str)
    }

    pub(super) fn required_count(&self, key: &str) -> Result<usize, FormatError> {
        self.count(key)?.ok_or_else(|| self.missing(key, "a count"))
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f32>, FormatError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => float(value).map(Some).ok_or_else(|| self.wrong(key, value, "a finite number")),
        }
    }

    pub(super) fn array(&self, key: &str) -> Result<Option<&'a [Value]>, FormatError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(self.wrong(key, other, "an array")),
        }
    }

    pub(super) fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, FormatError> {
        let Some(items) = self.array(key)? else { return Ok(None) };
        let all: Option<Vec<f32>> = items.iter().map(float).collect();
        all.map(Some)
            .ok_or_else(|| FormatError::key(self.file, format!("{}{key}", self.path), "other items", "numbers"))
    }

    /// One id or a list of ids.
    pub(super) fn ids(&self, key: &str) -> Result<Option<Vec<u32>>, FormatError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let items = if let Value::Array(items) = value { items.as_slice() } else { std::slice::from_ref(value) };
        let mut ids = Vec::with_capacity(items.len());
        for item in items {
            match whole(item) {
                Some(n) => match u32::try_from(n) {
                    Ok(id) => ids.push(id),
                    Err(_) => return Err(self.wrong(key, item, "a token id below 2^32")),
                },
                // Some files write -1 for none.
                None if item.as_i64() == Some(-1) => {}
                None => return Err(self.wrong(key, item, "a token id or a list of them")),
            }
        }
        Ok(Some(ids))
    }
}

/// An integer, also where it is written `4096.0`.
fn whole(value: &Value) -> Option<u64> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be whole and in range")]
    let from_float = |f: f64| ((0.0..9e15).contains(&f) && f.fract() == 0.0).then_some(f as u64);
    value.as_u64().or_else(|| value.as_f64().and_then(from_float))
}

fn float(value: &Value) -> Option<f32> {
    #[allow(clippy::cast_possible_truncation, reason = "configuration is f32 throughout")]
    value.as_f64().map(|f| f as f32).filter(|f| f.is_finite())
}

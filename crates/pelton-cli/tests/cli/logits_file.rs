//! A reader for the few tensors that the tests compare: little-endian safetensors, trusted.

use std::path::Path;

use serde_json::Value;

/// A safetensors file.
pub(crate) struct Tensors {
    header: Value,
    data: Vec<u8>,
}

impl Tensors {
    pub(crate) fn open(path: &Path) -> Tensors {
        let bytes = std::fs::read(path).unwrap();
        let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
        Tensors { header, data: bytes[8 + header_len..].to_vec() }
    }

    /// The dimensions of a tensor.
    pub(crate) fn shape(&self, name: &str) -> Vec<u64> {
        self.header[name]["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).collect()
    }

    pub(crate) fn f32(&self, name: &str) -> Vec<f32> {
        self.elements(name, "F32").chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub(crate) fn i64(&self, name: &str) -> Vec<i64> {
        self.elements(name, "I64").chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn elements(&self, name: &str, dtype: &str) -> &[u8] {
        assert_eq!(self.header[name]["dtype"], dtype, "{name}");
        let at = |i: usize| self.header[name]["data_offsets"][i].as_u64().unwrap() as usize;
        &self.data[at(0)..at(1)]
    }
}

/// The largest absolute difference.
pub(crate) fn max_error(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(x, y)| (x - y).abs());
    // A NaN must not be lost in a maximum.
    differences.fold(0.0, |most, d| if d > most || d.is_nan() { d } else { most })
}

//! What the tests of this crate share: where the extra data lies, and a small read-only GGUF metadata
//! parser. Invariant: nothing here is used outside of tests.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::HashMap;
use std::path::PathBuf;

use pelton_text::GgufVocab;

/// A file of the optional shared data; `None`, with a message, where it is absent.
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data");
    let path = PathBuf::from(root).join(path);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is not here", path.display());
    None
}

/// A metadata value, as far as vocabularies need it.
#[derive(Debug, Clone)]
pub(crate) enum Meta {
    Int(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    List(Vec<Meta>),
}

struct Reader<'b>(&'b [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (head, rest) = self.0.split_at(N);
        self.0 = rest;
        head.try_into().unwrap()
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn text(&mut self) -> String {
        let len = usize::try_from(self.u64()).unwrap();
        let (head, rest) = self.0.split_at(len);
        self.0 = rest;
        String::from_utf8(head.to_vec()).unwrap()
    }

    fn value(&mut self, kind: u32) -> Meta {
        match kind {
            0 => Meta::Int(i64::from(self.take::<1>()[0])),
            1 => Meta::Int(i64::from(i8::from_le_bytes(self.take()))),
            2 => Meta::Int(i64::from(u16::from_le_bytes(self.take()))),
            3 => Meta::Int(i64::from(i16::from_le_bytes(self.take()))),
            4 => Meta::Int(i64::from(self.u32())),
            5 => Meta::Int(i64::from(i32::from_le_bytes(self.take()))),
            6 => Meta::Float(f64::from(f32::from_le_bytes(self.take()))),
            7 => Meta::Bool(self.take::<1>()[0] != 0),
            8 => Meta::Text(self.text()),
            9 => {
                let kind = self.u32();
                let len = self.u64();
                Meta::List((0..len).map(|_| self.value(kind)).collect())
            }
            10 | 11 => Meta::Int(i64::from_le_bytes(self.take())),
            12 => Meta::Float(f64::from_le_bytes(self.take())),
            other => panic!("value type {other}"),
        }
    }
}

/// All metadata of a GGUF v3 file.
pub(crate) fn gguf_metadata(bytes: &[u8]) -> HashMap<String, Meta> {
    let mut reader = Reader(bytes);
    assert_eq!(&reader.take::<4>(), b"GGUF");
    assert_eq!(reader.u32(), 3);
    let _n_tensors = reader.u64();
    let n_values = reader.u64();
    let mut all = HashMap::new();
    for _ in 0..n_values {
        let key = reader.text();
        let kind = reader.u32();
        all.insert(key, reader.value(kind));
    }
    all
}

/// The vocabulary in a GGUF file's metadata.
pub(crate) fn gguf_vocab(bytes: &[u8]) -> GgufVocab {
    let meta = gguf_metadata(bytes);
    let get = |key: &str| meta.get(&format!("tokenizer.ggml.{key}")).cloned();
    let list = |key: &str| match get(key) {
        Some(Meta::List(items)) => items,
        _ => Vec::new(),
    };
    let text = |value: Meta| match value {
        Meta::Text(text) => text,
        other => panic!("{other:?}"),
    };
    let id = |key: &str| match get(key) {
        Some(Meta::Int(id)) => Some(u32::try_from(id).unwrap()),
        _ => None,
    };
    let flag = |key: &str| match get(key) {
        Some(Meta::Bool(flag)) => Some(flag),
        _ => None,
    };
    GgufVocab {
        model: get("model").map(text).unwrap(),
        pre: get("pre").map(text),
        tokens: list("tokens").into_iter().map(text).collect(),
        scores: list("scores")
            .into_iter()
            .map(|score| match score {
                Meta::Float(score) => score as f32,
                other => panic!("{other:?}"),
            })
            .collect(),
        token_types: list("token_type")
            .into_iter()
            .map(|kind| match kind {
                Meta::Int(kind) => i32::try_from(kind).unwrap(),
                other => panic!("{other:?}"),
            })
            .collect(),
        merges: list("merges").into_iter().map(text).collect(),
        bos: id("bos_token_id"),
        eos: id("eos_token_id"),
        pad: id("padding_token_id"),
        unk: id("unknown_token_id"),
        add_bos: flag("add_bos_token"),
        add_eos: flag("add_eos_token"),
        add_space_prefix: flag("add_space_prefix"),
    }
}

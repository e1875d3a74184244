//! Writes a planned model.

use std::path::Path;

use pelton_formats::gguf::{Value, Writer};
use pelton_formats::{ModelFiles, describe_output};

use crate::part::{Fnv, Part};
use crate::{Plan, QuantizeError, encode};

/// How far writing has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// Elements that are written.
    pub done: u64,
    /// Elements of the model.
    pub total: u64,
    /// The tensor at hand.
    pub tensor: &'a str,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Length of the file in bytes.
    pub bytes: u64,
    /// Tensors that an interrupted run had left there.
    pub resumed: usize,
}

/// Encodes and writes the model to `out`, on so many threads. Metadata that has no place in the file becomes a note of
/// the plan.
///
/// # Errors
/// [`QuantizeError`]; `out` is what it was then, and what was written is kept for the next run.
pub fn write(
    files: &ModelFiles,
    plan: &mut Plan,
    out: &Path,
    threads: usize,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Written, QuantizeError> {
    let mut writer = Writer::new(&out.display().to_string());
    describe_output(files, &mut writer, &mut plan.notes)?;
    if let Some(file_type) = plan.file_type {
        writer.set("general.file_type", Value::U32(file_type))?;
    }
    for tensor in &plan.tensors {
        writer.declare(tensor.source.name(), tensor.to, tensor.source.shape())?;
    }
    let header = writer.header();
    let lens: Vec<u64> = plan.tensors.iter().map(|tensor| tensor.bytes()).collect();
    let (mut part, resumed) = Part::open(out, &header, fingerprint(plan, &header), &lens)?;
    let (mut done, total) = (0, plan.elements());
    for (i, tensor) in plan.tensors.iter().enumerate() {
        progress(Progress { done, total, tensor: tensor.source.name() });
        if i >= resumed {
            let mut in_tensor = 0;
            encode::encode(tensor, threads, &mut |bytes| {
                in_tensor += (bytes.len() / tensor.to.block_bytes() * tensor.to.block_len()) as u64;
                progress(Progress { done: done + in_tensor, total, tensor: tensor.source.name() });
                part.write(bytes)
            })?;
            part.end_tensor(i, lens[i])?;
            tensor.source.release();
        }
        done += tensor.elements();
    }
    Ok(Written { bytes: part.finish()?, resumed })
}

/// Of all that decides the bytes: the header (with names, shapes and types), the beginning and end of each source tensor,
/// and the importance.
fn fingerprint(plan: &Plan, header: &[u8]) -> u64 {
    const SAMPLE: usize = 4096;
    let mut hash = Fnv::new();
    hash.add(header);
    hash.add(env!("CARGO_PKG_VERSION").as_bytes());
    for tensor in &plan.tensors {
        for source in tensor.source.sources() {
            hash.add(source.dtype.to_string().as_bytes());
            if let Some(bytes) = source.blocks() {
                hash.add(&bytes[..bytes.len().min(SAMPLE)]);
                hash.add(&bytes[bytes.len() - bytes.len().min(SAMPLE)..]);
            }
        }
        for value in tensor.importance.iter().flatten() {
            hash.add(&value.to_le_bytes());
        }
    }
    hash.value()
}

//! Writes a planned model.

use std::path::Path;

use pelton_formats::gguf::{Value, Writer};
use pelton_formats::{ModelFiles, describe_output};

use crate::calibration::{Calibration, recorded_name};
use crate::encode::Compensation;
use crate::gptq::compensates;
use crate::part::{Fnv, Part};
use crate::plan::PlannedTensor;
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
    write_compensated(files, plan, None, out, threads, progress)
}

/// As [`write`], with the errors of the layers' matrices compensated (GPTQ) on the activations of `calibration`, where
/// there is one and as far as their types have a code for each element.
///
/// # Errors
/// As [`write`], and as running the model.
pub fn write_compensated(
    files: &ModelFiles,
    plan: &mut Plan,
    mut calibration: Option<&mut Calibration<'_>>,
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
    let fingerprint = fingerprint(plan, &header, calibration.as_deref());
    if calibration.is_some() {
        let plain = |t: &&PlannedTensor| recorded_name(t).is_some() && t.to.block_len() > 1 && !compensates(t.to);
        let n = plan.tensors.iter().filter(plain).count();
        if n > 0 {
            let note = "matrices are encoded without compensation: their types have no code for each element alone";
            plan.notes.push(format!("{n} {note}"));
        }
    }
    let (mut part, resumed) = Part::open(out, &header, fingerprint, &lens)?;
    let (mut done, total) = (0, plan.elements());
    for (i, tensor) in plan.tensors.iter().enumerate() {
        progress(Progress { done, total, tensor: tensor.source.name() });
        if i >= resumed {
            let mut in_tensor = 0;
            let compensation = match &mut calibration {
                Some(calibration) => compensation(&plan.tensors[i..], calibration)?,
                None => None,
            };
            encode::encode(tensor, compensation.as_ref(), threads, &mut |bytes| {
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

/// What the first of `tensors` needs; `None` where it is encoded plainly.
fn compensation(
    tensors: &[PlannedTensor],
    calibration: &mut Calibration<'_>,
) -> Result<Option<Compensation>, QuantizeError> {
    let name_of = |t: &'_ PlannedTensor| if compensates(t.to) { recorded_name(t).map(str::to_owned) } else { None };
    let Some(_) = name_of(&tensors[0]) else { return Ok(None) };
    let upcoming: Vec<(String, usize)> = tensors.iter().filter_map(|t| Some((name_of(t)?, t.source.cols()))).collect();
    let cols_of = |name: &str| upcoming.iter().find(|(of, _)| of == name).map_or(0, |(_, cols)| *cols);
    let gram = calibration.gram(upcoming.iter().map(|(name, _)| name.as_str()), cols_of)?;
    let scales = &tensors[0].factors.cols;
    let scales = (!scales.is_empty()).then_some(scales.as_slice());
    Ok(gram.map(|gram| Compensation::new(gram.factor(scales))))
}

/// Of all that decides the bytes: the header (with names, shapes and types), the beginning and end of each source tensor,
/// the importance, the factors, and the text of a compensation.
fn fingerprint(plan: &Plan, header: &[u8], calibration: Option<&Calibration<'_>>) -> u64 {
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
        let factors = tensor.factors.cols.iter().chain(&tensor.factors.rows);
        for value in tensor.importance.iter().flatten().chain(factors) {
            hash.add(&value.to_le_bytes());
        }
    }
    for id in calibration.iter().flat_map(|calibration| calibration.ids()) {
        hash.add(&id.to_le_bytes());
    }
    hash.value()
}

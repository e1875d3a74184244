//! Writes a model as GGUF, one file or shards, with the tensor types that the caller chooses.
//!
//! The file has the names and shapes that llama.cpp expects: experts stacked again, Phi-3's fused tensors fused
//! again, rows of Q and K interleaved for the `llama` architecture, Gemma's norm weights with their offset added.
//! Invariant: whatever differs from what the caller chose is in [`Conversion::notes`].

use std::ops::Range;
use std::path::Path;

use pelton_quant::{DType, WeightType};

use crate::gguf::{NORM_SUFFIX, Value, Writer};
use crate::rope::{llama3_factors, to_interleaved};
use crate::{Arch, FormatError, ModelConfig, ModelFiles, RopeScaling, Tensor, convert_meta};

/// What was written.
#[derive(Clone, Debug, Default)]
pub struct Conversion {
    /// Length of all files in bytes.
    pub bytes: u64,
    /// Every tensor, in order.
    pub tensors: Vec<ConvertedTensor>,
    /// Whatever is not as the caller chose or as the source had it, a sentence each.
    pub notes: Vec<String>,
}

/// One tensor of a [`Conversion`].
#[derive(Clone, Debug)]
pub struct ConvertedTensor {
    /// Name in the file.
    pub name: String,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Type that it was stored as.
    pub from: WeightType,
    /// Type that it is written as.
    pub to: DType,
}

/// Writes the model to one GGUF file. `choose` gives the type of each matrix from its name in the file and its
/// row-major shape; vectors, norms and routers are F32 always.
///
/// A type whose blocks do not divide the rows is replaced by F16, which the result's notes say.
///
/// # Errors
/// [`FormatError`]; the file appears only when it is whole.
pub fn write_gguf(
    files: &ModelFiles,
    out: &Path,
    choose: impl Fn(&str, &[usize]) -> DType,
) -> Result<Conversion, FormatError> {
    let mut done = Conversion::default();
    let planned = plan(files, &choose, &mut done.notes)?;
    let mut writer = Writer::new(&out.display().to_string());
    convert_meta::describe(files, &mut writer, &mut done.notes)?;
    write_file(writer, &planned, out, &mut done)?;
    Ok(done)
}

/// Writes the model to `PREFIX-00001-of-0000N.gguf` … in `folder`, with about as many tensors in each.
///
/// # Errors
/// [`FormatError`], also for more shards than tensors.
pub fn write_gguf_sharded(
    files: &ModelFiles,
    folder: &Path,
    prefix: &str,
    n_shards: usize,
    choose: impl Fn(&str, &[usize]) -> DType,
) -> Result<Conversion, FormatError> {
    let mut done = Conversion::default();
    let planned = plan(files, &choose, &mut done.notes)?;
    let count = u16::try_from(n_shards).ok().filter(|&n| n > 0 && n_shards <= planned.len());
    let Some(count) = count else {
        let want = format!("between 1 and {}, the number of tensors", planned.len().min(65_535));
        return Err(FormatError::Config { field: "number of shards".into(), got: n_shards.to_string(), want });
    };
    let mut at = 0;
    for i in 0..n_shards {
        let path = folder.join(format!("{prefix}-{:05}-of-{n_shards:05}.gguf", i + 1));
        let mut writer = Writer::new(&path.display().to_string());
        if i == 0 {
            convert_meta::describe(files, &mut writer, &mut done.notes)?;
        }
        writer.set("split.no", Value::U16(u16::try_from(i).unwrap_or(u16::MAX)))?;
        writer.set("split.count", Value::U16(count))?;
        writer.set("split.tensors.count", Value::I32(i32::try_from(planned.len()).unwrap_or(i32::MAX)))?;
        let end = planned.len() * (i + 1) / n_shards;
        write_file(writer, &planned[at..end], &path, &mut done)?;
        at = end;
    }
    Ok(done)
}

/// One tensor of the output: its sources one after another, changed as the file wants it.
struct Planned {
    name: String,
    shape: Vec<usize>,
    sources: Vec<Tensor>,
    /// Heads whose rows are interleaved.
    interleave: Option<usize>,
    /// Added to each element.
    offset: f32,
    to: DType,
}

fn plan(
    files: &ModelFiles,
    choose: &dyn Fn(&str, &[usize]) -> DType,
    notes: &mut Vec<String>,
) -> Result<Vec<Planned>, FormatError> {
    let config = &files.config;
    let mut out: Vec<Planned> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for tensor in files.tensors.iter() {
        let (name, parts) = output_of(config, &tensor.name);
        if !seen.insert(name.clone()) {
            continue;
        }
        let mut sources = Vec::with_capacity(parts.len());
        for part in &parts {
            let missing =
                || FormatError::tensor(files.tensors.file(), part, "nothing", "the other part of a fused tensor");
            sources.push(files.tensors.get(part).ok_or_else(missing)?.clone());
        }
        let (shape, interleave) = (joined_shape(config, &name, &sources)?, interleaved_heads(config, &name));
        let offset = if name.ends_with(NORM_SUFFIX) { config.norm_weight_offset } else { 0.0 };
        let to = output_type(&name, &shape, choose, notes)?;
        out.push(Planned { name, shape, sources, interleave, offset, to });
    }
    out.extend(rope_tensors(config)?);
    Ok(out)
}

/// The name in the file of the tensor that holds canonical `name`, and all canonical tensors in it, in order.
fn output_of(config: &ModelConfig, name: &str) -> (String, Vec<String>) {
    let alone = || (name.to_owned(), vec![name.to_owned()]);
    let Some((layer, rest)) = name.strip_prefix("blk.").and_then(|n| n.split_once('.')) else { return alone() };
    let join = |to: &str, from: &[String]| {
        (format!("blk.{layer}.{to}"), from.iter().map(|f| format!("blk.{layer}.{f}")).collect())
    };
    let mut words = rest.split('.');
    if let (Some(what), Some(expert), Some("weight")) = (words.next(), words.next(), words.next())
        && expert.parse::<usize>().is_ok()
    {
        let n = config.moe.as_ref().map_or(0, |m| m.n_experts);
        let parts: Vec<String> = (0..n).map(|e| format!("{what}.{e}.weight")).collect();
        return join(&format!("{what}_exps.weight"), &parts);
    }
    if config.arch != Arch::Phi3 {
        return alone();
    }
    match rest.split_once('.') {
        Some(("attn_q" | "attn_k" | "attn_v", s)) => {
            join(&format!("attn_qkv.{s}"), &["attn_q", "attn_k", "attn_v"].map(|w| format!("{w}.{s}")))
        }
        Some(("ffn_gate" | "ffn_up", s)) => {
            join(&format!("ffn_up.{s}"), &["ffn_gate", "ffn_up"].map(|w| format!("{w}.{s}")))
        }
        _ => alone(),
    }
}

fn joined_shape(config: &ModelConfig, name: &str, sources: &[Tensor]) -> Result<Vec<usize>, FormatError> {
    let first = &sources[0];
    if let Some(odd) = sources.iter().find(|t| t.shape[1..] != first.shape[1..]) {
        let want = format!("rows as in `{}`, with which it is joined: {:?}", first.name, first.shape);
        return Err(FormatError::tensor(&config.name, &odd.name, format!("shape {:?}", odd.shape), want));
    }
    if name.ends_with("_exps.weight") {
        if let Some(odd) = sources.iter().find(|t| t.shape != first.shape) {
            let want = format!("{:?}, as expert 0 has", first.shape);
            return Err(FormatError::tensor(&config.name, &odd.name, format!("shape {:?}", odd.shape), want));
        }
        return Ok([&[sources.len()], first.shape.as_slice()].concat());
    }
    let mut shape = first.shape.clone();
    shape[0] = sources.iter().map(|t| t.shape[0]).sum();
    Ok(shape)
}

fn interleaved_heads(config: &ModelConfig, name: &str) -> Option<usize> {
    if !matches!(config.arch, Arch::Llama | Arch::Mistral) {
        return None;
    }
    match name.strip_prefix("blk.")?.split('.').nth(1)? {
        "attn_q" => Some(config.n_heads),
        "attn_k" => Some(config.n_kv_heads),
        _ => None,
    }
}

fn output_type(
    name: &str,
    shape: &[usize],
    choose: &dyn Fn(&str, &[usize]) -> DType,
    notes: &mut Vec<String>,
) -> Result<DType, FormatError> {
    if shape.len() == 1 || name.ends_with("ffn_gate_inp.weight") {
        return Ok(DType::F32);
    }
    let wanted = choose(name, shape);
    if !wanted.can_encode() {
        let supported = DType::ENCODABLE.iter().map(|t| t.name()).collect::<Vec<_>>().join(", ");
        let (file, tensor, dtype) = ("output".into(), name.into(), wanted.name().into());
        return Err(FormatError::UnsupportedType { file, tensor, dtype, supported });
    }
    let cols = shape[shape.len() - 1];
    if cols.is_multiple_of(wanted.block_len()) {
        return Ok(wanted);
    }
    let (block, type_name) = (wanted.block_len(), wanted.name());
    notes.push(format!("{name} is F16, not {type_name}: its rows of {cols} are no multiple of {block}"));
    Ok(DType::F16)
}

/// GGUF keeps factors per frequency as tensors.
fn rope_tensors(config: &ModelConfig) -> Result<Vec<Planned>, FormatError> {
    let vector = |name: &str, values: &[f32]| {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let source = Tensor::new("output", name, DType::F32, vec![values.len()], bytes.into())?;
        Ok(Planned {
            name: name.into(),
            shape: vec![values.len()],
            sources: vec![source],
            interleave: None,
            offset: 0.0,
            to: DType::F32,
        })
    };
    let rope = &config.rope;
    match &rope.scaling {
        RopeScaling::Llama3 { .. } => {
            let factors = llama3_factors(&rope.scaling, rope.theta, rope.dim).unwrap_or_default();
            Ok(vec![vector("rope_freqs.weight", &factors)?])
        }
        RopeScaling::Factors { short, long, .. } if short == long => Ok(vec![vector("rope_freqs.weight", short)?]),
        RopeScaling::Factors { short, long, .. } => {
            Ok(vec![vector("rope_factors_long.weight", long)?, vector("rope_factors_short.weight", short)?])
        }
        _ => Ok(Vec::new()),
    }
}

fn write_file(mut writer: Writer, planned: &[Planned], path: &Path, done: &mut Conversion) -> Result<(), FormatError> {
    for p in planned {
        writer.declare(&p.name, p.to, &p.shape)?;
    }
    let mut body = writer.create(path)?;
    for p in planned {
        for source in &p.sources {
            write_tensor(&mut body, p, source, path)?;
        }
        let (name, shape) = (p.name.clone(), p.shape.clone());
        done.tensors.push(ConvertedTensor { name, shape, from: p.sources[0].dtype, to: p.to });
    }
    done.bytes += body.finish()?;
    Ok(())
}

fn write_tensor(body: &mut crate::gguf::Body, p: &Planned, source: &Tensor, path: &Path) -> Result<(), FormatError> {
    /// Elements that are converted at a time: 4 MiB as f32.
    const CHUNK: usize = 1 << 20;
    let source = &source.stored(path.to_string_lossy().as_ref())?;
    let source = match p.interleave {
        Some(heads) if source.shape[0].is_multiple_of(2 * heads) => to_interleaved(&in_blocks(source)?, heads),
        Some(heads) => {
            let got = format!("shape {:?}", source.shape);
            let want = format!("rows of {heads} heads of even width");
            return Err(FormatError::tensor("model", &source.name, got, want));
        }
        None => source.clone(),
    };
    if source.dtype == p.to && p.offset == 0.0 {
        return body.write(source.data());
    }
    if source.shape.len() == 1 {
        return body.write(&encode(&source, p, path)?);
    }
    let step = (CHUNK / source.row_elements().max(1)).max(1);
    for start in (0..source.shape[0]).step_by(step) {
        let rows = source.rows(start..source.shape[0].min(start + step));
        body.write(&encode(&rows, p, path)?)?;
    }
    Ok(())
}

/// The tensor with rows that can be moved: grouped ones are decoded.
fn in_blocks(source: &Tensor) -> Result<Tensor, FormatError> {
    if source.blocks().is_some() {
        return Ok(source.clone());
    }
    let bytes: Vec<u8> = source.to_f32()?.iter().flat_map(|v| v.to_le_bytes()).collect();
    Tensor::new("model", &source.name, DType::F32, source.shape.clone(), bytes.into())
}

fn encode(rows: &Tensor, p: &Planned, path: &Path) -> Result<Vec<u8>, FormatError> {
    let bad = |got: String, want: &str| FormatError::tensor(&path.display().to_string(), &p.name, got, want);
    let mut values = rows.to_f32()?;
    values.iter_mut().for_each(|v| *v += p.offset);
    if p.to == DType::F16
        && let Some(v) = values.iter().find(|v| v.abs() > 65_504.0)
    {
        return Err(bad(format!("a weight of {v}"), "weights that F16 can hold; choose BF16 or F32"));
    }
    let mut out = Vec::new();
    pelton_quant::encode(p.to, &values, &mut out).map_err(|e| bad(e.to_string(), "weights that the type can hold"))?;
    Ok(out)
}

/// A tensor of the GGUF file that a model becomes, before a type is chosen: for writers of their own.
pub struct OutputTensor(Planned);

/// All tensors of the GGUF file that `files` become, in order.
///
/// # Errors
/// [`FormatError`] where tensors that the file has as one do not fit together.
pub fn output_tensors(files: &ModelFiles) -> Result<Vec<OutputTensor>, FormatError> {
    let planned = plan(files, &|_, _| DType::F32, &mut Vec::new())?;
    if let Some((p, heads)) = planned.iter().find_map(|p| Some((p, p.interleave?)))
        && !p.sources[0].shape[0].is_multiple_of(2 * heads)
    {
        let got = format!("shape {:?}", p.sources[0].shape);
        return Err(FormatError::tensor(
            &files.source.name,
            &p.name,
            got,
            format!("rows of {heads} heads of even width"),
        ));
    }
    Ok(planned.into_iter().map(OutputTensor).collect())
}

/// Declares every metadata key of the GGUF file that `files` become.
///
/// # Errors
/// [`FormatError`] where GGUF cannot say what the files say.
pub fn describe_output(files: &ModelFiles, writer: &mut Writer, notes: &mut Vec<String>) -> Result<(), FormatError> {
    convert_meta::describe(files, writer, notes)
}

impl OutputTensor {
    /// Its name in the file.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Row-major shape.
    pub fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    /// Length of a row.
    pub fn cols(&self) -> usize {
        self.0.shape[self.0.shape.len() - 1]
    }

    /// Rows, those of all experts together.
    pub fn n_rows(&self) -> usize {
        self.0.shape[..self.0.shape.len() - 1].iter().product()
    }

    /// Whether its type may be chosen: vectors, norms and routers are F32 always.
    pub fn is_matrix(&self) -> bool {
        self.0.shape.len() > 1 && !self.0.name.ends_with("ffn_gate_inp.weight")
    }

    /// What it is stored as.
    pub fn stored_as(&self) -> WeightType {
        self.0.sources[0].dtype
    }

    /// The tensors of the model that it is made from, one after another.
    pub fn sources(&self) -> &[Tensor] {
        &self.0.sources
    }

    /// The source that holds row `row`, and which of its rows that is.
    fn place(&self, mut row: usize) -> (&Tensor, usize) {
        for source in &self.0.sources {
            let n_rows = source.shape[0];
            if row < n_rows {
                let Some(heads) = self.0.interleave else { return (source, row) };
                let width = n_rows / heads;
                let (head, at) = (row / width, row % width);
                return (source, head * width + (at % 2) * (width / 2) + at / 2);
            }
            row -= n_rows;
        }
        panic!("a row past the end of `{}`", self.0.name)
    }

    /// Rows as `f32`, `(rows, cols)`.
    ///
    /// # Errors
    /// [`FormatError`] for a type that cannot be decoded.
    ///
    /// # Panics
    /// If `rows` is out of bounds.
    pub fn rows_f32(&self, rows: Range<usize>) -> Result<Vec<f32>, FormatError> {
        if self.0.shape.len() == 1 {
            let values = self.0.sources[0].to_f32()?;
            return Ok(values.into_iter().map(|v| v + self.0.offset).collect());
        }
        let mut out = Vec::with_capacity(rows.len() * self.cols());
        let mut at = rows.start;
        while at < rows.end {
            let (source, first) = self.place(at);
            let mut n = 1;
            while self.0.interleave.is_none() && at + n < rows.end && first + n < source.shape[0] {
                n += 1;
            }
            out.extend(source.rows(first..first + n).to_f32()?);
            at += n;
        }
        out.iter_mut().for_each(|v| *v += self.0.offset);
        Ok(out)
    }

    /// Rows as they are stored, where they are stored as `dtype` and need no change.
    ///
    /// # Panics
    /// If `rows` is out of bounds.
    pub fn stored_rows(&self, dtype: DType, rows: Range<usize>) -> Option<Vec<u8>> {
        if self.0.offset != 0.0
            || self.0.sources.iter().any(|source| source.dtype != dtype || source.blocks().is_none())
        {
            return None;
        }
        if self.0.shape.len() == 1 {
            return Some(self.0.sources[0].data().to_vec());
        }
        let row_bytes = dtype.row_bytes(self.cols())?;
        let mut out = Vec::with_capacity(rows.len() * row_bytes);
        for row in rows {
            let (source, at) = self.place(row);
            out.extend_from_slice(&source.data()[at * row_bytes..(at + 1) * row_bytes]);
        }
        Some(out)
    }

    /// Lets the pages of a mapped file go that hold this tensor: they are read again when they are needed again.
    pub fn release(&self) {
        self.0.sources.iter().for_each(Tensor::release);
    }
}

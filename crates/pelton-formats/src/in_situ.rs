//! Quantizing a tensor of floats while its model is loaded.
//!
//! Blocks of GGUF types are encoded a tensor at a time, on all threads; grouped weights are encoded row by row whenever
//! somebody asks for rows, and take no memory at all. Invariant: a row's bytes depend on that row alone.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use pelton_quant::{
    CodeBook, DType, Grouped, GroupedRows, GroupedType, NF4_LEVELS, WeightType, ZeroPoint, f32_to_e4m3,
};

use crate::{FormatError, Tensor};

/// Rows that a thread encodes at a time.
const RUN: usize = 16;

/// INT8 with a scale for each row.
pub const INT8_ROWS: GroupedType =
    GroupedType { book: CodeBook::Int { bits: 8 }, group: None, zero: ZeroPoint::At(128) };
/// FP8 (E4M3) with a scale for each row.
pub const FP8_ROWS: GroupedType = GroupedType { book: CodeBook::E4m3, group: None, zero: ZeroPoint::At(0) };
/// NF4 in blocks of 64, as bitsandbytes has it.
pub const NF4_BLOCKS: GroupedType = GroupedType { book: CodeBook::Nf4, group: Some(64), zero: ZeroPoint::At(0) };

/// Whether `from` can become `dtype`.
pub(crate) fn check(from: &Tensor, dtype: WeightType) -> Result<(), FormatError> {
    let bad = |got: String, want: String| Err(FormatError::tensor("model", &from.name, got, want));
    if !from.dtype.is_float() {
        return bad(format!("type {}", from.dtype), "F32, F16 or BF16: only floats are quantized while loading".into());
    }
    let [_, cols] = from.shape[..] else {
        return bad(format!("shape {:?}", from.shape), "a matrix".into());
    };
    match dtype {
        WeightType::Blocks(dtype) if !dtype.can_encode() => {
            bad(format!("type {dtype}"), "a type with an encoder".into())
        }
        WeightType::Blocks(dtype) if dtype.row_bytes(cols).is_none() => {
            bad(format!("rows of {cols}"), format!("a multiple of {}, for {dtype}", dtype.block_len()))
        }
        WeightType::Blocks(_) => Ok(()),
        WeightType::Grouped(kind) if ![INT8_ROWS, FP8_ROWS, NF4_BLOCKS].contains(&kind) => {
            bad(format!("type {kind}"), format!("{INT8_ROWS}, {FP8_ROWS} or {NF4_BLOCKS}"))
        }
        WeightType::Grouped(_) => Ok(()),
    }
}

/// Bytes of `from` as `dtype`.
pub(crate) fn byte_len(from: &Tensor, dtype: WeightType) -> usize {
    let (rows, cols) = (from.shape[0], from.row_elements());
    match dtype {
        WeightType::Blocks(dtype) => rows * dtype.row_bytes(cols).unwrap_or(0),
        WeightType::Grouped(kind) => rows * row_bytes(kind, cols),
    }
}

fn row_bytes(kind: GroupedType, cols: usize) -> usize {
    let groups = kind.group.map_or(1, |group| cols.div_ceil(group as usize));
    (cols * usize::from(kind.book.bits())).div_ceil(8) + 4 * groups
}

/// `from` as `dtype`.
pub(crate) fn encode(file: &str, from: &Tensor, dtype: WeightType, threads: usize) -> Result<Tensor, FormatError> {
    check(from, dtype)?;
    match dtype {
        WeightType::Blocks(dtype) => blocks(file, from, dtype, threads),
        WeightType::Grouped(kind) => {
            finite(file, from, threads)?;
            let rows = EncodedRows { from: from.clone(), kind };
            let grouped = Grouped::new(kind, (from.shape[0], from.row_elements()), None, Arc::new(rows));
            Ok(Tensor::grouped(&from.name, grouped))
        }
    }
}

fn blocks(file: &str, from: &Tensor, dtype: DType, threads: usize) -> Result<Tensor, FormatError> {
    let cols = from.row_elements();
    let row_bytes = dtype.row_bytes(cols).expect("checked");
    let mut out = vec![0; from.shape[0] * row_bytes];
    let runs = Mutex::new(out.chunks_mut(RUN * row_bytes).enumerate());
    let work = || -> Result<(), FormatError> {
        let mut encoded = Vec::with_capacity(RUN * row_bytes);
        loop {
            let next = runs.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
            let Some((run, out)) = next else { return Ok(()) };
            let first = run * RUN;
            encoded.clear();
            for row in first..first + out.len() / row_bytes {
                let values = from.rows(row..row + 1).to_f32()?;
                pelton_quant::encode(dtype, &values, &mut encoded).map_err(|e| {
                    let got = format!("row {row}: {e}");
                    FormatError::tensor(
                        file,
                        &from.name,
                        got,
                        "weights that the type can hold; load it without --quantization",
                    )
                })?;
            }
            out.copy_from_slice(&encoded);
        }
    };
    on_threads(threads, &work)?;
    Tensor::new(file, &from.name, dtype, from.shape.clone(), out.into())
}

/// Refuses NaN and infinity.
fn finite(file: &str, from: &Tensor, threads: usize) -> Result<(), FormatError> {
    let rows = Mutex::new((0..from.shape[0]).step_by(RUN));
    let work = || -> Result<(), FormatError> {
        loop {
            let next = rows.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
            let Some(first) = next else { return Ok(()) };
            from.rows(first..from.shape[0].min(first + RUN)).check_finite(file)?;
        }
    };
    on_threads(threads, &work)
}

/// Runs `work` on so many threads; the first error.
fn on_threads(threads: usize, work: &(dyn Fn() -> Result<(), FormatError> + Sync)) -> Result<(), FormatError> {
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut result = work();
        for other in others {
            result = result.and(other.join().expect("encoding does not panic"));
        }
        result
    })
}

/// Floats that are encoded when somebody asks for them.
struct EncodedRows {
    from: Tensor,
    kind: GroupedType,
}

impl EncodedRows {
    fn group(&self) -> usize {
        let cols = self.from.row_elements();
        self.kind.group.map_or(cols, |group| cols.min(group as usize))
    }

    fn decoded(&self, row: usize) -> Vec<f32> {
        self.from.rows(row..row + 1).to_f32().expect("floats decode")
    }

    /// The scale of a group: what brings its largest weight to the largest level.
    fn scale(&self, group: &[f32]) -> f32 {
        let largest = group.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        match self.kind.book {
            CodeBook::Int { .. } => largest / 127.0,
            CodeBook::E4m3 => largest / 448.0,
            CodeBook::Nf4 | CodeBook::Fp4 => largest,
        }
    }

    fn code(&self, value: f32, scale: f32) -> u8 {
        let level = if scale > 0.0 { value / scale } else { 0.0 };
        match self.kind.book {
            CodeBook::Int { .. } => (level.round_ties_even().clamp(-127.0, 127.0) + 128.0) as u8,
            CodeBook::E4m3 => f32_to_e4m3(level),
            CodeBook::Nf4 | CodeBook::Fp4 => nearest_nf4(level),
        }
    }
}

/// The level next to `value`; of two as near, the lower.
fn nearest_nf4(value: f32) -> u8 {
    NF4_LEVELS.windows(2).map(|pair| u8::from(value > 0.5 * (pair[0] + pair[1]))).sum()
}

impl GroupedRows for EncodedRows {
    fn codes(&self, rows: Range<usize>, out: &mut [u8]) {
        for (row, out) in rows.zip(out.chunks_exact_mut(self.from.row_elements())) {
            let values = self.decoded(row);
            for (values, out) in values.chunks(self.group()).zip(out.chunks_mut(self.group())) {
                let scale = self.scale(values);
                values.iter().zip(out).for_each(|(&value, out)| *out = self.code(value, scale));
            }
        }
    }

    fn scales(&self, rows: Range<usize>, out: &mut [f32]) {
        let n_groups = self.from.row_elements().div_ceil(self.group());
        for (row, out) in rows.zip(out.chunks_exact_mut(n_groups)) {
            let values = self.decoded(row);
            values.chunks(self.group()).zip(out).for_each(|(values, out)| *out = self.scale(values));
        }
    }

    fn zeros(&self, _: Range<usize>, out: &mut [i16]) {
        // Only INT8 has a zero point, which is the same everywhere.
        out.fill(128);
    }

    fn row_bytes(&self) -> usize {
        row_bytes(self.kind, self.from.row_elements())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(rows: usize, cols: usize) -> Tensor {
        let value = |i: usize| ((i * 7919 % 1009) as f32 - 500.0) / 300.0;
        let bytes: Vec<u8> = (0..rows * cols).flat_map(|i| value(i).to_le_bytes()).collect();
        Tensor::new("test", "w", DType::F32, vec![rows, cols], bytes.into()).unwrap()
    }

    #[test]
    fn blocks_are_those_of_the_encoder_on_any_number_of_threads() {
        let from = floats(37, 64);
        let mut want = Vec::new();
        pelton_quant::encode(DType::Q4_0, &from.to_f32().unwrap(), &mut want).unwrap();
        for threads in [1, 3] {
            let marked = from.marked(DType::Q4_0.into(), threads).unwrap();
            assert_eq!((marked.byte_len(), marked.blocks()), (want.len(), None));
            let stored = marked.stored("test").unwrap();
            assert_eq!((stored.data(), stored.shape.as_slice()), (&want[..], &[37, 64][..]));
            assert_eq!(marked.rows(3..9).stored("test").unwrap().data(), &want[3 * 36..9 * 36]);
        }
    }

    #[test]
    fn grouped_weights_are_near_and_know_their_size() {
        let from = floats(5, 128);
        let truth = from.to_f32().unwrap();
        for (kind, step, bytes) in [(INT8_ROWS, 1.0 / 250.0, 132), (FP8_ROWS, 1.0 / 16.0, 132), (NF4_BLOCKS, 0.16, 72)]
        {
            let stored = from.marked(kind.into(), 2).unwrap().stored("test").unwrap();
            let got = stored.to_f32().unwrap();
            let largest = truth.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let worst = truth.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
            assert!(worst > 0.0 && worst <= step * largest, "{kind}: {worst}");
            assert_eq!((stored.dtype, stored.byte_len()), (kind.into(), 5 * bytes));
        }
    }

    #[test]
    fn what_cannot_be_quantized_is_refused_by_name() {
        let from = floats(4, 48);
        let message = from.marked(DType::Q4_K.into(), 1).unwrap_err().to_string();
        assert!(message.contains("`w`") && message.contains("48") && message.contains("256"), "{message}");
        let quantized = from.marked(INT8_ROWS.into(), 1).unwrap();
        assert!(quantized.marked(FP8_ROWS.into(), 1).unwrap_err().to_string().contains("INT8 per row"));
        let mut bytes = vec![0; 4 * 32 * 4];
        bytes[200..204].copy_from_slice(&f32::NAN.to_le_bytes());
        let odd = Tensor::new("test", "odd", DType::F32, vec![4, 32], bytes.into()).unwrap();
        for kind in [WeightType::from(DType::Q8_0), INT8_ROWS.into(), NF4_BLOCKS.into()] {
            let message = odd.marked(kind, 2).unwrap().stored("a file").unwrap_err().to_string();
            assert!(message.contains("a file") && message.contains("`odd`") && message.contains("NaN"), "{message}");
        }
    }
}

//! Rows of a tensor as blocks, in chunks on several threads.
//!
//! Invariant: bytes come out in order and do not depend on the number of threads.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use pelton_quant::{DType, QuantError, encode_weighted};

use crate::gram::Factor;
use crate::plan::PlannedTensor;
use crate::{QuantizeError, gptq};

/// Elements that a thread converts at a time: 2 MiB as f32.
const CHUNK: usize = 1 << 19;
/// Chunks in flight for each thread: the writer waits for the slowest of them.
const AHEAD: usize = 4;

/// Encodes all rows and hands the bytes on in order.
pub(crate) fn encode(
    tensor: &PlannedTensor,
    compensation: Option<&Compensation>,
    threads: usize,
    each: &mut dyn FnMut(&[u8]) -> Result<(), QuantizeError>,
) -> Result<(), QuantizeError> {
    let n_rows = tensor.source.n_rows();
    let step = (CHUNK / tensor.source.cols().max(1)).max(1);
    let chunks: Vec<Range<usize>> = (0..n_rows).step_by(step).map(|at| at..n_rows.min(at + step)).collect();
    for window in chunks.chunks(threads * AHEAD) {
        for bytes in encode_window(tensor, compensation, window, threads) {
            each(&bytes?)?;
        }
    }
    Ok(())
}

/// What compensates the errors of a tensor's rows.
pub(crate) struct Compensation {
    factor: Factor,
    costs: Vec<f32>,
}

impl Compensation {
    pub(crate) fn new(factor: Factor) -> Compensation {
        Compensation { costs: factor.costs(), factor }
    }
}

type Encoded = Result<Vec<u8>, QuantizeError>;

fn encode_window(
    tensor: &PlannedTensor,
    compensation: Option<&Compensation>,
    window: &[Range<usize>],
    threads: usize,
) -> Vec<Encoded> {
    if threads <= 1 || window.len() <= 1 {
        return window.iter().map(|rows| encode_rows(tensor, compensation, rows.clone())).collect();
    }
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(window.len())));
    std::thread::scope(|scope| {
        for _ in 0..threads.min(window.len()) {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(rows) = window.get(i) else { break };
                    let encoded = encode_rows(tensor, compensation, rows.clone());
                    done.lock().expect("no thread panics while it holds the lock").push((i, encoded));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("no thread panics while it holds the lock");
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, encoded)| encoded).collect()
}

/// Some rows as blocks: as they are where the type is theirs already.
fn encode_rows(tensor: &PlannedTensor, compensation: Option<&Compensation>, rows: Range<usize>) -> Encoded {
    if tensor.factors.is_none()
        && let Some(bytes) = tensor.source.stored_rows(tensor.to, rows.clone())
    {
        return Ok(bytes);
    }
    let mut values = tensor.source.rows_f32(rows.clone())?;
    tensor.factors.apply(rows.start, tensor.source.cols(), &mut values);
    encode_each(tensor, tensor.to, rows.start, &values, |row, values, out| match compensation {
        Some(c) => gptq::encode_row(tensor.to, values, &c.factor, &c.costs, out),
        None => encode_weighted(tensor.to, values, tensor.importance_of(row), out),
    })
}

/// Rows of values from `first_row` on, as blocks of `to`, each with the importance that its row has in the plan.
pub(crate) fn encode_values(tensor: &PlannedTensor, to: DType, first_row: usize, values: &[f32]) -> Encoded {
    encode_each(tensor, to, first_row, values, |row, values, out| {
        encode_weighted(to, values, tensor.importance_of(row), out)
    })
}

/// Checks rows of values from `first_row` on and appends each with `append`.
pub(crate) fn encode_each(
    tensor: &PlannedTensor,
    to: DType,
    first_row: usize,
    values: &[f32],
    append: impl Fn(usize, &[f32], &mut Vec<u8>) -> Result<(), QuantError>,
) -> Encoded {
    let cols = tensor.source.cols();
    let name = tensor.source.name();
    let mut out = Vec::with_capacity(values.len() / to.block_len() * to.block_bytes());
    for (i, row) in values.chunks_exact(cols).enumerate() {
        if let Some(col) = row.iter().position(|v| !v.is_finite()) {
            let problem = format!(
                "row {}, column {col} is {}; repair the source, it cannot be quantized",
                first_row + i,
                row[col]
            );
            return Err(QuantizeError::tensor(name, problem));
        }
        if to == DType::F16
            && let Some(v) = row.iter().find(|v| v.abs() > 65_504.0)
        {
            return Err(QuantizeError::tensor(name, format!("a weight of {v} is past F16; choose BF16 or F32")));
        }
        append(first_row + i, row, &mut out)
            .map_err(|e| QuantizeError::tensor(name, format!("row {}: {e}", first_row + i)))?;
    }
    Ok(out)
}

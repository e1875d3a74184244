//! Cases of the ops that work row by row: embed, norms, addition, gates, soft cap, gather, resizing.

use std::fmt;

use pelton_quant::DType;

use super::{NO_ROPE, Output, Random, download, plain_batch, upload};
use crate::{Backend, BatchBuilder, Gate, Weight};

/// All row ops on `(rows, cols)`.
pub(super) struct RowsCase {
    rows: usize,
    cols: usize,
    seed: u64,
}

impl fmt::Display for RowsCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rows {}, cols {}", self.rows, self.cols)
    }
}

pub(super) fn cases() -> Vec<RowsCase> {
    let sizes = [(1, 1), (1, 8), (2, 15), (3, 16), (7, 33), (33, 64), (3, 100), (1, 2049), (2, 896), (130, 1030)];
    sizes.into_iter().zip(1..).map(|((rows, cols), seed)| RowsCase { rows, cols, seed }).collect()
}

impl RowsCase {
    pub(super) fn run<B: Backend>(&self, b: &mut B) -> Vec<Output> {
        let (rows, cols) = (self.rows, self.cols);
        let mut random = Random(self.seed);
        let values = random.normals(rows * cols);
        let other = random.normals(rows * cols);
        let weight = random.normals(cols);
        let weight = b.load_vector(&weight);
        let mut outputs = vec![self.embed(b, &mut random)];
        let mut push = |op, values| outputs.push(Output { op, values });

        // Small rows: where epsilon counts.
        let small: Vec<f32> = values.iter().map(|v| v * 1e-3).collect();
        let mut out = b.alloc(rows, cols);
        for (x, eps) in [(&values, 1e-6), (&small, 1e-5)] {
            let x = upload(b, rows, cols, x);
            b.rms_norm(&x, &weight, eps, &mut out);
            push("rms_norm", download(b, &out));
        }

        let mut x = upload(b, rows, cols, &values);
        let y = upload(b, rows, cols, &other);
        b.add(&mut x, &y);
        push("add", download(b, &x));
        b.add_rms_norm(&mut x, &y, &weight, 1e-6, &mut out);
        push("add_rms_norm", download(b, &x));
        push("add_rms_norm", download(b, &out));

        for scale in [1.0, 60.0] {
            let scaled: Vec<f32> = values.iter().map(|v| v * scale).collect();
            let mut x = upload(b, rows, cols, &scaled);
            b.softcap(&mut x, 30.0);
            push("softcap", download(b, &x));
        }
        // Over what the matrix held before, with other rows than it was made with.
        b.set_rows(&mut out, 1);
        b.write(&mut out, &other[..cols]);
        push("write", download(b, &out));
        b.set_rows(&mut out, rows);
        b.write(&mut out, &values);
        push("write", download(b, &out));
        outputs.extend(self.gate(b, &mut random));
        outputs.push(self.gather(b, &values));
        outputs
    }

    /// Rows of a table in the file's type, with repeats, scaled.
    fn embed<B: Backend>(&self, b: &mut B, random: &mut Random) -> Output {
        let dtype = if self.cols.is_multiple_of(32) { DType::Q8_0 } else { DType::F16 };
        let vocab = 19;
        let mut bytes = Vec::new();
        pelton_quant::encode(dtype, &random.normals(vocab * self.cols), &mut bytes).expect("finite values");
        let table = Weight::new("table", dtype, vocab, self.cols, std::sync::Arc::new(bytes)).expect("whole rows");
        let table = b.load_embedding(&table).expect("a decodable table");
        let ids: Vec<u32> = (0..self.rows).map(|_| random.below(vocab) as u32).collect();
        let prepared = b.prepare(&plain_batch(&ids), &NO_ROPE);
        let mut out = b.alloc(self.rows, self.cols);
        b.embed(&prepared, &table, 3.5, &mut out);
        Output { op: "embed", values: download(b, &out) }
    }

    fn gate<B: Backend>(&self, b: &mut B, random: &mut Random) -> Vec<Output> {
        let x: Vec<f32> = random.normals(2 * self.rows * self.cols).iter().map(|v| 4.0 * v).collect();
        let x = upload(b, self.rows, 2 * self.cols, &x);
        let mut out = b.alloc(self.rows, self.cols);
        let mut outputs = Vec::new();
        for gate in [Gate::Silu, Gate::GeluTanh] {
            b.gate(&x, gate, &mut out);
            outputs.push(Output { op: "gate", values: download(b, &out) });
        }
        outputs
    }

    /// The last two rows of one sequence and the last of another, into a matrix that shrinks to fit.
    fn gather<B: Backend>(&self, b: &mut B, values: &[f32]) -> Output {
        let x = upload(b, self.rows, self.cols, values);
        let mut builder = BatchBuilder::new(8);
        let first = self.rows.div_ceil(2);
        let pages: Vec<u32> = (0..8).collect();
        builder.push(&vec![0; first], 0, &pages[..4], 2).expect("few rows");
        if self.rows > first {
            builder.push(&vec![0; self.rows - first], 5, &pages[4..], 1).expect("few rows");
        }
        let batch = builder.finish();
        let prepared = b.prepare(&batch, &NO_ROPE);
        let mut out = b.alloc(self.rows + 3, self.cols);
        b.set_rows(&mut out, batch.logit_rows.len());
        b.gather_logit_rows(&x, &prepared, &mut out);
        Output { op: "gather_logit_rows", values: download(b, &out) }
    }
}

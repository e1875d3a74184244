//! Embedding tables stay on the host: a step needs one row a token, which the host decodes in microseconds and sends along,
//! and a large vocabulary's table would take a gigabyte of the card. Rows are decoded as the file has them: exact.

use pelton_backend::Weight;

/// A table, `(vocab, hidden)`.
#[derive(Debug)]
pub struct Embedding {
    table: Weight,
}

/// Elements below which threads cost more than they save.
const PARALLEL: usize = 1 << 18;

impl Embedding {
    pub(crate) fn new(table: &Weight) -> Embedding {
        Embedding { table: table.clone() }
    }

    pub(crate) fn hidden(&self) -> usize {
        self.table.cols()
    }

    /// `scale * table[id]` for each id.
    pub(crate) fn rows(&self, ids: &[u32], scale: f32) -> Vec<f32> {
        let hidden = self.hidden();
        assert!(ids.iter().all(|&id| (id as usize) < self.table.rows()), "an id outside of the table");
        let mut out = vec![0.0; ids.len() * hidden];
        let fill = |ids: &[u32], out: &mut [f32]| {
            for (&id, row) in ids.iter().zip(out.chunks_exact_mut(hidden)) {
                self.table.decode_row(id as usize, row);
                row.iter_mut().for_each(|v| *v *= scale);
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(8);
        if out.len() < PARALLEL || threads == 1 {
            fill(ids, &mut out);
            return out;
        }
        let each = ids.len().div_ceil(threads);
        std::thread::scope(|scope| {
            for (ids, out) in ids.chunks(each).zip(out.chunks_mut(each * hidden)) {
                let fill = &fill;
                scope.spawn(move || fill(ids, out));
            }
        });
        out
    }
}

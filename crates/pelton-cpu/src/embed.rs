//! Embedding tables: rows decoded from the file's bytes when they are asked for.
//!
//! Invariant: the table stays as it is in the file (mapped); a step touches the rows of its tokens only.

use pelton_backend::Weight;

/// An embedding table, `(vocab, hidden)`.
#[derive(Clone, Debug)]
pub struct Embedding {
    table: Weight,
}

impl Embedding {
    pub(crate) fn new(table: &Weight) -> Embedding {
        Embedding { table: table.clone() }
    }

    /// Width of a row.
    pub(crate) fn hidden(&self) -> usize {
        self.table.cols()
    }

    /// `out = scale * table[id]`.
    pub(crate) fn row(&self, id: u32, scale: f32, out: &mut [f32]) {
        assert!((id as usize) < self.table.rows(), "token {id} of a table of {}", self.table.rows());
        self.table.decode_row(id as usize, out);
        if scale != 1.0 {
            out.iter_mut().for_each(|v| *v *= scale);
        }
    }
}

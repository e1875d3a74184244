//! Weights as codes with a scale for each group of columns: what AWQ, GPTQ, bitsandbytes, FP8 and compressed-tensors
//! have in common.
//!
//! ```text
//! weight(row, order[j]) = scale(row, j / group) * level(code(row, j), zero(row, j / group))
//! ```
//!
//! in f32, rounded once: levels are exact. Files lay the three arrays out in many ways; each of those is a
//! [`GroupedRows`], which takes rows out of the file when they are asked for, so that a matrix is never copied as a
//! whole and kernels untangle it while they pack it, on all their threads.
//!
//! Invariant: [`Grouped::decode_row`] is the truth; what kernels make of the arrays is held against it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::{GroupedType, ZeroPoint};

/// The arrays of grouped weights, wherever they lie. Lengths were checked when it was made: nothing here fails.
pub trait GroupedRows: Send + Sync {
    /// Codes of `rows`, `(rows, cols)`, by input feature.
    fn codes(&self, rows: Range<usize>, out: &mut [u8]);

    /// Scales of `rows`, `(rows, n_groups)`.
    fn scales(&self, rows: Range<usize>, out: &mut [f32]);

    /// Zero points of `rows`, `(rows, n_groups)`. Called only for [`ZeroPoint::PerGroup`].
    fn zeros(&self, rows: Range<usize>, out: &mut [i16]);

    /// Bytes of the arrays that one row takes in the file, rounded up.
    fn row_bytes(&self) -> usize;
}

/// A matrix `(rows, cols)` of grouped weights. Cloning shares the arrays.
#[derive(Clone)]
pub struct Grouped {
    kind: GroupedType,
    rows: Range<usize>,
    cols: usize,
    /// Input features in the order of groups.
    order: Option<Arc<[u32]>>,
    source: Arc<dyn GroupedRows>,
}

impl Grouped {
    /// A matrix over `source`. With `order`, stored column `j` is input feature `order[j]`.
    ///
    /// # Panics
    /// Where there are no rows, columns or groups, or `order` is not a permutation of the columns: readers check what
    /// comes from a file.
    pub fn new(
        kind: GroupedType,
        (rows, cols): (usize, usize),
        order: Option<Arc<[u32]>>,
        source: Arc<dyn GroupedRows>,
    ) -> Grouped {
        assert!(rows > 0 && cols > 0 && kind.group != Some(0), "({rows}, {cols}) of {kind}");
        if let Some(order) = &order {
            let mut seen = vec![false; cols];
            order.iter().for_each(|&j| seen[j as usize] = true);
            assert!(order.len() == cols && seen.iter().all(|&s| s), "an order of all {cols} columns");
        }
        Grouped { kind, rows: 0..rows, cols, order, source }
    }

    /// How it is stored.
    pub fn kind(&self) -> GroupedType {
        self.kind
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Columns that share a scale.
    pub fn group(&self) -> usize {
        self.kind.group.map_or(self.cols, |group| self.cols.min(group as usize))
    }

    /// Groups of a row; the last one may be short.
    pub fn n_groups(&self) -> usize {
        self.cols.div_ceil(self.group())
    }

    /// Where groups do not lie side by side: stored column `j` is input feature `order[j]`.
    pub fn order(&self) -> Option<&Arc<[u32]>> {
        self.order.as_ref()
    }

    /// Bytes of codes, scales and zero points in the file.
    pub fn byte_len(&self) -> usize {
        self.rows().saturating_mul(self.source.row_bytes())
    }

    /// Some of the rows, sharing the arrays.
    ///
    /// # Panics
    /// Where the range reaches past the last row.
    pub fn part(&self, rows: Range<usize>) -> Grouped {
        Grouped { rows: self.absolute(&rows), ..self.clone() }
    }

    /// Codes of `rows`, `(rows, cols)`, in the stored order of columns.
    ///
    /// # Panics
    /// Where `rows` or the length of `out` is out of range.
    pub fn codes(&self, rows: Range<usize>, out: &mut [u8]) {
        assert_eq!(out.len(), rows.len() * self.cols, "codes of {} rows", rows.len());
        self.source.codes(self.absolute(&rows), out);
        if let Some(order) = &self.order {
            let mut by_feature = vec![0; self.cols];
            for row in out.chunks_exact_mut(self.cols) {
                by_feature.copy_from_slice(row);
                row.iter_mut().zip(&**order).for_each(|(code, &j)| *code = by_feature[j as usize]);
            }
        }
    }

    /// Scales of `rows`, `(rows, n_groups)`.
    ///
    /// # Panics
    /// Where `rows` or the length of `out` is out of range.
    pub fn scales(&self, rows: Range<usize>, out: &mut [f32]) {
        assert_eq!(out.len(), rows.len() * self.n_groups(), "scales of {} rows", rows.len());
        self.source.scales(self.absolute(&rows), out);
    }

    /// Zero points of `rows`, `(rows, n_groups)`.
    ///
    /// # Panics
    /// Where `rows` or the length of `out` is out of range.
    pub fn zeros(&self, rows: Range<usize>, out: &mut [i16]) {
        assert_eq!(out.len(), rows.len() * self.n_groups(), "zero points of {} rows", rows.len());
        match self.kind.zero {
            ZeroPoint::At(zero) => out.fill(zero),
            ZeroPoint::PerGroup => self.source.zeros(self.absolute(&rows), out),
        }
    }

    /// The weights of a row, `(cols,)`, by input feature.
    ///
    /// # Panics
    /// Where `row` or the length of `out` is out of range.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "a row of {} weights", self.cols);
        let (group, n_groups) = (self.group(), self.n_groups());
        let (mut codes, mut scales, mut zeros) = (vec![0; self.cols], vec![0.0; n_groups], vec![0; n_groups]);
        self.codes(row..row + 1, &mut codes);
        self.scales(row..row + 1, &mut scales);
        self.zeros(row..row + 1, &mut zeros);
        for (g, codes) in codes.chunks(group).enumerate() {
            for (i, &code) in codes.iter().enumerate() {
                let j = g * group + i;
                let feature = self.order.as_ref().map_or(j, |order| order[j] as usize);
                out[feature] = scales[g] * self.kind.book.level(code, zeros[g]);
            }
        }
    }

    /// The first scale that is NaN or infinite, as `(row, group)`.
    pub fn odd_scale(&self) -> Option<(usize, usize)> {
        let mut scales = vec![0.0; self.n_groups()];
        (0..self.rows()).find_map(|row| {
            self.scales(row..row + 1, &mut scales);
            scales.iter().position(|s| !s.is_finite()).map(|group| (row, group))
        })
    }

    fn absolute(&self, rows: &Range<usize>) -> Range<usize> {
        assert!(rows.start <= rows.end && rows.end <= self.rows.len(), "rows {rows:?} of {}", self.rows.len());
        self.rows.start + rows.start..self.rows.start + rows.end
    }
}

impl fmt::Debug for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}, {}) {}", self.rows(), self.cols, self.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CodeBook;

    /// Code, scale and zero point tell their place.
    struct Numbered;

    impl GroupedRows for Numbered {
        fn codes(&self, rows: Range<usize>, out: &mut [u8]) {
            let all = rows.flat_map(|r| (0..6).map(move |c| (10 * r + c) as u8));
            out.iter_mut().zip(all).for_each(|(out, code)| *out = code);
        }
        fn scales(&self, rows: Range<usize>, out: &mut [f32]) {
            let all = rows.flat_map(|r| [1.0 + r as f32, 0.5]);
            out.iter_mut().zip(all).for_each(|(out, scale)| *out = scale);
        }
        fn zeros(&self, rows: Range<usize>, out: &mut [i16]) {
            let all = rows.flat_map(|_| [0, 1]);
            out.iter_mut().zip(all).for_each(|(out, zero)| *out = zero);
        }
        fn row_bytes(&self) -> usize {
            16
        }
    }

    fn numbered(order: Option<Arc<[u32]>>) -> Grouped {
        let kind = GroupedType { book: CodeBook::Int { bits: 8 }, group: Some(4), zero: ZeroPoint::PerGroup };
        Grouped::new(kind, (3, 6), order, Arc::new(Numbered))
    }

    #[test]
    fn groups_follow_the_stored_order() {
        let mut row = [0.0; 6];
        numbered(None).decode_row(1, &mut row);
        assert_eq!(row, [20.0, 22.0, 24.0, 26.0, 6.5, 7.0]);
        // Features 5, 4, 3 and 2 are the first group; 1 and 0 the second.
        let reversed = numbered(Some([5, 4, 3, 2, 1, 0].into()));
        reversed.decode_row(1, &mut row);
        assert_eq!(row, [4.5, 5.0, 24.0, 26.0, 28.0, 30.0]);
        let mut codes = [0; 6];
        reversed.codes(1..2, &mut codes);
        assert_eq!(codes, [15, 14, 13, 12, 11, 10]);
    }

    #[test]
    fn parts_are_the_same_rows() {
        let (all, part) = (numbered(None), numbered(None).part(1..3).part(1..2));
        let (mut a, mut b) = ([0.0; 6], [0.0; 6]);
        all.decode_row(2, &mut a);
        part.decode_row(0, &mut b);
        assert_eq!((a, part.rows(), part.byte_len()), (b, 1, 16));
    }
}

//! Activations: f32 matrices whose rows many threads may write at once.
//!
//! Invariants: the first element is aligned to a cache line; changing the number of rows allocates only where the
//! matrix has never been that large.

use std::marker::PhantomData;
use std::ops::Range;

/// A cache line of f32.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A matrix `(rows, cols)`, row-major.
#[derive(Clone, Default)]
pub struct Tensor {
    rows: usize,
    cols: usize,
    lines: Vec<Line>,
    stamp: u64,
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({}, {})", self.rows, self.cols)
    }
}

impl Tensor {
    /// A matrix of zeros.
    pub(crate) fn new(rows: usize, cols: usize) -> Tensor {
        let mut tensor = Tensor::default();
        tensor.reshape(rows, cols);
        tensor
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Changes the shape; the contents are unspecified.
    pub(crate) fn reshape(&mut self, rows: usize, cols: usize) {
        let len = rows.checked_mul(cols).expect("a matrix that fits in memory");
        if len.div_ceil(16) > self.lines.len() {
            self.lines.resize(len.div_ceil(16), Line([0.0; 16]));
        }
        (self.rows, self.cols, self.stamp) = (rows, cols, 0);
    }

    /// The number that stands for these very contents; 0 where they have none. Whoever may change them takes it away.
    pub(crate) fn stamp(&self) -> u64 {
        self.stamp
    }

    /// Gives the contents a number.
    pub(crate) fn set_stamp(&mut self, stamp: u64) {
        self.stamp = stamp;
    }

    /// All elements.
    pub fn data(&self) -> &[f32] {
        // SAFETY: `Line` is 16 f32 without padding, and `reshape` keeps rows * cols of them allocated.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.rows * self.cols) }
    }

    /// All elements.
    pub fn data_mut(&mut self) -> &mut [f32] {
        self.stamp = 0;
        // SAFETY: as in `data`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.rows * self.cols) }
    }

    /// One row.
    pub(crate) fn row(&self, r: usize) -> &[f32] {
        &self.data()[r * self.cols..(r + 1) * self.cols]
    }
}

/// A slice that tasks of one op write at once, each its own part.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    of: PhantomData<&'a mut [T]>,
}

// SAFETY: the only access is `Shared::part`, whose callers promise that parts in use at the same time are disjoint.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Shared<'a, T> {
        Shared { start: slice.as_mut_ptr(), len: slice.len(), of: PhantomData }
    }

    /// A part of the slice.
    ///
    /// # Safety
    /// No other part that is in use meanwhile overlaps it.
    #[allow(clippy::mut_from_ref, reason = "that is the purpose: disjoint parts of one exclusive borrow")]
    #[inline(always)]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part {range:?} of {}", self.len);
        // SAFETY: inside the borrowed slice; disjointness is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.end - range.start) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shrinking_and_growing_within_the_largest_size_keeps_the_memory() {
        let mut t = Tensor::new(9, 33);
        assert_eq!(t.data().as_ptr() as usize % 64, 0);
        let at = t.data().as_ptr();
        t.reshape(1, 33);
        assert_eq!((t.data().len(), t.row(0).len()), (33, 33));
        t.reshape(9, 33);
        t.data_mut()[9 * 33 - 1] = 1.0;
        assert_eq!((t.data().as_ptr(), t.row(8)[32]), (at, 1.0));
    }

    #[test]
    fn contents_that_may_have_changed_have_no_number() {
        let mut t = Tensor::new(2, 3);
        t.set_stamp(7);
        let _ = (t.data(), t.row(1));
        assert_eq!(t.stamp(), 7);
        t.data_mut();
        assert_eq!(t.stamp(), 0);
        t.set_stamp(8);
        t.reshape(2, 3);
        assert_eq!(t.stamp(), 0);
    }
}

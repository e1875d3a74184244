//! A matrix of activations on the device.

use crate::pool::Buffer;

/// `(rows, cols)` f32, row-major. Its buffer may be longer.
#[derive(Debug)]
pub struct Tensor {
    rows: usize,
    cols: usize,
    buffer: Buffer,
}

impl Tensor {
    pub(crate) fn new(rows: usize, cols: usize, buffer: Buffer) -> Tensor {
        assert!(rows * cols * 4 <= buffer.bytes(), "{rows} x {cols} in {} bytes", buffer.bytes());
        Tensor { rows, cols, buffer }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    pub(crate) fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Another number of rows that the buffer holds; `false` where it does not.
    pub(crate) fn set_rows(&mut self, rows: usize) -> bool {
        let fits = rows * self.cols * 4 <= self.buffer.bytes();
        if fits {
            self.rows = rows;
        }
        fits
    }
}

//! What a task of attention works in: allocated once for each thread that ever worked, and used again.
//!
//! Invariant: nothing in it lasts from one task to the next.

use std::sync::{Mutex, PoisonError};

use half::bf16;

use super::{CHUNK, STRIP, TILE};

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; 16]);

/// Numbers from the start of a cache line.
pub(crate) struct Aligned<T> {
    lines: Vec<Line>,
    len: usize,
    of: std::marker::PhantomData<T>,
}

/// Numbers of 2 or 4 bytes of which every pattern of bits is one.
pub(crate) trait Plain: Copy {}
impl Plain for f32 {}
impl Plain for bf16 {}

impl<T: Plain> Aligned<T> {
    fn new() -> Aligned<T> {
        Aligned { lines: Vec::new(), len: 0, of: std::marker::PhantomData }
    }

    /// Makes room for `len` numbers; what they are is unspecified.
    pub(crate) fn fit(&mut self, len: usize) {
        let lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        if lines > self.lines.len() {
            self.lines.resize(lines, Line([0; 16]));
        }
        self.len = len;
    }

    #[inline(always)]
    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: `fit` made room, and every pattern of bits is a `Plain` number.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }

    #[inline(always)]
    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

/// One task's memory.
pub(crate) struct Scratch {
    /// Queries of the tile, rounded, `(queries, query_stride)`: f32 for vectors, bf16 for tiles.
    pub queries: Aligned<f32>,
    pub tile_queries: Aligned<bf16>,
    pub query_stride: usize,
    /// `(STRIP, CHUNK)`: scores, then weights.
    pub scores: Aligned<f32>,
    /// `(STRIP, CHUNK)`: weights for tiles.
    pub weights: Aligned<bf16>,
    /// `(STRIP, part_stride)`: weighted sums of a chunk.
    pub part: Aligned<f32>,
    pub part_stride: usize,
    /// Maximum and sum of each query of a strip in a chunk.
    pub state: [(f32, f32); STRIP],
    /// Running maximum and sum of each query of the tile.
    pub max: [f32; TILE],
    pub sum: [f32; TILE],
    /// The chunk's pages, where codes are stored: tiles of bf16.
    pub tiles: Aligned<bf16>,
    pub key_scales: [f32; CHUNK],
    pub value_scales: [f32; CHUNK],
    /// Pages of V in which some slots are cleared.
    pub masked: Aligned<bf16>,
}

impl Scratch {
    fn new() -> Scratch {
        Scratch {
            queries: Aligned::new(),
            tile_queries: Aligned::new(),
            query_stride: 0,
            scores: Aligned::new(),
            weights: Aligned::new(),
            part: Aligned::new(),
            part_stride: 0,
            state: [(0.0, 0.0); STRIP],
            max: [0.0; TILE],
            sum: [0.0; TILE],
            tiles: Aligned::new(),
            key_scales: [0.0; CHUNK],
            value_scales: [0.0; CHUNK],
            masked: Aligned::new(),
        }
    }

    /// Makes room for a tile of `queries` queries. Whole strips, and whole tiles of columns.
    pub(super) fn fit(&mut self, queries: usize, head_dim: usize) {
        self.query_stride = head_dim.next_multiple_of(32);
        self.part_stride = head_dim.next_multiple_of(64);
        let n = queries.next_multiple_of(STRIP) * self.query_stride;
        self.queries.fit(n);
        self.tile_queries.fit(n);
        self.scores.fit(STRIP * CHUNK);
        self.weights.fit(STRIP * CHUNK);
        self.part.fit(STRIP * self.part_stride);
    }
}

/// Scratch for as many tasks as run at once.
#[derive(Default)]
pub(crate) struct ScratchPool(Mutex<Vec<Box<Scratch>>>);

impl std::fmt::Debug for ScratchPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ScratchPool")
    }
}

impl ScratchPool {
    /// Runs `task` with scratch of its own. Two lockings of a few instructions a task.
    pub(crate) fn with<R>(&self, task: impl FnOnce(&mut Scratch) -> R) -> R {
        let free = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = free().pop();
        let mut scratch = idle.unwrap_or_else(|| Box::new(Scratch::new()));
        let result = task(&mut scratch);
        free().push(scratch);
        result
    }
}

//! The instruction set and the threads, and when an op is worth splitting over them.
//!
//! Invariant: how an op is split never shows in its result: tasks are whole rows.

use std::ops::Range;

use crate::isa::Isa;
use crate::pool::Pool;
use crate::simd::{self, Kernel};

/// An op below this many f32 operations (some 20 µs of one core) is not worth waking the other threads for.
const WORTH_SPLITTING: usize = 1 << 17;

/// Tasks per thread, so that a thread that was interrupted leaves work to the others.
const TASKS_PER_THREAD: usize = 4;

/// What ops run on.
#[derive(Debug)]
pub(crate) struct Machine {
    pub isa: Isa,
    pub pool: Pool,
}

impl Machine {
    /// Runs a kernel on the calling thread.
    pub(crate) fn run<K: Kernel>(&self, kernel: K) -> K::Out {
        simd::run(self.isa, kernel)
    }

    /// Runs `n_tasks` tasks that take `operations` f32 operations together.
    pub(crate) fn tasks(&self, n_tasks: usize, operations: usize, task: &(dyn Fn(usize) + Sync)) {
        if operations < WORTH_SPLITTING {
            (0..n_tasks).for_each(task);
        } else {
            self.pool.run(n_tasks, task);
        }
    }

    /// Deals rows to the threads: `task` gets ranges of rows.
    pub(crate) fn rows(&self, rows: usize, operations_per_row: usize, task: &(dyn Fn(Range<usize>) + Sync)) {
        let operations = rows.saturating_mul(operations_per_row);
        if operations < WORTH_SPLITTING || self.pool.threads() == 1 {
            return task(0..rows);
        }
        let n_tasks = rows.min(self.pool.threads() * TASKS_PER_THREAD);
        self.pool.run(n_tasks, &|i| task(rows * i / n_tasks..rows * (i + 1) / n_tasks));
    }
}

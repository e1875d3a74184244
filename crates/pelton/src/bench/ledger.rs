//! The ledger of a step: what each op took, read and computed.
//!
//! Invariant: the seconds of a ledger's entries sum to the seconds of the step; what passes between ops is an entry
//! of its own.

use std::ops::{AddAssign, Mul};
use std::time::Duration;

use pelton_cpu::Ceilings;
use pelton_quant::{DType, WeightType};

/// The name of the entry for time between ops.
pub(super) const BETWEEN: &str = "between ops";

/// Bytes and operations of some work. A multiplication and an addition are two operations.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Bytes of weights, keys and values that are read: these come from memory, since they do not fit the caches.
    pub memory_bytes: f64,
    /// Bytes of activations that are read and written: caches may hold them.
    pub activation_bytes: f64,
    /// Operations with quantized weights, which kernels do on signed bytes.
    pub int8_operations: f64,
    /// Operations with bfloat16 weights.
    pub bf16_operations: f64,
    /// Operations on floats: other weights, attention, norms.
    pub f32_operations: f64,
}

impl Work {
    /// A product of `rows` rows with weights of `dtype`, `(cols_in, cols_out)`.
    pub(crate) fn product(rows: f64, dtype: impl Into<WeightType>, cols_in: usize, cols_out: usize) -> Work {
        let operations = 2.0 * rows * cols_in as f64 * cols_out as f64;
        let activation_bytes = 4.0 * rows * (cols_in + cols_out) as f64;
        let work = Work { activation_bytes, ..Work::default() };
        match dtype.into().blocks() {
            Some(DType::BF16) => Work { bf16_operations: operations, ..work },
            Some(DType::F16 | DType::F32) => Work { f32_operations: operations, ..work },
            _ => Work { int8_operations: operations, ..work },
        }
    }

    /// All operations.
    pub fn operations(&self) -> f64 {
        self.int8_operations + self.bf16_operations + self.f32_operations
    }

    /// All bytes.
    pub fn bytes(&self) -> f64 {
        self.memory_bytes + self.activation_bytes
    }

    /// Seconds that reading takes at best.
    pub fn memory_seconds(&self, ceilings: &Ceilings) -> f64 {
        self.memory_bytes / 1e9 / ceilings.read_gb_per_s.max(1e-9)
    }

    /// Seconds that the arithmetic takes at best.
    pub fn arithmetic_seconds(&self, ceilings: &Ceilings) -> f64 {
        let bf16 = ceilings.bf16_tera_ops.unwrap_or(ceilings.f32_tera_ops);
        let seconds = self.int8_operations / ceilings.int8_tera_ops
            + self.bf16_operations / bf16
            + self.f32_operations / ceilings.f32_tera_ops;
        seconds / 1e12
    }

    /// Seconds at best: the longer of the two, since they overlap.
    pub fn least_seconds(&self, ceilings: &Ceilings) -> f64 {
        self.memory_seconds(ceilings).max(self.arithmetic_seconds(ceilings))
    }

    /// What limits it.
    pub fn bound(&self, ceilings: &Ceilings) -> Bound {
        match self.memory_seconds(ceilings) >= self.arithmetic_seconds(ceilings) {
            true => Bound::Memory,
            false => Bound::Arithmetic,
        }
    }
}

impl AddAssign for Work {
    fn add_assign(&mut self, other: Work) {
        self.memory_bytes += other.memory_bytes;
        self.activation_bytes += other.activation_bytes;
        self.int8_operations += other.int8_operations;
        self.bf16_operations += other.bf16_operations;
        self.f32_operations += other.f32_operations;
    }
}

impl Mul<f64> for Work {
    type Output = Work;

    fn mul(self, by: f64) -> Work {
        Work {
            memory_bytes: self.memory_bytes * by,
            activation_bytes: self.activation_bytes * by,
            int8_operations: self.int8_operations * by,
            bf16_operations: self.bf16_operations * by,
            f32_operations: self.f32_operations * by,
        }
    }
}

/// The nearer of two ceilings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Reading weights, keys and values.
    Memory,
    /// Multiplying.
    Arithmetic,
}

impl Bound {
    /// The word that tables and JSON use.
    pub fn name(self) -> &'static str {
        match self {
            Bound::Memory => "memory",
            Bound::Arithmetic => "arithmetic",
        }
    }
}

/// One op of a step, all its calls together.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The op, or the linear layer's name without its layer number.
    pub op: String,
    /// Calls.
    pub calls: usize,
    /// Seconds of all calls.
    pub seconds: f64,
    /// What they did.
    pub work: Work,
}

/// The ops of a step, in the order of their first call, and the time between them last.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ledger {
    /// Seconds of the whole step.
    pub seconds: f64,
    /// The ops.
    pub entries: Vec<Entry>,
}

impl Ledger {
    pub(super) fn add(&mut self, op: &str, time: Duration, work: Work) {
        let seconds = time.as_secs_f64();
        match self.entries.iter_mut().find(|e| e.op == op) {
            Some(entry) => {
                entry.calls += 1;
                entry.seconds += seconds;
                entry.work += work;
            }
            None => self.entries.push(Entry { op: op.to_string(), calls: 1, seconds, work }),
        }
    }

    /// Closes the ledger of a step that took `time` in all.
    pub(super) fn close(mut self, time: Duration) -> Ledger {
        let between = time.as_secs_f64() - self.entries.iter().map(|e| e.seconds).sum::<f64>();
        let (op, calls) = (BETWEEN.to_string(), 1);
        self.entries.push(Entry { op, calls, seconds: between.max(0.0), work: Work::default() });
        self.seconds = self.entries.iter().map(|e| e.seconds).sum();
        self
    }

    /// The mean of the `steps` steps that this is the sum of.
    pub(super) fn mean(mut self, steps: usize) -> Ledger {
        let by = 1.0 / steps.max(1) as f64;
        self.seconds *= by;
        for entry in &mut self.entries {
            entry.calls = entry.calls.div_ceil(steps.max(1));
            entry.seconds *= by;
            entry.work = entry.work * by;
        }
        self
    }

    /// What the whole step did.
    pub fn work(&self) -> Work {
        let mut sum = Work::default();
        self.entries.iter().for_each(|e| sum += e.work);
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CEILINGS: Ceilings = Ceilings {
        read_gb_per_s: 10.0,
        int8_tera_ops: 4.0,
        int8_unit: "int8",
        bf16_tera_ops: Some(2.0),
        f32_tera_ops: 0.5,
        f32_unit: "f32",
    };

    #[test]
    fn entries_sum_to_the_step() {
        let mut ledger = Ledger::default();
        let one = Work { memory_bytes: 7.0, f32_operations: 2.0, ..Work::default() };
        ledger.add("b", Duration::from_millis(3), one);
        ledger.add("a", Duration::from_millis(2), one);
        ledger.add("b", Duration::from_millis(1), one);
        let ledger = ledger.close(Duration::from_millis(10));
        let ops: Vec<_> = ledger.entries.iter().map(|e| (e.op.as_str(), e.calls)).collect();
        assert_eq!(ops, [("b", 2), ("a", 1), (BETWEEN, 1)]);
        assert!((ledger.seconds - 0.010).abs() < 1e-12 && (ledger.entries[2].seconds - 0.004).abs() < 1e-12);
        assert_eq!(ledger.work(), one * 3.0);
    }

    #[test]
    fn the_slower_of_reading_and_computing_is_the_bound() {
        let read = Work { memory_bytes: 1e10, int8_operations: 1e12, ..Work::default() };
        assert_eq!((read.least_seconds(&CEILINGS), read.bound(&CEILINGS)), (1.0, Bound::Memory));
        let compute =
            Work { memory_bytes: 1e9, int8_operations: 4e12, f32_operations: 5e11, bf16_operations: 2e12, ..read };
        assert_eq!((compute.least_seconds(&CEILINGS), compute.bound(&CEILINGS)), (3.0, Bound::Arithmetic));
    }

    #[test]
    fn weights_are_multiplied_by_the_unit_of_their_type() {
        assert_eq!(Work::product(2.0, DType::Q4_K, 3, 5).int8_operations, 60.0);
        assert_eq!(Work::product(2.0, DType::BF16, 3, 5).bf16_operations, 60.0);
        assert_eq!(Work::product(2.0, DType::F16, 3, 5).f32_operations, 60.0);
        assert_eq!(Work::product(2.0, DType::F16, 3, 5).activation_bytes, 64.0);
    }
}

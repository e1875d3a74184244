//! The conformance suite: every op of a backend, at awkward sizes, against [`Reference`].
//!
//! **The rule.** For each output of each case, with the same inputs:
//!
//! ```text
//! max |backend - reference|  <=  factor * max |plain - reference|  +  floor * max |reference|
//! ```
//!
//! where *plain* is the op written down in f32, one loop after another, with what a production backend may round:
//! KV in its storage type (and where that is bf16, int8 or fp8, queries and softmax weights in bf16, as products of bf16
//! want them), and activations quantized to int8 per 256 (`d = max |x| / 127`) before a product with
//! block-quantized weights, and to two terms of bf16 before one with weights of 16 bits. `factor` is 2 (the rule of FlashAttention's tests) and `floor` 1e-6, a few units in the
//! last place of f32, for the cases where the plain loop is exact by luck (and 1e-36, where f32 underflows). The reference keeps KV in f32 and
//! activations as they are, so the rounding is in both errors.
//!
//! [`batch_invariance`] has no tolerance: rows together and apart must be the same bits.
//!
//! Invariants: the suite uses the public ops only (activations go up through `embed`, the one op that takes host
//! values), and it can fail: the tests of this module break one op after another and expect the suite to notice.

mod attention;
mod grouped;
mod invariance;
mod linear;
mod plain;
mod rows;
mod weigh;

use crate::{Backend, Batch, BatchBuilder, PAGE_LEN, Reference, Rope, Weight};

pub use grouped::random_groups;
pub use invariance::batch_invariance;
use plain::Plain;
/// The plain implementation, with the rounding that a backend may do: a yardstick for those who probe a backend on data
/// of their own.
pub use plain::Plain as Yardstick;
pub use weigh::{weigh_row, weighing};

/// How far from the reference a backend may be; see the rule above.
#[derive(Clone, Copy, Debug)]
pub struct Tolerances {
    /// Times the error of the plain implementation.
    pub factor: f64,
    /// Times the largest magnitude of the reference, added.
    pub floor: f64,
}

impl Default for Tolerances {
    fn default() -> Tolerances {
        Tolerances { factor: 2.0, floor: 1e-6 }
    }
}

/// An op that is wrong, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The op.
    pub op: &'static str,
    /// Sizes and options of the case.
    pub case: String,
    /// What differs.
    pub problem: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} [{}]: {}", self.op, self.case, self.problem)
    }
}

/// What one op gave in one case.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// The op.
    pub op: &'static str,
    /// Its values, row-major.
    pub values: Vec<f32>,
}

/// The inputs of one case; `run` gives the same inputs to any backend.
enum Case {
    Attention(attention::AttentionCase),
    Linear(linear::LinearCase),
    Moe(linear::MoeCase),
    Rows(rows::RowsCase),
}

impl Case {
    fn run<B: Backend>(&self, b: &mut B) -> Vec<Output> {
        match self {
            Case::Attention(c) => c.run(b),
            Case::Linear(c) => c.run(b),
            Case::Moe(c) => c.run(b),
            Case::Rows(c) => c.run(b),
        }
    }

    fn name(&self) -> String {
        match self {
            Case::Attention(c) => c.to_string(),
            Case::Linear(c) => c.to_string(),
            Case::Moe(c) => c.to_string(),
            Case::Rows(c) => c.to_string(),
        }
    }
}

fn row_cases() -> impl Iterator<Item = Case> {
    rows::cases().into_iter().map(Case::Rows)
}

fn linear_cases() -> impl Iterator<Item = Case> {
    linear::cases().into_iter().map(Case::Linear).chain(linear::moe_cases().into_iter().map(Case::Moe))
}

fn attention_cases() -> impl Iterator<Item = Case> {
    attention::cases().into_iter().map(Case::Attention)
}

/// All cases with the answers of the reference and of the plain implementation, to be held against any number of
/// backends.
pub struct Suite {
    cases: Vec<(Case, Vec<Output>, Vec<Output>)>,
    tolerances: Tolerances,
}

impl Suite {
    /// Works out the reference answers.
    pub fn new(tolerances: Tolerances) -> Suite {
        Suite::of(row_cases().chain(linear_cases()).chain(attention_cases()), tolerances)
    }

    /// Row ops and products alone: what needs no two weights in one place.
    #[cfg(test)]
    pub(crate) fn without_layers() -> Suite {
        Suite::of(row_cases().chain(linear::cases().into_iter().map(Case::Linear)), Tolerances::default())
    }

    fn of(cases: impl Iterator<Item = Case>, tolerances: Tolerances) -> Suite {
        let answer = |case: Case| {
            let (truth, plain) = (case.run(&mut Reference), case.run(&mut Plain::default()));
            (case, truth, plain)
        };
        Suite { cases: cases.map(answer).collect(), tolerances }
    }

    /// Runs every case on a backend; empty where all is well.
    pub fn run<B: Backend>(&self, backend: &mut B) -> Vec<Failure> {
        self.failures(backend).collect()
    }

    /// The failures, found as they are asked for.
    fn failures<B: Backend>(&self, backend: &mut B) -> impl Iterator<Item = Failure> {
        self.cases.iter().flat_map(move |(case, truth, plain)| {
            let got = case.run(backend);
            assert_eq!(got.len(), truth.len());
            let outputs = got.into_iter().zip(truth).zip(plain);
            outputs.filter_map(|((got, truth), plain)| {
                let problem = compare(&got.values, &truth.values, &plain.values, self.tolerances)?;
                Some(Failure { op: got.op, case: case.name(), problem })
            })
        })
    }

    /// What a backend gives in every case: to compare, bit by bit, backends that should not differ.
    pub fn outputs<B: Backend>(&self, backend: &mut B) -> Vec<Output> {
        self.cases.iter().flat_map(|(case, ..)| case.run(backend)).collect()
    }
}

/// Runs the suite once.
///
/// # Panics
/// Where an op is wrong, naming the op, the sizes and the worst element.
pub fn run_all<B: Backend>(backend: &mut B, tolerances: &Tolerances) {
    let failures = Suite::new(*tolerances).run(backend);
    let lines: Vec<String> = failures.iter().map(Failure::to_string).collect();
    assert!(failures.is_empty(), "{} does not conform:\n{}", backend.describe(), lines.join("\n"));
}

/// Largest `|a - b|` and where it is; a NaN that is not in both is infinitely far.
fn worst(a: &[f32], b: &[f32]) -> (f64, usize) {
    let distance = |(&a, &b): (&f32, &f32)| {
        let d = (f64::from(a) - f64::from(b)).abs();
        if d.is_nan() { f64::INFINITY } else { d }
    };
    let distances = a.iter().zip(b).map(distance).enumerate();
    distances.fold((0.0, 0), |worst, (i, d)| if d > worst.0 { (d, i) } else { worst })
}

/// Results this small are as good as 0: f32 has no full precision there.
const UNDERFLOW: f64 = 1e-36;

/// Applies the rule; what is wrong, if anything.
fn compare(got: &[f32], truth: &[f32], plain: &[f32], tolerances: Tolerances) -> Option<String> {
    if got.len() != truth.len() {
        return Some(format!("{} values where {} are expected", got.len(), truth.len()));
    }
    let size = truth.iter().fold(0.0f64, |m, &v| m.max(f64::from(v).abs()));
    let (plain_error, _) = worst(plain, truth);
    let allowed = tolerances.factor * plain_error + tolerances.floor * size + UNDERFLOW;
    let (error, at) = worst(got, truth);
    (error > allowed).then(|| {
        let (got, truth, n) = (got[at], truth[at], got.len());
        format!("element {at} of {n} is {got}, should be {truth}: error {error:.3e}, allowed {allowed:.3e}")
    })
}

/// Seeded numbers (SplitMix64), roughly normal.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Mean 0, deviation 1: the sum of four uniform numbers.
    fn normal(&mut self) -> f32 {
        let bits = self.bits();
        let sum: f32 = (0..4).map(|i| ((bits >> (16 * i)) & 0xffff) as f32 / 65536.0).sum();
        (sum - 2.0) * 1.732
    }

    fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }
}

/// A batch of one sequence with `rows` rows that nobody stores.
fn plain_batch(ids: &[u32]) -> Batch {
    let n_pages = ids.len().div_ceil(PAGE_LEN);
    let mut builder = BatchBuilder::new(n_pages);
    let pages: Vec<u32> = (0..n_pages as u32).collect();
    builder.push(ids, 0, &pages, 1).expect("the pages cover the rows");
    builder.finish()
}

const NO_ROPE: Rope = Rope { inv_freq: Vec::new(), scale: 1.0 };

/// Brings `(rows, cols)` values onto the backend: as rows of an embedding table.
fn upload<B: Backend>(b: &mut B, rows: usize, cols: usize, values: &[f32]) -> B::Tensor {
    let table = Weight::from_f32("values", rows, cols, values).expect("rows * cols values");
    let table = b.load_embedding(&table).expect("an f32 table");
    let ids: Vec<u32> = (0..rows as u32).collect();
    let prepared = b.prepare(&plain_batch(&ids), &NO_ROPE);
    let mut out = b.alloc(rows, cols);
    b.embed(&prepared, &table, 1.0, &mut out);
    out
}

fn download<B: Backend>(b: &mut B, tensor: &B::Tensor) -> Vec<f32> {
    let mut out = Vec::new();
    b.read(tensor, &mut out);
    out
}

#[cfg(test)]
mod tests;

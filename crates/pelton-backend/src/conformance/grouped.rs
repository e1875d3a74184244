//! Weights as codes in groups, as files of Hugging Face have them, for the cases of `linear.rs`.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use pelton_quant::{CodeBook, DType, Grouped, GroupedRows, GroupedType, ZeroPoint};

use super::Random;
use super::linear::random_weight;
use crate::Weight;

/// What a case's weights are stored as.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stored {
    Blocks(DType),
    Grouped(GroupedType),
    /// With columns in an order of their own.
    Shuffled(GroupedType),
}

impl From<DType> for Stored {
    fn from(dtype: DType) -> Stored {
        Stored::Blocks(dtype)
    }
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stored::Blocks(dtype) => dtype.fmt(f),
            Stored::Grouped(kind) => kind.fmt(f),
            Stored::Shuffled(kind) => write!(f, "{kind} shuffled"),
        }
    }
}

impl Stored {
    /// Random weights.
    pub(super) fn weight(self, rows: usize, cols: usize, random: &mut Random) -> Weight {
        match self {
            Stored::Blocks(dtype) => random_weight(dtype, rows, cols, random),
            Stored::Grouped(kind) => groups(kind, rows, cols, false, random),
            Stored::Shuffled(kind) => groups(kind, rows, cols, true, random),
        }
    }
}

/// A matrix of random codes, for those who probe a backend on data of their own; where it `is_shuffled`, with columns in an
/// order of its own.
pub fn random_groups(kind: GroupedType, rows: usize, cols: usize, is_shuffled: bool, seed: u64) -> Weight {
    groups(kind, rows, cols, is_shuffled, &mut Random(seed))
}

const fn int(bits: u8, group: u32, zero: ZeroPoint) -> GroupedType {
    let group = if group > 0 { Some(group) } else { None };
    GroupedType { book: CodeBook::Int { bits }, group, zero }
}

/// Types with columns in orders of their own (act-order).
pub(super) fn shuffled() -> [Stored; 2] {
    [int(4, 128, ZeroPoint::PerGroup), int(4, 32, ZeroPoint::At(8))].map(Stored::Shuffled)
}

/// The types of the cases: what files have, and what no kernel may be made for.
pub(super) fn types() -> Vec<Stored> {
    let table = |book, group| GroupedType { book, group, zero: ZeroPoint::At(0) };
    let (middle, own) = (ZeroPoint::At, ZeroPoint::PerGroup);
    let mut all = vec![
        Stored::Grouped(int(4, 128, middle(8))),
        Stored::Grouped(int(4, 32, middle(8))),
        Stored::Grouped(int(4, 0, middle(8))),
        Stored::Grouped(int(4, 128, own)),
        Stored::Grouped(int(4, 64, own)),
        Stored::Grouped(int(4, 32, own)),
        Stored::Grouped(int(8, 0, middle(128))),
        Stored::Grouped(int(8, 128, middle(128))),
        Stored::Grouped(int(8, 64, middle(128))),
        Stored::Grouped(int(8, 128, own)),
        Stored::Grouped(int(8, 32, own)),
        Stored::Grouped(int(3, 128, middle(4))),
        Stored::Grouped(int(2, 128, own)),
        Stored::Grouped(int(2, 64, own)),
        Stored::Grouped(int(4, 16, own)),
        Stored::Shuffled(int(4, 48, own)),
        Stored::Grouped(table(CodeBook::Nf4, Some(64))),
        Stored::Grouped(table(CodeBook::Fp4, Some(64))),
        Stored::Grouped(table(CodeBook::E4m3, None)),
    ];
    all.extend(shuffled());
    all
}

/// The arrays as a file without tricks would have them.
struct Arrays {
    cols: usize,
    n_groups: usize,
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<i16>,
}

impl GroupedRows for Arrays {
    fn codes(&self, rows: Range<usize>, out: &mut [u8]) {
        out.copy_from_slice(&self.codes[rows.start * self.cols..rows.end * self.cols]);
    }

    fn scales(&self, rows: Range<usize>, out: &mut [f32]) {
        out.copy_from_slice(&self.scales[rows.start * self.n_groups..rows.end * self.n_groups]);
    }

    fn zeros(&self, rows: Range<usize>, out: &mut [i16]) {
        out.copy_from_slice(&self.zeros[rows.start * self.n_groups..rows.end * self.n_groups]);
    }

    fn row_bytes(&self) -> usize {
        self.cols + 6 * self.n_groups
    }
}

/// Random codes with zero points among them, and scales of either sign that differ by up to a factor of two.
fn groups(kind: GroupedType, rows: usize, cols: usize, is_shuffled: bool, random: &mut Random) -> Weight {
    let mut order: Vec<u32> = (0..cols as u32).collect();
    (1..cols).rev().filter(|_| is_shuffled).for_each(|i| order.swap(i, random.below(i + 1)));
    let order: Option<Arc<[u32]>> = is_shuffled.then(|| order.into());
    let n_groups = kind.group.map_or(1, |group| cols.div_ceil(group as usize));
    let n_codes = 1usize << kind.book.bits();
    // Of 8-bit floats no NaN.
    let mask = if kind.book == CodeBook::E4m3 { 0xf7 } else { 0xff };
    let codes = (0..rows * cols).map(|_| random.below(n_codes) as u8 & mask).collect();
    let scale = |random: &mut Random| random.normal().signum() * 0.01 * (1.0 + random.below(1000) as f32 / 1000.0);
    let scales = (0..rows * n_groups).map(|_| scale(random)).collect();
    let zeros = (0..rows * n_groups).map(|_| random.below(n_codes + 1) as i16).collect();
    let source = Arc::new(Arrays { cols, n_groups, codes, scales, zeros });
    Weight::grouped(format!("{kind}"), Grouped::new(kind, (rows, cols), order, source))
}

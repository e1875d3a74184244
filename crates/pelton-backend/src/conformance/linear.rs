//! Cases of linear layers, in every storage type that can be decoded, and of mixtures of experts over them.

use std::fmt;
use std::sync::Arc;

use half::f16;
use pelton_quant::DType;

use super::grouped::{self, Stored};
use super::{Output, Random, download, upload};
use crate::{Backend, Expert, Gate, LinearSpec, Moe, Weight};

/// One linear layer on some numbers of rows.
pub(super) struct LinearCase {
    /// Storage type and rows of each part.
    parts: Vec<(Stored, usize)>,
    in_features: usize,
    bias: bool,
    rows: Vec<usize>,
    seed: u64,
}

impl fmt::Display for LinearCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.parts.iter().map(|(t, n)| format!("{t} {n}")).collect();
        write!(f, "{} -> [{}], bias {}, rows {:?}", self.in_features, parts.join(" | "), self.bias, self.rows)
    }
}

pub(super) fn cases() -> Vec<LinearCase> {
    let mut cases = Vec::new();
    for (i, &dtype) in DType::DECODABLE.iter().enumerate() {
        let block = dtype.block_len();
        // Floats may be of any width; block formats are whole blocks, an odd number of them too.
        let widths = if block == 1 { [70, 257] } else { [block, (3 * block).max(288 / block * block)] };
        for (in_features, out, bias) in [(widths[0], 1, false), (widths[1], 37, true), (2 * block.max(64), 64, false)] {
            let seed = 100 + 10 * i as u64 + out as u64;
            // A single value says nothing: by luck the plain implementation has it exactly.
            let rows = if out == 1 { vec![7, 33] } else { vec![1, 2, 3, 7, 33] };
            cases.push(LinearCase { parts: vec![(dtype.into(), out)], in_features, bias, rows, seed });
        }
    }
    // Parts of unlike types and of sizes that share vectors' worth of outputs between them.
    let mixed = [
        vec![(DType::Q4_K, 48), (DType::Q4_K, 8), (DType::Q6_K, 8)],
        vec![(DType::Q4_0, 5), (DType::F32, 16), (DType::BF16, 3), (DType::Q8_0, 17)],
    ];
    for (parts, seed) in mixed.into_iter().zip(900..) {
        let parts = parts.into_iter().map(|(dtype, rows)| (dtype.into(), rows)).collect();
        cases.push(LinearCase { parts, in_features: 512, bias: true, rows: vec![1, 3, 33], seed });
    }
    for (stored, seed) in grouped::types().into_iter().zip(2000..) {
        for (in_features, out, bias) in [(384, 37, true), (1280, 16, false)] {
            cases.push(LinearCase { parts: vec![(stored, out)], in_features, bias, rows: vec![1, 2, 3, 7, 33], seed });
        }
    }
    // Parts in orders of their own beside one in none.
    let parts = grouped::shuffled().into_iter().chain([DType::Q4_K.into()]).map(|stored| (stored, 24)).collect();
    cases.push(LinearCase { parts, in_features: 256, bias: true, rows: vec![1, 3, 33], seed: 2100 });
    cases
}

/// Random weights of a type: encoded where that is possible, else random codes with small scales.
pub(super) fn random_weight(dtype: DType, rows: usize, cols: usize, random: &mut Random) -> Weight {
    let mut bytes = Vec::new();
    if dtype.can_encode() {
        let values: Vec<f32> = random.normals(rows * cols).iter().map(|v| v * 0.1).collect();
        pelton_quant::encode(dtype, &values, &mut bytes).expect("finite values in whole blocks");
    } else {
        let n = rows * dtype.row_bytes(cols).expect("whole blocks");
        bytes.extend((0..n).map(|_| random.bits() as u8));
        // Offsets of the f16 scales in a block (see the layouts in `pelton_quant`).
        let scales: &[usize] = match dtype {
            DType::Q2_K => &[80, 82],
            DType::Q3_K => &[108],
            DType::IQ4_NL | DType::IQ4_XS => &[0],
            _ => panic!("{dtype} cannot be encoded: say here where its scales lie"),
        };
        for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
            for &at in scales {
                let scale = f16::from_f32(1e-3 * (1.0 + random.normal().abs()));
                block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
        }
    }
    Weight::new(format!("{dtype}"), dtype, rows, cols, Arc::new(bytes)).expect("whole rows")
}

impl LinearCase {
    /// The layer, for those who run it on rows of their own.
    pub(super) fn spec(&self, random: &mut Random) -> LinearSpec {
        let cols = self.in_features;
        let parts: Vec<Weight> = self.parts.iter().map(|&(stored, n)| stored.weight(n, cols, random)).collect();
        let out: usize = self.parts.iter().map(|p| p.1).sum();
        let bias = if self.bias { random.normals(out) } else { Vec::new() };
        LinearSpec::new("linear", parts, bias).expect("parts that fit")
    }

    pub(super) fn run<B: Backend>(&self, b: &mut B) -> Vec<Output> {
        let mut random = Random(self.seed);
        let spec = self.spec(&mut random);
        let layer = b.load_linear(&spec).expect("a type that can be decoded has a kernel");
        let mut outputs = Vec::new();
        for &rows in &self.rows {
            let x = random.normals(rows * self.in_features);
            let x = upload(b, rows, self.in_features, &x);
            let mut out = b.alloc(rows, spec.out_features());
            b.linear(&x, &layer, &mut out);
            outputs.push(Output { op: "linear", values: download(b, &out) });
        }
        outputs
    }
}

/// One mixture-of-experts block.
pub(super) struct MoeCase {
    pub stored: Stored,
    pub hidden: usize,
    pub ffn: usize,
    pub n_experts: usize,
    pub top_k: usize,
    pub norm_topk: bool,
    pub gate: Gate,
    pub rows: Vec<usize>,
    pub seed: u64,
}

impl fmt::Display for MoeCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MoeCase { stored, hidden, ffn, n_experts, top_k, norm_topk, gate, rows, .. } = self;
        write!(f, "{top_k} of {n_experts} experts {stored} {hidden} -> {ffn} {gate:?}, normalised {norm_topk}, ")?;
        write!(f, "rows {rows:?}")
    }
}

pub(super) fn moe_cases() -> Vec<MoeCase> {
    let rows = || vec![1, 2, 7, 33];
    let case = |stored: Stored, n_experts, top_k, norm_topk, gate, seed| {
        let (hidden, ffn) = (64, 96);
        MoeCase { stored, hidden, ffn, n_experts, top_k, norm_topk, gate, rows: rows(), seed }
    };
    vec![
        case(DType::F32.into(), 4, 1, false, Gate::Silu, 1001),
        case(DType::F32.into(), 5, 2, true, Gate::Silu, 1002),
        case(DType::BF16.into(), 16, 8, false, Gate::GeluTanh, 1003),
        case(DType::Q8_0.into(), 8, 3, true, Gate::Silu, 1004),
        case(DType::F32.into(), 3, 3, true, Gate::Silu, 1005),
        case(grouped::shuffled()[1], 4, 2, true, Gate::Silu, 1006),
    ]
}

impl MoeCase {
    pub(super) fn load<B: Backend>(&self, b: &mut B, random: &mut Random) -> Moe<B::Linear> {
        // Two routers rows are the same: equal logits, of which the lower index must win.
        let mut router = random.normals(self.n_experts * self.hidden);
        router.copy_within(..self.hidden, (self.n_experts - 1) * self.hidden);
        let router = Weight::from_f32("router", self.n_experts, self.hidden, &router).expect("a matrix");
        let mut load = |parts| {
            let spec = LinearSpec::new("moe", parts, Vec::new()).expect("parts that fit");
            b.load_linear(&spec).expect("a type that can be decoded has a kernel")
        };
        let router = load(vec![router]);
        let mut experts = Vec::new();
        for _ in 0..self.n_experts {
            let gate = self.stored.weight(self.ffn, self.hidden, random);
            let up = self.stored.weight(self.ffn, self.hidden, random);
            let down = self.stored.weight(self.hidden, self.ffn, random);
            experts.push(Expert { gate_up: load(vec![gate, up]), down: load(vec![down]) });
        }
        let MoeCase { top_k, norm_topk, ffn, gate, .. } = *self;
        Moe { router, experts, top_k, norm_topk, ffn, gate }
    }

    pub(super) fn run<B: Backend>(&self, b: &mut B) -> Vec<Output> {
        let mut random = Random(self.seed);
        let moe = self.load(b, &mut random);
        let mut outputs = Vec::new();
        for &rows in &self.rows {
            let x = random.normals(rows * self.hidden);
            let x = upload(b, rows, self.hidden, &x);
            let mut out = b.alloc(rows, self.hidden);
            b.moe(&x, &moe, &mut out);
            outputs.push(Output { op: "moe", values: download(b, &out) });
        }
        outputs
    }
}

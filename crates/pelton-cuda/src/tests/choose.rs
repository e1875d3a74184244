//! Tokens chosen on the device: in a step's graph, in one read; and mistakes planted in its kernels.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pelton_backend::conformance::{weigh_row, weighing};
use pelton_backend::{Ask, Backend, BatchBuilder, LinearSpec, Rope};
use pelton_quant::DType;

use super::mutants::{numbers, weight};
use crate::sim::{self, Build, Simulator};
use crate::{CudaBackend, CudaOptions};

const VOCAB: usize = 3000;
const HIDDEN: usize = 128;

/// Steps of a model that is an embedding, a few norms and a head.
struct Tiny {
    cuda: CudaBackend,
    head: <CudaBackend as Backend>::Linear,
    norm: <CudaBackend as Backend>::Vector,
    table: <CudaBackend as Backend>::Embedding,
    work: [<CudaBackend as Backend>::Tensor; 3],
}

impl Tiny {
    fn new(no_graphs: bool) -> Tiny {
        let options = CudaOptions { driver: Some(sim::library()), no_graphs, ..CudaOptions::default() };
        let mut cuda = CudaBackend::open(&options).unwrap();
        let spec = LinearSpec::new("head", vec![weight(DType::Q8_0, VOCAB, HIDDEN, 1)], Vec::new()).unwrap();
        let head = cuda.load_linear(&spec).unwrap();
        let norm = cuda.load_vector(&numbers(HIDDEN, 2).iter().map(|v| 20.0 * v).collect::<Vec<f32>>());
        let table = cuda.load_embedding(&weight(DType::Q8_0, 50, HIDDEN, 3)).unwrap();
        let work = [HIDDEN, HIDDEN, VOCAB].map(|w| cuda.alloc(1, w));
        Tiny { cuda, head, norm, table, work }
    }

    /// The logits of a step stay on the device.
    fn step(&mut self, ids: &[u32]) {
        let mut batch = BatchBuilder::new(1);
        batch.push(ids, 0, &[0], ids.len()).unwrap();
        let batch = batch.finish();
        let Tiny { cuda, work: [x, normed, logits], .. } = self;
        for tensor in [&mut *x, normed, logits] {
            cuda.set_rows(tensor, ids.len());
        }
        let prepared = cuda.prepare(&batch, &Rope { inv_freq: Vec::new(), scale: 1.0 });
        cuda.embed(&prepared, &self.table, 1.0, x);
        cuda.rms_norm(x, &self.norm, 1e-6, normed);
        cuda.add(x, normed);
        cuda.rms_norm(x, &self.norm, 1e-6, normed);
        cuda.linear(normed, &self.head, logits);
    }
}

#[test]
fn a_step_and_its_choice_are_one_graph_and_one_read() {
    let asks = |i: usize| {
        let draw = Ask { temperature: 0.5 + i as f32, point: Some(0.37 * i as f64 % 1.0), likeliest: false };
        [draw, Ask { likeliest: true, ..Ask::default() }]
    };
    let mut answers = Vec::new();
    for no_graphs in [true, false] {
        let mut model = Tiny::new(no_graphs);
        let mut weighed = Vec::new();
        for i in 0..12 {
            let before = model.cuda.counts();
            model.step(&[i as u32, 2 * i as u32]);
            let mut out = Vec::new();
            assert!(model.cuda.weigh(&model.work[2], &asks(i), &mut out));
            let after = model.cuda.counts();
            // Until then buffers find their places, and lists of launches are seen for the first time.
            if !no_graphs && i >= 8 {
                // What is asked changes with every step, and is no part of the launches.
                assert_eq!((after.graph_launches - before.graph_launches, after.launches), (1, before.launches), "{i}");
            }
            let mut logits = Vec::new();
            model.cuda.read_rows(&model.work[2], 0..1, VOCAB, &mut logits);
            assert_eq!(out[0], weigh_row(&logits, &asks(i)[0]), "step {i}");
            model.cuda.read_rows(&model.work[2], 1..2, VOCAB, &mut logits);
            let truth = weigh_row(&logits, &Ask::default());
            assert_eq!((out[1].best, out[1].sum.to_bits()), (truth.best, truth.sum.to_bits()));
            weighed.push((out[0].clone(), out[1].sum.to_bits()));
        }
        answers.push(weighed);
    }
    assert_eq!(answers[0], answers[1]);
}

#[test]
fn logits_stay_where_the_host_is_to_choose() {
    let options = CudaOptions { driver: Some(sim::library()), choose_on_host: true, ..CudaOptions::default() };
    let mut cuda = CudaBackend::open(&options).unwrap();
    let logits = cuda.alloc(1, 10);
    assert!(!cuda.weigh(&logits, &[Ask::default()], &mut Vec::new()));
}

/// Whether weighing on a library differs from weighing here in some order of lanes; a fault is a difference.
fn differs(change: (&str, &str, &str)) -> bool {
    let library = sim::build(&Build { changes: &[change], ..Build::default() });
    let simulator = Simulator::of(&library);
    (0..4).any(|seed| {
        let run = || {
            simulator.find_device();
            simulator.set_seed(seed);
            let options = CudaOptions { driver: Some(library.clone()), ..CudaOptions::default() };
            !weighing(&mut CudaBackend::open(&options).unwrap()).is_empty()
        };
        catch_unwind(AssertUnwindSafe(run)).unwrap_or(true)
    })
}

#[test]
fn without_a_mistake_nothing_differs_in_any_order_of_lanes() {
    assert!(!differs(("choose.cu", "// Rows of logits weighed", "// (Mutants) rows of logits weighed")));
}

macro_rules! mutants {
    ($($name:ident: $text:literal => $instead:literal;)*) => {$(
        #[test]
        fn $name() {
            assert!(differs(("choose.cu", $text, $instead)), "without {:?} nothing differs", $text);
        }
    )*};
}

mutants! {
    the_last_of_equals: "value == a.value && id < a.id" => "value == a.value && id > a.id";
    infinity_taken_for_a_number: "v < INFINITY ? NONE" => "v <= INFINITY ? NONE";
    a_product_and_a_sum_in_one_rounding:
        "__fadd_rn(__fmul_rn(series, r), coefficients[i])" => "fmaf(series, r, coefficients[i])";
    lanes_added_in_another_order:
        "for (int l = 0; l < 16; l++) sum += (double)lanes[which][l];" => "for (int l = 16; l--;) sum += (double)lanes[which][l];";
    sums_that_are_read_before_they_are_there:
        "if (lane == 0) to.edge = edge;\n  }\n  __syncthreads();" => "if (lane == 0) to.edge = edge;\n  }";
    a_bucket_too_many: "before + bins[i] <= MOST" => "before <= MOST";
    a_token_of_the_wrong_block: "chosen = first + i;" => "chosen = i;";
    a_block_passed_too_early: "passed + sums[2 * block] > target" => "passed + 2. * sums[2 * block] > target";
    counts_of_the_last_step: "counts[(size_t)blockIdx.y * BUCKETS + i] = 0;" => "if (i > 1) counts[(size_t)blockIdx.y * BUCKETS + i] = 0;";
}

//! Kernels that are launched before those before them have ended: the same bits, and mistakes that are noticed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use pelton_backend::Backend;
use pelton_backend::conformance::weighing;

use super::mutants::{Ops, numbers, outputs, upload};
use crate::sim::{self, Build, Simulator};
use crate::{CudaBackend, CudaOptions};

/// A card that launches kernels early, and a change.
fn card(changes: &[(&str, &str, &str)]) -> PathBuf {
    let nine = ("fakecuda.cpp", "case 75: *v = 8;", "case 75: *v = 9;");
    let all: Vec<_> = changes.iter().copied().chain([nine]).collect();
    sim::build(&Build { changes: &all, ..Build::default() })
}

fn open(library: &Path, early_launches: bool) -> CudaBackend {
    CudaBackend::open(&CudaOptions { driver: Some(library.into()), early_launches, ..CudaOptions::default() }).unwrap()
}

fn bits(outputs: &[Vec<f32>]) -> Vec<u32> {
    outputs.iter().flatten().map(|v| v.to_bits()).collect()
}

#[test]
fn early_launches_change_no_bit() {
    let library = card(&[("sim.h", "// What it cannot show:", "// (Early) what it cannot show:")]);
    let simulator = Simulator::of(&library);
    simulator.track_writes();
    for ops in [Ops::Norms, Ops::Linears, Ops::Groups, Ops::Experts, Ops::Attention] {
        let plain = outputs(&mut open(&library, false), ops);
        let before = simulator.early_launches();
        let early = outputs(&mut open(&library, true), ops);
        assert!(simulator.early_launches() > before, "{ops:?} launch nothing early");
        assert_eq!(bits(&plain), bits(&early), "{ops:?}");
    }
    assert_eq!(weighing(&mut open(&library, true)), []);
}

#[test]
fn nothing_is_launched_early_unless_it_was_asked_for_and_the_card_can() {
    let library = card(&[("sim.h", "// What it cannot show:", "// (Late) what it cannot show:")]);
    chain(&mut open(&library, false));
    assert_eq!(Simulator::of(&library).early_launches(), 0);
    let old = sim::build(&Build {
        changes: &[("sim.h", "// What it cannot show:", "// (Old) what it cannot show:")],
        ..Build::default()
    });
    chain(&mut open(&old, true));
    assert_eq!(Simulator::of(&old).early_launches(), 0);
}

/// Two kernels of which the second reads what the first one wrote.
fn chain(cuda: &mut CudaBackend) -> Vec<f32> {
    let (rows, cols) = (2, 300);
    let mut x = upload(cuda, rows, cols, &numbers(rows * cols, 1));
    let weight = cuda.load_vector(&numbers(cols, 2));
    let mut y = cuda.alloc(rows, cols);
    cuda.rms_norm(&x, &weight, 1e-5, &mut y);
    cuda.add(&mut x, &y);
    let mut out = Vec::new();
    cuda.read(&x, &mut out);
    out
}

/// Whether a change of `add` is noticed where it is launched early; where it is not, it is right.
fn is_noticed(instead: &str) -> bool {
    let first =
        "wait_for_predecessor();\n  const int i = blockIdx.x * blockDim.x + threadIdx.x;\n  if (i < n) x[i] += y[i];";
    let library = card(&[("elementwise.cu", first, instead)]);
    let simulator = Simulator::of(&library);
    simulator.track_writes();
    let plain = chain(&mut open(&library, false));
    assert_eq!(plain, chain(&mut open(&sim::library(), false)), "the change itself is right: {instead}");
    let early = catch_unwind(AssertUnwindSafe(|| chain(&mut open(&library, true))));
    simulator.find_device();
    early.map_or(true, |early| bits(&[early]) != bits(&[plain]))
}

#[test]
fn what_is_read_before_waiting_is_not_there() {
    assert!(is_noticed(
        "const int i = blockIdx.x * blockDim.x + threadIdx.x;\n  const float v = i < n ? y[i] : 0.f;\n  \
         wait_for_predecessor();\n  if (i < n) x[i] += v;"
    ));
}

#[test]
fn what_is_written_before_waiting_is_reported() {
    assert!(is_noticed(
        "const int i = blockIdx.x * blockDim.x + threadIdx.x;\n  if (i < n) x[i] *= 2.f;\n  \
         wait_for_predecessor();\n  if (i < n) x[i] = 0.5f * x[i] + y[i];"
    ));
}

#[test]
fn threads_that_do_not_wait_are_reported() {
    assert!(is_noticed(
        "if (threadIdx.x < 32) wait_for_predecessor();\n  const int i = blockIdx.x * blockDim.x + threadIdx.x;\n  \
         if (i < n) x[i] += y[i];"
    ));
}

#[test]
fn a_kernel_that_waits_is_noticed_by_nobody() {
    assert!(!is_noticed(
        "wait_for_predecessor();\n  const int i = threadIdx.x + blockIdx.x * blockDim.x;\n  if (i < n) x[i] += y[i];"
    ));
}

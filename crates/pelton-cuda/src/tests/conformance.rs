//! Every op on the simulator against the reference; rows together and apart.

use pelton_backend::conformance::{Suite, Tolerances, batch_invariance, weighing};

use crate::{CudaBackend, CudaOptions, sim};

pub(super) fn backend(no_graphs: bool) -> CudaBackend {
    let options = CudaOptions { driver: Some(sim::library()), no_graphs, ..CudaOptions::default() };
    CudaBackend::open(&options).expect("the simulator is a device")
}

#[test]
fn every_op_conforms() {
    let failures = Suite::new(Tolerances::default()).run(&mut backend(false));
    let lines: Vec<String> = failures.iter().map(|f| f.to_string()).collect();
    assert!(failures.is_empty(), "{} failures:\n{}", lines.len(), lines.join("\n"));
}

#[test]
fn rows_have_the_same_bits_together_and_apart() {
    let failures = batch_invariance(&mut backend(false));
    let lines: Vec<String> = failures.iter().map(|f| f.to_string()).collect();
    assert!(failures.is_empty(), "{} failures:\n{}", lines.len(), lines.join("\n"));
}

#[test]
fn logits_weigh_the_same_bits_as_on_the_host() {
    let failures = weighing(&mut backend(false));
    let lines: Vec<String> = failures.iter().map(|f| f.to_string()).collect();
    assert!(failures.is_empty(), "{} failures:\n{}", lines.len(), lines.join("\n"));
}

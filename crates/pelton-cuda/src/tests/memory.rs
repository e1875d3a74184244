//! What plans rely on: the bytes that a matrix will take, the seconds that memory takes.

use pelton_backend::conformance::random_groups;
use pelton_backend::{Backend, LinearSpec};
use pelton_quant::{CodeBook, DType, GroupedType, ZeroPoint};

use super::mutants::weight;
use crate::{CudaBackend, CudaOptions, packed_bytes, sim};

fn backend() -> CudaBackend {
    CudaBackend::open(&CudaOptions { driver: Some(sim::library()), ..CudaOptions::default() }).unwrap()
}

#[test]
fn a_matrix_takes_the_bytes_that_were_announced() {
    let mut cuda = backend();
    for dtype in [DType::Q4_0, DType::Q4_K, DType::Q6_K, DType::Q8_0, DType::Q2_K, DType::BF16, DType::F32] {
        for (rows, cols) in [(21, 1280), (8, 256), (1, 512)] {
            let spec = LinearSpec::new("layer", vec![weight(dtype, rows, cols, 5)], Vec::new()).unwrap();
            let linear = cuda.load_linear(&spec).unwrap();
            let bytes = cuda.placement(&linear)[0].bytes;
            assert_eq!(packed_bytes(dtype.into(), rows, cols), bytes, "{dtype} {rows} x {cols}");
        }
    }
    for (bits, group, is_shuffled) in
        [(4, Some(128), false), (4, Some(32), true), (8, None, false), (2, Some(16), false)]
    {
        for zero in [ZeroPoint::At(1 << (bits - 1)), ZeroPoint::PerGroup] {
            let kind = GroupedType { book: CodeBook::Int { bits }, group, zero };
            let weight = random_groups(kind, 21, 640, is_shuffled, 5);
            let linear = cuda.load_linear(&LinearSpec::new("layer", vec![weight], Vec::new()).unwrap()).unwrap();
            assert_eq!(packed_bytes(kind.into(), 21, 640), cuda.placement(&linear)[0].bytes, "{kind}");
        }
    }
    assert_eq!(packed_bytes(DType::Q4_K.into(), usize::MAX, usize::MAX), usize::MAX);
}

#[test]
fn bandwidth_is_measured_and_its_memory_given_back() {
    let mut cuda = backend();
    assert!(cuda.is_simulated());
    let bandwidth = cuda.measure_bandwidth().unwrap();
    assert!(bandwidth.is_finite() && bandwidth > 0.0, "{bandwidth}");
    let held = cuda.memory().unwrap().0;
    cuda.measure_bandwidth().unwrap();
    assert_eq!(cuda.memory().unwrap().0, held);
}

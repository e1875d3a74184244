//! Integers in groups: what kernels make of them, against what the file says.

use pelton_backend::conformance::random_groups;
use pelton_backend::{Backend, LinearSpec};
use pelton_quant::{CodeBook, GroupedType, ZeroPoint};

use super::conformance::backend;
use super::mutants::upload;

fn int(bits: u8, group: u32, zero: ZeroPoint) -> GroupedType {
    GroupedType { book: CodeBook::Int { bits }, group: Some(group), zero }
}

/// Rows with a single 1 each, which are rounded exactly, give the weights themselves.
#[test]
fn every_weight_is_near_its_own_and_zero_is_zero() {
    let (rows, cols) = (11, 320);
    let mut cuda = backend(false);
    let ones: Vec<f32> = (0..cols * cols).map(|i| f32::from(i % cols == i / cols)).collect();
    let (own, at) = (ZeroPoint::PerGroup, ZeroPoint::At);
    for (kind, bound) in [
        (int(4, 128, own), 2f32.powi(-11)),
        (int(4, 64, own), 2f32.powi(-11)),
        (int(4, 32, at(8)), 2f32.powi(-13)),
        (int(3, 128, at(4)), 2f32.powi(-11)),
        (int(2, 128, own), 2f32.powi(-11)),
        (int(8, 128, own), 2f32.powi(-9)),
        (int(8, 32, at(128)), 2f32.powi(-9)),
    ] {
        for is_shuffled in [false, true] {
            let weight = random_groups(kind, rows, cols, is_shuffled, 9);
            let layer = cuda.load_linear(&LinearSpec::new("layer", vec![weight.clone()], Vec::new()).unwrap()).unwrap();
            assert_eq!(cuda.placement(&layer)[0].kernel, "cuda int8 (dp4a, mma)", "{kind}");
            let x = upload(&mut cuda, cols, cols, &ones);
            let mut out = cuda.alloc(cols, rows);
            cuda.linear(&x, &layer, &mut out);
            let mut got = Vec::new();
            cuda.read(&out, &mut got);
            let mut truth = vec![0.0; cols];
            for row in 0..rows {
                weight.decode_row(row, &mut truth);
                // Scales of the case differ by a factor of two at most, and zero points are among the codes.
                let largest = 0.02 * ((1u16 << kind.book.bits()) - 1) as f32;
                for (column, &want) in truth.iter().enumerate() {
                    let got = got[column * rows + row];
                    assert!((got - want).abs() <= bound * largest, "{kind} row {row}: {got}, not {want}, at {column}");
                    assert!(want != 0.0 || got == 0.0, "{kind} row {row}: zero is {got} at {column}");
                }
            }
        }
    }
}

#[test]
fn what_has_no_layout_is_decoded_and_says_so() {
    let mut cuda = backend(false);
    for kind in [int(4, 16, ZeroPoint::PerGroup), int(4, 64, ZeroPoint::At(-7))] {
        let weight = random_groups(kind, 16, 128, true, 3);
        let layer = cuda.load_linear(&LinearSpec::new("layer", vec![weight], Vec::new()).unwrap()).unwrap();
        let placed = &cuda.placement(&layer)[0];
        assert!(placed.kernel.contains("decoded to f16: groups or zero points without a layout"), "{placed:?}");
        assert_eq!(placed.bytes, 2 * 16 * 128);
    }
}

//! The suite passes what is right and notices what is wrong.

use super::plain::Fault;
use super::*;

#[test]
fn the_reference_and_the_plain_implementation_conform() {
    run_all(&mut Reference, &Tolerances::default());
    run_all(&mut Plain::default(), &Tolerances::default());
    assert_eq!(batch_invariance(&mut Plain::default()), []);
}

#[test]
fn each_kind_of_mistake_is_found_in_its_op() {
    use Fault::*;
    let suite = |cases: &mut dyn Iterator<Item = Case>| Suite::of(cases, Tolerances::default());
    let rows = suite(&mut row_cases());
    let linear = suite(&mut linear_cases());
    let attention = suite(&mut attention_cases().take(8));
    let faults = [
        (EmbedScale, "embed"),
        (NormEpsilon, "rms_norm"),
        (AddLastColumn, "add"),
        (Bias, "linear"),
        (CoarseActivations, "linear"),
        (RopeNeighbours, "rope_store_kv"),
        (RopeOrder, "rope_store_kv"),
        (KvLayer, "paged_attention"),
        (KvSlot, "paged_attention"),
        (GroupOfHead, "paged_attention"),
        (Causal, "paged_attention"),
        (Window, "paged_attention"),
        (SoftCap, "paged_attention"),
        (CopyOneLayer, "copy_page, paged_attention"),
        (GeluErf, "gate"),
        (TopKNorm, "moe"),
        (TopKTie, "moe"),
        (GatherFirst, "gather_logit_rows"),
        (WriteShort, "write"),
    ];
    for (fault, op) in faults {
        let suite = match op {
            "linear" | "moe" => &linear,
            "rope_store_kv" | "paged_attention" | "copy_page, paged_attention" => &attention,
            _ => &rows,
        };
        let mut plain = Plain { fault: Some(fault) };
        let found = suite.failures(&mut plain).any(|f| f.op == op);
        assert!(found, "{fault:?} was not found in {op}");
    }
}

#[test]
fn a_batch_dependence_within_the_tolerance_is_found_by_its_bits() {
    let failures = batch_invariance(&mut Plain { fault: Some(Fault::BatchDependent) });
    assert!(failures.iter().any(|f| f.op == "rms_norm"), "{failures:?}");
}

#[test]
fn nan_and_missing_values_are_failures() {
    let t = Tolerances::default();
    assert_eq!(compare(&[1.0, 2.0], &[1.0, 2.0], &[1.0, 2.0], t), None);
    assert!(compare(&[1.0, f32::NAN], &[1.0, 2.0], &[1.0, 2.0], t).unwrap().contains("element 1 of 2"));
    assert!(compare(&[1.0], &[1.0, 2.0], &[1.0, 2.0], t).unwrap().contains("1 values"));
}

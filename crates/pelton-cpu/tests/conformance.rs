//! Every op on every instruction set of this machine, with one thread and with two, against the reference.

use pelton_backend::conformance::{Suite, Tolerances, batch_invariance};
use pelton_cpu::{Cpu, CpuOptions, Isa};

fn cpu(isa: Isa, threads: usize) -> Cpu {
    let options = CpuOptions { threads: Some(threads), isa: Some(isa.name().to_string()), ..CpuOptions::default() };
    Cpu::new(options).expect("an instruction set of this machine")
}

/// The ops agree with the reference, and do not depend on the number of threads.
#[test]
fn every_instruction_set_conforms_with_the_same_bits_on_any_number_of_threads() {
    let suite = Suite::new(Tolerances::default());
    for isa in Isa::available() {
        let failures = suite.run(&mut cpu(isa, 2));
        let lines: Vec<String> = failures.iter().map(|f| f.to_string()).collect();
        assert!(failures.is_empty(), "{isa} does not conform:\n{}", lines.join("\n"));
        let (one, two) = (suite.outputs(&mut cpu(isa, 1)), suite.outputs(&mut cpu(isa, 2)));
        assert_eq!(one.len(), two.len());
        for (one, two) in one.iter().zip(&two) {
            let same = one.values.iter().zip(&two.values).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && one.op == two.op, "{} differs between 1 and 2 threads on {isa}", one.op);
        }
    }
}

/// A row's bits do not depend on the rows around it.
#[test]
fn rows_have_the_same_bits_together_and_apart() {
    for isa in Isa::available() {
        let failures = batch_invariance(&mut cpu(isa, 2));
        let lines: Vec<String> = failures.iter().map(|f| f.to_string()).collect();
        assert!(failures.is_empty(), "{isa}:\n{}", lines.join("\n"));
    }
}

//! Ten small models against transformers, on the production kernels.
//!
//! The rule is FlashAttention's: the error against float32 may be at most twice that of a plain implementation in
//! the precision of the weights (here transformers in bf16). Run with `--nocapture` for the table.

use pelton::{BackendChoice, Logits, Model, Options};

use crate::support::{Expected, ask, fixture, greedy, has, load, max_error, open, options};

/// The two likeliest tokens where a greedy run left the expected path lie this close, in units of the logit error
/// that was measured: two logits that each err by as much can change places.
const NEAR_TIE: f32 = 2.0;

/// Whether the greedy continuation is the expected one; a departure must be a near tie, which the answer names.
pub(crate) fn greedy_run(model: &Model, expected: &Expected, options: &Options, error: f32) -> String {
    let got = ask(&load(model, options), greedy(&expected.greedy_prompt, expected.greedy.len())).ids;
    let Some(at) = (0..expected.greedy.len()).find(|&i| got[i] != expected.greedy[i]) else {
        assert_eq!(got.len(), expected.greedy.len());
        return "equal".into();
    };
    let ids = [&expected.greedy_prompt[..], &expected.greedy[..at]].concat();
    let reference = Options { backend: BackendChoice::Reference, ..options.clone() };
    let logits = Logits::compute(model, &ids, &reference, false).unwrap();
    let last = logits.row(ids.len() - 1);
    let gap = last[expected.greedy[at] as usize] - last[got[at] as usize];
    assert!(gap <= NEAR_TIE * error, "token {at}: {} instead of {}, {gap} below it", got[at], expected.greedy[at]);
    format!("a near tie at token {at} (gap {gap:.1e})")
}

fn check(name: &str) -> (Model, Expected) {
    let (model, expected) = (open(&fixture(name)), Expected::of(name));
    let production = Logits::compute(&model, &expected.ids, &options(), false).unwrap();
    let reference = Options { backend: BackendChoice::Reference, ..options() };
    let reference = Logits::compute(&model, &expected.ids, &reference, false).unwrap();
    let (reference, error) = (expected.error_of(&reference), expected.error_of(&production));
    let run = greedy_run(&model, &expected, &options(), error);
    let bf16 = expected.bf16_error;
    println!("| {name} | reference {reference:.1e} | production {error:.1e} | bf16 {bf16:.1e} | greedy {run} |");
    assert!(reference <= 2e-3, "{name}: the reference errs by {reference}");
    assert!(error <= 2.0 * bf16, "{name}: production errs by {error}, bf16 by {bf16}");
    (model, expected)
}

/// The kernels of each instruction set that this machine has. Linear layers are the same bits on all of them;
/// attention is not.
fn check_each_isa(model: &Model, expected: &Expected) {
    for isa in ["scalar", "avx2", "avx512"] {
        if !has(isa) {
            println!("{isa}: this machine has it not; skipped");
            continue;
        }
        let options = Options { isa: Some(isa.into()), ..options() };
        let logits = Logits::compute(model, &expected.ids, &options, false).unwrap();
        let error = expected.error_of(&logits);
        println!("| {} | {isa} {error:.1e} | greedy {} |", model.name, greedy_run(model, expected, &options, error));
        assert!(error <= 2.0 * expected.bf16_error, "{} on {isa}: {error}", model.name);
        let one = Options { threads: Some(1), batch_rows: 512, ..options };
        let one = Logits::compute(model, &expected.ids, &one, false).unwrap();
        assert_eq!(max_error(&one.data, &logits.data), 0.0, "{isa}: threads and chunks show");
    }
}

macro_rules! fixtures {
    ($($test:ident = $name:literal),* $(,)?) => {
        $(#[test]
        fn $test() {
            check($name);
        })*
    };
}

fixtures! {
    llama_mha = "llama-mha",
    llama3_rope = "llama3-rope",
    mistral_window = "mistral-window",
    phi3 = "phi3",
    qwen2_tied = "qwen2-tied",
    qwen2_untied = "qwen2-untied",
    qwen3_moe = "qwen3-moe",
    qwen3_yarn = "qwen3-yarn",
}

#[test]
fn gemma2_on_each_isa() {
    let (model, expected) = check("gemma2");
    check_each_isa(&model, &expected);
}

#[test]
fn qwen3_on_each_isa() {
    let (model, expected) = check("qwen3");
    check_each_isa(&model, &expected);
}

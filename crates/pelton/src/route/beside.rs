//! Two models in memory at once.
//!
//! Invariant: together they take no more than what was free (or [`Options::memory`]) when the first was loaded, whatever
//! the system counts as taken in between.

use pelton_model::LoadProgress;

use super::Side;
use crate::{Error, Llm, Model, Options, available_memory};

/// Loads two models that run beside each other. What their weights leave is for keys, values and activations: the small
/// model may take half of it, the large one the rest.
///
/// # Errors
/// As [`Llm::load`]; where memory is short, with what the two share.
pub fn load_both(
    (small, for_small): (&Model, &Options),
    (large, for_large): (&Model, &Options),
    progress: &mut dyn FnMut(Side, LoadProgress),
) -> Result<(Llm, Llm), Error> {
    // A tenth stays free, as in every plan of memory.
    let free = available_memory().map(|free| free / 10 * 9);
    let budget = [free, for_small.memory, for_large.memory].into_iter().flatten().min();
    let weights = |model: &Model, options: &Options| -> Result<u64, Error> {
        let quantized = options.quantize(model)?;
        Ok(quantized.as_ref().unwrap_or(model).weight_bytes() as u64)
    };
    let (w_small, w_large) = (weights(small, for_small)?, weights(large, for_large)?);
    let first = budget.map(|budget| small_share(budget, w_small, w_large));
    let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
    let short = |error: Error, (other, bytes): (&Model, u64)| match (error, budget) {
        (Error::Memory(what), Some(budget)) => Error::Memory(format!(
            "{what}; {} and {} share {:.0} MiB, of which {} takes {:.0} MiB",
            small.name,
            large.name,
            mib(budget),
            other.name,
            mib(bytes),
        )),
        (error, _) => error,
    };
    let small_llm = load(Side::Small, small, for_small, first, progress).map_err(|e| short(e, (large, w_large)))?;
    let taken = small_llm.report().memory.total_bytes() as u64;
    let left = budget.map(|budget| budget.saturating_sub(taken));
    let large_llm = load(Side::Large, large, for_large, left, progress).map_err(|e| short(e, (small, taken)))?;
    Ok((small_llm, large_llm))
}

fn load(
    side: Side,
    model: &Model,
    options: &Options,
    memory: Option<u64>,
    progress: &mut dyn FnMut(Side, LoadProgress),
) -> Result<Llm, Error> {
    Llm::load(model, &Options { memory, ..options.clone() }, &mut |p| progress(side, p))
}

/// What the small model may take: its weights, and half of what both models' weights leave.
fn small_share(budget: u64, small: u64, large: u64) -> u64 {
    let rest = budget.saturating_sub(small).saturating_sub(large);
    small.saturating_add(rest / 2).min(budget)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Draft, ModelRef, Speculation};

    fn pair() -> (Model, Model) {
        (Model::open(&ModelRef::EmbeddedDraft, None).unwrap(), Model::open(&ModelRef::Embedded, None).unwrap())
    }

    fn options(memory: u64) -> Options {
        let speculation = Speculation { draft: Draft::Off, ..Speculation::default() };
        Options {
            memory: Some(memory),
            max_seqs: 1000,
            batch_rows: 16,
            threads: Some(1),
            speculation,
            ..Options::default()
        }
    }

    #[test]
    fn shares_add_up_to_the_budget() {
        assert_eq!(small_share(1000, 100, 300), 400);
        assert_eq!(small_share(400, 100, 300), 100);
        assert_eq!(small_share(50, 100, 300), 50, "not more than there is");
        assert_eq!(small_share(u64::MAX, u64::MAX, 1), u64::MAX);
    }

    #[test]
    fn both_fit_one_budget_or_are_refused_with_what_they_share() {
        let (small, large) = pair();
        let weights = (small.weight_bytes() + large.weight_bytes()) as u64;
        let budget = weights * 6;
        let mut seen = Vec::new();
        let both = load_both((&small, &options(budget)), (&large, &options(budget)), &mut |side, _| seen.push(side));
        let (a, b) = both.unwrap();
        let total = (a.report().memory.total_bytes() + b.report().memory.total_bytes()) as u64;
        assert!(total <= budget && total > budget * 9 / 10, "{total} of {budget}: the sequences fill it");
        assert!(a.report().memory.max_seqs > 1 && b.report().memory.max_seqs > 1);
        seen.dedup();
        assert_eq!(seen, [Side::Small, Side::Large]);
        drop((a, b));
        let tight = options(weights * 21 / 20);
        let refused = load_both((&small, &tight), (&large, &tight), &mut |_, _| ());
        let error = refused.err().unwrap().to_string();
        assert!(error.contains("does not fit") && error.contains("pelton-draft and pelton-tiny share"), "{error}");
    }
}

//! Random calls, a million of them, against the shadow engine: small pools, tiny pages and a
//! vocabulary of two or three tokens, so that sharing, eviction and preemption happen all the time.
//!
//! `PELTON_SCHED_OPS` sets the number of operations (default a million).

mod random;
mod shadow;

use pelton_sched::{Limits, Stats};
use random::Random;
use shadow::Shadow;

fn limits_of(random: &mut Random) -> Limits {
    let page_len = 1 + random.below(5);
    let n_pages = 2 + random.below(20);
    Limits {
        page_len,
        n_pages,
        max_batch_rows: 1 + random.below(24),
        max_seqs: 1 + random.below(9),
        max_context: 4 + random.below(60),
        max_waiting: 1 + random.below(10),
        prefix_cache: random.chance(80),
    }
}

fn add(total: &mut Stats, stats: &Stats) {
    total.steps += stats.steps;
    total.cached_tokens += stats.cached_tokens;
    total.computed_tokens += stats.computed_tokens;
    total.generated_tokens += stats.generated_tokens;
    total.draft_tokens += stats.draft_tokens;
    total.accepted_tokens += stats.accepted_tokens;
    total.preemptions += stats.preemptions;
    total.evictions += stats.evictions;
}

/// `n_operations` over many small schedulers; everything that should happen must have happened often.
fn run(seed: u64, n_operations: u64) {
    let mut random = Random::new(seed);
    let (mut operations, mut finished, mut copied, mut imported, mut ahead) = (0, 0, 0, 0, 0);
    let mut total = Stats::default();
    while operations < n_operations {
        let limits = limits_of(&mut random);
        let vocabulary = 2 + random.below(2) as u32;
        let n_tenants = if random.chance(50) { 1 } else { 3 };
        let mut shadow = Shadow::new(limits, vocabulary, n_tenants);
        for _ in 0..600 {
            shadow.random_operation(&mut random);
        }
        shadow.drain(&mut random);
        operations += shadow.operations;
        finished += shadow.finished;
        copied += shadow.copied;
        imported += shadow.imported;
        ahead += shadow.looked_ahead;
        assert!(shadow.indexed >= shadow.sched.stats().evictions.saturating_sub(shadow.imported), "evicted unreported");
        add(&mut total, &shadow.sched.stats());
    }
    println!("seed {seed}: {operations} operations, {finished} finished, {copied} pages copied, {total:?}");
    let often = n_operations / 200;
    assert!(finished > often && total.preemptions > often && total.evictions > often, "{finished}, {total:?}");
    assert!(imported > often / 5 && ahead > often / 5, "{imported} pages imported, {ahead} tokens reserved ahead");
    assert!(copied > often / 5 && total.cached_tokens > often && total.accepted_tokens > often, "{total:?}");
}

fn n_operations() -> u64 {
    std::env::var("PELTON_SCHED_OPS").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000_000)
}

#[test]
fn random_operations_seed_1() {
    run(1, n_operations() / 4);
}

#[test]
fn random_operations_seed_2() {
    run(2, n_operations() / 4);
}

#[test]
fn random_operations_seed_3() {
    run(3, n_operations() / 4);
}

#[test]
fn random_operations_seed_4() {
    run(4, n_operations() / 4);
}

/// The same calls give the same plans.
#[test]
fn runs_are_deterministic() {
    let trace = || {
        let mut random = Random::new(99);
        let limits = Limits {
            page_len: 2,
            n_pages: 9,
            max_batch_rows: 7,
            max_seqs: 4,
            max_context: 16,
            max_waiting: 6,
            prefix_cache: true,
        };
        let mut shadow = Shadow::new(limits, 2, 2);
        let mut trace = Vec::new();
        for _ in 0..2000 {
            shadow.random_operation(&mut random);
            trace.push(shadow.sched.stats());
        }
        trace
    };
    assert_eq!(trace(), trace());
}

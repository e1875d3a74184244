//! Prompts share a step: short ones do not wait for the end of a long one, and the long one is never starved.

mod random;

use std::collections::BTreeMap;

use pelton_sched::{Limits, Plan, Scheduler, SeqId, SeqOptions, StepOutcome};
use random::Random;

const LONG: SeqId = SeqId(1);
const SHORT: SeqId = SeqId(2);
const STREAM: SeqId = SeqId(9);

/// Room for everything.
fn roomy() -> Scheduler {
    let limits = Limits { n_pages: 100_000, max_seqs: 1000, max_context: 1 << 20, ..Limits::default() };
    Scheduler::new(limits).expect("limits are valid")
}

/// A prompt that shares nothing with those of other sequences.
fn prompt(seq: SeqId, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| seq.0 as u32 * 100_003 + i).collect()
}

fn add(sched: &mut Scheduler, seq: SeqId, len: usize, options: SeqOptions) {
    sched.add(seq, prompt(seq, len), options).expect("the prompt fits");
}

/// Plans and commits one step; every sampled row says token 7.
fn step(sched: &mut Scheduler) -> Plan {
    let plan = sched.plan();
    let rows = plan.rows.iter().filter(|row| row.sample);
    let outcomes: Vec<_> = rows.map(|row| StepOutcome { seq: row.seq, new_tokens: vec![7], finished: false }).collect();
    sched.commit(&outcomes);
    plan
}

fn tokens_of(plan: &Plan, seq: SeqId) -> usize {
    plan.rows.iter().find(|row| row.seq == seq).map_or(0, |row| row.tokens.len())
}

/// A stream that decodes, beside which a step has `budget` tokens of prompts.
fn beside_a_stream(budget: usize) -> Scheduler {
    let mut sched = roomy();
    add(&mut sched, STREAM, 5, SeqOptions::default());
    step(&mut sched);
    sched.set_max_prefill(budget);
    sched
}

/// Steps until a sequence says its first token.
fn steps_to_first_token(sched: &mut Scheduler, seq: SeqId) -> usize {
    (1..).find(|_| step(sched).rows.iter().any(|row| row.seq == seq && row.sample)).expect("it ends")
}

#[test]
fn a_short_prompt_does_not_wait_for_the_end_of_a_long_one() {
    let mut sched = beside_a_stream(64);
    add(&mut sched, LONG, 12_000, SeqOptions::default());
    for _ in 0..3 {
        assert_eq!(tokens_of(&step(&mut sched), LONG), 64, "alone it has the whole step");
    }
    add(&mut sched, SHORT, 200, SeqOptions::default());
    let plan = step(&mut sched);
    assert_eq!((tokens_of(&plan, LONG), tokens_of(&plan, SHORT)), (32, 32));
    // 32 of 200 tokens are done; 32 in every step from now on.
    assert_eq!(steps_to_first_token(&mut sched, SHORT), 6);
    // What is left of that step went back to the long one, which has all again.
    assert_eq!(tokens_of(&step(&mut sched), LONG), 64);
    let left = 12_000 - 4 * 64 + 32 - 6 * 64 + (200 - 32) - 64;
    assert_eq!(steps_to_first_token(&mut sched, LONG), usize::div_ceil(left, 64), "no token was lost");
}

#[test]
fn what_the_short_one_leaves_goes_back_in_the_same_step() {
    let mut sched = beside_a_stream(64);
    add(&mut sched, LONG, 1000, SeqOptions::default());
    step(&mut sched);
    add(&mut sched, SHORT, 10, SeqOptions::default());
    let plan = step(&mut sched);
    assert_eq!((tokens_of(&plan, LONG), tokens_of(&plan, SHORT)), (54, 10));
    assert_eq!(plan.n_tokens(), 65);
}

#[test]
fn a_long_one_waits_to_be_let_in_behind_a_long_one_and_a_short_one_behind_both_does_not() {
    let mut sched = beside_a_stream(64);
    let (first, second, short) = (SeqId(1), SeqId(2), SeqId(3));
    add(&mut sched, first, 5000, SeqOptions::default());
    add(&mut sched, second, 4000, SeqOptions::default());
    let plan = step(&mut sched);
    assert_eq!((tokens_of(&plan, first), tokens_of(&plan, second)), (64, 0), "like lengths go one after the other");
    add(&mut sched, short, 100, SeqOptions::default());
    let plan = step(&mut sched);
    let shares = [first, second, short].map(|seq| tokens_of(&plan, seq));
    assert_eq!(shares, [32, 16, 16], "half to the first, half of the rest to the second");
    assert!(steps_to_first_token(&mut sched, short) <= 7);
}

#[test]
fn the_same_long_prompt_twice_is_computed_once() {
    let mut sched = beside_a_stream(20);
    let again = prompt(LONG, 1000);
    sched.add(LONG, again.clone(), SeqOptions::default()).expect("it fits");
    sched.add(SHORT, again[..400].to_vec(), SeqOptions::default()).expect("it fits");
    let before = sched.stats().computed_tokens;
    let mut streamed = 0;
    while sched.generated(LONG).is_some_and(<[u32]>::is_empty) || sched.generated(SHORT).is_some_and(<[u32]>::is_empty)
    {
        streamed += step(&mut sched).rows.iter().filter(|row| row.tokens.len() == 1).count() as u64;
    }
    // Twelve pages of 32 are shared; the second computes what follows them.
    let computed = sched.stats().computed_tokens - before - streamed;
    assert!(computed <= 1000 + 16 + 2, "{computed} tokens were computed");
}

#[test]
fn less_important_prompts_and_other_tenants_get_no_share() {
    let mut sched = beside_a_stream(64);
    add(&mut sched, LONG, 1000, SeqOptions { priority: 1, ..SeqOptions::default() });
    add(&mut sched, SHORT, 100, SeqOptions::default());
    let plan = step(&mut sched);
    assert_eq!((tokens_of(&plan, LONG), tokens_of(&plan, SHORT)), (64, 0), "priority holds");

    let mut sched = beside_a_stream(64);
    add(&mut sched, LONG, 1000, SeqOptions { tenant: 1, ..SeqOptions::default() });
    step(&mut sched);
    add(&mut sched, SHORT, 100, SeqOptions { tenant: 2, ..SeqOptions::default() });
    step(&mut sched);
    // Whoever has less goes first: the two are served alike, step by step.
    let served = [0; 20].map(|_| {
        let plan = step(&mut sched);
        (tokens_of(&plan, LONG), tokens_of(&plan, SHORT))
    });
    let (long, short) = served.iter().fold((0, 0), |sum, step| (sum.0 + step.0, sum.1 + step.1));
    assert!(short <= 100 && long > 1000 - 4 * 64 - 100, "{served:?}");
}

/// Prompts of all lengths arrive without end; the first in line always has half of what prompts are given, and whoever
/// arrives has said something after twice the work that was before it.
#[test]
fn nobody_starves() {
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let budget = 1 + random.below(100);
        let mut sched = beside_a_stream(budget);
        // The step in which each is through at the latest.
        let mut due: BTreeMap<SeqId, usize> = BTreeMap::new();
        let mut left: BTreeMap<SeqId, usize> = BTreeMap::new();
        let mut next = 10;
        for now in 0..400 {
            while random.chance(30) && left.len() < 500 {
                let len = if random.chance(15) { 500 + random.below(3000) } else { 2 + random.below(120) };
                let work: usize = left.values().sum::<usize>() + len;
                add(&mut sched, SeqId(next), len, SeqOptions { max_new_tokens: 1, ..SeqOptions::default() });
                left.insert(SeqId(next), len);
                // Half of each step at least, and for each prompt one step that it does not fill.
                due.insert(SeqId(next), now + 2 * work / budget + 2 * left.len() + 2);
                next += 1;
            }
            let plan = step(&mut sched);
            let rows: Vec<_> = plan.rows.iter().filter(|row| row.seq != STREAM).collect();
            // The last token of a prompt alone runs like a stream's, beside the budget.
            let is_chunk = |seq: &SeqId| left[seq] > 1;
            let chunks = rows.iter().filter(|row| is_chunk(&row.seq));
            let n_prefill: usize = chunks.map(|row| row.tokens.len()).sum();
            assert!(n_prefill <= budget, "seed {seed}, step {now}: {n_prefill} of {budget}");
            let all: usize = left.values().filter(|&&len| len > 1).sum();
            assert_eq!(n_prefill, budget.min(all), "seed {seed}, step {now}: part of the step was left empty");
            if let Some((&first, &len)) = left.iter().find(|&(_, &len)| len > 1) {
                let had = tokens_of(&plan, first);
                assert!(had == len || 2 * had >= budget, "seed {seed}, step {now}: {first} had {had} of {budget}");
            }
            for row in rows {
                let left_of = left.get_mut(&row.seq).expect("a known prompt");
                *left_of -= row.tokens.len();
                if row.sample {
                    assert!(now <= due[&row.seq], "seed {seed}: {} came late, in step {now}", row.seq);
                    left.remove(&row.seq);
                }
            }
            let late = left.keys().find(|seq| due[seq] < now);
            assert_eq!(late, None, "seed {seed}: it starves in step {now}");
        }
        sched.check_integrity();
    }
}

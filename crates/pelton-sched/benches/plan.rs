//! What the scheduler itself costs: one step (plan and commit) of 10, 100 and 1,000 decoding sequences over a pool
//! of 100,000 pages. `cargo bench -p pelton-sched --bench plan`

use std::time::Instant;

use pelton_sched::{Limits, Scheduler, SeqId, SeqOptions, StepOutcome};

/// Sequences that decode, each with a history of about 3,000 tokens: 1,000 of them fill the pool.
fn decoding(n: usize) -> Scheduler {
    let limits = Limits {
        n_pages: 100_000,
        max_batch_rows: 1 << 20,
        max_seqs: n,
        max_context: 8192,
        max_waiting: 4096,
        ..Limits::default()
    };
    let mut sched = Scheduler::new(limits).expect("limits are valid");
    for i in 0..n as u32 {
        let prompt = (0..2900 + i % 97).map(|t| t * 7919 + i).collect();
        sched.add(SeqId(u64::from(i)), prompt, SeqOptions::default()).expect("it fits");
    }
    // All prompts, in one step or a few.
    while sched.stats().waiting > 0 || sched.stats().computed_tokens < 2900 * n as u64 {
        step(&mut sched);
    }
    sched
}

/// Seconds of planning and of committing.
fn step(sched: &mut Scheduler) -> (f64, f64) {
    let start = Instant::now();
    let plan = sched.plan();
    let planned = start.elapsed().as_secs_f64();
    let rows = plan.rows.iter().filter(|row| row.sample);
    let outcomes: Vec<StepOutcome> =
        rows.map(|row| StepOutcome { seq: row.seq, new_tokens: vec![7], finished: false }).collect();
    drop(plan);
    let start = Instant::now();
    sched.commit(&outcomes);
    (planned, start.elapsed().as_secs_f64())
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    println!("sequences   plan µs   commit µs   (medians of 200 steps)");
    for n in [10, 100, 1000] {
        let mut sched = decoding(n);
        let (mut plans, mut commits): (Vec<f64>, Vec<f64>) = (0..200).map(|_| step(&mut sched)).unzip();
        println!("{n:9}   {:7.1}   {:9.1}", 1e6 * median(&mut plans), 1e6 * median(&mut commits));
    }
}

//! What each call does, one property at a time, on pools small enough to count by hand.

use pelton_sched::{
    AGEING_STEPS, AddError, CacheMiss, FinishReason, ForkError, Limits, Plan, Scheduler, SeqId, SeqOptions, StepOutcome,
};

const A: SeqId = SeqId(1);
const B: SeqId = SeqId(2);
const C: SeqId = SeqId(3);

/// Pages of 4 tokens, 8 of them; 16 rows; 4 sequences; context 64.
fn small() -> Limits {
    Limits {
        page_len: 4,
        n_pages: 8,
        max_batch_rows: 16,
        max_seqs: 4,
        max_context: 64,
        max_waiting: 8,
        prefix_cache: true,
    }
}

fn scheduler(limits: Limits) -> Scheduler {
    Scheduler::new(limits).expect("limits are valid")
}

fn add(sched: &mut Scheduler, seq: SeqId, prompt: &[u32]) {
    sched.add(seq, prompt.to_vec(), SeqOptions::default()).expect("the prompt fits");
}

/// A prompt that shares nothing with those of other `tag`s.
fn prompt(tag: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| tag * 1000 + i).collect()
}

fn outcome(seq: SeqId, new_tokens: &[u32]) -> StepOutcome {
    StepOutcome { seq, new_tokens: new_tokens.to_vec(), finished: false }
}

/// Commits token 7 for every sampled row.
fn commit(sched: &mut Scheduler, plan: &Plan) -> Vec<(SeqId, FinishReason)> {
    let outcomes: Vec<_> = plan.rows.iter().filter(|row| row.sample).map(|row| outcome(row.seq, &[7])).collect();
    let finished = sched.commit(&outcomes);
    sched.check_integrity();
    finished.iter().map(|finished| (finished.seq, finished.reason)).collect()
}

fn step(sched: &mut Scheduler) -> Plan {
    let plan = sched.plan();
    sched.check_integrity();
    commit(sched, &plan);
    plan
}

/// `(sequence, start, tokens run)` of every row.
fn spans(plan: &Plan) -> Vec<(SeqId, usize, usize)> {
    plan.rows.iter().map(|row| (row.seq, row.start, row.tokens.len())).collect()
}

#[test]
fn decode_rows_come_first_and_prefill_fills_the_budget_in_chunks() {
    let mut sched = scheduler(Limits { max_batch_rows: 6, ..small() });
    add(&mut sched, A, &prompt(1, 4));
    add(&mut sched, B, &prompt(2, 9));
    assert_eq!(spans(&step(&mut sched)), [(A, 0, 4), (B, 0, 2)]);
    let plan = step(&mut sched);
    assert_eq!(spans(&plan), [(A, 4, 1), (B, 2, 5)]);
    assert_eq!((plan.rows[0].sample, plan.rows[1].sample), (true, false));
    let plan = step(&mut sched);
    assert_eq!(spans(&plan), [(A, 5, 1), (B, 7, 2)]);
    assert!(plan.rows[1].sample);
    assert_eq!(plan.rows[1].pages.len(), 3);
    assert_eq!(spans(&step(&mut sched)), [(A, 6, 1), (B, 9, 1)]);
}

#[test]
fn a_finished_prompt_is_reused_up_to_its_last_full_page_but_never_its_last_token() {
    let mut sched = scheduler(small());
    add(&mut sched, A, &prompt(1, 8));
    let first = step(&mut sched);
    assert_eq!((first.rows[0].cached, first.rows[0].miss.clone()), (0, Some(CacheMiss::NeverSeen)));
    assert!(sched.cancel(A));
    assert_eq!(sched.stats().cached_pages, 2);
    // The same 8 tokens: the second page holds the last prompt token, which must be run.
    add(&mut sched, B, &prompt(1, 8));
    let again = step(&mut sched);
    assert_eq!((again.rows[0].start, again.rows[0].cached, again.rows[0].miss.clone()), (4, 4, None));
    assert_eq!(again.rows[0].pages[0], first.rows[0].pages[0]);
    // The page that B computed a second time is the first one again.
    assert_eq!(sched.stats().used_pages, 2);
    // One token more, and both pages come from the cache.
    add(&mut sched, C, &prompt(1, 9));
    let longer = step(&mut sched);
    assert_eq!((longer.rows[1].start, longer.rows[1].cached), (8, 8));
}

#[test]
fn a_miss_is_explained() {
    let mut sched = scheduler(small());
    add(&mut sched, A, &prompt(1, 9));
    step(&mut sched);
    sched.cancel(A);
    let mut other = prompt(1, 9);
    other[6] = 5;
    add(&mut sched, B, &other);
    let row = &step(&mut sched).rows[0];
    assert_eq!((row.cached, row.miss.clone()), (4, Some(CacheMiss::Diverged { at: 6, cached: vec![1006, 1007] })));
    sched.cancel(B);
    // Something large takes all pages, so that the first prompt is given up.
    let large = SeqOptions { max_new_tokens: 1, ..SeqOptions::default() };
    sched.add(C, prompt(3, 31), large).expect("it fits the pool");
    step(&mut sched);
    step(&mut sched);
    assert!(!sched.has_work());
    assert!(sched.stats().evictions > 0);
    add(&mut sched, A, &prompt(1, 9));
    assert_eq!(step(&mut sched).rows[0].miss, Some(CacheMiss::Evicted));
}

#[test]
fn salts_do_not_share() {
    let mut sched = scheduler(Limits { n_pages: 16, ..small() });
    for (seq, cache_salt) in [(A, 1), (B, 2), (C, 1)] {
        sched.add(seq, prompt(1, 9), SeqOptions { cache_salt, ..SeqOptions::default() }).expect("it fits");
        let plan = step(&mut sched);
        let cached = plan.rows.last().expect("a row").cached;
        assert_eq!(cached, if seq == C { 8 } else { 0 }, "{seq}");
    }
}

#[test]
fn the_same_prompt_at_the_same_time_is_computed_once() {
    let mut sched = scheduler(Limits { max_batch_rows: 64, ..small() });
    for seq in [A, B, C] {
        add(&mut sched, seq, &prompt(1, 10));
    }
    assert_eq!(spans(&step(&mut sched)), [(A, 0, 10)]);
    assert_eq!(spans(&step(&mut sched)), [(A, 10, 1), (B, 8, 2), (C, 8, 2)]);
}

#[test]
fn without_the_prefix_cache_nothing_is_kept() {
    let mut sched = scheduler(Limits { prefix_cache: false, max_batch_rows: 64, ..small() });
    add(&mut sched, A, &prompt(1, 9));
    add(&mut sched, B, &prompt(1, 9));
    let plan = step(&mut sched);
    assert_eq!(spans(&plan), [(A, 0, 9), (B, 0, 9)]);
    assert_eq!(plan.rows[0].miss, None);
    sched.cancel(A);
    sched.cancel(B);
    assert_eq!((sched.stats().free_pages, sched.stats().cached_pages), (8, 0));
}

#[test]
fn out_of_pages_the_youngest_waits_and_loses_nothing() {
    let mut sched = scheduler(Limits { n_pages: 6, prefix_cache: false, ..small() });
    add(&mut sched, A, &prompt(1, 7));
    add(&mut sched, B, &prompt(2, 7));
    // Both grow until six pages are not enough: A needs its fourth page with B holding three.
    let mut preempted = Vec::new();
    while preempted.is_empty() {
        preempted = step(&mut sched).preempted;
    }
    assert_eq!(preempted, [B]);
    assert_eq!(sched.stats().preemptions, 1);
    let kept = sched.tokens(B).expect("B waits").to_vec();
    assert_eq!(kept.len(), 13);
    assert_eq!((sched.stats().waiting, sched.stats().used_pages), (1, 4));
    sched.cancel(A);
    let plan = step(&mut sched);
    assert_eq!((plan.rows[0].seq, &plan.rows[0].tokens), (B, &kept));
    assert!(plan.rows[0].sample);
}

#[test]
fn a_sequence_alone_fills_the_pool_and_ends_by_context() {
    let mut sched = scheduler(small());
    add(&mut sched, A, &prompt(1, 30));
    let mut finished = Vec::new();
    while finished.is_empty() {
        let plan = sched.plan();
        assert!(!plan.is_empty());
        finished = commit(&mut sched, &plan);
    }
    assert_eq!(finished, [(A, FinishReason::Context)]);
    assert!(!sched.has_work());
}

#[test]
fn what_cannot_run_is_refused_with_numbers() {
    let mut sched = scheduler(Limits { max_waiting: 1, ..small() });
    let options = SeqOptions::default();
    assert_eq!(sched.add(A, vec![], options), Err(AddError::EmptyPrompt(A)));
    let none = SeqOptions { max_new_tokens: 0, ..options };
    assert_eq!(sched.add(A, vec![1], none), Err(AddError::NoNewTokens(A)));
    let error = sched.add(A, prompt(1, 32), options).expect_err("it fills the pool");
    assert_eq!(error, AddError::PromptTooLong { seq: A, prompt_len: 32, max_context: 64, pool_tokens: 32 });
    assert!(error.to_string().contains("sequence 1: the prompt has 32 tokens"), "{error}");
    sched.add(A, prompt(1, 31), options).expect("it leaves room for one token");
    assert_eq!(sched.add(A, vec![1], options), Err(AddError::DuplicateId(A)));
    assert_eq!(sched.add(B, vec![1], options), Err(AddError::QueueFull { seq: B, waiting: 1, max_waiting: 1 }));
    sched.check_integrity();

    let error = Scheduler::new(Limits { page_len: 0, ..small() }).expect_err("no page length");
    assert_eq!(error.to_string(), "scheduler limit `page_len` is 0; it must be 1 to 4294967295");
    assert!(Scheduler::new(Limits { n_pages: usize::MAX, page_len: 2, ..small() }).is_err());
    assert!(Scheduler::new(Limits { max_context: 1, ..small() }).is_err());
    // A large pool costs nothing before it is used.
    assert!(Scheduler::new(Limits { n_pages: 100_000_000, ..small() }).is_ok());
}

#[test]
fn drafts_are_run_kept_as_far_as_accepted_and_their_pages_given_back() {
    let mut sched = scheduler(small());
    add(&mut sched, A, &prompt(1, 4));
    step(&mut sched);
    assert!(sched.set_draft(A, &[10, 11, 12, 13, 14]));
    let plan = sched.plan();
    let row = &plan.rows[0];
    assert_eq!((row.tokens.as_slice(), row.start, row.n_drafts), ([7, 10, 11, 12, 13, 14].as_slice(), 4, 5));
    assert_eq!((row.pages.len(), sched.stats().used_pages), (3, 3));
    // Two drafts accepted and one token sampled after them: 4 + 1 + 2 tokens stay, in two pages.
    sched.commit(&[outcome(A, &[10, 11, 99])]);
    sched.check_integrity();
    assert_eq!(sched.tokens(A).expect("it lives")[4..], [7, 10, 11, 99]);
    assert_eq!(sched.stats().used_pages, 2);
    assert_eq!((sched.stats().draft_tokens, sched.stats().accepted_tokens), (5, 2));
    // A draft is good for one plan.
    let plan = sched.plan();
    assert_eq!((plan.rows[0].tokens.as_slice(), plan.rows[0].start), ([99].as_slice(), 7));
    // No new token: the same position runs again.
    sched.commit(&[outcome(A, &[])]);
    assert_eq!(spans(&sched.plan()), [(A, 7, 1)]);
}

#[test]
fn drafts_respect_budget_and_limits() {
    let mut sched = scheduler(Limits { max_batch_rows: 4, max_context: 16, ..small() });
    let options = SeqOptions { max_new_tokens: 4, ..SeqOptions::default() };
    sched.add(A, vec![1, 2], options).expect("it fits");
    sched.add(B, vec![3, 4], options).expect("it fits");
    step(&mut sched);
    for seq in [A, B] {
        sched.set_draft(seq, &[5; 9]);
    }
    // Four rows: one for each, and two spare; A may still get three tokens, so at most two drafts.
    let plan = sched.plan();
    let drafts: Vec<usize> = plan.rows.iter().map(|row| row.n_drafts).collect();
    assert_eq!((plan.n_tokens(), drafts), (4, vec![2, 0]));

    let mut sched = scheduler(Limits { n_pages: 2, prefix_cache: false, ..small() });
    add(&mut sched, A, &[1, 2]);
    add(&mut sched, B, &[3, 4]);
    assert_eq!(step(&mut sched).rows.len(), 1); // B would leave no page for A to grow into
    sched.set_draft(A, &[5; 9]);
    let plan = sched.plan();
    // Context 8, three tokens there: five more, of which four can be drafts; they take the second page.
    assert_eq!((plan.rows[0].n_drafts, plan.rows[0].pages.len()), (4, 2));
}

#[test]
fn a_fork_shares_pages_and_copies_the_one_it_writes() {
    let mut sched = scheduler(small());
    add(&mut sched, A, &prompt(1, 6));
    step(&mut sched);
    sched.fork(A, B).expect("A runs");
    sched.check_integrity();
    assert_eq!((sched.stats().running, sched.stats().used_pages), (2, 2));
    let plan = step(&mut sched);
    let (parent, child) = (&plan.rows[0], &plan.rows[1]);
    assert_eq!(spans(&plan), [(A, 6, 1), (B, 6, 1)]);
    assert_eq!(parent.pages[0], child.pages[0]);
    // The first to write copies; the other is then alone with the original.
    assert_eq!(parent.copies, [(child.pages[1], parent.pages[1])]);
    assert_eq!(child.copies, []);
    assert_eq!(sched.stats().used_pages, 3);
}

#[test]
fn another_answer_to_the_same_prompt_runs_only_its_last_token_again() {
    let mut sched = scheduler(small());
    add(&mut sched, A, &prompt(1, 6));
    step(&mut sched);
    sched.fork_at(A, B, 6).expect("A runs");
    let plan = sched.plan();
    assert_eq!(spans(&plan), [(A, 6, 1), (B, 5, 1)]);
    assert_eq!(plan.rows[1].tokens, [1005]);
    sched.commit(&[outcome(A, &[8]), outcome(B, &[9])]);
    sched.check_integrity();
    assert_eq!((sched.generated(A), sched.generated(B)), (Some([7, 8].as_slice()), Some([9].as_slice())));
    assert_eq!(sched.prompt(A), sched.prompt(B));
}

#[test]
fn forks_are_refused_or_wait_when_they_must() {
    let mut sched = scheduler(Limits { max_seqs: 1, max_waiting: 1, ..small() });
    add(&mut sched, A, &prompt(1, 6));
    assert_eq!(sched.fork(B, C), Err(ForkError::UnknownParent(B)));
    let plan = sched.plan();
    assert_eq!(sched.fork(A, B), Err(ForkError::StepInFlight));
    commit(&mut sched, &plan);
    assert_eq!(sched.fork(A, A), Err(ForkError::DuplicateId(A)));
    assert_eq!(sched.fork_at(A, B, 8), Err(ForkError::BadLength { parent: A, n_tokens: 8, len: 7 }));
    assert_eq!(sched.fork_at(A, B, 0), Err(ForkError::BadLength { parent: A, n_tokens: 0, len: 7 }));
    sched.fork(A, B).expect("it can wait");
    assert_eq!((sched.stats().waiting, sched.stats().used_pages), (1, 2));
    assert_eq!(sched.fork(A, C), Err(ForkError::QueueFull { waiting: 1, max_waiting: 1 }));
    sched.cancel(A);
    assert_eq!(spans(&step(&mut sched)), [(B, 4, 3)]);
}

#[test]
fn cancel_frees_pages_at_once_even_while_the_step_runs() {
    let mut sched = scheduler(Limits { prefix_cache: false, ..small() });
    add(&mut sched, A, &prompt(1, 8));
    add(&mut sched, B, &prompt(2, 5));
    let plan = sched.plan();
    assert!(sched.cancel(A));
    assert!(!sched.cancel(A));
    assert_eq!(sched.stats().used_pages, 2);
    sched.check_integrity();
    // The id may be taken again; the outcome of the old one is ignored, as for an unknown one.
    add(&mut sched, A, &[1, 2, 3]);
    commit(&mut sched, &plan);
    assert_eq!(sched.tokens(A), Some([1, 2, 3].as_slice()));
    assert_eq!(sched.generated(B), Some([7].as_slice()));
}

#[test]
fn higher_priority_goes_first_and_equals_in_order_of_arrival() {
    let mut sched = scheduler(Limits { max_seqs: 1, ..small() });
    for (seq, priority) in [(A, 0), (B, 0), (C, 1)] {
        let options = SeqOptions { priority, max_new_tokens: 1, ..SeqOptions::default() };
        sched.add(seq, prompt(seq.0 as u32, 3), options).expect("it fits");
    }
    let order: Vec<SeqId> = (0..3).map(|_| step(&mut sched).rows[0].seq).collect();
    assert_eq!(order, [C, A, B]);
}

#[test]
fn a_low_priority_is_not_starved_by_a_stream_of_high_ones() {
    let mut sched = scheduler(Limits { max_seqs: 1, ..small() });
    let one = SeqOptions { max_new_tokens: 1, ..SeqOptions::default() };
    sched.add(A, prompt(1, 3), SeqOptions { priority: -1, ..one }).expect("it fits");
    let mut steps = 0;
    while sched.tokens(A).is_some() {
        for i in 0..2 {
            // Twice as many as can be served; the queue is always full of them.
            let _ = sched.add(SeqId(100 + 2 * steps + i), vec![1, 2], SeqOptions { priority: 1, ..one });
        }
        step(&mut sched);
        steps += 1;
        assert!(steps < 2 * AGEING_STEPS as u64 + 20, "starved");
    }
    assert!(steps > AGEING_STEPS as u64, "priority had no effect");
}

#[test]
#[should_panic(expected = "did not report")]
fn a_missing_outcome_is_a_mistake_of_the_caller() {
    let mut sched = scheduler(small());
    add(&mut sched, A, &[1]);
    sched.plan();
    sched.commit(&[]);
}

#[test]
#[should_panic(expected = "accepted drafts that were not planned")]
fn so_is_an_accepted_draft_that_was_not_one() {
    let mut sched = scheduler(small());
    add(&mut sched, A, &[1]);
    step(&mut sched);
    sched.set_draft(A, &[5, 6]);
    sched.plan();
    sched.commit(&[outcome(A, &[6, 6])]);
}

#[test]
#[should_panic(expected = "before the last plan was committed")]
fn so_is_a_plan_without_a_commit() {
    let mut sched = scheduler(small());
    add(&mut sched, A, &[1]);
    sched.plan();
    sched.plan();
}

#[test]
fn drafts_leave_a_page_for_each_sequence_behind() {
    let mut sched = scheduler(Limits { n_pages: 4, prefix_cache: false, ..small() });
    add(&mut sched, A, &prompt(1, 4));
    add(&mut sched, B, &prompt(2, 4));
    assert_eq!(step(&mut sched).rows.len(), 2);
    // Both need their second page now, and these are the last two.
    sched.set_draft(A, &[5; 9]);
    let plan = sched.plan();
    let drafts: Vec<usize> = plan.rows.iter().map(|row| row.n_drafts).collect();
    assert_eq!((drafts, plan.preempted), (vec![3, 0], vec![]));
}

#[test]
fn a_second_prefill_after_preemption_is_no_news_to_the_cache_report() {
    let mut sched = scheduler(Limits { n_pages: 6, ..small() });
    add(&mut sched, A, &prompt(1, 7));
    add(&mut sched, B, &prompt(2, 7));
    while step(&mut sched).preempted.is_empty() {}
    let before = sched.stats().cached_tokens;
    sched.cancel(A);
    let plan = step(&mut sched);
    let row = &plan.rows[0];
    // B finds its own pages again, which saves work, but its prompt was computed once all the same.
    assert_eq!((row.seq, row.cached, row.miss.clone()), (B, 0, None));
    assert!(row.start > 0);
    assert_eq!(sched.stats().cached_tokens, before + row.start as u64);
}

#[test]
fn a_prompt_forked_during_prefill_follows_its_parent_from_the_cache() {
    let mut sched = scheduler(Limits { max_batch_rows: 12, n_pages: 16, ..small() });
    add(&mut sched, A, &prompt(1, 20));
    assert_eq!(spans(&step(&mut sched)), [(A, 0, 12)]);
    sched.fork(A, B).expect("A runs");
    // A computes the page that B needs next: B waits a step for it.
    assert_eq!(spans(&step(&mut sched)), [(A, 12, 8)]);
    let plan = step(&mut sched);
    assert_eq!(spans(&plan), [(A, 20, 1), (B, 16, 4)]);
    assert_eq!(plan.rows[1].pages[..4], plan.rows[0].pages[..4]);
}

#[test]
fn tenants_are_served_alike_whatever_each_asks_for() {
    let mut sched = scheduler(Limits { max_seqs: 1, max_waiting: 100, ..small() });
    let one = SeqOptions { max_new_tokens: 1, ..SeqOptions::default() };
    // Tenant 1 floods the queue with urgent requests, tenant 2 comes later with three.
    for i in 0..20 {
        let options = SeqOptions { tenant: 1, priority: 5, ..one };
        sched.add(SeqId(i), prompt(i as u32, 6), options).expect("it fits");
    }
    step(&mut sched);
    for i in 100..103 {
        sched.add(SeqId(i), prompt(i as u32, 6), SeqOptions { tenant: 2, ..one }).expect("it fits");
    }
    let order: Vec<u64> = (0..6).map(|_| step(&mut sched).rows[0].seq.0 / 100).collect();
    assert_eq!(order, [0, 1, 0, 1, 0, 1], "turn by turn");
}

#[test]
fn a_long_prompt_of_one_tenant_does_not_keep_out_the_short_one_of_another() {
    let limits = Limits { n_pages: 64, max_context: 200, max_batch_rows: 8, ..small() };
    let mut sched = scheduler(limits);
    sched.add(A, prompt(1, 120), SeqOptions { tenant: 1, ..SeqOptions::default() }).expect("it fits");
    step(&mut sched);
    sched.add(B, prompt(2, 6), SeqOptions { tenant: 2, ..SeqOptions::default() }).expect("it fits");
    step(&mut sched);
    assert_eq!(spans(&step(&mut sched))[0], (B, 0, 6), "after one more chunk of the long one, it is its turn");
    // With one tenant, first come is first served, but for half a step where the first is much the longer.
    let mut sched = scheduler(Limits { n_pages: 64, max_context: 200, max_batch_rows: 8, ..small() });
    add(&mut sched, A, &prompt(1, 30));
    add(&mut sched, B, &prompt(2, 16));
    assert_eq!(spans(&step(&mut sched)), [(A, 0, 8)]);
    sched.cancel(B);
    add(&mut sched, C, &prompt(3, 6));
    assert_eq!(spans(&step(&mut sched)), [(A, 8, 4), (C, 0, 4)]);
}

#[test]
fn fewer_may_run_for_a_while_and_nobody_is_driven_out() {
    let mut sched = scheduler(small());
    add(&mut sched, A, &[1, 2]);
    add(&mut sched, B, &[3, 4]);
    step(&mut sched);
    sched.set_max_running(0);
    add(&mut sched, C, &[5, 6]);
    assert_eq!(step(&mut sched).rows.len(), 2);
    sched.cancel(A);
    assert_eq!(spans(&step(&mut sched)).len(), 1);
    sched.set_max_running(100);
    assert_eq!(step(&mut sched).rows.len(), 2);
}

#[test]
fn pages_from_elsewhere_are_found_by_those_who_begin_alike() {
    let mut sched = scheduler(small());
    let tokens = prompt(1, 12);
    assert_eq!(sched.import_page(0, &tokens[..8]), None, "the page before it is missing");
    let first = sched.import_page(0, &tokens[..4]).expect("there is room");
    let second = sched.import_page(0, &tokens[..8]).expect("there is room");
    assert_eq!(sched.import_page(0, &tokens[..8]), None, "it is there");
    assert_eq!((sched.n_indexed(0, &tokens), sched.n_indexed(1, &tokens)), (2, 0));
    sched.check_integrity();
    add(&mut sched, A, &tokens);
    let row = &step(&mut sched).rows[0];
    assert_eq!((row.start, row.cached, &row.pages[..2]), (8, 8, &[first, second][..]));
    // A pool in use up to its last page has no room.
    let mut sched = scheduler(Limits { n_pages: 2, ..small() });
    add(&mut sched, A, &prompt(2, 6));
    step(&mut sched);
    assert_eq!(sched.import_page(0, &tokens[..4]), None);
    sched.check_integrity();
}

#[test]
fn a_prompt_shorter_than_a_page_says_so() {
    let mut sched = scheduler(small());
    add(&mut sched, A, &prompt(1, 4));
    assert_eq!(step(&mut sched).rows[0].miss, Some(CacheMiss::TooShort));
}

#[test]
fn beside_streams_prompts_come_in_smaller_chunks() {
    let mut sched = scheduler(Limits { n_pages: 64, ..small() });
    add(&mut sched, A, &[1, 2]);
    step(&mut sched);
    sched.set_max_prefill(3);
    add(&mut sched, B, &prompt(2, 20));
    assert_eq!(spans(&step(&mut sched)), [(A, 2, 1), (B, 0, 3)]);
    sched.set_max_prefill(0);
    assert_eq!(spans(&step(&mut sched)), [(A, 3, 1)]);
    sched.cancel(A);
    assert_eq!(spans(&step(&mut sched)), [(B, 3, 16)], "nobody is held up");
}

#[test]
fn prompts_of_the_next_plan_are_announced() {
    let mut sched = scheduler(Limits { n_pages: 32, max_seqs: 2, ..small() });
    assert_eq!(sched.prompt_tokens(), 0, "nobody is there");
    add(&mut sched, A, &prompt(1, 5));
    add(&mut sched, B, &prompt(2, 40));
    add(&mut sched, C, &prompt(3, 9));
    assert_eq!(sched.prompt_tokens(), 5, "those of the next to be let in");
    step(&mut sched);
    assert_eq!(sched.prompt_tokens(), 16, "29 are left of B's, more than a step has; there is no place for C");
    step(&mut sched);
    assert_eq!(sched.prompt_tokens(), 14);
    step(&mut sched);
    assert_eq!(sched.prompt_tokens(), 0, "A and B decode");
    assert!(sched.cancel(A));
    assert_eq!(sched.prompt_tokens(), 9, "C has a place now");
}

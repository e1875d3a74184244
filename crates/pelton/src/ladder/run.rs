//! One run of one rung: a fresh engine, the whole job, its figures.
//!
//! Invariant: what is timed begins with the first prompt handed in and ends with the last answer's end; before it the
//! engine has answered one prompt that begins like none of the job's.

use std::collections::HashMap;
use std::sync::mpsc::channel;
use std::time::Instant;

use super::{LadderJob, seconds};
use crate::{
    CancelGuard, Draft, Error, Event, KvType, Llm, Model, Options, Request, SamplingParams, Speculation, Work,
};

/// What is switched on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// The unquantized weights.
    pub(super) baseline: bool,
    pub(super) prefix_reuse: bool,
    /// Answers at once.
    pub(super) together: usize,
    pub(super) kv_type: KvType,
    pub(super) speculation: bool,
}

/// What a run gave.
#[derive(Clone, Debug, Default)]
pub(super) struct Run {
    pub(super) seconds: f64,
    /// The tokens of each answer, in the order of the prompts.
    pub(super) answers: Vec<Vec<u32>>,
    pub(super) prompt_tokens: usize,
    pub(super) cached_tokens: usize,
    pub(super) steps: u64,
    pub(super) drafted_tokens: u64,
    pub(super) accepted_tokens: u64,
    pub(super) memory_bytes: usize,
    pub(super) work: Work,
}

/// Runs the job once.
pub(super) fn run(
    model: &Model,
    setting: Setting,
    options: &Options,
    job: &LadderJob,
    each: &mut dyn FnMut(usize),
) -> Result<Run, Error> {
    let longest = job.prompts.iter().map(Vec::len).max().unwrap_or(0);
    let options = Options {
        context: Some((longest + job.max_tokens).max(2)),
        max_seqs: setting.together,
        prefix_cache: setting.prefix_reuse,
        kv_type: setting.kv_type,
        speculation: match setting.speculation {
            true => options.speculation.clone(),
            false => Speculation { draft: Draft::Off, ..options.speculation.clone() },
        },
        ..options.clone()
    };
    let llm = Llm::load(model, &options, &mut |_| ())?;
    warm_up(&llm, job)?;
    let before = llm.stats();
    let begun = Instant::now();
    let mut run = ask_all(&llm, setting.together, job, each)?;
    run.seconds = seconds(begun.elapsed());
    let (before_work, after) = (llm.step_work(&before), llm.stats());
    run.steps = after.steps - before.steps;
    run.drafted_tokens = after.drafted_tokens - before.drafted_tokens;
    run.accepted_tokens = after.accepted_tokens - before.accepted_tokens;
    run.work = llm.step_work(&after);
    run.work += before_work * -1.0;
    run.memory_bytes = llm.report().memory.total_bytes();
    Ok(run)
}

/// Wakes the threads and touches the weights.
fn warm_up(llm: &Llm, job: &LadderJob) -> Result<(), Error> {
    let mut prompt = job.prompts[0].clone();
    prompt.reverse();
    let handle = llm.submit(Request::new(prompt, SamplingParams::default(), job.max_tokens.min(8)))?;
    while let Some(event) = handle.next_event() {
        failure(&event).map_or(Ok(()), Err)?;
    }
    Ok(())
}

/// Keeps `together` answers going, and as many prompts waiting, until all are answered.
fn ask_all(llm: &Llm, together: usize, job: &LadderJob, each: &mut dyn FnMut(usize)) -> Result<Run, Error> {
    let window = if together == 1 { 1 } else { 2 * together };
    let (sender, events) = channel();
    let mut run = Run { answers: vec![Vec::new(); job.prompts.len()], ..Run::default() };
    let mut waiting = job.prompts.iter().enumerate();
    let mut running: HashMap<usize, CancelGuard> = HashMap::new();
    let mut done = 0;
    loop {
        while running.len() < window {
            let Some((index, prompt)) = waiting.next() else { break };
            let request = Request::new(prompt.clone(), job.sampling.clone(), job.max_tokens);
            let events = sender.clone();
            // Once nobody listens, the run has failed already.
            let guard = llm.submit_to(request, Box::new(move |event| drop(events.send((index, event)))))?;
            running.insert(index, guard);
        }
        if running.is_empty() {
            return Ok(run);
        }
        // A sender is alive here, and an engine that ends tells its listeners.
        let (index, event) = events.recv().expect("a sender is alive");
        match event {
            Event::Token { id, .. } => run.answers[index].push(id),
            Event::Finished(finished) => {
                run.prompt_tokens += finished.timing.prompt_tokens;
                run.cached_tokens += finished.timing.cached_tokens;
                running.remove(&index);
                done += 1;
                each(done);
            }
            other => return Err(failure(&other).unwrap_or_else(|| Error::Failure("no answer came".into()))),
        }
    }
}

fn failure(event: &Event) -> Option<Error> {
    match event {
        Event::Refused(refused) => Some(refused.clone().into()),
        Event::Failed(message) => Some(Error::Failure(message.clone())),
        Event::Token { .. } | Event::Finished(_) | Event::Embedded(_) => None,
    }
}

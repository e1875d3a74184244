//! What speculation brings: the same prompts with and without, one after the other, on one engine.
//!
//! Invariants: neither run of a prompt finds pages of the other in the cache (each finds those of earlier prompts that
//! begin alike, as in any job), and they take turns in being first, so whatever else the machine does falls on both alike;
//! the answers are compared.

use std::time::Instant;

use crate::{Error, Event, Llm, Request, RequestHandle, SubmitError, Timing};

/// Prompts that are reported together.
#[derive(Clone, Debug)]
pub struct SpeculationJob {
    /// What people call them.
    pub name: String,
    /// What is asked; `speculate` and `cache_salt` are set by the measurement.
    pub requests: Vec<Request>,
}

/// What became of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct SpeculationFigure {
    /// The job's name.
    pub name: String,
    /// Requests that ran at once.
    pub batch: usize,
    /// Prompts.
    pub prompts: usize,
    /// Tokens of the answers.
    pub tokens: usize,
    /// Seconds that they took without drafts and with: from the first token to the last where one runs at a time, from
    /// the first prompt to the last token where several do.
    pub plain_seconds: f64,
    /// With drafts.
    pub seconds: f64,
    /// Drafts that were run.
    pub drafted: usize,
    /// Of these, how many were accepted.
    pub accepted: usize,
    /// Answers' steps that had drafts.
    pub steps: usize,
    /// Whether all answers were the same.
    pub same_answers: bool,
}

impl SpeculationFigure {
    /// Tokens a second without drafts.
    pub fn plain_tokens_per_s(&self) -> f64 {
        self.tokens as f64 / self.plain_seconds.max(1e-9)
    }

    /// Tokens a second with drafts.
    pub fn tokens_per_s(&self) -> f64 {
        self.tokens as f64 / self.seconds.max(1e-9)
    }

    /// One over the other.
    pub fn speedup(&self) -> f64 {
        self.plain_seconds.max(1e-9) / self.seconds.max(1e-9)
    }

    /// Adds another run of the same job.
    pub fn add(&mut self, other: &SpeculationFigure) {
        self.tokens += other.tokens;
        self.plain_seconds += other.plain_seconds;
        self.seconds += other.seconds;
        self.drafted += other.drafted;
        self.accepted += other.accepted;
        self.steps += other.steps;
        self.same_answers &= other.same_answers;
    }

    /// Drafts accepted in a step that had some.
    pub fn mean_accepted(&self) -> f64 {
        if self.steps == 0 { 0.0 } else { self.accepted as f64 / self.steps as f64 }
    }
}

/// One run of some requests.
struct Run {
    answers: Vec<Vec<u32>>,
    timings: Vec<Timing>,
    seconds: f64,
}

impl Llm {
    /// Measures a job, `batch` requests at a time; `each` is called after each of them.
    ///
    /// # Errors
    /// A request that cannot be taken, or a failure of the engine.
    pub fn measure_speculation(
        &self,
        job: &SpeculationJob,
        batch: usize,
        each: &mut dyn FnMut(),
    ) -> Result<SpeculationFigure, Error> {
        let mut figure = SpeculationFigure {
            name: job.name.clone(),
            batch,
            prompts: job.requests.len(),
            tokens: 0,
            plain_seconds: 0.0,
            seconds: 0.0,
            drafted: 0,
            accepted: 0,
            steps: 0,
            same_answers: true,
        };
        // No other measurement on this engine has the same salts.
        let salts = (1 + self.stats().computed_tokens) << 8;
        for (index, requests) in job.requests.chunks(batch.max(1)).enumerate() {
            let run = |speculate| self.run_once(requests, speculate, salts + u64::from(speculate), batch);
            let (plain, ours) = match index.is_multiple_of(2) {
                true => (run(false)?, run(true)?),
                false => {
                    let ours = run(true)?;
                    (run(false)?, ours)
                }
            };
            figure.same_answers &= plain.answers == ours.answers;
            figure.tokens += ours.answers.iter().map(Vec::len).sum::<usize>();
            figure.plain_seconds += plain.seconds;
            figure.seconds += ours.seconds;
            for timing in &ours.timings {
                figure.drafted += timing.speculation.drafted;
                figure.accepted += timing.speculation.accepted;
                figure.steps += timing.speculation.steps;
            }
            requests.iter().for_each(|_| each());
        }
        Ok(figure)
    }

    fn run_once(&self, requests: &[Request], speculate: bool, cache_salt: u64, batch: usize) -> Result<Run, Error> {
        let start = Instant::now();
        let submit = |request: &Request| self.submit(Request { speculate, cache_salt, ..request.clone() });
        let handles = requests.iter().map(submit).collect::<Result<Vec<_>, _>>()?;
        let (mut answers, mut timings) = (Vec::new(), Vec::new());
        for handle in &handles {
            let (answer, timing) = listen(handle)?;
            answers.push(answer);
            timings.push(timing);
        }
        let seconds = match batch {
            1 => timings.iter().map(|t: &Timing| t.total.saturating_sub(t.first_token).as_secs_f64()).sum(),
            _ => start.elapsed().as_secs_f64(),
        };
        Ok(Run { answers, timings, seconds })
    }
}

fn listen(handle: &RequestHandle) -> Result<(Vec<u32>, Timing), Error> {
    let mut ids = Vec::new();
    loop {
        match handle.next_event() {
            Some(Event::Token { id, .. }) => ids.push(id),
            Some(Event::Finished(finished)) => return Ok((ids, finished.timing)),
            Some(Event::Refused(refused)) => return Err(refused.into()),
            Some(Event::Failed(message)) => return Err(Error::Failure(message)),
            Some(Event::Embedded(_)) | None => return Err(SubmitError::Stopped.into()),
        }
    }
}

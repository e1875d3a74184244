//! Which rungs are kept: the first round goes up step by step, the others measure what stayed.
//!
//! Invariant: whenever a rung is left off, the rungs that had kept what it added are measured again without it.

use super::run::{Run, Setting, run};
use super::{LadderJob, LadderOptions, LadderProgress, Rung, Step};
use crate::{Error, KvType, Model};

/// A rung while it is measured.
struct Candidate {
    step: Step,
    setting: Setting,
    runs: Vec<Run>,
    /// It was slower than the rung before.
    is_left_off: bool,
}

impl Candidate {
    fn new(step: Step, setting: Setting) -> Candidate {
        Candidate { step, setting, runs: Vec::new(), is_left_off: false }
    }

    fn is_kept(&self) -> bool {
        !self.is_left_off
    }

    fn seconds(&self) -> Vec<f64> {
        let mut seconds: Vec<f64> = self.runs.iter().map(|r| r.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        seconds
    }

    fn median(&self) -> f64 {
        crate::bench::median(&self.seconds())
    }
}

/// A ladder on the way up.
pub(super) struct Climb<'a> {
    baseline: Option<&'a Model>,
    model: &'a Model,
    job: &'a LadderJob,
    options: &'a LadderOptions,
    progress: &'a mut dyn FnMut(LadderProgress),
    rungs: Vec<Candidate>,
}

impl<'a> Climb<'a> {
    pub(super) fn new(
        baseline: Option<&'a Model>,
        model: &'a Model,
        job: &'a LadderJob,
        options: &'a LadderOptions,
        progress: &'a mut dyn FnMut(LadderProgress),
    ) -> Climb<'a> {
        Climb { baseline, model, job, options, progress, rungs: Vec::new() }
    }

    pub(super) fn run(mut self) -> Result<Vec<Rung>, Error> {
        self.first_round()?;
        for round in 2..=self.options.rounds.max(1) {
            self.measure_kept(0, round)?;
        }
        while let Some(slow) = self.first_slow() {
            self.rungs[slow].is_left_off = true;
            if let Some(from) = self.rebuild(slow) {
                for round in 1..=self.options.rounds.max(1) {
                    self.measure_kept(from, round)?;
                }
            }
        }
        Ok(self.report())
    }

    /// The steps that follow the first rung.
    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.baseline.is_some() {
            steps.push(Step::Quantization);
        }
        steps.push(Step::PrefixReuse);
        steps.extend(self.options.batches.iter().filter(|&&n| n > 1).map(|&n| Step::Together(n)));
        steps.extend(self.options.kv_type.map(Step::KvType));
        if self.options.speculation {
            steps.push(Step::Speculation);
        }
        steps
    }

    /// Goes up once; what is clearly slower than what was there is left off at once.
    fn first_round(&mut self) -> Result<(), Error> {
        let setting = Setting {
            baseline: self.baseline.is_some(),
            prefix_reuse: false,
            together: 1,
            kv_type: KvType::Bf16,
            speculation: false,
        };
        let first = if setting.baseline { Step::Baseline } else { Step::Sequential };
        self.rungs.push(Candidate::new(first, setting));
        self.measure(0, 1)?;
        for step in self.steps() {
            let last = self.rungs.iter().rposition(Candidate::is_kept).expect("the first rung is kept");
            let setting = with(self.rungs[last].setting, step);
            self.rungs.push(Candidate::new(step, setting));
            let new = self.rungs.len() - 1;
            self.measure(new, 1)?;
            let factor = self.rungs[last].median() / self.rungs[new].median();
            // What is close is decided by all rounds together.
            if factor < 0.9 {
                self.rungs[new].is_left_off = true;
            }
        }
        Ok(())
    }

    fn measure(&mut self, index: usize, round: usize) -> Result<(), Error> {
        let rung = &self.rungs[index];
        let (name, items) = (rung.step.name(), self.job.prompts.len());
        let model = match (rung.setting.baseline, self.baseline) {
            (true, Some(baseline)) => baseline,
            _ => self.model,
        };
        let progress = &mut *self.progress;
        progress(LadderProgress { round, rung: name.clone(), done: 0, items });
        let measured = run(model, rung.setting, &self.options.options, self.job, &mut |done| {
            progress(LadderProgress { round, rung: name.clone(), done, items });
        })?;
        self.rungs[index].runs.push(measured);
        Ok(())
    }

    /// Measures the kept rungs from `from` on, in turn.
    fn measure_kept(&mut self, from: usize, round: usize) -> Result<(), Error> {
        for index in from..self.rungs.len() {
            if self.rungs[index].is_kept() {
                self.measure(index, round)?;
            }
        }
        Ok(())
    }

    /// The kept rung below.
    fn previous(&self, index: usize) -> &Candidate {
        self.rungs[..index].iter().rfind(|r| r.is_kept()).expect("the first rung is kept")
    }

    /// The lowest kept rung that is no faster than the one below it.
    fn first_slow(&self) -> Option<usize> {
        (1..self.rungs.len()).find(|&i| self.rungs[i].is_kept() && self.rungs[i].median() >= self.previous(i).median())
    }

    /// Takes what a rung that was left off had added out of the rungs above. Gives the first rung that has to be measured
    /// again: the one that the changed ones are compared with.
    fn rebuild(&mut self, left_off: usize) -> Option<usize> {
        let mut setting = self.previous(left_off).setting;
        let mut changed = None;
        for index in left_off + 1..self.rungs.len() {
            let rung = &mut self.rungs[index];
            if !rung.is_kept() {
                continue;
            }
            setting = with(setting, rung.step);
            if rung.setting != setting {
                rung.setting = setting;
                rung.runs.clear();
                changed.get_or_insert(index);
            }
        }
        let first = changed?;
        // All from there on, and the one below, so that they are compared within the same minutes.
        let below = self.rungs[..first].iter().rposition(Candidate::is_kept).expect("the first rung is kept");
        self.rungs[below..].iter_mut().filter(|r| r.is_kept()).for_each(|r| r.runs.clear());
        Some(below)
    }

    fn report(&self) -> Vec<Rung> {
        let rung = |(index, candidate): (usize, &Candidate)| {
            let last = candidate.runs.last().expect("every rung was measured");
            let same_answers = (index > 0).then(|| {
                let before = &self.previous(index).runs.last().expect("every rung was measured").answers;
                before.iter().zip(&last.answers).filter(|(a, b)| a == b).count()
            });
            Rung {
                step: candidate.step,
                seconds: candidate.seconds(),
                items: last.answers.len(),
                tokens: last.answers.iter().map(Vec::len).sum(),
                prompt_tokens: last.prompt_tokens,
                cached_tokens: last.cached_tokens,
                steps: last.steps,
                drafted_tokens: last.drafted_tokens,
                accepted_tokens: last.accepted_tokens,
                memory_bytes: last.memory_bytes,
                work: last.work,
                same_answers,
                left_off: candidate.is_left_off.then(|| {
                    let factor = self.previous(index).median() / candidate.median();
                    format!("{factor:.2} times the speed of the rung before")
                }),
            }
        };
        self.rungs.iter().enumerate().map(rung).collect()
    }
}

/// A setting and one thing more.
fn with(setting: Setting, step: Step) -> Setting {
    match step {
        Step::Baseline | Step::Sequential => setting,
        Step::Quantization => Setting { baseline: false, ..setting },
        Step::PrefixReuse => Setting { prefix_reuse: true, ..setting },
        Step::Together(together) => Setting { together, ..setting },
        Step::KvType(kv_type) => Setting { kv_type, ..setting },
        Step::Speculation => Setting { speculation: true, ..setting },
    }
}

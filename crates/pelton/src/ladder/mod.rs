//! The ladder: one workload, every optimization switched on one after the other, and what each of them bought.
//!
//! Rung by rung: everything off (bfloat16 weights, each prompt computed anew, one at a time), quantized weights, prefix
//! reuse, several answers at once, quantized keys and values, speculation. A rung keeps what made the rungs before it
//! faster and adds one thing. All rungs are measured in turn, round after round, so that what disturbs the machine
//! disturbs all of them.
//!
//! Invariants: a rung is kept only where its median is above that of the rung before, and what is left off is said, with
//! its figures; each run of a rung starts from a model that was just loaded, with empty caches; loading is not timed.

mod base;
mod climb;
mod run;

use std::time::Duration;

use crate::bench::median;
use crate::{Ceilings, Error, KvType, Model, Options, SamplingParams, Work};

pub use base::in_bf16;
use climb::Climb;

/// What is asked: the same of every rung.
#[derive(Clone, Debug)]
pub struct LadderJob {
    /// The prompts, one for each item.
    pub prompts: Vec<Vec<u32>>,
    /// Longest answer in tokens.
    pub max_tokens: usize,
    /// How tokens are chosen; greedy, where answers are to be compared.
    pub sampling: SamplingParams,
}

/// Which rungs there are, and how they are measured.
#[derive(Clone, Debug)]
pub struct LadderOptions {
    /// Threads, instruction set and so on; what rungs change is changed over it.
    pub options: Options,
    /// Answers at once, a rung for each, ascending.
    pub batches: Vec<usize>,
    /// How keys and values are stored on the rung that quantizes them; `None` leaves it out.
    pub kv_type: Option<KvType>,
    /// Whether there is a rung with speculation.
    pub speculation: bool,
    /// Rounds that are measured; the median counts.
    pub rounds: usize,
}

/// What a rung adds to those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: the first rung, with unquantized weights.
    Baseline,
    /// Nothing: the first rung, with the model's own weights.
    Sequential,
    /// The weights as the model's files have them.
    Quantization,
    /// Pages of prompts that begin alike are computed once.
    PrefixReuse,
    /// So many answers at once.
    Together(usize),
    /// Keys and values of this type.
    KvType(KvType),
    /// Tokens are drafted, and verified several at a time.
    Speculation,
}

impl Step {
    /// What tables and JSON call the rung.
    pub fn name(self) -> String {
        match self {
            Step::Baseline => "sequential, everything off".into(),
            Step::Sequential => "sequential".into(),
            Step::Quantization => "+ quantized weights".into(),
            Step::PrefixReuse => "+ prefix reuse".into(),
            Step::Together(n) => format!("+ {n} at once"),
            Step::KvType(kv) => format!("+ {} keys and values", kv.name()),
            Step::Speculation => "+ speculation".into(),
        }
    }
}

/// One rung's figures.
#[derive(Clone, Debug)]
pub struct Rung {
    /// What it adds.
    pub step: Step,
    /// Seconds of each round, ascending.
    pub seconds: Vec<f64>,
    /// Items of a round.
    pub items: usize,
    /// Tokens generated in a round.
    pub tokens: usize,
    /// Tokens of prompts in a round, and how many of them came from the prefix cache.
    pub prompt_tokens: usize,
    /// See [`Rung::prompt_tokens`].
    pub cached_tokens: usize,
    /// Steps of a round.
    pub steps: u64,
    /// Tokens that drafters proposed in a round, and how many of them were right.
    pub drafted_tokens: u64,
    /// See [`Rung::drafted_tokens`].
    pub accepted_tokens: u64,
    /// Bytes of weights, keys, values and activations.
    pub memory_bytes: usize,
    /// Bytes and operations that a round needed at least.
    pub work: Work,
    /// Answers that are, token for token, those of the rung before; `None` on the first rung.
    pub same_answers: Option<usize>,
    /// Why it was left off, where it was: the rungs after it go without.
    pub left_off: Option<String>,
}

impl Rung {
    /// Seconds of a round: the median.
    pub fn median_seconds(&self) -> f64 {
        median(&self.seconds)
    }

    /// Items a second.
    pub fn items_per_second(&self) -> f64 {
        self.items as f64 / self.median_seconds()
    }

    /// Generated tokens a second.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.median_seconds()
    }

    /// How much of what the machine could do at best was reached, at least.
    pub fn roofline(&self, ceilings: &Ceilings) -> f64 {
        self.work.least_seconds(ceilings) / self.median_seconds()
    }
}

/// What happens while a ladder is climbed.
#[derive(Clone, Debug)]
pub struct LadderProgress {
    /// Which round, from 1.
    pub round: usize,
    /// The rung's name.
    pub rung: String,
    /// Items done.
    pub done: usize,
    /// Items of a round.
    pub items: usize,
}

/// Measures all rungs. `baseline` is the model of the first rung, with unquantized weights; without it the first rung
/// has `model`'s own.
///
/// # Errors
/// [`Error`] where a model cannot be loaded, a prompt does not fit, or an engine fails.
pub fn climb(
    baseline: Option<&Model>,
    model: &Model,
    job: &LadderJob,
    options: &LadderOptions,
    progress: &mut dyn FnMut(LadderProgress),
) -> Result<Vec<Rung>, Error> {
    if job.prompts.is_empty() {
        return Err(Error::Usage("the ladder has nothing to do: no prompts".into()));
    }
    Climb::new(baseline, model, job, options, progress).run()
}

/// The time of a round for those who wait.
pub(crate) fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64().max(1e-9)
}

#[cfg(test)]
mod tests;

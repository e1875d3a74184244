//! Measuring: workloads on a loaded model, and single kernels, each beside what the machine could do at best.
//!
//! A [`Workload`] is what the field measures: a *prefill* computes the keys and values of many tokens of one sequence
//! together; a *decode* computes one token of each of `batch` sequences a step, which share a prompt of `depth` tokens.
//! Neither schedules nor samples. Invariant: what is counted is a run after everything was warmed up, and the prompt
//! before it is never part of the time.

mod kernels;
mod ledger;
mod metered;
mod speculation;
mod steps;

use std::borrow::Borrow;

use pelton_backend::{Backend, PAGE_LEN, Placement, Reference};
use pelton_cpu::{Ceilings, Cpu};
use pelton_model::LoadProgress;

pub use kernels::{KernelFigure, KernelPlan};
pub use ledger::{Bound, Entry, Ledger, Work};
use metered::Metered;
pub use speculation::{SpeculationFigure, SpeculationJob};
use steps::{Runner, Steps};

use crate::gpu::{self, Chosen, GpuReport, Placed, Wanted};
use crate::llm::memory_needs;
use crate::{BackendChoice, Error, GpuLayers, Model, Options, available_memory};

/// Bytes that are read to measure the memory.
const READ_BUFFER: usize = 1 << 30;

/// What is done to each token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Many tokens of one sequence together.
    Prefill,
    /// One token a step.
    Decode,
}

impl Kind {
    /// The word that tables and JSON use.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Prefill => "prefill",
            Kind::Decode => "decode",
        }
    }
}

/// Something to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Prefill or decode.
    pub kind: Kind,
    /// Tokens of each sequence, at least 1.
    pub tokens: usize,
    /// Tokens that are there before.
    pub depth: usize,
    /// Sequences; 1 for a prefill.
    pub batch: usize,
}

impl Workload {
    /// Tokens of all sequences.
    pub fn all_tokens(&self) -> usize {
        self.tokens.saturating_mul(self.batch)
    }
}

/// What a workload gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// The workload.
    pub workload: Workload,
    /// Tokens a second of all sequences together, one figure a repetition, ascending.
    pub tokens_per_second: Vec<f64>,
    /// Bytes and operations of one run.
    pub work: Work,
}

impl Measurement {
    /// The median of the repetitions: the mean of the middle two where their number is even.
    pub fn median(&self) -> f64 {
        median(&self.tokens_per_second)
    }

    /// The slowest repetition.
    pub fn least(&self) -> f64 {
        self.tokens_per_second[0]
    }

    /// The fastest repetition.
    pub fn most(&self) -> f64 {
        self.tokens_per_second[self.tokens_per_second.len() - 1]
    }

    /// Tokens a second of a machine that does nothing but read what must be read, or multiply what must be.
    pub fn ceiling(&self, ceilings: &Ceilings) -> f64 {
        self.workload.all_tokens() as f64 / self.work.least_seconds(ceilings)
    }

    /// How much of the ceiling the median reaches.
    pub fn share(&self, ceilings: &Ceilings) -> f64 {
        self.median() / self.ceiling(ceilings)
    }
}

/// The median of ascending figures.
pub(crate) fn median(sorted: &[f64]) -> f64 {
    let n = sorted.len();
    if n % 2 == 1 { sorted[n / 2] } else { (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0 }
}

/// The backend of the options.
pub(crate) fn cpu(options: &Options) -> Result<Cpu, Error> {
    Ok(Cpu::new(options.cpu())?)
}

/// The same for those in a hurry: on machines with very large caches, reading looks somewhat faster than it is.
const QUICK_READ_BUFFER: usize = 1 << 28;

/// What the machine could do at best with the threads and the instruction set of `options`, measured: half a second.
///
/// # Errors
/// Where the options ask for kernels that the machine lacks.
pub fn ceilings(options: &Options) -> Result<Ceilings, Error> {
    ceilings_over(options, READ_BUFFER)
}

/// [`ceilings`], less exact, in a quarter of the time and of the memory.
///
/// # Errors
/// As [`ceilings`].
pub fn quick_ceilings(options: &Options) -> Result<Ceilings, Error> {
    ceilings_over(options, QUICK_READ_BUFFER)
}

fn ceilings_over(options: &Options, bytes: usize) -> Result<Ceilings, Error> {
    let options = match options.backend {
        BackendChoice::Cpu => options.clone(),
        // The reference is plain Rust on one thread.
        BackendChoice::Reference => Options { threads: Some(1), isa: Some("scalar".into()), ..options.clone() },
    };
    Ok(cpu(&options)?.ceilings(bytes))
}

/// A model, ready to be measured.
pub struct Bench {
    steps: Box<dyn Steps>,
    placements: Vec<Placement>,
    gpu: GpuReport,
}

impl Bench {
    /// Refuses what the model or the memory cannot hold; quick, since nothing is loaded.
    ///
    /// # Errors
    /// [`Error::Usage`] names the option and what would fit.
    pub fn check(model: &Model, options: &Options, workloads: &[Workload]) -> Result<(), Error> {
        options.check()?;
        // What a GPU takes off this machine's memory is known once it is open.
        let insists = !matches!(options.gpu_layers, GpuLayers::Auto | GpuLayers::Count(0));
        let free = available_memory().filter(|_| !insists);
        check_memory(model, options, workloads, free, &Placed::default())
    }

    /// Loads a model with room for exactly these workloads.
    ///
    /// # Errors
    /// [`Error::Usage`] where a workload is longer than the model's context or does not fit memory; [`Error`] where
    /// the model cannot be loaded.
    pub fn load(
        model: Model,
        options: &Options,
        workloads: &[Workload],
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Bench, Error> {
        let model = options.quantize(&model)?.unwrap_or(model);
        options.check()?;
        let check = |placed: &Placed| check_memory(&model, options, workloads, available_memory(), placed);
        if options.backend == BackendChoice::Reference {
            gpu::refuse_beside_reference(options)?;
            check(&Placed::default())?;
            return load_on(Reference, model, options, workloads, progress, GpuReport::default());
        }
        let wanted = wanted_on_cards(options, workloads);
        let report = match gpu::choose(&model, options, &memory_needs(&model, options)?, wanted)? {
            Chosen::Cpu(report) => report,
            Chosen::Split(split, placed) => {
                check(&placed)?;
                let report = placed.report;
                let load = || load_on(*split, &model, options, workloads, progress, report.clone());
                match gpu::attempt(options, &report, load)? {
                    Ok(bench) => return Ok(bench),
                    Err(report) => report,
                }
            }
        };
        check(&Placed::default())?;
        load_on(cpu(options)?, model, options, workloads, progress, report)
    }

    /// What the backend says of itself.
    pub fn backend(&self) -> String {
        self.steps.describe()
    }

    /// Which kernel runs each layer.
    pub fn placements(&self) -> &[Placement] {
        &self.placements
    }

    /// What is on GPUs, and why not more.
    pub fn gpu(&self) -> &GpuReport {
        &self.gpu
    }

    /// Bytes of the packed weights.
    pub fn weight_bytes(&self) -> usize {
        self.placements.iter().map(|p| p.bytes).sum()
    }

    /// Runs a workload `repeat` times after warming up; `each` is called after every run.
    ///
    /// # Errors
    /// [`Error`] where the workload is none of those that the model was loaded for.
    pub fn measure(
        &mut self,
        workload: &Workload,
        repeat: usize,
        each: &mut dyn FnMut(),
    ) -> Result<Measurement, Error> {
        let work = self.steps.work(workload)?;
        each();
        let mut tokens_per_second = Vec::with_capacity(repeat);
        for _ in 0..repeat.max(1) {
            tokens_per_second.push(workload.all_tokens() as f64 / self.steps.run(workload)?.max(1e-9));
            each();
        }
        tokens_per_second.sort_by(f64::total_cmp);
        Ok(Measurement { workload: *workload, tokens_per_second, work })
    }

    /// The ledger of a whole prefill, or of the mean decode step in the middle of the workload.
    ///
    /// # Errors
    /// As [`Bench::measure`].
    pub fn ledger(&mut self, workload: &Workload) -> Result<Ledger, Error> {
        // Once to warm up.
        self.steps.work(workload)?;
        self.steps.ledger(workload)
    }
}

fn load_on<B: Backend + 'static>(
    backend: B,
    model: impl Borrow<Model>,
    options: &Options,
    workloads: &[Workload],
    progress: &mut dyn FnMut(LoadProgress),
    gpu: GpuReport,
) -> Result<Bench, Error> {
    let mut backend = Metered::new(backend);
    let context = workloads.iter().map(|w| w.depth + w.tokens).max().unwrap_or(1);
    let decoder = {
        let files = &model.borrow().files;
        pelton_model::load(&mut backend, &files.config, &files.tensors, context, progress)?
    };
    drop(model);
    // As the engine's thread does.
    backend.bind_thread();
    let placements = decoder.placements().to_vec();
    let steps = Box::new(Runner::new(backend, decoder, workloads, options.kv_type, options.batch_rows)?);
    Ok(Bench { steps, placements, gpu })
}

/// What must fit beside a layer before a card gets it.
fn wanted_on_cards(options: &Options, workloads: &[Workload]) -> Wanted {
    let (shared, own) = steps::pages(workloads);
    let sequences = workloads.iter().map(|w| w.batch).max().unwrap_or(1);
    let context = workloads.iter().map(|w| w.depth.saturating_add(w.tokens)).max().unwrap_or(1);
    let tokens = shared.saturating_add(own).saturating_mul(PAGE_LEN);
    Wanted { tokens, context, rows: options.batch_rows.max(sequences), logit_rows: sequences }
}

/// Refuses what the model or the memory cannot hold, before anything is packed.
fn check_memory(
    model: &Model,
    options: &Options,
    workloads: &[Workload],
    free: Option<u64>,
    placed: &Placed,
) -> Result<(), Error> {
    let most = model.files.config.max_context;
    for w in workloads {
        let needed = w.depth.saturating_add(w.tokens);
        if needed > most {
            let (option, tokens) = (w.kind.option(), w.tokens);
            let depth = if w.depth > 0 { format!(" --depth {}", w.depth) } else { String::new() };
            return Err(Error::Usage(format!("{option} {tokens}{depth}: {} holds at most {most} tokens", model.name)));
        }
    }
    let needs = placed.host(memory_needs(model, options)?);
    let sequences = workloads.iter().map(|w| w.batch).max().unwrap_or(1);
    let (shared, own) = steps::pages(workloads);
    let pages = shared.saturating_add(own);
    if u32::try_from(pages).is_err() {
        return Err(Error::Usage(format!("--batch {sequences}: more pages of keys and values than can be numbered")));
    }
    let kv = needs.kv_bytes_per_token.saturating_mul(PAGE_LEN).saturating_mul(pages);
    let rows = needs.row_bytes.saturating_mul(options.batch_rows.max(sequences));
    let activations = rows.saturating_add(needs.logit_row_bytes.saturating_mul(sequences));
    let all = needs.weight_bytes.saturating_add(kv).saturating_add(activations);
    let budget = free.map_or(usize::MAX, |f| usize::try_from(f / 10 * 9).unwrap_or(usize::MAX));
    if all > budget {
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        return Err(Error::Usage(format!(
            "{} does not fit: weights {:.0} MiB + activations {:.0} MiB + KV {:.0} MiB, of {:.0} MiB that may be used; \
             choose smaller weights, a lower --depth or a smaller --batch",
            model.name,
            mib(needs.weight_bytes),
            mib(activations),
            mib(kv),
            mib(budget),
        )));
    }
    Ok(())
}

impl Kind {
    /// The option that asks for it.
    fn option(self) -> &'static str {
        match self {
            Kind::Prefill => "--prompt",
            Kind::Decode => "--generate",
        }
    }
}

#[cfg(test)]
mod tests;

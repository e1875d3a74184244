//! Finding cards, and a model's place on them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pelton_backend::Split;
use pelton_cpu::Cpu;
use pelton_cuda::{CudaBackend, CudaError, CudaOptions};

use super::plan::{Beside, Placed, Sizes, fill};
use super::{CardReport, GpuLayers, GpuReport};
use crate::memory::MemoryNeeds;
use crate::{Error, ErrorKind, Model, Options};

/// What a model runs on.
pub(crate) enum Chosen {
    /// The CPU alone, and why.
    Cpu(GpuReport),
    /// Cards, and the CPU for what is not on them.
    Split(Box<Split<CudaBackend, Cpu>>, Placed),
}

/// What a model needs on a card, whatever runs it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// Tokens whose keys and values must fit.
    pub(crate) tokens: usize,
    /// The longest sequence.
    pub(crate) context: usize,
    /// Rows of a step.
    pub(crate) rows: usize,
    /// Rows of a step with logits.
    pub(crate) logit_rows: usize,
}

impl Options {
    /// Whether a GPU was asked for in so many words, and by which.
    pub(crate) fn gpu_demand(&self) -> Option<String> {
        match self.gpu_layers {
            GpuLayers::Auto | GpuLayers::Count(0) => self.require.gpu.then(|| "--require gpu".to_string()),
            asked => Some(format!("--gpu-layers {asked}")),
        }
    }
}

/// Finds the cards and shares the model between them and the CPU.
///
/// # Errors
/// [`Error::Usage`] where a GPU was asked for in so many words and there is none, or not room enough.
pub(crate) fn choose(model: &Model, options: &Options, needs: &MemoryNeeds, wanted: Wanted) -> Result<Chosen, Error> {
    let n_layers = model.files.config.n_layers;
    let demand = options.gpu_demand();
    let none = |reason: Option<String>| Ok(Chosen::Cpu(GpuReport::none(n_layers, reason)));
    if options.gpu_layers == GpuLayers::Count(0) {
        return if demand.is_some() { Err(contradiction("--gpu-layers 0")) } else { none(None) };
    }
    let cards = match open_cards(options) {
        Ok(cards) => cards,
        Err(missing) => {
            let Some(demand) = demand else { return none(Some(missing.short)) };
            return Err(Error::Usage(format!("{demand}: {}", missing.long)));
        }
    };
    let sizes = Sizes::of(model);
    let q_dim = model.files.config.q_dim();
    let scratch = pelton_cuda::scratch_bytes(wanted.rows, q_dim, wanted.context);
    let beside = Beside {
        kv_of_layer: wanted.tokens.saturating_mul(needs.kv_bytes_per_token / n_layers.max(1)),
        activations: needs.row_bytes.saturating_mul(wanted.rows).saturating_add(scratch),
        logits: needs.logit_row_bytes.saturating_mul(wanted.logit_rows),
    };
    let rooms: Vec<usize> = cards.iter().map(|card| card.budget).collect();
    let filled = fill(&rooms, &sizes, beside, options.gpu_layers);
    let on_cards = filled.on_cards();
    let is_granted = match options.gpu_layers {
        GpuLayers::Auto => on_cards > 0,
        GpuLayers::All => filled.plan.head_on_card,
        GpuLayers::Count(n) => on_cards == n.min(n_layers) && (n < n_layers || filled.plan.head_on_card),
    };
    if !is_granted {
        let room: usize = rooms.iter().sum();
        let numbers = format!(
            "{} more are needed beside the {} that may be used on {}",
            mib(filled.short),
            mib(room),
            names(&cards)
        );
        let Some(demand) = demand else {
            return none(Some(format!("not one layer fits: {numbers}")));
        };
        let advice = match on_cards {
            0 => {
                "use a shorter --context, fewer --batch-rows, a smaller --kv-type or a smaller quantization".to_string()
            }
            n => format!("--gpu-layers {n} fits, or use a shorter --context or a smaller --kv-type"),
        };
        return Err(Error::Usage(format!("{demand}: {on_cards} of {n_layers} layers fit, {numbers}; {advice}")));
    }
    let asked_for_less = matches!(options.gpu_layers, GpuLayers::Count(n) if n < n_layers);
    let reason = (filled.short > 0 && !asked_for_less).then(|| format!("{} short", mib(filled.short)));
    split(options, cards, filled, &sizes, needs, reason, scratch)
}

/// Loads on cards. The inner error is the report of a model that goes to the CPU instead: a card failed, and nobody
/// insisted on one.
///
/// # Errors
/// What `load` says, where somebody did.
pub(crate) fn attempt<T>(
    options: &Options,
    report: &GpuReport,
    load: impl FnOnce() -> Result<T, Error>,
) -> Result<Result<T, GpuReport>, Error> {
    // A card that fails while kernels are probed has no other way to say so than a panic.
    let error = match catch_unwind(AssertUnwindSafe(load)) {
        Ok(Ok(loaded)) => return Ok(Ok(loaded)),
        Ok(Err(e)) => e,
        Err(panic) => Error::Failure(pelton_engine::panic_text(&*panic)),
    };
    let names: Vec<&str> = report.cards.iter().map(|card| card.name.as_str()).collect();
    let failed = format!("loading on {} failed: {error}", names.join(", "));
    match options.gpu_demand() {
        Some(demand) if error.kind() == ErrorKind::Usage => Err(Error::Usage(format!("{demand}: {error}"))),
        Some(demand) => {
            let text = format!("{demand}: {failed}; try fewer layers, or --gpu-layers 0 to run on the CPU");
            Err(Error::Failure(text))
        }
        None => Ok(Err(GpuReport::none(report.n_layers, Some(failed)))),
    }
}

/// Refuses a GPU beside the reference.
///
/// # Errors
/// [`Error::Usage`].
pub(crate) fn refuse_beside_reference(options: &Options) -> Result<(), Error> {
    match options.gpu_demand() {
        Some(_) => Err(contradiction("--reference")),
        None => Ok(()),
    }
}

fn contradiction(with: &str) -> Error {
    Error::Usage(format!("{with} runs everything on the CPU, and a GPU is asked for: leave one of the two out"))
}

/// The split itself, of the cards that have layers.
fn split(
    options: &Options,
    cards: Vec<Card>,
    mut filled: super::plan::Filled,
    sizes: &Sizes,
    needs: &MemoryNeeds,
    reason: Option<String>,
    scratch: usize,
) -> Result<Chosen, Error> {
    let (cards, on_cards): (Vec<Card>, Vec<usize>) =
        cards.into_iter().zip(filled.plan.on_cards).filter(|(_, n)| *n > 0).unzip();
    filled.plan.on_cards = on_cards;
    let (n_layers, head_on_card) = (filled.plan.n_layers, filled.plan.head_on_card);
    let rooms: Vec<(String, usize)> = cards.iter().map(|c| (c.backend.info().name.clone(), c.budget)).collect();
    let report = GpuReport { cards: Vec::new(), n_layers, head_on_card, reason };
    let mut placed = Placed::new(&filled, sizes, needs, &rooms, report, scratch);
    let ranges = filled.plan.ranges();
    let reports = cards.iter().zip(&placed.cards).zip(ranges).map(|((card, needs), layers)| CardReport {
        index: card.backend.info().index,
        name: card.backend.info().name.clone(),
        kernels: format!("{}, {}", card.backend.info().arch(), card.backend.kernels()),
        layers,
        weight_bytes: needs.weight_bytes,
        kv_bytes: 0,
        budget_bytes: card.budget,
    });
    placed.report.cards = reports.collect();
    let backends = cards.into_iter().map(|card| card.backend).collect();
    let split = Split::new(backends, Cpu::new(options.cpu())?, filled.plan);
    Ok(Chosen::Split(Box::new(split), placed))
}

/// An open card, and the bytes that may be used of it.
struct Card {
    backend: CudaBackend,
    budget: usize,
}

fn names(cards: &[Card]) -> String {
    cards.iter().map(|c| c.backend.info().name.as_str()).collect::<Vec<_>>().join(", ")
}

/// Why there is no card: in a few words, and with what to do.
pub(crate) struct Missing {
    pub(crate) short: String,
    pub(crate) long: String,
}

impl Missing {
    pub(crate) fn of(error: &CudaError) -> Missing {
        let text = error.to_string();
        let (short, advice) = match error {
            CudaError::NoDriver { library, .. } => (format!("no NVIDIA driver ({library} cannot be loaded)"), ""),
            CudaError::OldDriver { .. } => (text.clone(), "update the driver"),
            CudaError::NoDevice => (text.clone(), "see whether nvidia-smi lists one, and CUDA_VISIBLE_DEVICES"),
            CudaError::NoKernels { arch, .. } => (
                format!("no kernels for {arch} in this build"),
                "use a release build, build with PELTON_CUDA_KERNELS, or install NVRTC (the CUDA toolkit's compiler)",
            ),
            CudaError::OldDevice { .. } | CudaError::NoSuchDevice { .. } => (text.clone(), ""),
            CudaError::Driver { .. } => (text.clone(), "see whether nvidia-smi works; a reboot helps after a fault"),
            CudaError::OutOfMemory { .. } => (text.clone(), "see with nvidia-smi what else uses the card"),
        };
        let long = if advice.is_empty() { text } else { format!("{text}; {advice}") };
        let long = if long.contains("run on the CPU") { long } else { format!("{long}, or run with --gpu-layers 0") };
        Missing { short, long }
    }
}

/// Opens every card that kernels run on.
fn open_cards(options: &Options) -> Result<Vec<Card>, Missing> {
    let driver = options.gpu_driver.as_deref();
    let found = pelton_cuda::devices(driver).map_err(|e| Missing::of(&e))?;
    let (mut cards, mut missing) = (Vec::new(), Missing::of(&CudaError::NoDevice));
    for info in found {
        let (device, driver, early_launches) = (info.index, options.gpu_driver.clone(), options.gpu_early_launches);
        let cuda = CudaOptions { device, driver, early_launches, ..CudaOptions::default() };
        match CudaBackend::open(&cuda).and_then(|backend| Ok((backend.memory()?.1, backend))) {
            // A tenth stays free: for the driver, other programs and memory that lies in pieces.
            Ok((free, backend)) => cards.push(Card { backend, budget: free / 10 * 9 }),
            Err(e) => missing = Missing::of(&e),
        }
    }
    if cards.is_empty() { Err(missing) } else { Ok(cards) }
}

fn mib(bytes: usize) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 10.0 { format!("{mib:.1} MiB") } else { format!("{mib:.0} MiB") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_a_short_form_and_a_way_out() {
        let errors = [
            CudaError::NoDriver { library: "libcuda.so.1".into(), reason: "not found".into() },
            CudaError::OldDriver { library: "libcuda.so.1".into(), symbol: "cuX".into() },
            CudaError::NoDevice,
            CudaError::OldDevice { name: "GTX".into(), major: 7, minor: 5 },
            CudaError::NoKernels { arch: "sm_86".into(), reason: "no compiler".into() },
        ];
        for error in errors {
            let missing = Missing::of(&error);
            assert!(
                missing.long.contains("--gpu-layers 0") || missing.long.contains("run on the CPU"),
                "{}",
                missing.long
            );
            assert!(missing.short.len() < 120 && !missing.short.is_empty(), "{}", missing.short);
        }
    }
}

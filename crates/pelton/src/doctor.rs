//! What this machine has, what Pelton makes of it, and whether decoding is as fast as the machine allows.
//!
//! Invariants: everything is measured here and now, nothing is looked up in a table of machines; what cannot be measured
//! is a sentence that says why, and examining a machine without a GPU, or with a broken one, is no error.

use std::path::Path;

use pelton_cpu::{Cores, Cpu};
use pelton_cuda::{CudaBackend, CudaOptions, DeviceInfo};

use crate::available::total_memory;
use crate::gpu::Missing;
use crate::{
    Bench, Bound, Ceilings, Error, GpuReport, Kind, Ledger, Model, Options, Workload, available_memory, quick_ceilings,
};

/// The processor, and the kernels that were chosen for it.
#[derive(Clone, Debug, PartialEq)]
pub struct CpuState {
    /// Cores that this process may use.
    pub cores: usize,
    /// Hardware threads of them.
    pub processors: usize,
    /// Threads that decode.
    pub threads: usize,
    /// The kernels, in the backend's words.
    pub kernels: String,
    /// What it can do at best.
    pub ceilings: Ceilings,
}

/// A card, and whether Pelton can use it.
#[derive(Clone, Debug, PartialEq)]
pub struct CardState {
    /// What the driver says of it.
    pub info: DeviceInfo,
    /// Bytes free on it; where its kernels come from; bytes a second that its memory moves, measured. Or why it cannot be
    /// used.
    pub runs: Result<(usize, String, f64), String>,
}

/// The driver and its cards.
#[derive(Clone, Debug, PartialEq)]
pub enum GpuState {
    /// No driver, or one without a card: why.
    None(String),
    /// What the driver lists, at least one.
    Cards(Vec<CardState>),
}

/// How fast a model decodes, beside what the machine allows.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodeState {
    /// The model.
    pub model: String,
    /// What it ran on.
    pub backend: String,
    /// Where its layers are.
    pub gpu: GpuReport,
    /// Tokens a second, one sequence.
    pub tokens_per_second: f64,
    /// Those of a machine that does nothing but read the weights, or multiply them.
    pub ceiling: f64,
    /// Why it is slower than it should be, the likeliest cause first. Empty where it is not.
    pub reasons: Vec<String>,
}

impl DecodeState {
    /// How much of the ceiling is reached.
    pub fn share(&self) -> f64 {
        self.tokens_per_second / self.ceiling.max(1e-9)
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Doctor {
    /// The processor.
    pub cpu: CpuState,
    /// Bytes of memory that this process may take, and could take on an idle machine; where the system says.
    pub memory: Option<(u64, u64)>,
    /// GPUs.
    pub gpu: GpuState,
    /// Decoding, or why it could not be measured.
    pub decode: Result<DecodeState, String>,
}

/// Decoding that reaches less is worth a word.
const FAIR_SHARE: f64 = 0.6;
/// Tokens that are decoded for the measurement.
const TOKENS: usize = 48;

impl Doctor {
    /// Looks at the machine, and runs `model` for a moment. `each` hears what is done next.
    ///
    /// # Errors
    /// Where the options ask for kernels that the machine lacks.
    pub fn examine(model: Model, options: &Options, each: &mut dyn FnMut(&str)) -> Result<Doctor, Error> {
        options.check()?;
        each("the processor's limits");
        let ceilings = quick_ceilings(options)?;
        let cpu = Cpu::new(options.cpu())?;
        let cores = Cores::detect();
        let cpu = CpuState {
            cores: cores.physical(),
            processors: cores.logical(),
            threads: cpu.threads(),
            kernels: pelton_backend::Backend::describe(&cpu),
            ceilings,
        };
        each("the driver and its cards");
        let gpu = gpus(options.gpu_driver.as_deref());
        each("decoding");
        let decode = decode(model, options, &cpu, &gpu).map_err(|e| e.to_string());
        Ok(Doctor { cpu, memory: available_memory().zip(total_memory()), gpu, decode })
    }
}

fn gpus(driver: Option<&Path>) -> GpuState {
    match pelton_cuda::devices(driver) {
        Err(e) => GpuState::None(Missing::of(&e).long),
        Ok(found) if found.is_empty() => GpuState::None("the NVIDIA driver reports no GPU".into()),
        Ok(found) => GpuState::Cards(found.into_iter().map(|info| card(info, driver)).collect()),
    }
}

fn card(info: DeviceInfo, driver: Option<&Path>) -> CardState {
    let options = CudaOptions { device: info.index, driver: driver.map(Path::to_path_buf), ..CudaOptions::default() };
    let examine = || {
        let mut card = CudaBackend::open(&options)?;
        let (_, free) = card.memory()?;
        let bandwidth = card.measure_bandwidth()?;
        Ok((free, card.kernels().to_string(), bandwidth))
    };
    CardState { info, runs: examine().map_err(|e| Missing::of(&e).long) }
}

fn decode(model: Model, options: &Options, cpu: &CpuState, gpu: &GpuState) -> Result<DecodeState, Error> {
    let name = model.name.clone();
    let tokens = TOKENS.min(model.files.config.max_context.saturating_sub(1)).max(1);
    let work = Workload { kind: Kind::Decode, tokens, depth: 0, batch: 1 };
    let mut bench = Bench::load(model, options, &[work], &mut |_| ())?;
    let measured = bench.measure(&work, 3, &mut || ())?;
    let ledger = bench.ledger(&work)?;
    let report = bench.gpu().clone();
    let on_cards: usize = report.cards.iter().map(|card| card.weight_bytes).sum();
    // Weights on cards are read at the cards' speed, one card after the other, then those here.
    let here = (measured.work.memory_bytes / tokens as f64 - on_cards as f64).max(0.0);
    let on_cards_seconds: f64 = report.cards.iter().map(|c| c.weight_bytes as f64 / bandwidth(gpu, c.index)).sum();
    let ceiling = match report.cards.is_empty() {
        true => measured.ceiling(&cpu.ceilings),
        false => 1.0 / (on_cards_seconds + here / 1e9 / cpu.ceilings.read_gb_per_s).max(1e-9),
    };
    let tokens_per_second = measured.median();
    let seen = Seen {
        share: tokens_per_second / ceiling.max(1e-9),
        bound: measured.work.bound(&cpu.ceilings),
        ledger: report.cards.is_empty().then_some(&ledger),
        step_bytes: measured.work.memory_bytes / tokens as f64,
        off_card: if report.cards.is_empty() { None } else { report.reason.clone() },
        is_simulated: report.cards.iter().any(|card| card.kernels.contains("simulated")),
        load: load(),
        cpu,
    };
    let reasons = reasons(&seen);
    let backend = bench.backend();
    Ok(DecodeState { model: name, backend, gpu: report, tokens_per_second, ceiling, reasons })
}

/// What was measured of a card, bytes a second.
fn bandwidth(gpu: &GpuState, index: usize) -> f64 {
    let GpuState::Cards(cards) = gpu else { return f64::INFINITY };
    let found = cards.iter().find(|card| card.info.index == index).and_then(|card| card.runs.as_ref().ok());
    found.map_or(f64::INFINITY, |(_, _, bandwidth)| *bandwidth)
}

/// Programs that want a processor, on average over the last minute; where the system says.
fn load() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

/// What is known about a decoding run.
struct Seen<'a> {
    share: f64,
    bound: Bound,
    /// Where a step's time goes; not known on a GPU, whose work is only waited for at the end.
    ledger: Option<&'a Ledger>,
    /// Bytes of weights of a step.
    step_bytes: f64,
    /// Why not all layers are on cards.
    off_card: Option<String>,
    is_simulated: bool,
    load: Option<f64>,
    cpu: &'a CpuState,
}

/// Why decoding is slower than memory allows, the likeliest cause first.
fn reasons(seen: &Seen<'_>) -> Vec<String> {
    let mut reasons = Vec::new();
    if seen.share >= FAIR_SHARE {
        return reasons;
    }
    if seen.is_simulated {
        reasons.push("the GPU is the simulator: its kernels run on the processor, and times mean nothing".into());
    }
    if let Some(reason) = &seen.off_card {
        reasons.push(format!("a part of the model is on the CPU ({reason})"));
    }
    let cpu = seen.cpu;
    if let Some(load) = seen.load.filter(|&load| load > cpu.processors as f64 + 1.0) {
        reasons.push(format!(
            "other programs want the processors, too (load {load:.1} on {} of them): measure on an idle machine",
            cpu.processors
        ));
    }
    if cpu.threads < cpu.cores {
        reasons.push(format!("{} of {} cores are used (--threads, or a CPU quota)", cpu.threads, cpu.cores));
    }
    if let Some(ledger) = seen.ledger {
        let total = ledger.seconds.max(1e-12);
        let seconds = |is: &dyn Fn(&str) -> bool| -> f64 {
            ledger.entries.iter().filter(|e| is(&e.op)).map(|e| e.seconds).sum::<f64>() / total
        };
        let weights = seconds(&|op| op.starts_with("linear") || op == "moe");
        let most = ledger
            .entries
            .iter()
            .filter(|e| !e.op.starts_with("linear"))
            .max_by(|a, b| a.seconds.total_cmp(&b.seconds));
        if let Some(most) = most.filter(|_| weights < 0.75) {
            reasons.push(format!(
                "{:.0} % of a step goes to other things than weights, {:.0} % to {}: the model is small ({:.1} MiB a \
                 token), and what each op costs besides counts",
                (1.0 - weights) * 100.0,
                most.seconds / total * 100.0,
                most.op,
                seen.step_bytes / f64::from(1 << 20),
            ));
        }
        if seen.bound == Bound::Arithmetic {
            reasons.push(format!("the arithmetic of {} is the limit, not memory", cpu.kernels));
        }
    }
    if reasons.is_empty() {
        reasons.push("no cause that this command knows; `pelton bench --profile` shows where the time goes".into());
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Entry, Work};

    fn cpu(threads: usize) -> CpuState {
        let ceilings = Ceilings {
            read_gb_per_s: 10.0,
            int8_tera_ops: 1.0,
            int8_unit: "int8",
            bf16_tera_ops: None,
            f32_tera_ops: 1.0,
            f32_unit: "f32",
        };
        CpuState { cores: 4, processors: 8, threads, kernels: "cpu scalar".into(), ceilings }
    }

    fn entry(op: &str, seconds: f64) -> Entry {
        Entry { op: op.into(), calls: 1, seconds, work: Work::default() }
    }

    fn seen<'a>(share: f64, cpu: &'a CpuState, ledger: Option<&'a Ledger>) -> Seen<'a> {
        let (bound, step_bytes) = (Bound::Memory, 1e6);
        Seen { share, bound, ledger, step_bytes, off_card: None, is_simulated: false, load: Some(0.5), cpu }
    }

    #[test]
    fn who_reaches_the_share_hears_no_reasons() {
        assert_eq!(reasons(&seen(0.7, &cpu(1), None)), [""; 0]);
    }

    #[test]
    fn each_cause_is_named() {
        let idle = cpu(4);
        let text = |seen: &Seen<'_>| reasons(seen).join("\n");
        assert!(text(&seen(0.3, &idle, None)).contains("bench --profile"));
        assert!(text(&seen(0.3, &cpu(2), None)).contains("2 of 4 cores"));
        let busy = Seen { load: Some(16.0), ..seen(0.3, &idle, None) };
        assert!(text(&busy).contains("load 16.0 on 8"));
        let ledger =
            Ledger { seconds: 10.0, entries: vec![entry("linear ffn_down", 4.0), entry("paged_attention", 6.0)] };
        let small = text(&seen(0.3, &idle, Some(&ledger)));
        assert!(small.contains("60 % of a step") && small.contains("60 % to paged_attention"), "{small}");
        let bound = Seen { bound: Bound::Arithmetic, ..seen(0.3, &idle, Some(&ledger)) };
        assert!(text(&bound).contains("arithmetic"));
        let split = Seen { off_card: Some("512 MiB short".into()), is_simulated: true, ..seen(0.3, &idle, None) };
        assert!(text(&split).contains("512 MiB short") && text(&split).contains("simulator"));
    }
}

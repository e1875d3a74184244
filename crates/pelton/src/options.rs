//! What callers ask for, before anything is resolved.

use std::path::PathBuf;

use pelton_backend::KvType;
use pelton_cpu::CpuOptions;
use pelton_formats::GenerationDefaults;
use pelton_sample::SamplingParams;

use crate::{Error, GpuLayers, Model, Quantization, Speculation};

/// Which backend runs the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendChoice {
    /// The kernels of the CPU, and those of GPUs for the layers that [`Options::gpu_layers`] gives them.
    #[default]
    Cpu,
    /// The scalar reference: slow and exact.
    Reference,
}

/// What must be granted in full: everything else may shrink to what memory allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Require {
    /// A context of so many tokens.
    pub context: Option<usize>,
    /// So many sequences at once, each as long as the context.
    pub seqs: Option<usize>,
    /// A GPU, for as many layers as fit but at least one.
    pub gpu: bool,
}

impl Require {
    /// Reads `ctx=TOKENS,seqs=NUMBER,gpu`, any of them.
    ///
    /// # Errors
    /// [`Error::Usage`] names what cannot be read.
    pub fn parse(text: &str) -> Result<Require, Error> {
        let mut require = Require::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            if part == "gpu" {
                require.gpu = true;
                continue;
            }
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let number = value.trim().parse::<usize>().ok().filter(|&n| n > 0 && n <= u32::MAX as usize);
            let (slot, Some(number)) = (
                match name.trim() {
                    "ctx" | "context" => &mut require.context,
                    "seqs" => &mut require.seqs,
                    _ => {
                        return Err(Error::Usage(format!("--require {part}: expected ctx=TOKENS, seqs=NUMBER or gpu")));
                    }
                },
                number,
            ) else {
                return Err(Error::Usage(format!("--require {part}: expected a whole number of at least 1")));
            };
            *slot = Some(number);
        }
        Ok(require)
    }
}

/// How to load and run a model. `Default` is what a person at a keyboard wants: one sequence, the machine's cores.
#[derive(Clone, Debug)]
pub struct Options {
    /// Backend.
    pub backend: BackendChoice,
    /// How many layers go to GPUs.
    pub gpu_layers: GpuLayers,
    /// The CUDA driver's library, where it is not the system's.
    pub gpu_driver: Option<PathBuf>,
    /// Launch kernels on GPUs before those before them have ended, where a card can (programmatic dependent launch). The
    /// same bits; off until it has been seen on hardware.
    pub gpu_early_launches: bool,
    /// Threads of decoding steps; `None` is one for each core that the process may use.
    pub threads: Option<usize>,
    /// Threads of steps that read prompts (more than 16 rows); `None` is as many as for decoding.
    pub batch_threads: Option<usize>,
    /// Instruction set of the kernels, as [`pelton_cpu::Isa::best_at_most`] names them; `None` is the best that the machine
    /// has.
    pub isa: Option<String>,
    /// Longest sequence in tokens; `None` is the model's, up to [`Options::DEFAULT_CONTEXT`] and what memory allows.
    pub context: Option<usize>,
    /// Sequences that run at once, where memory allows ([`MemoryPlan::max_seqs`](crate::MemoryPlan::max_seqs)).
    pub max_seqs: usize,
    /// Rows of one step: how many prompt tokens are computed together. At least [`Options::max_seqs`] are.
    pub batch_rows: usize,
    /// Answers that may wait; beyond that requests are refused
    /// ([`SubmitError::QueueFull`](crate::SubmitError::QueueFull)).
    pub max_waiting: usize,
    /// What 16- and 32-bit weights become while they are loaded; `None` leaves them.
    pub quantization: Option<Quantization>,
    /// How keys and values are stored.
    pub kv_type: KvType,
    /// Cut long prompts so that running streams hardly feel them: for those who serve people. Prompts themselves then
    /// take longer while others stream.
    pub steady_streams: bool,
    /// Keep pages of finished sequences for prompts that begin alike.
    pub prefix_cache: bool,
    /// A folder where these pages are kept, too, for the next start.
    pub prefix_cache_dir: Option<PathBuf>,
    /// Bytes that it may hold.
    pub prefix_cache_bytes: u64,
    /// Bytes that weights, KV pages and activations may take together; `None` is what is free.
    pub memory: Option<u64>,
    /// What must be granted, or the model is not run.
    pub require: Require,
    /// A folder where packed weights are kept, to be mapped by the next start; `None` packs anew each time.
    pub cache_packed: Option<PathBuf>,
    /// Who proposes tokens ahead, for the model to check several at once.
    pub speculation: Speculation,
}

impl Options {
    /// The context where neither the caller nor the model asks for less.
    pub const DEFAULT_CONTEXT: usize = 16_384;

    /// What a folder of prefix pages may hold where the caller does not say.
    pub const DEFAULT_PREFIX_CACHE_BYTES: u64 = 4 << 30;

    /// The part that the CPU backend sees.
    pub(crate) fn cpu(&self) -> CpuOptions {
        CpuOptions { threads: self.threads, batch_threads: self.batch_threads, isa: self.isa.clone() }
    }

    /// The model with its weights marked to be quantized, where that is asked for.
    ///
    /// # Errors
    /// As [`Model::quantized`].
    pub(crate) fn quantize(&self, model: &Model) -> Result<Option<Model>, Error> {
        let threads = || self.threads.or_else(|| std::thread::available_parallelism().ok().map(usize::from));
        self.quantization.map(|q| model.quantized(q, threads().unwrap_or(1))).transpose()
    }

    /// Refuses counts of nothing, before anything is loaded.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let counts = [
            ("threads", self.threads.unwrap_or(1)),
            ("batch_threads", self.batch_threads.unwrap_or(1)),
            ("max_seqs", self.max_seqs),
            ("batch_rows", self.batch_rows),
            ("max_waiting", self.max_waiting),
        ];
        match counts.iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(Error::Usage(format!("{name} is 0; expected at least 1"))),
            None => Ok(()),
        }
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            backend: BackendChoice::Cpu,
            gpu_layers: GpuLayers::Auto,
            gpu_driver: None,
            gpu_early_launches: false,
            threads: None,
            batch_threads: None,
            isa: None,
            context: None,
            max_seqs: 1,
            batch_rows: 512,
            max_waiting: 1 << 20,
            quantization: None,
            kv_type: KvType::Bf16,
            steady_streams: false,
            prefix_cache: true,
            prefix_cache_dir: None,
            prefix_cache_bytes: Options::DEFAULT_PREFIX_CACHE_BYTES,
            memory: None,
            require: Require::default(),
            cache_packed: None,
            speculation: Speculation::default(),
        }
    }
}

/// Sampling parameters that a caller set; the others come from the model, then from the defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplingOverrides {
    /// 0 is greedy.
    pub temperature: Option<f32>,
    /// 0 is off.
    pub top_k: Option<usize>,
    /// 1 is off.
    pub top_p: Option<f32>,
    /// 0 is off.
    pub min_p: Option<f32>,
    /// 1 is off.
    pub repetition_penalty: Option<f32>,
    /// 0 is off.
    pub presence_penalty: Option<f32>,
    /// 0 is off.
    pub frequency_penalty: Option<f32>,
    /// Added to single logits.
    pub logit_bias: Vec<(u32, f32)>,
    /// The same seed gives the same output.
    pub seed: Option<u64>,
}

impl SamplingOverrides {
    /// These, over what the model's files recommend, over greedy decoding.
    pub fn resolve(&self, model: &GenerationDefaults) -> SamplingParams {
        let off = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let recommended = match model.do_sample {
            Some(false) => Some(0.0),
            _ => model.temperature.or(model.do_sample.map(|_| 1.0)),
        };
        let pick = |own: Option<f32>, theirs: Option<f32>, default| own.or(theirs).unwrap_or(default);
        SamplingParams {
            temperature: pick(self.temperature, recommended, off.temperature),
            top_k: self.top_k.or(model.top_k).unwrap_or(off.top_k),
            top_p: pick(self.top_p, model.top_p, off.top_p),
            min_p: pick(self.min_p, model.min_p, off.min_p),
            repetition_penalty: pick(self.repetition_penalty, model.repetition_penalty, off.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(off.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(off.frequency_penalty),
            logit_bias: self.logit_bias.clone(),
            seed: self.seed.or(off.seed),
            ..off
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_are_read_or_refused_by_name() {
        let both = Require { context: Some(32768), seqs: Some(8), gpu: false };
        assert_eq!(Require::parse("ctx=32768,seqs=8").unwrap(), both);
        assert_eq!(Require::parse(" seqs=8 , context=32768 ").unwrap(), both);
        assert_eq!(Require::parse("").unwrap(), Require::default());
        assert_eq!(Require::parse("gpu, ctx=32768,seqs=8").unwrap(), Require { gpu: true, ..both });
        for bad in ["ctx", "ctx=", "ctx=0", "ctx=-1", "gpu=1", "seqs=many", "ctx=99999999999999999999"] {
            assert!(Require::parse(bad).unwrap_err().to_string().contains(bad), "{bad}");
        }
    }

    #[test]
    fn callers_come_before_files_and_files_before_defaults() {
        let model = GenerationDefaults { temperature: Some(0.7), top_p: Some(0.8), ..Default::default() };
        let own = SamplingOverrides { top_p: Some(0.5), seed: Some(7), ..Default::default() };
        let params = own.resolve(&model);
        assert_eq!((params.temperature, params.top_p, params.seed), (0.7, 0.5, Some(7)));
        let greedy = GenerationDefaults { do_sample: Some(false), temperature: Some(0.7), ..Default::default() };
        assert_eq!(SamplingOverrides::default().resolve(&greedy).temperature, 0.0);
        assert_eq!(SamplingOverrides::default().resolve(&GenerationDefaults::default()).temperature, 0.0);
    }
}

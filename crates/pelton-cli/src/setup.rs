//! From arguments and environment to an opened model and a running engine.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pelton::route::load_both;
use pelton::{
    BackendChoice, Draft, KvType, Llm, Model, ModelRef, ModelText, Options, Quantization, Require, SamplingOverrides,
    Speculation, Store, StoredPack, packed_folder,
};

use crate::Usage;
use crate::args::{ComputeArgs, DraftArgs, EngineArgs, KvTypeArg, QuantizationArg, SamplingArgs};
use crate::environment::Environment;
use crate::progress::Progress;
use crate::term;

/// What all commands share.
pub(crate) struct Context {
    pub environment: Environment,
    pub quiet: bool,
}

impl Context {
    pub(crate) fn new(environment: Environment, quiet: bool) -> Context {
        Context { environment, quiet }
    }

    /// Tells people something, unless they asked for quiet.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            term::note(text);
        }
    }

    /// The model store.
    pub(crate) fn store(&self) -> anyhow::Result<Store> {
        match &self.environment.store {
            Ok(options) => Ok(Store::new(options.clone())?),
            Err(e) => Err(anyhow::anyhow!("{e}")),
        }
    }

    /// Where packed weights are kept.
    pub(crate) fn packed_folder(&self) -> anyhow::Result<PathBuf> {
        Ok(packed_folder(&self.store()?.options().root))
    }

    /// Bytes of packed weights that are kept of the model at `path`; none where there is no store.
    pub(crate) fn packed_bytes(&self, path: &Path) -> u64 {
        let kept = self.packed_folder().and_then(|folder| Ok(StoredPack::list(&folder)?)).unwrap_or_default();
        kept.iter().filter(|pack| pack.belongs_to(path)).map(|pack| pack.bytes).sum()
    }

    /// Where the files of a typed model lie; nowhere for a built-in one.
    pub(crate) fn path_of(&self, name: Option<&str>) -> anyhow::Result<Option<PathBuf>> {
        Ok(match self.find(name)? {
            (ModelRef::Path(path), _) => Some(path),
            (ModelRef::Hub(spec), store) => store.and_then(|store| store.locate(&spec)),
            (ModelRef::Embedded | ModelRef::EmbeddedDraft, _) => None,
        })
    }

    /// What a typed name stands for, and the store where it needs one.
    pub(crate) fn find(&self, name: Option<&str>) -> anyhow::Result<(ModelRef, Option<Store>)> {
        let model = ModelRef::parse(name)?;
        if let ModelRef::Path(path) = &model
            && path.is_file()
            && path.extension().is_some_and(|e| e == "safetensors" || e == "json")
        {
            let file = path.display();
            return Err(Usage(format!("{file}: one file of a model; name the folder it is in")).into());
        }
        let store = if matches!(model, ModelRef::Hub(_)) { Some(self.store()?) } else { None };
        Ok((model, store))
    }

    /// Opens a model by the name that was typed.
    pub(crate) fn open(&self, name: Option<&str>) -> anyhow::Result<Model> {
        let (model, store) = self.find(name)?;
        Ok(Model::open(&model, store.as_ref())?)
    }

    /// Opens a model's tokenizer and templates alone.
    pub(crate) fn open_text(&self, name: Option<&str>) -> anyhow::Result<ModelText> {
        let (model, store) = self.find(name)?;
        Ok(Model::open_text(&model, store.as_ref())?)
    }

    /// Options of what computes one sequence.
    pub(crate) fn compute_options(&self, args: &ComputeArgs) -> Options {
        Options {
            backend: if args.reference { BackendChoice::Reference } else { BackendChoice::Cpu },
            gpu_layers: args.gpu_layers,
            gpu_driver: self.environment.cuda_driver.clone(),
            gpu_early_launches: self.environment.early_launches,
            threads: args.threads,
            batch_threads: args.threads_batch,
            isa: self.environment.isa.clone(),
            batch_rows: args.batch_rows,
            quantization: args.quantization.and_then(quantization),
            kv_type: kv_type(args.kv_type.unwrap_or(KvTypeArg::Bf16)),
            ..Options::default()
        }
    }

    /// Who proposes tokens ahead.
    pub(crate) fn speculation(&self, args: &DraftArgs) -> anyhow::Result<Speculation> {
        let (draft, store) = match args.draft.as_str() {
            "none" | "off" => (Draft::Off, None),
            "ngram" => (Draft::Ngram, None),
            // Without a store there is nothing to find in it.
            "auto" => (Draft::Auto, self.store().ok()),
            name => {
                let (model, store) = self.find(Some(name)).map_err(|e| Usage(format!("--draft {name}: {e}")))?;
                (Draft::Model(model), store)
            }
        };
        Ok(Speculation { draft, max_draft: args.draft_max, store: store.map(Arc::new), ..Speculation::default() })
    }

    /// How a model runs `max_seqs` sequences at once.
    fn options(&self, args: &EngineArgs, max_seqs: usize) -> anyhow::Result<Options> {
        Ok(Options {
            context: args.context,
            max_seqs,
            prefix_cache: !args.no_prefix_cache,
            require: require(args)?,
            speculation: self.speculation(&args.drafts)?,
            cache_packed: if args.cache_packed { Some(self.packed_folder()?) } else { None },
            ..self.compute_options(&args.compute)
        })
    }

    /// Loads a model for `max_seqs` sequences at once, with a bar while it takes long, and says where everything went.
    pub(crate) fn load(&self, model: &Model, args: &EngineArgs, max_seqs: usize) -> anyhow::Result<Llm> {
        self.load_with(model, &self.options(args, max_seqs)?, args.verbose)
    }

    /// The same for the small model of a route: a context that only the large one has is cut to the small one's, which
    /// is said; longer conversations are the large one's.
    pub(crate) fn load_small(&self, model: &Model, args: &EngineArgs, max_seqs: usize) -> anyhow::Result<Llm> {
        let options = self.options_of_small(model, self.options(args, max_seqs)?);
        self.load_with(model, &options, args.verbose)
    }

    /// Options of the small model of a route.
    pub(crate) fn options_of_small(&self, model: &Model, mut options: Options) -> Options {
        let most = model.files.config.max_context;
        if let Some(wanted) = options.context.max(options.require.context).filter(|&wanted| wanted > most) {
            let name = &model.name;
            self.note(&format!("a context of {wanted}: {name} holds {most}; what is longer goes to the large model"));
            options.context = options.context.map(|context| context.min(most));
            options.require.context = options.require.context.map(|context| context.min(most));
        }
        options
    }

    fn load_with(&self, model: &Model, options: &Options, verbose: bool) -> anyhow::Result<Llm> {
        let bar = Progress::bytes(self.quiet);
        bar.message("packing weights");
        let loaded = Llm::load(model, options, &mut |p| bar.set(p.done as u64, p.total as u64));
        drop(bar);
        let llm = loaded.map_err(|e| self.blame(e))?;
        self.report(&llm, verbose);
        Ok(llm)
    }

    /// Loads the two models of a route, within one budget of memory.
    pub(crate) fn load_both(
        &self,
        small: &Model,
        large: &Model,
        args: &EngineArgs,
        max_seqs: usize,
    ) -> anyhow::Result<(Llm, Llm)> {
        let for_large = self.options(args, max_seqs)?;
        let for_small = self.options_of_small(small, for_large.clone());
        let bar = Progress::bytes(self.quiet);
        let loaded = load_both((small, &for_small), (large, &for_large), &mut |side, p| {
            bar.message(format!("packing weights of the {side} model"));
            bar.set(p.done as u64, p.total as u64);
        });
        drop(bar);
        let both = loaded.map_err(|e| self.blame(e))?;
        self.report(&both.0, args.verbose);
        self.report(&both.1, args.verbose);
        Ok(both)
    }

    /// Says where everything of a model went.
    fn report(&self, llm: &Llm, verbose: bool) {
        self.note(&llm.report().line());
        llm.report().notes.iter().for_each(|note| self.note(note));
        if verbose {
            kernel_lines(&llm.report().placements).iter().for_each(|line| self.note(line));
            llm.report().certificate.lines().iter().for_each(|line| self.note(&format!("  {line}")));
        }
    }

    /// Names the variable where it is the one to blame.
    pub(crate) fn blame(&self, error: pelton::Error) -> anyhow::Error {
        match (&error, &self.environment.isa) {
            (pelton::Error::Cpu(cause), Some(isa)) if cause.to_string().contains(&format!("{isa:?}")) => {
                Usage(format!("PELTON_ISA: {cause}")).into()
            }
            _ => error.into(),
        }
    }
}

/// What must be granted.
pub(crate) fn require(args: &EngineArgs) -> anyhow::Result<Require> {
    Ok(args.require.as_deref().map_or(Ok(Require::default()), Require::parse)?)
}

/// One line for each kernel and storage type: how many layers and bytes it runs.
pub(crate) fn kernel_lines(placements: &[pelton::Placement]) -> Vec<String> {
    let mut groups: Vec<(String, usize, usize)> = Vec::new();
    for p in placements {
        let key = format!("{} on {}", p.dtype, p.kernel);
        match groups.iter_mut().find(|(k, _, _)| *k == key) {
            Some((_, count, bytes)) => {
                *count += 1;
                *bytes += p.bytes;
            }
            None => groups.push((key, 1, p.bytes)),
        }
    }
    groups.into_iter().map(|(key, n, b)| format!("  {key}: {n} matrices, {}", term::bytes(b as u64))).collect()
}

fn quantization(arg: QuantizationArg) -> Option<Quantization> {
    match arg {
        QuantizationArg::Bits4 => Some(Quantization::Bits4),
        QuantizationArg::Bits5 => Some(Quantization::Bits5),
        QuantizationArg::Bits6 => Some(Quantization::Bits6),
        QuantizationArg::Bits8 => Some(Quantization::Bits8),
        QuantizationArg::Fp8 => Some(Quantization::Fp8),
        QuantizationArg::Int8 => Some(Quantization::Int8),
        QuantizationArg::Nf4 => Some(Quantization::Nf4),
        QuantizationArg::None => None,
    }
}

pub(crate) fn kv_type(arg: KvTypeArg) -> KvType {
    match arg {
        KvTypeArg::F32 => KvType::F32,
        KvTypeArg::F16 => KvType::F16,
        KvTypeArg::Bf16 => KvType::Bf16,
        KvTypeArg::Int8 => KvType::Int8,
        KvTypeArg::Fp8 => KvType::Fp8,
    }
}

impl SamplingArgs {
    /// What the caller set.
    pub(crate) fn overrides(&self) -> SamplingOverrides {
        SamplingOverrides {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.clone(),
            seed: self.seed,
        }
    }
}

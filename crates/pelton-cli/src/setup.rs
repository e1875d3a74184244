//! From arguments and environment to an opened model and a running engine.

use std::time::Duration;

use pelton::{BackendChoice, KvType, Llm, Model, ModelRef, Options, SamplingOverrides, Store};

use crate::Usage;
use crate::args::{EngineArgs, KvTypeArg, ModelArgs, SamplingArgs};
use crate::environment::Environment;
use crate::term;

/// What all commands share.
pub struct Context {
    pub environment: Environment,
    pub quiet: bool,
}

impl Context {
    pub fn new(environment: Environment, quiet: bool) -> Context {
        Context { environment, quiet }
    }

    /// The model store.
    pub fn store(&self) -> anyhow::Result<Store> {
        match &self.environment.store {
            Ok(options) => Ok(Store::new(options.clone())?),
            Err(e) => Err(anyhow::anyhow!("{e}")),
        }
    }

    /// Opens a model by the name that was typed.
    pub fn open(&self, name: Option<&str>) -> anyhow::Result<Model> {
        let model = ModelRef::parse(name)?;
        let store = if matches!(model, ModelRef::Hub(_)) { Some(self.store()?) } else { None };
        Ok(Model::open(&model, store.as_ref())?)
    }

    /// Options of the engine for `max_seqs` sequences at once.
    pub fn options(&self, args: &EngineArgs, max_seqs: usize) -> anyhow::Result<Options> {
        for (flag, value) in [("--threads", args.threads), ("--context", args.context)] {
            if value == Some(0) {
                return Err(Usage(format!("{flag} 0: expected at least 1")).into());
            }
        }
        if args.batch_rows == 0 || args.batch_rows > 65_536 {
            return Err(Usage(format!("--batch-rows {}: expected 1 to 65536", args.batch_rows)).into());
        }
        Ok(Options {
            backend: if args.reference { BackendChoice::Reference } else { BackendChoice::Cpu },
            threads: args.threads,
            isa: self.environment.isa.clone(),
            context: args.context,
            max_seqs,
            batch_rows: args.batch_rows,
            kv_type: kv_type(args.kv_type),
            prefix_cache: !args.no_prefix_cache,
            ..Options::default()
        })
    }

    /// Opens and loads a model, with a bar while it takes long, and says where everything went.
    pub fn load(&self, args: &ModelArgs, max_seqs: usize) -> anyhow::Result<(Model, Llm)> {
        let options = self.options(&args.engine, max_seqs)?;
        let model = self.open(args.model.as_deref())?;
        let bar = term::byte_bar(0, self.quiet);
        bar.set_message("packing weights");
        let start = std::time::Instant::now();
        let loaded = Llm::load(&model, &options, &mut |p| {
            if start.elapsed() > Duration::from_millis(500) {
                bar.set_length(p.total as u64);
                bar.set_position(p.done as u64);
            }
        });
        bar.finish_and_clear();
        let llm = loaded?;
        if !self.quiet {
            term::note(&llm.report().line());
            if args.engine.verbose {
                kernel_lines(llm.report()).iter().for_each(|line| term::note(line));
            }
        }
        Ok((model, llm))
    }
}

/// One line for each kernel and storage type: how many layers and bytes it runs.
fn kernel_lines(report: &pelton::LoadReport) -> Vec<String> {
    let mut groups: Vec<(String, usize, usize)> = Vec::new();
    for p in &report.placements {
        let key = format!("{} on {}", p.dtype.name(), p.kernel);
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

pub fn kv_type(arg: KvTypeArg) -> KvType {
    match arg {
        KvTypeArg::F32 => KvType::F32,
        KvTypeArg::F16 => KvType::F16,
        KvTypeArg::Bf16 => KvType::Bf16,
    }
}

impl SamplingArgs {
    /// What the caller set.
    pub fn overrides(&self) -> SamplingOverrides {
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

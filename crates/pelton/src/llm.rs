//! A loaded model, ready for requests.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pelton_backend::{Backend, Placement, Reference};
use pelton_cpu::{Cpu, CpuOptions};
use pelton_engine::{CancelGuard, Engine, EngineHandle, EngineLimits, EventSink, Request, RequestHandle};
use pelton_formats::ModelConfig;
use pelton_model::LoadProgress;
use pelton_text::Tokenizer;

use crate::memory::{MemoryNeeds, MemoryPlan, available_memory};
use crate::{BackendChoice, Error, Model, Options};

/// What loading decided: shown to the user, never silent.
#[derive(Clone, Debug)]
pub struct LoadReport {
    /// The model's name.
    pub name: String,
    /// Parameters.
    pub parameters: usize,
    /// What the backend says of itself.
    pub backend: String,
    /// Which kernel runs each layer.
    pub placements: Vec<Placement>,
    /// How the memory is divided.
    pub memory: MemoryPlan,
    /// How long loading took.
    pub load_time: Duration,
}

impl LoadReport {
    /// One line for people.
    pub fn line(&self) -> String {
        let mib = |bytes: usize| bytes as f64 / (1 << 20) as f64;
        let m = &self.memory;
        format!(
            "{} · {:.1}M parameters · {} · weights {:.1} MiB · context {} · KV {:.1} MiB ({} full {}) · loaded in {:.2} s",
            self.name,
            self.parameters as f64 / 1e6,
            self.backend,
            mib(m.weight_bytes),
            m.context,
            mib(m.kv_bytes),
            m.full_sequences,
            if m.full_sequences == 1 { "sequence" } else { "sequences" },
            self.load_time.as_secs_f64(),
        )
    }

    /// Bytes of weights that one decoding step of one sequence reads: of the experts, only those that a token uses.
    pub fn decode_weight_bytes(&self, config: &ModelConfig) -> usize {
        let is_expert = |name: &str| {
            let mut parts = name.split('.').rev();
            parts.next();
            parts.next().is_some_and(|n| n.parse::<usize>().is_ok()) && name.contains(".ffn_")
        };
        let share = config.moe.as_ref().map_or(1.0, |m| m.n_experts_used as f64 / m.n_experts as f64);
        let bytes = |p: &Placement| p.bytes as f64 * if is_expert(&p.name) { share } else { 1.0 };
        self.placements.iter().map(bytes).sum::<f64>() as usize
    }
}

/// A model on a backend, its engine running on a thread of its own.
pub struct Llm {
    engine: EngineHandle,
    report: LoadReport,
    config: ModelConfig,
    tokenizer: Option<Arc<Tokenizer>>,
}

impl Llm {
    /// Packs the weights, plans the memory and starts the engine.
    ///
    /// # Errors
    /// [`Error`] names the tensor, option or shortfall, and what to do.
    pub fn load(
        model: &Model,
        options: &Options,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Llm, Error> {
        match options.backend {
            BackendChoice::Reference => Llm::load_on(Reference, model, options, progress),
            BackendChoice::Cpu => {
                let cpu = Cpu::new(CpuOptions { threads: options.threads, isa: options.isa.clone() })?;
                Llm::load_on(cpu, model, options, progress)
            }
        }
    }

    fn load_on<B>(
        mut backend: B,
        model: &Model,
        options: &Options,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Llm, Error>
    where
        B: Backend + Send + 'static,
        Engine<B>: Send,
    {
        let start = Instant::now();
        let config = &model.files.config;
        let needs = memory_needs(model, options)?;
        // Refuse before packing gigabytes, by the size of the files; the plan itself follows the packed bytes.
        MemoryPlan::new(needs, available_memory())?;
        let context = options.context.unwrap_or(needs.default_context);
        let decoder = pelton_model::load(&mut backend, config, &model.files.tensors, context, progress)?;
        let weight_bytes = decoder.placements().iter().map(|p| p.bytes).sum();
        let activation_bytes = decoder.workspace_bytes(options.batch_rows, options.max_seqs);
        let after_packing = MemoryNeeds { weight_bytes: 0, activation_bytes, ..needs };
        let plan = MemoryPlan::new(after_packing, available_memory())?;
        let memory = MemoryPlan { weight_bytes, ..plan };
        let limits = EngineLimits {
            context: memory.context,
            n_pages: memory.n_pages,
            kv_type: options.kv_type,
            max_batch_rows: options.batch_rows.max(options.max_seqs),
            max_seqs: options.max_seqs,
            max_waiting: options.max_waiting,
            prefix_cache: options.prefix_cache,
        };
        let eos = model.text().map_or_else(|_| model.files.generation.eos.clone(), |text| text.eos_ids());
        let placements = decoder.placements().to_vec();
        let engine = Engine::new(backend, decoder, model.tokenizer.clone(), eos, limits)?;
        let report = LoadReport {
            name: model.name.clone(),
            parameters: model.parameters(),
            backend: engine.describe(),
            placements,
            memory,
            load_time: start.elapsed(),
        };
        let engine = EngineHandle::spawn(engine).map_err(|e| Error::Failure(format!("cannot start a thread: {e}")))?;
        Ok(Llm { engine, report, config: config.clone(), tokenizer: model.tokenizer.clone() })
    }

    /// What loading decided.
    pub fn report(&self) -> &LoadReport {
        &self.report
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The tokenizer, where the model has one.
    pub fn tokenizer(&self) -> Option<&Arc<Tokenizer>> {
        self.tokenizer.as_ref()
    }

    /// Queues a request. A refusal arrives as its only event.
    ///
    /// # Errors
    /// Where the engine has stopped.
    pub fn submit(&self, request: Request) -> Result<RequestHandle, Error> {
        Ok(self.engine.submit(request)?)
    }

    /// Queues a request whose events go to `sink`, which is called on the engine's thread and must not wait.
    ///
    /// # Errors
    /// Where the engine has stopped.
    pub fn submit_to(&self, request: Request, sink: EventSink) -> Result<CancelGuard, Error> {
        Ok(self.engine.submit_to(request, sink)?)
    }
}

/// What has to fit, judged by the files alone.
fn memory_needs(model: &Model, options: &Options) -> Result<MemoryNeeds, Error> {
    let c = &model.files.config;
    if let Some(context) = options.context {
        if context == 0 || context > c.max_context {
            let most = c.max_context;
            return Err(Error::Usage(format!("--context {context}: {} holds 1 to {most} tokens", model.name)));
        }
    }
    let kv_elements = 2 * c.n_layers * c.kv_dim();
    // One row of the residual stream and its blocks, as pelton-model's workspace allocates them.
    let row = 4 * (6 * c.hidden + 2 * c.q_dim() + 2 * c.kv_dim() + 3 * c.ffn);
    let logits = 4 * (c.hidden + c.vocab_size);
    let activation_bytes = row.saturating_mul(options.batch_rows).saturating_add(logits * options.max_seqs);
    Ok(MemoryNeeds {
        weight_bytes: usize::try_from(model.files.source.total_bytes).unwrap_or(usize::MAX),
        kv_bytes_per_token: kv_elements.saturating_mul(options.kv_type.bytes()),
        activation_bytes,
        context: options.context,
        default_context: c.max_context.min(Options::DEFAULT_CONTEXT),
        max_seqs: options.max_seqs,
    })
}

//! A loaded model, ready for requests.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pelton_backend::{Backend, Placement, Reference, Split};
use pelton_cpu::Cpu;
use pelton_cuda::CudaBackend;
use pelton_engine::{
    CancelGuard, DiskOptions, Embedded, Engine, EngineHandle, EngineLimits, EngineStats, Event, EventSink, Finished,
    Pooling, Request, RequestHandle, SpeculationOptions, SubmitError,
};
use pelton_formats::ModelConfig;
use pelton_model::{Decoder, LoadProgress, Workspace};
use pelton_sample::{Grammar, GrammarSpec};
use pelton_text::Tokenizer;

use crate::available::total_memory;
use crate::cache_line::cache_line;
use crate::certificate::{self, Certificate};
use crate::gpu::{self, Chosen, Placed, Wanted, least_tokens};
use crate::grammars::Grammars;
use crate::memory::{LEAST_PAGES, MemoryNeeds};
use crate::packed::{Pack, PackedReport, identity_of};
use crate::speculation::{self, Found};
use crate::{BackendChoice, Error, GpuReport, MemoryPlan, Model, Options, Require, available_memory};

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
    /// How this machine's memory is divided.
    pub memory: MemoryPlan,
    /// What is on GPUs, and why not more.
    pub gpu: GpuReport,
    /// Who proposes tokens ahead; empty where nobody does.
    pub drafters: Vec<String>,
    /// What became of the packed file.
    pub packed: PackedReport,
    /// How far each kernel was from the reference when it was probed.
    pub certificate: Certificate,
    /// What people should know besides: why a packed file was not used or not written.
    pub notes: Vec<String>,
    /// How long loading took.
    pub load_time: Duration,
}

impl LoadReport {
    /// One line for people.
    pub fn line(&self) -> String {
        let mib = |bytes: usize| bytes as f64 / (1 << 20) as f64;
        let m = &self.memory;
        let mut line = format!(
            "{} · {:.1}M parameters · {} · weights {:.1} MiB · context {} · KV {:.1} MiB ({} full {}) · loaded in {:.2} s",
            self.name,
            self.parameters as f64 / 1e6,
            self.backend,
            mib(m.weight_bytes + self.gpu.cards.iter().map(|c| c.weight_bytes).sum::<usize>()),
            m.context,
            mib(m.kv_bytes + self.gpu.cards.iter().map(|c| c.kv_bytes).sum::<usize>()),
            m.full_sequences,
            if m.full_sequences == 1 { "sequence" } else { "sequences" },
            self.load_time.as_secs_f64(),
        );
        if let Some(gpu) = self.gpu.line() {
            line += &format!(" · {gpu}");
        }
        match self.packed {
            PackedReport::Off | PackedReport::NotStored => {}
            PackedReport::Mapped { .. } => line += " · packed weights mapped from an earlier start",
            PackedReport::Stored { bytes } => {
                line += &format!(" · packed weights stored for the next start ({:.1} MiB)", mib(bytes as usize));
            }
        }
        if !self.drafters.is_empty() {
            line += &format!(" · drafts by {}", self.drafters.join(", "));
        }
        if m.context < m.wanted_context {
            line += &format!(" · memory shortens the context from {}", m.wanted_context);
        }
        if m.max_seqs < m.wanted_seqs {
            line += &format!(" · memory allows {} of {} sequences at once", m.max_seqs, m.wanted_seqs);
        }
        line
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
    grammars: Grammars,
}

impl Llm {
    /// Packs the weights, plans the memory and starts the engine.
    ///
    /// # Errors
    /// [`Error`] names the tensor, option or shortfall, and what to do.
    pub fn load(model: &Model, options: &Options, progress: &mut dyn FnMut(LoadProgress)) -> Result<Llm, Error> {
        options.check()?;
        let quantized = options.quantize(model)?;
        let model = quantized.as_ref().unwrap_or(model);
        match options.backend {
            BackendChoice::Reference => {
                gpu::refuse_beside_reference(options)?;
                let pack = Pack::off(options.cache_packed.as_deref(), "the reference packs none");
                Llm::load_on(Reference, model, options, progress, pack, Placed::default())
            }
            BackendChoice::Cpu => {
                let start = Instant::now();
                let needs = memory_needs(model, options)?;
                let mut llm = match gpu::choose(model, options, &needs, wanted_on_cards(&needs))? {
                    Chosen::Cpu(report) => Llm::load_on_cpu(model, options, progress, report)?,
                    Chosen::Split(split, placed) => {
                        let pack = Pack::off(options.cache_packed.as_deref(), "a part of the model is on a GPU");
                        let report = placed.report.clone();
                        let load = || Llm::load_on(*split, model, options, progress, pack, placed);
                        match gpu::attempt(options, &report, load)? {
                            Ok(llm) => llm,
                            Err(report) => Llm::load_on_cpu(model, options, progress, report)?,
                        }
                    }
                };
                llm.report.load_time = start.elapsed();
                Ok(llm)
            }
        }
    }

    fn load_on_cpu(
        model: &Model,
        options: &Options,
        progress: &mut dyn FnMut(LoadProgress),
        report: GpuReport,
    ) -> Result<Llm, Error> {
        let mut cpu = Cpu::new(options.cpu())?;
        let pack = Pack::begin(&mut cpu, model, options.cache_packed.as_deref(), progress);
        Llm::load_on(cpu, model, options, progress, pack, Placed::nowhere(report))
    }

    fn load_on<B>(
        mut backend: B,
        model: &Model,
        options: &Options,
        progress: &mut dyn FnMut(LoadProgress),
        mut pack: Pack,
        mut placed: Placed,
    ) -> Result<Llm, Error>
    where
        B: Loads + Send + 'static,
        Engine<B>: Send,
        Decoder<B>: Send,
        Workspace<B>: Send,
        B::Kv: Send,
    {
        let start = Instant::now();
        let config = &model.files.config;
        // Refuse before packing gigabytes, by the size of the files; the plan itself follows the packed bytes. The
        // files are mapped: the system may drop their pages, so only the packed weights count.
        let (needs, draft) = with_draft(model, options, &placed)?;
        let context = MemoryPlan::beside_cards(needs, available_memory(), &placed.cards)?.context;
        let (mut decoder, probing) = certificate::load(&mut backend, model, options, context, progress)?;
        let weight_bytes: usize = decoder.placements().iter().map(|p| p.bytes).sum();
        placed.settle(backend.on_cards(), None);
        let weight_bytes = weight_bytes.saturating_sub(backend.on_cards().iter().sum());
        let mapped = backend.end_packing(&mut pack);
        let certificate = probing.finish(&mut backend, &decoder, config)?;
        let draft = draft.map(|draft| load_draft(&mut backend, draft.model, context)).transpose()?;
        let draft_bytes = draft.iter().flat_map(|(_, decoder)| decoder.placements()).map(|p| p.bytes).sum::<usize>();
        let weight_bytes = weight_bytes + draft_bytes;
        // What was free before packing: what is free now, and the packed weights; the mapped ones count as free.
        let free = available_memory().map(|now| now.saturating_add(weight_bytes.saturating_sub(mapped) as u64));
        let memory = MemoryPlan::beside_cards(MemoryNeeds { weight_bytes, ..needs }, free, &placed.cards)?;
        placed.settle(backend.on_cards(), Some(memory.n_pages));
        // LongRoPE chooses its factors by the context that will really run.
        decoder.set_rope(pelton_model::resolve_rope(&config.rope, memory.context));
        let limits = EngineLimits {
            context: memory.context,
            n_pages: memory.n_pages,
            kv_type: options.kv_type,
            max_batch_rows: options.batch_rows.max(memory.max_seqs),
            max_seqs: memory.max_seqs,
            max_waiting: options.max_waiting,
            prefix_cache: options.prefix_cache,
        };
        let eos = model.text().map_or_else(|_| model.files.generation.eos.clone(), |text| text.eos_ids());
        let placements = decoder.placements().to_vec();
        let grammars = Grammars::new(model.tokenizer.clone(), eos.clone());
        let mut engine = Engine::new(backend, decoder, model.tokenizer.clone(), eos, limits)?;
        let (packed, mut notes) = pack.into_report();
        notes.extend(model.quantization_text());
        if options.steady_streams {
            engine.keep_streams_steady();
        }
        notes.extend(keep_pages(&mut engine, model, options, &placed)?);
        speculation::install(&mut engine, draft, model, options)?;
        let report = LoadReport {
            packed,
            certificate,
            notes,
            name: model.name.clone(),
            parameters: model.parameters(),
            backend: engine.describe(),
            drafters: engine.drafters(),
            placements,
            memory,
            gpu: placed.report,
            load_time: start.elapsed(),
        };
        let engine = EngineHandle::spawn_governed(engine, Box::new(memory_is_short))
            .map_err(|e| Error::Failure(format!("cannot start a thread: {e}")))?;
        Ok(Llm { engine, report, config: config.clone(), tokenizer: model.tokenizer.clone(), grammars })
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

    /// Queues a request.
    ///
    /// # Errors
    /// [`Error::Submit`] says at once what is wrong with it, that the queue is full, or that the engine has stopped.
    pub fn submit(&self, request: Request) -> Result<RequestHandle, Error> {
        Ok(self.engine.submit(request)?)
    }

    /// Queues a request whose events go to `sink`, which is called on the engine's thread and must not wait.
    ///
    /// # Errors
    /// As [`Llm::submit`].
    pub fn submit_to(&self, request: Request, sink: EventSink) -> Result<CancelGuard, Error> {
        Ok(self.engine.submit_to(request, sink)?)
    }

    /// What the engine said when it stopped, where it could not go on: a lost GPU.
    pub fn failure(&self) -> Option<&str> {
        self.engine.failure()
    }

    /// Whether the engine has given back all that it had.
    pub fn has_ended(&self) -> bool {
        self.engine.has_ended()
    }

    /// The engine's queues, pages and counts as of its last step. Never waits.
    pub fn stats(&self) -> EngineStats {
        self.engine.stats()
    }

    /// Compiles a grammar for this model. It may take milliseconds, for a large schema a second or two: not a call
    /// for the thread of an event loop. The last ones are kept, so asking again is cheap.
    ///
    /// # Errors
    /// [`Error::Grammar`] says what is wrong with it, or which limit it meets.
    pub fn grammar(&self, spec: &GrammarSpec) -> Result<Grammar, Error> {
        self.grammars.compile(spec)
    }

    /// The vectors of many prompts, in their order; waits for all of them.
    ///
    /// # Errors
    /// The first prompt that cannot be taken, or a failure of the engine.
    pub fn embed(&self, prompts: Vec<Vec<u32>>, pooling: Pooling) -> Result<Vec<Embedded>, Error> {
        let submit = |prompt| self.submit(Request::embed(prompt, pooling));
        let handles = prompts.into_iter().map(submit).collect::<Result<Vec<_>, _>>()?;
        let vector = |handle: &RequestHandle| match handle.next_event() {
            Some(Event::Embedded(embedded)) => Ok(embedded),
            Some(Event::Refused(refused)) => Err(refused.into()),
            Some(Event::Failed(message)) => Err(Error::Failure(message)),
            _ => Err(SubmitError::Stopped.into()),
        };
        handles.iter().map(vector).collect()
    }

    /// Why not more of a prompt came from the prefix cache, for people: with the texts around the place where the
    /// two part. `None` where nothing was missed, or `finished` is not the first answer.
    pub fn cache_line(&self, finished: &Finished) -> Option<String> {
        let miss = finished.miss.as_ref()?;
        Some(cache_line(&finished.timing, miss, self.tokenizer.as_deref()))
    }
}

/// What loading asks of a backend besides its ops.
pub(crate) trait Loads: Backend {
    /// Ends what was begun with the packed file; bytes of weights that are mapped from it.
    fn end_packing(&mut self, _pack: &mut Pack) -> usize {
        0
    }

    /// Bytes of weights on each card.
    fn on_cards(&self) -> &[usize] {
        &[]
    }
}

impl Loads for Reference {}

impl Loads for Cpu {
    fn end_packing(&mut self, pack: &mut Pack) -> usize {
        pack.finish(self)
    }
}

impl Loads for Split<CudaBackend, Cpu> {
    fn on_cards(&self) -> &[usize] {
        &self.weight_bytes()[..self.cards().len()]
    }
}

/// What must fit beside a layer before a card gets it.
fn wanted_on_cards(needs: &MemoryNeeds) -> Wanted {
    let context = needs.context.max(needs.require.context).unwrap_or(needs.default_context).max(1);
    let seqs = needs.max_seqs.max(needs.require.seqs.unwrap_or(1)).max(1);
    let tokens = match needs.require.seqs {
        Some(required) => least_tokens(context, required, usize::MAX),
        None => least_tokens(context, seqs, LEAST_PAGES),
    };
    let logit_rows = seqs.saturating_add(needs.draft_rows.min(seqs.saturating_mul(pelton_engine::MAX_DRAFT)));
    Wanted { tokens, context, rows: needs.batch_rows.max(seqs), logit_rows }
}

/// What has to fit, and the draft model where there is one. One that was merely found is left where it would cost the
/// model context or sequences.
fn with_draft(model: &Model, options: &Options, placed: &Placed) -> Result<(MemoryNeeds, Option<Found>), Error> {
    let needs = placed.host(memory_needs(model, options)?);
    let Some(draft) = speculation::find(model, &options.speculation)? else { return Ok((needs, None)) };
    let with = needs.beside(&memory_needs(
        &draft.model,
        &Options { context: None, require: Require::default(), ..options.clone() },
    )?);
    if draft.asked_for {
        return Ok((with, Some(draft)));
    }
    let plan = |needs| MemoryPlan::beside_cards(needs, available_memory(), &placed.cards);
    let granted = |needs| plan(needs).map(|plan| (plan.context, plan.max_seqs)).ok();
    let is_free = granted(with).is_some_and(|with| Some(with) == granted(needs));
    Ok(if is_free { (with, Some(draft)) } else { (needs, None) })
}

/// Packs a draft model's weights on the target's backend.
fn load_draft<B: Backend>(backend: &mut B, draft: Model, context: usize) -> Result<(Model, Decoder<B>), Error> {
    let files = &draft.files;
    let context = context.min(files.config.max_context);
    let decoder = pelton_model::load(backend, &files.config, &files.tensors, context, &mut |_| ())?;
    Ok((draft, decoder))
}

/// Less than this share of memory free, and no more sequences are let in.
const SHORT_SHARE: u64 = 50;

/// Whether the machine (or the group that the process runs in) is running out of memory.
fn memory_is_short() -> bool {
    available_memory().is_some_and(|free| free < total_memory().unwrap_or(0) / SHORT_SHARE)
}

/// Keeps prefix pages on disk where the options say so. A folder that cannot be used is a note; a model whose pages
/// cannot be named is, too.
fn keep_pages<B: Backend>(
    engine: &mut Engine<B>,
    model: &Model,
    options: &Options,
    placed: &Placed,
) -> Result<Option<String>, Error> {
    let Some(folder) = &options.prefix_cache_dir else { return Ok(None) };
    let identity = match identity_of(model) {
        Ok(identity) => identity,
        Err(e) => return Ok(Some(format!("prefix pages are not kept on disk: {e}"))),
    };
    // Backends compute different bits.
    let identity = format!("{identity}\n{:?}{}", options.backend, placed.identity());
    let disk = DiskOptions { folder: folder.clone(), max_bytes: options.prefix_cache_bytes, identity };
    engine.keep_pages(&disk)?;
    let found = engine.disk_stats().filter(|disk| disk.pages > 0);
    Ok(found.map(|disk| format!("prefix pages on disk: {} ({:.1} MiB)", disk.pages, disk.bytes as f64 / 1048576.0)))
}

/// What has to fit, judged by the files alone.
pub(crate) fn memory_needs(model: &Model, options: &Options) -> Result<MemoryNeeds, Error> {
    let c = &model.files.config;
    if let (Some(context), Some(required)) = (options.context, options.require.context)
        && required > context
    {
        return Err(Error::Usage(format!("--require ctx={required}: --context {context} is less")));
    }
    if let Some(context) = options.context.max(options.require.context) {
        // A token of a prompt and a token of an answer.
        if context < 2 || context > c.max_context {
            let most = c.max_context;
            return Err(Error::Usage(format!("--context {context}: {} holds 2 to {most} tokens", model.name)));
        }
    }
    let kv_heads = c.n_layers * c.n_kv_heads;
    // Floats of one row: the residual stream and its blocks (pelton-model's workspace); the input of the widest
    // matrix once more, interleaved and quantized; the rotation; and what experts gather and answer.
    let widest = c.hidden.max(c.q_dim()).max(c.ffn);
    let experts = c.moe.as_ref().map_or(0, |m| 2 * m.n_experts_used * (2 * c.hidden + 3 * m.expert_ffn));
    let row = 3 * c.hidden + 2 * c.q_dim() + 2 * c.kv_dim() + 3 * c.ffn + 2 * widest + c.head_dim + experts;
    // The normed row, and the logits in the workspace and in the engine.
    let logit_row = c.hidden + 2 * c.vocab_size;
    Ok(MemoryNeeds {
        weight_bytes: model.weight_bytes(),
        kv_bytes_per_token: kv_heads.saturating_mul(options.kv_type.bytes_per_head(c.head_dim)),
        row_bytes: row.saturating_mul(4),
        logit_row_bytes: logit_row.saturating_mul(4),
        batch_rows: options.batch_rows,
        draft_rows: if options.speculation.is_on() { SpeculationOptions::MAX_ROWS } else { 0 },
        kv_type: options.kv_type,
        require: options.require,
        limit: options.memory,
        context: options.context,
        default_context: c.max_context.min(Options::DEFAULT_CONTEXT),
        max_seqs: options.max_seqs,
    })
}

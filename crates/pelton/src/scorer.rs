//! Logits of many passages, straight through the decoder: what figures about models are made of.
//!
//! No scheduler and no sampler: passages are cut into steps of [`Options::batch_rows`] rows, and the wanted rows' logits
//! are handed to the caller as they come. Invariants: a row's logits do not depend on how passages are batched; memory is
//! bounded by [`ScorerSize`] and [`LOGIT_BYTES`], however many passages there are.

use pelton_backend::{Backend, BackendError, Batch, BatchBuilder, PAGE_LEN, Placement, Reference};
use pelton_cpu::Cpu;
use pelton_model::{Decoder, LoadProgress, Workspace};

use crate::certificate::{self, Certificate};
use crate::gpu::{self, Chosen, GpuReport, Placed, Wanted};
use crate::llm::memory_needs;
use crate::{BackendChoice, Error, KvType, Model, Options, available_memory};

/// Bytes of logits that one step may give.
const LOGIT_BYTES: usize = 64 << 20;

/// What a [`Scorer`] has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScorerSize {
    /// Longest passage, in tokens.
    pub context: usize,
    /// Passages that are computed together.
    pub sequences: usize,
}

/// Tokens to run.
#[derive(Clone, Copy, Debug)]
pub struct Passage<'a> {
    /// At least one.
    pub ids: &'a [u32],
    /// The logits of the rows at this position and after it are wanted.
    pub from: usize,
}

/// Where a row of logits belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowAt {
    /// The passage, counted from 0.
    pub passage: usize,
    /// The position in it.
    pub position: usize,
}

/// Takes some rows and their logits, `(rows, vocab)`.
pub type EachRows<'a> = dyn FnMut(&[RowAt], &[f32]) -> Result<(), Error> + 'a;

/// How likely a continuation is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likelihood {
    /// The logarithm of its probability, after what comes before it.
    pub ln: f64,
    /// Whether each of its tokens is the likeliest one.
    pub is_greedy: bool,
}

/// A model that gives logits.
pub struct Scorer {
    runs: Box<dyn Runs>,
    vocab: usize,
    context: usize,
    backend: String,
    placements: Vec<Placement>,
    certificate: Certificate,
    gpu: GpuReport,
}

impl Scorer {
    /// Loads a model with room for passages of `size`.
    ///
    /// # Errors
    /// [`Error::Usage`] where that is longer than the model's context or does not fit memory, with the numbers;
    /// [`Error`] where the model cannot be loaded.
    pub fn load(
        model: &Model,
        options: &Options,
        size: ScorerSize,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Scorer, Error> {
        Scorer::load_with(model, options, size, false, progress)
    }

    /// [`Scorer::load`]; `rope_bf16` rounds the rotary frequencies.
    pub(crate) fn load_with(
        model: &Model,
        options: &Options,
        size: ScorerSize,
        rope_bf16: bool,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Scorer, Error> {
        options.check()?;
        let quantized = options.quantize(model)?;
        let model = quantized.as_ref().unwrap_or(model);
        match options.backend {
            BackendChoice::Reference => {
                let options = Options { kv_type: KvType::F32, ..options.clone() };
                gpu::refuse_beside_reference(&options)?;
                load_on(Reference, model, &options, size, rope_bf16, progress, Placed::default())
            }
            BackendChoice::Cpu => {
                let tokens = pool_pages(size).saturating_mul(PAGE_LEN);
                let logit_rows = logit_rows(model, options);
                let wanted = Wanted { tokens, context: size.context, rows: options.batch_rows, logit_rows };
                let report = match gpu::choose(model, options, &memory_needs(model, options)?, wanted)? {
                    Chosen::Cpu(report) => report,
                    Chosen::Split(split, placed) => {
                        let report = placed.report.clone();
                        let load = || load_on(*split, model, options, size, rope_bf16, progress, placed);
                        match gpu::attempt(options, &report, load)? {
                            Ok(scorer) => return Ok(scorer),
                            Err(report) => report,
                        }
                    }
                };
                let placed = Placed::nowhere(report);
                load_on(Cpu::new(options.cpu())?, model, options, size, rope_bf16, progress, placed)
            }
        }
    }

    /// Width of a row of logits.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// What the backend says of itself.
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// Which kernel runs each layer.
    pub fn placements(&self) -> &[Placement] {
        &self.placements
    }

    /// How far each kernel was from the reference when it was probed.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// What is on GPUs, and why not more.
    pub fn gpu(&self) -> &GpuReport {
        &self.gpu
    }

    /// Bytes of the packed weights.
    pub fn weight_bytes(&self) -> usize {
        self.placements.iter().map(|p| p.bytes).sum()
    }

    /// Runs passages; `each` gets the wanted rows, those of one passage in order.
    ///
    /// # Errors
    /// [`Error::Usage`] for an empty or too long passage or an id outside the vocabulary; what `each` returns.
    pub fn run(&mut self, passages: &[Passage<'_>], each: &mut EachRows<'_>) -> Result<(), Error> {
        passages.iter().try_for_each(|p| self.check(p.ids))?;
        self.runs.run(passages, each)
    }

    /// How likely each of `tails` is after `prefix`, which is computed once.
    ///
    /// # Errors
    /// As [`Scorer::run`], of the prefix and of each tail after it.
    pub fn likelihoods(&mut self, prefix: &[u32], tails: &[&[u32]]) -> Result<Vec<Likelihood>, Error> {
        self.check(prefix)?;
        for tail in tails {
            self.check(tail)?;
            self.check_length(prefix.len() + tail.len())?;
        }
        self.runs.likelihoods(prefix, tails)
    }

    /// Continues prompts, always with the likeliest token (of equals the lowest id), up to `max_tokens`, to one of `ends`
    /// (which is part of the answer) or to the end of the context.
    ///
    /// # Errors
    /// As [`Scorer::run`].
    pub fn greedy(&mut self, prompts: &[Vec<u32>], max_tokens: usize, ends: &[u32]) -> Result<Vec<Vec<u32>>, Error> {
        prompts.iter().try_for_each(|ids| self.check(ids))?;
        self.runs.greedy(prompts, max_tokens, ends)
    }

    fn check(&self, ids: &[u32]) -> Result<(), Error> {
        if ids.is_empty() {
            return Err(Error::Usage("a passage without tokens has no logits".into()));
        }
        if let Some((at, id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= self.vocab) {
            let vocab = self.vocab;
            return Err(Error::Usage(format!("id {id} at position {at} is outside the vocabulary of {vocab}")));
        }
        self.check_length(ids.len())
    }

    fn check_length(&self, tokens: usize) -> Result<(), Error> {
        if tokens <= self.context {
            return Ok(());
        }
        Err(Error::Usage(format!("a passage of {tokens} tokens: there is room for {}", self.context)))
    }
}

/// The highest logit's id, of equals the lowest.
pub fn likeliest(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().fold(
        (0, f32::NEG_INFINITY),
        |best, (id, &logit)| {
            if logit > best.1 { (id, logit) } else { best }
        },
    );
    best.0 as u32
}

/// A scorer whatever its backend.
trait Runs {
    fn run(&mut self, passages: &[Passage<'_>], each: &mut EachRows<'_>) -> Result<(), Error>;
    fn likelihoods(&mut self, prefix: &[u32], tails: &[&[u32]]) -> Result<Vec<Likelihood>, Error>;
    fn greedy(&mut self, prompts: &[Vec<u32>], max_tokens: usize, ends: &[u32]) -> Result<Vec<Vec<u32>>, Error>;
}

fn load_on<B: Backend + 'static>(
    mut backend: B,
    model: &Model,
    options: &Options,
    size: ScorerSize,
    rope_bf16: bool,
    progress: &mut dyn FnMut(LoadProgress),
    placed: Placed,
) -> Result<Scorer, Error> {
    let config = &model.files.config;
    let (size, batch_rows) = (ScorerSize { sequences: size.sequences.max(1), ..size }, options.batch_rows);
    if size.context == 0 || size.context > config.max_context {
        let most = config.max_context;
        return Err(Error::Usage(format!("{} tokens: {} takes 1 to {most}", size.context, model.name)));
    }
    let pages_each = size.context.div_ceil(PAGE_LEN);
    let n_pages = pool_pages(size);
    let logit_rows = logit_rows(model, options);
    check_memory(model, options, n_pages, logit_rows, &placed)?;
    let (mut decoder, probing) = certificate::load(&mut backend, model, options, size.context, progress)?;
    let certificate = probing.finish(&mut backend, &decoder, config)?;
    if rope_bf16 {
        decoder.set_rope(pelton_model::rounded_to_bf16(decoder.rope()));
    }
    backend.bind_thread();
    let kv = backend.kv_pool(&decoder.kv_layout(n_pages, options.kv_type))?;
    let work = decoder.workspace(&mut backend);
    let (description, placements) = (backend.describe(), decoder.placements().to_vec());
    let slots = (0..size.sequences).map(|s| (s * pages_each..(s + 1) * pages_each).map(|p| p as u32).collect());
    let slots = slots.collect();
    let (vocab, context, logits) = (config.vocab_size, size.context, Vec::new());
    let runs = Runner { backend, decoder, kv, work, logits, slots, n_pages, batch_rows, logit_rows, context };
    Ok(Scorer {
        runs: Box::new(runs),
        vocab,
        context,
        backend: description,
        placements,
        certificate,
        gpu: placed.report,
    })
}

/// Pages that passages of `size` fill, and one more: continuations copy a page that a prefix began.
fn pool_pages(size: ScorerSize) -> usize {
    size.context.div_ceil(PAGE_LEN).saturating_mul(size.sequences.max(1)).saturating_add(1)
}

/// Rows of a step with logits.
fn logit_rows(model: &Model, options: &Options) -> usize {
    (LOGIT_BYTES / model.files.config.vocab_size.max(1) / 4).clamp(1, options.batch_rows.max(1))
}

/// Refuses what memory cannot hold, before anything is packed.
fn check_memory(
    model: &Model,
    options: &Options,
    n_pages: usize,
    logit_rows: usize,
    placed: &Placed,
) -> Result<(), Error> {
    let needs = placed.host(memory_needs(model, options)?);
    if u32::try_from(n_pages).is_err() {
        return Err(Error::Usage("more pages of keys and values than can be numbered; use shorter windows".into()));
    }
    let kv = needs.kv_bytes_per_token.saturating_mul(PAGE_LEN).saturating_mul(n_pages);
    let rows = needs.row_bytes.saturating_mul(options.batch_rows);
    let activations = rows.saturating_add(needs.logit_row_bytes.saturating_mul(logit_rows));
    let all = needs.weight_bytes.saturating_add(kv).saturating_add(activations);
    let free = available_memory().map_or(usize::MAX, |f| usize::try_from(f / 10 * 9).unwrap_or(usize::MAX));
    let budget = options.memory.map_or(free, |limit| free.min(usize::try_from(limit).unwrap_or(usize::MAX)));
    if all <= budget {
        return Ok(());
    }
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    Err(Error::Usage(format!(
        "{} does not fit: weights {:.0} MiB + activations {:.0} MiB + KV {:.0} MiB, of {:.0} MiB that may be used; \
         choose a smaller model, a shorter window or fewer --batch-rows",
        model.name,
        mib(needs.weight_bytes),
        mib(activations),
        mib(kv),
        mib(budget),
    )))
}

/// A decoder and its pages: a page table for each passage of a group.
struct Runner<B: Backend> {
    backend: B,
    decoder: Decoder<B>,
    kv: B::Kv,
    work: Workspace<B>,
    logits: Vec<f32>,
    slots: Vec<Vec<u32>>,
    n_pages: usize,
    batch_rows: usize,
    logit_rows: usize,
    context: usize,
}

/// Tokens to run after `cached` ones that are in the pages of `table` already.
struct Item<'a> {
    /// What [`RowAt::passage`] says.
    passage: usize,
    ids: &'a [u32],
    from: usize,
    cached: usize,
    table: &'a [u32],
}

/// How many tokens of a passage the next step runs: `left` are to be run, the first `silent` of them without logits.
fn next_rows(left: usize, silent: usize, rows_left: usize, logits_left: usize) -> usize {
    left.min(rows_left).min(silent.saturating_add(logits_left))
}

impl<B: Backend> Runner<B> {
    fn forward(&mut self, batch: &Batch) {
        self.decoder.forward(&mut self.backend, batch, &mut self.kv, &mut self.work, &mut self.logits);
    }

    /// Runs items side by side, step by step.
    fn run_group(&mut self, group: &[Item<'_>], each: &mut EachRows<'_>) -> Result<(), Error> {
        let mut done = vec![0; group.len()];
        loop {
            let (mut batch, mut at, mut rows) = (BatchBuilder::new(self.n_pages), Vec::new(), 0);
            for (item, done) in group.iter().zip(&mut done) {
                let (start, left) = (*done, item.ids.len() - *done);
                let silent = item.from.saturating_sub(start);
                let n = next_rows(left, silent, self.batch_rows - rows, self.logit_rows - at.len());
                if n == 0 {
                    continue;
                }
                let end = start + n;
                let from = item.from.clamp(start, end);
                let (ids, cached) = (&item.ids[start..end], item.cached + start);
                batch.push(ids, cached, item.table, end - from).map_err(BackendError::from)?;
                at.extend((from..end).map(|position| RowAt { passage: item.passage, position }));
                (*done, rows) = (end, rows + n);
            }
            if rows == 0 {
                return Ok(());
            }
            self.forward(&batch.finish());
            if !at.is_empty() {
                each(&at, &self.logits)?;
            }
        }
    }

    /// Runs passages, each in the pages of a slot of its own; there are as many slots.
    fn run_passages(&mut self, passages: &[Passage<'_>], first: usize, each: &mut EachRows<'_>) -> Result<(), Error> {
        let slots = self.slots.clone();
        let items: Vec<Item<'_>> = passages
            .iter()
            .zip(&slots)
            .enumerate()
            .map(|(i, (p, table))| Item { passage: first + i, ids: p.ids, from: p.from, cached: 0, table })
            .collect();
        self.run_group(&items, each)
    }

    /// Page tables of continuations of the prefix in the first pages, as many as there is room for and at least one: they
    /// share its full pages and have a copy of the one that it began, so that the prefix stays as it is.
    fn tables_after(&mut self, prefix: usize, tails: impl Iterator<Item = usize>) -> Vec<Vec<u32>> {
        let whole = prefix / PAGE_LEN;
        let mut next = prefix.div_ceil(PAGE_LEN);
        let mut tables = Vec::new();
        for tail in tails {
            let own = (prefix + tail).div_ceil(PAGE_LEN) - whole;
            if next + own > self.n_pages {
                break;
            }
            if !prefix.is_multiple_of(PAGE_LEN) {
                self.backend.copy_page(&mut self.kv, whole as u32, next as u32);
            }
            tables.push((0..whole).chain(next..next + own).map(|p| p as u32).collect());
            next += own;
        }
        assert!(!tables.is_empty(), "the pool holds a passage of the whole context and a page more");
        tables
    }
}

/// Adds one token's logarithm of its probability.
fn add_token(likelihood: &mut Likelihood, logits: &[f32], id: u32) -> Result<(), Error> {
    let ln = pelton_sample::logprob(logits, id).map_err(|e| Error::Failure(format!("the model's logits: {e}")))?;
    likelihood.ln += f64::from(ln);
    likelihood.is_greedy &= likeliest(logits) == id;
    Ok(())
}

impl<B: Backend> Runs for Runner<B> {
    fn run(&mut self, passages: &[Passage<'_>], each: &mut EachRows<'_>) -> Result<(), Error> {
        let together = self.slots.len();
        let mut groups = passages.chunks(together).enumerate();
        groups.try_for_each(|(nth, group)| self.run_passages(group, nth * together, each))
    }

    fn likelihoods(&mut self, prefix: &[u32], tails: &[&[u32]]) -> Result<Vec<Likelihood>, Error> {
        let vocab = self.decoder.vocab_size();
        let prefix_table: Vec<u32> = (0..prefix.len().div_ceil(PAGE_LEN) as u32).collect();
        let last = Item { passage: 0, ids: prefix, from: prefix.len() - 1, cached: 0, table: &prefix_table };
        let mut all = vec![Likelihood { ln: 0.0, is_greedy: true }; tails.len()];
        self.run_group(&[last], &mut |_, logits| {
            all.iter_mut().zip(tails).try_for_each(|(likelihood, tail)| add_token(likelihood, logits, tail[0]))
        })?;
        let mut rest: Vec<usize> = (0..tails.len()).filter(|&t| tails[t].len() > 1).collect();
        while !rest.is_empty() {
            let tables = self.tables_after(prefix.len(), rest.iter().map(|&t| tails[t].len()));
            let now: Vec<usize> = rest.drain(..tables.len()).collect();
            let items: Vec<Item<'_>> = now
                .iter()
                .zip(&tables)
                .map(|(&passage, table)| {
                    let ids = &tails[passage][..tails[passage].len() - 1];
                    Item { passage, ids, from: 0, cached: prefix.len(), table }
                })
                .collect();
            self.run_group(&items, &mut |at, logits| {
                let mut rows = at.iter().zip(logits.chunks_exact(vocab));
                rows.try_for_each(|(at, row)| add_token(&mut all[at.passage], row, tails[at.passage][at.position + 1]))
            })?;
        }
        Ok(all)
    }

    fn greedy(&mut self, prompts: &[Vec<u32>], max_tokens: usize, ends: &[u32]) -> Result<Vec<Vec<u32>>, Error> {
        let (vocab, together) = (self.decoder.vocab_size(), self.slots.len());
        let mut answers: Vec<Vec<u32>> = Vec::with_capacity(prompts.len());
        for group in prompts.chunks(together) {
            let passages: Vec<_> = group.iter().map(|ids| Passage { ids, from: ids.len() - 1 }).collect();
            let mut said = vec![Vec::new(); group.len()];
            self.run_passages(&passages, 0, &mut |at, logits| {
                for (at, row) in at.iter().zip(logits.chunks_exact(vocab)) {
                    said[at.passage].push(likeliest(row));
                }
                Ok(())
            })?;
            loop {
                let goes_on = |i: &usize| {
                    let (answer, prompt) = (&said[*i], &group[*i]);
                    let ended = answer.last().is_some_and(|id| ends.contains(id));
                    !ended && answer.len() < max_tokens && prompt.len() + answer.len() <= self.context
                };
                let running: Vec<usize> = (0..group.len()).filter(goes_on).collect();
                if running.is_empty() {
                    break;
                }
                for running in running.chunks(self.logit_rows) {
                    let mut batch = BatchBuilder::new(self.n_pages);
                    for &i in running {
                        let at = group[i].len() + said[i].len() - 1;
                        let last = &said[i][said[i].len() - 1..];
                        batch.push(last, at, &self.slots[i], 1).map_err(BackendError::from)?;
                    }
                    self.forward(&batch.finish());
                    for (&i, row) in running.iter().zip(self.logits.chunks_exact(vocab)) {
                        said[i].push(likeliest(row));
                    }
                }
            }
            said.iter_mut().for_each(|answer| answer.truncate(max_tokens));
            answers.extend(said);
        }
        Ok(answers)
    }
}

#[cfg(test)]
mod tests;

//! A loaded model that runs workloads step by step, without scheduler and sampler: what the backend can do.
//!
//! Invariant: sequences of a batch share the pages of the prompt before them and write to pages of their own, so the
//! shared part stays as it is and every run starts from the same state.

use std::time::{Duration, Instant};

use pelton_backend::{Ask, Backend, BackendError, Batch, BatchBuilder, KvType, PAGE_LEN, Weighed};
use pelton_model::{Decoder, Workspace};

use super::ledger::{Ledger, Work};
use super::metered::Metered;
use super::{Kind, Workload};
use crate::Error;

/// Steps that the ledger of a decode step is the mean of.
const LEDGER_STEPS: usize = 16;

/// A model whatever its backend.
pub(super) trait Steps {
    /// What the backend says of itself.
    fn describe(&self) -> String;
    /// Runs a workload once, its prompt already there; the seconds it took.
    fn run(&mut self, workload: &Workload) -> Result<f64, Error>;
    /// Runs a prefill, or a few decode steps in the middle of the workload, with the meter on: the mean of a step.
    fn ledger(&mut self, workload: &Workload) -> Result<Ledger, Error>;
    /// Bytes and operations of the whole workload; also warms everything up.
    fn work(&mut self, workload: &Workload) -> Result<Work, Error>;
}

/// A decoder on a backend, and its pool of pages: those of the longest shared prompt come first.
pub(super) struct Runner<B: Backend> {
    backend: Metered<B>,
    decoder: Decoder<Metered<B>>,
    kv: B::Kv,
    work: Workspace<Metered<B>>,
    logits: Vec<f32>,
    weighed: Vec<Weighed>,
    shared_pages: usize,
    n_pages: usize,
    batch_rows: usize,
    /// Tokens of the shared prompt that are in the pool.
    filled: usize,
}

/// Pages of the shared prompt, and of all sequences of the largest batch.
pub(super) fn pages(workloads: &[Workload]) -> (usize, usize) {
    let shared = workloads.iter().map(|w| w.depth.div_ceil(PAGE_LEN)).max().unwrap_or(0);
    let own = workloads.iter().map(|w| w.batch.saturating_mul(own_pages(w))).max().unwrap_or(0);
    (shared, own)
}

/// Pages that one sequence writes: what follows the last full page of its prompt.
fn own_pages(w: &Workload) -> usize {
    (w.depth % PAGE_LEN).saturating_add(w.tokens).div_ceil(PAGE_LEN)
}

/// The id at a position of a sequence: fixed, and without order.
fn id(vocab: usize, sequence: usize, position: usize) -> u32 {
    let mixed = (position as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
        ^ (sequence as u64).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    ((mixed ^ (mixed >> 29)) % vocab as u64) as u32
}

impl<B: Backend> Runner<B> {
    pub(super) fn new(
        mut backend: Metered<B>,
        decoder: Decoder<Metered<B>>,
        workloads: &[Workload],
        kv_type: KvType,
        batch_rows: usize,
    ) -> Result<Runner<B>, Error> {
        let (shared_pages, own) = pages(workloads);
        let n_pages = shared_pages + own;
        let kv = backend.kv_pool(&decoder.kv_layout(n_pages, kv_type))?;
        let work = decoder.workspace(&mut backend);
        let (logits, weighed) = (Vec::new(), Vec::new());
        Ok(Runner { backend, decoder, kv, work, logits, weighed, shared_pages, n_pages, batch_rows, filled: 0 })
    }

    fn forward(&mut self, batch: &Batch) {
        self.decoder.step(&mut self.backend, batch, &mut self.kv, &mut self.work);
        // As an engine chooses the best tokens: where the logits are, or from the logits.
        let asks = vec![Ask::default(); batch.logit_rows.len()];
        if !asks.is_empty() && !self.work.weigh(&mut self.backend, &asks, &mut self.weighed) {
            self.work.logits(&mut self.backend, &mut self.logits);
        }
    }

    /// Puts the shared prompt into the pool, as far as it is not there.
    fn fill(&mut self, depth: usize) -> Result<(), Error> {
        let pages: Vec<u32> = (0..self.shared_pages as u32).collect();
        while self.filled < depth {
            let end = depth.min(self.filled + self.batch_rows);
            let ids: Vec<u32> = (self.filled..end).map(|p| id(self.decoder.vocab_size(), 0, p)).collect();
            let mut batch = BatchBuilder::new(self.n_pages);
            batch.push(&ids, self.filled, &pages, 0).map_err(BackendError::from)?;
            self.forward(&batch.finish());
            self.filled = end;
        }
        Ok(())
    }

    /// The page tables of a workload's sequences, all of them after the shared prompt.
    fn tables(&mut self, w: &Workload) -> Result<Vec<Vec<u32>>, Error> {
        self.fill(w.depth)?;
        let (whole, own) = (w.depth / PAGE_LEN, own_pages(w));
        let mut tables = Vec::with_capacity(w.batch);
        for s in 0..w.batch {
            let first = self.shared_pages + s * own;
            if !w.depth.is_multiple_of(PAGE_LEN) {
                self.backend.copy_page(&mut self.kv, whole as u32, first as u32);
            }
            tables.push((0..whole as u32).chain((first..first + own).map(|p| p as u32)).collect());
        }
        Ok(tables)
    }

    fn prefill(&mut self, w: &Workload, table: &[u32]) -> Result<(), Error> {
        let vocab = self.decoder.vocab_size();
        for start in (0..w.tokens).step_by(self.batch_rows) {
            let end = w.tokens.min(start + self.batch_rows);
            let ids: Vec<u32> = (start..end).map(|p| id(vocab, 1, w.depth + p)).collect();
            let mut batch = BatchBuilder::new(self.n_pages);
            // The last token of a prompt is the one whose logits are wanted.
            batch.push(&ids, w.depth + start, table, usize::from(end == w.tokens)).map_err(BackendError::from)?;
            self.forward(&batch.finish());
        }
        Ok(())
    }

    /// Token `i` of every sequence.
    fn decode_step(&mut self, w: &Workload, tables: &[Vec<u32>], i: usize) -> Result<(), Error> {
        let vocab = self.decoder.vocab_size();
        let mut batch = BatchBuilder::new(self.n_pages);
        for (s, table) in tables.iter().enumerate() {
            let position = w.depth + i;
            batch.push(&[id(vocab, s + 1, position)], position, table, 1).map_err(BackendError::from)?;
        }
        self.forward(&batch.finish());
        Ok(())
    }

    /// The ledger of a prefill, or the mean one of `steps` decode steps in the middle.
    fn metered(&mut self, w: &Workload, steps: usize) -> Result<Ledger, Error> {
        let tables = self.tables(w)?;
        self.backend.start();
        let start = Instant::now();
        let steps = match w.kind {
            Kind::Prefill => {
                self.prefill(w, &tables[0])?;
                1
            }
            Kind::Decode => {
                let steps = steps.min(w.tokens);
                let first = (w.tokens - steps) / 2;
                (first..first + steps).try_for_each(|i| self.decode_step(w, &tables, i))?;
                steps
            }
        };
        let time: Duration = start.elapsed();
        Ok(self.backend.stop(time).mean(steps))
    }
}

impl<B: Backend> Steps for Runner<B> {
    fn describe(&self) -> String {
        self.backend.describe()
    }

    fn run(&mut self, w: &Workload) -> Result<f64, Error> {
        let tables = self.tables(w)?;
        let start = Instant::now();
        match w.kind {
            Kind::Prefill => self.prefill(w, &tables[0])?,
            Kind::Decode => (0..w.tokens).try_for_each(|i| self.decode_step(w, &tables, i))?,
        }
        Ok(start.elapsed().as_secs_f64())
    }

    fn ledger(&mut self, w: &Workload) -> Result<Ledger, Error> {
        self.metered(w, LEDGER_STEPS)
    }

    fn work(&mut self, w: &Workload) -> Result<Work, Error> {
        let step = self.metered(w, 1)?.work();
        Ok(step * if w.kind == Kind::Decode { w.tokens as f64 } else { 1.0 })
    }
}

//! The engine's side of speculation: before a plan, and after its step.
//!
//! Invariant: with or without it, and whatever drafters propose, requests yield the same bits.

use std::time::Instant;

use pelton_backend::{Backend, BackendError};
use pelton_model::{Decoder, Workspace};
use pelton_sched::{Plan, SeqId};

use super::Engine;
use super::verify::Chosen;
use crate::sequence::{Body, Sequence};
use crate::speculate::Speculator;
use crate::{DraftModel, Drafter, SpeculationOptions};

impl<B: Backend> Engine<B> {
    /// From now on asks drafters for the next tokens; there are none until [`Engine::add_drafter`].
    pub fn speculate(&mut self, options: SpeculationOptions) {
        let bytes = self.model.placements().iter().map(|p| p.bytes).sum();
        self.speculator = Some(Speculator::new(options, bytes));
    }

    /// Adds a drafter, of less importance than those before it. Without [`Engine::speculate`] it does nothing.
    pub fn add_drafter(&mut self, drafter: Box<dyn Drafter<B>>) {
        if let Some(speculator) = &mut self.speculator {
            speculator.add(drafter);
        }
    }

    /// Adds a smaller model as a drafter; it was loaded on this engine's backend, and its vocabulary was compared
    /// ([`check_vocabularies`](crate::check_vocabularies)). `context`: the longest text that it can follow.
    ///
    /// # Errors
    /// Where its keys and values do not fit memory.
    pub fn add_draft_model(&mut self, name: &str, model: Decoder<B>, context: usize) -> Result<(), BackendError>
    where
        B: 'static,
        Decoder<B>: Send,
        Workspace<B>: Send,
        B::Kv: Send,
    {
        let pool = (self.limits.n_pages, self.limits.kv_type);
        let vocab = self.model.vocab_size();
        let draft = DraftModel::new(&mut self.backend, name.to_string(), model, pool, vocab, context)?;
        self.add_drafter(Box::new(draft));
        Ok(())
    }

    /// The names of its drafters.
    pub fn drafters(&self) -> Vec<String> {
        self.speculator.as_ref().map_or_else(Vec::new, Speculator::names)
    }

    /// Sets drafts for the next plan.
    pub(super) fn propose(&mut self) {
        if let Some(speculator) = &mut self.speculator {
            speculator.propose(&mut self.sched, &mut self.sequences, &mut self.backend, &self.eos);
        }
    }

    /// Learns from the step of `plan`, which began at `start`.
    pub(super) fn learn(&mut self, plan: &Plan, chosen: &Chosen, start: Instant) {
        let Some(speculator) = &mut self.speculator else { return };
        let learned = speculator.learn(plan, &chosen.verified, start.elapsed().as_secs_f64());
        let Some((plain, seconds)) = learned else { return };
        for row in &chosen.verified {
            if let Some(sequence) = self.sequences.get_mut(&row.seq) {
                sequence.note_step(row.n_new, plain, seconds);
            }
        }
    }

    /// Takes a sequence out of the books.
    pub(super) fn take(&mut self, seq: SeqId) -> Option<Sequence> {
        let sequence = self.sequences.remove(&seq)?;
        if let (Some(speculator), Body::Answer(answer)) = (&mut self.speculator, &sequence.body) {
            speculator.forget(seq, answer.len());
        }
        Some(sequence)
    }

    /// Shows hidden states to drafters that read them, `(rows, hidden)` of the whole step.
    pub(super) fn show_hidden(&mut self, plan: &Plan) {
        let hidden = self.model.hidden();
        let Some(speculator) = &mut self.speculator else { return };
        let mut states = self.hidden.as_slice();
        for row in &plan.rows {
            let (own, rest) = states.split_at(row.tokens.len() * hidden);
            states = rest;
            if matches!(self.sequences.get(&row.seq), Some(Sequence { body: Body::Answer(_), .. })) {
                speculator.see_hidden(row.seq, row.start, own);
            }
        }
    }
}

//! Between the engine and its drafters: asks, sets drafts, and learns from what became of them.
//!
//! Invariant: beside prompts only drafts that no model made are run, as few as are worth their rows, so prompts are never
//! held up by drafting; and what steps cost is learned from those without prompts, wherever there are any.

use std::collections::HashMap;
use std::time::Instant;

use pelton_backend::Backend;
use pelton_sched::{Plan, Scheduler, SeqId};

use super::acceptance::{Outcomes, Record, survival_of};
use super::asks::{Ask, Asks};
use super::controller::{Controller, Order, Outlook, Prospect};
use super::{Drafter, MAX_DRAFT, Offer, SpeculationOptions};
use crate::sequence::{Body, Sequence};

/// Tokens of an answer, until answers have ended.
const TYPICAL_ANSWER: f64 = 64.0;

/// What became of one sequence's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verified {
    pub(crate) seq: SeqId,
    /// Tokens that the row gave.
    pub(crate) n_new: usize,
    /// Whether the target chose another token than the draft behind the last accepted one.
    pub(crate) rejected: bool,
}

/// What was drafted for a sequence in the step under way.
struct Drafted {
    drafter: usize,
    classes: Vec<u8>,
}

/// The step under way.
#[derive(Default)]
struct UnderWay {
    drafted: HashMap<SeqId, Drafted>,
    /// Seconds that drafting took.
    seconds: f64,
    /// Seconds that went by between the first look and the last draft.
    looking: f64,
    /// Whether any sequence may have drafts at all; where none may, the step is no affair of speculation's.
    is_wanted: bool,
}

/// Drafters, and what is known of them.
pub(crate) struct Speculator<B: Backend> {
    options: SpeculationOptions,
    drafters: Vec<Box<dyn Drafter<B>>>,
    records: Vec<Record>,
    /// Of each sequence, by drafter.
    own: HashMap<SeqId, Vec<Outcomes>>,
    controller: Controller,
    /// Bytes of the target's weights.
    target_bytes: usize,
    /// Length of an answer, on average.
    typical: f64,
    under_way: UnderWay,
    /// Seconds that learning from the last step took.
    learning: f64,
}

impl<B: Backend> Speculator<B> {
    pub(crate) fn new(options: SpeculationOptions, target_bytes: usize) -> Speculator<B> {
        let max_draft = options.max_draft.min(MAX_DRAFT);
        let forced = options.forced.map(|n| n.min(MAX_DRAFT));
        Speculator {
            options: SpeculationOptions { max_draft, forced, ..options },
            drafters: Vec::new(),
            records: Vec::new(),
            own: HashMap::new(),
            controller: Controller::new(&[], options.trust, options.max_rows),
            target_bytes: target_bytes.max(1),
            typical: TYPICAL_ANSWER,
            under_way: UnderWay::default(),
            learning: 0.0,
        }
    }

    pub(crate) fn add(&mut self, drafter: Box<dyn Drafter<B>>) {
        self.drafters.push(drafter);
        self.records.push(Record::default());
        let share = |bytes: usize| bytes as f64 / self.target_bytes as f64;
        let sizes: Vec<Option<f64>> = self.drafters.iter().map(|drafter| drafter.model_bytes().map(share)).collect();
        self.controller = Controller::new(&sizes, self.options.trust, self.options.max_rows);
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.drafters.iter().map(|drafter| drafter.name().to_string()).collect()
    }

    /// A sequence has ended, after `tokens` tokens.
    pub(crate) fn forget(&mut self, seq: SeqId, tokens: usize) {
        if self.own.remove(&seq).is_some() {
            self.typical += (tokens as f64 - self.typical) / 16.0;
        }
        self.drafters.iter_mut().for_each(|drafter| drafter.forget(seq));
    }

    /// Drafts for the next plan.
    pub(crate) fn propose(
        &mut self,
        sched: &mut Scheduler,
        sequences: &mut HashMap<SeqId, Sequence>,
        backend: &mut B,
        eos: &[u32],
    ) {
        self.under_way = UnderWay::default();
        let prompts = if self.options.forced.is_some() { 0 } else { sched.prompt_tokens() };
        let is_answer = |id: &SeqId| matches!(sequences.get(id), Some(Sequence { body: Body::Answer(_), .. }));
        let ids: Vec<SeqId> = sched.decoding().filter(is_answer).collect();
        let wants: Vec<bool> = ids.iter().map(|id| sequences[id].request.speculate).collect();
        self.under_way.is_wanted = wants.contains(&true);
        if !self.under_way.is_wanted || !self.may_look(ids.len(), prompts) {
            return;
        }
        let start = Instant::now();
        self.look((&ids, &wants), prompts, sched, sequences, backend, eos);
        self.under_way.looking = start.elapsed().as_secs_f64();
    }

    /// Whether to look for drafts for `n` sequences beside so many tokens of prompts.
    fn may_look(&mut self, n: usize, prompts: usize) -> bool {
        match (self.options.forced, prompts) {
            (Some(_), _) => true,
            (None, 0) => self.controller.may_look(n),
            (None, _) => self.controller.may_look_beside(n, prompts),
        }
    }

    /// Asks drafters what they have, chooses, and sets drafts, for the sequences that decode next and whether they want
    /// any; beside so many tokens of prompts.
    fn look(
        &mut self,
        (ids, wants): (&[SeqId], &[bool]),
        prompts: usize,
        sched: &mut Scheduler,
        sequences: &mut HashMap<SeqId, Sequence>,
        backend: &mut B,
        eos: &[u32],
    ) {
        let n = ids.len();
        let is_asked = |drafter: usize| {
            let survival = || self.records[drafter].survival(&Outcomes::default(), self.options.max_draft);
            let has_model = self.controller.costs.drafters[drafter].is_some();
            match prompts {
                _ if self.options.forced.is_some() => true,
                0 => self.controller.is_worth_asking(drafter, survival, n),
                _ => !has_model,
            }
        };
        let new = ids.iter().zip(wants).filter(|&(id, &wants)| wants && !self.own.contains_key(id));
        for (&id, _) in new.collect::<Vec<_>>() {
            let request = &sequences[&id].request;
            self.own.insert(id, vec![Outcomes::default(); self.records.len()]);
            let begin = |drafter: &mut Box<dyn Drafter<B>>| drafter.begin(id, request.prompt.len(), request.cache_salt);
            self.drafters.iter_mut().for_each(begin);
        }
        let asked: Vec<bool> = (0..self.drafters.len()).map(is_asked).collect();
        let offer = |(&id, &wants): (&SeqId, &bool)| match wants {
            true => self.offers(id, &asked, sched),
            false => vec![Offer::default(); self.drafters.len()],
        };
        let offers: Vec<Vec<Offer>> = ids.iter().zip(wants).map(offer).collect();
        let order = match self.options.forced {
            Some(len) => forced(&offers, len),
            None => {
                let outlooks: Vec<Outlook> =
                    ids.iter().zip(&offers).map(|(&id, offers)| self.outlook(id, offers, sched)).collect();
                match prompts {
                    0 => self.controller.choose(&outlooks, self.options.max_draft),
                    _ => self.controller.choose_beside(&outlooks, prompts, self.options.max_draft),
                }
            }
        };
        if order.picks.iter().all(Option::is_none) {
            return;
        }
        for drafter in 0..self.drafters.len() {
            let asks = self.asks(drafter, ids, &order, sched, sequences);
            if !asks.is_empty() {
                let asks = self.draft(drafter, asks, sequences, backend);
                self.take(drafter, asks, sequences, sched, eos);
            }
        }
        if order.gain > 0.0 {
            self.trim(n, sched);
        }
    }

    fn offers(&mut self, id: SeqId, asked: &[bool], sched: &Scheduler) -> Vec<Offer> {
        let text = sched.tokens(id).expect("it decodes next");
        let pages = sched.pages(id).expect("it decodes next");
        let offer = |(drafter, &asked): (&mut Box<dyn Drafter<B>>, &bool)| match asked {
            true => drafter.offer(id, text, pages),
            false => Offer::default(),
        };
        self.drafters.iter_mut().zip(asked).map(offer).collect()
    }

    fn outlook(&mut self, id: SeqId, offers: &[Offer], sched: &Scheduler) -> Outlook {
        let room = sched.room(id).unwrap_or(1);
        let generated = sched.generated(id).map_or(0, <[u32]>::len) as f64;
        let own = self.own.entry(id).or_insert_with(|| vec![Outcomes::default(); self.records.len()]);
        let prospect = |((offer, record), own): ((&Offer, &Record), &Outcomes)| {
            let len = offer.len.min(self.options.max_draft).min(room.saturating_sub(1));
            let survival = match offer.class {
                Some(class) => survival_of(&vec![class; len], &record.of_classes(own)),
                None => record.survival(own, len),
            };
            (len > 0).then_some(Prospect { survival, behind: offer.behind })
        };
        let prospects = offers.iter().zip(&self.records).zip(own.iter()).map(prospect).collect();
        let remaining = (self.typical - generated).max(self.typical / 4.0).max(8.0);
        Outlook { prospects, remaining: remaining.min(room as f64) }
    }

    /// What one drafter is asked for.
    fn asks(
        &self,
        drafter: usize,
        ids: &[SeqId],
        order: &Order,
        sched: &mut Scheduler,
        sequences: &HashMap<SeqId, Sequence>,
    ) -> Vec<Ask> {
        let picked = order.picks.iter().filter(|pick| pick.is_some_and(|(d, _)| d == drafter)).count();
        let floor = self.controller.floor(drafter, picked, order.gain);
        let mut asks = Vec::new();
        for (&seq, pick) in ids.iter().zip(&order.picks) {
            let Some(most) = pick.filter(|&(d, _)| d == drafter).map(|(_, len)| len) else { continue };
            let Some(ahead) = sched.reserve_ahead(seq, most).filter(|ahead| ahead.n > 0) else { continue };
            let text = sched.tokens(seq).expect("it decodes next");
            let own = self.own.get(&seq).map_or_else(Outcomes::default, |own| own[drafter]);
            asks.push(Ask {
                seq,
                text: text.to_vec(),
                len: text.len(),
                prompt_len: sequences[&seq].request.prompt.len(),
                most: ahead.n,
                pages: ahead.pages,
                classes: Vec::new(),
                acceptance: self.records[drafter].of_classes(&own),
                survival: 1.0,
                floor,
            });
        }
        asks
    }

    fn draft(
        &mut self,
        drafter: usize,
        asks: Vec<Ask>,
        sequences: &mut HashMap<SeqId, Sequence>,
        backend: &mut B,
    ) -> Vec<Ask> {
        let start = Instant::now();
        let mut asks = Asks { asks, sequences, passes: Vec::new() };
        self.drafters[drafter].draft(backend, &mut asks);
        if self.drafters[drafter].model_bytes().is_some() {
            let whole = start.elapsed().as_secs_f64();
            let passes: f64 = asks.passes.iter().map(|&(_, seconds)| seconds).sum();
            let credible = asks.passes.iter().map(|&(rows, seconds)| self.controller.note_pass(drafter, rows, seconds));
            // What lies between the passes is part of them.
            self.under_way.seconds += credible.sum::<f64>() * (whole / passes.max(1e-9)).clamp(1.0, 2.0);
        }
        asks.asks
    }

    /// Hands drafts to the scheduler, up to the first that would end the answer: nothing is run behind that.
    fn take(
        &mut self,
        drafter: usize,
        asks: Vec<Ask>,
        sequences: &HashMap<SeqId, Sequence>,
        sched: &mut Scheduler,
        eos: &[u32],
    ) {
        for ask in asks {
            let goes_on = sequences[&ask.seq].request.ignore_eos;
            let drafts = ask.drafts();
            let len = drafts.iter().position(|id| !goes_on && eos.contains(id)).unwrap_or(drafts.len());
            if len > 0 && sched.set_draft(ask.seq, &drafts[..len]) {
                let classes = ask.classes[..len].to_vec();
                self.under_way.drafted.insert(ask.seq, Drafted { drafter, classes });
            }
        }
    }

    /// Shortens drafts to what is worth its rows, now that it is known how sure their drafters are.
    fn trim(&mut self, n: usize, sched: &mut Scheduler) {
        let mut seqs: Vec<SeqId> = self.under_way.drafted.keys().copied().collect();
        seqs.sort_unstable();
        let survival = |seq: &SeqId| {
            let Drafted { drafter, classes } = &self.under_way.drafted[seq];
            let own = self.own.get(seq).map_or_else(Outcomes::default, |own| own[*drafter]);
            survival_of(classes, &self.records[*drafter].of_classes(&own))
        };
        let survivals: Vec<Vec<f64>> = seqs.iter().map(survival).collect();
        let survivals: Vec<&[f64]> = survivals.iter().map(Vec::as_slice).collect();
        for (seq, len) in seqs.into_iter().zip(self.controller.trim(&survivals, n)) {
            sched.shorten_draft(seq, len);
        }
    }

    /// Learns from a step that took `seconds`, drafting not among them. Gives, for each row that decodes, what the step
    /// would have taken without drafts and what it took.
    pub(crate) fn learn(&mut self, plan: &Plan, verified: &[Verified], seconds: f64) -> Option<(f64, f64)> {
        let under_way = std::mem::take(&mut self.under_way);
        let start = Instant::now();
        let has_looked = under_way.looking > 0.0;
        if has_looked {
            let looked = (under_way.looking - under_way.seconds).max(0.0) + std::mem::take(&mut self.learning);
            self.controller.note_look(plan.rows.len(), looked);
        }
        self.note_drafts(plan, verified, &under_way);
        let learned = self.note_step(plan, verified, seconds, &under_way);
        if has_looked {
            self.learning = start.elapsed().as_secs_f64();
        }
        learned
    }

    /// Learns which drafts were accepted.
    fn note_drafts(&mut self, plan: &Plan, verified: &[Verified], under_way: &UnderWay) {
        if under_way.drafted.is_empty() {
            return;
        }
        let n_drafts: HashMap<SeqId, usize> = plan.rows.iter().map(|row| (row.seq, row.n_drafts)).collect();
        for row in verified {
            let Some(Drafted { drafter, classes }) = under_way.drafted.get(&row.seq) else { continue };
            let run = n_drafts.get(&row.seq).copied().unwrap_or(0);
            if run == 0 {
                continue;
            }
            let accepted = row.n_new.saturating_sub(usize::from(row.rejected)).min(run);
            // A sequence that has just ended has no record any more.
            let mut ended = Outcomes::default();
            let own = self.own.get_mut(&row.seq).map_or(&mut ended, |own| &mut own[*drafter]);
            self.records[*drafter].note(own, &classes[..run], accepted, row.rejected);
            let survival = self.records[*drafter].survival(&Outcomes::default(), self.options.max_draft);
            self.controller.note_drafts(*drafter, accepted, &survival, plan.rows.len());
        }
    }

    /// Learns what the step took.
    fn note_step(
        &mut self,
        plan: &Plan,
        verified: &[Verified],
        seconds: f64,
        under_way: &UnderWay,
    ) -> Option<(f64, f64)> {
        let decodes = plan.rows.iter().all(|row| row.sample && row.tokens.len() == 1 + row.n_drafts);
        let is_pure = decodes && plan.rows.iter().all(|row| row.copies.is_empty()) && verified.len() == plan.rows.len();
        if !under_way.is_wanted && is_pure {
            let n = plan.rows.len();
            self.controller.note_others(n, seconds);
            return None;
        }
        if !is_pure {
            return self.note_mixed(plan, verified, seconds, under_way);
        }
        let n = plan.rows.len();
        let tokens = verified.iter().map(|row| row.n_new).sum();
        let plain = self.controller.note_step(n, plan.n_tokens() - n, tokens, seconds, under_way.seconds)?;
        Some((plain, seconds + under_way.seconds))
    }

    /// Learns what a step took that did not only decode.
    fn note_mixed(
        &mut self,
        plan: &Plan,
        verified: &[Verified],
        seconds: f64,
        under_way: &UnderWay,
    ) -> Option<(f64, f64)> {
        let decoding = plan.rows.iter().filter(|row| row.sample && row.tokens.len() == 1 + row.n_drafts);
        let (n, x) = decoding.fold((0, 0), |(n, x), row| (n + 1, x + row.n_drafts));
        let prompts = plan.n_tokens() - n - x;
        if n == 0 || prompts == 0 || !under_way.is_wanted {
            let rows = if n == 0 { prompts } else { 0 };
            self.controller.note_prompts(rows, seconds);
            return None;
        }
        // Rows of prompts give one token each.
        let accepted = verified.iter().map(|row| row.n_new.saturating_sub(1)).sum();
        let drafts = self.controller.note_beside(n, prompts, (x, accepted), seconds);
        Some(((seconds - drafts).max(0.5 * seconds) + under_way.seconds, seconds + under_way.seconds))
    }

    /// Whether any drafter reads hidden states.
    pub(crate) fn reads_hidden(&self) -> bool {
        self.drafters.iter().any(|drafter| drafter.reads_hidden())
    }

    pub(crate) fn see_hidden(&mut self, seq: SeqId, start: usize, states: &[f32]) {
        let readers = self.drafters.iter_mut().filter(|drafter| drafter.reads_hidden());
        readers.for_each(|drafter| drafter.see_hidden(seq, start, states));
    }
}

/// `len` drafts of the first drafter that has any, for each.
fn forced(offers: &[Vec<Offer>], len: usize) -> Order {
    let pick = |offers: &Vec<Offer>| {
        let drafter = offers.iter().position(|offer| offer.len > 0)?;
        (len > 0).then_some((drafter, len))
    };
    Order { picks: offers.iter().map(pick).collect(), gain: 0.0 }
}

//! From logits to tokens: one for each row that ended its known tokens, and more where drafts hold.
//!
//! Invariant: each token is chosen from its own row of logits, behind the tokens chosen before it, as it would be
//! without drafts; a draft only decides whether the next row's logits are those of this text.

use std::ops::Range;
use std::sync::Mutex;

use pelton_backend::{Ask, Backend, Weighed};
use pelton_model::Workspace;
use pelton_sched::{Plan, PlanRow, SeqId, StepOutcome};

use super::Engine;
use crate::answer::{Advance, Answer, AnswerError, Ends};
use crate::sequence::{Body, Sequence};
use crate::speculate::Verified;
use crate::{Event, Request, RequestId};

/// What a plan's rows gave.
#[derive(Default)]
pub(super) struct Chosen {
    /// For the scheduler.
    pub(super) outcomes: Vec<StepOutcome>,
    /// For the controller of drafts.
    pub(super) verified: Vec<Verified>,
    /// Sequences whose prompt has more answers than one, at the first token of the first.
    pub(super) begun: Vec<(SeqId, RequestId)>,
}

/// Numbers of all rows' logits from which on several threads share them: a dispatch costs what these do.
const SHARED_LOGITS: usize = 1 << 15;

/// A row of a plan, while its tokens are chosen.
struct Draw<'a> {
    sequence: Sequence,
    drafts: &'a [u32],
    /// The first of its `1 + drafts` rows of logits.
    first: usize,
    drawn: Drawn,
    /// No more tokens come of it.
    is_done: bool,
}

/// The tokens that a row gave.
#[derive(Default)]
struct Drawn {
    advances: Vec<Advance>,
    /// The last of them is not what was drafted.
    rejected: bool,
    error: Option<AnswerError>,
}

impl Draw<'_> {
    /// Its rows of logits that no token was chosen from yet.
    fn open(&self) -> Range<usize> {
        let end = self.first + 1 + self.drafts.len();
        if self.is_done { end..end } else { self.first + self.drawn.advances.len()..end }
    }

    fn answer(&mut self) -> (&mut Answer, &Request) {
        let Body::Answer(answer) = &mut self.sequence.body else { unreachable!("only answers have logits") };
        (answer, &self.sequence.request)
    }

    /// What is to be found out about its rows of logits.
    fn asks(&mut self, vocab: usize) -> Vec<Option<Ask>> {
        let n = 1 + self.drafts.len();
        let (answer, request) = self.answer();
        (0..n).map(|ahead| answer.ask(request, vocab, ahead)).collect()
    }

    /// Chooses tokens as long as they are what was drafted, and one more; ends early at a row whose logits are needed.
    fn run_weighed(&mut self, rows: &[Weighed], vocab: usize, ends: Ends<'_>) {
        for weighed in rows {
            let (answer, request) = self.answer();
            match answer.advance_weighed(request, (weighed, vocab), ends).transpose() {
                Some(advance) => self.take(advance),
                None => return,
            }
            if self.is_done {
                return;
            }
        }
    }

    /// The same from the logits of its open rows.
    fn run(&mut self, logits: &mut [f32], vocab: usize, ends: Ends<'_>) {
        for logits in logits.chunks_exact_mut(vocab) {
            let (answer, request) = self.answer();
            let advance = answer.advance(request, logits, ends);
            self.take(advance);
            if self.is_done {
                return;
            }
        }
    }

    fn take(&mut self, advance: Result<Advance, AnswerError>) {
        match advance {
            Ok(advance) => {
                let index = self.drawn.advances.len();
                self.drawn.rejected = self.drafts.get(index).is_some_and(|&draft| draft != advance.sampled.id);
                self.is_done = advance.finish.is_some() || self.drawn.rejected || index == self.drafts.len();
                self.drawn.advances.push(advance);
            }
            Err(e) => (self.drawn.error, self.is_done) = (Some(e), true),
        }
    }
}

/// Chooses what can be chosen without the logits, where the backend weighs them; `false` where nothing can. A backend that
/// does not is not asked again: `weighs` says so.
fn weigh<B: Backend>(
    backend: &mut B,
    work: &mut Workspace<B>,
    draws: &mut [Draw<'_>],
    (vocab, ends): (usize, Ends<'_>),
    weighs: &mut bool,
) -> bool {
    if !*weighs {
        return false;
    }
    let asks: Vec<Option<Ask>> = draws.iter_mut().flat_map(|draw| draw.asks(vocab)).collect();
    if asks.iter().all(Option::is_none) {
        return false;
    }
    let asks: Vec<Ask> = asks.into_iter().map(Option::unwrap_or_default).collect();
    let mut weighed = Vec::new();
    *weighs = work.weigh(backend, &asks, &mut weighed);
    if !*weighs {
        return false;
    }
    for draw in draws {
        let rows = draw.open();
        draw.run_weighed(&weighed[rows], vocab, ends);
    }
    true
}

impl<B: Backend> Engine<B> {
    /// Chooses tokens for each row of the plan that ended its known tokens.
    pub(super) fn choose(&mut self, plan: &Plan, events: &mut Vec<(RequestId, Event)>) -> Chosen {
        let mut drawn = self.draw(plan).into_iter();
        let mut chosen = Chosen::default();
        for row in plan.rows.iter().filter(|row| row.sample) {
            if let Some(sequence @ Sequence { body: Body::Vector(_), .. }) = self.sequences.get_mut(&row.seq) {
                sequence.note_token();
                self.finish_vector(row.seq, events);
                chosen.outcomes.push(StepOutcome { seq: row.seq, new_tokens: vec![0], finished: true });
            } else {
                let drawn = drawn.next().expect("tokens of each row that is an answer's");
                self.extend(row, drawn, &mut chosen, events);
            }
        }
        chosen
    }

    /// The tokens of each row that is an answer's and ended its known tokens, in the order of the plan. Rows know nothing
    /// of each other, so threads share them.
    fn draw(&mut self, plan: &Plan) -> Vec<Drawn> {
        let is_answer = |s: Option<&Sequence>| s.is_some_and(|s| matches!(s.body, Body::Answer(_)));
        let rows: Vec<&PlanRow> =
            plan.rows.iter().filter(|row| row.sample && is_answer(self.sequences.get(&row.seq))).collect();
        if rows.is_empty() {
            return Vec::new();
        }
        let (vocab, ends) = (self.model.vocab_size(), Ends { eos: &self.eos, context: self.limits.context });
        let mut draws = Vec::with_capacity(rows.len());
        let mut first = 0;
        for row in &rows {
            let sequence = self.sequences.remove(&row.seq).expect("looked up before");
            let drafts = &row.tokens[row.tokens.len() - row.n_drafts..];
            draws.push(Draw { sequence, drafts, first, drawn: Drawn::default(), is_done: false });
            first += 1 + row.n_drafts;
        }
        let (backend, work) = (&mut self.backend, &mut self.work);
        let is_weighed = weigh(backend, work, &mut draws, (vocab, ends), &mut self.weighs);
        self.weighed_tokens += draws.iter().map(|draw| draw.drawn.advances.len() as u64).sum::<u64>();
        let mut logits = if is_weighed {
            let open = draws.iter().map(Draw::open).filter(|open| !open.is_empty());
            self.work.logits_of(&mut self.backend, open, vocab, &mut self.logits);
            self.logits.as_mut_slice()
        } else {
            self.work.logits(&mut self.backend, &mut self.logits)
        };
        let n_logits = logits.len();
        let mut shares = Vec::with_capacity(draws.len());
        for draw in draws {
            let (own, others) = logits.split_at_mut(draw.open().len() * vocab);
            logits = others;
            shares.push(Mutex::new((draw, own)));
        }
        assert!(logits.is_empty(), "a row of logits for each token to choose");
        let run = |i: usize| {
            let (draw, logits) = &mut *shares[i].lock().expect("taken once");
            draw.run(logits, vocab, ends);
        };
        if n_logits < SHARED_LOGITS {
            (0..shares.len()).for_each(run)
        } else {
            self.backend.on_threads(shares.len(), &run)
        }
        let back = |(row, share): (&&PlanRow, Mutex<(Draw<'_>, &mut [f32])>)| {
            let (Draw { sequence, drawn, .. }, _) = share.into_inner().expect("none has panicked");
            self.sequences.insert(row.seq, sequence);
            drawn
        };
        rows.iter().zip(shares).map(back).collect()
    }

    /// Takes in the tokens that a row gave.
    fn extend(&mut self, row: &PlanRow, drawn: Drawn, chosen: &mut Chosen, events: &mut Vec<(RequestId, Event)>) {
        let Some(sequence) = self.sequences.get_mut(&row.seq) else { return }; // a sibling failed in this very step
        sequence.note_token();
        let (id, choice, n) = (sequence.id, sequence.choice, sequence.request.n);
        let Body::Answer(answer) = &sequence.body else { unreachable!("looked up before") };
        let is_first = choice == 0 && answer.len() == drawn.advances.len();
        let (mut new_tokens, mut finish) = (Vec::with_capacity(drawn.advances.len()), None);
        for Advance { sampled, top, text, finish: end } in drawn.advances {
            events.push((id, Event::Token { choice, id: sampled.id, logprob: sampled.logprob, top, text }));
            new_tokens.push(sampled.id);
            finish = end;
        }
        if let Some(e) = drawn.error {
            self.fail(row.seq, id, e.to_string(), events);
            chosen.outcomes.push(StepOutcome { seq: row.seq, new_tokens, finished: true });
            return;
        }
        // Of a row that ended early, the last token may be a draft, too.
        let accepted = new_tokens.len() - usize::from(drawn.rejected || new_tokens.len() > row.n_drafts);
        sequence.note_drafts(row.n_drafts, accepted);
        chosen.verified.push(Verified { seq: row.seq, n_new: new_tokens.len(), rejected: drawn.rejected });
        if is_first && n > 1 {
            chosen.begun.push((row.seq, id));
            self.prepare_siblings(row.seq);
        }
        if let Some(reason) = finish {
            self.finish(row.seq, reason, events);
        }
        chosen.outcomes.push(StepOutcome { seq: row.seq, new_tokens, finished: finish.is_some() });
    }
}

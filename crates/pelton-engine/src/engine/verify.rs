//! From logits to tokens: one for each row that ended its known tokens, and more where drafts hold.
//!
//! Invariant: each token is chosen from its own row of logits, behind the tokens chosen before it, as it would be
//! without drafts; a draft only decides whether the next row's logits are those of this text.

use std::sync::Mutex;

use pelton_backend::Backend;
use pelton_sched::{Plan, PlanRow, SeqId, StepOutcome};

use super::Engine;
use crate::answer::{Advance, AnswerError, Ends};
use crate::sequence::{Body, Sequence};
use crate::speculate::Verified;
use crate::{Event, RequestId};

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
    /// `(1 + drafts, vocab)`.
    logits: &'a mut [f32],
    drawn: Drawn,
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
    /// Chooses tokens as long as they are what was drafted, and one more.
    fn run(&mut self, ends: Ends<'_>) {
        let Body::Answer(answer) = &mut self.sequence.body else { unreachable!("only answers have logits") };
        let vocab = self.logits.len() / (1 + self.drafts.len());
        for (index, logits) in self.logits.chunks_exact_mut(vocab).enumerate() {
            match answer.advance(&self.sequence.request, logits, ends) {
                Ok(advance) => {
                    let finished = advance.finish.is_some();
                    self.drawn.rejected = self.drafts.get(index).is_some_and(|&draft| draft != advance.sampled.id);
                    self.drawn.advances.push(advance);
                    if finished || self.drawn.rejected {
                        return;
                    }
                }
                Err(e) => {
                    self.drawn.error = Some(e);
                    return;
                }
            }
        }
    }
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
        let mut logits = self.work.logits(&mut self.backend, &mut self.logits);
        let n_logits = logits.len();
        let mut draws = Vec::with_capacity(rows.len());
        for row in &rows {
            let (own, others) = logits.split_at_mut((1 + row.n_drafts) * vocab);
            logits = others;
            let sequence = self.sequences.remove(&row.seq).expect("looked up before");
            let drafts = &row.tokens[row.tokens.len() - row.n_drafts..];
            draws.push(Mutex::new(Draw { sequence, drafts, logits: own, drawn: Drawn::default() }));
        }
        assert!(logits.is_empty(), "a row of logits for each token to choose");
        let run = |i: usize| draws[i].lock().expect("taken once").run(ends);
        if n_logits < SHARED_LOGITS {
            (0..draws.len()).for_each(run)
        } else {
            self.backend.on_threads(draws.len(), &run)
        }
        let back = |(row, draw): (&&PlanRow, Mutex<Draw<'_>>)| {
            let Draw { sequence, drawn, .. } = draw.into_inner().expect("none has panicked");
            self.sequences.insert(row.seq, sequence);
            drawn
        };
        rows.iter().zip(draws).map(back).collect()
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

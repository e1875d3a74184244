//! From logits to tokens: one for each row that ended its known tokens, and more where drafts hold.
//!
//! Invariant: each token is chosen from its own row of logits, behind the tokens chosen before it, as it would be
//! without drafts; a draft only decides whether the next row's logits are those of this text.

use pelton_backend::Backend;
use pelton_sched::{Plan, PlanRow, SeqId, StepOutcome};

use super::Engine;
use crate::answer::Ends;
use crate::sequence::Body;
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

impl<B: Backend> Engine<B> {
    /// Chooses tokens for each row of the plan that ended its known tokens.
    pub(super) fn choose(&mut self, plan: &Plan, events: &mut Vec<(RequestId, Event)>) -> Chosen {
        let vocab = self.model.vocab_size();
        let mut chosen = Chosen::default();
        let mut logits = std::mem::take(&mut self.logits);
        let mut rows = logits.chunks_exact_mut(vocab);
        for row in plan.rows.iter().filter(|row| row.sample) {
            let sequence = self.sequences.get_mut(&row.seq).map(|sequence| {
                sequence.note_token();
                &sequence.body
            });
            match sequence {
                Some(Body::Vector(_)) => {
                    self.finish_vector(row.seq, events);
                    chosen.outcomes.push(StepOutcome { seq: row.seq, new_tokens: vec![0], finished: true });
                }
                Some(Body::Answer(_)) => {
                    let own: Vec<&mut [f32]> = rows.by_ref().take(1 + row.n_drafts).collect();
                    assert_eq!(own.len(), 1 + row.n_drafts, "a row of logits for each token to choose");
                    self.extend(row, own, &mut chosen, events);
                }
                // An answer whose sibling failed in this very step.
                None => rows.by_ref().take(1 + row.n_drafts).for_each(drop),
            }
        }
        self.logits = logits;
        chosen
    }

    /// Chooses the tokens of one row: as long as they are what was drafted, and one more.
    fn extend(
        &mut self,
        row: &PlanRow,
        logits: Vec<&mut [f32]>,
        chosen: &mut Chosen,
        events: &mut Vec<(RequestId, Event)>,
    ) {
        let drafts = &row.tokens[row.tokens.len() - row.n_drafts..];
        let (mut new_tokens, mut finish, mut rejected) = (Vec::new(), None, false);
        let ends = Ends { eos: &self.eos, context: self.limits.context };
        let sequence = self.sequences.get_mut(&row.seq).expect("looked up before");
        let (id, choice) = (sequence.id, sequence.choice);
        for (index, logits) in logits.into_iter().enumerate() {
            let Body::Answer(answer) = &mut sequence.body else { unreachable!("looked up before") };
            let is_first = choice == 0 && answer.len() == 0;
            let advance = match answer.advance(&sequence.request, logits, ends) {
                Ok(advance) => advance,
                Err(e) => {
                    self.fail(row.seq, id, e.to_string(), events);
                    chosen.outcomes.push(StepOutcome { seq: row.seq, new_tokens, finished: true });
                    return;
                }
            };
            let (token, logprob) = (advance.sampled.id, advance.sampled.logprob);
            events.push((id, Event::Token { choice, id: token, logprob, top: advance.top, text: advance.text }));
            new_tokens.push(token);
            finish = advance.finish;
            if is_first && sequence.request.n > 1 {
                chosen.begun.push((row.seq, id));
            }
            rejected = drafts.get(index).is_some_and(|&draft| draft != token);
            if finish.is_some() || rejected {
                break;
            }
        }
        // Of a row that ended early, the last token may be a draft, too.
        let accepted = new_tokens.len() - usize::from(rejected || new_tokens.len() > row.n_drafts);
        sequence.note_drafts(row.n_drafts, accepted);
        chosen.verified.push(Verified { seq: row.seq, n_new: new_tokens.len(), rejected });
        if chosen.begun.last() == Some(&(row.seq, id)) {
            self.prepare_siblings(row.seq);
        }
        if let Some(reason) = finish {
            self.finish(row.seq, reason, events);
        }
        chosen.outcomes.push(StepOutcome { seq: row.seq, new_tokens, finished: finish.is_some() });
    }
}

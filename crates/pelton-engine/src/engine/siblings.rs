//! Several answers to one prompt: it is computed once, then forked.
//!
//! Invariant: the other answers are in the books from the first token of the first on, so whoever ends the request
//! ends them, too.

use std::sync::Arc;

use pelton_backend::Backend;
use pelton_sched::SeqId;

use super::Engine;
use crate::answer::Answer;
use crate::{Event, RequestId};

impl<B: Backend> Engine<B> {
    /// Makes the other answers of a prompt that has just been computed; [`Engine::begin_siblings`] lets them run.
    pub(super) fn prepare_siblings(&mut self, seq: SeqId) {
        let first = &self.sequences[&seq];
        let (id, n) = (first.id, first.request.n);
        for choice in 1..n {
            let first = &self.sequences[&seq];
            let answer = Answer::new(&first.request, choice, id.0, self.tokenizer.clone());
            let sibling = first.sibling(choice, answer.expect("the first answer's parameters were in range"));
            let new = self.fresh_seq();
            self.sequences.insert(new, sibling);
            self.groups.get_mut(&id).expect("a sequence has a group").sequences.push(new);
        }
    }

    /// Forks the prompt of `seq` for the other answers, or queues it anew where the first has ended already.
    pub(super) fn begin_siblings(&mut self, seq: SeqId, id: RequestId, events: &mut Vec<(RequestId, Event)>) {
        let Some(group) = self.groups.get(&id) else { return }; // failed meanwhile
        for sibling in group.sequences.clone() {
            if sibling == seq {
                continue;
            }
            let request = Arc::clone(&self.sequences[&sibling].request);
            if self.sched.fork_at(seq, sibling, request.prompt.len()).is_ok() {
                continue;
            }
            if let Err(e) = self.add(sibling, &request) {
                return self.fail(sibling, id, e.to_string(), events);
            }
        }
    }
}

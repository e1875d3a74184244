//! How requests end: each answer once, each request with one last event.
//!
//! Invariant: what a request held (pages, places in the queue, its deadline) is given back with it.

use std::time::Instant;

use pelton_backend::Backend;
use pelton_sched::SeqId;

use super::{Engine, Group};
use crate::sequence::Body;
use crate::{Embedded, Event, FinishReason, Finished, RequestId};

impl<B: Backend> Engine<B> {
    /// Ends a request and frees its pages; gives the end of each of its answers, none where it has ended already.
    pub fn cancel(&mut self, id: RequestId) -> Vec<Event> {
        self.end(id, FinishReason::Cancelled)
    }

    /// Ends all answers of a request for `reason`.
    fn end(&mut self, id: RequestId, reason: FinishReason) -> Vec<Event> {
        let Some(group) = self.forget(id) else { return Vec::new() };
        let mut ended = Vec::new();
        for seq in group.sequences {
            self.sched.cancel(seq);
            ended.extend(self.take(seq).map(|sequence| sequence.finish(reason, false)));
        }
        // Answers that had not begun: they have their prompt's ledger.
        let n_begun = ended.len();
        if let Some(first) = ended.first().cloned() {
            let next = first.choice + n_begun;
            let missing = group.unfinished.saturating_sub(n_begun);
            let choices = next..next + missing;
            ended.extend(choices.map(|choice| Finished { choice, text: String::new(), ..first.clone() }));
        }
        if let Some(last) = ended.last_mut() {
            last.last = true;
        }
        ended.into_iter().map(Event::Finished).collect()
    }

    /// Takes a request out of the books.
    pub(super) fn forget(&mut self, id: RequestId) -> Option<Group> {
        let group = self.groups.remove(&id)?;
        if let Some(deadline) = group.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        Some(group)
    }

    /// Ends requests whose time is up.
    pub(super) fn end_overdue(&mut self, events: &mut Vec<(RequestId, Event)>) {
        while let Some(&(deadline, id)) = self.deadlines.first() {
            if deadline > Instant::now() {
                return;
            }
            let ended = self.end(id, FinishReason::Deadline);
            events.extend(ended.into_iter().map(|event| (id, event)));
        }
    }

    /// An answer is over. A sequence that has ended already is passed over.
    pub(super) fn finish(&mut self, seq: SeqId, reason: FinishReason, events: &mut Vec<(RequestId, Event)>) {
        let Some(sequence) = self.take(seq) else { return };
        let id = sequence.id;
        let group = self.groups.get_mut(&id).expect("a sequence has a group");
        group.sequences.retain(|&other| other != seq);
        group.unfinished -= 1;
        let last = group.unfinished == 0;
        if last {
            self.forget(id);
        }
        events.push((id, Event::Finished(sequence.finish(reason, last))));
    }

    pub(super) fn finish_vector(&mut self, seq: SeqId, events: &mut Vec<(RequestId, Event)>) {
        let Some(sequence) = self.sequences.remove(&seq) else { return };
        self.forget(sequence.id);
        if let Body::Vector(pool) = &sequence.body {
            let embedded = Embedded { values: pool.finish(), timing: sequence.timing() };
            events.push((sequence.id, Event::Embedded(embedded)));
        }
    }

    /// A request cannot go on: all of its answers end. `seq` itself is still to be committed.
    pub(super) fn fail(&mut self, seq: SeqId, id: RequestId, message: String, events: &mut Vec<(RequestId, Event)>) {
        for other in self.forget(id).map(|group| group.sequences).unwrap_or_default() {
            self.take(other);
            if other != seq {
                self.sched.cancel(other);
            }
        }
        events.push((id, Event::Failed(message)));
    }
}

//! How prompts share a step, so that a short one does not wait until a long one is through.
//!
//! ```text
//! in order of importance, a prompt takes     all it has left, if that fits what is left of the budget;
//!                                            else half of it, if one behind it is at most half as long,
//!                                            else the whole
//! what then is left goes back                to those that took half, in the same order
//! ```
//!
//! Those behind are the prompts of the same tenant and of no less a priority, whether they run or wait: between tenants,
//! who was served least goes first, and that is fair already.
//!
//! Invariant: the first prompt in order has at least half of the tokens of prompts in every step until it ends, so
//! nothing starves, however many short ones come. Prompts of like lengths go one after the other, which is what ends them
//! soonest on average.

use crate::plan::Draft;
use crate::scheduler::Scheduler;
use crate::sequence::{SeqId, Sequence};

impl Scheduler {
    /// Tokens that a prompt may run of what is left of the budget; `behind` are those that run and come after it.
    pub(crate) fn share_of(&self, id: SeqId, behind: impl Iterator<Item = SeqId>, draft: &mut Draft) -> usize {
        let sequence = &self.seqs[&id];
        if sequence.remaining() <= draft.budget {
            return sequence.remaining();
        }
        let tenant = sequence.options.tenant;
        let n_places = self.max_running.saturating_sub(self.running.len());
        let waiting = self.tenants.waiting_of(tenant).take(n_places);
        if !behind.chain(waiting).any(|other| leaves_room(sequence, &self.seqs[&other])) {
            return draft.budget;
        }
        draft.cut.push(draft.plan.rows.len());
        draft.budget.div_ceil(2)
    }

    /// Lengthens the rows that left something to others by what nobody took.
    pub(crate) fn hand_back(&mut self, draft: &mut Draft) {
        for row in std::mem::take(&mut draft.cut) {
            if draft.budget == 0 {
                return;
            }
            let id = draft.plan.rows[row].seq;
            let had = draft.plan.rows[row].tokens.len();
            let wanted = self.seqs[&id].remaining().min(had + draft.budget);
            let len = self.reserve(id, wanted).len;
            self.lengthen(row, len, draft);
        }
    }
}

/// Whether a prompt makes room for `other`, which comes after it.
fn leaves_room(prompt: &Sequence, other: &Sequence) -> bool {
    other.options.tenant == prompt.options.tenant
        && other.options.priority >= prompt.options.priority
        && 2 * other.remaining() <= prompt.remaining()
}

//! Who waits, and whose turn it is: fairness between tenants (one for each API key, say).
//!
//! Each tenant has a count of the tokens that were run for it. The next sequence to be admitted is the first of the
//! tenant that was served least; a tenant that comes new, or comes back, begins where the least served one is, so
//! that nobody saves up (virtual token counters: Sheng et al., "Fairness in Serving Large Language Models", OSDI
//! 2024). Within a tenant, and with one tenant alone, order is by rank.
//!
//! Invariants: a tenant is known exactly while it has sequences, so nothing grows without end; of equally served
//! tenants the one whose first sequence has the lesser rank goes first, so nobody is overtaken for ever.

use crate::sequence::{Rank, SeqId};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
struct Tenant {
    /// Tokens run for it, counted from where it joined.
    served: u64,
    /// Its sequences that wait, in order.
    waiting: BTreeMap<Rank, SeqId>,
    /// Its sequences that wait or run.
    n_seqs: usize,
}

/// The waiting queue.
#[derive(Debug, Default)]
pub(crate) struct Tenants {
    by_id: BTreeMap<u64, Tenant>,
    n_waiting: usize,
}

impl Tenants {
    /// Sequences that wait.
    pub(crate) fn n_waiting(&self) -> usize {
        self.n_waiting
    }

    /// A tenant has one more sequence.
    pub(crate) fn join(&mut self, tenant: u64) {
        let least = self.by_id.values().map(|tenant| tenant.served).min().unwrap_or(0);
        let new = || Tenant { served: least, ..Tenant::default() };
        self.by_id.entry(tenant).or_insert_with(new).n_seqs += 1;
    }

    /// A tenant has one sequence less; it neither waits nor runs any more.
    pub(crate) fn leave(&mut self, tenant: u64) {
        let known = self.get_mut(tenant);
        known.n_seqs -= 1;
        if known.n_seqs == 0 {
            self.by_id.remove(&tenant);
        }
    }

    /// A sequence waits.
    pub(crate) fn enqueue(&mut self, tenant: u64, rank: Rank, id: SeqId) {
        self.get_mut(tenant).waiting.insert(rank, id);
        self.n_waiting += 1;
    }

    /// A sequence waits no longer; `false` if it did not.
    pub(crate) fn dequeue(&mut self, tenant: u64, rank: Rank) -> bool {
        let waited = self.get_mut(tenant).waiting.remove(&rank).is_some();
        self.n_waiting -= usize::from(waited);
        waited
    }

    /// `tokens` were run for a tenant.
    pub(crate) fn charge(&mut self, tenant: u64, tokens: usize) {
        let known = self.get_mut(tenant);
        known.served = known.served.saturating_add(tokens as u64);
    }

    /// What was run for a tenant, comparable with others' only.
    pub(crate) fn served(&self, tenant: u64) -> u64 {
        self.by_id[&tenant].served
    }

    /// The next sequence to be admitted; with `below`, only of a tenant that was served less than that.
    pub(crate) fn first(&self, below: Option<u64>) -> Option<SeqId> {
        let heads = self.by_id.values().filter_map(|tenant| {
            let (&rank, &id) = tenant.waiting.first_key_value()?;
            Some((tenant.served, rank, id))
        });
        let (served, _, id) = heads.min()?;
        below.is_none_or(|below| served < below).then_some(id)
    }

    /// A tenant's sequences that wait, in order.
    pub(crate) fn waiting_of(&self, tenant: u64) -> impl Iterator<Item = SeqId> {
        self.by_id.get(&tenant).into_iter().flat_map(|known| known.waiting.values().copied())
    }

    /// All that wait, tenant by tenant.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (u64, Rank, SeqId)> {
        let each = |(&tenant, known): (&u64, &Tenant)| {
            let all: Vec<_> = known.waiting.iter().map(|(&rank, &id)| (tenant, rank, id)).collect();
            all
        };
        self.by_id.iter().flat_map(each)
    }

    /// Asserts that the counts are those of `n_seqs`, the sequences of each tenant.
    pub(crate) fn check_integrity(&self, n_seqs: &BTreeMap<u64, usize>) {
        let counted: BTreeMap<u64, usize> = self.by_id.iter().map(|(&id, tenant)| (id, tenant.n_seqs)).collect();
        assert_eq!(&counted, n_seqs, "sequences of tenants are miscounted");
        let n_waiting: usize = self.by_id.values().map(|tenant| tenant.waiting.len()).sum();
        assert_eq!(n_waiting, self.n_waiting, "waiting sequences are miscounted");
    }

    fn get_mut(&mut self, tenant: u64) -> &mut Tenant {
        self.by_id.get_mut(&tenant).expect("a tenant with sequences is known")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_served_goes_first_and_nobody_saves_up() {
        let mut tenants = Tenants::default();
        let arrive = |tenants: &mut Tenants, tenant, arrival| {
            tenants.join(tenant);
            tenants.enqueue(tenant, Rank::new(0, 0, arrival), SeqId(arrival));
        };
        arrive(&mut tenants, 7, 1);
        arrive(&mut tenants, 7, 2);
        tenants.charge(7, 100);
        // A newcomer begins at the least served one's count; the lesser rank then decides.
        arrive(&mut tenants, 3, 3);
        assert_eq!((tenants.first(None), tenants.served(3)), (Some(SeqId(1)), 100));
        tenants.charge(7, 1);
        assert_eq!(tenants.first(None), Some(SeqId(3)));
        assert_eq!((tenants.first(Some(100)), tenants.first(Some(101))), (None, Some(SeqId(3))));
        assert!(tenants.dequeue(3, Rank::new(0, 0, 3)));
        assert!(!tenants.dequeue(3, Rank::new(0, 0, 3)));
        assert_eq!((tenants.first(None), tenants.n_waiting()), (Some(SeqId(1)), 2));
        // Who has left is forgotten, with what was served.
        tenants.leave(3);
        tenants.charge(7, 1000);
        arrive(&mut tenants, 3, 4);
        assert_eq!(tenants.served(3), 1101);
    }
}

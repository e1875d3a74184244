//! Mixture of experts: route each row, run each expert once on all rows that chose it, add up.
//!
//! Invariants: a row's experts are the `top_k` largest router logits, the lower index first among equals; its
//! answers are added best expert first, whatever the order in which experts ran.

use std::borrow::Borrow;

use pelton_backend::Moe;

use crate::gate::Gated;
use crate::linear::{LinearScratch, PackedLinear};
use crate::machine::Machine;
use crate::tensor::{Shared, Tensor};

/// One of the experts of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Pick {
    expert: usize,
    weight: f32,
    /// Row of the gathered matrices that it uses.
    slot: usize,
}

/// Buffers that MoE blocks share, sized by the largest step so far.
#[derive(Debug, Default)]
pub(crate) struct MoeScratch {
    /// `(rows, n_experts)`.
    logits: Tensor,
    /// `(rows, top_k)`, best first.
    picks: Vec<Pick>,
    /// First slot of each expert, `(n_experts + 1,)`.
    starts: Vec<usize>,
    /// Rows gathered by expert, `(rows * top_k, hidden)`.
    gathered: Tensor,
    /// `(slots of one expert, 2 ffn)` and `(.., ffn)`.
    gate_up: Tensor,
    gated: Tensor,
    /// `(rows * top_k, hidden)`.
    answers: Tensor,
}

/// Appends the picks of one row.
fn route(logits: &[f32], top_k: usize, norm_topk: bool, picks: &mut Vec<Pick>) {
    let first = picks.len();
    for _ in 0..top_k.min(logits.len()) {
        let taken = |e: usize| picks[first..].iter().any(|p: &Pick| p.expert == e);
        let left = logits.iter().enumerate().filter(|&(e, _)| !taken(e));
        // The first of equals wins: only a larger logit replaces it.
        let best = left.reduce(|best, other| if other.1.total_cmp(best.1).is_gt() { other } else { best });
        let (expert, &weight) = best.expect("fewer picks than experts");
        picks.push(Pick { expert, weight, slot: 0 });
    }
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    picks[first..].iter_mut().for_each(|p| p.weight = (p.weight - max).exp());
    let total: f32 = if norm_topk {
        picks[first..].iter().map(|p| p.weight).sum()
    } else {
        logits.iter().map(|&l| (l - max).exp()).sum()
    };
    picks[first..].iter_mut().for_each(|p| p.weight /= total);
}

impl MoeScratch {
    /// `out[r] = sum of weight * expert(x[r])` over the experts of each row.
    pub(crate) fn forward<L: Borrow<PackedLinear>>(
        &mut self,
        machine: &Machine,
        x: &Tensor,
        moe: &Moe<L>,
        out: &mut Tensor,
        linear: &mut LinearScratch,
    ) {
        self.logits.reshape(x.rows(), moe.experts.len());
        moe.router.borrow().forward(x.data(), x.rows(), self.logits.data_mut(), linear, &machine.pool);
        self.deal(x.rows(), moe);
        self.gather(x);
        self.answers.reshape(self.picks.len(), out.cols());
        for (e, expert) in moe.experts.iter().enumerate() {
            let (start, end) = (self.starts[e], self.starts[e + 1]);
            if start == end {
                continue;
            }
            let rows = end - start;
            let x = &self.gathered.data()[start * x.cols()..end * x.cols()];
            self.gate_up.reshape(rows, 2 * moe.ffn);
            expert.gate_up.borrow().forward(x, rows, self.gate_up.data_mut(), linear, &machine.pool);
            self.gated.reshape(rows, moe.ffn);
            gate_rows(machine, &self.gate_up, moe.gate, &mut self.gated);
            let answers = &mut self.answers.data_mut()[start * out.cols()..end * out.cols()];
            expert.down.borrow().forward(self.gated.data(), rows, answers, linear, &machine.pool);
        }
        self.combine(machine, out);
    }

    /// Routes every row and gives each pick its slot, experts in order, rows in order within an expert.
    fn deal<L>(&mut self, rows: usize, moe: &Moe<L>) {
        self.picks.clear();
        for r in 0..rows {
            route(self.logits.row(r), moe.top_k, moe.norm_topk, &mut self.picks);
        }
        self.starts.clear();
        self.starts.resize(moe.experts.len() + 1, 0);
        self.picks.iter().for_each(|p| self.starts[p.expert + 1] += 1);
        for e in 0..moe.experts.len() {
            self.starts[e + 1] += self.starts[e];
        }
        // starts[e] walks to the end of expert e while slots are dealt; shifted back afterwards.
        for pick in &mut self.picks {
            pick.slot = self.starts[pick.expert];
            self.starts[pick.expert] += 1;
        }
        self.starts.rotate_right(1);
        self.starts[0] = 0;
        self.starts[moe.experts.len()] = self.picks.len();
    }

    fn gather(&mut self, x: &Tensor) {
        let cols = x.cols();
        self.gathered.reshape(self.picks.len(), cols);
        let top_k = self.picks.len() / x.rows().max(1);
        let gathered = self.gathered.data_mut();
        for (i, pick) in self.picks.iter().enumerate() {
            gathered[pick.slot * cols..(pick.slot + 1) * cols].copy_from_slice(x.row(i / top_k));
        }
    }

    fn combine(&self, machine: &Machine, out: &mut Tensor) {
        let (rows, cols) = (out.rows(), out.cols());
        let top_k = self.picks.len() / rows.max(1);
        let to = Shared::new(out.data_mut());
        machine.rows(rows, top_k * cols, &|range| {
            for r in range {
                // SAFETY: each row belongs to one task.
                let out = unsafe { to.part(r * cols..(r + 1) * cols) };
                out.fill(0.0);
                for pick in &self.picks[r * top_k..(r + 1) * top_k] {
                    let answer = self.answers.row(pick.slot);
                    out.iter_mut().zip(answer).for_each(|(o, a)| *o += pick.weight * a);
                }
            }
        });
    }
}

/// `out = gate(x)`, rows dealt to the threads.
pub(crate) fn gate_rows(machine: &Machine, x: &Tensor, gate: pelton_backend::Gate, out: &mut Tensor) {
    let (rows, ffn) = (out.rows(), out.cols());
    assert_eq!((x.rows(), x.cols()), (rows, 2 * ffn));
    let x = x.data();
    let to = Shared::new(out.data_mut());
    // exp and a division: some 16 operations an element.
    machine.rows(rows, 16 * ffn, &|range| {
        // SAFETY: each row belongs to one task.
        let out = unsafe { to.part(range.start * ffn..range.end * ffn) };
        machine.run(Gated { x: &x[range.start * 2 * ffn..range.end * 2 * ffn], gate, ffn, out });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picks(logits: &[f32], top_k: usize, norm: bool) -> Vec<(usize, f32)> {
        let mut picks = Vec::new();
        route(logits, top_k, norm, &mut picks);
        picks.iter().map(|p| (p.expert, p.weight)).collect()
    }

    #[test]
    fn the_lower_index_wins_among_equals_and_weights_sum_to_one_where_asked() {
        assert_eq!(picks(&[1.0, 3.0, 3.0, 1.0], 3, true).iter().map(|p| p.0).collect::<Vec<_>>(), [1, 2, 0]);
        assert_eq!(picks(&[0.0, 0.0], 2, true), [(0, 0.5), (1, 0.5)]);
        assert_eq!(picks(&[0.0, 0.0, 0.0, 0.0], 2, false), [(0, 0.25), (1, 0.25)]);
        assert_eq!(picks(&[2.0, 1.0], 5, true).len(), 2);
    }

    #[test]
    fn slots_are_grouped_by_expert_in_row_order() {
        let mut scratch = MoeScratch { logits: Tensor::new(3, 4), ..MoeScratch::default() };
        scratch.logits.data_mut().copy_from_slice(&[0.0, 9.0, 8.0, 0.0, 9.0, 0.0, 8.0, 0.0, 0.0, 0.0, 8.0, 9.0]);
        let experts = (0..4).map(|_| pelton_backend::Expert { gate_up: (), down: () }).collect();
        let gate = pelton_backend::Gate::Silu;
        scratch.deal(3, &Moe { router: (), experts, top_k: 2, norm_topk: true, ffn: 1, gate });
        assert_eq!(scratch.starts, [0, 1, 2, 5, 6]);
        let slots: Vec<_> = scratch.picks.iter().map(|p| (p.expert, p.slot)).collect();
        assert_eq!(slots, [(1, 1), (2, 2), (0, 0), (2, 3), (3, 5), (2, 4)]);
    }
}

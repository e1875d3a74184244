//! Which layers fit on which card: weights, their keys and values, and activations against the memory that is free.
//!
//! Invariant: layers go to cards in order and without a gap, and nothing is planned on a card beyond its budget.

use pelton_backend::{PAGE_LEN, SplitPlan};
use pelton_formats::Tensor;

use super::{GpuLayers, GpuReport};
use crate::Model;
use crate::memory::MemoryNeeds;

/// Bytes of a model's layers, the head's last: on a card, and as the files have them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    card: Vec<usize>,
    host: Vec<usize>,
}

impl Sizes {
    pub(crate) fn of(model: &Model) -> Sizes {
        let config = &model.files.config;
        let n = config.n_layers;
        let mut sizes = Sizes { card: vec![0; n + 1], host: vec![0; n + 1] };
        for tensor in model.files.tensors.iter() {
            let Some(unit) = unit_of(&tensor.name, n, config.tied_embeddings) else { continue };
            sizes.card[unit] = sizes.card[unit].saturating_add(card_bytes(tensor));
            sizes.host[unit] = sizes.host[unit].saturating_add(tensor.byte_len());
        }
        sizes
    }
}

/// The layer that a tensor belongs to; `n_layers` for the head, `None` for what is never on a card.
fn unit_of(name: &str, n_layers: usize, tied: bool) -> Option<usize> {
    if let Some(rest) = name.strip_prefix("blk.") {
        return rest.split('.').next()?.parse().ok().filter(|&layer| layer < n_layers);
    }
    let is_head = name.starts_with("output") || (tied && name == "token_embd.weight");
    is_head.then_some(n_layers)
}

fn card_bytes(tensor: &Tensor) -> usize {
    match tensor.shape.as_slice() {
        [rows, cols] => pelton_cuda::packed_bytes(tensor.dtype, *rows, *cols),
        _ => tensor.elements().saturating_mul(4),
    }
}

/// What a card has to hold besides layers, and what each layer needs besides its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Beside {
    /// Keys and values of one layer.
    pub(crate) kv_of_layer: usize,
    /// Activations, once on each card.
    pub(crate) activations: usize,
    /// Activations of the head.
    pub(crate) logits: usize,
}

/// Which layers fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filled {
    pub(crate) plan: SplitPlan,
    /// Bytes that are missing for the rest.
    pub(crate) short: usize,
}

impl Filled {
    pub(crate) fn on_cards(&self) -> usize {
        self.plan.on_cards.iter().sum()
    }
}

/// Puts up to `wanted` layers on cards with room for `rooms` bytes, as many on the first as fit, and so on; the head after
/// them.
pub(crate) fn fill(rooms: &[usize], sizes: &Sizes, beside: Beside, wanted: GpuLayers) -> Filled {
    let n_layers = sizes.card.len() - 1;
    let most = match wanted {
        GpuLayers::Count(n) => n.min(n_layers),
        GpuLayers::Auto | GpuLayers::All => n_layers,
    };
    let need = |layer: usize| sizes.card[layer].saturating_add(beside.kv_of_layer);
    let (mut next, mut left_on_last, mut on_cards) = (0, 0, Vec::with_capacity(rooms.len()));
    for room in rooms {
        let (first, mut left) = (next, room.saturating_sub(beside.activations));
        while next < most && need(next) <= left {
            left -= need(next);
            next += 1;
        }
        on_cards.push(next - first);
        if next > first || next < most {
            left_on_last = left;
        }
    }
    let head = sizes.card[n_layers].saturating_add(beside.logits);
    let head_on_card = next > 0 && next == n_layers && head <= left_on_last;
    let missing = (next..n_layers).map(need).chain([head]).fold(0usize, usize::saturating_add);
    let short = if head_on_card { 0 } else { missing.saturating_sub(left_on_last).max(1) };
    Filled { plan: SplitPlan { n_layers, on_cards, head_on_card }, short }
}

/// What one card has to hold, for the plan of the memory.
#[derive(Clone, Debug)]
pub(crate) struct CardNeeds {
    pub(crate) name: String,
    pub(crate) weight_bytes: usize,
    pub(crate) kv_bytes_per_token: usize,
    pub(crate) row_bytes: usize,
    /// 0 where the head is elsewhere.
    pub(crate) logit_row_bytes: usize,
    /// Activations that do not grow with the sequences.
    pub(crate) fixed_bytes: usize,
    pub(crate) budget: usize,
}

/// A model that is shared between cards and the CPU.
#[derive(Clone, Debug, Default)]
pub(crate) struct Placed {
    pub(crate) cards: Vec<CardNeeds>,
    /// Bytes of the files' weights that are not in this machine's memory.
    off_host: usize,
    /// Layers that are not, of all.
    layers_off_host: (usize, usize),
    pub(crate) report: GpuReport,
}

impl Placed {
    /// All on the CPU.
    pub(crate) fn nowhere(report: GpuReport) -> Placed {
        Placed { report, ..Placed::default() }
    }

    /// Shares `needs` as `filled` says; the cards' budgets and names are those of `rooms`.
    pub(crate) fn new(
        filled: &Filled,
        sizes: &Sizes,
        needs: &MemoryNeeds,
        rooms: &[(String, usize)],
        report: GpuReport,
        fixed_bytes: usize,
    ) -> Placed {
        let plan = &filled.plan;
        let last = plan.on_cards.iter().rposition(|n| *n > 0);
        let of_layer = needs.kv_bytes_per_token / plan.n_layers.max(1);
        let card = |(i, (name, budget)): (usize, &(String, usize))| {
            let range = plan.ranges()[i].clone();
            let has_head = plan.head_on_card && last == Some(i);
            let head = if has_head { sizes.card[plan.n_layers] } else { 0 };
            CardNeeds {
                name: name.clone(),
                weight_bytes: sizes.card[range.clone()].iter().sum::<usize>().saturating_add(head),
                kv_bytes_per_token: of_layer.saturating_mul(range.len()),
                row_bytes: needs.row_bytes,
                logit_row_bytes: if has_head { needs.logit_row_bytes } else { 0 },
                fixed_bytes,
                budget: *budget,
            }
        };
        let on_cards = filled.on_cards();
        let head = if plan.head_on_card { sizes.host[plan.n_layers] } else { 0 };
        Placed {
            cards: rooms.iter().enumerate().map(card).collect(),
            off_host: sizes.host[..on_cards].iter().fold(head, |sum, n| sum.saturating_add(*n)),
            layers_off_host: (on_cards, plan.n_layers),
            report,
        }
    }

    /// Takes note of what was really packed, and of the pages that were planned.
    pub(crate) fn settle(&mut self, weight_bytes: &[usize], n_pages: Option<usize>) {
        for ((card, report), bytes) in self.cards.iter_mut().zip(&mut self.report.cards).zip(weight_bytes) {
            (card.weight_bytes, report.weight_bytes) = (*bytes, *bytes);
            let page = card.kv_bytes_per_token.saturating_mul(PAGE_LEN);
            report.kv_bytes = n_pages.map_or(report.kv_bytes, |n| n.saturating_mul(page));
        }
    }

    /// What tells keys and values of this split from those of another; empty for the CPU alone.
    pub(crate) fn identity(&self) -> String {
        let card = |c: &super::CardReport| format!(" {} {} {:?}", c.name, c.kernels, c.layers);
        self.report.cards.iter().map(card).collect()
    }

    /// What is left for this machine's memory.
    pub(crate) fn host(&self, needs: MemoryNeeds) -> MemoryNeeds {
        let (off, all) = self.layers_off_host;
        let of_layer = needs.kv_bytes_per_token / all.max(1);
        MemoryNeeds {
            weight_bytes: needs.weight_bytes.saturating_sub(self.off_host),
            kv_bytes_per_token: needs.kv_bytes_per_token - of_layer * off,
            ..needs
        }
    }
}

/// Pages that a card must have room for before it gets a layer: those of one sequence of `context` tokens, and a few for
/// each other one.
pub(crate) fn least_tokens(context: usize, seqs: usize, few_pages: usize) -> usize {
    let pages = context.div_ceil(PAGE_LEN);
    pages.saturating_add(pages.min(few_pages).saturating_mul(seqs.saturating_sub(1))).saturating_mul(PAGE_LEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(layers: &[usize], head: usize) -> Sizes {
        let card: Vec<usize> = layers.iter().copied().chain([head]).collect();
        Sizes { host: card.iter().map(|n| n * 2).collect(), card }
    }

    const BESIDE: Beside = Beside { kv_of_layer: 5, activations: 20, logits: 3 };

    fn filled(rooms: &[usize], wanted: GpuLayers) -> (Vec<usize>, bool, usize) {
        let f = fill(rooms, &sizes(&[10, 10, 10, 10], 30), BESIDE, wanted);
        (f.plan.on_cards, f.plan.head_on_card, f.short)
    }

    #[test]
    fn a_card_gets_as_many_layers_as_weights_keys_and_activations_fit() {
        // Four layers of 15, the head of 33, 20 of activations.
        assert_eq!(filled(&[113], GpuLayers::Auto), (vec![4], true, 0));
        assert_eq!(filled(&[112], GpuLayers::Auto), (vec![4], false, 1));
        assert_eq!(filled(&[79], GpuLayers::Auto), (vec![3], false, 34));
        assert_eq!(filled(&[34], GpuLayers::All), (vec![0], false, 93 - 14));
        assert_eq!(filled(&[0], GpuLayers::Auto), (vec![0], false, 93));
        assert_eq!(filled(&[], GpuLayers::Auto), (vec![], false, 93));
    }

    #[test]
    fn no_more_layers_than_wanted_and_with_all_of_them_the_head() {
        assert_eq!(filled(&[1000], GpuLayers::Count(2)).0, [2]);
        assert!(!filled(&[1000], GpuLayers::Count(2)).1);
        assert_eq!(filled(&[1000], GpuLayers::Count(4)), (vec![4], true, 0));
        assert_eq!(filled(&[1000], GpuLayers::Count(99)), (vec![4], true, 0));
    }

    #[test]
    fn what_the_first_card_does_not_hold_goes_to_the_next() {
        assert_eq!(filled(&[51, 10, 100], GpuLayers::Auto), (vec![2, 0, 2], true, 0));
        assert_eq!(filled(&[51, 51], GpuLayers::Auto), (vec![2, 2], false, 32));
        // Nothing is left for the second.
        assert_eq!(filled(&[113, 113], GpuLayers::Auto), (vec![4, 0], true, 0));
    }

    #[test]
    fn tensors_belong_to_their_layer_or_the_head() {
        assert_eq!(unit_of("blk.3.ffn_down.17.weight", 4, false), Some(3));
        assert_eq!(unit_of("blk.4.attn_q.weight", 4, false), None);
        assert_eq!([unit_of("output.weight", 4, false), unit_of("output_norm.weight", 4, true)], [Some(4); 2]);
        assert_eq!([unit_of("token_embd.weight", 4, false), unit_of("token_embd.weight", 4, true)], [None, Some(4)]);
    }

    #[test]
    fn cards_and_the_host_share_what_there_is() {
        let sizes = sizes(&[10, 10, 10, 10], 30);
        let filled = fill(&[51, 39], &sizes, BESIDE, GpuLayers::Auto);
        let needs = MemoryNeeds { weight_bytes: 140, kv_bytes_per_token: 8, ..crate::memory::tests::NEEDS };
        let rooms = [("A".to_string(), 51), ("B".to_string(), 39)];
        let placed = Placed::new(&filled, &sizes, &needs, &rooms, GpuReport::default(), 7);
        let cards: Vec<_> =
            placed.cards.iter().map(|c| (c.weight_bytes, c.kv_bytes_per_token, c.logit_row_bytes)).collect();
        assert_eq!(cards, [(20, 4, 0), (10, 2, 0)]);
        let host = placed.host(needs);
        assert_eq!((host.weight_bytes, host.kv_bytes_per_token), (80, 2));
    }
}

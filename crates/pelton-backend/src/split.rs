//! One model on several devices, by layers: the first ones on cards, the others on the rest (a CPU).
//!
//! [`Split`] is a backend of other backends. Each weight lives in the part that its layer belongs to, keys and values
//! where their layer is; an op runs where its weights are, and activations move (through the host, as f32) where they
//! lie elsewhere: in a model, once at each border, a row of `hidden` numbers a token.
//!
//! Invariant: a part computes what it computes alone. Nothing is rounded on the way, so a layer's bits are those of its
//! part, whatever the other parts are.

use std::borrow::Borrow;
use std::ops::Range;

use crate::{
    Ask, Attention, Backend, BackendError, Batch, Expert, Gate, HeadNorms, Heads, KvLayout, LinearSpec, Moe, Part,
    Place, Placement, Rope, Weighed, Weight,
};

/// Which layers of a model are where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitPlan {
    /// Layers of the model. A model with another number of layers (a draft) is on the rest.
    pub n_layers: usize,
    /// How many each card has: the first card the first ones, and so on.
    pub on_cards: Vec<usize>,
    /// The last norm and the head are on the last card that has layers; only where no layer is on the rest.
    pub head_on_card: bool,
}

impl SplitPlan {
    /// The layers of each card, then those of the rest.
    pub fn ranges(&self) -> Vec<Range<usize>> {
        let mut ranges = Vec::with_capacity(self.on_cards.len() + 1);
        let mut first = 0usize;
        for n in self.on_cards.iter().copied().chain([usize::MAX]) {
            let end = first.saturating_add(n).min(self.n_layers);
            ranges.push(first..end);
            first = end;
        }
        ranges
    }

    /// The number of the part that is no card.
    fn rest(&self) -> usize {
        self.on_cards.len()
    }

    fn part_of_layer(&self, layer: usize, of: usize) -> usize {
        let found = self.ranges().iter().position(|range| range.contains(&layer));
        found.filter(|_| of == self.n_layers).unwrap_or(self.rest())
    }

    fn part_of(&self, place: Place) -> usize {
        match place {
            Place::Layer { index, of } => self.part_of_layer(index, of),
            Place::Head { of } if of == self.n_layers && self.head_on_card => {
                self.part_of_layer(of.saturating_sub(1), of)
            }
            Place::Head { .. } => self.rest(),
        }
    }
}

/// Something on a card, or on the rest.
#[derive(Debug)]
pub enum Each<X, Y> {
    /// On the card of this number.
    Card(usize, X),
    /// On the rest.
    Rest(Y),
}

/// Something on any number of parts.
#[derive(Debug)]
struct Parts<X, Y> {
    cards: Vec<Option<X>>,
    rest: Option<Y>,
}

impl<X, Y> Parts<X, Y> {
    fn none(n_cards: usize) -> Parts<X, Y> {
        Parts { cards: (0..n_cards).map(|_| None).collect(), rest: None }
    }

    /// # Panics
    /// Where the card has none.
    fn card(&self, i: usize) -> &X {
        self.cards[i].as_ref().expect("a card that takes part")
    }

    fn rest(&self) -> &Y {
        self.rest.as_ref().expect("a rest that takes part")
    }

    fn card_mut(&mut self, i: usize) -> &mut X {
        self.cards[i].as_mut().expect("a card that takes part")
    }

    fn rest_mut(&mut self) -> &mut Y {
        self.rest.as_mut().expect("a rest that takes part")
    }
}

/// A matrix that lies in one part, and has buffers in those where it has been.
#[derive(Debug)]
pub struct SplitTensor<X, Y> {
    rows: usize,
    cols: usize,
    /// The part where its contents are.
    at: usize,
    /// With the rows that the buffer is set to.
    parts: Parts<(usize, X), (usize, Y)>,
}

/// A table on one of the parts.
pub type SplitEmbedding<A, B> = Each<<A as Backend>::Embedding, <B as Backend>::Embedding>;

/// A KV pool: each part has the layers that are its own.
#[derive(Debug)]
pub struct SplitKv<X, Y> {
    /// The layers of each part.
    ranges: Vec<Range<usize>>,
    parts: Parts<X, Y>,
}

impl<X, Y> SplitKv<X, Y> {
    /// The part of a layer, and its number there.
    fn find(&self, layer: usize) -> (usize, usize) {
        let part = self.ranges.iter().position(|r| r.contains(&layer)).expect("a layer of the pool");
        (part, layer - self.ranges[part].start)
    }
}

/// A batch, ready on the parts that compute.
#[derive(Debug)]
pub struct SplitPrepared<X, Y> {
    parts: Parts<X, Y>,
}

/// Backends that share a model by its layers.
#[derive(Debug)]
pub struct Split<A: Backend, B: Backend> {
    cards: Vec<A>,
    rest: B,
    plan: SplitPlan,
    /// Where weights go that are loaded now.
    place: usize,
    /// The parts that have anything to compute.
    is_used: Vec<bool>,
    /// Bytes of weights in each part.
    weight_bytes: Vec<usize>,
    /// What is on its way from part to part.
    staging: Vec<f32>,
    #[cfg(test)]
    pub(crate) goes_round: bool,
}

type TensorOf<A, B> = SplitTensor<<A as Backend>::Tensor, <B as Backend>::Tensor>;

impl<A: Backend, B: Backend> Split<A, B> {
    /// Shares a model as `plan` says.
    ///
    /// # Panics
    /// Where the plan is not for so many cards, or has more layers on them than there are.
    pub fn new(cards: Vec<A>, rest: B, plan: SplitPlan) -> Split<A, B> {
        assert_eq!(cards.len(), plan.on_cards.len(), "a number of layers for each card");
        let on_cards: usize = plan.on_cards.iter().sum();
        assert!(on_cards <= plan.n_layers, "{on_cards} of {} layers", plan.n_layers);
        assert!(!plan.head_on_card || on_cards == plan.n_layers, "the head follows the last layer");
        let place = plan.part_of_layer(0, plan.n_layers);
        let n_parts = cards.len() + 1;
        let mut is_used = vec![false; n_parts];
        is_used[place] = true;
        Split {
            cards,
            rest,
            plan,
            place,
            is_used,
            weight_bytes: vec![0; n_parts],
            staging: Vec::new(),
            #[cfg(test)]
            goes_round: false,
        }
    }

    /// Which layers are where.
    pub fn plan(&self) -> &SplitPlan {
        &self.plan
    }

    /// The cards.
    pub fn cards(&self) -> &[A] {
        &self.cards
    }

    /// What is no card.
    pub fn rest_mut(&mut self) -> &mut B {
        &mut self.rest
    }

    /// Bytes of weights on each card, then on the rest.
    pub fn weight_bytes(&self) -> &[usize] {
        &self.weight_bytes
    }

    fn is_card(&self, part: usize) -> bool {
        part < self.cards.len()
    }

    /// The part for the next weight.
    fn next_place(&mut self) -> usize {
        #[cfg(test)]
        if self.goes_round {
            self.place = (self.place + 1) % self.is_used.len();
        }
        self.is_used[self.place] = true;
        self.place
    }

    /// A matrix as it lies in the part, to be read by an op there.
    fn card_in(x: &TensorOf<A, B>, i: usize) -> &A::Tensor {
        &x.parts.card(i).1
    }

    fn rest_in(x: &TensorOf<A, B>) -> &B::Tensor {
        &x.parts.rest().1
    }

    /// A matrix to be written by an op on a card: its contents are there from now on.
    fn card_out<'t>(cards: &mut [A], x: &'t mut TensorOf<A, B>, i: usize) -> &'t mut A::Tensor {
        let (rows, cols) = (x.rows, x.cols);
        x.at = i;
        let (known, tensor) = x.parts.cards[i].get_or_insert_with(|| (rows, cards[i].alloc(rows, cols)));
        if *known != rows {
            cards[i].set_rows(tensor, rows);
            *known = rows;
        }
        tensor
    }

    fn rest_out<'t>(rest: &mut B, x: &'t mut TensorOf<A, B>, part: usize) -> &'t mut B::Tensor {
        let (rows, cols) = (x.rows, x.cols);
        x.at = part;
        let (known, tensor) = x.parts.rest.get_or_insert_with(|| (rows, rest.alloc(rows, cols)));
        if *known != rows {
            rest.set_rows(tensor, rows);
            *known = rows;
        }
        tensor
    }

    fn write_to(&mut self, x: &mut TensorOf<A, B>, part: usize, values: &[f32]) {
        if self.is_card(part) {
            let x = Self::card_out(&mut self.cards, x, part);
            self.cards[part].write(x, values);
        } else {
            let x = Self::rest_out(&mut self.rest, x, part);
            self.rest.write(x, values);
        }
    }

    /// Moves a matrix to a part, unless it is there.
    fn bring(&mut self, x: &mut TensorOf<A, B>, part: usize) {
        if x.at != part {
            let mut staging = std::mem::take(&mut self.staging);
            self.read(x, &mut staging);
            self.write_to(x, part, &staging);
            self.staging = staging;
        }
    }

    /// A copy of a matrix in a part; `None` where the matrix itself is there.
    fn copy_in(&mut self, x: &TensorOf<A, B>, part: usize) -> Option<TensorOf<A, B>> {
        if x.at == part {
            return None;
        }
        let mut copy = self.alloc(x.rows, x.cols);
        let mut staging = std::mem::take(&mut self.staging);
        self.read(x, &mut staging);
        self.write_to(&mut copy, part, &staging);
        self.staging = staging;
        Some(copy)
    }

    fn part_of<X, Y>(&self, thing: &Each<X, Y>) -> usize {
        match thing {
            Each::Card(i, _) => *i,
            Each::Rest(_) => self.cards.len(),
        }
    }
}

/// What of an [`Each`] is on a card. One model's layer is in one part, so all its pieces are.
fn on_card<X, Y>(thing: &Each<X, Y>) -> &X {
    match thing {
        Each::Card(_, x) => x,
        Each::Rest(_) => panic!("a layer with pieces in two parts"),
    }
}

fn on_rest<X, Y>(thing: &Each<X, Y>) -> &Y {
    match thing {
        Each::Rest(y) => y,
        Each::Card(..) => panic!("a layer with pieces in two parts"),
    }
}

/// A block of experts with its layers as one part knows them.
fn moe_of<'m, L: 'm, T: 'm>(moe: &'m Moe<L>, of: impl Fn(&'m L) -> &'m T) -> Moe<&'m T> {
    let expert = |e: &'m Expert<L>| Expert { gate_up: of(&e.gate_up), down: of(&e.down) };
    let Moe { top_k, norm_topk, ffn, gate, .. } = *moe;
    Moe { router: of(&moe.router), experts: moe.experts.iter().map(expert).collect(), top_k, norm_topk, ffn, gate }
}

mod ops;
#[cfg(test)]
mod tests;

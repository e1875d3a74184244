//! The ops of [`Split`]: each is handed to the part that has its weights, its layer, or its matrix.

use super::*;

impl<A: Backend, B: Backend> Backend for Split<A, B> {
    type Tensor = TensorOf<A, B>;
    type Vector = Each<A::Vector, B::Vector>;
    type Linear = Each<A::Linear, B::Linear>;
    type Embedding = SplitEmbedding<A, B>;
    type Kv = SplitKv<A::Kv, B::Kv>;
    type Prepared = SplitPrepared<A::Prepared, B::Prepared>;

    fn describe(&self) -> String {
        let parts = self.parts(self.plan.n_layers);
        parts.iter().map(|part| part.describe.as_str()).collect::<Vec<_>>().join(" + ")
    }

    fn bind_thread(&mut self) {
        self.cards.iter_mut().for_each(Backend::bind_thread);
        self.rest.bind_thread();
    }

    fn load_for(&mut self, place: Place) {
        self.place = self.plan.part_of(place);
        self.is_used[self.place] = true;
        self.cards.iter_mut().for_each(|card| card.load_for(place));
        self.rest.load_for(place);
    }

    fn parts(&self, n_layers: usize) -> Vec<Part> {
        if n_layers != self.plan.n_layers {
            return self.rest.parts(n_layers);
        }
        let part = |(part, range): (usize, Range<usize>)| {
            let describe = if self.is_card(part) { self.cards[part].describe() } else { self.rest.describe() };
            (!range.is_empty()).then_some(Part { first_layer: range.start, describe })
        };
        self.plan.ranges().into_iter().enumerate().filter_map(part).collect()
    }

    fn load_linear(&mut self, spec: &LinearSpec) -> Result<Self::Linear, BackendError> {
        let part = self.next_place();
        let linear = match self.is_card(part) {
            true => Each::Card(part, self.cards[part].load_linear(spec)?),
            false => Each::Rest(self.rest.load_linear(spec)?),
        };
        self.weight_bytes[part] += self.placement(&linear).iter().map(|p| p.bytes).sum::<usize>();
        Ok(linear)
    }

    fn placement(&self, linear: &Self::Linear) -> Vec<Placement> {
        match linear {
            Each::Card(i, linear) => self.cards[*i].placement(linear),
            Each::Rest(linear) => self.rest.placement(linear),
        }
    }

    fn load_embedding(&mut self, table: &Weight) -> Result<Self::Embedding, BackendError> {
        let part = self.next_place();
        Ok(match self.is_card(part) {
            true => Each::Card(part, self.cards[part].load_embedding(table)?),
            false => Each::Rest(self.rest.load_embedding(table)?),
        })
    }

    fn load_vector(&mut self, values: &[f32]) -> Self::Vector {
        let part = self.next_place();
        match self.is_card(part) {
            true => Each::Card(part, self.cards[part].load_vector(values)),
            false => Each::Rest(self.rest.load_vector(values)),
        }
    }

    fn kv_pool(&mut self, layout: &KvLayout) -> Result<Self::Kv, BackendError> {
        let mut ranges = vec![0..0; self.cards.len()];
        match layout.n_layers == self.plan.n_layers {
            true => ranges = self.plan.ranges(),
            false => ranges.push(0..layout.n_layers),
        }
        let mut parts = Parts::none(self.cards.len());
        for (part, range) in ranges.iter().enumerate().filter(|(_, range)| !range.is_empty()) {
            let layout = KvLayout { n_layers: range.len(), ..*layout };
            self.is_used[part] = true;
            match self.is_card(part) {
                true => parts.cards[part] = Some(self.cards[part].kv_pool(&layout)?),
                false => parts.rest = Some(self.rest.kv_pool(&layout)?),
            }
        }
        Ok(SplitKv { ranges, parts })
    }

    fn copy_page(&mut self, kv: &mut Self::Kv, from: u32, to: u32) {
        for (card, kv) in self.cards.iter_mut().zip(&mut kv.parts.cards) {
            if let Some(kv) = kv {
                card.copy_page(kv, from, to);
            }
        }
        if let Some(kv) = &mut kv.parts.rest {
            self.rest.copy_page(kv, from, to);
        }
    }

    fn page_bytes(&self, kv: &Self::Kv) -> usize {
        let cards = self.cards.iter().zip(&kv.parts.cards);
        let on_cards: usize = cards.filter_map(|(card, kv)| Some(card.page_bytes(kv.as_ref()?))).sum();
        on_cards + kv.parts.rest.as_ref().map_or(0, |kv| self.rest.page_bytes(kv))
    }

    fn read_page(&mut self, kv: &Self::Kv, page: u32, out: &mut Vec<u8>) {
        out.clear();
        let mut some = Vec::new();
        for (card, kv) in self.cards.iter_mut().zip(&kv.parts.cards) {
            if let Some(kv) = kv {
                card.read_page(kv, page, &mut some);
                out.extend_from_slice(&some);
            }
        }
        if let Some(kv) = &kv.parts.rest {
            self.rest.read_page(kv, page, &mut some);
            out.extend_from_slice(&some);
        }
    }

    fn write_page(&mut self, kv: &mut Self::Kv, page: u32, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.page_bytes(kv), "bytes of a page");
        let mut left = bytes;
        for (card, kv) in self.cards.iter_mut().zip(&mut kv.parts.cards) {
            if let Some(kv) = kv {
                let (own, others) = left.split_at(card.page_bytes(kv));
                card.write_page(kv, page, own);
                left = others;
            }
        }
        if let Some(kv) = &mut kv.parts.rest {
            self.rest.write_page(kv, page, left);
        }
    }

    fn alloc(&mut self, rows: usize, cols: usize) -> Self::Tensor {
        SplitTensor { rows, cols, at: self.place, parts: Parts::none(self.cards.len()) }
    }

    fn set_rows(&mut self, tensor: &mut Self::Tensor, rows: usize) {
        tensor.rows = rows;
    }

    fn prepare(&mut self, batch: &Batch, rope: &Rope) -> Self::Prepared {
        let mut parts = Parts::none(self.cards.len());
        for (part, _) in self.is_used.iter().enumerate().filter(|(_, is_used)| **is_used) {
            match part < self.cards.len() {
                true => parts.cards[part] = Some(self.cards[part].prepare(batch, rope)),
                false => parts.rest = Some(self.rest.prepare(batch, rope)),
            }
        }
        SplitPrepared { parts }
    }

    fn embed(&mut self, batch: &Self::Prepared, table: &Self::Embedding, scale: f32, out: &mut Self::Tensor) {
        let part = self.part_of(table);
        match table {
            Each::Card(i, table) => {
                let out = Self::card_out(&mut self.cards, out, *i);
                self.cards[*i].embed(batch.parts.card(*i), table, scale, out);
            }
            Each::Rest(table) => {
                let out = Self::rest_out(&mut self.rest, out, part);
                self.rest.embed(batch.parts.rest(), table, scale, out);
            }
        }
    }

    fn rms_norm(&mut self, x: &Self::Tensor, weight: &Self::Vector, eps: f32, out: &mut Self::Tensor) {
        let part = self.part_of(weight);
        let copy = self.copy_in(x, part);
        let x = copy.as_ref().unwrap_or(x);
        match weight {
            Each::Card(i, weight) => {
                let out = Self::card_out(&mut self.cards, out, *i);
                self.cards[*i].rms_norm(Self::card_in(x, *i), weight, eps, out);
            }
            Each::Rest(weight) => {
                let out = Self::rest_out(&mut self.rest, out, part);
                self.rest.rms_norm(Self::rest_in(x), weight, eps, out);
            }
        }
    }

    fn add(&mut self, x: &mut Self::Tensor, y: &Self::Tensor) {
        let part = x.at;
        let copy = self.copy_in(y, part);
        let y = copy.as_ref().unwrap_or(y);
        match self.is_card(part) {
            true => self.cards[part].add(&mut x.parts.card_mut(part).1, Self::card_in(y, part)),
            false => self.rest.add(&mut x.parts.rest_mut().1, Self::rest_in(y)),
        }
    }

    fn add_rms_norm(
        &mut self,
        x: &mut Self::Tensor,
        y: &Self::Tensor,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Tensor,
    ) {
        let part = self.part_of(weight);
        if x.at != part {
            // The border: the block's answer is added where it is, and one matrix moves.
            self.add(x, y);
            self.bring(x, part);
            return self.rms_norm(x, weight, eps, out);
        }
        let copy = self.copy_in(y, part);
        let y = copy.as_ref().unwrap_or(y);
        match weight {
            Each::Card(i, weight) => {
                let out = Self::card_out(&mut self.cards, out, *i);
                let x = &mut x.parts.card_mut(*i).1;
                self.cards[*i].add_rms_norm(x, Self::card_in(y, *i), weight, eps, out);
            }
            Each::Rest(weight) => {
                let out = Self::rest_out(&mut self.rest, out, part);
                self.rest.add_rms_norm(&mut x.parts.rest_mut().1, Self::rest_in(y), weight, eps, out);
            }
        }
    }

    fn linear(&mut self, x: &Self::Tensor, linear: &Self::Linear, out: &mut Self::Tensor) {
        let part = self.part_of(linear);
        let copy = self.copy_in(x, part);
        let x = copy.as_ref().unwrap_or(x);
        match linear {
            Each::Card(i, linear) => {
                let out = Self::card_out(&mut self.cards, out, *i);
                self.cards[*i].linear(Self::card_in(x, *i), linear, out);
            }
            Each::Rest(linear) => {
                let out = Self::rest_out(&mut self.rest, out, part);
                self.rest.linear(Self::rest_in(x), linear, out);
            }
        }
    }

    fn rope_store_kv(
        &mut self,
        qkv: &mut Self::Tensor,
        batch: &Self::Prepared,
        heads: Heads,
        norms: Option<HeadNorms<'_, Self::Vector>>,
        layer: usize,
        kv: &mut Self::Kv,
    ) {
        let (part, layer) = kv.find(layer);
        self.bring(qkv, part);
        if self.is_card(part) {
            let norms = norms.map(|n| HeadNorms { q: on_card(n.q), k: on_card(n.k), eps: n.eps });
            let (qkv, kv) = (&mut qkv.parts.card_mut(part).1, kv.parts.card_mut(part));
            self.cards[part].rope_store_kv(qkv, batch.parts.card(part), heads, norms, layer, kv);
        } else {
            let norms = norms.map(|n| HeadNorms { q: on_rest(n.q), k: on_rest(n.k), eps: n.eps });
            let (qkv, kv) = (&mut qkv.parts.rest_mut().1, kv.parts.rest_mut());
            self.rest.rope_store_kv(qkv, batch.parts.rest(), heads, norms, layer, kv);
        }
    }

    fn paged_attention(
        &mut self,
        qkv: &Self::Tensor,
        batch: &Self::Prepared,
        attention: &Attention,
        layer: usize,
        kv: &Self::Kv,
        out: &mut Self::Tensor,
    ) {
        let (part, layer) = kv.find(layer);
        let copy = self.copy_in(qkv, part);
        let qkv = copy.as_ref().unwrap_or(qkv);
        if self.is_card(part) {
            let out = Self::card_out(&mut self.cards, out, part);
            let (qkv, batch, kv) = (Self::card_in(qkv, part), batch.parts.card(part), kv.parts.card(part));
            self.cards[part].paged_attention(qkv, batch, attention, layer, kv, out);
        } else {
            let out = Self::rest_out(&mut self.rest, out, part);
            let (qkv, batch, kv) = (Self::rest_in(qkv), batch.parts.rest(), kv.parts.rest());
            self.rest.paged_attention(qkv, batch, attention, layer, kv, out);
        }
    }

    fn gate(&mut self, x: &Self::Tensor, gate: Gate, out: &mut Self::Tensor) {
        let part = x.at;
        if self.is_card(part) {
            let out = Self::card_out(&mut self.cards, out, part);
            self.cards[part].gate(Self::card_in(x, part), gate, out);
        } else {
            let out = Self::rest_out(&mut self.rest, out, part);
            self.rest.gate(Self::rest_in(x), gate, out);
        }
    }

    fn gated_linear(
        &mut self,
        x: &Self::Tensor,
        linear: &Self::Linear,
        gate: Gate,
        hidden: &mut Self::Tensor,
        out: &mut Self::Tensor,
    ) {
        let part = self.part_of(linear);
        let copy = self.copy_in(x, part);
        let x = copy.as_ref().unwrap_or(x);
        match linear {
            Each::Card(i, linear) => {
                let hidden = Self::card_out(&mut self.cards, hidden, *i);
                let out = Self::card_out(&mut self.cards, out, *i);
                self.cards[*i].gated_linear(Self::card_in(x, *i), linear, gate, hidden, out);
            }
            Each::Rest(linear) => {
                let hidden = Self::rest_out(&mut self.rest, hidden, part);
                let out = Self::rest_out(&mut self.rest, out, part);
                self.rest.gated_linear(Self::rest_in(x), linear, gate, hidden, out);
            }
        }
    }

    fn moe<L: Borrow<Self::Linear>>(&mut self, x: &Self::Tensor, moe: &Moe<L>, out: &mut Self::Tensor) {
        let part = self.part_of(moe.router.borrow());
        let copy = self.copy_in(x, part);
        let x = copy.as_ref().unwrap_or(x);
        if self.is_card(part) {
            let moe = moe_of(moe, |linear| on_card(linear.borrow()));
            let out = Self::card_out(&mut self.cards, out, part);
            self.cards[part].moe(Self::card_in(x, part), &moe, out);
        } else {
            let moe = moe_of(moe, |linear| on_rest(linear.borrow()));
            let out = Self::rest_out(&mut self.rest, out, part);
            self.rest.moe(Self::rest_in(x), &moe, out);
        }
    }

    fn gather_logit_rows(&mut self, x: &Self::Tensor, batch: &Self::Prepared, out: &mut Self::Tensor) {
        let part = x.at;
        if self.is_card(part) {
            let out = Self::card_out(&mut self.cards, out, part);
            self.cards[part].gather_logit_rows(Self::card_in(x, part), batch.parts.card(part), out);
        } else {
            let out = Self::rest_out(&mut self.rest, out, part);
            self.rest.gather_logit_rows(Self::rest_in(x), batch.parts.rest(), out);
        }
    }

    fn softcap(&mut self, x: &mut Self::Tensor, cap: f32) {
        let part = x.at;
        match self.is_card(part) {
            true => self.cards[part].softcap(&mut x.parts.card_mut(part).1, cap),
            false => self.rest.softcap(&mut x.parts.rest_mut().1, cap),
        }
    }

    fn read(&mut self, x: &Self::Tensor, out: &mut Vec<f32>) {
        match self.is_card(x.at) {
            true => self.cards[x.at].read(Self::card_in(x, x.at), out),
            false => self.rest.read(Self::rest_in(x), out),
        }
    }

    fn read_rows(&mut self, x: &Self::Tensor, rows: Range<usize>, cols: usize, out: &mut Vec<f32>) {
        match self.is_card(x.at) {
            true => self.cards[x.at].read_rows(Self::card_in(x, x.at), rows, cols, out),
            false => self.rest.read_rows(Self::rest_in(x), rows, cols, out),
        }
    }

    fn weigh(&mut self, logits: &Self::Tensor, asks: &[Ask], out: &mut Vec<Weighed>) -> bool {
        match self.is_card(logits.at) {
            true => self.cards[logits.at].weigh(Self::card_in(logits, logits.at), asks, out),
            false => self.rest.weigh(Self::rest_in(logits), asks, out),
        }
    }

    fn on_host<'a>(&mut self, x: &'a mut Self::Tensor, copy: &'a mut Vec<f32>) -> &'a mut [f32] {
        let part = x.at;
        match self.is_card(part) {
            true => self.cards[part].on_host(&mut x.parts.card_mut(part).1, copy),
            false => self.rest.on_host(&mut x.parts.rest_mut().1, copy),
        }
    }

    fn on_threads(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        self.rest.on_threads(n, task);
    }

    fn write(&mut self, x: &mut Self::Tensor, values: &[f32]) {
        let part = x.at;
        self.write_to(x, part, values);
    }
}

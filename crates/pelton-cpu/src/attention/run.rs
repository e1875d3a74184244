//! One layer's attention over the threads.

use pelton_backend::{Attention, Batch};

use super::{Part, Parts, Products, ScratchPool, Tile, TileAttention, Work, fold_parts, split, tiles};
use crate::kv::Geometry;
use crate::machine::Machine;
use crate::tensor::Shared;

/// What attention keeps from one layer to the next, so that a step allocates only where none was as large.
#[derive(Debug, Default)]
pub(crate) struct AttentionScratch {
    tiles: Vec<Tile>,
    parts: Vec<Part>,
    floats: Vec<f32>,
    tasks: ScratchPool,
}

/// The operands of one layer's attention.
pub(crate) struct Operands<'a> {
    pub machine: &'a Machine,
    pub attention: &'a Attention,
    pub batch: &'a Batch,
    pub geometry: Geometry,
    /// `(rows, qkv_dim)`.
    pub qkv: &'a [f32],
    /// `(rows, q_dim)`.
    pub out: &'a mut [f32],
}

impl AttentionScratch {
    /// Attention over `pool`, a layer of format `F`.
    pub(crate) fn run<F: Products>(&mut self, operands: Operands<'_>, pool: &[F::Element]) {
        let Operands { machine, attention, batch, geometry, qkv, out } = operands;
        tiles(batch, attention, &mut self.tiles);
        let floats = split(&self.tiles, attention, machine.pool.threads(), &mut self.parts);
        if floats > self.floats.len() {
            self.floats.resize(floats, 0.0);
        }
        let head_dim = attention.heads.head_dim;
        let work = Work::<F> {
            isa: machine.isa,
            attention,
            geometry,
            pool,
            pages: &batch.pages,
            qkv,
            out: &Shared::new(out),
            parts: &Parts::new(&mut self.floats[..floats], head_dim),
        };
        let parts = &self.parts;
        // Two products, each an operation per element of the head, at some 8 operations a vector instruction.
        let costs = self.tiles.iter().map(|t| t.cost(attention.window));
        let operations = costs.fold(0, usize::saturating_add).saturating_mul(head_dim / 4);
        let task = |i: usize| {
            self.tasks.with(|scratch| machine.run(TileAttention { work: &work, part: &parts[i], scratch }));
        };
        machine.tasks(parts.len(), operations, &task);
        if floats > 0 {
            let fold = |i: usize| {
                if let Some(rest) = fold_parts(&work, &parts[i]) {
                    machine.run(rest);
                }
            };
            machine.tasks(parts.len(), 4 * floats, &fold);
        }
    }
}

#[cfg(test)]
mod tests {
    use pelton_backend::{BatchBuilder, Heads};

    use super::super::TILE;
    use super::*;

    fn batch() -> Batch {
        let mut b = BatchBuilder::new(512);
        b.push(&[0; 33], 5, &[0, 1], 1).unwrap();
        b.push(&[0; 1], 300, &(2..13).collect::<Vec<_>>(), 1).unwrap();
        b.push(&[0; 1], 9000, &(20..302).collect::<Vec<_>>(), 1).unwrap();
        b.finish()
    }

    #[test]
    fn parts_cover_every_row_head_and_chunk_once() {
        let batch = batch();
        for (n_heads, n_kv_heads) in [(14, 2), (3, 3), (96, 1), (7, 1), (65, 1), (300, 1)] {
            for (threads, window) in [(1, None), (2, None), (16, Some(700)), (64, None)] {
                let heads = Heads { n_heads, n_kv_heads, head_dim: 8 };
                let attention = Attention { heads, scale: 1.0, softcap: None, window };
                let (mut all, mut parts) = (Vec::new(), Vec::new());
                tiles(&batch, &attention, &mut all);
                let floats = split(&all, &attention, threads, &mut parts);
                assert!(floats == 0 || threads > 1);
                let n_chunks = 40;
                let mut seen = vec![0; batch.rows() * n_heads * n_chunks];
                let mut left = vec![0; floats];
                for p in &parts {
                    let t = &p.tile;
                    assert!(t.n_queries() <= TILE && !p.chunks.is_empty());
                    assert_eq!(t.head / (n_heads / n_kv_heads), (t.head + t.n_heads - 1) / (n_heads / n_kv_heads));
                    for r in t.row..t.row + t.n_rows {
                        for h in t.head..t.head + t.n_heads {
                            p.chunks.clone().for_each(|c| seen[(r * n_heads + h) * n_chunks + c] += 1);
                        }
                    }
                    if let Some(at) = p.parts_at {
                        left[at..at + p.chunks.len() * t.n_queries() * 10].iter_mut().for_each(|n| *n += 1);
                    } else {
                        assert_eq!(p.chunks, t.chunks(window));
                    }
                }
                assert!(left.iter().all(|&n| n == 1));
                for t in &all {
                    for r in t.row..t.row + t.n_rows {
                        let of_row = &seen[(r * n_heads + t.head) * n_chunks..][..n_chunks];
                        let chunks = t.chunks(window);
                        assert!((0..n_chunks).all(|c| of_row[c] == usize::from(chunks.contains(&c))));
                    }
                }
            }
        }
    }
}

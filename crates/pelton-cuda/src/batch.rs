//! A batch on the device: positions, pages and tables of its rows, the angles of their rotation, the tiles of attention.
//!
//! One upload a step. The buffers return to the pool with the batch, so the next step of the same size finds them at the
//! same address, and its launches are the same.

use pelton_backend::{Batch, PAGE_LEN, Rope};

use crate::context::Context;
use crate::pool::Buffer;
use crate::queue::{Shape, args};

/// Positions of a chunk, as in `kernels/attention.cuh`.
pub(crate) const CHUNK: usize = 128;

/// How many query heads share a KV head, and how many tile rows a block has: what tiles depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TileShape {
    pub(crate) group: usize,
    /// Tile rows of a block with several warps.
    pub(crate) many: usize,
}

/// The blocks of attention, see `kernels/attention.cu`.
#[derive(Debug)]
pub(crate) struct Tiles {
    pub(crate) shape: TileShape,
    /// Blocks of one warp are enough for every span.
    pub(crate) are_small: bool,
    /// The largest number of chunks that a tile's rows see, to a power of two.
    pub(crate) max_chunks: usize,
    pub(crate) n: usize,
    values: Vec<[i32; 4]>,
}

/// A batch made ready.
#[derive(Debug)]
pub struct Prepared {
    pub(crate) batch: Batch,
    /// `(rows, half)` of (cos, sin)
    pub(crate) angles: Option<Buffer>,
    /// Pairs that are rotated.
    pub(crate) half: usize,
    /// Holds what follows.
    _buffer: Buffer,
    /// `(rows,)` each, int32: where they begin in the buffer.
    pub(crate) positions: u64,
    pub(crate) page_of: u64,
    pub(crate) table_of: u64,
    pub(crate) logit_rows: u64,
    pub(crate) pages: u64,
    pub(crate) tile_list: u64,
    pub(crate) tiles: Tiles,
}

impl Tiles {
    pub(crate) fn of(batch: &Batch, shape: TileShape) -> Tiles {
        const WARP_ROWS: usize = 16;
        let are_small = batch.spans.iter().all(|s| s.len * shape.group <= WARP_ROWS);
        let rows = if are_small { WARP_ROWS } else { shape.many };
        let mut values = Vec::new();
        for span in &batch.spans {
            let end = span.len * shape.group;
            let tiles = (0..end).step_by(rows);
            values.extend(tiles.map(|f| [span.row as i32, f as i32, end as i32, span.cached_len as i32]));
        }
        let longest = batch.spans.iter().map(|s| s.context_len().div_ceil(CHUNK)).max().unwrap_or(1);
        Tiles { shape, are_small, max_chunks: longest.next_power_of_two(), n: values.len(), values }
    }
}

fn int(n: usize) -> i32 {
    i32::try_from(n).expect("positions and pages have 31 bits")
}

impl Prepared {
    /// # Panics
    /// Where spans leave rows out or two of them would write one page: kernels rely on that.
    pub(crate) fn new(
        context: &mut Context,
        batch: &Batch,
        rope: &Rope,
        frequencies: Option<&Buffer>,
        shape: TileShape,
    ) -> Prepared {
        let rows = batch.rows();
        let (mut page_of, mut table_of) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
        let mut written: Vec<u32> = Vec::new();
        for span in &batch.spans {
            assert_eq!(span.row, page_of.len(), "spans lie side by side");
            let table = batch.page_table(span);
            for position in span.cached_len..span.context_len() {
                page_of.push(table[position / PAGE_LEN].cast_signed());
                table_of.push(int(span.page_start));
            }
            written.extend(&table[span.cached_len / PAGE_LEN..=(span.context_len() - 1) / PAGE_LEN]);
        }
        assert_eq!(page_of.len(), rows, "every row is in a span");
        written.sort_unstable();
        assert!(written.windows(2).all(|w| w[0] != w[1]), "a page is written by one sequence");

        let tiles = Tiles::of(batch, shape);
        // The tiles first: they are read 16 bytes at a time.
        let mut ints: Vec<i32> = tiles.values.as_flattened().to_vec();
        let mut put = |values: &mut dyn Iterator<Item = i32>| {
            let at = 4 * ints.len() as u64;
            ints.extend(values);
            at
        };
        let positions = put(&mut batch.positions.iter().map(|&p| p.cast_signed()));
        let page_of = put(&mut page_of.into_iter());
        let table_of = put(&mut table_of.into_iter());
        let logit_rows = put(&mut batch.logit_rows.iter().map(|&r| r.cast_signed()));
        // Last, since it grows with every page: what lies before it stays where it is.
        let pages = put(&mut batch.pages.iter().map(|&p| p.cast_signed()));
        let bytes: &[u8] = bytemuck::cast_slice(&ints);
        // Room to grow, so that the address stays the same for many steps.
        let buffer = context.scratch("a batch's indices", bytes.len().next_power_of_two());
        context.queue.upload(buffer.pointer(), bytes);
        let half = rope.inv_freq.len();
        let angles = frequencies.filter(|_| half > 0 && rows > 0).map(|frequencies| {
            let angles = context.scratch("rotations", rows * half * 8);
            let shape = Shape::new(half.div_ceil(64), rows, 1, 64);
            let args = args![buffer.pointer() + positions, frequencies, &angles, half, rope.scale];
            context.queue.launch(context.ops.rope_angles, shape, args);
            angles
        });
        let at = buffer.pointer();
        Prepared {
            batch: batch.clone(),
            angles,
            half,
            positions: at + positions,
            page_of: at + page_of,
            table_of: at + table_of,
            logit_rows: at + logit_rows,
            pages: at + pages,
            tile_list: at,
            _buffer: buffer,
            tiles,
        }
    }

    /// Tiles of another shape: those of a model's first step, before its shape is known.
    pub(crate) fn other_tiles(&self, context: &mut Context, shape: TileShape) -> (Tiles, Buffer) {
        let tiles = Tiles::of(&self.batch, shape);
        let bytes: &[u8] = bytemuck::cast_slice(tiles.values.as_flattened());
        let buffer = context.scratch("attention's tiles", bytes.len());
        context.queue.upload(buffer.pointer(), bytes);
        (tiles, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pelton_backend::BatchBuilder;

    #[test]
    fn tiles_cover_each_query_of_each_span_once() {
        let mut b = BatchBuilder::new(20);
        b.push(&[0; 1], 300, &(0..10).collect::<Vec<_>>(), 1).unwrap();
        b.push(&[0; 40], 0, &[10, 11], 1).unwrap();
        let batch = b.finish();
        let tiles = Tiles::of(&batch, TileShape { group: 4, many: 64 });
        assert!(!tiles.are_small);
        assert_eq!(tiles.values, [[0, 0, 4, 300], [1, 0, 160, 0], [1, 64, 160, 0], [1, 128, 160, 0]]);
        assert_eq!(tiles.max_chunks, 4);
        let tiles = Tiles::of(&Batch { spans: batch.spans[..1].to_vec(), ..batch }, TileShape { group: 4, many: 64 });
        assert!(tiles.are_small);
        assert_eq!(tiles.n, 1);
    }
}

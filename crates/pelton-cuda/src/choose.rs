//! Weighing rows of logits on the device: four launches behind a step's others, in its graph, and one short read.
//!
//! Invariant: what is asked of the rows lies in memory of its own, which nothing that waits to run reads or writes: it is
//! sent ahead of the step's launches, so that they stay one graph.

use pelton_backend::{Ask, Weighed};

use crate::CudaError;
use crate::context::Context;
use crate::kernels::Kernels;
use crate::pool::Buffer;
use crate::queue::{Function, Shape, args};
use crate::tensor::Tensor;

/// As in `kernels/choose.cu`.
const BLOCK: usize = 1024;
const MOST: usize = 512;
const BUCKETS: usize = 1024;
const NONE: u32 = u32::MAX;
const WANTS_DRAW: u32 = 1;
const WANTS_LIKELIEST: u32 = 2;
/// Bytes of an `Ask`, of a `Best` and of a `Weighed` there.
const ASK_BYTES: usize = 16;
const BEST_BYTES: usize = 12;
const WEIGHED_BYTES: usize = 48;
/// Most rows of a launch: the size of a grid.
const MAX_ROWS: usize = 65_535;

/// The kernels, and what is asked of the rows.
#[derive(Debug)]
pub(crate) struct Chooser {
    best: Function,
    sums: Function,
    totals: Function,
    likeliest: Function,
    asks: Option<Buffer>,
}

impl Chooser {
    pub(crate) fn load(kernels: &mut Kernels) -> Result<Chooser, CudaError> {
        Ok(Chooser {
            best: kernels.get("choose", "logits_best")?,
            sums: kernels.get("choose", "logits_sums")?,
            totals: kernels.get("choose", "logits_totals")?,
            likeliest: kernels.get("choose", "logits_likeliest")?,
            asks: None,
        })
    }

    /// See [`pelton_backend::Backend::weigh`].
    ///
    /// # Errors
    /// As [`crate::queue::Queue::finish`].
    pub(crate) fn weigh(
        &mut self,
        context: &mut Context,
        logits: &Tensor,
        asks: &[Ask],
        out: &mut Vec<Weighed>,
    ) -> Result<(), CudaError> {
        let (rows, vocab) = (logits.rows(), logits.cols());
        assert_eq!(asks.len(), rows, "an ask for each row of logits");
        assert!(rows <= MAX_ROWS, "{rows} rows of logits in one step");
        out.clear();
        if rows == 0 {
            return Ok(());
        }
        let n_blocks = vocab.div_ceil(BLOCK);
        let asked = self.send(context, asks);
        let best = context.scratch("best tokens", rows * n_blocks * BEST_BYTES);
        let sums = context.scratch("sums of weights", rows * n_blocks * 16);
        let counts = context.scratch("tokens by distance", rows * BUCKETS * 4);
        // What is known of each row, then the likeliest tokens of each: one read.
        let has_likeliest = asks.iter().any(|ask| ask.likeliest);
        let (head, tail) = (rows * WEIGHED_BYTES, rows * MOST * 8);
        let weighed = context.scratch("weighed logits", head + tail);
        let (queue, logits) = (&mut context.queue, logits.buffer());
        let by_block = Shape::new(n_blocks, rows, 1, 256);
        queue.launch(self.best, by_block, args![logits, &best, &counts, &weighed, vocab]);
        queue.launch(self.sums, by_block, args![logits, asked, &best, &sums, &counts, vocab]);
        let args = args![logits, asked, &best, &sums, &counts, &weighed, n_blocks, vocab];
        queue.launch(self.totals, Shape::new(rows, 1, 1, 256), args);
        if has_likeliest {
            let likeliest = weighed.pointer() + head as u64;
            queue.launch(self.likeliest, by_block, args![logits, &weighed, likeliest, vocab]);
        }
        let mut bytes = vec![0; if has_likeliest { head + tail } else { head }];
        queue.finish(weighed.pointer(), &mut bytes)?;
        let (head, tail) = bytes.split_at(head);
        out.extend(head.as_chunks::<WEIGHED_BYTES>().0.iter().enumerate().map(|(row, head)| {
            let tokens = tail.as_chunks::<8>().0.chunks_exact(MOST).nth(row).unwrap_or(&[]);
            of_bytes(head, tokens)
        }));
        Ok(())
    }

    /// Sends what is asked ahead of what waits; its address.
    fn send(&mut self, context: &mut Context, asks: &[Ask]) -> u64 {
        let needed = asks.len() * ASK_BYTES;
        if self.asks.as_ref().is_none_or(|buffer| buffer.bytes() < needed) {
            let buffer = context.memory_exact("what is asked of logits", needed.next_power_of_two());
            // What it replaces may still be read by what waits, and new memory may be what that uses.
            context.queue.send();
            self.asks = Some(buffer.unwrap_or_else(|e| e.end_step()));
        }
        let asked = self.asks.as_ref().expect("made above").pointer();
        let mut bytes = Vec::with_capacity(needed);
        for ask in asks {
            let draws = if ask.point.is_some() && ask.temperature > 0.0 { WANTS_DRAW } else { 0 };
            let lists = if ask.likeliest { WANTS_LIKELIEST } else { 0 };
            bytes.extend(ask.temperature.to_le_bytes());
            bytes.extend((draws | lists).to_le_bytes());
            bytes.extend(ask.point.unwrap_or(0.0).to_le_bytes());
        }
        context.queue.upload_ahead(asked, &bytes);
        asked
    }
}

/// What a row's bytes say.
fn of_bytes(head: &[u8; WEIGHED_BYTES], tokens: &[[u8; 8]]) -> Weighed {
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| head[at + i]));
    let double = |at: usize| f64::from_le_bytes(std::array::from_fn(|i| head[at + i]));
    let token = |[a, b, c, d, e, f, g, h]: &[u8; 8]| {
        (u32::from_le_bytes([*a, *b, *c, *d]), f32::from_le_bytes([*e, *f, *g, *h]))
    };
    let odd = word(8);
    Weighed {
        max: f32::from_bits(word(0)),
        best: word(4),
        odd: (odd != NONE).then(|| (odd, f32::from_bits(word(12)))),
        sum: double(16),
        sum_at: double(24),
        drawn: (word(32), f32::from_bits(word(36))),
        likeliest: tokens.iter().take(word(40) as usize).map(token).collect(),
        is_all: word(44) == BUCKETS as u32 - 1,
    }
}

//! The machine's read bandwidth, measured: the ceiling of decoding, which reads all weights once a token.

use std::hint::black_box;
use std::time::Instant;

use crate::linear::memory::PanelMemory;
use crate::pool::Pool;

/// Bytes that one task reads.
const CHUNK: usize = 1 << 20;
/// Passes, of which the best counts.
const PASSES: usize = 5;
/// How far ahead is prefetched, in bytes.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 512;

/// Streams a buffer of `bytes` bytes on all threads of `pool` and returns GB/s (10^9 bytes a second), the best of 5
/// passes. `bytes` should be several times the last-level cache; 0 where there is no such memory.
pub fn measure_read_bandwidth(pool: &Pool, bytes: usize) -> f64 {
    let n = bytes.div_ceil(CHUNK).max(1);
    let fill = |i: usize, chunk: &mut [u8]| chunk.fill(i as u8);
    let Some(memory) = PanelMemory::new(n, CHUNK, pool, &fill) else {
        return 0.0;
    };
    let chunks = memory.bytes().as_chunks::<CHUNK>().0;
    let pass = || {
        let start = Instant::now();
        pool.run(n, &|i| {
            black_box(sum(&chunks[i]));
        });
        (n * CHUNK) as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    (0..PASSES).map(|_| pass()).fold(0.0, f64::max)
}

/// Reads every byte of a chunk: four places at once, since a core keeps more reads in flight that way, and eight
/// independent sums, so that loads and not additions are the limit.
fn sum(chunk: &[u8; CHUNK]) -> u64 {
    let mut sums = [0u64; 8];
    let lines = chunk.as_chunks::<64>().0;
    let (a, b) = lines.split_at(lines.len() / 2);
    let ((a, b), (c, d)) = (a.split_at(a.len() / 2), b.split_at(b.len() / 2));
    for i in 0..a.len() {
        for line in [&a[i], &b[i], &c[i], &d[i]] {
            prefetch(line);
            for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
                *sum = sum.wrapping_add(u64::from_le_bytes(*word));
            }
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}

#[inline(always)]
fn prefetch(line: &[u8; 64]) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64, and a prefetch of any address is no access.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().wrapping_add(AHEAD).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_buffer_gives_a_plausible_figure() {
        let gb_s = measure_read_bandwidth(&Pool::new(2).unwrap(), 4 << 20);
        assert!(gb_s > 0.05 && gb_s < 20_000.0, "{gb_s} GB/s");
    }
}

//! Packing on the host: tiles of block formats, padded rows of floats; over all cores.

use pelton_backend::Weight;

use super::format::{Format, SUPERBLOCK, TILE_ROWS};

/// Runs `work` on consecutive pieces of `out`, `piece` bytes each (the last may be shorter), on several threads.
pub(super) fn in_parallel(out: &mut [u8], piece: usize, work: impl Fn(usize, &mut [u8]) + Sync) {
    let n = out.len().div_ceil(piece);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(n).min(32);
    // Small matrices are not worth a thread.
    if threads <= 1 || out.len() < 1 << 18 {
        return out.chunks_mut(piece).enumerate().for_each(|(i, out)| work(i, out));
    }
    let each = n.div_ceil(threads);
    std::thread::scope(|scope| {
        for (k, run) in out.chunks_mut(each * piece).enumerate() {
            let work = &work;
            scope.spawn(move || run.chunks_mut(piece).enumerate().for_each(|(i, out)| work(k * each + i, out)));
        }
    });
}

/// A matrix as tiles, row blocks first.
pub(super) fn tiles(format: &Format, weight: &Weight) -> Vec<u8> {
    if let Some(grouped) = weight.as_grouped() {
        return super::groups::tiles(format, grouped);
    }
    let dtype = format.dtype.expect("a layout of blocks");
    let n_sb = weight.cols().div_ceil(SUPERBLOCK);
    let (tile_bytes, row_bytes) = (format.tile_bytes(), weight.row_bytes());
    let sb_bytes = SUPERBLOCK / dtype.block_len() * dtype.block_bytes();
    let mut out = vec![0; weight.rows().div_ceil(TILE_ROWS) * n_sb * tile_bytes];
    in_parallel(&mut out, n_sb * tile_bytes, |block, out| {
        let first = block * TILE_ROWS;
        let rows = weight.row_range(first..(first + TILE_ROWS).min(weight.rows()));
        for (g, row) in rows.chunks_exact(row_bytes).enumerate() {
            for (tile, bytes) in out.chunks_exact_mut(tile_bytes).zip(row.chunks(sb_bytes)) {
                format.write(&format.read(bytes), g, tile);
            }
        }
    });
    out
}

/// A matrix as rows of f32, each padded with zeros to a multiple of `chunk` columns.
pub(super) fn floats(weight: &Weight, chunk: usize) -> Vec<u8> {
    let stride = weight.cols().next_multiple_of(chunk) * 4;
    let mut out = vec![0; weight.rows() * stride];
    in_parallel(&mut out, stride, |r, out| {
        let mut row = vec![0.0; weight.cols()];
        weight.decode_row(r, &mut row);
        out.as_chunks_mut::<4>().0.iter_mut().zip(row).for_each(|(to, v)| *to = v.to_le_bytes());
    });
    out
}

/// Whether f16 holds all values to its full precision, or what it drops is nothing beside the row's largest.
pub(super) fn fits_f16(weight: &Weight) -> bool {
    let mut row = vec![0.0; weight.cols()];
    (0..weight.rows()).all(|r| {
        weight.decode_row(r, &mut row);
        let largest = row.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        largest == 0.0 || (largest < 65_504.0 && largest > 2e-4)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_each_done_once_whatever_the_threads() {
        for len in [1000, (1 << 18) + 77] {
            let mut out = vec![0u8; len];
            in_parallel(&mut out, 100, |i, out| out.iter_mut().for_each(|b| *b += 1 + (i % 7) as u8));
            assert!(out.iter().enumerate().all(|(at, &b)| b == 1 + (at / 100 % 7) as u8));
        }
    }

    #[test]
    fn values_outside_of_f16_stay_f32() {
        let weight = |v: f32| Weight::from_f32("w", 1, 2, &[v, 0.5]).unwrap();
        assert!(fits_f16(&weight(3.0)));
        assert!(!fits_f16(&weight(1e6)));
        assert_eq!(floats(&weight(1e6), 4), [1e6f32, 0.5, 0.0, 0.0].map(f32::to_le_bytes).as_flattened());
    }
}

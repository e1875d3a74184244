//! The kernel of every format that has no kernel of its own: slow, exact, and never a refusal.
//!
//! A panel is 16 rows of the file as they are. For each tile of activation rows, `CHUNK` input features of the
//! panel are decoded by `pelton_quant` into floats in the first-level cache, and the float kernel's recipe runs over
//! them; activations are not quantized. Invariant: the sum goes along `k` in order, across chunks too.

#![allow(clippy::needless_range_loop, reason = "m and p number rows and panels, in several arrays at once")]

use pelton_quant::DType;

use super::activations::tiles;
use super::blocks::Panels;
use super::floats::{F32, accumulate};
use super::lanes::Lanes;

/// Input features decoded at a time; a multiple of every block length.
const CHUNK: usize = 256;

/// Runs a task over panels of `dtype`.
///
/// # Safety
/// As [`Lanes`]; `weights` are panels of 16 rows of `dtype`, `floats` are `rows` rows in tiles, and the task owns
/// its columns of `out`.
#[inline(always)]
pub(super) unsafe fn run<S: Lanes>(task: &Panels<'_>, dtype: DType) {
    assert_eq!(task.floats.len(), task.rows * task.k);
    for (row, group) in tiles(task.rows) {
        let x = task.floats[row * task.k..].as_ptr();
        let m = group.min(S::MAX_ROWS);
        for panel in 0..task.n_panels {
            for i in (0..group).step_by(m) {
                // SAFETY: the caller's; a group is as long as `tiles` says.
                unsafe {
                    let (row, x) = (row + i, x.add(i));
                    match m {
                        8 if S::HAS_8 => tile::<S, 8>(task, dtype, panel, row, x, group),
                        4 if S::HAS_4 => tile::<S, 4>(task, dtype, panel, row, x, group),
                        2 if S::HAS_2 => tile::<S, 2>(task, dtype, panel, row, x, group),
                        _ => tile::<S, 1>(task, dtype, panel, row, x, group),
                    }
                }
            }
        }
    }
}

/// One panel times `M` rows of a group.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn tile<S: Lanes, const M: usize>(
    task: &Panels<'_>,
    dtype: DType,
    panel: usize,
    row: usize,
    x: *const f32,
    group: usize,
) {
    let mut decoded = [[0.0; 16]; CHUNK];
    let w = task.weights.wrapping_add(panel * task.panel_bytes);
    // SAFETY: the caller's.
    unsafe {
        let mut acc = [[S::splat(0.0)]; M];
        for k in (0..task.k).step_by(CHUNK) {
            let len = CHUNK.min(task.k - k);
            decode(w, task.panel_bytes / 16, dtype, k, len, &mut decoded);
            accumulate::<F32, S, M, 1>(decoded.as_ptr().cast(), 0, len, x.add(k * group), group, &mut acc);
        }
        for m in 0..M {
            task.store::<S>(acc[m][0], panel, row + m);
        }
    }
}

/// Decodes features `k..k + len` of a panel's 16 rows of `row_bytes` bytes, one feature of all rows after another.
///
/// # Safety
/// `panel` points to 16 rows of `dtype`.
unsafe fn decode(panel: *const u8, row_bytes: usize, dtype: DType, k: usize, len: usize, out: &mut [[f32; 16]; CHUNK]) {
    let mut values = [0.0; CHUNK];
    let bytes = |k: usize| k / dtype.block_len() * dtype.block_bytes();
    for row in 0..16 {
        // SAFETY: the caller's.
        let row_of_panel = unsafe { std::slice::from_raw_parts(panel.add(row * row_bytes), row_bytes) };
        let blocks = &row_of_panel[bytes(k)..bytes(k + len)];
        pelton_quant::decode(dtype, blocks, &mut values[..len]).expect("whole blocks of a type that was checked");
        for (value, out) in values[..len].iter().zip(out.iter_mut()) {
            out[row] = *value;
        }
    }
}

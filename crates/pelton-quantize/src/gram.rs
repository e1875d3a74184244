//! The products of inputs: of a linear layer's input `x`, the sums of `x·xᵀ` over the tokens of a text.
//!
//! ```text
//! output error of a row of weights that is off by Δ:   Σ over tokens of (Δ·x)² = Δ·H·Δᵀ,   H = Σ x·xᵀ
//! ```
//!
//! `H` is kept in windows of at most [`WINDOW`] columns along its diagonal: the products of columns of different windows
//! are taken for 0. So memory for a layer is bounded by `4 · WINDOW` bytes a column.

use std::ops::Range;

/// Columns of a window: a whole number of blocks of every type.
pub(crate) const WINDOW: usize = 4096;
/// Rows of the input that are added at a time, so that `H` is read and written once for them.
const TOGETHER: usize = 8;
/// What is added to the diagonal, as a share of its mean: GPTQ's.
const DAMPING: f64 = 0.01;

/// `H` of one layer.
#[derive(Clone, Debug)]
pub(crate) struct Gram {
    cols: usize,
    /// Of each window its rows, from the diagonal on; what is left of the diagonal is 0.
    windows: Vec<Vec<f32>>,
    rows: usize,
}

/// Where the windows of so many columns lie.
fn windows(cols: usize) -> impl Iterator<Item = Range<usize>> {
    (0..cols).step_by(WINDOW).map(move |at| at..cols.min(at + WINDOW))
}

/// Bytes of a [`Gram`] of so many columns.
pub(crate) fn bytes(cols: usize) -> u64 {
    windows(cols).map(|w| 4 * (w.len() as u64).pow(2)).sum()
}

impl Gram {
    pub(crate) fn new(cols: usize) -> Gram {
        Gram { cols, windows: windows(cols).map(|w| vec![0.0; w.len() * w.len()]).collect(), rows: 0 }
    }

    /// Adds inputs `(rows, cols)`, on so many threads. The sums do not depend on their number.
    pub(crate) fn add(&mut self, inputs: &[f32], threads: usize) {
        let cols = self.cols;
        for inputs in inputs.chunks(TOGETHER * cols) {
            self.rows += inputs.len() / cols;
        }
        for (window, h) in windows(cols).zip(&mut self.windows) {
            let n = window.len();
            // Rows of H dealt out in turn: those near the end are short.
            let mut hands: Vec<Vec<(usize, &mut [f32])>> = (0..threads.clamp(1, n)).map(|_| Vec::new()).collect();
            let n_hands = hands.len();
            for (i, row) in h.chunks_exact_mut(n).enumerate() {
                hands[i % n_hands].push((i, row));
            }
            let add = |hand: Vec<(usize, &mut [f32])>| {
                for (i, row) in hand {
                    for together in inputs.chunks(TOGETHER * cols) {
                        add_products(together, cols, &window, i, row);
                    }
                }
            };
            if n_hands == 1 {
                hands.into_iter().for_each(add);
                continue;
            }
            std::thread::scope(|scope| {
                for hand in hands {
                    scope.spawn(|| add(hand));
                }
            });
        }
    }

    /// The mean squares of the columns.
    pub(crate) fn mean_squares(&self) -> Vec<f32> {
        let n = self.rows.max(1) as f32;
        let diagonal = self.windows.iter().zip(windows(self.cols));
        diagonal.flat_map(|(h, w)| (0..w.len()).map(move |i| h[i * w.len() + i] / n)).collect()
    }

    /// `Δ·H·Δᵀ` of a row of errors.
    pub(crate) fn output_error(&self, delta: &[f32]) -> f64 {
        let mut sum = 0.0;
        for (w, h) in windows(self.cols).zip(&self.windows) {
            let delta = &delta[w.clone()];
            for (i, row) in h.chunks_exact(w.len()).enumerate() {
                let later: f32 = row[i + 1..].iter().zip(&delta[i + 1..]).map(|(h, d)| h * d).sum();
                sum += f64::from(delta[i]) * (f64::from(row[i] * delta[i]) + 2.0 * f64::from(later));
            }
        }
        sum
    }

    /// What error compensation needs, for inputs of which column `j` is divided by `scales[j]`.
    pub(crate) fn factor(&self, scales: Option<&[f32]>) -> Factor {
        let parts = windows(self.cols).zip(&self.windows).map(|(w, h)| {
            let n = w.len();
            let scale = |i: usize| scales.map_or(1.0, |scales| f64::from(scales[w.start + i]));
            let h: Vec<f64> = (0..n * n)
                .map(|at| (at / n, at % n))
                .map(|(i, j)| if j < i { 0.0 } else { f64::from(h[i * n + j]) / (scale(i) * scale(j)) })
                .collect();
            (w.start, inverse_root(h, n))
        });
        Factor { windows: parts.collect() }
    }
}

/// Adds to row `i` of a window its products over at most [`TOGETHER`] inputs.
fn add_products(inputs: &[f32], cols: usize, window: &Range<usize>, i: usize, row: &mut [f32]) {
    let row = &mut row[i..];
    let n = row.len();
    // All of one length, which the compiler then knows: sums of several columns at once.
    let of = |token: usize| &inputs[token * cols + window.start + i..][..n];
    if inputs.len() == TOGETHER * cols {
        let [a, b, c, d, e, f, g, h] = std::array::from_fn(of);
        for j in 0..n {
            let first = (a[0] * a[j] + b[0] * b[j]) + (c[0] * c[j] + d[0] * d[j]);
            let second = (e[0] * e[j] + f[0] * f[j]) + (g[0] * g[j] + h[0] * h[j]);
            row[j] += first + second;
        }
        return;
    }
    for x in (0..inputs.len() / cols).map(of) {
        for (sum, value) in row.iter_mut().zip(x) {
            *sum += x[0] * value;
        }
    }
}

/// Of each window, `U` with `H⁻¹ = Uᵀ·U`, upper triangular: how an error of one column is best made good by later ones.
pub(crate) struct Factor {
    /// Where a window begins, and its `U`: rows from the diagonal on, each divided by its diagonal.
    windows: Vec<(usize, Root)>,
}

/// `U` of one window.
struct Root {
    n: usize,
    /// Row `i` divided by `U[i][i]`.
    ratios: Vec<f32>,
    /// `1 / U[i][i]²`: what the error of column `i` costs once later columns have made good what they can.
    costs: Vec<f32>,
}

impl Factor {
    /// The columns after `col` in its window, and by how much of an error at `col` each is to be lowered.
    pub(crate) fn later(&self, col: usize) -> (usize, &[f32]) {
        let (start, root) = &self.windows[col / WINDOW];
        let i = col - start;
        (col + 1, &root.ratios[i * root.n + i + 1..(i + 1) * root.n])
    }

    /// What a squared error of each column costs.
    pub(crate) fn costs(&self) -> Vec<f32> {
        self.windows.iter().flat_map(|(_, root)| root.costs.iter().copied()).collect()
    }
}

/// `U` of `H` (upper half), damped.
///
/// `H = R·Rᵀ` with `R` upper triangular is Cholesky's from the last column to the first; then `U = R⁻¹`, for
/// `H⁻¹ = R⁻ᵀ·R⁻¹`.
fn inverse_root(h: Vec<f64>, n: usize) -> Root {
    let mean = (0..n).map(|i| h[i * n + i]).sum::<f64>() / n.max(1) as f64;
    let mut damping = DAMPING;
    let root = loop {
        let mut r = h.clone();
        for i in 0..n {
            // A column that never had an input costs nothing; it shall not be divided by.
            let diagonal = if r[i * n + i] > 0.0 { r[i * n + i] } else { mean };
            r[i * n + i] = if mean > 0.0 { diagonal + damping * mean } else { 1.0 };
        }
        if upper_cholesky(&mut r, n) {
            break r;
        }
        // More than rounding is wrong with it only if this does not help, and an infinite damping is the identity.
        damping *= 10.0;
    };
    let inverse = upper_inverse(&root, n);
    let costs = (0..n).map(|i| (root[i * n + i] * root[i * n + i]) as f32).collect();
    let ratio = |at: usize| (inverse[at] / inverse[at / n * n + at / n]) as f32;
    Root { n, ratios: (0..n * n).map(ratio).collect(), costs }
}

/// Makes the upper half of `h` into `R` with `h = R·Rᵀ`; false where it is not positive definite.
fn upper_cholesky(h: &mut [f64], n: usize) -> bool {
    for j in (0..n).rev() {
        let (above, from_j) = h.split_at_mut(j * n);
        let row_j = &mut from_j[..n];
        let pivot = row_j[j] - row_j[j + 1..].iter().map(|r| r * r).sum::<f64>();
        if !(pivot > 0.0 && pivot.is_finite()) {
            return false;
        }
        let root = pivot.sqrt();
        row_j[j] = root;
        for row_i in above.chunks_exact_mut(n) {
            let product: f64 = row_i[j + 1..].iter().zip(&row_j[j + 1..]).map(|(a, b)| a * b).sum();
            row_i[j] = (row_i[j] - product) / root;
        }
    }
    true
}

/// The inverse of an upper triangular matrix.
fn upper_inverse(r: &[f64], n: usize) -> Vec<f64> {
    let mut inverse = vec![0.0; n * n];
    for (i, row) in inverse.chunks_exact_mut(n).enumerate() {
        row[i] = 1.0;
        for k in i..n {
            let value = row[k] / r[k * n + k];
            row[k] = value;
            for (left, r) in row[k + 1..].iter_mut().zip(&r[k * n + k + 1..(k + 1) * n]) {
                *left -= value * r;
            }
        }
    }
    inverse
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Seeded inputs whose columns are correlated.
    pub(crate) fn inputs(rows: usize, cols: usize) -> Vec<f32> {
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / 8_388_608.0 - 1.0
        };
        let mut out = Vec::with_capacity(rows * cols);
        for _ in 0..rows {
            let (common, tilt) = (next(), next());
            out.extend((0..cols).map(|j| next() + 2.0 * common + tilt * j as f32 / cols as f32));
        }
        out
    }

    /// `H` of inputs, plainly.
    pub(crate) fn plain(inputs: &[f32], cols: usize) -> Vec<f64> {
        let mut h = vec![0.0; cols * cols];
        for x in inputs.chunks_exact(cols) {
            for i in 0..cols {
                for j in 0..cols {
                    h[i * cols + j] += f64::from(x[i]) * f64::from(x[j]);
                }
            }
        }
        h
    }

    #[test]
    fn products_are_summed_whatever_the_threads() {
        let (rows, cols) = (21, 24);
        let x = inputs(rows, cols);
        let mut one = Gram::new(cols);
        one.add(&x, 1);
        let mut three = Gram::new(cols);
        three.add(&x, 3);
        assert_eq!((one.rows, &one.windows), (rows, &three.windows));
        let h = plain(&x, cols);
        for (at, h) in h.iter().enumerate().filter(|(at, _)| at % cols >= at / cols) {
            assert!((f64::from(one.windows[0][at]) - h).abs() < 1e-3, "{at}: {} is not {h}", one.windows[0][at]);
        }
        let squares = one.mean_squares();
        assert!((f64::from(squares[5]) - h[5 * cols + 5] / rows as f64).abs() < 1e-4);
        let delta: Vec<f32> = (0..cols).map(|i| (i as f32 - 9.0) / 10.0).collect();
        let direct: f64 = x
            .chunks_exact(cols)
            .map(|x| x.iter().zip(&delta).map(|(x, d)| f64::from(x * d)).sum::<f64>().powi(2))
            .sum();
        assert!((one.output_error(&delta) / direct - 1.0).abs() < 1e-4);
    }

    #[test]
    fn the_factor_is_the_root_of_the_inverse() {
        let (n, mut gram) = (16, Gram::new(16));
        gram.add(&inputs(64, n), 1);
        let factor = gram.factor(None);
        // Uᵀ·U·(H + damping) is the identity.
        let (_, root) = &factor.windows[0];
        let u = |i: usize, j: usize| {
            if j < i { 0.0 } else { f64::from(root.ratios[i * n + j]) / f64::from(root.costs[i]).sqrt() }
        };
        let h = |i: usize, j: usize| f64::from(gram.windows[0][i.min(j) * n + i.max(j)]);
        let mean = (0..n).map(|i| h(i, i)).sum::<f64>() / n as f64;
        for i in 0..n {
            for j in 0..n {
                let inverse = |a: usize, b: usize| (0..n).map(|k| u(k, a) * u(k, b)).sum::<f64>();
                let damped = |a: usize, b: usize| h(a, b) + if a == b { DAMPING * mean } else { 0.0 };
                let product: f64 = (0..n).map(|k| inverse(i, k) * damped(k, j)).sum();
                assert!((product - f64::from(u8::from(i == j))).abs() < 1e-3, "{i}, {j}: {product}");
            }
        }
    }

    #[test]
    fn inputs_without_rank_and_none_at_all_have_a_factor() {
        let mut gram = Gram::new(8);
        assert_eq!(gram.factor(None).later(0), (1, [0.0f32; 7].as_slice()));
        gram.add(&[1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 2);
        let factor = gram.factor(None);
        assert!(factor.costs().iter().all(|cost| *cost > 0.0 && cost.is_finite()));
        assert!(factor.later(0).1.iter().all(|r| r.is_finite()));
        assert_eq!(factor.later(7), (8, [0.0f32; 0].as_slice()));
    }

    #[test]
    fn a_wide_layer_is_cut_into_windows() {
        assert_eq!(bytes(WINDOW + 256), 4 * (4096 * 4096 + 256 * 256));
        let gram = Gram::new(WINDOW + 256);
        assert_eq!(gram.windows.len(), 2);
    }
}

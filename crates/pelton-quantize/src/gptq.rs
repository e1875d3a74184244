//! Error compensation (GPTQ): elements of a row are rounded from the first to the last, and what each is off by is made
//! good by those after it, as far as the inputs of the layer go together (arXiv 2210.17323).
//!
//! ```text
//! for each block of the row:   scales of the block from its elements as they are now
//!     for each element j:      code = the nearest;  e = element − value
//!                              each later element k −= e · U[j][k] / U[j][j]             U: `Factor`
//! ```
//!
//! The scales are those that the encoder finds with the costs `1 / U[j][j]²`: what an error of an element costs once later
//! ones have made good what they can. Invariant: a row's blocks depend on the row and the factor alone.

use pelton_quant::{DType, QuantError, Steps, encode_weighted, set_codes};

use crate::gram::Factor;

/// Whether rows of this type can be compensated: those with a code for each element. Others are encoded as ever.
pub(crate) fn compensates(dtype: DType) -> bool {
    Steps::known(dtype)
}

/// Appends the blocks of a row. `costs` are the factor's.
pub(crate) fn encode_row(
    dtype: DType,
    row: &[f32],
    factor: &Factor,
    costs: &[f32],
    out: &mut Vec<u8>,
) -> Result<(), QuantError> {
    let len = dtype.block_len();
    let mut now = row.to_vec();
    let mut errors = vec![0.0; len];
    let mut codes = vec![0; len];
    for start in (0..row.len()).step_by(len) {
        let (end, block) = (start + len, out.len());
        encode_weighted(dtype, &now[start..end], Some(&costs[start..end]), out)?;
        let steps = Steps::of(dtype, &out[block..]).expect("one block of a type with steps was written");
        for i in 0..len {
            let (code, value) = steps.nearest(i, now[start + i]);
            codes[i] = code;
            errors[i] = now[start + i] - value;
            let (first, ratios) = factor.later(start + i);
            lower(&mut now[first..end], ratios, errors[i]);
        }
        set_codes(dtype, &codes, &mut out[block..]);
        // Later blocks, after all elements of this one: the same sums, with each row of ratios read once.
        for (i, error) in errors.iter().enumerate() {
            let (first, ratios) = factor.later(start + i);
            let skipped = end - first;
            if ratios.len() > skipped {
                lower(&mut now[end..], &ratios[skipped..], *error);
            }
        }
    }
    Ok(())
}

/// `elements −= error · ratios`, as far as both go.
fn lower(elements: &mut [f32], ratios: &[f32], error: f32) {
    for (element, ratio) in elements.iter_mut().zip(ratios) {
        *element -= error * ratio;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gram::Gram;
    use crate::gram::tests::{inputs, plain};
    use pelton_quant::decode;

    fn weights(cols: usize) -> Vec<f32> {
        (0..cols).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0) * 0.05).collect()
    }

    fn inverse(mut h: Vec<f64>, n: usize) -> Vec<f64> {
        let mut out = vec![0.0; n * n];
        (0..n).for_each(|i| out[i * n + i] = 1.0);
        for i in 0..n {
            let pivot = h[i * n + i];
            for j in 0..n {
                (h[i * n + j], out[i * n + j]) = (h[i * n + j] / pivot, out[i * n + j] / pivot);
            }
            for k in (0..n).filter(|k| *k != i) {
                let times = h[k * n + i];
                for j in 0..n {
                    h[k * n + j] -= times * h[i * n + j];
                    out[k * n + j] -= times * out[i * n + j];
                }
            }
        }
        out
    }

    /// As the papers state it (OBS and OBQ): after each element, all later ones move by what the inverse of `H` over the
    /// elements that are left says, and one step of elimination takes the element out of that inverse.
    fn naive(dtype: DType, row: &[f32], h: &[f64], costs: &[f32]) -> Vec<f32> {
        let n = row.len();
        let mut left = inverse(h.to_vec(), n);
        let mut now: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
        let len = dtype.block_len();
        let mut steps = None;
        for j in 0..n {
            if j % len == 0 {
                let block: Vec<f32> = now[j..j + len].iter().map(|x| *x as f32).collect();
                let mut bytes = Vec::new();
                encode_weighted(dtype, &block, Some(&costs[j..j + len]), &mut bytes).unwrap();
                steps = Steps::of(dtype, &bytes);
            }
            let (_, value) = steps.unwrap().nearest(j % len, now[j] as f32);
            let error = (now[j] - f64::from(value)) / left[j * n + j];
            for k in j + 1..n {
                now[k] -= error * left[j * n + k];
            }
            now[j] = f64::from(value);
            let pivot: Vec<f64> = left[j * n..(j + 1) * n].to_vec();
            for a in 0..n {
                let times = left[a * n + j] / pivot[j];
                for b in 0..n {
                    left[a * n + b] -= times * pivot[b];
                }
            }
        }
        now.iter().map(|x| *x as f32).collect()
    }

    fn decoded(dtype: DType, bytes: &[u8]) -> Vec<f32> {
        let mut values = vec![0.0; bytes.len() / dtype.block_bytes() * dtype.block_len()];
        decode(dtype, bytes, &mut values).unwrap();
        values
    }

    #[test]
    fn rows_are_what_the_plain_algorithm_makes_them() {
        for (dtype, cols) in [(DType::Q4_0, 96), (DType::Q5_1, 64), (DType::Q3_K, 256), (DType::Q4_K, 256)] {
            let (x, row) = (inputs(2 * cols, cols), weights(cols));
            let mut gram = Gram::new(cols);
            gram.add(&x, 1);
            let factor = gram.factor(None);
            let costs = factor.costs();
            let mut bytes = Vec::new();
            encode_row(dtype, &row, &factor, &costs, &mut bytes).unwrap();
            let mut h = plain(&x, cols);
            let mean = (0..cols).map(|i| h[i * cols + i]).sum::<f64>() / cols as f64;
            (0..cols).for_each(|i| h[i * cols + i] += 0.01 * mean);
            let naive = naive(dtype, &row, &h, &costs);
            let ours = decoded(dtype, &bytes);
            // A tie, decided otherwise in another precision, may move a few that come after it.
            let same = ours.iter().zip(&naive).filter(|(a, b)| (**a - **b).abs() < 1e-5).count();
            assert!(same * 100 >= cols * 97, "{dtype}: {same} of {cols}");
            let error = |values: &[f32]| {
                let delta: Vec<f32> = values.iter().zip(&row).map(|(a, b)| a - b).collect();
                gram.output_error(&delta)
            };
            assert!(
                (error(&ours) / error(&naive) - 1.0).abs() < 0.05,
                "{dtype}: {} is not {}",
                error(&ours),
                error(&naive)
            );
        }
    }

    #[test]
    fn outputs_of_many_rows_are_nearer_than_without() {
        for dtype in [DType::Q4_0, DType::Q2_K, DType::Q3_K, DType::Q4_K] {
            let cols = 256;
            let mut gram = Gram::new(cols);
            gram.add(&inputs(2 * cols, cols), 1);
            let factor = gram.factor(None);
            let (costs, squares) = (factor.costs(), gram.mean_squares());
            let (mut with, mut without) = (0.0, 0.0);
            for n in 0..8 {
                let mut row = weights(cols);
                row.rotate_left(29 * n);
                let error = |bytes: &[u8]| {
                    let delta: Vec<f32> = decoded(dtype, bytes).iter().zip(&row).map(|(a, b)| a - b).collect();
                    gram.output_error(&delta)
                };
                let (mut compensated, mut plain) = (Vec::new(), Vec::new());
                encode_row(dtype, &row, &factor, &costs, &mut compensated).unwrap();
                encode_weighted(dtype, &row, Some(&squares), &mut plain).unwrap();
                with += error(&compensated);
                without += error(&plain);
            }
            assert!(with < without, "{dtype}: {with} with, {without} without");
        }
    }

    #[test]
    fn inputs_that_go_apart_change_nothing_but_the_weights_of_the_search() {
        // H is diagonal: there is nothing to make good.
        let cols = 64;
        let mut gram = Gram::new(cols);
        for i in 0..cols {
            let mut x = vec![0.0; cols];
            x[i] = 1.0;
            gram.add(&x, 1);
        }
        let (factor, row) = (gram.factor(None), weights(cols));
        let (mut with, mut without) = (Vec::new(), Vec::new());
        encode_row(DType::Q4_0, &row, &factor, &factor.costs(), &mut with).unwrap();
        encode_weighted(DType::Q4_0, &row, Some(&[1.0; 64]), &mut without).unwrap();
        assert_eq!(with, without);
    }
}

//! From the final hidden states of a prompt to one vector.
//!
//! Invariant: sums are taken in order of position, in float64, each position once: chunks, company and preemption
//! change no bit.

use crate::Pooling;

/// A vector in the making.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    pooling: Pooling,
    /// `(hidden,)`: the sum over positions (mean), or the last one's (last).
    sum: Vec<f64>,
    /// Positions summed.
    len: usize,
}

impl Pool {
    pub(crate) fn new(pooling: Pooling) -> Pool {
        Pool { pooling, sum: Vec::new(), len: 0 }
    }

    /// Takes in the states of positions `start..`, `(rows, hidden)`. After preemption positions come again; they have
    /// the same states, and are passed over.
    pub(crate) fn push(&mut self, start: usize, states: &[f32], hidden: usize) {
        let rows = states.chunks_exact(hidden).enumerate().map(|(i, row)| (start + i, row));
        for (position, row) in rows {
            match self.pooling {
                Pooling::Last => self.sum = row.iter().map(|&x| f64::from(x)).collect(),
                Pooling::Mean if position == self.len => {
                    self.sum.resize(hidden, 0.0);
                    self.sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
                    self.len += 1;
                }
                Pooling::Mean => assert!(position < self.len, "position {position} follows {}", self.len),
            }
        }
    }

    /// The vector, of length 1 (the zero vector stays zero).
    pub(crate) fn finish(&self) -> Vec<f32> {
        // A sum and a mean have the same direction.
        let length = self.sum.iter().map(|x| x * x).sum::<f64>().sqrt();
        let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
        self.sum.iter().map(|x| (x * scale) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_and_repeats_change_nothing() {
        let states: Vec<f32> = (0..12).map(|i| (i as f32).sin()).collect();
        let mut whole = Pool::new(Pooling::Mean);
        whole.push(0, &states, 3);
        let mut parts = Pool::new(Pooling::Mean);
        parts.push(0, &states[..6], 3);
        parts.push(0, &states[..9], 3);
        parts.push(3, &states[9..], 3);
        assert_eq!(whole.finish(), parts.finish());
        let length: f32 = whole.finish().iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-6);
        let mut last = Pool::new(Pooling::Last);
        last.push(0, &[9.0, 9.0, 9.0, 3.0, 0.0, 4.0], 3);
        assert_eq!(last.finish(), [0.6, 0.0, 0.8]);
        assert_eq!(Pool::new(Pooling::Last).finish(), [0.0; 0]);
    }
}

//! The hidden states of a prompt as one vector.
//!
//! They are added in `f64`, one after the other in the order of their positions, each dimension by itself: neither a chunk nor
//! a preemption decides a bit. The vector has length 1 and is rounded to `f32` once, at its end.

use std::ops::Range;

use super::{job::Pooling, sampler::NotANumber};

/// A vector that grows with the states of its prompt.
#[derive(Debug)]
pub(crate) struct Pool {
    pooling: Pooling,
    /// `[hidden]`, and empty until the first state. The mean's length is made 1 in the end, so its sum is as good.
    sum: Vec<f64>,
}

impl Pool {
    /// Of no state yet.
    pub(crate) fn new(pooling: Pooling) -> Self {
        Self { pooling, sum: Vec::new() }
    }

    /// The positions of a prompt of `tokens` whose states it takes.
    pub(crate) fn positions(&self, tokens: usize) -> Range<usize> {
        match self.pooling {
            Pooling::Mean => 0..tokens,
            Pooling::Last => tokens.saturating_sub(1)..tokens,
        }
    }

    /// Takes the state `[hidden]` of the next of its positions.
    pub(crate) fn add(&mut self, state: &[f32]) {
        self.sum.resize(state.len(), 0.0);
        for (sum, value) in self.sum.iter_mut().zip(state) {
            *sum += f64::from(*value);
        }
    }

    /// The vector `[hidden]`, of length 1; there is none where all states are zero or one of them is not finite.
    pub(crate) fn vector(self) -> Result<Vec<f32>, NotANumber> {
        let length = self.sum.iter().map(|value| value * value).sum::<f64>().sqrt();
        if !length.is_normal() {
            return Err(NotANumber);
        }
        #[expect(clippy::cast_possible_truncation, reason = "rounded once, to f32")]
        Ok(self.sum.into_iter().map(|value| (value / length) as f32).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pooled(pooling: Pooling, states: &[[f32; 2]]) -> Result<Vec<f32>, NotANumber> {
        let mut pool = Pool::new(pooling);
        states[pool.positions(states.len())].iter().for_each(|state| pool.add(state));
        pool.vector()
    }

    #[test]
    fn the_mean_or_the_last_has_length_one() {
        let states = [[9.0, -1.0], [-7.0, 2.0], [1.0, 3.0]];
        assert_eq!(pooled(Pooling::Mean, &states).unwrap(), [0.6, 0.8]);
        let last = (1.0_f32 / 10.0_f32.sqrt(), 3.0_f32 / 10.0_f32.sqrt());
        let got = pooled(Pooling::Last, &states).unwrap();
        assert!((got[0] - last.0).abs() < 1e-7 && (got[1] - last.1).abs() < 1e-7, "{got:?}");
    }

    #[test]
    fn large_states_do_not_overflow_and_small_ones_do_not_vanish() {
        let huge = pooled(Pooling::Mean, &[[f32::MAX, 0.0], [f32::MAX, 0.0]]);
        assert_eq!(huge.unwrap(), [1.0, 0.0]);
        let tiny = pooled(Pooling::Last, &[[0.0, f32::MIN_POSITIVE]]);
        assert_eq!(tiny.unwrap(), [0.0, 1.0]);
    }

    #[test]
    fn what_has_no_direction_is_no_vector() {
        for states in [[[0.0, 0.0]], [[f32::NAN, 1.0]], [[1.0, f32::INFINITY]]] {
            assert!(pooled(Pooling::Mean, &states).is_err(), "{states:?}");
        }
        assert!(pooled(Pooling::Mean, &[[1.0, 2.0], [-1.0, -2.0]]).is_err());
    }
}

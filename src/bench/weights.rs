//! Which of several, by how much each one weighs.

use rand_chacha::{ChaCha8Rng, rand_core::RngCore as _};

/// Weights, as the sums up to each one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Weights(Vec<f64>);

impl Weights {
    /// `None` where nothing could be picked: no weights, one that is no number or negative, or none above 0.
    pub(super) fn new(weights: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sum = 0.0;
        let mut sums = Vec::new();
        for weight in weights {
            if !(weight >= 0.0 && weight.is_finite()) {
                return None;
            }
            sum += weight;
            sums.push(sum);
        }
        (sum > 0.0).then_some(Self(sums))
    }

    /// The k-th of `n` weighs `1/k^s`.
    pub(super) fn zipf(n: usize, s: f64) -> Option<Self> {
        Self::new((1..=n).map(|rank| (rank as f64).powf(-s)))
    }

    pub(super) fn pick(&self, rng: &mut ChaCha8Rng) -> usize {
        let sum = self.0.last().copied().unwrap_or_default();
        let at = unit(rng) * sum;
        self.0.partition_point(|up_to| *up_to <= at).min(self.0.len().saturating_sub(1))
    }
}

/// Uniform in `[0, 1)`, in steps of 2^-53.
pub(super) fn unit(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// Uniform below `n`; 0 where that is 0.
pub(super) fn below(rng: &mut ChaCha8Rng, n: usize) -> usize {
    let wide = u128::from(rng.next_u64()) * n as u128;
    usize::try_from(wide >> 64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng as _;

    use super::*;

    fn counts(weights: &Weights, n: usize) -> Vec<u32> {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut counts = vec![0; n];
        for _ in 0..100_000 {
            counts[weights.pick(&mut rng)] += 1;
        }
        counts
    }

    #[test]
    fn each_is_picked_as_often_as_it_weighs() {
        let counts = counts(&Weights::new([1.0, 0.0, 3.0]).unwrap(), 3);
        // Five standard deviations of a binomial of 100,000 and 1/4 are 685.
        assert!((24_315..=25_685).contains(&counts[0]), "{counts:?}");
        assert_eq!(counts[1], 0);
    }

    #[test]
    fn zipf_halves_from_the_first_to_the_second() {
        let ten = counts(&Weights::zipf(10, 1.0).unwrap(), 10);
        // Of the tenth harmonic number, 2.929, the first has 1: 0.3414.
        assert!((33_390..=34_890).contains(&ten[0]), "{ten:?}");
        assert!((16_480..=17_660).contains(&ten[1]), "{ten:?}");
        assert!(ten.is_sorted_by(|a, b| a > b), "{ten:?}");
        let even = counts(&Weights::zipf(10, 0.0).unwrap(), 10);
        assert!(even.iter().all(|count| (9_526..=10_474).contains(count)), "{even:?}");
    }

    #[test]
    fn weights_that_pick_nothing_are_none() {
        for weights in [&[][..], &[0.0, 0.0], &[1.0, -1.0], &[f64::NAN], &[f64::INFINITY]] {
            assert_eq!(Weights::new(weights.iter().copied()), None, "{weights:?}");
        }
    }

    #[test]
    fn below_reaches_all_and_no_more() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let seen: std::collections::BTreeSet<_> = (0..1000).map(|_| below(&mut rng, 7)).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(below(&mut rng, 0), 0);
    }
}

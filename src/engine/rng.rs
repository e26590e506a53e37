//! The random numbers of one request.

/// `SplitMix64` (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
///
/// The n-th number is a function of seed and n alone, and every seed has its own sequence of period 2^64.
#[derive(Clone, Debug)]
pub(crate) struct Rng {
    state: u64,
}

/// The odd number next to 2^64 divided by the golden ratio.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

impl Rng {
    /// The generator of `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        // Mixed, because seeds that differ by GAMMA would otherwise share their numbers.
        Self { state: mix(seed) }
    }

    /// Uniform in `[0, 1)`, in steps of 2^-53.
    pub(crate) fn unit(&mut self) -> f64 {
        self.state = self.state.wrapping_add(GAMMA);
        (mix(self.state) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// The paper's 64-bit finalizer ("Mix13").
fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_the_papers() {
        // The first outputs of the reference implementation (Vigna, splitmix64.c) for state 0.
        let first = [GAMMA, GAMMA.wrapping_mul(2)].map(mix);
        assert_eq!(first, [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]);
    }

    #[test]
    fn numbers_fill_the_unit_interval_evenly() {
        let mut rng = Rng::new(7);
        let mut counts = [0; 10];
        for _ in 0..100_000 {
            let unit = rng.unit();
            assert!((0.0..1.0).contains(&unit));
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 9")]
            let tenth = (unit * 10.0) as usize;
            counts[tenth] += 1;
        }
        // Five standard deviations of a binomial of 100,000 and 0.1 are 474.
        assert!(counts.iter().all(|count| (9_526..=10_474).contains(count)), "{counts:?}");
    }
}

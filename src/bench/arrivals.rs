//! When requests are due in an open loop.

use std::{fmt, str::FromStr, time::Duration};

use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, Exp1};

/// Requests a second beyond which no client of ours comes.
const MOST: f64 = 1e6;

/// Requests a second: always the same (`5`), or from one to another over the run (`1..20`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// At the start.
    pub from: f64,
    /// At the end.
    pub to: f64,
}

impl Rate {
    /// Always the same.
    pub fn steady(rate: f64) -> Self {
        Self { from: rate, to: rate }
    }

    /// Whether it changes.
    pub fn is_ramp(&self) -> bool {
        self.from.to_bits() != self.to.to_bits()
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rate = |text: &str| text.trim().parse().ok().filter(|rate| (0.0..=MOST).contains(rate));
        let parsed = match text.split_once("..") {
            Some((from, to)) => rate(from).zip(rate(to)).map(|(from, to)| Self { from, to }),
            None => rate(text).map(Self::steady),
        };
        parsed.filter(|rate| rate.from + rate.to > 0.0).ok_or_else(|| {
            "requests a second are expected, such as 5, 0.5 or, rising over the run, 1..20"
                .to_owned()
        })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_ramp() {
            write!(f, "{}..{}", self.from, self.to)
        } else {
            write!(f, "{}", self.from)
        }
    }
}

/// How requests of one rate lie to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spacing {
    /// Independently of each other, as many users' requests do.
    #[default]
    Poisson,
    /// At equal distances.
    Fixed,
}

impl FromStr for Spacing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "poisson" => Ok(Self::Poisson),
            "fixed" => Ok(Self::Fixed),
            _ => Err("choose poisson or fixed".to_owned()),
        }
    }
}

impl fmt::Display for Spacing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Poisson => "poisson",
            Self::Fixed => "fixed",
        })
    }
}

/// The times of a run, since its start, without an end where the rate is steady.
///
/// Up to a time `t` a rate comes to a number of requests; the times are where that number has grown by 1 (`fixed`) or by an
/// exponential with mean 1 (a Poisson process of that rate, also where the rate changes).
#[derive(Debug)]
pub(super) struct Arrivals {
    rate: Rate,
    /// Seconds over which the rate goes from one end to the other.
    over: f64,
    spacing: Spacing,
    rng: ChaCha8Rng,
    /// Requests that the rate comes to up to the last time.
    due: f64,
}

impl Arrivals {
    pub(super) fn new(rate: Rate, over: Duration, spacing: Spacing, rng: ChaCha8Rng) -> Self {
        Self { rate, over: over.as_secs_f64().max(1e-9), spacing, rng, due: 0.0 }
    }
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let Rate { from, to } = self.rate;
        // The first of equal distances is at the start.
        let due = self.due;
        self.due += match self.spacing {
            Spacing::Poisson => Exp1.sample(&mut self.rng),
            Spacing::Fixed => 1.0,
        };
        let due = if self.spacing == Spacing::Fixed { due } else { self.due };
        let seconds = if self.rate.is_ramp() {
            // from t + (to - from) t^2 / (2 over) = due, solved so that nothing cancels.
            let slope = (to - from) / self.over;
            let root = (from * from + 2.0 * slope * due).max(0.0).sqrt();
            if due > 0.0 { 2.0 * due / (from + root) } else { 0.0 }
        } else {
            due / from
        };
        // A ramp ends with the run; what would come after it has no rate.
        if self.rate.is_ramp() && seconds > self.over {
            return None;
        }
        Duration::try_from_secs_f64(seconds).ok()
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng as _;

    use super::*;

    fn times(rate: &str, over: u64, spacing: Spacing, seed: u64) -> Vec<f64> {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        let arrivals =
            Arrivals::new(rate.parse().unwrap(), Duration::from_secs(over), spacing, rng);
        arrivals.map(|time| time.as_secs_f64()).take_while(|time| *time < over as f64).collect()
    }

    #[test]
    fn a_poisson_process_has_its_mean_and_its_variance() {
        let times = times("50", 1000, Spacing::Poisson, 1);
        // Five standard deviations of a Poisson count of 50,000 are 1,118.
        assert!((48_882..=51_118).contains(&times.len()), "{}", times.len());
        let gaps: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean * 50.0 - 1.0).abs() < 0.03, "{mean}");
        // Gaps of a Poisson process deviate by as much as they last.
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.03, "{variance}");
    }

    #[test]
    fn equal_distances_are_equal() {
        let times = times("4", 10, Spacing::Fixed, 1);
        assert_eq!(times.len(), 40);
        assert_eq!(times[..3], [0.0, 0.25, 0.5]);
    }

    #[test]
    fn a_ramp_rises() {
        for spacing in [Spacing::Poisson, Spacing::Fixed] {
            let times = times("0..100", 100, spacing, 2);
            // The whole is 5,000, the first half of the time has a quarter of it.
            let early = times.iter().filter(|time| **time < 50.0).count();
            assert!((4_640..=5_360).contains(&times.len()), "{}", times.len());
            assert!((1_070..=1_430).contains(&early), "{early}");
        }
        let falling = times("100..0", 100, Spacing::Fixed, 2);
        assert_eq!(falling.len(), 5_000);
        assert!(falling.is_sorted());
    }

    #[test]
    fn one_seed_gives_the_same_times_and_another_others() {
        let with = |seed| times("10", 100, Spacing::Poisson, seed);
        assert_eq!(with(1), with(1));
        assert_ne!(with(1), with(2));
    }

    #[test]
    fn what_is_no_rate_is_refused() {
        for text in ["", "0", "-1", "nan", "inf", "1..", "..", "0..0", "1e9"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
        assert_eq!("1..20".parse::<Rate>().unwrap().to_string(), "1..20");
    }
}

//! How long prompts and answers are.

use std::{fmt, str::FromStr};

use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, Exp, LogNormal, Normal};

use super::weights::{Weights, unit};

/// Longer ones are a typing mistake.
const MOST: u32 = 1 << 20;

/// A distribution of lengths, as it is written:
///
/// - `64`: always the same
/// - `16..256`: all from 16 to 256 are equally likely
/// - `normal:MEAN,SD`, `exponential:MEAN`
/// - `lognormal:MEDIAN,SIGMA`: sigma is that of the natural logarithm
/// - `mix:64x3,2048x1`: 64 three times as often as 2048
///
/// The three in the middle may end with bounds: `lognormal:128,0.8,1..1024`. What lies beyond is put at the bound. A length is
/// never below 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Lengths {
    text: String,
    shape: Shape,
    least: u32,
    most: u32,
}

#[derive(Clone, Debug, PartialEq)]
enum Shape {
    Fixed(u32),
    Uniform,
    Normal(Normal<f64>),
    LogNormal(LogNormal<f64>),
    Exponential(Exp<f64>),
    Mix(Vec<u32>, Weights),
}

impl Lengths {
    /// Always the same.
    pub fn fixed(length: u32) -> Self {
        let length = length.clamp(1, MOST);
        Self { text: length.to_string(), shape: Shape::Fixed(length), least: 1, most: MOST }
    }

    /// The next one.
    pub(super) fn draw(&self, rng: &mut ChaCha8Rng) -> u32 {
        let drawn = match &self.shape {
            Shape::Fixed(length) => return *length,
            Shape::Mix(lengths, weights) => {
                return lengths.get(weights.pick(rng)).copied().unwrap_or(1);
            }
            Shape::Uniform => {
                f64::from(self.least) + (unit(rng) * f64::from(self.most - self.least + 1)).floor()
            }
            Shape::Normal(normal) => normal.sample(rng).round(),
            Shape::LogNormal(lognormal) => lognormal.sample(rng).round(),
            Shape::Exponential(exponential) => exponential.sample(rng).round(),
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped to bounds that are u32"
        )]
        let length = drawn.clamp(f64::from(self.least), f64::from(self.most)) as u32;
        length
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let wanted = || {
            "a length is expected, such as 64, 16..256, normal:128,32, lognormal:128,0.8, exponential:128 or mix:64x3,2048x1"
                .to_owned()
        };
        let (kind, rest) = text.split_once(':').unwrap_or(("", text));
        if kind == "mix" {
            return mix(text, rest).ok_or_else(wanted);
        }
        if kind.is_empty() || kind == "uniform" {
            let (shape, (least, most)) = match rest.split_once("..") {
                Some(_) => (Shape::Uniform, bounds(rest).ok_or_else(wanted)?),
                None => (Shape::Fixed(length(rest).ok_or_else(wanted)?), (1, MOST)),
            };
            return Ok(Self { text: text.to_owned(), shape, least, most });
        }
        let (numbers, (least, most)) = match rest.rsplit_once(',') {
            Some((numbers, last)) if last.contains("..") => {
                (numbers, bounds(last).ok_or_else(wanted)?)
            }
            _ => (rest, (1, MOST)),
        };
        let numbers: Result<Vec<f64>, _> =
            numbers.split(',').map(|number| number.trim().parse()).collect();
        let numbers = numbers.map_err(|_| wanted())?;
        // Above 0 and not beyond what a length can be: NaN is neither.
        if !numbers.iter().all(|number| *number > 0.0 && *number <= f64::from(MOST)) {
            return Err(wanted());
        }
        let shape = match (kind, numbers.as_slice()) {
            ("normal", [mean, deviation]) => Normal::new(*mean, *deviation).ok().map(Shape::Normal),
            ("lognormal", [median, sigma]) => {
                LogNormal::new(median.ln(), *sigma).ok().map(Shape::LogNormal)
            }
            ("exponential", [mean]) => Exp::new(1.0 / mean).ok().map(Shape::Exponential),
            _ => None,
        };
        let shape = shape.ok_or_else(wanted)?;
        Ok(Self { text: text.to_owned(), shape, least, most })
    }
}

fn mix(text: &str, parts: &str) -> Option<Lengths> {
    let mut lengths = Vec::new();
    let mut weights = Vec::new();
    for part in parts.split(',') {
        let (of, weight) = part.split_once('x').unwrap_or((part, "1"));
        lengths.push(length(of)?);
        weights.push(weight.trim().parse().ok()?);
    }
    let shape = Shape::Mix(lengths, Weights::new(weights)?);
    Some(Lengths { text: text.to_owned(), shape, least: 1, most: MOST })
}

fn length(text: &str) -> Option<u32> {
    text.trim().parse().ok().filter(|length| (1..=MOST).contains(length))
}

fn bounds(text: &str) -> Option<(u32, u32)> {
    let (least, most) = text.split_once("..")?;
    let (least, most) = (length(least)?, length(most)?);
    (least <= most).then_some((least, most))
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng as _;

    use super::*;

    fn drawn(text: &str) -> Vec<u32> {
        let lengths: Lengths = text.parse().unwrap_or_else(|why| panic!("{text}: {why}"));
        assert_eq!(lengths.to_string(), text);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        (0..20_000).map(|_| lengths.draw(&mut rng)).collect()
    }

    fn mean(drawn: &[u32]) -> f64 {
        drawn.iter().copied().map(f64::from).sum::<f64>() / drawn.len() as f64
    }

    #[test]
    fn distributions_have_their_means_and_bounds() {
        assert!(drawn("64").iter().all(|length| *length == 64));
        let uniform = drawn("16..256");
        assert!((mean(&uniform) - 136.0).abs() < 3.0, "{}", mean(&uniform));
        assert_eq!((uniform.iter().min(), uniform.iter().max()), (Some(&16), Some(&256)));
        assert!((mean(&drawn("normal:500,20")) - 500.0).abs() < 1.0);
        assert!((mean(&drawn("exponential:100")) - 100.0).abs() < 4.0);
        let mut lognormal = drawn("lognormal:128,0.8,20..1000");
        lognormal.sort_unstable();
        assert!((122..=134).contains(&lognormal[10_000]), "{}", lognormal[10_000]);
        assert!(lognormal.iter().all(|length| (20..=1000).contains(length)));
        let mix = drawn("mix:64x3,2048x1");
        let long = mix.iter().filter(|length| **length == 2048).count();
        assert!((4_690..=5_310).contains(&long), "{long}");
        assert!(drawn("normal:1,50").iter().all(|length| *length >= 1));
    }

    #[test]
    fn what_is_no_length_is_refused() {
        for text in [
            "",
            "0",
            "-1",
            "x",
            "5..2",
            "..",
            "normal:1",
            "normal:nan,1",
            "lognormal:-1,1",
            "exponential:0",
            "mix:",
            "mix:1x0",
            "mix:1x-1",
            "weird:1",
            "4294967295",
            "normal:1,2,3",
            "exponential:inf",
        ] {
            assert!(text.parse::<Lengths>().is_err(), "{text}");
        }
    }
}

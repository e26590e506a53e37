//! How positions turn queries and keys (`RoPE`, Su et al., arXiv 2104.09864), and how that is stretched to longer contexts.
//!
//! Here the frequencies of a base are always the same. Two kinds of scaling take other frequencies for longer texts: `dynamic`
//! grows the base of the series with the text, `longrope` has a second set of factors. Keys that are kept for a text would then
//! be wrong for its continuation, and a token's bits would depend on how long the text became. Such bases are served up to their
//! [`Horizon`]: as long as the text is no longer than that, their frequencies do not change either.

mod config;

use std::{f64::consts::TAU, fmt};

use candle_transformers::models::llama::{Llama3RopeConfig, Llama3RopeType};

pub(super) use self::config::{Given, read};

/// How positions turn queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of frequencies.
    pub theta: f32,
    /// How the series is stretched for contexts longer than it was trained on.
    pub scaling: Scaling,
    /// Where it would begin to depend on the length of a text, if it would.
    pub horizon: Option<Horizon>,
}

/// Changes of the rotary frequencies.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// None.
    None,
    /// All frequencies divided by a factor (Chen et al., arXiv 2306.15595).
    Linear(f32),
    /// Low frequencies divided, high ones kept, a ramp between (Llama 3.1, as in transformers' `llama3`).
    Llama3 {
        /// What low frequencies are divided by.
        factor: f32,
        /// Wavelengths above `original / low_freq_factor` are low frequencies.
        low_freq_factor: f32,
        /// Wavelengths below `original / high_freq_factor` are high ones.
        high_freq_factor: f32,
        /// Context of the first training.
        original: f32,
    },
    /// Low frequencies divided, high ones kept, a ramp between, and queries and keys a little longer.
    Yarn(Yarn),
    /// Each frequency divided by its own factor (llama.cpp's `rope_freqs.weight`).
    Factors(Vec<f32>),
    /// The same, and queries and keys a little longer (Ding et al., arXiv 2402.13753).
    Long {
        /// Divides the frequency of each pair of dimensions, `[dim / 2]`.
        factors: Vec<f32>,
        /// What queries and keys are multiplied by.
        attention: f64,
    },
}

/// `YaRN` (Peng et al., arXiv 2309.00071), as transformers computes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// What low frequencies are divided by.
    pub factor: f64,
    /// Context of the first training.
    pub original: f64,
    /// Frequencies with at least so many turns in it are kept.
    pub fast: f64,
    /// Those with at most so many are divided.
    pub slow: f64,
    /// The ramp begins and ends at whole dimensions.
    pub truncate: bool,
    /// What queries and keys are multiplied by.
    pub attention: f64,
}

/// The longest text for which frequencies are what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Horizon {
    /// The kind of scaling, as its file has it.
    pub kind: &'static str,
    /// Positions.
    pub positions: usize,
}

impl fmt::Display for Horizon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, positions } = self;
        write!(
            f,
            "beyond {positions} tokens the frequencies of its rope scaling `{kind}` depend on a text's length: \
             longer ones are not served"
        )
    }
}

impl fmt::Display for Scaling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => write!(f, "no scaling"),
            Self::Linear(factor) => write!(f, "linear scaling by {factor}"),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original } => write!(
                f,
                "llama3 scaling by {factor} with low_freq_factor {low_freq_factor}, \
                 high_freq_factor {high_freq_factor}, original context {original}"
            ),
            Self::Yarn(Yarn { factor, original, fast, slow, attention, .. }) => write!(
                f,
                "yarn scaling by {factor} with beta_fast {fast}, beta_slow {slow}, attention factor {attention}, \
                 original context {original}"
            ),
            Self::Factors(factors) => write!(f, "{} factors, each above 0", factors.len()),
            Self::Long { factors, attention } => {
                write!(f, "{} factors, each above 0, attention factor {attention}", factors.len())
            }
        }
    }
}

impl From<Llama3RopeConfig> for Scaling {
    fn from(config: Llama3RopeConfig) -> Self {
        match config.rope_type {
            Llama3RopeType::Default => Self::None,
            Llama3RopeType::Llama3 => Self::Llama3 {
                factor: config.factor,
                low_freq_factor: config.low_freq_factor,
                high_freq_factor: config.high_freq_factor,
                original: config.original_max_position_embeddings as f32,
            },
        }
    }
}

/// How much longer queries and keys are made for a context that is stretched by `factor`.
pub(super) fn mscale(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
}

/// So many positions, times the factor; 0 where that is no number of positions.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count below 2^53")]
pub(super) fn stretched(original: usize, factor: f64) -> usize {
    let positions = (original as f64 * factor).floor();
    if (0.0..9e15).contains(&positions) { positions as usize } else { 0 }
}

fn positive(value: f32) -> bool {
    value.is_finite() && value > 0.0
}

impl Rope {
    /// What makes no sense about it for heads of `dim`, in words, if anything does.
    pub(super) fn check(&self, dim: usize) -> Result<(), String> {
        let all = |factors: &[f32]| {
            factors.len() == dim / 2 && factors.iter().all(|factor| positive(*factor))
        };
        let fine = match &self.scaling {
            Scaling::None => true,
            Scaling::Linear(factor) => positive(*factor),
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
                [factor, low_freq_factor, original].into_iter().all(|value| positive(*value))
                    && high_freq_factor > low_freq_factor
            }
            // A base of 1 or less has no slow dimensions to find.
            Scaling::Yarn(yarn) => yarn.is_sound() && self.theta > 1.0,
            Scaling::Factors(factors) => all(factors),
            Scaling::Long { factors, attention } => all(factors) && sound(*attention),
        };
        if positive(self.theta) && fine {
            Ok(())
        } else {
            Err(format!(
                "its rotary embedding makes no sense for heads of {dim}: base {}, {}",
                self.theta, self.scaling
            ))
        }
    }

    /// Radians per position of each pair of dimensions, `[dim / 2]`.
    ///
    /// In `f32` step by step as transformers computes them: a reference is matched to its last bits or not at all.
    pub fn frequencies(&self, dim: usize) -> Vec<f32> {
        let powers = (0..dim / 2).map(|i| {
            let exponent = (2 * i) as f32 / dim as f32;
            self.theta.powf(exponent)
        });
        let plain = powers.clone().map(|power| 1.0 / power);
        match &self.scaling {
            Scaling::None => plain.collect(),
            Scaling::Linear(factor) => plain.map(|freq| freq / factor).collect(),
            Scaling::Factors(factors) => plain.zip(factors).map(|(freq, f)| freq / f).collect(),
            Scaling::Long { factors, .. } => {
                powers.zip(factors).map(|(power, factor)| 1.0 / (factor * power)).collect()
            }
            Scaling::Yarn(yarn) => {
                let kept = yarn.kept(f64::from(self.theta), dim);
                powers.zip(kept).map(|(power, kept)| yarn.stretch(power, kept)).collect()
            }
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => plain
                .map(|freq| {
                    let wavelength = std::f32::consts::TAU / freq;
                    if wavelength < original / high_freq_factor {
                        freq
                    } else if wavelength > original / low_freq_factor {
                        freq / factor
                    } else {
                        let ramp = (original / wavelength - low_freq_factor)
                            / (high_freq_factor - low_freq_factor);
                        (1.0 - ramp) * freq / factor + ramp * freq
                    }
                })
                .collect(),
        }
    }

    /// What queries and keys are multiplied by: scores in attention by its square.
    pub fn attention(&self) -> f32 {
        #[expect(clippy::cast_possible_truncation, reason = "used as f32 by transformers")]
        match &self.scaling {
            Scaling::Yarn(Yarn { attention, .. }) | Scaling::Long { attention, .. } => {
                *attention as f32
            }
            Scaling::None | Scaling::Linear(_) | Scaling::Llama3 { .. } | Scaling::Factors(_) => {
                1.0
            }
        }
    }
}

/// Of a number that is computed with as `f32`.
fn sound(value: f64) -> bool {
    value >= f64::from(f32::MIN_POSITIVE) && value <= f64::from(f32::MAX)
}

impl Yarn {
    fn is_sound(&self) -> bool {
        let Self { factor, original, fast, slow, attention, .. } = *self;
        [factor, original, fast, slow, attention].into_iter().all(sound)
            && factor >= 1.0
            && fast >= slow
    }

    /// How much of each frequency is kept, `[dim / 2]`, from 0 to 1.
    #[expect(clippy::cast_possible_truncation, reason = "as transformers does")]
    fn kept(&self, theta: f64, dim: usize) -> impl Iterator<Item = f32> {
        // The pair of dimensions that turns so often within the original context.
        let pair =
            |turns: f64| dim as f64 * (self.original / (turns * TAU)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (pair(self.fast), pair(self.slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
        if high - low == 0.0 {
            high += 0.001;
        }
        let (low, span) = (low as f32, (high - low) as f32);
        (0..dim / 2).map(move |pair| 1.0 - ((pair as f32 - low) / span).clamp(0.0, 1.0))
    }

    /// The frequency of a pair whose wavelength grows with `power`.
    #[expect(clippy::cast_possible_truncation, reason = "as transformers does")]
    fn stretch(&self, power: f32, kept: f32) -> f32 {
        let (whole, divided) = (1.0 / power, 1.0 / (self.factor as f32 * power));
        divided * (1.0 - kept) + whole * kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_fast_turns_and_slows_slow_ones() {
        let scaling = Scaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original: 8192.0,
        };
        let frequencies =
            |scaling| Rope { theta: 500_000.0, scaling, horizon: None }.frequencies(128);
        let (plain, scaled) = (frequencies(Scaling::None), frequencies(scaling));
        assert_eq!(plain[0].to_bits(), scaled[0].to_bits());
        assert_eq!((plain[63] / 8.0).to_bits(), scaled[63].to_bits());
        assert!(scaled.iter().zip(&plain).all(|(s, p)| s <= p && *s >= p / 8.0 * 0.999));
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        let yarn = Yarn {
            factor: 4.0,
            original: 4096.0,
            fast: 32.0,
            slow: 1.0,
            truncate: true,
            attention: 1.1,
        };
        let check =
            |theta, yarn| Rope { theta, scaling: Scaling::Yarn(yarn), horizon: None }.check(64);
        assert_eq!(check(1e4, yarn.clone()), Ok(()));
        for bad in [
            Yarn { factor: 0.5, ..yarn.clone() },
            Yarn { factor: f64::NAN, ..yarn.clone() },
            Yarn { factor: 1e300, ..yarn.clone() },
            Yarn { original: 0.0, ..yarn.clone() },
            Yarn { fast: 0.5, ..yarn.clone() },
            Yarn { slow: -1.0, ..yarn.clone() },
            Yarn { attention: f64::INFINITY, ..yarn.clone() },
        ] {
            let why = check(1e4, bad.clone()).unwrap_err();
            assert!(why.contains("yarn scaling"), "{bad:?}: {why}");
        }
        assert!(check(1.0, yarn).is_err());
        let long = |count, attention| {
            let scaling = Scaling::Long { factors: vec![1.5; count], attention };
            Rope { theta: 1e4, scaling, horizon: None }.check(64)
        };
        assert_eq!(long(32, 1.2), Ok(()));
        assert!(long(31, 1.2).is_err() && long(32, 0.0).is_err());
    }
}

//! The shape of a base, read from a GGUF's metadata or a `config.json`.

use std::fmt;

use candle_transformers::models::llama::{Llama3RopeConfig, Llama3RopeType};

use crate::{kernels::attention::Heads, lora::Sites};

/// The shape of a Llama-family network.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "which biases there are is independent")]
pub struct Spec {
    /// Decoder layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Heads, their width, and the sliding window.
    pub heads: Heads,
    /// Width of the feed-forward block.
    pub ffn: usize,
    /// Tokens.
    pub vocab: usize,
    /// The most positions the base was made for.
    pub context: usize,
    /// Keeps the normalisations' roots away from zero.
    pub eps: f32,
    /// How positions turn queries and keys.
    pub rope: Rope,
    /// `q_proj`, `k_proj` and `v_proj` have a bias.
    pub qkv_bias: bool,
    /// `o_proj` has a bias.
    pub o_bias: bool,
    /// The feed-forward projections have a bias.
    pub mlp_bias: bool,
}

/// Larger than any dimension of any base there is; keeps every product of two of them within range.
const MOST: usize = 1 << 24;

/// More than any base has; each is looked for in the file.
const MOST_LAYERS: usize = 1024;

impl Spec {
    /// What the base offers to adapters.
    pub fn sites(&self) -> Sites {
        Sites {
            layers: self.layers,
            hidden: self.hidden,
            attention: self.heads.queries * self.heads.dim,
            kv: self.heads.keys * self.heads.dim,
            ffn: self.ffn,
            vocab: self.vocab,
            qkv_bias: self.qkv_bias,
            o_bias: self.o_bias,
            mlp_bias: self.mlp_bias,
        }
    }

    /// What is wrong with the numbers, in words, if anything is.
    pub fn check(&self) -> Result<(), String> {
        let Heads { queries, keys, dim, window } = self.heads;
        let positive = [
            (self.hidden, "hidden size"),
            (queries, "attention heads"),
            (keys, "key-value heads"),
            (self.ffn, "feed-forward size"),
            (self.vocab, "vocabulary"),
            (self.context, "context length"),
            (dim, "head size"),
        ];
        for (value, name) in positive {
            if value == 0 || value > MOST {
                return Err(format!("its {name} is {value}"));
            }
        }
        if self.layers == 0 || self.layers > MOST_LAYERS {
            return Err(format!("it has {} layers; 1 to {MOST_LAYERS} are fine", self.layers));
        }
        if !queries.is_multiple_of(keys) {
            return Err(format!("{queries} attention heads do not share {keys} key-value heads"));
        }
        if !dim.is_multiple_of(2) {
            return Err(format!("its head size {dim} is odd, so positions cannot turn it"));
        }
        if window == Some(0) {
            return Err("its sliding window is 0".to_owned());
        }
        if !(self.eps.is_finite() && self.eps >= 0.0) {
            return Err(format!("its normalisation epsilon is {}", self.eps));
        }
        self.rope.check(dim)
    }
}

/// How positions turn queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of frequencies.
    pub theta: f32,
    /// How the series is stretched for contexts longer than it was trained on.
    pub scaling: Scaling,
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
    /// Each frequency divided by its own factor (llama.cpp's `rope_freqs.weight`).
    Factors(Vec<f32>),
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
            Self::Factors(factors) => write!(f, "{} factors, each above 0", factors.len()),
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

impl Rope {
    fn check(&self, dim: usize) -> Result<(), String> {
        let positive = |value: f32| value.is_finite() && value > 0.0;
        let fine = match &self.scaling {
            Scaling::None => true,
            Scaling::Linear(factor) => positive(*factor),
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
                [factor, low_freq_factor, original].into_iter().all(|value| positive(*value))
                    && high_freq_factor > low_freq_factor
            }
            Scaling::Factors(factors) => {
                factors.len() == dim / 2 && factors.iter().all(|factor| positive(*factor))
            }
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
        let plain = (0..dim / 2).map(|i| {
            let exponent = (2 * i) as f32 / dim as f32;
            1.0 / self.theta.powf(exponent)
        });
        match &self.scaling {
            Scaling::None => plain.collect(),
            Scaling::Linear(factor) => plain.map(|freq| freq / factor).collect(),
            Scaling::Factors(factors) => plain.zip(factors).map(|(freq, f)| freq / f).collect(),
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
        let plain = Rope { theta: 500_000.0, scaling: Scaling::None }.frequencies(128);
        let scaled = Rope { theta: 500_000.0, scaling }.frequencies(128);
        assert_eq!(plain[0].to_bits(), scaled[0].to_bits());
        assert_eq!((plain[63] / 8.0).to_bits(), scaled[63].to_bits());
        assert!(scaled.iter().zip(&plain).all(|(s, p)| s <= p && *s >= p / 8.0 * 0.999));
    }
}

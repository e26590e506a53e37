//! The shape of a base, read from a GGUF's metadata or a `config.json`.

use super::rope::Rope;
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
    /// The most positions the base was made for, none of them beyond the rotary embedding's horizon.
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

//! Where an adapter can act on a base: the sites, their shapes, and their names in a PEFT file.

use std::fmt;

/// One of the seven linear projections of a decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Proj {
    /// `self_attn.q_proj`
    Q,
    /// `self_attn.k_proj`
    K,
    /// `self_attn.v_proj`
    V,
    /// `self_attn.o_proj`
    O,
    /// `mlp.gate_proj`
    Gate,
    /// `mlp.up_proj`
    Up,
    /// `mlp.down_proj`
    Down,
}

impl Proj {
    /// In the order of the forward pass.
    pub const ALL: [Self; 7] =
        [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The module path below a layer, as transformers spells it.
    pub fn path(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }
}

/// A module of the base that carries a weight matrix, and so may carry a low-rank delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// `model.embed_tokens`, `[vocab, hidden]`.
    Embed,
    /// A projection of one decoder layer.
    Layer(usize, Proj),
    /// `lm_head`, `[vocab, hidden]`; a site of its own even where the weights are tied.
    Head,
}

/// A normalisation of the base, replaceable through `modules_to_save`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Norm {
    /// `model.layers.N.input_layernorm`, before attention.
    Attention(usize),
    /// `model.layers.N.post_attention_layernorm`, before the feed-forward block.
    FeedForward(usize),
    /// `model.norm`, before the head.
    Final,
}

/// A module of the base by its transformers path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Module {
    /// Has a weight matrix.
    Site(Site),
    /// Has a gain vector.
    Norm(Norm),
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embed => f.write_str("model.embed_tokens"),
            Self::Layer(layer, proj) => write!(f, "model.layers.{layer}.{}", proj.path()),
            Self::Head => f.write_str("lm_head"),
        }
    }
}

impl fmt::Display for Norm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attention(layer) => write!(f, "model.layers.{layer}.input_layernorm"),
            Self::FeedForward(layer) => {
                write!(f, "model.layers.{layer}.post_attention_layernorm")
            }
            Self::Final => f.write_str("model.norm"),
        }
    }
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Site(site) => site.fmt(f),
            Self::Norm(norm) => norm.fmt(f),
        }
    }
}

/// What a base offers to adapters: its sites with their shapes, and which of them have a bias.
///
/// An adapter is checked against this and never against the model itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about a base, not states")]
pub struct Sites {
    /// Decoder layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads times head width: outputs of `q_proj`, inputs of `o_proj`.
    pub attention: usize,
    /// Key (or value) heads times head width: outputs of `k_proj` and `v_proj`.
    pub kv: usize,
    /// Width of the feed-forward block.
    pub ffn: usize,
    /// Rows of the embedding and of the head.
    pub vocab: usize,
    /// `q_proj`, `k_proj` and `v_proj` have a bias (Qwen2, or Llama with `attention_bias`).
    pub qkv_bias: bool,
    /// `o_proj` has a bias (Llama with `attention_bias`).
    pub o_bias: bool,
    /// The feed-forward projections have a bias (Llama with `mlp_bias`).
    pub mlp_bias: bool,
}

impl Sites {
    /// `(inputs, outputs)` of a site: its weight is `[outputs, inputs]`.
    ///
    /// The embedding is counted as the lookup it is: `vocab` inputs (one-hot), `hidden` outputs.
    /// Its stored weight is the transpose, `[vocab, hidden]`.
    pub fn dims(&self, site: Site) -> (usize, usize) {
        match site {
            Site::Embed => (self.vocab, self.hidden),
            Site::Head => (self.hidden, self.vocab),
            Site::Layer(_, proj) => match proj {
                Proj::Q => (self.hidden, self.attention),
                Proj::K | Proj::V => (self.hidden, self.kv),
                Proj::O => (self.attention, self.hidden),
                Proj::Gate | Proj::Up => (self.hidden, self.ffn),
                Proj::Down => (self.ffn, self.hidden),
            },
        }
    }

    /// Whether the base has a bias vector (of the site's outputs) here.
    pub fn has_bias(&self, site: Site) -> bool {
        match site {
            Site::Embed | Site::Head => false,
            Site::Layer(_, proj) => match proj {
                Proj::Q | Proj::K | Proj::V => self.qkv_bias,
                Proj::O => self.o_bias,
                Proj::Gate | Proj::Up | Proj::Down => self.mlp_bias,
            },
        }
    }

    /// Every module of the base, in the order of the forward pass.
    pub fn modules(&self) -> impl Iterator<Item = Module> + '_ {
        let layers = (0..self.layers).flat_map(|layer| {
            let norms = [Norm::Attention(layer), Norm::FeedForward(layer)].map(Module::Norm);
            norms.into_iter().chain(Proj::ALL.map(|proj| Module::Site(Site::Layer(layer, proj))))
        });
        std::iter::once(Module::Site(Site::Embed))
            .chain(layers)
            .chain([Module::Norm(Norm::Final), Module::Site(Site::Head)])
    }

    /// The module of this transformers path (`model.layers.3.self_attn.q_proj`), if the base has it.
    pub fn module(&self, path: &str) -> Option<Module> {
        match path {
            "model.embed_tokens" => return Some(Module::Site(Site::Embed)),
            "model.norm" => return Some(Module::Norm(Norm::Final)),
            "lm_head" => return Some(Module::Site(Site::Head)),
            _ => {}
        }
        let (layer, rest) = path.strip_prefix("model.layers.")?.split_once('.')?;
        // "03" and "+3" parse as numbers and are not how the index is written.
        let index: usize = layer.parse().ok().filter(|index| *index < self.layers)?;
        if index.to_string() != layer {
            return None;
        }
        match rest {
            "input_layernorm" => Some(Module::Norm(Norm::Attention(index))),
            "post_attention_layernorm" => Some(Module::Norm(Norm::FeedForward(index))),
            _ => Proj::ALL
                .into_iter()
                .find(|proj| proj.path() == rest)
                .map(|proj| Module::Site(Site::Layer(index, proj))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sites() -> Sites {
        Sites {
            layers: 3,
            hidden: 64,
            attention: 64,
            kv: 32,
            ffn: 96,
            vocab: 128,
            qkv_bias: true,
            o_bias: false,
            mlp_bias: false,
        }
    }

    #[test]
    fn every_module_is_found_by_the_path_it_prints() {
        let sites = sites();
        assert_eq!(sites.modules().count(), 1 + 3 * 9 + 2);
        for module in sites.modules() {
            assert_eq!(sites.module(&module.to_string()), Some(module));
        }
    }

    #[test]
    fn paths_outside_the_base_are_nobodys() {
        for path in [
            "model.layers.3.self_attn.q_proj",
            "model.layers.03.self_attn.q_proj",
            "model.layers.+1.self_attn.q_proj",
            "model.layers.99999999999999999999.self_attn.q_proj",
            "model.layers.1.self_attn.qq_proj",
            "model.layers.1",
            "embed_tokens",
            "",
        ] {
            assert_eq!(sites().module(path), None, "{path}");
        }
    }
}

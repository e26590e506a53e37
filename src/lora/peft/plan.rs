//! What a configuration selects on a base: PEFT's matching rules, applied to every module by its path.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::{
    config::{Config, Scaling, Selection, Targets, Variant},
    pattern::Pattern,
};
use crate::lora::{
    refusal::{Quoted, Refusal},
    site::{Module, Norm, Site, Sites},
};

/// Scales that are applied. No trained adapter is near either end; beyond the upper one, weights that are finite in
/// the file overflow in `scale * B A`, below the lower one the adapter would serve the base under its name.
const SCALES: (f32, f32) = (1e-6, 1e4);

/// The modules that the adapter changes, and how.
#[derive(Debug, PartialEq)]
pub(super) struct Plan {
    pub(super) deltas: BTreeMap<Site, Strength>,
    pub(super) norms: BTreeSet<Norm>,
    /// The embedding, the head, or both.
    pub(super) replaced: BTreeSet<Site>,
    /// Both are replaced, by one weight.
    pub(super) tied: bool,
}

/// The two numbers of a delta that are not in its tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Strength {
    pub(super) rank: usize,
    pub(super) scale: f32,
}

impl Plan {
    /// Goes through the base's modules.
    pub(super) fn new(config: &Config, sites: &Sites) -> Result<Self, Refusal> {
        let modules: Vec<(Module, String)> =
            sites.modules().map(|module| (module, module.to_string())).collect();
        let mut plan = Self::saved(config, &modules)?;
        for (module, path) in modules.iter().filter(|(_, path)| config.selects(path)) {
            match module {
                // It has no module that could carry the bias; PEFT does not accept it either.
                Module::Site(Site::Embed) if config.variant == Variant::Biased => {
                    return Err(Refusal::Conflict {
                        first: "lora_bias",
                        second: "embed_tokens in target_modules",
                    });
                }
                Module::Site(site) => {
                    plan.deltas.insert(*site, config.strength(*site, path)?);
                }
                Module::Norm(_) => {
                    return Err(Refusal::TargetIsANorm { module: Quoted::new(path) });
                }
            }
        }
        if plan.deltas.is_empty() {
            return Err(Refusal::NoTarget { targets: config.targets.quoted() });
        }
        if plan.replaced.iter().any(|site| plan.deltas.contains_key(site)) {
            // "head" saves lm_head, but does not keep LoRA off it; PEFT then nests one in the other.
            return Err(Refusal::Conflict {
                first: "modules_to_save (or ensure_weight_tying)",
                second: "target_modules that select the same module",
            });
        }
        Ok(plan)
    }

    /// Only what `modules_to_save` selects: every module whose path ends with an entry, even in the middle of a word.
    fn saved(config: &Config, modules: &[(Module, String)]) -> Result<Self, Refusal> {
        let (mut norms, mut replaced) = (BTreeSet::new(), BTreeSet::new());
        for name in &config.saved {
            let mut known = false;
            for (module, _) in modules.iter().filter(|(_, path)| path.ends_with(name.as_str())) {
                known = true;
                match *module {
                    Module::Norm(norm) => {
                        norms.insert(norm);
                    }
                    Module::Site(site @ Site::Layer(..)) => {
                        return Err(Refusal::SavedProjection { name: Quoted::new(name), site });
                    }
                    Module::Site(site) => {
                        replaced.insert(site);
                    }
                }
            }
            if !known {
                return Err(Refusal::SavedModuleUnknown { name: Quoted::new(name) });
            }
        }
        // PEFT ties by the names of the modules, whether or not the base's weights are tied.
        let tied = config.tied && !replaced.is_empty();
        if tied {
            replaced = BTreeSet::from([Site::Embed, Site::Head]);
        }
        Ok(Self { deltas: BTreeMap::new(), norms, replaced, tied })
    }
}

impl Config {
    /// Whether the module of this path gets a delta.
    fn selects(&self, path: &str) -> bool {
        let excluded = self.excluded.as_ref().is_some_and(|excluded| excluded.contains(path));
        !excluded && !self.saves_a_part_of(path) && self.targets.contains(path)
    }

    /// `(^|.*\.){entry}($|\..*)`: the entry is some of the path's consecutive parts. PEFT keeps LoRA off those.
    fn saves_a_part_of(&self, path: &str) -> bool {
        parts(path).any(|rest| {
            let ends = rest.match_indices('.').map(|(end, _)| &rest[..end]);
            ends.chain([rest]).any(|run| self.saved.contains(run))
        })
    }

    fn strength(&self, site: Site, path: &str) -> Result<Strength, Refusal> {
        let rank = first_match(&self.ranks, path).unwrap_or(self.rank);
        let alpha = first_match(&self.alphas, path).unwrap_or(self.alpha);
        let exact = match self.scaling {
            Scaling::Rank => alpha / rank as f64,
            Scaling::RootOfRank => alpha / (rank as f64).sqrt(),
        };
        let (min, max) = SCALES;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "rounds, as PyTorch does; the range is checked"
        )]
        let scale = exact as f32;
        if (min..=max).contains(&scale) {
            Ok(Strength { rank, scale })
        } else {
            Err(Refusal::Scale { site, alpha, rank, scale: exact, min, max })
        }
    }
}

fn first_match<T: Copy>(patterns: &[(Pattern, T)], path: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(path)).map(|(_, value)| *value)
}

impl Targets {
    fn contains(&self, path: &str) -> bool {
        match self {
            Self::AllLinear => path.ends_with("_proj"),
            Self::Pattern { pattern, .. } => pattern.is_match(path),
            // A whole path is selected whatever layers_to_transform says; so PEFT has it.
            Self::Names { names, .. } if names.contains(path) => true,
            Self::Names { names, layers } => {
                ends_with_any(path, names)
                    && layers.as_ref().is_none_or(|layers| {
                        layer_of(path).is_some_and(|layer| layers.contains(&layer))
                    })
            }
        }
    }

    fn quoted(&self) -> Quoted {
        match self {
            Self::AllLinear => Quoted::new("all-linear"),
            Self::Pattern { text, .. } => Quoted::new(text),
            Self::Names { names, .. } => {
                let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
                names.sort_unstable();
                Quoted::list(names)
            }
        }
    }
}

impl Selection {
    fn contains(&self, path: &str) -> bool {
        match self {
            Self::Pattern(pattern) => pattern.is_match(path),
            Self::Names(names) => ends_with_any(path, names),
        }
    }
}

/// `path`, and what follows each of its dots.
fn parts(path: &str) -> impl Iterator<Item = &str> {
    std::iter::once(path).chain(path.match_indices('.').map(|(dot, _)| &path[dot + 1..]))
}

/// Whether `path` is one of `names` or ends with a dot and one of them.
fn ends_with_any(path: &str, names: &HashSet<String>) -> bool {
    parts(path).any(|end| names.contains(end))
}

/// The index in `model.layers.N.`.
fn layer_of(path: &str) -> Option<u64> {
    path.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

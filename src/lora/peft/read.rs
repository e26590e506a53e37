//! Configuration, base and tensors held against each other.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    config::{Biases, Config, Variant},
    header,
    plan::{Plan, Strength},
};
use crate::lora::{
    limits::Limits,
    manifest::{Delta, Manifest, View},
    refusal::{Quoted, Refusal, Shape},
    site::{Module, Norm, Site, Sites},
};

/// What PEFT puts before the base's own names.
const PREFIX: &str = "base_model.model.";

/// Largest magnitude of a weight, f16's. With the bound on scales it keeps `scale * B A` and its rows' norms in f32.
const LARGEST_WEIGHT: f32 = 65_504.0;

/// Reads an adapter for a base with these sites, completely or not at all.
///
/// Every tensor of the file has its place in the result, everything that the configuration announces is there, every
/// shape fits, and every value is finite.
pub fn read<'a>(
    config: &[u8],
    weights: &'a [u8],
    sites: &Sites,
    limits: &Limits,
) -> Result<Manifest<'a>, Refusal> {
    let config = Config::read(config, limits)?;
    let tensors = Tensors::sort(header::tensors(weights, limits)?, sites)?;
    let plan = Plan::new(&config, sites)?;
    assemble(&config, &plan, tensors, sites)
}

/// What a tensor is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    A,
    B,
    /// `lora_bias`
    DeltaBias,
    Magnitude,
    /// The module's whole weight, retrained.
    Weight,
    /// The module's weight as it was in the base.
    BaseWeight,
    /// The base's bias, retrained.
    Bias,
}

/// How PEFT spells the parts behind a module's path: an ending before any that it ends with.
///
/// DoRA's magnitude had `.weight` for a while. A bias stands in `base_layer` where its module has a delta.
const ENDINGS: [(&str, Part); 11] = [
    (".lora_A.weight", Part::A),
    (".lora_B.weight", Part::B),
    (".lora_embedding_A", Part::A),
    (".lora_embedding_B", Part::B),
    (".lora_B.bias", Part::DeltaBias),
    (".lora_magnitude_vector", Part::Magnitude),
    (".lora_magnitude_vector.weight", Part::Magnitude),
    (".base_layer.weight", Part::BaseWeight),
    (".base_layer.bias", Part::Bias),
    (".weight", Part::Weight),
    (".bias", Part::Bias),
];

impl Part {
    /// The part and the path before it.
    fn split(name: &str) -> Option<(&str, Self)> {
        ENDINGS
            .into_iter()
            .find_map(|(ending, part)| name.strip_suffix(ending).map(|path| (path, part)))
    }

    /// The name that PEFT gives this part of `module` today.
    fn name(self, module: Module) -> String {
        let embedding = module == Module::Site(Site::Embed);
        let ending = match self {
            Self::A if embedding => ".lora_embedding_A",
            Self::B if embedding => ".lora_embedding_B",
            Self::A => ".lora_A.weight",
            Self::B => ".lora_B.weight",
            Self::DeltaBias => ".lora_B.bias",
            Self::Magnitude => ".lora_magnitude_vector",
            Self::Weight => ".weight",
            Self::BaseWeight => ".base_layer.weight",
            Self::Bias => ".bias",
        };
        format!("{PREFIX}{module}{ending}")
    }

    /// Why a tensor that nothing asked for is not simply left out.
    fn why_superfluous(self) -> &'static str {
        match self {
            Self::A | Self::B => "target_modules and its companions do not select its module",
            Self::DeltaBias => "lora_bias is not set, or does not go with its module",
            Self::Magnitude => "use_dora is not set, or its module is not selected",
            Self::Weight => "modules_to_save does not name its module",
            Self::BaseWeight => "only the embedding and the head come with their base weight",
            Self::Bias => "bias does not ask for it, or the base has none there",
        }
    }
}

/// The file's tensors by what they are, until each is taken.
struct Tensors<'a>(BTreeMap<(Module, Part), (String, View<'a>)>);

impl<'a> Tensors<'a> {
    fn sort(tensors: BTreeMap<String, View<'a>>, sites: &Sites) -> Result<Self, Refusal> {
        let mut sorted = BTreeMap::new();
        for (name, view) in tensors {
            let place = place(&name, sites)?;
            if let Some((first, _)) = sorted.insert(place, (name, view)) {
                return Err(Refusal::Repeated { tensor: Quoted::new(&first) });
            }
        }
        Ok(Self(sorted))
    }

    fn has(&self, module: Module, part: Part) -> bool {
        self.0.contains_key(&(module, part))
    }

    /// The tensor, which has to be there, of this shape and with values that can be used.
    fn take(
        &mut self,
        module: Module,
        part: Part,
        wanted: Wanted<'_>,
    ) -> Result<View<'a>, Refusal> {
        let (name, view) = self.0.remove(&(module, part)).ok_or_else(|| {
            Refusal::MissingTensor { tensor: Quoted::new(&part.name(module)), wanted_by: wanted.by }
        })?;
        check_shape(&name, part, &view, wanted.shape)?;
        check_values(&name, &view)?;
        Ok(view)
    }
}

/// What is asked of a tensor.
#[derive(Clone, Copy)]
struct Wanted<'w> {
    shape: &'w [usize],
    /// The key of the configuration that asks.
    by: &'static str,
}

/// The module and the part that a tensor's name stands for.
fn place(name: &str, sites: &Sites) -> Result<(Module, Part), Refusal> {
    let unknown = || Refusal::UnknownTensor { tensor: Quoted::new(name) };
    let path = name
        .strip_prefix(PREFIX)
        .ok_or_else(|| Refusal::Unprefixed { tensor: Quoted::new(name) })?;
    let (path, part) = Part::split(path).ok_or_else(unknown)?;
    let module = sites.module(path).ok_or_else(|| Refusal::UnknownModule {
        tensor: Quoted::new(name),
        module: Quoted::new(path),
    })?;
    // An embedding's A and B are spelled differently from all others'.
    let is_spelled_so = !matches!(part, Part::A | Part::B) || part.name(module) == name;
    if is_spelled_so { Ok((module, part)) } else { Err(unknown()) }
}

fn check_shape(name: &str, part: Part, view: &View<'_>, expected: &[usize]) -> Result<(), Refusal> {
    if view.shape() == expected {
        return Ok(());
    }
    let (tensor, found) = (Quoted::new(name), Shape::new(view.shape()));
    match (part, view.shape(), expected) {
        (Part::A, [rank, inputs], [expected, fitting]) if inputs == fitting => {
            Err(Refusal::RankMismatch { tensor, found, rank: *rank, expected: *expected })
        }
        (Part::B, [outputs, rank], [fitting, expected]) if outputs == fitting => {
            Err(Refusal::RankMismatch { tensor, found, rank: *rank, expected: *expected })
        }
        _ => Err(Refusal::ShapeMismatch { tensor, found, expected: Shape::new(expected) }),
    }
}

fn check_values(name: &str, view: &View<'_>) -> Result<(), Refusal> {
    let Some((index, value)) = view.first_beyond(LARGEST_WEIGHT) else { return Ok(()) };
    let tensor = Quoted::new(name);
    Err(if value.is_finite() {
        Refusal::Extreme { tensor, index, value, max: LARGEST_WEIGHT }
    } else {
        Refusal::NonFinite { tensor, index, value }
    })
}

/// Takes every tensor that the configuration asks for, and then minds what is left.
fn assemble<'a>(
    config: &Config,
    plan: &Plan,
    mut tensors: Tensors<'a>,
    sites: &Sites,
) -> Result<Manifest<'a>, Refusal> {
    let mut deltas = BTreeMap::new();
    for (site, strength) in &plan.deltas {
        let dims = sites.dims(*site);
        deltas.insert(*site, take_delta(&mut tensors, *site, dims, (*strength, config.variant))?);
    }
    let norms = take_norms(&mut tensors, &plan.norms, sites)?;
    let biases = take_biases(&mut tensors, config.biases, plan, sites)?;
    let replaced = take_replaced(&mut tensors, plan, sites)?;
    let copies = take_copies(&mut tensors, sites)?;
    if let Some(((_, part), (name, _))) = tensors.0.first_key_value() {
        return Err(Refusal::SuperfluousTensor {
            tensor: Quoted::new(name),
            why: part.why_superfluous(),
        });
    }
    let rank = deltas.values().map(|delta| delta.rank).max().unwrap_or_default();
    let targets = deltas.keys().map(|site| leaf(*site)).collect::<BTreeSet<_>>();
    let targets = targets.into_iter().collect();
    let extras = config.extras.clone();
    Ok(Manifest { deltas, norms, biases, replaced, copies, rank, targets, extras })
}

fn take_delta<'a>(
    tensors: &mut Tensors<'a>,
    site: Site,
    (inputs, outputs): (usize, usize),
    (Strength { rank, scale }, variant): (Strength, Variant),
) -> Result<Delta<'a>, Refusal> {
    let module = Module::Site(site);
    let mut take = |part, shape: &[usize], by| tensors.take(module, part, Wanted { shape, by });
    Ok(Delta {
        a: take(Part::A, &[rank, inputs], "target_modules")?,
        b: take(Part::B, &[outputs, rank], "target_modules")?,
        rank,
        scale,
        magnitude: match variant {
            Variant::Dora => Some(take(Part::Magnitude, &[outputs], "use_dora")?),
            Variant::Plain | Variant::Biased => None,
        },
        bias: match variant {
            Variant::Biased => Some(take(Part::DeltaBias, &[outputs], "lora_bias")?),
            Variant::Plain | Variant::Dora => None,
        },
    })
}

fn take_norms<'a>(
    tensors: &mut Tensors<'a>,
    norms: &BTreeSet<Norm>,
    sites: &Sites,
) -> Result<BTreeMap<Norm, View<'a>>, Refusal> {
    let wanted = Wanted { shape: &[sites.hidden], by: "modules_to_save" };
    let mut take = |norm| tensors.take(Module::Norm(norm), Part::Weight, wanted);
    norms.iter().map(|norm| Ok((*norm, take(*norm)?))).collect()
}

fn take_biases<'a>(
    tensors: &mut Tensors<'a>,
    biases: Biases,
    plan: &Plan,
    sites: &Sites,
) -> Result<BTreeMap<Site, View<'a>>, Refusal> {
    let with_bias = |site: &Site| sites.has_bias(*site);
    let trained: Vec<Site> = match biases {
        Biases::None => Vec::new(),
        Biases::All => sites.modules().filter_map(as_site).filter(with_bias).collect(),
        Biases::Targets => {
            let targets: Vec<Site> = plan.deltas.keys().copied().filter(with_bias).collect();
            // Since PEFT moved the base into `base_layer` it trains these biases and forgets to save them. Loaded by
            // PEFT itself, such an adapter runs with the base's biases; so it does here.
            let any = targets.iter().any(|site| tensors.has(Module::Site(*site), Part::Bias));
            if any { targets } else { Vec::new() }
        }
    };
    let mut take = |site| {
        let (_, outputs) = sites.dims(site);
        tensors.take(Module::Site(site), Part::Bias, Wanted { shape: &[outputs], by: "bias" })
    };
    trained.into_iter().map(|site| Ok((site, take(site)?))).collect()
}

fn take_replaced<'a>(
    tensors: &mut Tensors<'a>,
    plan: &Plan,
    sites: &Sites,
) -> Result<BTreeMap<Site, View<'a>>, Refusal> {
    let by = if plan.tied { "ensure_weight_tying" } else { "modules_to_save" };
    let wanted = Wanted { shape: &[sites.vocab, sites.hidden], by };
    let mut take = |site| tensors.take(Module::Site(site), Part::Weight, wanted);
    let replaced: BTreeMap<_, _> =
        plan.replaced.iter().map(|site| Ok((*site, take(*site)?))).collect::<Result<_, _>>()?;
    if plan.tied && replaced.get(&Site::Embed) != replaced.get(&Site::Head) {
        return Err(Refusal::TiedWeightsDiffer { first: Site::Embed, second: Site::Head });
    }
    Ok(replaced)
}

/// The base weights that PEFT saves along: in `base_layer` where the module has a delta, by themselves where
/// `save_embedding_layers` was set, or where PEFT believed that the vocabulary had been resized.
fn take_copies<'a>(
    tensors: &mut Tensors<'a>,
    sites: &Sites,
) -> Result<Vec<(Site, View<'a>)>, Refusal> {
    let wanted = Wanted { shape: &[sites.vocab, sites.hidden], by: "" };
    let mut copies = Vec::new();
    for site in [Site::Embed, Site::Head] {
        for part in [Part::BaseWeight, Part::Weight] {
            if tensors.has(Module::Site(site), part) {
                copies.push((site, tensors.take(Module::Site(site), part, wanted)?));
            }
        }
    }
    Ok(copies)
}

fn as_site(module: Module) -> Option<Site> {
    match module {
        Module::Site(site) => Some(site),
        Module::Norm(_) => None,
    }
}

/// The last part of a site's path.
fn leaf(site: Site) -> String {
    let path = site.to_string();
    path.rsplit_once('.').map_or(path.clone(), |(_, leaf)| leaf.to_owned())
}

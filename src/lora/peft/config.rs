//! `adapter_config.json`: what the adapter is, in PEFT's terms.

use std::{
    collections::{BTreeSet, HashSet},
    str,
};

use serde_json::{Map, Value};

use super::{
    json::{self, Strict},
    pattern::{Compiler, Pattern},
};
use crate::lora::{
    extras::Extras,
    limits::Limits,
    refusal::{Quoted, Refusal},
};

/// Largest configuration in bytes. One with a rank for every module of a 126-layer base takes 100 kB.
const LARGEST: usize = 1 << 20;

/// Most names or patterns under one key; a base has about a thousand modules.
const MOST_ENTRIES: usize = 4096;

/// Keys that say where the adapter comes from, or how it was initialised and trained, and nothing about what it computes.
const WITHOUT_EFFECT: [&str; 15] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config", // read only for init_lora_weights = "corda", which is refused
    "eva_config",   // says how A was initialised
    // Conv1D alone stores its weight like that; for Linear, PEFT warns and sets it to false.
    "fan_in_fan_out",
    "inference_mode",
    "loftq_config",   // read only for init_lora_weights = "loftq", which is refused
    "lora_dropout",   // acts in training alone
    "lora_ga_config", // says how A and B were initialised
    "megatron_core",  // read only with megatron_config
    "merge_weights",  // of the first PEFT versions: when to merge, not what
    "peft_version",
    "qalora_group_size", // read only with use_qalora
    "revision",
    "runtime_config",
];

/// Keys that change what the adapter computes, and what they would mean.
const UNSUPPORTED: [(&str, &str); 8] = [
    ("alora_invocation_tokens", "aLoRA acts only after these tokens"),
    ("arrow_config", "Arrow routes between adapters per token"),
    ("layer_replication", "the adapter is for a base with repeated layers"),
    ("megatron_config", "the adapter is for Megatron's parallel layers"),
    ("target_parameters", "the adapter changes parameters that are no module's weight"),
    ("trainable_token_indices", "the adapter retrains single rows of the embedding"),
    ("use_bdlora", "the adapter's matrices are block-diagonal"),
    ("use_qalora", "the adapter pools its inputs"),
];

/// Keys that only mlx-lm writes, into a file of the same name.
const MLX: [&str; 2] = ["fine_tune_type", "lora_parameters"];

/// Initialisations that leave the base weights as they are. Others (`PiSSA`, `OLoRA`, `CorDA`, `LoftQ`) move a part of
/// the base into the adapter; without that part removed from the base again, the adapter would be applied twice.
const INITIALISATIONS: [&str; 3] = ["eva", "gaussian", "orthogonal"];

/// A LoRA configuration that was understood.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) targets: Targets,
    pub(super) excluded: Option<Selection>,
    /// `modules_to_save`, without repetitions.
    pub(super) saved: BTreeSet<String>,
    /// The embedding and the head that are in `saved` are one weight.
    pub(super) tied: bool,
    pub(super) variant: Variant,
    pub(super) biases: Biases,
    pub(super) scaling: Scaling,
    pub(super) rank: usize,
    pub(super) ranks: Vec<(Pattern, usize)>,
    pub(super) alpha: f64,
    pub(super) alphas: Vec<(Pattern, f64)>,
    pub(super) extras: Extras,
}

/// What the low-rank delta comes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variant {
    Plain,
    /// `lora_bias`
    Biased,
    /// `use_dora`
    Dora,
}

/// Which of the base's biases were trained along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Biases {
    None,
    /// Those of the targeted modules.
    Targets,
    All,
}

/// How alpha and rank make the scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scaling {
    /// alpha / rank
    Rank,
    /// rsLoRA: alpha / sqrt(rank)
    RootOfRank,
}

/// `target_modules`
#[derive(Debug)]
pub(super) enum Targets {
    /// `"all-linear"`: every projection, and not the head.
    AllLinear,
    Pattern {
        pattern: Pattern,
        text: String,
    },
    Names {
        names: HashSet<String>,
        layers: Option<BTreeSet<u64>>,
    },
}

/// `exclude_modules`
#[derive(Debug)]
pub(super) enum Selection {
    Pattern(Pattern),
    Names(HashSet<String>),
}

impl Config {
    /// Understands the file or refuses it.
    pub(super) fn read(file: &[u8], limits: &Limits) -> Result<Self, Refusal> {
        let object = parse(file)?;
        let keys = Keys(&object);
        keys.check_method()?;
        keys.check_features()?;
        let mut compiler = Compiler::new();
        Ok(Self {
            targets: keys.targets(&mut compiler)?,
            excluded: keys.excluded(&mut compiler)?,
            saved: keys.saved()?,
            tied: keys.flag("ensure_weight_tying")?,
            variant: keys.variant()?,
            biases: keys.biases()?,
            scaling: if keys.flag("use_rslora")? { Scaling::RootOfRank } else { Scaling::Rank },
            rank: rank("r", keys.needed("r")?, limits)?,
            ranks: keys.patterns("rank_pattern", &mut compiler, |key, value| {
                rank(&format!("rank_pattern.{key}"), value, limits)
            })?,
            alpha: alpha("lora_alpha", keys.needed("lora_alpha")?)?,
            alphas: keys.patterns("alpha_pattern", &mut compiler, |key, value| {
                alpha(&format!("alpha_pattern.{key}"), value)
            })?,
            extras: keys.get("chorus").map_or_else(|| Ok(Extras::default()), Extras::read)?,
        })
    }
}

fn parse(file: &[u8]) -> Result<Map<String, Value>, Refusal> {
    if file.len() > LARGEST {
        return Err(Refusal::ConfigTooLarge { bytes: file.len(), max: LARGEST });
    }
    let text = match (file, str::from_utf8(file)) {
        ([], _) => return Err(Refusal::ConfigEmpty),
        ([0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] | [b'{', 0, ..] | [0, b'{', ..], _) => {
            return Err(Refusal::ConfigEncoding { found: "UTF-16" });
        }
        ([0xEF, 0xBB, 0xBF, ..], _) => {
            return Err(Refusal::ConfigEncoding { found: "UTF-8 with a byte order mark" });
        }
        (_, Err(_)) => return Err(Refusal::ConfigEncoding { found: "not UTF-8" }),
        (_, Ok(text)) => text,
    };
    match serde_json::from_str(text) {
        Ok(Strict(Value::Object(object))) => Ok(object),
        Ok(Strict(other)) => Err(Refusal::ConfigNotAnObject { found: json::kind(&other) }),
        Err(error) => {
            let (place, reason) = json::locate(text, &error);
            Err(Refusal::ConfigSyntax { place, reason })
        }
    }
}

/// The object, by the meaning of its keys.
struct Keys<'o>(&'o Map<String, Value>);

impl<'o> Keys<'o> {
    /// The value, unless it is null: PEFT writes null for what is not set.
    fn get(&self, key: &str) -> Option<&'o Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn needed(&self, key: &'static str) -> Result<&'o Value, Refusal> {
        self.get(key).ok_or(Refusal::ConfigMissing { key })
    }

    fn flag(&self, key: &'static str) -> Result<bool, Refusal> {
        self.get(key).map_or(Ok(false), |value| {
            value.as_bool().ok_or_else(|| unexpected(key, "true or false", value))
        })
    }

    fn check_method(&self) -> Result<(), Refusal> {
        let Some(method) = self.get("peft_type") else {
            return Err(match MLX.into_iter().find(|key| self.0.contains_key(*key)) {
                Some(key) => Refusal::Mlx { key },
                None => Refusal::ConfigMissing { key: "peft_type" },
            });
        };
        if method != "LORA" {
            return Err(Refusal::Method { found: json::quoted(method) });
        }
        match self.get("task_type") {
            Some(task) if task != "CAUSAL_LM" => Err(Refusal::Task { found: json::quoted(task) }),
            _ => Ok(()),
        }
    }

    fn check_features(&self) -> Result<(), Refusal> {
        for (key, why) in UNSUPPORTED {
            // For PEFT an empty list of invocation tokens turns aLoRA on.
            let is_set = |value| key == "alora_invocation_tokens" || !is_idle(value);
            if self.get(key).is_some_and(is_set) {
                return Err(Refusal::Unsupported { key, why });
            }
        }
        match self.get("init_lora_weights") {
            None | Some(Value::Bool(_)) => {}
            Some(Value::String(name)) if INITIALISATIONS.contains(&&*name.to_lowercase()) => {}
            Some(other) => return Err(Refusal::Initialisation { found: json::quoted(other) }),
        }
        let known = |key: &str| {
            READ.contains(&key)
                || WITHOUT_EFFECT.contains(&key)
                || UNSUPPORTED.iter().any(|(unsupported, _)| *unsupported == key)
        };
        match self.0.iter().find(|(key, value)| !known(key) && !is_idle(value)) {
            Some((key, value)) => {
                Err(Refusal::UnknownKey { key: Quoted::new(key), value: json::quoted(value) })
            }
            None => Ok(()),
        }
    }

    fn variant(&self) -> Result<Variant, Refusal> {
        match (self.flag("use_dora")?, self.flag("lora_bias")?) {
            (false, false) => Ok(Variant::Plain),
            (false, true) => Ok(Variant::Biased),
            (true, false) => Ok(Variant::Dora),
            (true, true) => Err(Refusal::Conflict { first: "use_dora", second: "lora_bias" }),
        }
    }

    fn biases(&self) -> Result<Biases, Refusal> {
        match self.get("bias") {
            None => Ok(Biases::None),
            Some(value) => match value.as_str() {
                Some("none") => Ok(Biases::None),
                Some("lora_only") => Ok(Biases::Targets),
                Some("all") => Ok(Biases::All),
                _ => Err(unexpected("bias", "`none`, `all` or `lora_only`", value)),
            },
        }
    }

    fn targets(&self, compiler: &mut Compiler) -> Result<Targets, Refusal> {
        let layers = self.layers()?;
        match self.needed("target_modules")? {
            Value::String(_) if layers.is_some() || self.get("layers_pattern").is_some() => {
                // PEFT does not accept them either.
                Err(Refusal::Conflict {
                    first: "target_modules as a string",
                    second: "layers_to_transform (or layers_pattern)",
                })
            }
            Value::String(text) if text.eq_ignore_ascii_case("all-linear") => {
                Ok(Targets::AllLinear)
            }
            Value::String(text) => {
                let pattern = compiler.whole("target_modules", text)?;
                Ok(Targets::Pattern { pattern, text: text.clone() })
            }
            list => Ok(Targets::Names { names: names("target_modules", list)?, layers }),
        }
    }

    /// The layers that `layers_to_transform` admits; none for no restriction.
    fn layers(&self) -> Result<Option<BTreeSet<u64>>, Refusal> {
        const KEY: &str = "layers_to_transform";
        let index = |value: &Value| {
            value
                .as_u64()
                .ok_or_else(|| unexpected(KEY, "a layer's index or a list of them", value))
        };
        let layers = match self.get(KEY) {
            None => None,
            Some(Value::Array(items)) if items.is_empty() => None,
            Some(Value::Array(items)) => Some(items.iter().map(index).collect::<Result<_, _>>()?),
            Some(single) => Some(BTreeSet::from([index(single)?])),
        };
        let lists = self.layer_lists()?;
        match layers {
            None if lists.is_some() => Err(Refusal::Conflict {
                first: "layers_pattern",
                second: "having no layers_to_transform",
            }),
            // The base's one list of layers is `layers`. Where the pattern is another, PEFT finds no layer at all.
            Some(_) if lists.is_some_and(|lists| !lists.contains("layers")) => {
                Ok(Some(BTreeSet::new()))
            }
            layers => Ok(layers),
        }
    }

    /// The names of module lists in `layers_pattern`. PEFT takes each as a regular expression; only words are read.
    fn layer_lists(&self) -> Result<Option<HashSet<String>>, Refusal> {
        const KEY: &str = "layers_pattern";
        let lists = match self.get(KEY) {
            None => return Ok(None),
            Some(Value::String(list)) if list.is_empty() => return Ok(None),
            Some(Value::String(list)) => HashSet::from([list.clone()]),
            Some(value) => names(KEY, value)?,
        };
        let is_word =
            |list: &str| list.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        match lists.iter().find(|list| !is_word(list)) {
            Some(list) => Err(Refusal::Pattern {
                key: KEY,
                pattern: Quoted::new(list),
                reason: Quoted::new("it is not a plain name, such as layers"),
            }),
            None => Ok(Some(lists).filter(|lists| !lists.is_empty())),
        }
    }

    fn excluded(&self, compiler: &mut Compiler) -> Result<Option<Selection>, Refusal> {
        match self.get("exclude_modules") {
            None => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(Value::String(text)) => {
                compiler.whole("exclude_modules", text).map(Selection::Pattern).map(Some)
            }
            Some(list) => names("exclude_modules", list).map(Selection::Names).map(Some),
        }
    }

    fn saved(&self) -> Result<BTreeSet<String>, Refusal> {
        self.get("modules_to_save").map_or_else(
            || Ok(BTreeSet::new()),
            |list| Ok(names("modules_to_save", list)?.into_iter().collect()),
        )
    }

    /// The entries of `rank_pattern` or `alpha_pattern` in their order: the first that matches counts.
    fn patterns<T>(
        &self,
        key: &'static str,
        compiler: &mut Compiler,
        read: impl Fn(&str, &Value) -> Result<T, Refusal>,
    ) -> Result<Vec<(Pattern, T)>, Refusal> {
        let entries = match self.get(key) {
            None => return Ok(Vec::new()),
            Some(Value::Object(entries)) => entries,
            Some(other) => return Err(unexpected(key, "an object or null", other)),
        };
        check_count(key, entries.len())?;
        entries
            .iter()
            .map(|(pattern, value)| {
                let value = read(pattern, value)?;
                Ok((compiler.suffix(key, pattern)?, value))
            })
            .collect()
    }
}

/// The keys that [`Config::read`] reads.
const READ: [&str; 18] = [
    "alpha_pattern",
    "bias",
    "chorus",
    "ensure_weight_tying",
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_bias",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
];

/// Whether a key with this value is as good as absent.
fn is_idle(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) | Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
    }
}

fn names(key: &'static str, list: &Value) -> Result<HashSet<String>, Refusal> {
    let Value::Array(items) = list else {
        return Err(unexpected(key, "a list of module names", list));
    };
    check_count(key, items.len())?;
    items
        .iter()
        .map(|item| match item {
            Value::String(name) => Ok(name.clone()),
            other => Err(unexpected(key, "a list of module names", other)),
        })
        .collect()
}

fn check_count(key: &'static str, count: usize) -> Result<(), Refusal> {
    match count {
        0..=MOST_ENTRIES => Ok(()),
        _ => Err(Refusal::TooManyEntries { key, count, max: MOST_ENTRIES }),
    }
}

fn rank(key: &str, value: &Value, limits: &Limits) -> Result<usize, Refusal> {
    let rank = value
        .as_u64()
        .filter(|rank| *rank > 0)
        .ok_or_else(|| unexpected(key, "a rank, an integer from 1 on,", value))?;
    usize::try_from(rank)
        .ok()
        .filter(|rank| *rank <= limits.max_rank)
        .ok_or_else(|| Refusal::RankTooHigh { key: Quoted::new(key), rank, max: limits.max_rank })
}

/// Zero would serve the base under the adapter's name, and nobody trains with a negative alpha.
fn alpha(key: &str, value: &Value) -> Result<f64, Refusal> {
    value
        .as_f64()
        .filter(|alpha| alpha.is_finite() && *alpha > 0.0)
        .ok_or_else(|| unexpected(key, "a number above 0", value))
}

fn unexpected(key: &str, expected: &'static str, found: &Value) -> Refusal {
    Refusal::ConfigValue { key: Quoted::new(key), expected, found: json::quoted(found) }
}

//! Why an adapter is not served.

use std::fmt::{self, Write as _};

use super::site::Site;

/// A piece of a foreign file, safe to print: control characters escaped, cut at [`Quoted::LONGEST`] characters.
#[derive(Clone, PartialEq, Eq)]
pub struct Quoted(Box<str>);

impl Quoted {
    /// Most characters of the original that are kept.
    pub const LONGEST: usize = 120;

    /// Keeps the beginning of `text`.
    pub fn new(text: &str) -> Self {
        let mut kept = String::new();
        let mut characters = text.chars();
        for character in characters.by_ref().take(Self::LONGEST) {
            match character {
                '"' | '\'' => kept.push(character),
                _ => kept.extend(character.escape_debug()),
            }
        }
        if characters.next().is_some() {
            kept.push_str("[...]");
        }
        Self(kept.into())
    }

    /// The same of a list, at most a handful of its entries.
    pub(crate) fn list<'t>(texts: impl IntoIterator<Item = &'t str>) -> Self {
        const MOST: usize = 8;
        let mut texts = texts.into_iter();
        let mut kept: Vec<&str> = texts.by_ref().take(MOST).collect();
        if texts.next().is_some() {
            kept.push("...");
        }
        Self::new(&kept.join(", "))
    }

    /// The escaped text without the quotes that [`Display`](fmt::Display) puts around it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.0)
    }
}

impl fmt::Debug for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The lengths of a tensor's axes, printed as `[2, 576]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape(Vec<usize>);

impl Shape {
    /// Axes that are kept; the file may claim millions.
    const MOST: usize = 8;

    /// Keeps the first axes of `axes`, and one more than is printed to tell that there were more.
    pub fn new(axes: &[usize]) -> Self {
        Self(axes[..axes.len().min(Self::MOST + 1)].to_vec())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('[')?;
        for (index, length) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            match index {
                Self::MOST => write!(f, "{separator}...")?,
                _ => write!(f, "{separator}{length}")?,
            }
        }
        f.write_char(']')
    }
}

/// Where in a JSON text the reader stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Counted from 1.
    pub line: usize,
    /// In bytes, counted from 1.
    pub column: usize,
    /// The last key before that place, if there is one.
    pub key: Option<Quoted>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)?;
        match &self.key {
            Some(key) => write!(f, ", after the key {key}"),
            None => Ok(()),
        }
    }
}

/// Why an adapter is not served: what is wrong, in which of its two files, and where there.
///
/// An adapter is read completely or refused; there is nothing between.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each variant's message says what its operands are")]
pub enum Refusal {
    // the folder
    #[error(
        "{file} is missing: a PEFT adapter is adapter_config.json and adapter_model.safetensors, as save_pretrained writes them"
    )]
    MissingFile { file: &'static str },
    #[error(
        "the weights are {file}, a pickle, which can run code when it is read: safetensors only; convert it to adapter_model.safetensors"
    )]
    Pickle { file: &'static str },

    // adapter_config.json as a text
    #[error("adapter_config.json has {bytes} bytes, and at most {max} are read")]
    ConfigTooLarge { bytes: usize, max: usize },
    #[error("adapter_config.json is empty")]
    ConfigEmpty,
    #[error("adapter_config.json is {found}: save it as UTF-8 without a byte order mark")]
    ConfigEncoding { found: &'static str },
    #[error("adapter_config.json is not JSON that can be read: {} ({place})", reason.as_str())]
    ConfigSyntax { place: Place, reason: Quoted },
    #[error("adapter_config.json is {found} where a JSON object is expected")]
    ConfigNotAnObject { found: &'static str },

    // adapter_config.json as a LoRA configuration
    #[error(
        "adapter_config.json has no `peft_type` but has `{key}`: this is an MLX (mlx-lm) adapter; convert it to PEFT"
    )]
    Mlx { key: &'static str },
    #[error("adapter_config.json has no `{key}`, which is needed to apply the adapter")]
    ConfigMissing { key: &'static str },
    #[error("adapter_config.json: peft_type is {found}, and only LORA can be served")]
    Method { found: Quoted },
    #[error(
        "adapter_config.json: task_type is {found}, and only CAUSAL_LM (or null) can be served"
    )]
    Task { found: Quoted },
    #[error("adapter_config.json: {key} is {found} where {expected} is expected")]
    ConfigValue { key: Quoted, expected: &'static str, found: Quoted },
    #[error(
        "adapter_config.json: `{key}` is set, and {why}, which is not supported; train or export the adapter without it"
    )]
    Unsupported { key: &'static str, why: &'static str },
    #[error(
        "{field} of adapter_config.json, which says what the adapter brings besides its weights, cannot be used: {}",
        problem.as_str()
    )]
    Extras { field: Quoted, problem: Quoted },
    #[error(
        "adapter_config.json: the key {key} is not known, and its value {value} may change what the adapter computes"
    )]
    UnknownKey { key: Quoted, value: Quoted },
    #[error(
        "adapter_config.json: init_lora_weights is {found}, which is not known to leave the base weights as they are (PiSSA, OLoRA, CorDA and LoftQ do not): save the adapter with path_initial_model_for_weight_conversion"
    )]
    Initialisation { found: Quoted },
    #[error("adapter_config.json: {first} and {second} exclude each other")]
    Conflict { first: &'static str, second: &'static str },
    #[error("adapter_config.json: {key} is {rank}, above the max rank {max} of this server")]
    RankTooHigh { key: Quoted, rank: u64, max: usize },
    #[error(
        "adapter_config.json: lora_alpha {alpha:?} at rank {rank} scales {site} by {scale:e}, outside of {min:e} to {max:e}"
    )]
    Scale { site: Site, alpha: f64, rank: usize, scale: f64, min: f32, max: f32 },
    #[error(
        "adapter_config.json: `{key}` holds the pattern {pattern}, which cannot be used: {reason}"
    )]
    Pattern { key: &'static str, pattern: Quoted, reason: Quoted },
    #[error("adapter_config.json: `{key}` has {count} entries, and at most {max} are read")]
    TooManyEntries { key: &'static str, count: usize, max: usize },
    #[error(
        "adapter_config.json: target_modules {targets} selects no module of this base, after layers_to_transform, exclude_modules and modules_to_save: was it made for another architecture?"
    )]
    NoTarget { targets: Quoted },
    #[error(
        "adapter_config.json: target_modules selects {module}, a normalisation, which cannot carry LoRA"
    )]
    TargetIsANorm { module: Quoted },
    #[error("adapter_config.json: modules_to_save names {name}, and this base has no such module")]
    SavedModuleUnknown { name: Quoted },
    #[error(
        "adapter_config.json: modules_to_save names {name}, that is {site}: only norms, embed_tokens and lm_head can be replaced whole"
    )]
    SavedProjection { name: Quoted, site: Site },

    // adapter_model.safetensors as a file
    #[error("adapter_model.safetensors has {bytes} bytes, above the limit of {max} of this server")]
    WeightsTooLarge { bytes: u64, max: u64 },
    #[error("adapter_model.safetensors is {found} and not a safetensors file: {advice}")]
    WeightsAre { found: &'static str, advice: &'static str },
    #[error(
        "adapter_model.safetensors is truncated, or its header length is wrong: {expected} bytes are announced where {found} are left"
    )]
    Truncated { expected: u64, found: u64 },
    #[error(
        "adapter_model.safetensors: the header length is {bytes} bytes, and at most {max} are read"
    )]
    HeaderTooLarge { bytes: u64, max: usize },
    #[error("adapter_model.safetensors: the header cannot be read: {} ({place})", reason.as_str())]
    HeaderSyntax { place: Place, reason: Quoted },
    #[error("adapter_model.safetensors: the header has the tensor {tensor} twice")]
    HeaderRepeats { tensor: Quoted },
    #[error(
        "adapter_model.safetensors: {tensor} is at bytes {begin} to {end}, and {expected} is where it has to begin: tensors must follow each other without gap or overlap"
    )]
    Offsets { tensor: Quoted, begin: u64, end: u64, expected: u64 },
    #[error("adapter_model.safetensors: {tensor} has dtype {dtype}; F32, F16 and BF16 can be read")]
    Dtype { tensor: Quoted, dtype: Quoted },
    #[error(
        "adapter_model.safetensors: {tensor} of shape {shape} does not fill its {bytes} bytes exactly"
    )]
    Bytes { tensor: Quoted, shape: Shape, bytes: u64 },
    #[error("adapter_model.safetensors: {extra} bytes after the last tensor belong to none")]
    TrailingBytes { extra: u64 },
    #[error("adapter_model.safetensors cannot be read: {}", reason.as_str())]
    Container { reason: Quoted },

    // its tensors
    #[error(
        "adapter_model.safetensors: the name {tensor} does not begin with `base_model.model.`: PEFT itself would ignore this tensor; save the adapter with PEFT's save_pretrained"
    )]
    Unprefixed { tensor: Quoted },
    #[error(
        "adapter_model.safetensors: {tensor} is no tensor that PEFT writes for LoRA, such as base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    )]
    UnknownTensor { tensor: Quoted },
    #[error(
        "adapter_model.safetensors: {tensor} belongs to the module {module}, which this base does not have"
    )]
    UnknownModule { tensor: Quoted, module: Quoted },
    #[error("adapter_model.safetensors: {tensor} is there twice, under two spellings of its name")]
    Repeated { tensor: Quoted },
    #[error(
        "adapter_model.safetensors has no {tensor}, which {wanted_by} in adapter_config.json asks for: the adapter is incomplete"
    )]
    MissingTensor { tensor: Quoted, wanted_by: &'static str },
    #[error(
        "adapter_model.safetensors: {tensor} has no part in the adapter that adapter_config.json describes: {why}"
    )]
    SuperfluousTensor { tensor: Quoted, why: &'static str },
    #[error(
        "adapter_model.safetensors: {tensor} has shape {found}, that is rank {rank}, and adapter_config.json gives it rank {expected}"
    )]
    RankMismatch { tensor: Quoted, found: Shape, rank: usize, expected: usize },
    #[error(
        "adapter_model.safetensors: {tensor} has shape {found} where {expected} fits this base: was it made for one of another hidden size?"
    )]
    ShapeMismatch { tensor: Quoted, found: Shape, expected: Shape },
    #[error("adapter_model.safetensors: {tensor} is non-finite ({value}) at element {index}")]
    NonFinite { tensor: Quoted, index: usize, value: f32 },
    #[error(
        "adapter_model.safetensors: {tensor} is {value:e} at element {index}; magnitudes above {max} are no trained weights and overflow when multiplied"
    )]
    Extreme { tensor: Quoted, index: usize, value: f32, max: f32 },
    #[error(
        "adapter_model.safetensors: ensure_weight_tying makes {first} and {second} one weight, and the file holds two different ones"
    )]
    TiedWeightsDiffer { first: Site, second: Site },

    // against the base
    #[error(
        "adapter_model.safetensors brings its own base weight of {site}, and it differs from this base's: the adapter was trained on another base (a quantized one is another one), or after the vocabulary was resized; name the module in modules_to_save if it was trained, or save the adapter with save_embedding_layers=False if it was not"
    )]
    CopyDiffers { site: Site },
    #[error(
        "adapter_model.safetensors: output {output} of {site} has no length that its magnitude could scale (DoRA divides by ||W + s B A||)"
    )]
    Degenerate { site: Site, output: usize },
}

impl Refusal {
    /// A stable name of the kind of refusal, for clients to branch on.
    pub fn code(&self) -> &'static str {
        match self {
            Self::MissingFile { .. } => "missing_file",
            Self::Pickle { .. } => "pickle",
            Self::ConfigTooLarge { .. } => "config_too_large",
            Self::ConfigEmpty => "config_empty",
            Self::ConfigEncoding { .. } => "config_encoding",
            Self::ConfigSyntax { .. } => "config_syntax",
            Self::ConfigNotAnObject { .. } => "config_not_an_object",
            Self::Mlx { .. } => "mlx_adapter",
            Self::ConfigMissing { .. } => "config_missing_key",
            Self::Method { .. } => "unsupported_peft_type",
            Self::Task { .. } => "unsupported_task_type",
            Self::ConfigValue { .. } => "config_value",
            Self::Unsupported { .. } => "unsupported_feature",
            Self::UnknownKey { .. } => "unknown_key",
            Self::Extras { .. } => "chorus_object",
            Self::Initialisation { .. } => "unsupported_initialisation",
            Self::Conflict { .. } => "config_conflict",
            Self::RankTooHigh { .. } => "rank_too_high",
            Self::Scale { .. } => "scale_out_of_range",
            Self::Pattern { .. } => "unusable_pattern",
            Self::TooManyEntries { .. } => "too_many_entries",
            Self::NoTarget { .. } => "no_target",
            Self::TargetIsANorm { .. } => "target_is_a_norm",
            Self::SavedModuleUnknown { .. } => "saved_module_unknown",
            Self::SavedProjection { .. } => "saved_projection",
            Self::WeightsTooLarge { .. } => "weights_too_large",
            Self::WeightsAre { .. } => "not_safetensors",
            Self::Truncated { .. } => "truncated",
            Self::HeaderTooLarge { .. } => "header_too_large",
            Self::HeaderSyntax { .. } => "header_syntax",
            Self::HeaderRepeats { .. } => "header_repeats",
            Self::Offsets { .. } => "tensor_offsets",
            Self::Dtype { .. } => "unsupported_dtype",
            Self::Bytes { .. } => "tensor_bytes",
            Self::TrailingBytes { .. } => "trailing_bytes",
            Self::Container { .. } => "unreadable_safetensors",
            Self::Unprefixed { .. } => "unprefixed_tensor",
            Self::UnknownTensor { .. } => "unknown_tensor",
            Self::UnknownModule { .. } => "unknown_module",
            Self::Repeated { .. } => "repeated_tensor",
            Self::MissingTensor { .. } => "missing_tensor",
            Self::SuperfluousTensor { .. } => "superfluous_tensor",
            Self::RankMismatch { .. } => "rank_mismatch",
            Self::ShapeMismatch { .. } => "shape_mismatch",
            Self::NonFinite { .. } => "non_finite_weight",
            Self::Extreme { .. } => "extreme_weight",
            Self::TiedWeightsDiffer { .. } => "tied_weights_differ",
            Self::Degenerate { .. } => "weight_without_length",
            Self::CopyDiffers { .. } => "base_weight_differs",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_cannot_forge_lines_or_colours() {
        let quoted = Quoted::new("a\nERROR \u{1b}[31m \u{202e}b\u{0}").to_string();
        assert_eq!(quoted, r"`a\nERROR \u{1b}[31m \u{202e}b\0`");
    }

    #[test]
    fn foreign_text_is_cut() {
        let quoted = Quoted::new(&"ä".repeat(10_000));
        assert_eq!(quoted.as_str(), format!("{}[...]", "ä".repeat(Quoted::LONGEST)));
        assert_eq!(Quoted::new(&"ä".repeat(Quoted::LONGEST)).as_str(), "ä".repeat(Quoted::LONGEST));
    }

    #[test]
    fn lists_are_cut() {
        assert_eq!(Quoted::list(["a", "b"]).as_str(), "a, b");
        assert_eq!(Quoted::list(["a"; 100]).as_str(), "a, a, a, a, a, a, a, a, ...");
    }

    #[test]
    fn shapes_are_cut() {
        assert_eq!(Shape::new(&[]).to_string(), "[]");
        assert_eq!(Shape::new(&[2, 576]).to_string(), "[2, 576]");
        assert_eq!(Shape::new(&vec![1; 1_000_000]).to_string(), "[1, 1, 1, 1, 1, 1, 1, 1, ...]");
    }

    #[test]
    fn a_refusal_is_cheap_to_return() {
        assert!(size_of::<Refusal>() <= 96, "{}", size_of::<Refusal>());
    }
}

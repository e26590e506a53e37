//! Loading and unloading as vLLM's clients write it.

use serde::{Deserialize, de::IgnoredAny};
use utoipa::ToSchema;

/// An adapter to be loaded.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct LoadIn {
    pub(in crate::http) lora_name: Option<String>,
    pub(in crate::http) lora_path: Option<String>,
    /// Take the place of an adapter that has the name.
    #[serde(default)]
    pub(in crate::http) load_inplace: bool,
    /// Whose it is to be; this one is not vLLM's.
    pub(in crate::http) tenant: Option<String>,
    /// Sent by the syncer of llm-d; the check decides whether an adapter is for the base.
    #[serde(default, rename = "base_model_name")]
    #[schema(value_type = serde_json::Value)]
    _base: Option<IgnoredAny>,
    /// How files are laid out for mixtures of experts, which the check refuses.
    #[serde(default, rename = "is_3d_lora_weight")]
    #[schema(value_type = serde_json::Value)]
    _layout: Option<IgnoredAny>,
}

/// An adapter to be unloaded.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct UnloadIn {
    pub(in crate::http) lora_name: Option<String>,
    /// Whose it is; this one is not vLLM's.
    pub(in crate::http) tenant: Option<String>,
    /// A name is enough.
    #[serde(default, rename = "lora_int_id")]
    #[schema(value_type = serde_json::Value)]
    _number: Option<IgnoredAny>,
}

//! `/v1/models` as it is written on the wire.

use serde::Serialize;
use utoipa::ToSchema;

/// `{"object": "list", "data": [..]}`
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ModelList {
    pub(in crate::http) object: &'static str,
    pub(in crate::http) data: Vec<Model>,
}

/// The base or an adapter.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(in crate::http) struct Model {
    pub(in crate::http) id: String,
    pub(in crate::http) object: &'static str,
    /// Unix time in seconds.
    pub(in crate::http) created: u64,
    /// The base is the server's, an adapter its tenant's.
    pub(in crate::http) owned_by: String,
    /// What the name points to, by content: `sha256:HEX`.
    pub(in crate::http) root: String,
    /// The base's id, for an adapter.
    pub(in crate::http) parent: Option<String>,
    /// Prompt and answer together, in tokens.
    pub(in crate::http) max_model_len: usize,
}

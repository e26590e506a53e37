//! `/v1/admin/audit` as it is written on the wire.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Which changes are asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct AuditQuery {
    /// Only those that concern this tenant.
    #[param(nullable = false, pattern = "^[a-z0-9][a-z0-9-]{0,63}$")]
    pub(in crate::http) tenant: Option<String>,
    /// The id of the last one that is known already.
    #[param(nullable = false, pattern = r"^[0-9]{1,18}\.[0-9]{1,18}$")]
    pub(in crate::http) after: Option<String>,
    /// How many are looked at.
    #[param(nullable = false, minimum = 1, maximum = 1000)]
    pub(in crate::http) limit: Option<usize>,
}

/// `{"object": "list", "data": [..], "last_id", "has_more"}`
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ChangeList {
    pub(in crate::http) object: &'static str,
    pub(in crate::http) data: Vec<ChangeOut>,
    /// Of the last one that was looked at: the next page comes after it.
    pub(in crate::http) last_id: String,
    pub(in crate::http) has_more: bool,
}

/// One change.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ChangeOut {
    /// What comes after it is asked for with this.
    pub(in crate::http) id: String,
    pub(in crate::http) object: &'static str,
    /// `adapters` or `tenants`.
    pub(in crate::http) log: &'static str,
    /// Its place in that log.
    pub(in crate::http) number: u64,
    /// Unix time in milliseconds.
    pub(in crate::http) at: u64,
    /// The same as RFC 3339 has it, in seconds.
    pub(in crate::http) time: String,
    /// `open`, `operator`, or `key` and its id.
    pub(in crate::http) by: String,
    /// Whom it concerns.
    pub(in crate::http) tenant: Option<String>,
    /// In one word.
    pub(in crate::http) change: &'static str,
    pub(in crate::http) adapter: Option<String>,
    pub(in crate::http) version: Option<u32>,
    /// `sha256:HEX`
    pub(in crate::http) digest: Option<String>,
    /// A key's id.
    pub(in crate::http) key: Option<String>,
    /// On one line.
    pub(in crate::http) summary: String,
}

//! `/v1/admin/tenants` as it is written on the wire.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::tenant::{Quota, Scope};

/// `{"object": "list", "data": [..]}`
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct TenantList {
    pub(in crate::http) object: &'static str,
    pub(in crate::http) data: Vec<TenantOut>,
}

/// A tenant. No key is in it.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct TenantOut {
    pub(in crate::http) id: u32,
    pub(in crate::http) object: &'static str,
    pub(in crate::http) name: String,
    /// Unix time in seconds.
    pub(in crate::http) created: u64,
    pub(in crate::http) default_adapter: Option<String>,
    pub(in crate::http) keys: Vec<KeyOut>,
    pub(in crate::http) quota: Quota,
    /// With the first tenant, once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::http) operator_key: Option<String>,
}

/// A key's name and what it allows.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct KeyOut {
    pub(in crate::http) id: String,
    pub(in crate::http) scope: Scope,
    pub(in crate::http) created: u64,
    pub(in crate::http) expires: Option<u64>,
    /// The secret, once: when it is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::http) key: Option<String>,
}

/// The operator's new key.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct OperatorKeyOut {
    pub(in crate::http) object: &'static str,
    /// The secret, once.
    pub(in crate::http) key: String,
    /// This server was given one as well, which counts on.
    pub(in crate::http) environment_key: bool,
}

/// A new tenant.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct TenantIn {
    #[schema(pattern = "^[a-z0-9][a-z0-9-]{0,63}$")]
    pub(in crate::http) name: String,
}

/// A new key.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct KeyIn {
    #[serde(default = "infer")]
    pub(in crate::http) scope: Scope,
    /// Unix time in seconds.
    #[serde(default)]
    pub(in crate::http) expires: Option<u64>,
}

fn infer() -> Scope {
    Scope::Infer
}

/// What `default` is to mean as a model.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct DefaultIn {
    /// `null` is the base; it must be said.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", required = true)]
    pub(in crate::http) adapter: Option<String>,
}

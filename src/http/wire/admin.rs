//! `/v1/admin/tenants` as it is written on the wire.

use serde::{Deserialize, Serialize};

use crate::tenant::{Quota, Scope};

/// `{"object": "list", "data": [..]}`
#[derive(Debug, Serialize)]
pub(in crate::http) struct TenantList {
    pub(in crate::http) object: &'static str,
    pub(in crate::http) data: Vec<TenantOut>,
}

/// A tenant. No key is in it.
#[derive(Debug, Serialize)]
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
#[derive(Debug, Serialize)]
pub(in crate::http) struct KeyOut {
    pub(in crate::http) id: String,
    pub(in crate::http) scope: Scope,
    pub(in crate::http) created: u64,
    pub(in crate::http) expires: Option<u64>,
    /// The secret, once: when it is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::http) key: Option<String>,
}

/// A new tenant.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct TenantIn {
    pub(in crate::http) name: String,
}

/// A new key.
#[derive(Debug, Deserialize)]
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
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct DefaultIn {
    /// `null` is the base; it must be said.
    #[serde(deserialize_with = "Option::deserialize")]
    pub(in crate::http) adapter: Option<String>,
}

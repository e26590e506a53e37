//! `/v1/adapters` as it is written on the wire.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::adapter::{Canary, Smoke};

/// `{"object": "list", "tenant": "acme", "data": [..]}`
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct AdapterList {
    pub(in crate::http) object: &'static str,
    /// Whose they are.
    pub(in crate::http) tenant: Option<String>,
    pub(in crate::http) data: Vec<AdapterOut>,
}

/// An adapter at its active version; where none is active, at its newest.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct AdapterOut {
    /// What requests may name it by.
    pub(in crate::http) id: String,
    pub(in crate::http) object: &'static str,
    pub(in crate::http) name: String,
    pub(in crate::http) version: u32,
    /// `sha256:HEX`
    pub(in crate::http) digest: String,
    /// Of both files.
    pub(in crate::http) bytes: u64,
    pub(in crate::http) rank: usize,
    pub(in crate::http) targets: Vec<String>,
    /// The base's id.
    pub(in crate::http) parent: String,
    /// Unix time in seconds.
    pub(in crate::http) created: u64,
    pub(in crate::http) status: Status,
    pub(in crate::http) residency: Residency,
    pub(in crate::http) pinned: bool,
    /// The version that has a share of the requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::http) canary: Option<Canary>,
    /// Bytes of memory that it takes when it is loaded.
    pub(in crate::http) memory: usize,
    /// Requests that hold it now.
    pub(in crate::http) leases: usize,
    /// Requests that it was lent to since this server started.
    pub(in crate::http) hits: u64,
    /// Unix time in seconds; since this server started.
    pub(in crate::http) last_used: Option<u64>,
    /// Where it has one, as it went on the base that is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::http) smoke_test: Option<Smoke>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::http) versions: Option<Vec<VersionOut>>,
}

/// One version in an adapter's history.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct VersionOut {
    pub(in crate::http) version: u32,
    pub(in crate::http) digest: String,
    pub(in crate::http) bytes: u64,
    pub(in crate::http) rank: usize,
    pub(in crate::http) targets: Vec<String>,
    pub(in crate::http) created: u64,
    pub(in crate::http) status: Status,
    pub(in crate::http) residency: Residency,
    /// It comes from the server's folder, which nobody can change from outside.
    pub(in crate::http) read_only: bool,
    /// Where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::http) smoke_test: Option<Smoke>,
}

/// Whether requests may have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::http) enum Status {
    /// The name points to it.
    Active,
    /// It is reached by its version or digest alone.
    Inactive,
    /// It was checked against another base.
    Incompatible,
}

/// Where it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::http) enum Residency {
    /// In the memory of a GPU that computes, and in memory.
    Device,
    /// In memory, in the form that runs.
    Host,
    /// In the folder or the store.
    Disk,
}

/// `{"id", "object", "deleted"}`, as OpenAI answers deletions.
#[derive(Debug, Serialize, ToSchema)]
#[expect(clippy::struct_field_names, reason = "it is OpenAI's")]
pub(in crate::http) struct Deleted {
    pub(in crate::http) id: String,
    pub(in crate::http) object: &'static str,
    pub(in crate::http) deleted: bool,
}

/// Which version is meant.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct VersionIn {
    pub(in crate::http) version: u32,
}

/// Which version is to have all requests, or how many of a hundred.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct ActivateIn {
    pub(in crate::http) version: u32,
    #[schema(minimum = 0, maximum = 100)]
    pub(in crate::http) percent: Option<u8>,
}

/// `?activate=`
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct PutQuery {
    #[serde(default = "yes")]
    pub(in crate::http) activate: bool,
}

fn yes() -> bool {
    true
}

/// No parameters at all.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct NoQuery {}

/// `?version=`
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct VersionQuery {
    #[param(nullable = false)]
    pub(in crate::http) version: Option<u32>,
}

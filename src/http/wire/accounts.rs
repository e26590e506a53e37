//! `/v1/usage` as it is written on the wire.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ledger::Period;

/// Which sums are asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct UsageQuery {
    /// A day, a time of RFC 3339, or unix seconds.
    pub(in crate::http) from: Option<String>,
    /// The first moment that is not meant, in the same forms.
    pub(in crate::http) to: Option<String>,
    #[serde(default)]
    pub(in crate::http) by: Period,
    #[serde(default)]
    pub(in crate::http) format: Format,
    /// Whose; only an operator may say.
    pub(in crate::http) tenant: Option<String>,
}

/// How sums are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = UsageFormat)]
pub(in crate::http) enum Format {
    #[default]
    Json,
    /// RFC 4180, with a header line.
    Csv,
}

/// `{"object": "list", "from": .., "to": .., "data": [..]}`, times in RFC 3339.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct UsageList {
    pub(in crate::http) object: &'static str,
    pub(in crate::http) from: String,
    pub(in crate::http) to: String,
    pub(in crate::http) data: Vec<UsageRow>,
}

/// What one tenant used of one version of an adapter in one period.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct UsageRow {
    /// When the period began, in RFC 3339.
    pub(in crate::http) begin: String,
    pub(in crate::http) tenant: String,
    /// `None` is the base.
    pub(in crate::http) adapter: Option<String>,
    pub(in crate::http) version: Option<u32>,
    pub(in crate::http) requests: u64,
    pub(in crate::http) prompt_tokens: u64,
    pub(in crate::http) cached_tokens: u64,
    pub(in crate::http) generated_tokens: u64,
    pub(in crate::http) uploads: u64,
    pub(in crate::http) upload_bytes: u64,
}

impl UsageRow {
    /// The names of the columns, in the order of [`UsageRow::line`].
    pub(in crate::http) const COLUMNS: &'static str = "begin,tenant,adapter,version,requests,\
        prompt_tokens,cached_tokens,generated_tokens,uploads,upload_bytes";

    /// As a line of CSV. No name of a tenant or an adapter has a character that would have to be quoted.
    pub(in crate::http) fn line(&self) -> String {
        let Self { begin, tenant, requests, prompt_tokens, cached_tokens, .. } = self;
        let Self { generated_tokens, uploads, upload_bytes, .. } = self;
        let adapter = self.adapter.as_deref().unwrap_or_default();
        let version = self.version.map(|number| number.to_string()).unwrap_or_default();
        format!(
            "{begin},{tenant},{adapter},{version},{requests},{prompt_tokens},{cached_tokens},\
             {generated_tokens},{uploads},{upload_bytes}"
        )
    }
}

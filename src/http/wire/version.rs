//! `/version` as it is written on the wire.

use serde::Serialize;
use utoipa::ToSchema;

/// `{"version": "1.2.3"}`
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Release {
    pub(in crate::http) version: &'static str,
}

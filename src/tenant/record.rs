//! What the store keeps of tenants and keys: one record a change.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{KeyId, Quota, TenantId, TenantName, key::KeyHash};

/// One change, as it was acknowledged. What is not known here makes it unreadable: see the adapters' records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// Unix time in milliseconds, by the clock of the server that wrote it.
    pub(super) at: u64,
    /// Who asked for it.
    pub(super) by: String,
    /// What was asked for.
    pub(super) change: Change,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Change {
    /// A tenant came, whose id is this record's number; with the first one the operator's key, and the end of open access.
    Created {
        /// Its name.
        name: TenantName,
        /// SHA-256 of the operator's key.
        operator: Option<KeyHash>,
    },
    /// The operator's key is another one from now on.
    OperatorReplaced {
        /// SHA-256 of it.
        key: KeyHash,
    },
    /// A tenant got a key.
    KeyAdded {
        /// Whose.
        tenant: TenantId,
        /// SHA-256 of it.
        key: KeyHash,
        /// What it allows.
        scope: Scope,
        /// Unix time in seconds from which on it is none.
        expires: Option<u64>,
    },
    /// A key is none any more.
    KeyRevoked {
        /// Whose it was.
        tenant: TenantId,
        /// Its name.
        key: KeyId,
    },
    /// What `default` means as a model.
    DefaultAdapter {
        /// To whom.
        tenant: TenantId,
        /// An adapter's name; `None` for the base.
        adapter: Option<String>,
    },
    /// What a tenant may use from now on.
    Quota {
        /// Who.
        tenant: TenantId,
        /// All of it, in the place of what was.
        quota: Quota,
    },
}

/// What a key allows. Each allows what those before it do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// To use the base and the tenant's adapters, and to list them.
    Infer,
    /// To upload and activate adapters, to load them ahead, and to get their files back.
    Upload,
    /// To delete and to pin them.
    Admin,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_written_as_they_are_documented_and_read_back() {
        let hash: KeyHash = serde_json::from_str(&format!("\"{}\"", "ab".repeat(32))).unwrap();
        let name = TenantName::parse("acme").unwrap();
        let tenant = TenantId(7);
        for (change, json) in [
            (
                Change::Created { name, operator: None },
                r#"{"created":{"name":"acme","operator":null}}"#.to_owned(),
            ),
            (
                Change::KeyAdded { tenant, key: hash, scope: Scope::Infer, expires: Some(9) },
                format!(
                    r#"{{"key_added":{{"tenant":7,"key":"{}","scope":"infer","expires":9}}}}"#,
                    "ab".repeat(32)
                ),
            ),
            (
                Change::KeyRevoked { tenant, key: hash.id() },
                r#"{"key_revoked":{"tenant":7,"key":"abababab"}}"#.to_owned(),
            ),
        ] {
            let record = Record { at: 1, by: "open".to_owned(), change };
            let text = serde_json::to_string(&record).unwrap();
            assert_eq!(text, format!(r#"{{"at":1,"by":"open","change":{json}}}"#));
            assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
        }
        assert!(serde_json::from_str::<Change>(r#"{"melted":{"tenant":7}}"#).is_err());
    }

    #[test]
    fn scopes_include_each_other_in_order() {
        assert!(Scope::Infer < Scope::Upload && Scope::Upload < Scope::Admin);
    }
}

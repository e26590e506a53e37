//! Who is calling, and what they may.
//!
//! A key names a tenant and what its holder may do for it. Until the operator has made a first tenant, or has set an
//! operator key, there are no keys and everybody is the one open tenant, `default`.
//!
//! State is the fold of a log of records, which all servers on one store share; see [`store`](crate::store). Keys are in it
//! as SHA-256 alone. This module knows no adapter and no HTTP.

mod audit;
mod directory;
mod key;
mod name;
mod permit;
mod quota;
mod record;

use std::fmt;

pub use self::{
    audit::Changed,
    directory::{Created, KeyCard, NotDone, TenantCard, Tenants, Unidentified},
    key::{BadKey, Key, KeyId},
    name::{BadTenantName, TenantName},
    permit::{OverQuota, Permit, Rates, Scarce},
    quota::{BadQuota, Quota, Rate},
    record::Scope,
};

/// The log that tenants' records are in.
pub const LOG: &str = "tenants";

/// Identifies a tenant. Two tenants never see each other's names.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct TenantId(u32);

impl TenantId {
    /// The tenant of callers without a key, where there are no keys, and the owner of the read-only adapter folder.
    pub const DEFAULT: Self = Self(0);

    /// The tenant that this record made.
    fn of_record(number: u64) -> Self {
        // As many tenants as there are numbers have never been made.
        Self(u32::try_from(number).unwrap_or(u32::MAX))
    }

    /// A second tenant, to show that it sees nothing of the first.
    #[cfg(test)]
    pub(crate) const OTHER: Self = Self(1);

    /// A number that no other tenant of this store has.
    pub fn number(self) -> u32 {
        self.0
    }
}

/// Who sent a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// For whom.
    pub tenant: TenantId,
    /// By what right.
    pub right: Right,
}

/// What lets a caller do something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Right {
    /// There are no keys: everybody may do everything.
    Open,
    /// A tenant's key.
    Key(KeyId, Scope),
    /// The operator's key. It is no tenant's, so it does nothing for one.
    Operator,
}

impl Caller {
    /// Whether it may do what needs this scope, for its tenant.
    pub fn may(&self, needed: Scope) -> bool {
        match &self.right {
            Right::Open => true,
            Right::Key(_, scope) => *scope >= needed,
            Right::Operator => false,
        }
    }

    /// Whether it may do what the operator may.
    pub fn is_operator(&self) -> bool {
        matches!(self.right, Right::Open | Right::Operator)
    }
}

/// As the audit log has it.
impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.right {
            Right::Open => f.write_str("open"),
            Right::Key(id, _) => write!(f, "key {id}"),
            Right::Operator => f.write_str("operator"),
        }
    }
}

//! Who is calling.
//!
//! There is one tenant, and everything that belongs to somebody is already keyed by it.
//! Keys, quotas and more tenants come in here; nothing outside has to change for them.

/// Identifies a tenant. Two tenants never see each other's names.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct TenantId(u32);

impl TenantId {
    /// The open tenant: callers without a key, and the owner of the read-only adapter folder.
    pub const DEFAULT: Self = Self(0);

    /// A second tenant, to show that it sees nothing of the first.
    #[cfg(test)]
    pub(crate) const OTHER: Self = Self(1);
}

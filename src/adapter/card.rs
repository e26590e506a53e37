//! What a tenant is told about its adapters.

use super::{AdapterName, Adapters, Canary, Revision, Smoke, registry::Entry};
use crate::tenant::TenantId;

/// What a tenant is told about one of its adapters.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Card {
    /// The active version; where none is, the newest.
    pub revision: Revision,
    /// The name points to it.
    pub active: bool,
    /// The version that is tried out on a share of the requests.
    pub canary: Option<Canary>,
    /// It was checked against this server's base.
    pub compatible: bool,
    /// The active version is kept in memory.
    pub pinned: bool,
    /// Bytes of its two files.
    pub bytes: u64,
    /// Bytes of memory that it takes.
    pub memory: usize,
    /// Its largest rank.
    pub rank: usize,
    /// What it changes in the base.
    pub targets: Vec<String>,
    /// When it was made, in unix seconds.
    pub created: u64,
    /// How its smoke test went on this server's base, where it has one and was tried on that.
    pub smoke: Option<Smoke>,
    /// It is in memory for this tenant.
    pub resident: bool,
    /// Requests that hold it now.
    pub leases: usize,
    /// Requests that it was lent to since the start.
    pub hits: u64,
    /// When it was last lent to one, in unix seconds.
    pub last_used: Option<u64>,
}

/// One version of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// As if the name pointed to it.
    pub card: Card,
    /// It is in the store; otherwise in the folder.
    pub stored: bool,
}

impl Adapters {
    /// A tenant's adapters, by name.
    pub fn list(&self, tenant: TenantId) -> Vec<Card> {
        let entries = self.shared.registry.list(tenant).into_iter();
        entries.map(|entry| self.describe(tenant, entry)).collect()
    }

    /// One of a tenant's adapters.
    pub fn card(&self, tenant: TenantId, name: &AdapterName) -> Option<Card> {
        self.shared.registry.active(tenant, name).map(|entry| self.describe(tenant, entry))
    }

    /// All versions of a tenant's name, by number; empty where there is no such name.
    pub fn versions(&self, tenant: TenantId, name: &AdapterName) -> Vec<Version> {
        let versions = self.shared.registry.versions(tenant, name).into_iter();
        let version = |entry: Entry| {
            let stored = entry.files.is_some();
            Version { stored, card: self.describe(tenant, entry) }
        };
        versions.map(version).collect()
    }

    pub(super) fn describe(&self, tenant: TenantId, entry: Entry) -> Card {
        let Entry { revision, content, mut bases, usage, canary, .. } = entry;
        let here = bases.remove(&self.shared.base_sha256);
        Card {
            active: entry.active,
            compatible: here.is_some(),
            smoke: here.flatten(),
            canary,
            pinned: entry.pinned,
            memory: content.memory(),
            last_used: usage.last(),
            bytes: content.facts.bytes,
            rank: content.facts.rank,
            targets: content.facts.targets.clone(),
            created: entry.created,
            // Somebody else's use of the same bytes is not told.
            resident: self.shared.cache.holds(tenant.into(), &revision.digest),
            leases: usage.live(),
            hits: usage.lent(),
            revision,
        }
    }
}

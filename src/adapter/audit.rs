//! What was changed, by whom and when: the records, as people read them.

use super::{
    AdapterName, Adapters, LOG, Wanted,
    record::{Change, Record},
};
use crate::{
    lora::Digest,
    store::{Entry, Log, StoreError},
    tenant::TenantId,
};

/// One change to an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Its place in the order of all changes to adapters, from 1.
    pub number: u64,
    /// Unix time in milliseconds, by the clock of the server that made it.
    pub at: u64,
    /// Who asked for it.
    pub by: String,
    /// Whose adapter.
    pub tenant: TenantId,
    /// Its name.
    pub name: AdapterName,
    /// What happened, in one word.
    pub what: &'static str,
    /// To which version; `None` where it concerns the name.
    pub version: Option<u32>,
    /// The version's content, where it came with this change or is there still.
    pub digest: Option<Digest>,
    /// The same on one line.
    pub summary: String,
}

impl Adapters {
    /// At most `most` changes that come after a number, in order, as the store has them now.
    pub async fn changes_after(&self, after: u64, most: usize) -> Result<Vec<Changed>, StoreError> {
        let page = Log::<Record>::page(&self.shared.store, LOG, after, most).await?;
        Ok(page.into_iter().map(|entry| self.changed(entry)).collect())
    }

    fn changed(&self, Entry { number, record }: Entry<Record>) -> Changed {
        let Record { at, by, tenant, name, change } = record;
        let version = change.version();
        let digest = match &change {
            Change::Stored(stored) => Some(stored.digest),
            _ => version.and_then(|version| {
                let wanted = Wanted::Version(name.clone(), version);
                let revision = self.resolve(tenant, &wanted, None)?;
                Some(revision.digest)
            }),
        };
        let (what, summary) = (change.word(), change.to_string());
        Changed { number, at, by, tenant, name, what, version, digest, summary }
    }
}

impl Change {
    fn word(&self) -> &'static str {
        match self {
            Self::Stored(_) => "stored",
            Self::Activated { .. } => "activated",
            Self::Canary(_) => "canary",
            Self::CanaryEnded => "canary_ended",
            Self::Pinned => "pinned",
            Self::Unpinned => "unpinned",
            Self::Removed { .. } => "removed",
            Self::Validated { .. } => "validated",
        }
    }

    fn version(&self) -> Option<u32> {
        match self {
            Self::Stored(stored) => Some(stored.version),
            Self::Activated { version } | Self::Validated { version, .. } => Some(*version),
            Self::Removed { version } => *version,
            Self::Canary(canary) => Some(canary.version),
            Self::CanaryEnded | Self::Pinned | Self::Unpinned => None,
        }
    }
}

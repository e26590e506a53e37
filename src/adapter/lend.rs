//! Lending: a revision's adapter, in memory until its lease is dropped, or why there is none.

use std::{sync::Arc, time::Duration};

use super::{
    Adapters, LoadError, Revision, cache::Loan, line::Want, registry::Entry, unix_seconds,
};
use crate::{lora::Lease, tenant::TenantId};

/// Why no adapter was lent.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotLent {
    /// The revision's content is not known any more.
    #[error("the adapter is gone")]
    Gone,
    /// It was checked against another base.
    #[error("the adapter was checked against another base model: upload or validate it again")]
    OtherBase,
    /// No eviction could make room for it.
    #[error(
        "the adapter takes {bytes} bytes of memory and all adapters together may take {budget}"
    )]
    TooLarge {
        /// Bytes it takes.
        bytes: usize,
        /// Bytes there are.
        budget: usize,
    },
    /// The line is at its bound.
    #[error("{waiting} requests are waiting for adapters already; try again later")]
    Crowded {
        /// Requests in the line.
        waiting: usize,
    },
    /// It did not come in time: running requests hold the memory, or loading takes too long.
    #[error("the adapter was not loaded within {:.1} s; try again later", waited.as_secs_f64())]
    TimedOut {
        /// How long the request waited.
        waited: Duration,
    },
    /// It takes more than its tenant's quota.
    #[error(
        "the adapter takes {bytes} bytes of memory, and the quota of resident_max_bytes is {most}"
    )]
    LargerThanPortion {
        /// Bytes it takes.
        bytes: usize,
        /// Bytes that the tenant may have in memory.
        most: usize,
    },
    /// Running requests of its tenant hold all of the tenant's quota.
    #[error(
        "requests of this tenant use all of its quota of {most} resident_max_bytes; try again later"
    )]
    PortionInUse {
        /// Bytes that the tenant may have in memory.
        most: usize,
    },
    /// It cannot be loaded.
    #[error("the adapter could not be loaded: {0}")]
    Failed(Arc<LoadError>),
}

impl NotLent {
    /// Its content, or its files, are not there any more.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Gone => true,
            Self::Failed(why) => matches!(**why, LoadError::Gone),
            _ => false,
        }
    }
}

impl Adapters {
    /// Lends the adapter of a tenant's revision, loading it if need be. Dropping the future gives up the place in the line.
    pub async fn lease(&self, tenant: TenantId, revision: &Revision) -> Result<Lease, NotLent> {
        let entry = self.shared.registry.entry(tenant, revision).ok_or(NotLent::Gone)?;
        let lease = self.hold(tenant, &entry).await?;
        let usage = entry.usage;
        usage.begin(unix_seconds());
        Ok(Lease::new(Arc::clone(lease.adapter()), move || {
            drop(lease);
            usage.end();
        }))
    }

    /// The same, and nothing is counted.
    pub(super) async fn hold(&self, tenant: TenantId, entry: &Entry) -> Result<Lease, NotLent> {
        let Entry { revision, content, bases, .. } = entry;
        if !bases.contains_key(&self.shared.base_sha256) {
            return Err(NotLent::OtherBase);
        }
        self.divide();
        let cache = &self.shared.cache;
        let want = Want { owner: tenant.into(), digest: revision.digest, bytes: content.memory() };
        let lent = match cache.lease(want).await {
            // Its record is from another version of chorus, or another base. What it takes here is known now.
            Err(NotLent::Failed(why)) if let LoadError::Memory { needed, .. } = *why => {
                content.set_memory(needed);
                cache.lease(Want { bytes: needed, ..want }).await
            }
            lent => lent,
        };
        let Loan { value, claim } = lent?;
        Ok(Lease::new(value, move || drop(claim)))
    }
}

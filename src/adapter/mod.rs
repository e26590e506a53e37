//! An adapter's life off the device: names and their versions, the folder it comes from, the cache it is lent from.
//!
//! A request asks for a [`Wanted`] and is pinned to a [`Revision`] at once; then it leases the adapter of that
//! revision's digest, which waits for a load or for room where it must. Whatever happens to the name meanwhile, the
//! lease stays what it is.
//!
//! This module knows no model: it is given the base's [`Base`]. It knows no HTTP either, and no message of a type that
//! a request may see ([`BadName`], [`NotLent`], [`LoadError`]) names a path of the server.

use std::{
    num::NonZeroUsize,
    path::PathBuf,
    sync::{Arc, Mutex as Lock},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::{
    runtime::Handle,
    sync::{Mutex, Semaphore},
};

pub use self::{
    audit::Changed,
    canary::{Canary, Lot},
    card::{Card, Version},
    census::Census,
    changes::{Expected, FileBytes, NotChanged, Target},
    check::{Smoke, Trial, Unfit, Unproved},
    files::BadFile,
    folder::{Facts, Folder, Found, Refused, Rules, ScanError, Unusable},
    lend::NotLent,
    load::LoadError,
    local::{LoraRoot, NotTaken},
    name::{AdapterName, BadName},
    put::{Kept, Room, Terms},
    revision::{Revision, Wanted},
    stats::{CacheStats, Histogram},
    stock::{Copied, Depth, Fault, Flaw, Inventory, copy, inspect},
    upload::{Part, Unreceived, Upload},
};
use self::{
    cache::Cache,
    line::Bounds,
    missing::Missing,
    pins::Pins,
    record::Record,
    registry::{Registry, State},
    shelf::Shelf,
    upload::Spool,
};
pub use crate::lora::{Adapter, Defaults, Digest, Extras, Lease, NotMixable, SmokeTest, ranges};
use crate::{
    lora::{Base, Limits, Matrices},
    store::{Log, Outdated, Store, StoreError},
    tenant::{TenantId, Tenants},
};

mod aside;
mod audit;
mod cache;
mod canary;
mod card;
mod census;
mod changes;
mod check;
mod files;
mod folder;
mod lend;
mod line;
mod load;
mod local;
mod missing;
mod name;
mod pins;
mod portions;
mod put;
mod record;
mod registry;
mod revision;
mod shelf;
mod stats;
mod stock;
mod upkeep;
mod upload;

#[cfg(test)]
mod fixture;

/// The log that adapters' records are in.
const LOG: &str = "adapters";

/// The bounds of the host cache and of uploads.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bytes of memory for loaded adapters, those being loaded included.
    pub budget: usize,
    /// Requests that may wait at once, for a load or for room; 0 refuses whatever is not in memory.
    pub max_waiting: usize,
    /// How long a request waits at most.
    pub time_out: Duration,
    /// Adapters that are loaded at once; each load holds its files in memory beside the budget.
    pub loaders: NonZeroUsize,
    /// How large an adapter that is uploaded may be.
    pub limits: Limits,
    /// How their matrices are kept in memory, those of uploads that are tried included.
    pub matrices: Matrices,
    /// Where uploads wait until they are checked.
    pub spool: PathBuf,
    /// How long what other servers have written to the store may go unseen.
    pub refresh: Duration,
}

/// The base that adapters are built for.
#[derive(Clone, Debug)]
pub struct Foundation {
    /// What they ask of it.
    pub base: Arc<dyn Base>,
    /// Its sha256 in hexadecimal: an adapter is served on bases it was checked against.
    pub sha256: String,
}

/// All adapters of all tenants. Clones share everything.
#[derive(Clone, Debug)]
pub struct Adapters {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    registry: Arc<Registry>,
    /// Knows how much memory each tenant may have.
    tenants: Tenants,
    /// The edition of the quotas that the cache goes by.
    divided: Lock<u64>,
    cache: Cache<Shelf>,
    budget: usize,
    base: Arc<dyn Base>,
    base_sha256: String,
    limits: Limits,
    matrices: Matrices,
    folder: Arc<Folder>,
    store: Store,
    /// Held while a change is decided and written, so that changes made here do not overtake each other.
    log: Mutex<Log<Record>>,
    outdated: Outdated,
    spool: Spool,
    /// Who may try an adapter.
    trials: Arc<Semaphore>,
    pins: Pins,
    missing: Missing,
}

/// A name cannot be looked up: it is not known here, and the store, which may know it, does not answer.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the store of adapters cannot be reached: {0}")]
pub struct Unreachable(pub StoreError);

impl Adapters {
    /// Serves what the store has to the tenants whose it is, and the adapters of a folder to the default tenant, each as
    /// version 1.
    ///
    /// From then on what other servers write to the store is taken in, until the last handle is gone.
    ///
    /// # Panics
    /// Outside of a Tokio runtime: loads end on the one that this is called in.
    pub async fn open(
        folder: Folder,
        Foundation { base, sha256 }: Foundation,
        (store, tenants): (Store, Tenants),
        settings: Settings,
    ) -> Result<Self, StoreError> {
        let registry = Arc::new(Registry::new(settings.matrices));
        let (log, entries) = Log::<Record>::open(&store, LOG).await?;
        for entry in entries {
            registry.apply(&entry.record);
        }
        for Found { name, created, facts } in folder.adapters() {
            let (memory, budget) = (facts.memory.of(settings.matrices), settings.budget);
            if !registry.add_from_folder(name, *created, facts, &sha256) {
                tracing::warn!(%name, "the store has an adapter of this name, and the folder's is not active");
            }
            if memory > budget {
                tracing::warn!(%name, memory, budget, "an adapter is larger than the adapter budget");
            }
        }
        let bounds = Bounds {
            budget: settings.budget,
            waiting: settings.max_waiting,
            loads: settings.loaders,
        };
        let folder = Arc::new(folder);
        let shelf = Shelf {
            folder: Arc::clone(&folder),
            base: Arc::clone(&base),
            limits: settings.limits,
            matrices: settings.matrices,
            registry: Arc::clone(&registry),
            store: store.clone(),
            runtime: Handle::current(),
        };
        let shared = Arc::new(Shared {
            registry,
            tenants,
            divided: Lock::default(),
            budget: settings.budget,
            base,
            base_sha256: sha256,
            limits: settings.limits,
            matrices: settings.matrices,
            folder,
            store,
            log: Mutex::new(log),
            outdated: Outdated::default(),
            spool: Spool { folder: settings.spool.clone(), max_weights: settings.limits.max_bytes },
            trials: Arc::new(Semaphore::new(1)),
            pins: Pins::default(),
            missing: Missing::new(),
            cache: Cache::new(shelf, bounds, settings.time_out),
        });
        let changed = Arc::clone(&shared.pins.wake);
        // Each by itself: a pin may wait long for its memory, and a sweep for the store.
        tokio::spawn(upkeep::refresh(Arc::downgrade(&shared), settings.refresh));
        tokio::spawn(upkeep::hold_pins(Arc::downgrade(&shared), changed, settings.refresh));
        tokio::spawn(upkeep::sweep(Arc::downgrade(&shared)));
        Ok(Self { shared })
    }

    /// Pins what a request asks for. `None` for what does not exist and for what is another tenant's alike. With a lot a
    /// name means its canary's version where that draws it.
    pub fn resolve(
        &self,
        tenant: TenantId,
        wanted: &Wanted,
        lot: Option<&Lot>,
    ) -> Option<Revision> {
        self.shared.registry.resolve(tenant, wanted, lot)
    }

    /// Asks the store for a name that is not known here, within bounds: another server may have taken it in a moment ago.
    /// Returns whether it was worth looking again.
    pub async fn seek(&self, tenant: TenantId, name: &AdapterName) -> Result<bool, Unreachable> {
        if !self.shared.missing.may_ask(tenant, name, Instant::now()) {
            return Ok(false);
        }
        self.refresh().await.map_err(Unreachable)?;
        Ok(true)
    }

    /// What the adapter of a revision brings besides weights; nothing where its content is gone.
    pub fn extras(&self, revision: &Revision) -> Arc<Extras> {
        let content = self.shared.registry.content(revision.digest);
        content.map(|content| Arc::clone(&content.facts.extras)).unwrap_or_default()
    }

    /// How the cache is doing.
    pub fn stats(&self) -> CacheStats {
        let (standing, load_seconds) = self.shared.cache.stats();
        let (known, known_bytes) = self.shared.registry.with(State::extent);
        CacheStats {
            budget: self.shared.budget,
            resident_bytes: standing.resident_bytes,
            loading_bytes: standing.loading_bytes,
            resident: standing.resident,
            leased: standing.leased,
            known,
            known_bytes,
            loading: standing.loading,
            waiting: standing.waiting,
            hits: standing.counts.hits,
            misses: standing.counts.misses,
            loads: standing.counts.loads,
            reloads: standing.counts.reloads,
            load_failures: standing.counts.failures,
            evictions: standing.counts.evictions,
            load_seconds,
        }
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;

//! An adapter's life off the device: names and their versions, the folder it comes from, the cache it is lent from.
//!
//! A request asks for a [`Wanted`] and is pinned to a [`Revision`] at once; then it leases the adapter of that
//! revision's digest, which waits for a load or for room where it must. Whatever happens to the name meanwhile, the
//! lease stays what it is.
//!
//! This module knows no model: it is given the base's [`Base`]. It knows no HTTP either, and no message of a type that
//! a request may see ([`BadName`], [`NotLent`], [`LoadError`]) names a path of the server.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use self::{
    cache::{Cache, Loan},
    folder::Shelf,
    registry::{Entry, Registry},
};
pub use self::{
    files::BadFile,
    folder::{Facts, Folder, Found, Refused, Rules, ScanError, Unusable},
    load::LoadError,
    name::{AdapterName, BadName},
    revision::{Revision, Wanted},
    stats::{CacheStats, Histogram},
};
pub use crate::lora::Lease;
use crate::{lora::Base, tenant::TenantId};

mod cache;
mod files;
mod folder;
mod line;
mod load;
mod name;
mod registry;
mod revision;
mod stats;

#[cfg(test)]
mod fixture;

/// The bounds of the host cache.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Bytes of memory for loaded adapters, those being loaded included.
    pub budget: usize,
    /// Requests that may wait at once, for a load or for room; 0 refuses whatever is not in memory.
    pub max_waiting: usize,
    /// How long a request waits at most.
    pub time_out: Duration,
    /// Adapters that are loaded at once; each load holds its files in memory beside the budget.
    pub loaders: NonZeroUsize,
}

/// All adapters of all tenants. Clones share everything.
#[derive(Clone, Debug)]
pub struct Adapters {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    registry: Registry,
    cache: Cache<Shelf>,
    budget: usize,
}

/// What a tenant is told about one of its adapters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// The active version.
    pub revision: Revision,
    /// Bytes of its two files.
    pub bytes: u64,
    /// Its largest rank.
    pub rank: usize,
    /// What it changes in the base.
    pub targets: Vec<String>,
    /// When it was made, in unix seconds.
    pub created: u64,
    /// It is in memory.
    pub resident: bool,
    /// Requests that hold it now.
    pub leases: usize,
    /// Requests that it was lent to since the start.
    pub hits: u64,
}

/// Why no adapter was lent.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotLent {
    /// The revision's content is not known any more.
    #[error("the adapter is gone")]
    Gone,
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
    /// It cannot be loaded.
    #[error("the adapter could not be loaded: {0}")]
    Failed(Arc<LoadError>),
}

impl Adapters {
    /// Serves the adapters of a folder to the default tenant, each as version 1.
    ///
    /// # Panics
    /// Outside of a Tokio runtime: loads end on the one that this is called in.
    pub fn open(folder: Folder, base: Arc<dyn Base>, settings: Settings) -> Self {
        let registry = Registry::default();
        for found in folder.adapters() {
            registry.publish(TenantId::DEFAULT, &found.name, found.created, &found.facts);
            let (memory, budget) = (found.facts.memory, settings.budget);
            if memory > budget {
                let name = found.name.as_str();
                tracing::warn!(
                    name,
                    memory,
                    budget,
                    "an adapter is larger than the adapter budget"
                );
            }
        }
        let cache = Cache::new(Shelf { folder, base }, settings);
        Self { shared: Arc::new(Shared { registry, cache, budget: settings.budget }) }
    }

    /// Pins what a request asks for. `None` for what does not exist and for what is another tenant's alike.
    pub fn resolve(&self, tenant: TenantId, wanted: &Wanted) -> Option<Revision> {
        self.shared.registry.resolve(tenant, wanted)
    }

    /// Lends the adapter of a revision, loading it if need be. Dropping the future gives up the place in the line.
    pub async fn lease(&self, revision: &Revision) -> Result<Lease, NotLent> {
        let content = self.shared.registry.content(revision.digest).ok_or(NotLent::Gone)?;
        let Loan { value, claim } =
            self.shared.cache.lease(revision.digest, content.facts.memory).await?;
        content.count_lease();
        Ok(Lease::new(value, move || drop(claim)))
    }

    /// A tenant's adapters, by name.
    pub fn list(&self, tenant: TenantId) -> Vec<Card> {
        self.shared.registry.list(tenant).into_iter().map(|entry| self.describe(entry)).collect()
    }

    /// One of a tenant's adapters.
    pub fn card(&self, tenant: TenantId, name: &AdapterName) -> Option<Card> {
        self.shared.registry.active(tenant, name).map(|entry| self.describe(entry))
    }

    /// How the cache is doing.
    pub fn stats(&self) -> CacheStats {
        let (standing, load_seconds) = self.shared.cache.stats();
        CacheStats {
            budget: self.shared.budget,
            resident_bytes: standing.resident_bytes,
            loading_bytes: standing.loading_bytes,
            resident: standing.resident,
            leased: standing.leased,
            loading: standing.loading,
            waiting: standing.waiting,
            hits: standing.counts.hits,
            misses: standing.counts.misses,
            loads: standing.counts.loads,
            load_failures: standing.counts.failures,
            evictions: standing.counts.evictions,
            load_seconds,
        }
    }

    fn describe(&self, entry: Entry) -> Card {
        let leases = self.shared.cache.leases(&entry.revision.digest);
        let facts = &entry.content.facts;
        Card {
            bytes: facts.bytes,
            rank: facts.rank,
            targets: facts.targets.clone(),
            created: entry.created,
            resident: leases.is_some(),
            leases: leases.unwrap_or(0),
            hits: entry.content.lent(),
            revision: entry.revision,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tempfile::TempDir;

    use super::{fixture, *};

    const ME: TenantId = TenantId::DEFAULT;

    fn open(root: &Path, budget: usize) -> Adapters {
        let settings = Settings {
            budget,
            max_waiting: 16,
            time_out: Duration::from_mins(1),
            loaders: NonZeroUsize::MIN,
        };
        Adapters::open(fixture::scan(root).unwrap(), Arc::new(fixture::base()), settings)
    }

    /// Two adapters of different sizes, and the memory that each takes.
    fn world() -> (TempDir, [usize; 2]) {
        let root = TempDir::new().unwrap();
        fixture::write(&root.path().join("pirate"), 2, 0.5);
        fixture::write(&root.path().join("sql"), 4, 0.5);
        let folder = fixture::scan(root.path()).unwrap();
        let memory = [0, 1].map(|at| folder.adapters()[at].facts.memory);
        (root, memory)
    }

    fn pin(adapters: &Adapters, wanted: &str) -> Revision {
        adapters.resolve(ME, &Wanted::parse(wanted).unwrap()).expect("the adapter exists")
    }

    #[tokio::test]
    async fn a_folder_is_served_to_the_default_tenant_as_version_one() {
        let (root, [pirate, sql]) = world();
        let adapters = open(root.path(), pirate + sql);
        let revision = pin(&adapters, "sql");
        assert_eq!(revision.version, 1);
        assert_eq!(pin(&adapters, "sql@v1"), revision);
        assert_eq!(pin(&adapters, &format!("sql@sha256:{}", revision.digest)), revision);
        let wanted = Wanted::parse("sql").unwrap();
        assert_eq!(adapters.resolve(TenantId::OTHER, &wanted), None);
        assert!(adapters.list(TenantId::OTHER).is_empty());

        let lease = adapters.lease(&revision).await.unwrap();
        assert_eq!(lease.digest(), revision.digest);
        assert_eq!(lease.bytes(), sql);
        let cards = adapters.list(ME);
        assert_eq!(
            cards.iter().map(|c| c.revision.name.as_str()).collect::<Vec<_>>(),
            ["pirate", "sql"]
        );
        assert!(!cards[0].resident);
        assert!(cards[1].resident);
        assert_eq!((cards[1].leases, cards[1].hits, cards[1].rank), (1, 1, 4));
        assert_eq!(adapters.card(ME, &revision.name), Some(cards[1].clone()));
        drop(lease);
        let card = adapters.card(ME, &revision.name).unwrap();
        assert_eq!((card.leases, card.hits), (0, 1));
    }

    #[tokio::test]
    async fn the_metrics_agree_with_what_happened() {
        let (root, [pirate, sql]) = world();
        let adapters = open(root.path(), sql);
        for (name, bytes) in [("pirate", pirate), ("pirate", pirate), ("sql", sql)] {
            drop(adapters.lease(&pin(&adapters, name)).await.unwrap());
            assert_eq!(adapters.stats().resident_bytes, bytes);
        }
        let stats = adapters.stats();
        assert_eq!((stats.hits, stats.misses, stats.loads, stats.evictions), (1, 2, 2, 1));
        assert_eq!((stats.budget, stats.resident, stats.leased), (sql, 1, 0));
        assert_eq!((stats.loading, stats.loading_bytes, stats.waiting), (0, 0, 0));
        assert_eq!((stats.load_seconds.count(), stats.load_failures), (2, 0));
    }

    #[tokio::test]
    async fn refusals_say_why_and_name_no_path() {
        let (root, [pirate, sql]) = world();
        let adapters = open(root.path(), sql - 1);
        let large = adapters.lease(&pin(&adapters, "sql")).await.unwrap_err();
        assert!(large.to_string().contains(&format!("{sql} bytes")), "{large}");

        let revision = pin(&adapters, "pirate");
        std::fs::remove_dir_all(root.path().join("pirate")).unwrap();
        let failed = adapters.lease(&revision).await.unwrap_err().to_string();
        assert!(failed.contains("adapter_config.json is missing"), "{failed}");
        assert!(!failed.contains(root.path().to_str().unwrap()), "{failed}");
        assert_eq!(adapters.stats().load_failures, 1);

        let unknown = Revision { digest: crate::lora::Digest::of(b"", b""), ..revision };
        assert!(matches!(adapters.lease(&unknown).await, Err(NotLent::Gone)));
        assert_eq!(adapters.stats().resident_bytes, 0, "{pirate} bytes were reserved");
    }
}

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
    census::Census,
    changes::{Expected, FileBytes, NotChanged, Target},
    check::{Smoke, Trial, Unfit, Unproved},
    files::BadFile,
    folder::{Facts, Folder, Found, Refused, Rules, ScanError, Unusable},
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
    cache::{Cache, Loan},
    line::{Bounds, Want},
    missing::Missing,
    pins::Pins,
    record::Record,
    registry::{Entry, Registry, State},
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
mod census;
mod changes;
mod check;
mod files;
mod folder;
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

/// A name cannot be looked up: it is not known here, and the store, which may know it, does not answer.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the store of adapters cannot be reached: {0}")]
pub struct Unreachable(pub StoreError);

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
    async fn hold(&self, tenant: TenantId, entry: &Entry) -> Result<Lease, NotLent> {
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

    /// What the adapter of a revision brings besides weights; nothing where its content is gone.
    pub fn extras(&self, revision: &Revision) -> Arc<Extras> {
        let content = self.shared.registry.content(revision.digest);
        content.map(|content| Arc::clone(&content.facts.extras)).unwrap_or_default()
    }

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

    fn describe(&self, tenant: TenantId, entry: Entry) -> Card {
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

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tempfile::TempDir;

    use super::{fixture, *};

    const ME: TenantId = TenantId::DEFAULT;

    async fn open(root: &Path, budget: usize) -> Adapters {
        fixture::open(fixture::scan(root).unwrap(), Store::faulty().0, budget).await
    }

    /// Two adapters of different sizes, and the memory that each takes.
    fn world() -> (TempDir, [usize; 2]) {
        let root = TempDir::new().unwrap();
        fixture::write(&root.path().join("pirate"), 2, 0.5);
        fixture::write(&root.path().join("sql"), 4, 0.5);
        let folder = fixture::scan(root.path()).unwrap();
        let memory = [0, 1].map(|at| folder.adapters()[at].facts.memory.native);
        (root, memory)
    }

    fn pin(adapters: &Adapters, wanted: &str) -> Revision {
        adapters.resolve(ME, &Wanted::parse(wanted).unwrap(), None).expect("the adapter exists")
    }

    #[tokio::test]
    async fn a_folder_is_served_to_the_default_tenant_as_version_one() {
        let (root, [pirate, sql]) = world();
        let adapters = open(root.path(), pirate + sql).await;
        let revision = pin(&adapters, "sql");
        assert_eq!(revision.version, 1);
        assert_eq!(pin(&adapters, "sql@v1"), revision);
        assert_eq!(pin(&adapters, &format!("sql@sha256:{}", revision.digest)), revision);
        let wanted = Wanted::parse("sql").unwrap();
        assert_eq!(adapters.resolve(TenantId::OTHER, &wanted, None), None);
        assert!(adapters.list(TenantId::OTHER).is_empty());

        let lease = adapters.lease(ME, &revision).await.unwrap();
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
    async fn more_adapters_fit_where_they_are_kept_in_eight_bits() {
        let (root, [pirate, sql]) = world();
        let folder = fixture::scan(root.path()).unwrap();
        let int8 = [0, 1].map(|at| folder.adapters()[at].facts.memory.int8);
        assert!(int8[0] < pirate && int8[1] < sql, "{int8:?} of {pirate} and {sql}");
        let (store, budget) = (Store::faulty().0, int8[0] + int8[1]);
        let adapters = fixture::open_as(Matrices::Int8, folder, store, budget).await;
        for (name, bytes) in ["pirate", "sql"].into_iter().zip(int8) {
            let lease = adapters.lease(ME, &pin(&adapters, name)).await.unwrap();
            assert_eq!(lease.bytes(), bytes, "{name} is as large as was forecast");
        }
        let stats = adapters.stats();
        assert_eq!((stats.resident, stats.resident_bytes, stats.evictions), (2, budget, 0));
        assert_eq!(stats.load_failures, 0);
    }

    #[tokio::test]
    async fn the_metrics_agree_with_what_happened() {
        let (root, [pirate, sql]) = world();
        let adapters = open(root.path(), sql).await;
        for (name, bytes) in [("pirate", pirate), ("pirate", pirate), ("sql", sql)] {
            drop(adapters.lease(ME, &pin(&adapters, name)).await.unwrap());
            assert_eq!(adapters.stats().resident_bytes, bytes);
        }
        let stats = adapters.stats();
        assert_eq!((stats.hits, stats.misses, stats.loads, stats.evictions), (1, 2, 2, 1));
        assert_eq!((stats.budget, stats.resident, stats.leased), (sql, 1, 0));
        assert_eq!((stats.loading, stats.loading_bytes, stats.waiting), (0, 0, 0));
        assert_eq!((stats.load_seconds.count(), stats.load_failures), (2, 0));
    }

    #[tokio::test]
    async fn a_census_has_what_is_in_memory_under_the_names_that_requests_use() {
        let (root, [pirate, sql]) = world();
        let adapters = open(root.path(), 2 * sql + pirate).await;
        let empty = adapters.census();
        let mean = usize::midpoint(pirate, sql);
        assert_eq!((empty.resident.len(), empty.room), (0, (2 * sql + pirate) / mean));
        let revision = pin(&adapters, "sql");
        drop(adapters.lease(ME, &revision).await.unwrap());
        let held = adapters.lease(ME, &pin(&adapters, "pirate")).await.unwrap();
        let census = adapters.census();
        assert_eq!(census.resident, [held.digest(), revision.digest], "what is lent comes first");
        assert_eq!((census.awaited.len(), census.room), (0, 2 + sql / mean));
        let ids = adapters.ids(&census.resident);
        assert_eq!(ids[&revision.digest].iter().collect::<Vec<_>>(), ["sql"]);
        assert_eq!(ids.len(), 2);
        assert!(adapters.ids(&[]).is_empty());
    }

    #[tokio::test]
    async fn refusals_say_why_and_name_no_path() {
        let (root, [pirate, sql]) = world();
        let adapters = open(root.path(), sql - 1).await;
        let large = adapters.lease(ME, &pin(&adapters, "sql")).await.unwrap_err();
        assert!(large.to_string().contains(&format!("{sql} bytes")), "{large}");

        let revision = pin(&adapters, "pirate");
        std::fs::remove_dir_all(root.path().join("pirate")).unwrap();
        let failed = adapters.lease(ME, &revision).await.unwrap_err().to_string();
        assert!(failed.contains("adapter_config.json is missing"), "{failed}");
        assert!(!failed.contains(root.path().to_str().unwrap()), "{failed}");
        assert_eq!(adapters.stats().load_failures, 1);

        let unknown = Revision { digest: Digest::of(b"", b""), ..revision };
        assert!(matches!(adapters.lease(ME, &unknown).await, Err(NotLent::Gone)));
        assert_eq!(adapters.stats().resident_bytes, 0, "{pirate} bytes were reserved");
    }
}

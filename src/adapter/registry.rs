//! Which adapters there are, for whom, and what each name points to: the fold of the records, over what a folder has.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{
        Arc, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use super::{
    AdapterName, Canary, Facts, Lot, Revision, Smoke, Wanted,
    record::{Blob, Change, Record, Stored},
};
use crate::{
    lora::{Digest, Matrices},
    store::BlobKey,
    tenant::TenantId,
};

/// Names and their histories.
///
/// Every look-up takes the tenant and sees that tenant's names only, but for what the operator is shown of all. The lock is held for a look-up or one change,
/// never while a file is read or anything is awaited.
#[derive(Debug, Default)]
pub(super) struct Registry(RwLock<State>);

/// What the records come to.
#[derive(Debug, Default)]
pub(super) struct State {
    names: BTreeMap<TenantId, BTreeMap<AdapterName, History>>,
    /// Content is shared by all versions that have it, whosever they are.
    contents: HashMap<Digest, Held>,
    /// Files in the store, and how many versions refer to each.
    blobs: BTreeMap<Blob, usize>,
    /// How this server keeps matrices.
    matrices: Matrices,
}

/// What one name has pointed to.
#[derive(Debug, Default)]
pub(super) struct History {
    /// By number; empty where all are gone.
    versions: BTreeMap<u32, Version>,
    /// What the name points to; not always one of `versions`.
    active: Option<u32>,
    /// The greatest number that there ever was.
    last: u32,
    pinned: bool,
    canary: Option<Canary>,
    /// Version 1 was removed: what the folder has under the name does not come back.
    without_first: bool,
}

#[derive(Clone, Debug)]
struct Version {
    created: u64,
    content: Arc<Content>,
    /// The bases it was checked against. They are the version's and not the content's: what somebody else has tried the
    /// same bytes on is nobody's business.
    bases: Bases,
    usage: Arc<Usage>,
    /// `None` where it comes from the folder.
    files: Option<Files>,
}

/// Bases by their sha256, and how a version's smoke test went on each, where it has one and that was noted.
pub(super) type Bases = BTreeMap<String, Option<Smoke>>;

/// What a version was used for since the start. It is the version's and not the content's: who else has the same bytes,
/// and uses them, is nobody's business.
#[derive(Debug, Default)]
pub(super) struct Usage {
    lent: AtomicU64,
    /// Unix seconds; 0 before the first time.
    last: AtomicU64,
    live: AtomicUsize,
}

impl Usage {
    /// Counts a lease that begins at this time, in unix seconds.
    pub(super) fn begin(&self, now: u64) {
        self.lent.fetch_add(1, Ordering::Relaxed);
        self.last.store(now, Ordering::Relaxed);
        self.live.fetch_add(1, Ordering::Relaxed);
    }

    /// A lease has ended.
    pub(super) fn end(&self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }

    /// Leases counted.
    pub(super) fn lent(&self) -> u64 {
        self.lent.load(Ordering::Relaxed)
    }

    /// When the last one began, in unix seconds.
    pub(super) fn last(&self) -> Option<u64> {
        Some(self.last.load(Ordering::Relaxed)).filter(|at| *at > 0)
    }

    /// Leases that have not ended.
    pub(super) fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }
}

/// Both files of a version in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Files {
    pub(super) config: Blob,
    pub(super) weights: Blob,
}

/// A content and where it can be read.
#[derive(Debug)]
struct Held {
    content: Arc<Content>,
    /// One for each version in the store that has it.
    files: Vec<Files>,
    /// The folder has it.
    in_folder: bool,
}

/// An adapter without its names.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) facts: Facts,
    /// Bytes of memory it takes: those of the facts, until a load has shown others.
    memory: AtomicUsize,
}

impl Content {
    fn new(facts: Facts, matrices: Matrices) -> Self {
        let memory = AtomicUsize::new(facts.memory.of(matrices));
        Self { facts, memory }
    }

    /// Bytes of memory it takes when it is loaded.
    pub(super) fn memory(&self) -> usize {
        self.memory.load(Ordering::Relaxed)
    }

    /// A load has shown what it takes.
    pub(super) fn set_memory(&self, bytes: usize) {
        self.memory.store(bytes, Ordering::Relaxed);
    }
}

/// One version of a name.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) revision: Revision,
    /// In unix seconds.
    pub(super) created: u64,
    pub(super) content: Arc<Content>,
    /// What it was checked against.
    pub(super) bases: Bases,
    pub(super) usage: Arc<Usage>,
    pub(super) active: bool,
    pub(super) pinned: bool,
    /// Where its files are; `None` for the folder.
    pub(super) files: Option<Files>,
    /// The name's.
    pub(super) canary: Option<Canary>,
}

/// What a change leaves behind.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Released {
    /// Contents that no version has any more.
    pub(super) contents: Vec<Digest>,
    /// Files that no version refers to any more.
    pub(super) blobs: Vec<BlobKey>,
}

/// Why the lock is never poisoned.
const NO_PANIC: &str = "no look-up or change panics";

impl Registry {
    /// Empty, on a server that keeps matrices so.
    pub(super) fn new(matrices: Matrices) -> Self {
        Self(RwLock::new(State { matrices, ..State::default() }))
    }

    /// Looks at all of it.
    pub(super) fn with<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.0.read().expect(NO_PANIC))
    }

    /// Adds what the folder has under a name as version 1, checked against `base`, unless the records have a version 1, or
    /// have removed it. It is active unless the records say otherwise. Returns whether it is.
    ///
    /// It makes no difference whether records come before or after.
    pub(super) fn add_from_folder(
        &self,
        name: &AdapterName,
        created: u64,
        facts: &Facts,
        base: &str,
    ) -> bool {
        let mut state = self.0.write().expect(NO_PANIC);
        let state = &mut *state;
        let names = state.names.entry(TenantId::DEFAULT).or_default();
        let history = names.entry(name.clone()).or_default();
        if history.without_first || history.versions.contains_key(&1) {
            return false;
        }
        let held = || Held::new(facts.clone(), state.matrices);
        let held = state.contents.entry(facts.digest).or_insert_with(held);
        held.in_folder = true;
        let (content, usage) = (Arc::clone(&held.content), Arc::default());
        let bases = Bases::from([(base.to_owned(), None)]);
        let version = Version { created, content, bases, usage, files: None };
        history.versions.insert(1, version);
        history.last = history.last.max(1);
        *history.active.get_or_insert(1) == 1
    }

    /// Takes in the next record.
    pub(super) fn apply(&self, record: &Record) -> Released {
        self.0.write().expect(NO_PANIC).apply(record)
    }

    /// Pins what a request asks for. `None` for what does not exist and for what is another tenant's alike. With a lot
    /// the canary has its share.
    pub(super) fn resolve(
        &self,
        tenant: TenantId,
        wanted: &Wanted,
        lot: Option<&Lot>,
    ) -> Option<Revision> {
        self.with(|state| {
            let history = state.history(tenant, wanted.name())?;
            let number = match wanted {
                Wanted::Active(name) => {
                    let drawn = |canary: &Canary| lot.is_some_and(|it| canary.draws(name, it));
                    let canary = history.canary().filter(drawn);
                    canary.map_or(history.active?, |canary| canary.version)
                }
                Wanted::Version(_, number) => *number,
                Wanted::Digest(_, digest) => history.version_of(*digest)?,
            };
            Some(history.entry(wanted.name(), number)?.revision)
        })
    }

    /// The content of this digest, if any version has it.
    pub(super) fn content(&self, digest: Digest) -> Option<Arc<Content>> {
        self.with(|state| state.contents.get(&digest).map(|held| Arc::clone(&held.content)))
    }

    /// The places in the store where this digest's files are.
    pub(super) fn files(&self, digest: Digest) -> Vec<Files> {
        self.with(|state| state.contents.get(&digest).map(|held| held.files.clone()))
            .unwrap_or_default()
    }

    /// What a tenant's name points to.
    pub(super) fn active(&self, tenant: TenantId, name: &AdapterName) -> Option<Entry> {
        self.with(|state| state.history(tenant, name)?.shown(name))
    }

    /// What each of a tenant's names points to, by name.
    pub(super) fn list(&self, tenant: TenantId) -> Vec<Entry> {
        self.with(|state| {
            let names = state.names.get(&tenant).into_iter().flatten();
            names.filter_map(|(name, history)| history.shown(name)).collect()
        })
    }

    /// All versions of a tenant's name, by number. Empty where there is no such name.
    pub(super) fn versions(&self, tenant: TenantId, name: &AdapterName) -> Vec<Entry> {
        self.with(|state| {
            let Some(history) = state.history(tenant, name) else { return Vec::new() };
            let numbers = history.versions.keys();
            numbers.filter_map(|number| history.entry(name, *number)).collect()
        })
    }

    /// A revision, if a tenant's name still has it.
    pub(super) fn entry(&self, tenant: TenantId, revision: &Revision) -> Option<Entry> {
        self.with(|state| {
            let history = state.history(tenant, &revision.name)?;
            let entry = history.entry(&revision.name, revision.version)?;
            (entry.revision.digest == revision.digest).then_some(entry)
        })
    }

    /// What is to be kept in memory, and for whom: the active versions of pinned names.
    pub(super) fn pinned(&self) -> Vec<(TenantId, Entry)> {
        self.with(|state| {
            let names = state.names.iter().flat_map(|(tenant, names)| {
                names.iter().map(|(name, history)| (*tenant, name, history))
            });
            let pinned = names.filter(|(_, _, history)| history.pinned);
            let entry = |(tenant, name, history): (TenantId, &AdapterName, &History)| {
                Some((tenant, history.entry(name, history.active?)?))
            };
            pinned.filter_map(entry).collect()
        })
    }
}

impl State {
    fn history(&self, tenant: TenantId, name: &AdapterName) -> Option<&History> {
        self.names.get(&tenant)?.get(name)
    }

    /// What a name points to, and what else is known of it; `None` where there is no such name.
    pub(super) fn look(&self, tenant: TenantId, name: &AdapterName) -> Option<&History> {
        self.history(tenant, name).filter(|history| !history.versions.is_empty())
    }

    /// How many of a tenant's names have something in the store, and the bytes of all that.
    pub(super) fn holdings(&self, tenant: TenantId) -> (usize, u64) {
        let (mut names, mut bytes) = (0, 0_u64);
        for (_, history) in self.names.get(&tenant).into_iter().flatten() {
            let stored = history.versions.values().filter(|version| version.files.is_some());
            let sizes: Vec<_> = stored.map(|version| version.content.facts.bytes).collect();
            names += usize::from(!sizes.is_empty());
            bytes = sizes.into_iter().fold(bytes, u64::saturating_add);
        }
        (names, bytes)
    }

    /// How many contents there are, and the bytes of their files.
    pub(super) fn extent(&self) -> (usize, u64) {
        let bytes = self.contents.values().map(|held| held.content.facts.bytes);
        (self.contents.len(), bytes.sum())
    }

    /// How many contents there are, and the memory that all would take.
    pub(super) fn memory(&self) -> (usize, usize) {
        let bytes = self.contents.values().map(|held| held.content.memory());
        (self.contents.len(), bytes.fold(0, usize::saturating_add))
    }

    /// What these contents are called by those whose they are.
    pub(super) fn ids(&self, contents: &BTreeSet<Digest>) -> HashMap<Digest, BTreeSet<String>> {
        let mut ids: HashMap<_, BTreeSet<_>> = HashMap::new();
        for (name, history) in self.names.values().flatten() {
            let of = |version: &Version| version.content.facts.digest;
            let active = history.active().map(|number| of(&history.versions[&number]));
            for (number, version) in &history.versions {
                let digest = of(version);
                if contents.contains(&digest) {
                    let is_active = active == Some(digest);
                    let id = if is_active { name.to_string() } else { format!("{name}@v{number}") };
                    ids.entry(digest).or_default().insert(id);
                }
            }
        }
        ids
    }

    /// The number that the name's next version gets: none that it ever had.
    pub(super) fn next_version(&self, tenant: TenantId, name: &AdapterName) -> u32 {
        self.history(tenant, name).map_or(0, |history| history.last).saturating_add(1)
    }

    /// All files in the store with this sha256 that versions refer to.
    pub(super) fn blobs_of(&self, sha256: [u8; 32]) -> impl Iterator<Item = &Blob> {
        let first = Blob { key: BlobKey::first_of(sha256), bytes: 0 };
        self.blobs.range(first..).map(|(blob, _)| blob).take_while(move |b| b.key.is_of(sha256))
    }

    /// Whether some version refers to it.
    pub(super) fn has_blob(&self, blob: &Blob) -> bool {
        self.blobs.contains_key(blob)
    }

    /// The keys of all files that versions refer to.
    pub(super) fn keys(&self) -> HashSet<BlobKey> {
        self.blobs.keys().map(|blob| blob.key.clone()).collect()
    }

    fn apply(&mut self, record: &Record) -> Released {
        let Record { at, tenant, name, change, .. } = record;
        let mut released = Released::default();
        let history = self.names.entry(*tenant).or_default().entry(name.clone()).or_default();
        match change {
            Change::Stored(stored) => {
                // Where another server had nothing in its folder, its first version is 1 too.
                let replaced = history.versions.remove(&stored.version);
                self.store(*tenant, name, at / 1000, stored);
                if let Some(version) = replaced {
                    self.release(&version, &mut released);
                }
            }
            Change::Activated { version } => {
                history.active = Some(*version);
                history.canary = None;
            }
            Change::Canary(canary) => history.canary = Some(*canary),
            Change::CanaryEnded => history.canary = None,
            Change::Pinned => history.pinned = true,
            Change::Unpinned => history.pinned = false,
            Change::Validated { version, base, smoke } => {
                if let Some(version) = history.versions.get_mut(version) {
                    version.bases.insert(base.clone(), smoke.clone());
                }
            }
            Change::Removed { version } => {
                let gone: Vec<Version> = match version {
                    Some(number) => history.versions.remove(number).into_iter().collect(),
                    None => std::mem::take(&mut history.versions).into_values().collect(),
                };
                // What the folder may have under the name comes later, or is not here at all: it makes no difference.
                if version.is_none_or(|number| number == 1) {
                    history.without_first = true;
                    history.last = history.last.max(1);
                }
                if version.is_none() {
                    history.active = None;
                    history.canary = None;
                    history.pinned = false;
                }
                for version in gone {
                    self.release(&version, &mut released);
                }
            }
        }
        released
    }

    fn store(&mut self, tenant: TenantId, name: &AdapterName, created: u64, stored: &Stored) {
        let Stored { version, digest, config, weights, .. } = stored;
        let history = self.names.entry(tenant).or_default().entry(name.clone()).or_default();
        history.last = history.last.max(*version);
        if stored.activate {
            history.active = Some(*version);
            history.canary = None;
        }
        let held = self.contents.entry(*digest).or_insert_with(|| {
            let facts = Facts {
                digest: *digest,
                bytes: config.bytes.saturating_add(weights.bytes),
                memory: stored.memory(),
                rank: stored.rank,
                targets: stored.targets.clone(),
                extras: Arc::new(stored.extras.clone()),
            };
            Held::new(facts, self.matrices)
        });
        let files = Files { config: config.clone(), weights: weights.clone() };
        held.files.push(files.clone());
        for blob in [config, weights] {
            *self.blobs.entry(blob.clone()).or_default() += 1;
        }
        let content = Arc::clone(&held.content);
        let usage = Arc::default();
        let bases = Bases::from([(stored.base.clone(), stored.smoke.clone())]);
        let made = Version { created, content, bases, usage, files: Some(files) };
        history.versions.insert(*version, made);
    }

    /// Takes back what a version that is gone referred to.
    fn release(&mut self, version: &Version, released: &mut Released) {
        let digest = version.content.facts.digest;
        if let Some(held) = self.contents.get_mut(&digest) {
            match &version.files {
                None => held.in_folder = false,
                Some(files) => {
                    if let Some(at) = held.files.iter().position(|held| held == files) {
                        held.files.swap_remove(at);
                    }
                }
            }
            // Copies in the folder under other names refer to the same content.
            let named = || {
                let versions = self.names.values().flatten().flat_map(|(_, h)| h.versions.values());
                versions.into_iter().any(|version| version.content.facts.digest == digest)
            };
            if held.files.is_empty() && !held.in_folder && !named() {
                self.contents.remove(&digest);
                released.contents.push(digest);
            }
        }
        for blob in version.files.iter().flat_map(|files| [&files.config, &files.weights]) {
            if let Some(count) = self.blobs.get_mut(blob) {
                *count -= 1;
                if *count == 0 {
                    self.blobs.remove(blob);
                    released.blobs.push(blob.key.clone());
                }
            }
        }
    }
}

impl Held {
    fn new(facts: Facts, matrices: Matrices) -> Self {
        let content = Arc::new(Content::new(facts, matrices));
        Self { content, files: Vec::new(), in_folder: false }
    }
}

impl History {
    /// The active version's number, where it is there.
    pub(super) fn active(&self) -> Option<u32> {
        self.active.filter(|active| self.versions.contains_key(active))
    }

    /// The canary, where its version is there and another one is active.
    pub(super) fn canary(&self) -> Option<Canary> {
        let active = self.active()?;
        self.canary.filter(|canary| {
            canary.version != active && self.versions.contains_key(&canary.version)
        })
    }

    /// Whether there is a version of this number.
    pub(super) fn has(&self, number: u32) -> bool {
        self.versions.contains_key(&number)
    }

    /// Whether the version of this number was checked against this base.
    pub(super) fn is_for(&self, number: u32, base: &str) -> bool {
        self.versions.get(&number).is_some_and(|version| version.bases.contains_key(base))
    }

    /// Whether a record that the version of this number was checked against this base, and that its smoke test went so,
    /// would say nothing new. Of a version in the folder no result is kept: records may come before the folder.
    pub(super) fn has_noted(&self, number: u32, base: &str, smoke: Option<&Smoke>) -> bool {
        let Some(version) = self.versions.get(&number) else { return false };
        let known = version.bases.get(base);
        known.is_some_and(|known| version.files.is_none() || known.as_ref() == smoke)
    }

    /// Whether it is to be kept in memory.
    pub(super) fn is_pinned(&self) -> bool {
        self.pinned
    }

    /// How many versions there are.
    pub(super) fn len(&self) -> usize {
        self.versions.len()
    }

    /// The number of the version that has this content.
    pub(super) fn version_of(&self, digest: Digest) -> Option<u32> {
        let has = |version: &Version| version.content.facts.digest == digest;
        self.versions.iter().find(|(_, version)| has(version)).map(|(number, _)| *number)
    }

    /// The same of those that the store has: the folder's may be gone with the folder.
    pub(super) fn stored_as(&self, digest: Digest) -> Option<u32> {
        let has =
            |version: &Version| version.files.is_some() && version.content.facts.digest == digest;
        self.versions.iter().find(|(_, version)| has(version)).map(|(number, _)| *number)
    }

    /// Whether the store has any version.
    pub(super) fn is_stored(&self) -> bool {
        self.versions.values().any(|version| version.files.is_some())
    }

    /// The active version, or where none is, the newest.
    fn shown(&self, name: &AdapterName) -> Option<Entry> {
        let newest = || self.versions.last_key_value().map(|(number, _)| *number);
        self.entry(name, self.active().or_else(newest)?)
    }

    fn entry(&self, name: &AdapterName, number: u32) -> Option<Entry> {
        let Version { created, content, bases, usage, files } = self.versions.get(&number)?.clone();
        let digest = content.facts.digest;
        let revision = Revision { name: name.clone(), version: number, digest };
        let (active, pinned) = (self.active == Some(number), self.pinned);
        let canary = self.canary();
        Some(Entry { revision, created, content, bases, usage, active, pinned, files, canary })
    }
}

#[cfg(test)]
mod tests;

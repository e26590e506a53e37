//! Which adapters there are, for whom, and what each name points to: the fold of the records, over what a folder has.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, RwLock},
};

use self::{content::Held, history::Version};
pub(super) use self::{
    content::{Content, Files, Usage},
    fold::Released,
    history::{Bases, History},
};
use super::{
    AdapterName, Canary, Facts, Lot, Revision, Wanted,
    record::{Blob, Record},
};
use crate::{
    lora::{Digest, Matrices},
    store::BlobKey,
    tenant::TenantId,
};

mod content;
mod fold;
mod history;

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
}

#[cfg(test)]
mod tests;

//! Which adapters there are, for whom, and what each name points to.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{AdapterName, Facts, Revision, Wanted};
use crate::{lora::Digest, tenant::TenantId};

/// Names and their histories.
///
/// Every look-up takes the tenant and sees that tenant's names only. The lock is held for a look-up or one change,
/// never while a file is read or anything is awaited.
#[derive(Debug, Default)]
pub(super) struct Registry(RwLock<State>);

#[derive(Debug, Default)]
struct State {
    names: BTreeMap<TenantId, BTreeMap<AdapterName, History>>,
    /// Content is shared by all versions that have it, whosever they are.
    contents: HashMap<Digest, Arc<Content>>,
}

/// What one name has pointed to.
#[derive(Debug)]
struct History {
    /// By version number, from 1; never empty.
    versions: BTreeMap<u32, Version>,
    /// A key of `versions`.
    active: u32,
}

#[derive(Clone, Debug)]
struct Version {
    created: u64,
    content: Arc<Content>,
}

/// An adapter without its names.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) facts: Facts,
    lent: AtomicU64,
}

impl Content {
    /// Counts a lease.
    pub(super) fn count_lease(&self) {
        self.lent.fetch_add(1, Ordering::Relaxed);
    }

    /// Leases counted since the start.
    pub(super) fn lent(&self) -> u64 {
        self.lent.load(Ordering::Relaxed)
    }
}

/// The active version of a name.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) revision: Revision,
    pub(super) created: u64,
    pub(super) content: Arc<Content>,
}

impl Registry {
    /// Makes `facts` the active version of a name, and returns its number: that of the version which has this content
    /// already, or the next.
    pub(super) fn publish(
        &self,
        tenant: TenantId,
        name: &AdapterName,
        created: u64,
        facts: &Facts,
    ) -> u32 {
        let mut state = self.0.write().expect(NO_PANIC);
        let state = &mut *state;
        let content = state
            .contents
            .entry(facts.digest)
            .or_insert_with(|| Arc::new(Content { facts: facts.clone(), lent: AtomicU64::new(0) }));
        let names = state.names.entry(tenant).or_default();
        let history = names
            .entry(name.clone())
            .or_insert_with(|| History { versions: BTreeMap::new(), active: 0 });
        history.active = history.version_of(facts.digest).unwrap_or_else(|| {
            let number = history.versions.last_key_value().map_or(1, |(last, _)| last + 1);
            let version = Version { created, content: Arc::clone(content) };
            history.versions.insert(number, version);
            number
        });
        history.active
    }

    /// Pins what a request asks for. `None` for what does not exist and for what is another tenant's alike.
    pub(super) fn resolve(&self, tenant: TenantId, wanted: &Wanted) -> Option<Revision> {
        let state = self.0.read().expect(NO_PANIC);
        let history = state.names.get(&tenant)?.get(wanted.name())?;
        let number = match wanted {
            Wanted::Active(_) => history.active,
            Wanted::Version(_, number) => *number,
            Wanted::Digest(_, digest) => history.version_of(*digest)?,
        };
        Some(history.entry(wanted.name(), number)?.revision)
    }

    /// The content of this digest, if any version has it.
    pub(super) fn content(&self, digest: Digest) -> Option<Arc<Content>> {
        self.0.read().expect(NO_PANIC).contents.get(&digest).map(Arc::clone)
    }

    /// What a tenant's name points to.
    pub(super) fn active(&self, tenant: TenantId, name: &AdapterName) -> Option<Entry> {
        let state = self.0.read().expect(NO_PANIC);
        let history = state.names.get(&tenant)?.get(name)?;
        history.entry(name, history.active)
    }

    /// What each of a tenant's names points to, by name.
    pub(super) fn list(&self, tenant: TenantId) -> Vec<Entry> {
        let state = self.0.read().expect(NO_PANIC);
        let names = state.names.get(&tenant).into_iter().flatten();
        names.filter_map(|(name, history)| history.entry(name, history.active)).collect()
    }
}

/// Why the lock is never poisoned.
const NO_PANIC: &str = "no look-up or change panics";

impl History {
    fn version_of(&self, digest: Digest) -> Option<u32> {
        let has = |version: &Version| version.content.facts.digest == digest;
        self.versions.iter().find(|(_, version)| has(version)).map(|(number, _)| *number)
    }

    fn entry(&self, name: &AdapterName, number: u32) -> Option<Entry> {
        let Version { created, content } = self.versions.get(&number)?.clone();
        let digest = content.facts.digest;
        let revision = Revision { name: name.clone(), version: number, digest };
        Some(Entry { revision, created, content })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: TenantId = TenantId::DEFAULT;
    const OTHER: TenantId = TenantId::OTHER;

    fn facts(content: &str) -> Facts {
        let digest = Digest::of(content.as_bytes(), b"");
        Facts { digest, bytes: 10, memory: 20, rank: 4, targets: vec!["q_proj".to_owned()] }
    }

    fn name(text: &str) -> AdapterName {
        AdapterName::parse(text).unwrap()
    }

    fn resolve(registry: &Registry, tenant: TenantId, wanted: &str) -> Option<(u32, Digest)> {
        let revision = registry.resolve(tenant, &Wanted::parse(wanted).unwrap())?;
        Some((revision.version, revision.digest))
    }

    #[test]
    fn a_name_points_to_its_newest_version_and_keeps_the_others() {
        let registry = Registry::default();
        let (one, two) = (facts("one"), facts("two"));
        assert_eq!(registry.publish(ME, &name("sql"), 7, &one), 1);
        assert_eq!(registry.publish(ME, &name("sql"), 8, &two), 2);
        assert_eq!(resolve(&registry, ME, "sql"), Some((2, two.digest)));
        assert_eq!(resolve(&registry, ME, "sql@v1"), Some((1, one.digest)));
        assert_eq!(resolve(&registry, ME, "sql@v3"), None);
        let by_digest = format!("sql@sha256:{}", one.digest);
        assert_eq!(resolve(&registry, ME, &by_digest), Some((1, one.digest)));
        let entry = registry.active(ME, &name("sql")).unwrap();
        assert_eq!((entry.revision.version, entry.created), (2, 8));
    }

    #[test]
    fn content_that_a_name_had_before_is_the_same_version_again() {
        let registry = Registry::default();
        registry.publish(ME, &name("sql"), 7, &facts("one"));
        registry.publish(ME, &name("sql"), 8, &facts("two"));
        assert_eq!(registry.publish(ME, &name("sql"), 9, &facts("one")), 1);
        assert_eq!(resolve(&registry, ME, "sql"), Some((1, facts("one").digest)));
        assert_eq!(registry.publish(ME, &name("sql"), 9, &facts("three")), 3);
    }

    #[test]
    fn a_digest_is_found_in_the_names_own_history_only() {
        let registry = Registry::default();
        registry.publish(ME, &name("sql"), 0, &facts("one"));
        registry.publish(ME, &name("pirate"), 0, &facts("two"));
        let foreign = format!("sql@sha256:{}", facts("two").digest);
        assert_eq!(resolve(&registry, ME, &foreign), None);
    }

    #[test]
    fn a_tenant_sees_its_own_names_only() {
        let registry = Registry::default();
        registry.publish(ME, &name("sql"), 0, &facts("mine"));
        registry.publish(OTHER, &name("sql"), 0, &facts("theirs"));
        registry.publish(OTHER, &name("secret"), 0, &facts("mine"));
        assert_eq!(resolve(&registry, ME, "sql"), Some((1, facts("mine").digest)));
        assert_eq!(resolve(&registry, OTHER, "sql"), Some((1, facts("theirs").digest)));
        assert_eq!(resolve(&registry, ME, "secret"), None);
        assert_eq!(resolve(&registry, ME, "secret@v1"), None);
        let theirs = format!("sql@sha256:{}", facts("theirs").digest);
        assert_eq!(resolve(&registry, ME, &theirs), None);
        let listed: Vec<_> = registry.list(ME).into_iter().map(|e| e.revision.name).collect();
        assert_eq!(listed, [name("sql")]);
        assert!(registry.active(ME, &name("secret")).is_none());
    }

    #[test]
    fn names_are_listed_in_order() {
        let registry = Registry::default();
        for text in ["sql", "Pirate", "german"] {
            registry.publish(ME, &name(text), 0, &facts(text));
        }
        let listed: Vec<_> =
            registry.list(ME).iter().map(|e| e.revision.name.to_string()).collect();
        assert_eq!(listed, ["Pirate", "german", "sql"]);
    }
}

//! The history of a name: its versions, and which of them it points to.

use std::{collections::BTreeMap, sync::Arc};

use super::{Content, Entry, Files, Usage};
use crate::{
    adapter::{AdapterName, Canary, Revision, Smoke},
    lora::Digest,
};

/// What one name has pointed to.
#[derive(Debug, Default)]
pub(in crate::adapter) struct History {
    /// By number; empty where all are gone.
    pub(super) versions: BTreeMap<u32, Version>,
    /// What the name points to; not always one of `versions`.
    pub(super) active: Option<u32>,
    /// The greatest number that there ever was.
    pub(super) last: u32,
    pub(super) pinned: bool,
    pub(super) canary: Option<Canary>,
    /// Version 1 was removed: what the folder has under the name does not come back.
    pub(super) without_first: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Version {
    pub(super) created: u64,
    pub(super) content: Arc<Content>,
    /// The bases it was checked against. They are the version's and not the content's: what somebody else has tried the
    /// same bytes on is nobody's business.
    pub(super) bases: Bases,
    pub(super) usage: Arc<Usage>,
    /// `None` where it comes from the folder.
    pub(super) files: Option<Files>,
}

/// Bases by their sha256, and how a version's smoke test went on each, where it has one and that was noted.
pub(in crate::adapter) type Bases = BTreeMap<String, Option<Smoke>>;

impl History {
    /// The active version's number, where it is there.
    pub(in crate::adapter) fn active(&self) -> Option<u32> {
        self.active.filter(|active| self.versions.contains_key(active))
    }

    /// The canary, where its version is there and another one is active.
    pub(in crate::adapter) fn canary(&self) -> Option<Canary> {
        let active = self.active()?;
        self.canary.filter(|canary| {
            canary.version != active && self.versions.contains_key(&canary.version)
        })
    }

    /// Whether there is a version of this number.
    pub(in crate::adapter) fn has(&self, number: u32) -> bool {
        self.versions.contains_key(&number)
    }

    /// Whether the version of this number was checked against this base.
    pub(in crate::adapter) fn is_for(&self, number: u32, base: &str) -> bool {
        self.versions.get(&number).is_some_and(|version| version.bases.contains_key(base))
    }

    /// Whether a record that the version of this number was checked against this base, and that its smoke test went so,
    /// would say nothing new. Of a version in the folder no result is kept: records may come before the folder.
    pub(in crate::adapter) fn has_noted(
        &self,
        number: u32,
        base: &str,
        smoke: Option<&Smoke>,
    ) -> bool {
        let Some(version) = self.versions.get(&number) else { return false };
        let known = version.bases.get(base);
        known.is_some_and(|known| version.files.is_none() || known.as_ref() == smoke)
    }

    /// Whether it is to be kept in memory.
    pub(in crate::adapter) fn is_pinned(&self) -> bool {
        self.pinned
    }

    /// How many versions there are.
    pub(in crate::adapter) fn len(&self) -> usize {
        self.versions.len()
    }

    /// The number of the version that has this content.
    pub(in crate::adapter) fn version_of(&self, digest: Digest) -> Option<u32> {
        let has = |version: &Version| version.content.facts.digest == digest;
        self.versions.iter().find(|(_, version)| has(version)).map(|(number, _)| *number)
    }

    /// The same of those that the store has: the folder's may be gone with the folder.
    pub(in crate::adapter) fn stored_as(&self, digest: Digest) -> Option<u32> {
        let has =
            |version: &Version| version.files.is_some() && version.content.facts.digest == digest;
        self.versions.iter().find(|(_, version)| has(version)).map(|(number, _)| *number)
    }

    /// Whether the store has any version.
    pub(in crate::adapter) fn is_stored(&self) -> bool {
        self.versions.values().any(|version| version.files.is_some())
    }

    /// The active version, or where none is, the newest.
    pub(super) fn shown(&self, name: &AdapterName) -> Option<Entry> {
        let newest = || self.versions.last_key_value().map(|(number, _)| *number);
        self.entry(name, self.active().or_else(newest)?)
    }

    pub(super) fn entry(&self, name: &AdapterName, number: u32) -> Option<Entry> {
        let Version { created, content, bases, usage, files } = self.versions.get(&number)?.clone();
        let digest = content.facts.digest;
        let revision = Revision { name: name.clone(), version: number, digest };
        let (active, pinned) = (self.active == Some(number), self.pinned);
        let canary = self.canary();
        Some(Entry { revision, created, content, bases, usage, active, pinned, files, canary })
    }
}

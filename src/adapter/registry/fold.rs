//! What each record changes, and what it leaves behind.

use std::sync::Arc;

use super::{Bases, Files, State, content::Held, history::Version};
use crate::{
    adapter::{
        AdapterName, Facts,
        record::{Change, Record, Stored},
    },
    lora::Digest,
    store::BlobKey,
    tenant::TenantId,
};

/// What a change leaves behind.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::adapter) struct Released {
    /// Contents that no version has any more.
    pub(in crate::adapter) contents: Vec<Digest>,
    /// Files that no version refers to any more.
    pub(in crate::adapter) blobs: Vec<BlobKey>,
}

impl State {
    pub(super) fn apply(&mut self, record: &Record) -> Released {
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

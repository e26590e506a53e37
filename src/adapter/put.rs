//! Adapters on their way into the store: checked, tried, and made a version.

use std::{io, sync::Arc};

use tokio::{io::AsyncSeekExt as _, sync::OwnedSemaphorePermit};

use super::{
    Adapters, Card, Expected, Facts, NotChanged, Smoke, Target, Trial, Unfit, Upload, Version,
    check::check,
    files::{Files, Pages},
    record::{Blob, Change, Stored},
    registry::{self, History, State},
    upload::{Part, Received, Unreceived},
};
use crate::{
    lora::{Digest, Extras},
    store::BlobKey,
};

/// How much room a tenant has in the store; `None` is without bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Adapters.
    pub adapters: Option<u32>,
    /// Bytes of all their versions.
    pub bytes: Option<u64>,
}

/// How an upload is to be kept.
#[derive(Clone, Debug)]
pub struct Terms<'a> {
    /// How things must stand.
    pub expected: &'a Expected,
    /// Whether the name is to point to it.
    pub activate: bool,
    /// What its tenant has.
    pub room: Room,
}

/// What became of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The version that has the uploaded bytes.
    pub card: Card,
    /// There was none before.
    pub is_new: bool,
}

impl Room {
    /// Whether another version of so many bytes fits.
    fn check(&self, state: &State, target: Target<'_>, bytes: u64) -> Result<(), NotChanged> {
        let (names, stored) = state.holdings(target.tenant);
        // What the folder has under the name takes no room.
        let is_new = state.look(target.tenant, target.name).is_none_or(|it| !it.is_stored());
        if let Some(most) = self.adapters
            && is_new
            && names >= most as usize
        {
            return Err(NotChanged::NoRoomForName(most));
        }
        let wanted = stored.saturating_add(bytes);
        match self.bytes {
            Some(most) if wanted > most => Err(NotChanged::NoRoomForBytes { wanted, most }),
            _ => Ok(()),
        }
    }
}

/// What [`Adapters::put`] found out while it held the log.
enum Decided {
    /// The files have to be in the store first.
    NeedsFiles,
    /// The version that has the bytes, and whether it is new.
    Kept(u32, bool),
}

impl Adapters {
    /// Begins an upload.
    pub fn upload(&self) -> Upload {
        self.shared.spool.upload()
    }

    /// Checks an upload, stores it, and makes it a version of the name: the next one, or the one in the store that has these
    /// bytes.
    ///
    /// When this returns the version is durable, and with `activate` the name points to it.
    pub async fn put(
        &self,
        target: Target<'_>,
        upload: Upload,
        terms: &Terms<'_>,
        trial: &dyn Trial,
    ) -> Result<Kept, NotChanged> {
        let shared = &*self.shared;
        let Terms { expected, activate, room } = *terms;
        let mut received = upload.complete().await?;
        let digest = received.digest();
        let load = received.reading().await.map_err(Unreceived::Spool)?;
        let load = move || load().map_err(Unfit::BrokenOff);
        let (facts, smoke) = self.check(load, trial).await?;
        let failed = smoke.as_ref().filter(|smoke| !smoke.passed);
        // Kept all the same, for people to look at.
        let activate = activate && failed.is_none();
        shared.registry.with(|state| expected.check(state.look(target.tenant, target.name)))?;
        self.note_base(target, digest, smoke.as_ref()).await?;
        self.mend(&mut received).await?;
        shared.cache.retry(digest);
        let mut files: Option<[Blob; 2]> = None;
        loop {
            let decide = |state: &State| {
                let history = state.look(target.tenant, target.name);
                expected.check(history)?;
                let active = history.and_then(History::active);
                if let Some(version) = history.and_then(|history| history.stored_as(digest)) {
                    let canary = history.and_then(History::canary);
                    // The active version has all requests only once a canary is ended.
                    let moves = activate && (active != Some(version) || canary.is_some());
                    let change = moves.then_some(Change::Activated { version });
                    return Ok((change, Decided::Kept(version, false)));
                }
                room.check(state, target, facts.bytes)?;
                let Some([config, weights]) = &files else {
                    return Ok((None, Decided::NeedsFiles));
                };
                // Equal bytes that are referred to now are so still when this record is written, or it is not.
                let shared_or =
                    |sha256, own: &Blob| state.blobs_of(sha256).next().unwrap_or(own).clone();
                let version = state.next_version(target.tenant, target.name);
                let stored = Stored {
                    version,
                    digest,
                    config: shared_or(received.config_sha256, config),
                    weights: shared_or(received.weights_sha256, weights),
                    memory: facts.memory.native,
                    memory_int8: Some(facts.memory.int8),
                    rank: facts.rank,
                    targets: facts.targets.clone(),
                    base: shared.base_sha256.clone(),
                    activate,
                    extras: Extras::clone(&facts.extras),
                    smoke: smoke.clone(),
                };
                Ok((Some(Change::Stored(Box::new(stored))), Decided::Kept(version, true)))
            };
            match self.change(target, decide).await {
                Ok(Decided::NeedsFiles) => files = Some(self.store_files(&mut received).await?),
                Ok(Decided::Kept(version, is_new)) => {
                    // Nobody waits for it: the time would tell that somebody else has the same bytes.
                    let adapters = self.clone();
                    tokio::spawn(
                        async move { adapters.erase_unused(files.iter().flatten()).await },
                    );
                    let card = self.version(target, version).ok_or(NotChanged::Unknown)?;
                    return Ok(Kept { card: card.card, is_new });
                }
                // The record may have been written: then these files are needed.
                Err(error @ NotChanged::Store(_)) => return Err(error),
                Err(error) => {
                    self.erase_unused(files.iter().flatten()).await;
                    return Err(error);
                }
            }
        }
    }

    /// Checks a version against this server's base: one whose base was another, or whose smoke test may go another way now.
    pub async fn validate(
        &self,
        target: Target<'_>,
        version: u32,
        trial: &dyn Trial,
    ) -> Result<Version, NotChanged> {
        self.refresh().await?;
        let known = self.version(target, version).ok_or_else(|| {
            let there = self.card(target.tenant, target.name).is_some();
            if there { NotChanged::NoVersion(version) } else { NotChanged::Unknown }
        })?;
        let digest = known.card.revision.digest;
        let place = self.shared.registry.files(digest).into_iter().next();
        let is_tested = self.extras(&known.card.revision).smoke_test.is_some();
        let is_due = known.stored && (is_tested || !known.card.compatible);
        let Some(registry::Files { config, weights }) = place.filter(|_| is_due) else {
            return Ok(known);
        };
        // Before anything is read: what waits takes no memory.
        let turn = self.turn().await;
        let pages = |blob: &Blob| {
            let len = usize::try_from(blob.bytes).map_err(io::Error::other);
            len.and_then(Pages::zeros).map_err(Unfit::BrokenOff)
        };
        let mut files = Files { config: pages(&config)?, weights: pages(&weights)? };
        self.shared.store.read_blob(&config.key, files.config.bytes_mut()).await?;
        self.shared.store.read_blob(&weights.key, files.weights.bytes_mut()).await?;
        let load = move || {
            let damaged =
                || Unfit::BrokenOff(io::Error::other("its files in the store are damaged"));
            if files.digest() == digest { Ok(files) } else { Err(damaged()) }
        };
        let shared = &*self.shared;
        let bounds = (&shared.limits, shared.budget, shared.matrices);
        let (_, smoke) = check(load, &shared.base, bounds, turn, trial).await?;
        self.note_base(target, digest, smoke.as_ref()).await?;
        self.version(target, version).ok_or(NotChanged::NoVersion(version))
    }

    /// Checks an adapter in its turn.
    async fn check(
        &self,
        load: impl FnOnce() -> Result<Files, Unfit> + Send + 'static,
        trial: &dyn Trial,
    ) -> Result<(Facts, Option<Smoke>), Unfit> {
        let shared = &*self.shared;
        let bounds = (&shared.limits, shared.budget, shared.matrices);
        check(load, &shared.base, bounds, self.turn().await, trial).await
    }

    /// The right to try an adapter: one at a time, because it takes memory beside the budget.
    async fn turn(&self) -> OwnedSemaphorePermit {
        let turn = Arc::clone(&self.shared.trials).acquire_owned().await;
        turn.expect("the semaphore is never closed")
    }

    /// Puts back files that versions with the same bytes refer to and the store has lost: what refers to them from now on
    /// must find them. It asks the store as often where nobody has the same bytes, so that its time does not tell.
    async fn mend(&self, received: &mut Received) -> Result<(), NotChanged> {
        let store = &self.shared.store;
        for part in [Part::Config, Part::Weights] {
            let (sha256, bytes) = match part {
                Part::Config => (received.config_sha256, received.config.len() as u64),
                Part::Weights => (received.weights_sha256, received.weights_bytes),
            };
            let known: Vec<_> =
                self.shared.registry.with(|state| state.blobs_of(sha256).cloned().collect());
            if known.is_empty() {
                store.has_blob(&BlobKey::new(sha256)?, bytes).await?;
            }
            for blob in known {
                if store.has_blob(&blob.key, blob.bytes).await? {
                    continue;
                }
                tracing::error!(key = ?blob.key, "a file was lost from the store and is put back");
                if part == Part::Config {
                    store.put_back(&blob.key, bytes, &*received.config).await?;
                } else {
                    received.weights.rewind().await.map_err(Unreceived::Spool)?;
                    store.put_back(&blob.key, bytes, &mut received.weights).await?;
                }
            }
        }
        Ok(())
    }

    /// Where the name has this content already: records that it was checked against this server's base, and how its smoke
    /// test went, unless that is known. What fails here and is from another base is not taken for one of this.
    async fn note_base(
        &self,
        target: Target<'_>,
        digest: Digest,
        smoke: Option<&Smoke>,
    ) -> Result<(), NotChanged> {
        let base = &self.shared.base_sha256;
        let validated = |state: &State| -> Result<Option<Change>, NotChanged> {
            let history = state.look(target.tenant, target.name);
            let found = history.and_then(|history| Some((history, history.stored_as(digest)?)));
            let Some((history, version)) = found else { return Ok(None) };
            match smoke {
                Some(Smoke { passed: false, answer }) if !history.is_for(version, base) => {
                    Err(Unfit::Smoke { answer: answer.clone() }.into())
                }
                _ if history.has_noted(version, base, smoke) => Ok(None),
                _ => {
                    let (base, smoke) = (base.clone(), smoke.cloned());
                    Ok(Some(Change::Validated { version, base, smoke }))
                }
            }
        };
        if self.shared.registry.with(validated)?.is_none() {
            return Ok(());
        }
        self.change(target, |state| Ok((validated(state)?, ()))).await
    }

    async fn store_files(&self, received: &mut Received) -> Result<[Blob; 2], NotChanged> {
        let store = &self.shared.store;
        let (config, bytes) = (&*received.config, received.config.len() as u64);
        let config =
            Blob { key: store.put_blob(received.config_sha256, bytes, config).await?, bytes };
        let bytes = received.weights_bytes;
        received.weights.rewind().await.map_err(Unreceived::Spool)?;
        let key = store.put_blob(received.weights_sha256, bytes, &mut received.weights).await?;
        Ok([config, Blob { key, bytes }])
    }

    /// Erases those of these files that no version refers to.
    async fn erase_unused(&self, files: impl Iterator<Item = &Blob>) {
        for blob in files {
            if self.shared.registry.with(|state| state.has_blob(blob)) {
                continue;
            }
            if let Err(error) = self.shared.store.erase_blob(&blob.key).await {
                tracing::warn!(key = ?blob.key, %error, "a file is not erased yet");
            }
        }
    }
}

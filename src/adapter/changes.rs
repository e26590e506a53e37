//! What a tenant does to its adapters: each change is one record in the store before anybody sees it.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, future, stream, stream::BoxStream};
use tokio::{io::AsyncSeekExt as _, sync::OwnedSemaphorePermit};

use super::{
    AdapterName, Adapters, Canary, Card, Facts, Smoke, Trial, Unfit, Upload, Version,
    check::check,
    files::{Files, Pages},
    record::{Blob, Change, Record, Stored},
    registry::{self, History, Released, State},
    upload::{Part, Received, Unreceived},
};
use crate::{
    lora::{Digest, Extras},
    store::{Appended, BlobKey, Log, StoreError},
    tenant::TenantId,
};

/// A name, whose it is, and who asks.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Whose adapter.
    pub tenant: TenantId,
    /// Its name.
    pub name: &'a AdapterName,
    /// Who asks, as the audit log has it.
    pub by: &'a str,
}

/// How things must stand for a change to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Expected {
    /// In any way.
    #[default]
    Anything,
    /// One of these versions is active.
    Active(Vec<u32>),
    /// The name is there.
    There,
    /// The name is not there.
    New,
}

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

/// Why a change was not made. Nothing has changed then, but where the store is at fault that is not certain.
#[derive(Debug, thiserror::Error)]
pub enum NotChanged {
    /// The tenant has no such name.
    #[error("there is no such adapter")]
    Unknown,
    /// The name has no such version.
    #[error("the adapter has no version {0}")]
    NoVersion(u32),
    /// No version of the name is active.
    #[error("no version of this name is active: activate one first")]
    NotActive,
    /// Things do not stand as expected.
    #[error("{}", stale(*.active))]
    Stale {
        /// What is active instead.
        active: Option<u32>,
    },
    /// The name points to it.
    #[error(
        "version {0} is the active one: activate another first, or delete the adapter as a whole"
    )]
    InUse(u32),
    /// A share of the requests is of no use to it.
    #[error("version {0} is the active one and has all requests: a canary is another version")]
    ActiveAlready(u32),
    /// It was checked against another base.
    #[error("version {0} was checked against another base model: validate it on this one first")]
    OtherBase(u32),
    /// Pinned adapters would leave too little memory for all others.
    #[error(
        "pinned adapters may take {most} bytes of memory together, and with this one they would take {wanted}: unpin another first"
    )]
    TooMuchPinned {
        /// Bytes that they would take.
        wanted: usize,
        /// Bytes that they may.
        most: usize,
    },
    /// The tenant has as many adapters as it may.
    #[error("the quota of {0} adapters is used up: delete one first")]
    NoRoomForName(u32),
    /// The tenant's adapters take as many bytes as they may.
    #[error(
        "all versions would take {wanted} bytes together, and the quota is {most}: delete some first"
    )]
    NoRoomForBytes {
        /// Bytes that they would take.
        wanted: u64,
        /// Bytes that they may.
        most: u64,
    },
    /// The upload is not complete or too large.
    #[error(transparent)]
    Unreceived(#[from] Unreceived),
    /// The upload is no adapter that can be served here.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// The store does not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn stale(active: Option<u32>) -> String {
    match active {
        Some(version) => format!("the active version is v{version}"),
        None => "no version of this name is active".to_owned(),
    }
}

impl Expected {
    fn check(&self, history: Option<&History>) -> Result<(), NotChanged> {
        let active = history.and_then(History::active);
        let holds = match self {
            Self::Anything => true,
            Self::Active(versions) => active.is_some_and(|active| versions.contains(&active)),
            Self::There => history.is_some(),
            Self::New => history.is_none(),
        };
        if holds { Ok(()) } else { Err(NotChanged::Stale { active }) }
    }
}

impl Room {
    /// Whether another version of so many bytes fits.
    fn check(&self, state: &State, target: Target<'_>, bytes: u64) -> Result<(), NotChanged> {
        let (names, stored) = state.holdings(target.tenant);
        let is_new = state.look(target.tenant, target.name).is_none();
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

/// A file of an adapter, as it was uploaded.
pub struct FileBytes {
    /// Its length.
    pub bytes: u64,
    /// Its content.
    pub pieces: BoxStream<'static, Result<Bytes, StoreError>>,
}

impl std::fmt::Debug for FileBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileBytes").field("bytes", &self.bytes).finish_non_exhaustive()
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

    /// Fails where a change that expects this would fail now. Worth asking before an upload is received.
    pub async fn expect(&self, target: Target<'_>, expected: &Expected) -> Result<(), NotChanged> {
        if *expected != Expected::Anything {
            self.refresh().await?;
        }
        self.shared.registry.with(|state| expected.check(state.look(target.tenant, target.name)))
    }

    /// Checks an upload, stores it, and makes it a version of the name: the next one, or the one that has these bytes.
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
        match failed {
            None => self.note_base(target, digest).await?,
            Some(smoke) => self.refuse_other_base(target, digest, smoke)?,
        }
        self.mend(&mut received).await?;
        shared.cache.retry(digest);
        let mut files: Option<[Blob; 2]> = None;
        loop {
            let decide = |state: &State| {
                let history = state.look(target.tenant, target.name);
                expected.check(history)?;
                let active = history.and_then(History::active);
                if let Some(version) = history.and_then(|history| history.version_of(digest)) {
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

    /// Makes the name point to one of its versions; or with so many percent of the requests, from 0 to 99, lets that version
    /// have them, and the active one the rest.
    pub async fn activate(
        &self,
        target: Target<'_>,
        (version, percent): (u32, Option<u8>),
        expected: &Expected,
    ) -> Result<Version, NotChanged> {
        let decide = |state: &State| {
            let history = state.look(target.tenant, target.name).ok_or(NotChanged::Unknown)?;
            expected.check(Some(history))?;
            if !history.has(version) {
                return Err(NotChanged::NoVersion(version));
            }
            if !history.is_for(version, &self.shared.base_sha256) {
                return Err(NotChanged::OtherBase(version));
            }
            let (active, canary) = (history.active(), history.canary());
            let change = match percent.filter(|percent| *percent < 100) {
                None if active == Some(version) && canary.is_none() => None,
                None => Some(Change::Activated { version }),
                Some(_) if active.is_none() => return Err(NotChanged::NotActive),
                Some(_) if active == Some(version) => {
                    return Err(NotChanged::ActiveAlready(version));
                }
                Some(0) => {
                    canary.is_some_and(|it| it.version == version).then_some(Change::CanaryEnded)
                }
                Some(percent) => {
                    let wanted = Canary { version, percent };
                    (canary != Some(wanted)).then_some(Change::Canary(wanted))
                }
            };
            Ok((change, ()))
        };
        self.change(target, decide).await?;
        self.version(target, version).ok_or(NotChanged::NoVersion(version))
    }

    /// Keeps the active version in memory from now on.
    pub async fn pin(&self, target: Target<'_>) -> Result<Card, NotChanged> {
        self.refresh().await?;
        let card = self.card(target.tenant, target.name).ok_or(NotChanged::Unknown)?;
        if !card.pinned {
            self.check_pin(target.tenant, card.memory)?;
        }
        self.set_pin(target, Change::Pinned).await
    }

    /// Lets the active version be evicted again.
    pub async fn unpin(&self, target: Target<'_>) -> Result<Card, NotChanged> {
        self.set_pin(target, Change::Unpinned).await
    }

    async fn set_pin(&self, target: Target<'_>, change: Change) -> Result<Card, NotChanged> {
        let decide = |state: &State| {
            let history = state.look(target.tenant, target.name).ok_or(NotChanged::Unknown)?;
            if change == Change::Pinned && history.active().is_none() {
                return Err(NotChanged::NotActive);
            }
            let changes = history.is_pinned() != (change == Change::Pinned);
            Ok((changes.then(|| change.clone()), ()))
        };
        self.change(target, decide).await?;
        self.card(target.tenant, target.name).ok_or(NotChanged::Unknown)
    }

    /// Takes a name away, or one version of it that is not the active one; returns whether the name is gone. Requests
    /// in flight finish.
    pub async fn remove(
        &self,
        target: Target<'_>,
        version: Option<u32>,
        expected: &Expected,
    ) -> Result<bool, NotChanged> {
        let decide = |state: &State| {
            let history = state.look(target.tenant, target.name).ok_or(NotChanged::Unknown)?;
            expected.check(Some(history))?;
            let is_last = history.len() == 1;
            match version {
                Some(version) if !history.has(version) => Err(NotChanged::NoVersion(version)),
                Some(version) if history.active() == Some(version) && !is_last => {
                    Err(NotChanged::InUse(version))
                }
                Some(_) if is_last => Ok((Some(Change::Removed { version: None }), true)),
                _ => Ok((Some(Change::Removed { version }), version.is_none())),
            }
        };
        self.change(target, decide).await
    }

    /// Checks a version, whose base was another one, against this server's.
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
        let Some(registry::Files { config, weights }) = place.filter(|_| !known.card.compatible)
        else {
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
        if let Some(Smoke { passed: false, answer }) = smoke {
            return Err(Unfit::Smoke { answer }.into());
        }
        self.note_base(target, digest).await?;
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

    /// The bytes of a file as they were uploaded: of a version, or of the active one.
    pub async fn file(
        &self,
        target: Target<'_>,
        version: Option<u32>,
        part: Part,
    ) -> Result<FileBytes, NotChanged> {
        match self.known_file(target, version, part).await {
            // Another server may have changed the name a moment ago.
            Err(
                NotChanged::Unknown
                | NotChanged::NoVersion(_)
                | NotChanged::Store(StoreError::NotFound { .. }),
            ) if self.seek(target.tenant, target.name).await.is_ok_and(|sought| sought) => {
                self.known_file(target, version, part).await
            }
            found => found,
        }
    }

    async fn known_file(
        &self,
        target: Target<'_>,
        version: Option<u32>,
        part: Part,
    ) -> Result<FileBytes, NotChanged> {
        let active = || self.shared.registry.active(target.tenant, target.name);
        let mut versions = self.shared.registry.versions(target.tenant, target.name).into_iter();
        let entry = match version {
            None => active().ok_or(NotChanged::Unknown)?,
            Some(number) => {
                let found = versions.find(|entry| entry.revision.version == number);
                let missing =
                    active().map_or(NotChanged::Unknown, |_| NotChanged::NoVersion(number));
                found.ok_or(missing)?
            }
        };
        if let Some(registry::Files { config, weights }) = entry.files {
            let blob = if part == Part::Config { config } else { weights };
            let pieces = self.shared.store.blob(&blob.key).await?;
            return Ok(FileBytes { bytes: blob.bytes, pieces });
        }
        let (folder, digest) = (Arc::clone(&self.shared.folder), entry.revision.digest);
        let read = tokio::task::spawn_blocking(move || folder.read(digest)).await;
        let files = read.ok().and_then(Result::ok).ok_or(NotChanged::Unknown)?;
        let pages = if part == Part::Config { files.config } else { files.weights };
        let (bytes, whole) = (pages.len() as u64, Bytes::copy_from_slice(&pages));
        Ok(FileBytes { bytes, pieces: stream::once(future::ready(Ok(whole))).boxed() })
    }

    /// Takes in what other servers have written.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        let mut log = self.shared.log.lock().await;
        self.catch_up(&mut log).await
    }

    async fn catch_up(&self, log: &mut Log<Record>) -> Result<(), StoreError> {
        for entry in self.shared.outdated.note(log.catch_up().await)? {
            self.apply(&entry.record);
        }
        Ok(())
    }

    /// The store has a record that this release does not understand: what names mean now is not known here.
    pub fn is_outdated(&self) -> bool {
        self.shared.outdated.holds()
    }

    /// Erases files in the store that nothing refers to and that have been there for `grace`, because whoever has put
    /// them later may be about to refer to them. Returns how many.
    pub(super) async fn sweep(&self, grace: Duration) -> Result<usize, StoreError> {
        let store = self.shared.store.clone();
        let old = store.blobs(grace).await?;
        // After the list: what is referred to by then stays.
        self.refresh().await?;
        let used = self.shared.registry.with(State::keys);
        let mut erased = 0;
        for key in old.iter().filter(|key| !used.contains(key)) {
            store.erase_blob(key).await?;
            erased += 1;
        }
        let leftovers =
            tokio::task::spawn_blocking(move || store.remove_leftovers(grace)).await.unwrap_or(0);
        Ok(erased + leftovers)
    }

    /// Decides on the state that all records before make, and writes the record that comes of it as the next one.
    async fn change<T>(
        &self,
        target: Target<'_>,
        mut decide: impl FnMut(&State) -> Result<(Option<Change>, T), NotChanged>,
    ) -> Result<T, NotChanged> {
        let mut log = self.shared.log.lock().await;
        self.catch_up(&mut log).await?;
        loop {
            let (change, outcome) = self.shared.registry.with(|state| decide(state))?;
            let Some(change) = change else { return Ok(outcome) };
            let Target { tenant, name, by } = target;
            let (at, by, name) = (unix_millis(), by.to_owned(), name.clone());
            let record = Record { at, by, tenant, name, change };
            match self.shared.outdated.note(log.append(record.clone()).await)? {
                Appended::Overtaken(entries) => {
                    for entry in entries {
                        self.apply(&entry.record);
                    }
                }
                Appended::Written(number) => {
                    let released = self.apply(&record);
                    drop(log);
                    let Record { by, name, change, .. } = record;
                    tracing::info!(number, by, %name, %change, "an adapter has changed");
                    for key in released.blobs {
                        // Where this fails the sweep comes after it.
                        if let Err(error) = self.shared.store.erase_blob(&key).await {
                            tracing::warn!(?key, %error, "a file is not erased yet");
                        }
                    }
                    return Ok(outcome);
                }
            }
        }
    }

    fn apply(&self, record: &Record) -> Released {
        let released = self.shared.registry.apply(record);
        for digest in &released.contents {
            self.shared.cache.forget(*digest);
        }
        // Its files are new ones: what became of the old ones is over.
        if let Change::Stored(stored) = &record.change {
            self.shared.cache.retry(stored.digest);
        }
        self.shared.pins.wake.notify_one();
        released
    }

    /// Where the name has this content already: records that it was checked against this server's base.
    async fn note_base(&self, target: Target<'_>, digest: Digest) -> Result<(), NotChanged> {
        let validated = |state: &State| {
            let version = self.on_other_base(state, target, digest);
            let base = self.shared.base_sha256.clone();
            version.map(|version| Change::Validated { version, base })
        };
        if self.shared.registry.with(validated).is_none() {
            return Ok(());
        }
        self.change(target, |state| Ok((validated(state), ()))).await
    }

    /// Where the name has this content already, from another base: it is not taken for one of this base, for it fails here.
    fn refuse_other_base(
        &self,
        target: Target<'_>,
        digest: Digest,
        Smoke { answer, .. }: &Smoke,
    ) -> Result<(), NotChanged> {
        match self.shared.registry.with(|state| self.on_other_base(state, target, digest)) {
            Some(_) => Err(Unfit::Smoke { answer: answer.clone() }.into()),
            None => Ok(()),
        }
    }

    /// The name's version that has this content, where it was checked against other bases alone.
    fn on_other_base(&self, state: &State, target: Target<'_>, digest: Digest) -> Option<u32> {
        let history = state.look(target.tenant, target.name)?;
        let version = history.version_of(digest)?;
        (!history.is_for(version, &self.shared.base_sha256)).then_some(version)
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

    fn version(&self, target: Target<'_>, number: u32) -> Option<Version> {
        let versions = self.versions(target.tenant, target.name);
        versions.into_iter().find(|version| version.card.revision.version == number)
    }
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;

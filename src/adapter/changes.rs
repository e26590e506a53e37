//! What a tenant does to its adapters: each change is one record in the store before anybody sees it.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, future, stream, stream::BoxStream};

use super::{
    AdapterName, Adapters, Canary, Card, Unfit, Version,
    record::{Change, Record},
    registry::{self, History, Released, State},
    upload::{Part, Unreceived},
};
use crate::{
    store::{Appended, Log, StoreError},
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
    pub(super) fn check(&self, history: Option<&History>) -> Result<(), NotChanged> {
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

impl Adapters {
    /// Fails where a change that expects this would fail now. Worth asking before an upload is received.
    pub async fn expect(&self, target: Target<'_>, expected: &Expected) -> Result<(), NotChanged> {
        if *expected == Expected::Anything {
            self.shared.store.check_home().await?;
        } else {
            self.refresh().await?;
        }
        self.shared.registry.with(|state| expected.check(state.look(target.tenant, target.name)))
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
    pub(super) async fn change<T>(
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

    pub(super) fn version(&self, target: Target<'_>, number: u32) -> Option<Version> {
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

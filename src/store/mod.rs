//! Durable records and blobs on an object store: a local directory, S3, Google Cloud Storage or Azure.
//!
//! Knows no adapter and no tenant, only keys and bytes.
//!
//! ```text
//! chorus.json             the format's version, written once
//! logs/NAME/00..01.json   a Log's records, numbered from 1 without gap
//! blobs/SHA256.NONCE      immutable bytes
//! sheets/NAME/..json      small documents, each written once; sheets/store/id.json tells the store from every other
//! ```
//!
//! - A record is created only if it is not there (`If-None-Match: *`, or a hard link), so of two writers of one number one
//!   wins, and the numbers are one order that all servers agree on.
//! - Each put of a blob has a key of its own. So a blob is erased without asking whether somebody else is about to refer
//!   to equal bytes; who wants to share a key must see it alive in a log's order.
//! - Nothing is ever changed in place. Whatever a crash leaves behind is absent or complete.
//! - A store in a directory is that directory: where it is gone, or another is in its place, nothing is read or written.

use std::{
    fs::File,
    io,
    path::Path as FilePath,
    sync::Arc,
    time::{Duration, SystemTime},
};

use object_store::{
    ClientOptions, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload, RetryConfig,
    aws::AmazonS3Builder, azure::MicrosoftAzureBuilder, gcp::GoogleCloudStorageBuilder,
    local::LocalFileSystem, path::Path,
};
use serde::{Deserialize, Serialize};

use self::home::{AtHome, Home};
pub use self::{
    blob::BlobKey,
    copy::NotCopied,
    error::{OpenError, StoreError},
    location::{BadLocation, Location},
    log::{Appended, Entry, Log, Outdated},
};

mod blob;
mod copy;
mod error;
mod home;
mod location;
mod log;
mod sheet;

#[cfg(test)]
mod faults;
#[cfg(test)]
pub(crate) use self::faults::Fault;

/// What this version writes and reads.
const FORMAT: u32 = 1;
/// Where the version stands.
const MARKER: &str = "chorus.json";
/// Where everything else lies.
const LOGS: &str = "logs";
const BLOBS: &str = "blobs";
const SHEETS: &str = "sheets";
/// How long a connection to a remote store may take to be made, and how long it may be silent.
const CONNECT_TIME: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(20);
/// A request to a remote store is repeated at most so often, and not after so long.
const RETRIES: usize = 4;
const RETRY_TIME: Duration = Duration::from_secs(15);

/// An object store with chorus' layout. Clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    /// What all keys begin with.
    root: Path,
    /// Where the objects are files.
    home: Option<Arc<Home>>,
    is_new: bool,
}

#[derive(Serialize, Deserialize)]
struct Marker {
    format: u32,
}

impl Store {
    /// Opens the store at `location`; a new one is made where there is none.
    pub async fn open(location: &Location) -> Result<Self, OpenError> {
        let store = Self::reach(location)?;
        for ours in [LOGS, BLOBS, SHEETS] {
            store.make_folder(ours).map_err(OpenError::Store)?;
        }
        let is_new = store.check_format().await?;
        Ok(Self { is_new, ..store })
    }

    /// Opens the store at `location` to be read, where there is one; nothing is made or written.
    pub async fn open_existing(location: &Location) -> Result<Self, OpenError> {
        let absent = || OpenError::Absent { place: location.to_string() };
        if let Location::Folder(folder) = location
            && !folder.is_dir()
        {
            return Err(absent());
        }
        let store = Self::reach(location)?;
        match store.read_format().await {
            Err(OpenError::Store(StoreError::NotFound { .. })) => Err(absent()),
            read => read.map(|()| store),
        }
    }

    fn reach(location: &Location) -> Result<Self, OpenError> {
        let options = || {
            ClientOptions::new()
                .with_timeout_disabled()
                .with_connect_timeout(CONNECT_TIME)
                .with_read_timeout(SILENCE)
        };
        let retry = RetryConfig {
            max_retries: RETRIES,
            retry_timeout: RETRY_TIME,
            ..RetryConfig::default()
        };
        // A cloud's builders differ in nothing but their types.
        macro_rules! cloud {
            ($builder:ty, $remote:expr) => {{
                let builder = <$builder>::new().with_client_options(options()).with_retry(retry);
                let builder = $remote.settings.iter().fold(builder, |builder, (key, value)| {
                    // Variables of the same cloud that say nothing about its storage.
                    match key.parse() {
                        Ok(key) => builder.with_config(key, value),
                        Err(_) => builder,
                    }
                });
                let objects = builder.with_url(&$remote.url).build();
                let objects = objects.map_err(|error| OpenError::Settings {
                    url: $remote.url.clone(),
                    why: error.to_string(),
                })?;
                let root = Path::parse(&$remote.prefix).map_err(|error| OpenError::Settings {
                    url: $remote.url.clone(),
                    why: error.to_string(),
                })?;
                Self { objects: Arc::new(objects), root, home: None, is_new: false }
            }};
        }
        Ok(match location {
            Location::Folder(folder) => Self::local(folder)?,
            Location::S3(remote) => cloud!(AmazonS3Builder, remote),
            Location::Google(remote) => cloud!(GoogleCloudStorageBuilder, remote),
            Location::Azure(remote) => cloud!(MicrosoftAzureBuilder, remote),
        })
    }

    fn local(folder: &FilePath) -> Result<Self, OpenError> {
        let failed = |error| OpenError::Folder { path: folder.to_owned(), error };
        create_durably(folder).map_err(failed)?;
        let folder = folder.canonicalize().map_err(failed)?;
        let objects = LocalFileSystem::new_with_prefix(&folder)
            .map_err(|error| failed(io::Error::other(error)))?;
        let home = Arc::new(Home::of(folder.clone()).map_err(failed)?);
        // Acknowledged is what has reached the disk, the directory's entry too.
        let files = objects.with_fsync(true);
        let objects = Arc::new(AtHome { home: Arc::clone(&home), files });
        Ok(Self { objects, root: Path::default(), home: Some(home), is_new: false })
    }

    /// A store in memory whose requests can be made to fail.
    #[cfg(test)]
    pub(crate) fn faulty() -> (Self, Arc<faults::Faults>) {
        let (objects, faults) = faults::objects();
        (Self { objects, root: Path::default(), home: None, is_new: false }, faults)
    }

    /// Says whether there was no store before.
    async fn check_format(&self) -> Result<bool, OpenError> {
        let key = self.root.clone().join(MARKER);
        let own = serde_json::to_vec(&Marker { format: FORMAT }).expect("a number is JSON");
        let is_new = match self.objects.put_opts(&key, own.into(), PutMode::Create.into()).await {
            Ok(_) => true,
            Err(object_store::Error::AlreadyExists { .. }) => false,
            Err(error) => return Err(OpenError::Store(StoreError::from_objects(error, &key))),
        };
        self.read_format().await.map(|()| is_new)
    }

    async fn read_format(&self) -> Result<(), OpenError> {
        let key = self.root.clone().join(MARKER);
        let bytes = self.get(&key).await.map_err(OpenError::Store)?;
        match serde_json::from_slice::<Marker>(&bytes) {
            Ok(Marker { format: FORMAT }) => Ok(()),
            Ok(Marker { format }) => Err(OpenError::Format { found: format, known: FORMAT }),
            Err(error) => Err(OpenError::Store(StoreError::damaged(&key, &error))),
        }
    }

    /// Makes a folder that is there after a loss of power, where the store is a directory; whoever has made it before may
    /// have been killed before that was so.
    fn make_folder(&self, key: &str) -> Result<(), StoreError> {
        let Some(home) = &self.home else { return Ok(()) };
        home.look()?;
        let mut folder = home.path().to_owned();
        // One by one: the root itself, which may be lost by now, is never made again.
        for part in key.split('/') {
            let parent = folder.clone();
            folder.push(part);
            let made = create_within(&parent, &folder);
            made.map_err(|error| StoreError::from_io(error, &Path::from(key)))?;
        }
        Ok(())
    }

    /// The directory, where the store is one.
    pub fn folder(&self) -> Option<&FilePath> {
        self.home.as_ref().map(|home| home.path())
    }

    /// There was none, and this one has been made.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Fails where the store is a directory that is gone for now. Elsewhere it says nothing.
    pub async fn check_home(&self) -> Result<(), StoreError> {
        let Some(home) = self.home.clone() else { return Ok(()) };
        let looked = tokio::task::spawn_blocking(move || home.look()).await;
        let lost =
            |error: tokio::task::JoinError| StoreError::Unavailable { why: error.to_string() };
        Ok(looked.map_err(lost)??)
    }

    /// Whether a path lies in the store's directory and that is gone for now: what is not there may come back. Blocks.
    pub fn is_away_with(&self, path: &FilePath) -> bool {
        let home = self.home.as_ref().filter(|home| path.starts_with(home.path()));
        home.is_some_and(|home| home.look().is_err())
    }

    /// How often the store was found in another directory at the same place.
    fn moves(&self) -> u64 {
        self.home.as_ref().map_or(0, |home| home.moves())
    }

    async fn get(&self, key: &Path) -> Result<bytes::Bytes, StoreError> {
        let failed = |error| StoreError::from_objects(error, key);
        self.objects.get(key).await.map_err(failed)?.bytes().await.map_err(failed)
    }

    /// Removes files that a write left half done so long ago that its process must be gone. Returns how many.
    ///
    /// Only a local directory has such: its writes go to `KEY#N` first, which is no key.
    pub fn remove_leftovers(&self, older_than: Duration) -> usize {
        fn walk(folder: &FilePath, before: SystemTime, removed: &mut usize) {
            for entry in folder.read_dir().into_iter().flatten().flatten() {
                let path = entry.path();
                let Ok(meta) = entry.metadata() else { continue };
                let name = entry.file_name();
                let name = name.to_string_lossy();
                let is_half = name
                    .rsplit_once('#')
                    .is_some_and(|(_, n)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
                if meta.is_dir() {
                    walk(&path, before, removed);
                } else if is_half
                    && meta.modified().is_ok_and(|at| at < before)
                    && std::fs::remove_file(&path).is_ok()
                {
                    *removed += 1;
                }
            }
        }
        let mut removed = 0;
        if let (Some(home), Some(before)) = (&self.home, SystemTime::now().checked_sub(older_than))
            && home.look().is_ok()
        {
            // Nothing else in that directory is ours.
            for ours in [LOGS, BLOBS, SHEETS] {
                walk(&home.path().join(ours), before, &mut removed);
            }
        }
        removed
    }
}

/// Makes a directory that is still there after a loss of power.
fn create_durably(folder: &FilePath) -> io::Result<()> {
    let parent = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => FilePath::new("."),
    };
    if !folder.is_dir() {
        create_durably(parent)?;
    }
    create_within(parent, folder)
}

/// The same for one whose parent is there.
fn create_within(parent: &FilePath, folder: &FilePath) -> io::Result<()> {
    if folder.is_dir() {
        // Whoever has made it may have been killed before this. Where it is not ours to sync, it was not us.
        drop(File::open(parent).and_then(|parent| parent.sync_all()));
        return Ok(());
    }
    match std::fs::create_dir(folder) {
        // Made by somebody else meanwhile, or a file.
        Err(error) if !folder.is_dir() => return Err(error),
        _ => {}
    }
    File::open(parent)?.sync_all()
}

/// Sixteen hexadecimal digits that nobody else has.
fn nonce() -> Result<String, StoreError> {
    let number = getrandom::u64().map_err(|error| StoreError::Unavailable {
        why: format!("the system gives no random numbers: {error}"),
    })?;
    Ok(format!("{number:016x}"))
}

/// Bytes as an object's content.
fn payload(bytes: impl Into<bytes::Bytes>) -> PutPayload {
    PutPayload::from_bytes(bytes.into())
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[tokio::test]
    async fn a_store_is_made_and_opened_again() {
        let root = TempDir::new().unwrap();
        let location = Location::Folder(root.path().join("a/b"));
        let made = Store::open(&location).await.unwrap();
        let store = Store::open(&location).await.unwrap();
        assert_eq!((made.is_new(), store.is_new()), (true, false));
        assert_eq!(store.folder(), Some(&*root.path().join("a/b").canonicalize().unwrap()));
    }

    /// What is in them is synced with them; that they are in the store's directory was once left to whoever wrote first, and
    /// lost with the power where he had been killed. See `left_unsynced` in `tests/system/unsynced.py`.
    #[tokio::test]
    async fn its_directories_are_made_and_synced_before_anything_is_written() {
        let root = TempDir::new().unwrap();
        let store = Store::open(&Location::Folder(root.path().to_owned())).await.unwrap();
        Log::<u32>::open(&store, "numbers").await.unwrap();
        for folder in ["blobs", "logs", "logs/numbers"] {
            assert!(root.path().join(folder).is_dir(), "{folder}");
        }
    }

    #[tokio::test]
    async fn another_format_is_refused() {
        let root = TempDir::new().unwrap();
        let location = Location::Folder(root.path().to_owned());
        std::fs::write(root.path().join(MARKER), r#"{"format": 2}"#).unwrap();
        let refused = Store::open(&location).await.unwrap_err();
        assert!(matches!(refused, OpenError::Format { found: 2, known: 1 }), "{refused}");
        std::fs::write(root.path().join(MARKER), "").unwrap();
        let refused = Store::open(&location).await.unwrap_err();
        assert!(matches!(refused, OpenError::Store(StoreError::Damaged { .. })), "{refused}");
    }

    #[tokio::test]
    async fn a_store_that_is_looked_at_is_not_made() {
        let root = TempDir::new().unwrap();
        for place in [root.path().to_owned(), root.path().join("a/b")] {
            let refused = Store::open_existing(&Location::Folder(place)).await.unwrap_err();
            assert!(matches!(refused, OpenError::Absent { .. }), "{refused}");
        }
        assert_eq!(root.path().read_dir().unwrap().count(), 0);
        let location = Location::Folder(root.path().to_owned());
        Store::open(&location).await.unwrap();
        Store::open_existing(&location).await.unwrap();
    }

    #[tokio::test]
    async fn a_file_is_no_store() {
        let root = TempDir::new().unwrap();
        std::fs::write(root.path().join("file"), "").unwrap();
        for path in ["file", "file/below"] {
            let location = Location::Folder(root.path().join(path));
            let refused = Store::open(&location).await.unwrap_err();
            assert!(matches!(refused, OpenError::Folder { .. }), "{refused}");
        }
    }

    #[tokio::test]
    async fn leftovers_are_removed_and_nothing_else() {
        let root = TempDir::new().unwrap();
        let store = Store::open(&Location::Folder(root.path().to_owned())).await.unwrap();
        for name in ["blobs/ab.cd#1", "blobs/ab.cd#22", "blobs/ab.cd", "blobs/x#y", "blobs/#"] {
            std::fs::write(root.path().join(name), "half").unwrap();
        }
        assert_eq!(store.remove_leftovers(Duration::from_hours(1)), 0, "they are young");
        assert_eq!(store.remove_leftovers(Duration::ZERO), 2);
        let mut left: Vec<_> = root.path().join("blobs").read_dir().unwrap().collect();
        assert_eq!(left.drain(..).count(), 3);
    }
}

//! A store's folder, which may go away while it is used: its volume is unmounted, or somebody moves it.
//!
//! The library below makes directories that it lacks, so it would write to the empty place, and what it wrote would be
//! missing, or in the way, when the folder is back. So it is looked at before and after each request.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path as FilePath, PathBuf},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use futures_util::{FutureExt as _, StreamExt as _, TryFutureExt as _, stream, stream::BoxStream};
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
    local::LocalFileSystem, path::Path,
};

use super::{StoreError, sheet};

/// Why the lock is never poisoned.
const NO_PANIC: &str = "nothing that is done under it panics";

/// Knows which folder a store was opened in.
#[derive(Debug)]
pub(super) struct Home {
    path: PathBuf,
    known: Mutex<Mark>,
    /// What the store says of itself, once it has said so.
    id: OnceLock<String>,
    /// How often the store was found in another folder at the same place.
    moves: AtomicU64,
}

/// Tells a folder from every other on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    device: u64,
    inode: u64,
    /// A number of an inode is given again; not all file systems know this.
    made: Option<SystemTime>,
}

/// Why the store is not to be used for now.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    /// Nothing is there.
    #[error("its folder {} is gone, and is waited for: {error}", path.display())]
    Absent { path: PathBuf, error: io::Error },
    /// What is there is not the store.
    #[error(
        "in the place of its folder {} is another one, which is not touched: is its volume mounted?",
        path.display()
    )]
    Other { path: PathBuf },
}

impl Mark {
    fn of(folder: &FilePath) -> io::Result<Self> {
        let meta = folder.metadata()?;
        if !meta.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Self { device: meta.dev(), inode: meta.ino(), made: meta.created().ok() })
    }
}

impl Home {
    /// Remembers a folder that is there.
    pub(super) fn of(path: PathBuf) -> io::Result<Self> {
        let known = Mutex::new(Mark::of(&path)?);
        let home = Self { path, known, id: OnceLock::new(), moves: AtomicU64::new(0) };
        if let Some(id) = home.read_id() {
            home.knows(&id);
        }
        Ok(home)
    }

    pub(super) fn path(&self) -> &FilePath {
        &self.path
    }

    /// The store has said who it is.
    pub(super) fn knows(&self, id: &str) {
        // It is written once.
        let _ = self.id.set(id.to_owned());
    }

    /// How often the store was found in another folder.
    pub(super) fn moves(&self) -> u64 {
        self.moves.load(Ordering::Relaxed)
    }

    /// Whether the folder is still the one that it was. Another one that says it is the same store takes its place: its
    /// volume was mounted again, or it is a copy.
    pub(super) fn look(&self) -> std::result::Result<(), Lost> {
        let path = || self.path.clone();
        let mark = Mark::of(&self.path).map_err(|error| Lost::Absent { path: path(), error })?;
        let mut known = self.known.lock().expect(NO_PANIC);
        if *known == mark {
            return Ok(());
        }
        let id = self.id.get();
        if id.is_none() || self.read_id().as_ref() != id {
            return Err(Lost::Other { path: path() });
        }
        *known = mark;
        self.moves.fetch_add(1, Ordering::Relaxed);
        tracing::info!(folder = %self.path.display(), "the store is in another folder at its place");
        Ok(())
    }

    /// The same, where nobody must wait for a disk.
    async fn check(self: Arc<Self>) -> Result<()> {
        let looked = tokio::task::spawn_blocking(move || self.look()).await;
        let failed = |source| object_store::Error::Generic { store: "folder", source };
        looked.map_err(|lost| failed(lost.into()))?.map_err(|lost| failed(lost.into()))
    }

    fn read_id(&self) -> Option<String> {
        serde_json::from_slice(&fs::read(self.path.join(sheet::own_id())).ok()?).ok()
    }
}

impl From<Lost> for StoreError {
    fn from(lost: Lost) -> Self {
        Self::Unavailable { why: lost.to_string() }
    }
}

/// The objects of a folder, for as long as it is there.
#[derive(Debug)]
pub(super) struct AtHome {
    pub(super) home: Arc<Home>,
    pub(super) files: LocalFileSystem,
}

impl AtHome {
    fn check(&self) -> impl Future<Output = Result<()>> + Send + use<> {
        Arc::clone(&self.home).check()
    }

    /// What was done counts only if the folder is still there: nothing is missing, and nothing is kept, elsewhere.
    async fn checked<T>(&self, done: Result<T>) -> Result<T> {
        self.check().await?;
        done
    }
}

impl std::fmt::Display for AtHome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.files.fmt(f)
    }
}

#[async_trait::async_trait]
impl ObjectStore for AtHome {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        self.check().await?;
        self.checked(self.files.put_opts(location, payload, opts).await).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.check().await?;
        let parts = self.files.put_multipart_opts(location, opts).await?;
        Ok(Box::new(Parts { home: Arc::clone(&self.home), parts }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.checked(self.files.get_opts(location, options).await).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let home = Arc::clone(&self.home);
        let deleted = self.files.delete_stream(locations).then(move |deleted| {
            let check = Arc::clone(&home).check();
            async move { check.await.and(deleted) }
        });
        self.check().map_ok(|()| deleted).try_flatten_stream().boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let last = stream::once(self.check()).filter_map(async |checked| checked.err().map(Err));
        let listed = self.files.list(prefix).chain(last);
        self.check().map_ok(|()| listed).try_flatten_stream().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.checked(self.files.list_with_delimiter(prefix).await).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.check().await?;
        self.checked(self.files.copy_opts(from, to, options).await).await
    }
}

/// An upload in parts, which is kept only where it was begun.
#[derive(Debug)]
struct Parts {
    home: Arc<Home>,
    parts: Box<dyn MultipartUpload>,
}

#[async_trait::async_trait]
impl MultipartUpload for Parts {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.parts.put_part(data).boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        Arc::clone(&self.home).check().await?;
        let completed = self.parts.complete().await;
        Arc::clone(&self.home).check().await?;
        completed
    }

    async fn abort(&mut self) -> Result<()> {
        self.parts.abort().await
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use tempfile::TempDir;

    use super::{
        super::{Appended, BlobKey, Location, Log, Store},
        *,
    };

    /// A store that has said who it is, with a log of two records; and another place beside it.
    async fn store() -> (TempDir, PathBuf, PathBuf, Store, Log<u32>) {
        let root = TempDir::new().unwrap();
        let (place, elsewhere) = (root.path().join("store"), root.path().join("elsewhere"));
        let store = Store::open(&Location::Folder(place.clone())).await.unwrap();
        store.id().await.unwrap();
        let (mut log, _) = Log::open(&store, "numbers").await.unwrap();
        log.append(1).await.unwrap();
        log.append(2).await.unwrap();
        (root, place, elsewhere, store, log)
    }

    fn copy(from: &FilePath, to: &FilePath) {
        assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
    }

    fn is_unavailable<T: std::fmt::Debug>(done: std::result::Result<T, StoreError>) {
        let error = done.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains("/store"), "{error}");
    }

    /// All that can be asked of a store is refused.
    async fn refuses(store: &Store, log: &mut Log<u32>, key: &BlobKey) {
        is_unavailable(log.append(3).await);
        is_unavailable(log.catch_up().await);
        is_unavailable(Log::<u32>::page(store, "numbers", 2, 5).await);
        for len in [3, 9 << 20] {
            is_unavailable(store.put_blob([7; 32], len as u64, &*vec![0; len]).await);
        }
        is_unavailable(store.read_blob(key, &mut [0; 3]).await);
        is_unavailable(store.has_blob(key, 3).await);
        is_unavailable(store.erase_blob(key).await);
        is_unavailable(store.blob_sizes().await);
        is_unavailable(store.put_sheet("usage", "late", &7).await);
        is_unavailable(store.sheets("usage").await);
        is_unavailable(store.check_home().await);
    }

    #[tokio::test]
    async fn a_folder_that_is_gone_takes_no_writes_and_leaves_no_gap() {
        let (_root, place, elsewhere, store, mut log) = store().await;
        let key = store.put_blob([7; 32], 3, &b"abc"[..]).await.unwrap();
        fs::rename(&place, &elsewhere).unwrap();
        refuses(&store, &mut log, &key).await;
        assert!(!place.exists(), "nothing is made in its place");
        assert!(store.is_away_with(&place.join("journals/7")));
        fs::rename(&elsewhere, &place).unwrap();
        assert!(!store.is_away_with(&place.join("journals/7")));
        assert_eq!(log.append(3).await.unwrap(), Appended::Written(3));
        store.read_blob(&key, &mut [0; 3]).await.unwrap();
        let (_, all) = Log::<u32>::open(&store, "numbers").await.unwrap();
        assert_eq!(all.iter().map(|entry| entry.record).collect::<Vec<_>>(), [1, 2, 3]);
    }

    /// What is left where a volume was mounted.
    #[tokio::test]
    async fn an_empty_folder_in_its_place_stays_empty() {
        let (_root, place, elsewhere, store, mut log) = store().await;
        let key = store.put_blob([7; 32], 3, &b"abc"[..]).await.unwrap();
        fs::rename(&place, &elsewhere).unwrap();
        fs::create_dir(&place).unwrap();
        refuses(&store, &mut log, &key).await;
        assert_eq!(place.read_dir().unwrap().count(), 0);
        fs::remove_dir(&place).unwrap();
        fs::rename(&elsewhere, &place).unwrap();
        assert_eq!(log.append(3).await.unwrap(), Appended::Written(3));
    }

    #[tokio::test]
    async fn a_copy_in_its_place_is_the_same_store() {
        let (_root, place, elsewhere, store, mut log) = store().await;
        copy(&place, &elsewhere);
        fs::remove_dir_all(&place).unwrap();
        fs::rename(&elsewhere, &place).unwrap();
        assert_eq!(log.append(3).await.unwrap(), Appended::Written(3));
        store.put_blob([7; 32], 3, &b"abc"[..]).await.unwrap();
        // And the first of two in a row.
        copy(&place, &elsewhere);
        fs::remove_dir_all(&place).unwrap();
        fs::rename(&elsewhere, &place).unwrap();
        store.put_blob([7; 32], 3, &b"abc"[..]).await.unwrap();
        assert_eq!(log.append(4).await.unwrap(), Appended::Written(4));
    }

    #[tokio::test]
    async fn another_store_in_its_place_is_refused() {
        let (_root, place, elsewhere, store, mut log) = store().await;
        let key = store.put_blob([7; 32], 3, &b"abc"[..]).await.unwrap();
        fs::rename(&place, &elsewhere).unwrap();
        let other = Store::open(&Location::Folder(place.clone())).await.unwrap();
        other.id().await.unwrap();
        let (mut others, _) = Log::open(&other, "numbers").await.unwrap();
        for record in 5..9 {
            others.append(record).await.unwrap();
        }
        refuses(&store, &mut log, &key).await;
        assert_eq!(others.append(9).await.unwrap(), Appended::Written(5), "it has what it had");
        assert_eq!(other.blob_sizes().await.unwrap().len(), 0);
    }

    /// A backup that was put back under a running server: the next number would leave a gap in it.
    #[tokio::test]
    async fn an_earlier_state_in_its_place_is_refused_until_the_later_one_is_back() {
        let (_root, place, elsewhere, store, mut log) = store().await;
        let early = elsewhere.with_extension("early");
        copy(&place, &early);
        log.append(3).await.unwrap();
        fs::rename(&place, &elsewhere).unwrap();
        fs::rename(&early, &place).unwrap();
        for _ in 0..2 {
            let refused = log.append(4).await.unwrap_err();
            assert!(refused.to_string().contains("earlier state"), "{refused}");
            log.catch_up().await.unwrap_err();
        }
        assert_eq!(store.last_record("numbers").await.unwrap(), 2);
        fs::rename(&place, &early).unwrap();
        fs::rename(&elsewhere, &place).unwrap();
        assert_eq!(log.append(4).await.unwrap(), Appended::Written(4));
    }
}

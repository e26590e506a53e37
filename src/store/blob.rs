//! Immutable bytes.

use std::{
    collections::BTreeMap,
    fmt, io,
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use object_store::{ObjectStore as _, ObjectStoreExt as _, WriteMultipart, path::Path};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::{BLOBS, Store, StoreError, nonce, payload};

/// Blobs up to so many bytes are put in one request; larger ones in parts of this size.
pub(super) const PART: usize = 8 << 20;
/// Parts on their way at once; each is in memory meanwhile.
pub(super) const PARTS: usize = 2;

/// Names one put of some bytes: their sha256 in hexadecimal, and digits that no other put has.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BlobKey(String);

impl BlobKey {
    /// A key that no put has had.
    pub fn new(sha256: [u8; 32]) -> Result<Self, StoreError> {
        Ok(Self(format!("{}.{}", hex(sha256), nonce()?)))
    }
}

impl BlobKey {
    /// All keys of these bytes come after it, and before those of greater ones.
    pub fn first_of(sha256: [u8; 32]) -> Self {
        Self(hex(sha256) + ".")
    }

    /// Whether it is a key of these bytes.
    pub fn is_of(&self, sha256: [u8; 32]) -> bool {
        self.0.split_once('.').is_some_and(|(own, _)| own == hex(sha256))
    }
}

fn hex(sha256: [u8; 32]) -> String {
    sha256.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

/// The text is no blob's key.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no blob's key")]
pub struct NotAKey(String);

impl TryFrom<String> for BlobKey {
    type Error = NotAKey;

    /// Checked because a key becomes a path: nothing but digits and one dot.
    fn try_from(text: String) -> Result<Self, NotAKey> {
        let is_hex = |part: &str, len| {
            part.len() == len && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        match text.split_once('.') {
            Some((sha, nonce)) if is_hex(sha, 64) && is_hex(nonce, 16) => Ok(Self(text)),
            _ => Err(NotAKey(text)),
        }
    }
}

impl From<BlobKey> for String {
    fn from(key: BlobKey) -> Self {
        key.0
    }
}

impl fmt::Debug for BlobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobKey({})", self.0)
    }
}

impl Store {
    /// Stores `len` bytes, whose sha256 is said and not looked at. Durable when it returns; with an error nothing is there.
    pub async fn put_blob(
        &self,
        sha256: [u8; 32],
        len: u64,
        bytes: impl AsyncRead + Unpin,
    ) -> Result<BlobKey, StoreError> {
        let key = BlobKey::new(sha256)?;
        self.put_back(&key, len, bytes).await?;
        Ok(key)
    }

    /// Stores the bytes of a blob that was put before, and may be lost.
    pub async fn put_back(
        &self,
        key: &BlobKey,
        len: u64,
        mut bytes: impl AsyncRead + Unpin,
    ) -> Result<(), StoreError> {
        let path = self.blob_path(key);
        if len <= PART as u64 {
            let mut whole = Vec::new();
            bytes.read_to_end(&mut whole).await.map_err(|error| unread(&error))?;
            let put = self.objects.put(&path, payload(whole)).await;
            put.map_err(|error| StoreError::from_objects(error, &path))?;
        } else {
            self.put_parts(&path, bytes).await?;
        }
        Ok(())
    }

    /// Whether a blob is there, of this length.
    pub async fn has_blob(&self, key: &BlobKey, len: u64) -> Result<bool, StoreError> {
        let path = self.blob_path(key);
        match self.objects.head(&path).await {
            Ok(meta) => Ok(meta.size == len),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(StoreError::from_objects(error, &path)),
        }
    }

    async fn put_parts(
        &self,
        path: &Path,
        mut bytes: impl AsyncRead + Unpin,
    ) -> Result<(), StoreError> {
        let failed = |error| StoreError::from_objects(error, path);
        let upload = self.objects.put_multipart(path).await.map_err(failed)?;
        let mut parts = WriteMultipart::new_with_chunk_size(upload, PART);
        loop {
            let mut part = Vec::with_capacity(PART);
            let read = (&mut bytes).take(PART as u64).read_to_end(&mut part).await;
            let sent = match read {
                Ok(0) => return parts.finish().await.map(drop).map_err(failed),
                Ok(_) => parts.wait_for_capacity(PARTS).await.map_err(failed),
                Err(error) => Err(unread(&error)),
            };
            if let Err(error) = sent {
                // What has arrived would be kept, and paid for, by the store.
                if let Err(abort) = parts.abort().await {
                    tracing::warn!(%path, %abort, "parts of an upload are left in the store");
                }
                return Err(error);
            }
            parts.put(part.into());
        }
    }

    /// Reads a blob of exactly `into.len()` bytes.
    pub async fn read_blob(&self, key: &BlobKey, into: &mut [u8]) -> Result<(), StoreError> {
        let path = self.blob_path(key);
        let failed = |error| StoreError::from_objects(error, &path);
        let mut pieces = self.objects.get(&path).await.map_err(failed)?.into_stream();
        let (wanted, mut at) = (into.len(), 0);
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(failed)?;
            let end = at + piece.len();
            if end > wanted {
                return Err(StoreError::damaged(
                    &path,
                    &format!("it has more than {wanted} bytes"),
                ));
            }
            into[at..end].copy_from_slice(&piece);
            at = end;
        }
        if at < wanted {
            return Err(StoreError::damaged(&path, &format!("it has {at} of {wanted} bytes")));
        }
        Ok(())
    }

    /// A blob's bytes as they come.
    pub async fn blob(
        &self,
        key: &BlobKey,
    ) -> Result<BoxStream<'static, Result<bytes::Bytes, StoreError>>, StoreError> {
        let path = self.blob_path(key);
        let got = self.objects.get(&path).await;
        let got = got.map_err(|error| StoreError::from_objects(error, &path))?;
        let failed = move |error| StoreError::from_objects(error, &path);
        Ok(got.into_stream().map_err(failed).boxed())
    }

    /// Erases a blob. One that is not there is erased already.
    pub async fn erase_blob(&self, key: &BlobKey) -> Result<(), StoreError> {
        let path = self.blob_path(key);
        match self.objects.delete(&path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(StoreError::from_objects(error, &path)),
        }
    }

    /// Lengths of all blobs.
    pub async fn blob_sizes(&self) -> Result<BTreeMap<BlobKey, u64>, StoreError> {
        let folder = self.root.clone().join(BLOBS);
        let listed = self.objects.list(Some(&folder)).try_filter_map(async |meta| {
            let key = meta.location.filename().map(str::to_owned).map(BlobKey::try_from);
            Ok(key.and_then(Result::ok).map(|key| (key, meta.size)))
        });
        listed.try_collect().await.map_err(|error| StoreError::from_objects(error, &folder))
    }

    /// Reads all of a blob, and whether its bytes are those that its key says.
    pub async fn is_sound(&self, key: &BlobKey) -> Result<bool, StoreError> {
        let mut pieces = self.blob(key).await?;
        let mut hasher = Sha256::new();
        while let Some(piece) = pieces.next().await {
            hasher.update(piece?);
        }
        Ok(key.is_of(hasher.finalize().into()))
    }

    /// All blobs that were put at least so long ago.
    pub async fn blobs(&self, at_least: Duration) -> Result<Vec<BlobKey>, StoreError> {
        let folder = self.root.clone().join(BLOBS);
        let now = SystemTime::now();
        let listed = self.objects.list(Some(&folder)).try_filter_map(async |meta| {
            let age = now.duration_since(meta.last_modified.into()).unwrap_or_default();
            let key = meta.location.filename().map(str::to_owned).map(BlobKey::try_from);
            Ok(key.and_then(Result::ok).filter(|_| age >= at_least))
        });
        listed.try_collect().await.map_err(|error| StoreError::from_objects(error, &folder))
    }

    pub(super) fn blob_path(&self, key: &BlobKey) -> Path {
        self.root.clone().join(BLOBS).join(key.0.as_str())
    }
}

/// The bytes that were to be stored cannot be read: the disk they are spooled on.
fn unread(error: &io::Error) -> StoreError {
    StoreError::Unavailable { why: format!("what was to be stored cannot be read: {error}") }
}

#[cfg(test)]
mod tests {
    use super::{super::faults::Fault, *};

    const SHA: [u8; 32] = [0xab; 32];

    async fn put(store: &Store, bytes: &[u8]) -> BlobKey {
        store.put_blob(SHA, bytes.len() as u64, bytes).await.unwrap()
    }

    #[tokio::test]
    async fn what_is_put_is_read_back_in_one_piece_or_in_parts() {
        let root = tempfile::TempDir::new().unwrap();
        let local = Store::open(&super::super::Location::Folder(root.path().to_owned())).await;
        for store in [Store::faulty().0, local.unwrap()] {
            for len in [0, 1, 1000, PART, PART + 1, 3 * PART + 5] {
                let bytes: Vec<u8> = (0..251).cycle().take(len).collect();
                let key = put(&store, &bytes).await;
                let mut read = vec![0; len];
                store.read_blob(&key, &mut read).await.unwrap();
                assert!(read == bytes, "{len}");
            }
        }
    }

    #[tokio::test]
    async fn another_length_than_expected_is_damage() {
        let (store, _) = Store::faulty();
        let key = put(&store, b"12345").await;
        for len in [4, 6] {
            let error = store.read_blob(&key, &mut vec![0; len]).await.unwrap_err();
            assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn equal_bytes_have_different_keys_and_are_erased_apart() {
        let (store, _) = Store::faulty();
        let (one, two) = (put(&store, b"same").await, put(&store, b"same").await);
        assert_ne!(one, two);
        store.erase_blob(&one).await.unwrap();
        store.erase_blob(&one).await.unwrap();
        let gone = store.read_blob(&one, &mut [0; 4]).await.unwrap_err();
        assert!(matches!(gone, StoreError::NotFound { .. }), "{gone}");
        store.read_blob(&two, &mut [0; 4]).await.unwrap();
        assert_eq!(store.blobs(Duration::ZERO).await.unwrap(), [two]);
        assert_eq!(store.blobs(Duration::from_hours(1)).await.unwrap(), []);
        let sizes = store.blob_sizes().await.unwrap();
        assert_eq!(sizes.into_values().collect::<Vec<_>>(), [4]);
    }

    #[tokio::test]
    async fn bytes_are_held_against_their_key() {
        let (store, _) = Store::faulty();
        let key = store.put_blob(Sha256::digest(b"12345").into(), 5, &b"12345"[..]).await.unwrap();
        assert!(store.is_sound(&key).await.unwrap());
        store.put_back(&key, 5, &b"12346"[..]).await.unwrap();
        assert!(!store.is_sound(&key).await.unwrap());
    }

    #[tokio::test]
    async fn a_put_that_fails_leaves_nothing() {
        let (store, faults) = Store::faulty();
        for len in [5, 3 * PART] {
            faults.next_put(Fault::RequestLost);
            let bytes = vec![1; len];
            let error = store.put_blob(SHA, len as u64, &*bytes).await.unwrap_err();
            assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
            assert_eq!(store.blobs(Duration::ZERO).await.unwrap(), []);
        }
    }

    #[test]
    fn keys_from_outside_are_checked() {
        let good = format!("{}.{}", "a1".repeat(32), "0f".repeat(8));
        assert_eq!(String::from(BlobKey::try_from(good.clone()).unwrap()), good);
        let upper = good.to_uppercase();
        for bad in ["", ".", "../../etc/passwd", &upper, &good[1..], &format!("{good}.0")] {
            assert!(BlobKey::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}

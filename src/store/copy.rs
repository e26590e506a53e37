//! A store's objects on their way to another store, as they are.

use std::{collections::BTreeMap, fmt};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::{ObjectStore as _, ObjectStoreExt as _, PutMode, WriteMultipart, path::Path};
use sha2::{Digest as _, Sha256};

use super::{
    BlobKey, Store, StoreError,
    blob::{PART, PARTS},
    log::{log_folder, record_key},
    payload,
};

/// Records and documents that are copied side by side.
const COPIERS: usize = 16;

/// Why something is not copied.
#[derive(Debug, thiserror::Error)]
pub enum NotCopied {
    /// The store that is copied does not give it, or is damaged.
    #[error("the store that is copied: {0}")]
    From(#[source] StoreError),
    /// The store that is copied to does not take it.
    #[error("the store that is copied to: {0}")]
    To(#[source] StoreError),
    /// The store that is copied to is no earlier state of the other one.
    #[error(
        "the store that is copied to has another history: its {key} is not the other store's; copy to a new place"
    )]
    Diverged {
        /// Where they differ.
        key: String,
    },
}

impl Store {
    /// Copies a log's records up to a number to a store that has those before, or none. Returns how many were not there.
    pub async fn copy_log(&self, log: &str, last: u64, to: &Self) -> Result<u64, NotCopied> {
        let there = self.leads_on(log, last, to).await?;
        let (from_folder, to_folder) = (log_folder(self, log), log_folder(to, log));
        // A copy that was broken off may lack some of its last ones.
        let first = there.saturating_sub(COPIERS as u64) + 1;
        let copies = stream::iter(first..=last).map(async |number| {
            let bytes = self.get(&record_key(&from_folder, number)).await;
            let bytes = bytes.map_err(NotCopied::From)?;
            let key = record_key(&to_folder, number);
            match to.objects.put_opts(&key, payload(bytes), PutMode::Create.into()).await {
                Ok(_) => Ok(1),
                Err(object_store::Error::AlreadyExists { .. }) => Ok(0),
                Err(error) => Err(NotCopied::To(StoreError::from_objects(error, &key))),
            }
        });
        copies.buffered(COPIERS).try_fold(0, async |sum, one| Ok(sum + one)).await
    }

    /// Fails unless the other store's log is an earlier state of this one's up to a number; returns where it ends.
    pub async fn leads_on(&self, log: &str, last: u64, to: &Self) -> Result<u64, NotCopied> {
        let there = to.last_record(log).await.map_err(NotCopied::To)?;
        let (from_folder, to_folder) = (log_folder(self, log), log_folder(to, log));
        let diverged = |number| {
            let key = record_key(&to_folder, number).to_string();
            NotCopied::Diverged { key }
        };
        if there > last {
            return Err(diverged(there));
        }
        // No two attempts to write are the same bytes, and each follows on all before.
        if there > 0 && !self.has_same(to, &from_folder, &to_folder, there).await? {
            return Err(diverged(there));
        }
        Ok(there)
    }

    /// Whether both have the same bytes as this record.
    async fn has_same(
        &self,
        to: &Self,
        from_folder: &Path,
        to_folder: &Path,
        number: u64,
    ) -> Result<bool, NotCopied> {
        let theirs = to.get(&record_key(to_folder, number)).await.map_err(NotCopied::To)?;
        match self.get(&record_key(from_folder, number)).await {
            Ok(ours) => Ok(ours == theirs),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(NotCopied::From(error)),
        }
    }

    /// Copies a blob, whose bytes must be those that its key says. Returns its length.
    pub async fn copy_blob(&self, key: &BlobKey, to: &Self) -> Result<u64, NotCopied> {
        let mut pieces = self.blob(key).await.map_err(NotCopied::From)?;
        let (path, mut hasher, mut len) = (to.blob_path(key), Sha256::new(), 0);
        let (mut part, mut parts) = (Vec::new(), None);
        let failed = |error| NotCopied::To(StoreError::from_objects(error, &path));
        while let Some(piece) = pieces.next().await {
            let sent = match piece {
                Ok(piece) => {
                    hasher.update(&piece);
                    len += piece.len() as u64;
                    part.extend_from_slice(&piece);
                    if part.len() < PART {
                        continue;
                    }
                    to.send_part(&path, &mut parts, std::mem::take(&mut part)).await
                }
                Err(error) => Err(NotCopied::From(error)),
            };
            if let Err(error) = sent {
                give_up(parts, &path).await;
                return Err(error);
            }
        }
        if !key.is_of(hasher.finalize().into()) {
            give_up(parts, &path).await;
            let damaged = StoreError::damaged(&self.blob_path(key), &"its sha256 is another");
            return Err(NotCopied::From(damaged));
        }
        match parts {
            None => to.objects.put(&path, payload(part)).await.map(drop).map_err(failed)?,
            Some(mut parts) => {
                if !part.is_empty() {
                    parts.put(part.into());
                }
                parts.finish().await.map(drop).map_err(failed)?;
            }
        }
        Ok(len)
    }

    async fn send_part(
        &self,
        path: &Path,
        parts: &mut Option<WriteMultipart>,
        part: Vec<u8>,
    ) -> Result<(), NotCopied> {
        let failed = |error| NotCopied::To(StoreError::from_objects(error, path));
        let parts = match parts {
            Some(parts) => parts,
            none => {
                let upload = self.objects.put_multipart(path).await.map_err(failed)?;
                none.insert(WriteMultipart::new_with_chunk_size(upload, PART))
            }
        };
        parts.wait_for_capacity(PARTS).await.map_err(failed)?;
        parts.put(part.into());
        Ok(())
    }

    /// Copies whatever lies below these folders, but for the logs of these names. Returns how many objects were not there
    /// as they are.
    pub async fn copy_others(
        &self,
        folders: &[&str],
        but: &[&str],
        to: &Self,
    ) -> Result<u64, NotCopied> {
        let mut copied = 0;
        for folder in folders {
            let ours = self.sizes(folder).await.map_err(NotCopied::From)?;
            let theirs = to.sizes(folder).await.map_err(NotCopied::To)?;
            let is_log = |key: &str| but.iter().any(|log| key.starts_with(&format!("logs/{log}/")));
            let wanted = ours
                .iter()
                .filter(|(key, size)| !is_log(key) && theirs.get(*key) != Some(*size))
                .map(|(key, _)| self.copy_object(key, to));
            let copies = stream::iter(wanted.collect::<Vec<_>>()).buffered(COPIERS);
            copied += copies.try_fold(0, async |sum, ()| Ok(sum + 1)).await?;
        }
        Ok(copied)
    }

    async fn copy_object(&self, key: &str, to: &Self) -> Result<(), NotCopied> {
        let below = |store: &Self| key.split('/').fold(store.root.clone(), Path::join);
        let bytes = self.get(&below(self)).await.map_err(NotCopied::From)?;
        let path = below(to);
        let put = to.objects.put(&path, payload(bytes)).await;
        put.map(drop).map_err(|error| NotCopied::To(StoreError::from_objects(error, &path)))
    }

    /// Lengths of the objects below a folder, by their keys without what all begin with.
    async fn sizes(&self, folder: &str) -> Result<BTreeMap<String, u64>, StoreError> {
        let folder = self.root.clone().join(folder);
        let listed = self.objects.list(Some(&folder)).try_filter_map(async |meta| {
            let key = meta.location.prefix_match(&self.root);
            let key = key.map(|parts| {
                parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/")
            });
            Ok(key.map(|key| (key, meta.size)))
        });
        listed.try_collect().await.map_err(|error| StoreError::from_objects(error, &folder))
    }
}

/// Takes back what has arrived of a blob.
async fn give_up(parts: Option<WriteMultipart>, path: &Path) {
    if let Some(parts) = parts
        && let Err(error) = parts.abort().await
    {
        tracing::warn!(%path, %error, "parts of a copy are left in the store");
    }
}

impl fmt::Display for BlobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from(self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Appended, Log},
        *,
    };

    async fn log(store: &Store) -> Log<u32> {
        Log::open(store, "numbers").await.unwrap().0
    }

    #[tokio::test]
    async fn a_log_is_copied_on_from_where_the_copy_ends() {
        let (from, to) = (Store::faulty().0, Store::faulty().0);
        let mut numbers = log(&from).await;
        for record in 0..5 {
            numbers.append(record).await.unwrap();
        }
        assert_eq!(from.copy_log("numbers", 3, &to).await.unwrap(), 3);
        assert_eq!(from.copy_log("numbers", 5, &to).await.unwrap(), 2);
        assert_eq!(from.copy_log("numbers", 5, &to).await.unwrap(), 0);
        let (mut copy, entries) = Log::<u32>::open(&to, "numbers").await.unwrap();
        assert_eq!(entries.iter().map(|entry| entry.record).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        // A copy that lives on is no copy any more.
        assert_eq!(copy.append(9).await.unwrap(), Appended::Written(6));
        let ahead = from.copy_log("numbers", 5, &to).await.unwrap_err();
        assert!(matches!(ahead, NotCopied::Diverged { .. }), "{ahead}");
        numbers.append(9).await.unwrap();
        let other = from.copy_log("numbers", 6, &to).await.unwrap_err();
        assert!(other.to_string().contains("numbers/00000000000000000006.json"), "{other}");
    }

    #[tokio::test]
    async fn blobs_are_copied_if_they_are_sound() {
        let (from, to) = (Store::faulty().0, Store::faulty().0);
        for len in [0, 1000, PART, PART + 1, 3 * PART + 5] {
            let bytes: Vec<u8> = (0..251).cycle().take(len).collect();
            let sha256 = Sha256::digest(&bytes).into();
            let key = from.put_blob(sha256, len as u64, &*bytes).await.unwrap();
            assert_eq!(from.copy_blob(&key, &to).await.unwrap(), len as u64);
            let mut read = vec![0; len];
            to.read_blob(&key, &mut read).await.unwrap();
            assert!(read == bytes, "{len}");
            let bad = from.put_blob([7; 32], len as u64, &*bytes).await.unwrap();
            let error = from.copy_blob(&bad, &to).await.unwrap_err();
            assert!(matches!(error, NotCopied::From(StoreError::Damaged { .. })), "{error}");
            assert!(!to.has_blob(&bad, len as u64).await.unwrap());
        }
        let gone = BlobKey::new([1; 32]).unwrap();
        let error = from.copy_blob(&gone, &to).await.unwrap_err();
        assert!(matches!(error, NotCopied::From(StoreError::NotFound { .. })), "{error}");
    }

    #[tokio::test]
    async fn what_else_there_is_is_copied_once() {
        let (from, to) = (Store::faulty().0, Store::faulty().0);
        let mut numbers = log(&from).await;
        numbers.append(1).await.unwrap();
        let put = async |key: &str, text: &'static str| {
            from.objects.put(&Path::from(key), payload(text.as_bytes())).await.unwrap();
        };
        put("logs/others/1.json", "{}").await;
        put("sheets/a/b.json", "{}").await;
        put("elsewhere/b.json", "{}").await;
        let folders = ["logs", "sheets"];
        assert_eq!(from.copy_others(&folders, &["numbers"], &to).await.unwrap(), 2);
        assert_eq!(from.copy_others(&folders, &["numbers"], &to).await.unwrap(), 0);
        let sizes = to.sizes("logs").await.unwrap();
        assert_eq!(sizes.into_keys().collect::<Vec<_>>(), ["logs/others/1.json"]);
    }
}

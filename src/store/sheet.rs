//! Small documents that are written once.

use futures_util::TryStreamExt as _;
use object_store::{ObjectStore as _, PutMode, path::Path};
use serde::{Serialize, de::DeserializeOwned};

use super::{SHEETS, Store, StoreError, nonce, payload};

impl Store {
    /// Writes a sheet under a name of a folder. One that is there stays as it is: it is taken for the same.
    pub async fn put_sheet(
        &self,
        folder: &str,
        name: &str,
        content: &impl Serialize,
    ) -> Result<(), StoreError> {
        self.make_folder(&format!("{SHEETS}/{folder}"))?;
        let key = self.sheet_key(folder, name);
        let bytes =
            serde_json::to_vec(content).map_err(|error| StoreError::damaged(&key, &error))?;
        match self.objects.put_opts(&key, payload(bytes), PutMode::Create.into()).await {
            Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(StoreError::from_objects(error, &key)),
        }
    }

    /// The names of a folder's sheets, in order.
    pub async fn sheets(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        let folder = self.sheets_folder(folder);
        let listed = self.objects.list(Some(&folder));
        let name = |meta: object_store::ObjectMeta| {
            meta.location.filename()?.strip_suffix(ENDING).map(str::to_owned)
        };
        let names = listed.try_filter_map(async |meta| Ok(name(meta))).try_collect().await;
        let mut names: Vec<_> = names.map_err(|error| StoreError::from_objects(error, &folder))?;
        names.sort_unstable();
        Ok(names)
    }

    /// What a sheet says.
    pub async fn sheet<T: DeserializeOwned>(
        &self,
        folder: &str,
        name: &str,
    ) -> Result<T, StoreError> {
        let key = self.sheet_key(folder, name);
        let bytes = self.get(&key).await?;
        serde_json::from_slice(&bytes).map_err(|error| StoreError::damaged(&key, &error))
    }

    /// What tells this store from every other, also where it is reached in another way: sixteen hexadecimal digits. It has them
    /// from the first time that it is asked. A copy has those of what it was copied from.
    pub async fn id(&self) -> Result<String, StoreError> {
        let known = match self.sheet(OWN, ID).await {
            Err(StoreError::NotFound { .. }) => {
                self.put_sheet(OWN, ID, &nonce()?).await?;
                // Somebody else may have been first.
                self.sheet(OWN, ID).await
            }
            known => known,
        };
        let id: String = known?;
        // Folders are called after it.
        if id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            if let Some(home) = &self.home {
                home.knows(&id);
            }
            return Ok(id);
        }
        Err(StoreError::damaged(&self.sheet_key(OWN, ID), &"it is no id"))
    }

    fn sheets_folder(&self, folder: &str) -> Path {
        self.root.clone().join(SHEETS).join(folder)
    }

    fn sheet_key(&self, folder: &str, name: &str) -> Path {
        self.sheets_folder(folder).join(format!("{name}{ENDING}"))
    }
}

const ENDING: &str = ".json";
/// Where a store says of itself who it is.
const OWN: &str = "store";
const ID: &str = "id";

/// Where the id is, below the store's directory.
pub(super) fn own_id() -> String {
    format!("{SHEETS}/{OWN}/{ID}{ENDING}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sheet_is_written_once_and_read_by_its_name() {
        let (store, _) = Store::faulty();
        assert_eq!(store.sheets("usage").await.unwrap(), [""; 0]);
        store.put_sheet("usage", "b", &7).await.unwrap();
        store.put_sheet("usage", "a", &8).await.unwrap();
        store.put_sheet("usage", "b", &9).await.unwrap();
        assert_eq!(store.sheets("usage").await.unwrap(), ["a", "b"]);
        assert_eq!(store.sheet::<u32>("usage", "b").await.unwrap(), 7);
        let missing = store.sheet::<u32>("usage", "c").await.unwrap_err();
        assert!(matches!(missing, StoreError::NotFound { .. }), "{missing}");
        let other = store.sheet::<Vec<u32>>("usage", "a").await.unwrap_err();
        assert!(other.to_string().contains("sheets/usage/a.json"), "{other}");
    }

    #[tokio::test]
    async fn a_store_keeps_an_id_that_no_other_has() {
        let ((one, _), (two, _)) = (Store::faulty(), Store::faulty());
        let id = one.id().await.unwrap();
        assert_eq!(one.id().await.unwrap(), id);
        assert_ne!(two.id().await.unwrap(), id);
        let (odd, _) = Store::faulty();
        odd.put_sheet(OWN, ID, &"../elsewhere").await.unwrap();
        let refused = odd.id().await.unwrap_err();
        assert!(matches!(refused, StoreError::Damaged { .. }), "{refused}");
    }
}

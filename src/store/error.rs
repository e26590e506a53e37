//! What can go wrong with a store.

use std::{error::Error, io, path::PathBuf};

use object_store::path::Path;

use super::home::Lost;

/// Why the store did not do what it was asked. For the operator's eyes: messages name keys, and what the store said.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// There is nothing under this key.
    #[error("the store has no {key}")]
    NotFound {
        /// The key.
        key: String,
    },
    /// No room is left.
    #[error("the store is full: {why}")]
    Full {
        /// What it said.
        why: String,
    },
    /// It cannot be reached, refuses, or takes too long. The request may have been done all the same.
    #[error("the store did not answer: {why}")]
    Unavailable {
        /// What it said.
        why: String,
    },
    /// What lies under this key is not what was put there.
    #[error("{key} in the store is damaged, or of a newer chorus: {why}")]
    Damaged {
        /// The key.
        key: String,
        /// How that was noticed.
        why: String,
    },
}

impl StoreError {
    /// Sorts what the library says.
    pub(super) fn from_objects(error: object_store::Error, key: &Path) -> Self {
        let why = reasons(&error);
        match error {
            object_store::Error::Generic { source, .. } if source.is::<Lost>() => {
                Self::Unavailable { why: source.to_string() }
            }
            object_store::Error::NotFound { .. } => Self::NotFound { key: key.to_string() },
            error if is_full(&error) => Self::Full { why },
            _ => Self::Unavailable { why },
        }
    }

    /// Sorts what the system says of a directory.
    pub(super) fn from_io(error: io::Error, key: &Path) -> Self {
        Self::from_objects(
            object_store::Error::Generic { store: "folder", source: Box::new(error) },
            key,
        )
    }

    pub(super) fn damaged(key: &Path, why: &impl ToString) -> Self {
        Self::Damaged { key: key.to_string(), why: why.to_string() }
    }
}

/// Whether a full disk is at the bottom of it, or a quota.
fn is_full(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        if matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The message with those of its causes that say something new, on one line.
fn reasons(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text.replace('\n', " ")
}

/// Why a store cannot be opened. For the operator's eyes.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be made or used.
    #[error("the store's folder {} cannot be used: {error}; choose another with --store", path.display())]
    Folder {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The URL, or the variables with its credentials, are not enough.
    #[error("the store {url} cannot be used: {why}")]
    Settings {
        /// The URL.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// It was to be looked at, and there is none.
    #[error("there is no store at {place}: it has no chorus.json; name it with --store")]
    Absent {
        /// Where.
        place: String,
    },
    /// It is of another version of chorus.
    #[error("the store has format {found}, and this chorus reads format {known}")]
    Format {
        /// In the store.
        found: u32,
        /// Known here.
        known: u32,
    },
    /// It is there and does not answer.
    #[error(transparent)]
    Store(StoreError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_others() {
        let wrapped = |kind| object_store::Error::Generic {
            store: "test",
            source: Box::new(io::Error::new(kind, io::Error::from(kind))),
        };
        let key = Path::from("a");
        let full = StoreError::from_objects(wrapped(io::ErrorKind::StorageFull), &key);
        assert!(matches!(full, StoreError::Full { .. }), "{full}");
        let other = StoreError::from_objects(wrapped(io::ErrorKind::PermissionDenied), &key);
        assert!(matches!(other, StoreError::Unavailable { .. }), "{other}");
    }
}

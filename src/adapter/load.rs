//! From a digest to something that can be lent.

use super::BadFile;
use crate::{
    lora::{self, Digest},
    store::StoreError,
};

/// Where the cache gets what it does not hold.
pub(super) trait Source: Send + Sync + 'static {
    /// What is kept in memory and lent.
    type Loaded: Send + Sync + 'static;

    /// Reads and builds; blocks for as long as that takes. What comes back has this digest and takes `bytes` of memory.
    fn load(&self, digest: Digest, bytes: usize) -> Result<Self::Loaded, LoadError>;
}

/// Why an adapter that is known cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Nothing has this content.
    #[error("its files are gone")]
    Gone,
    /// The files are others than those that were checked at the start.
    #[error("its files have changed since the server started; restart it to serve the new ones")]
    Changed,
    /// What the store gives is not what was put there.
    #[error("its files in the store are damaged")]
    Damaged,
    /// The store does not give them now.
    #[error(transparent)]
    Store(StoreError),
    /// A file cannot be read any more.
    #[error(transparent)]
    File(#[from] BadFile),
    /// The files are no adapter for this base.
    #[error(transparent)]
    Adapter(#[from] lora::Refusal),
    /// The system has no memory for it, although the budget has.
    #[error("the system has no {bytes} bytes of memory left for it; lower --adapter-cache-bytes")]
    NoMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// It does not take the memory that was reserved for it.
    #[error("it takes {needed} bytes of memory where {reserved} were reserved")]
    Memory {
        /// Bytes reserved.
        reserved: usize,
        /// Bytes that it takes.
        needed: usize,
    },
    /// The load ended without a result: it panicked, or the server is stopping.
    #[error("its load was broken off")]
    BrokenOff,
}

impl From<lora::BuildError> for LoadError {
    fn from(error: lora::BuildError) -> Self {
        match error {
            lora::BuildError::Refused(refusal) => Self::Adapter(refusal),
            lora::BuildError::NoMemory { bytes } => Self::NoMemory { bytes },
        }
    }
}

//! Where adapters are loaded from: the folder, or the store.

use std::sync::Arc;

use tokio::runtime::Handle;

use super::{
    Folder, LoadError,
    files::{Files, Pages},
    load::Source,
    record::Blob,
    registry::{self, Registry},
};
use crate::{
    lora::{Adapter, Base, Digest, Limits, Matrices, peft},
    store::{Store, StoreError},
};

/// A file that arrives damaged is read so often.
const ATTEMPTS: usize = 2;

/// Reads an adapter's files from where they are, and builds it for the base.
#[derive(Debug)]
pub(super) struct Shelf {
    pub(super) folder: Arc<Folder>,
    pub(super) base: Arc<dyn Base>,
    pub(super) limits: Limits,
    /// As what they are kept.
    pub(super) matrices: Matrices,
    /// Knows where in the store.
    pub(super) registry: Arc<Registry>,
    pub(super) store: Store,
    /// Waits for the store: loads have threads of their own.
    pub(super) runtime: Handle,
}

impl Source for Shelf {
    type Loaded = Adapter;

    fn load(&self, digest: Digest, bytes: usize) -> Result<Adapter, LoadError> {
        build(digest, &self.read(digest)?, bytes, (&*self.base, &self.limits, self.matrices))
    }
}

impl Shelf {
    /// Both files, from the folder where they are there as they were, else from the store.
    fn read(&self, digest: Digest) -> Result<Files, LoadError> {
        let mut last = match self.folder.read(digest) {
            Ok(files) => return Ok(files),
            Err(error) => error,
        };
        for _ in 0..ATTEMPTS {
            // Looked up again each time: a place may be erased while it is read.
            for place in self.registry.files(digest) {
                match self.runtime.block_on(self.fetch(&place)) {
                    Ok(files) if files.digest() == digest => return Ok(files),
                    Ok(_) => last = LoadError::Damaged,
                    Err(error) => last = error,
                }
            }
        }
        Err(last)
    }

    async fn fetch(&self, place: &registry::Files) -> Result<Files, LoadError> {
        Ok(Files {
            config: self.pages(&place.config).await?,
            weights: self.pages(&place.weights).await?,
        })
    }

    async fn pages(&self, blob: &Blob) -> Result<Pages, LoadError> {
        let bytes = usize::try_from(blob.bytes).unwrap_or(usize::MAX);
        let mut pages = Pages::zeros(bytes).map_err(|_| LoadError::NoMemory { bytes })?;
        match self.store.read_blob(&blob.key, pages.bytes_mut()).await {
            Ok(()) => Ok(pages),
            Err(StoreError::NotFound { .. }) => Err(LoadError::Gone),
            Err(error @ StoreError::Damaged { .. }) => {
                tracing::error!(key = ?blob.key, %error, "a file in the store is damaged");
                Err(LoadError::Damaged)
            }
            Err(error) => Err(LoadError::Store(error)),
        }
    }
}

/// Builds what these files are, in the `reserved` bytes of memory.
pub(super) fn build(
    digest: Digest,
    files: &Files,
    reserved: usize,
    (base, limits, matrices): (&dyn Base, &Limits, Matrices),
) -> Result<Adapter, LoadError> {
    let sites = base.sites();
    let manifest = peft::read(&files.config, &files.weights, sites, limits)?;
    let needed = Adapter::planned_memory(&manifest, sites).of(matrices);
    if needed != reserved {
        return Err(LoadError::Memory { reserved, needed });
    }
    let adapter = Adapter::build(digest, &manifest, base, matrices)?;
    // The budget would no longer be what its operator was promised.
    let needed = adapter.bytes();
    if needed == reserved { Ok(adapter) } else { Err(LoadError::Memory { reserved, needed }) }
}

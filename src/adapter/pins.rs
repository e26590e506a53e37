//! Adapters that stay in memory.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
};

use tokio::sync::Notify;

use super::Adapters;
use crate::lora::{Digest, Lease};

/// Leases of what is pinned: who holds a lease cannot be evicted.
#[derive(Debug, Default)]
pub(super) struct Pins {
    held: Mutex<HashMap<Digest, Lease>>,
    /// What is pinned may have changed.
    pub(super) wake: Arc<Notify>,
}

impl Pins {
    /// Whether one of this content's leases is the pin's own.
    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.held.lock().expect(NO_PANIC).contains_key(digest)
    }

    fn insert(&self, digest: Digest, lease: Lease) {
        let before = self.held.lock().expect(NO_PANIC).insert(digest, lease);
        drop(before);
    }

    /// Gives back all but these.
    fn keep_only(&self, wanted: &HashSet<Digest>) {
        let mut held = self.held.lock().expect(NO_PANIC);
        let gone: Vec<_> = held.extract_if(|digest, _| !wanted.contains(digest)).collect();
        drop(held);
        // Outside of the lock: a lease that ends takes the cache's.
        drop(gone);
    }
}

/// Why the lock is never poisoned.
const NO_PANIC: &str = "nothing that is done under it panics";

impl Adapters {
    /// Bytes of memory that pinned adapters may take together: half, so that the others do not wait for ever.
    pub(super) fn most_pinned(&self) -> usize {
        self.shared.budget / 2
    }

    /// Bytes of memory of all that is pinned.
    pub(super) fn pinned_bytes(&self) -> usize {
        let pinned = self.shared.registry.pinned();
        let by_content: HashMap<_, _> =
            pinned.iter().map(|entry| (entry.revision.digest, entry.content.memory())).collect();
        // A record may say anything: a sum that wrapped round would let in what does not fit.
        by_content.values().fold(0, |sum: usize, memory| sum.saturating_add(*memory))
    }

    /// Brings what is held to what is pinned, as far as memory allows.
    pub(super) async fn hold_pins(&self) {
        let (mut wanted, mut left) = (HashSet::new(), self.most_pinned());
        let pinned = self.shared.registry.pinned();
        for entry in &pinned {
            let digest = entry.revision.digest;
            if wanted.contains(&digest) {
                continue;
            }
            let memory = entry.content.memory();
            if memory > left {
                tracing::warn!(name = %entry.revision.name, memory, "no memory is left to pin it");
                continue;
            }
            left -= memory;
            wanted.insert(digest);
        }
        self.shared.pins.keep_only(&wanted);
        for entry in pinned {
            let digest = entry.revision.digest;
            if !wanted.contains(&digest) || self.shared.pins.has(&digest) {
                continue;
            }
            match self.hold(&entry.revision).await {
                Ok(lease) => self.shared.pins.insert(digest, lease),
                Err(error) => tracing::warn!(name = %entry.revision.name, %error, "not pinned yet"),
            }
        }
    }
}

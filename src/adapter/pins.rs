//! Adapters that stay in memory.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
};

use tokio::sync::Notify;

use super::{Adapters, NotChanged};
use crate::{
    lora::{Digest, Lease},
    tenant::TenantId,
};

/// Leases of what is pinned: who holds a lease cannot be evicted.
#[derive(Debug, Default)]
pub(super) struct Pins {
    held: Mutex<HashMap<Pinned, Lease>>,
    /// What is pinned may have changed.
    pub(super) wake: Arc<Notify>,
}

/// A content that is kept for a tenant: each tenant's lease is its own, and charged to it.
type Pinned = (TenantId, Digest);

impl Pins {
    fn has(&self, pinned: &Pinned) -> bool {
        self.held.lock().expect(NO_PANIC).contains_key(pinned)
    }

    fn insert(&self, pinned: Pinned, lease: Lease) {
        let before = self.held.lock().expect(NO_PANIC).insert(pinned, lease);
        drop(before);
    }

    /// Gives back all but these.
    fn keep_only(&self, wanted: &HashSet<Pinned>) {
        let mut held = self.held.lock().expect(NO_PANIC);
        let gone: Vec<_> = held.extract_if(|pinned, _| !wanted.contains(pinned)).collect();
        drop(held);
        // Outside of the lock: a lease that ends takes the cache's.
        drop(gone);
    }
}

/// Why the lock is never poisoned.
const NO_PANIC: &str = "nothing that is done under it panics";

impl Adapters {
    /// Bytes of memory that pinned adapters may take together: half, so that the others do not wait for ever. Of a tenant
    /// as much, of what it may have.
    fn most_pinned(&self, tenant: Option<TenantId>) -> usize {
        tenant.map_or(self.shared.budget, |tenant| self.most_resident(tenant)) / 2
    }

    /// Refuses to pin what a tenant's, or all, pinned adapters would take too much memory with.
    pub(super) fn check_pin(&self, tenant: TenantId, memory: usize) -> Result<(), NotChanged> {
        let pinned = self.shared.registry.pinned();
        for whose in [Some(tenant), None] {
            let counted = pinned.iter().filter(|(by, _)| whose.is_none_or(|tenant| tenant == *by));
            let by_content: HashMap<_, _> =
                counted.map(|(_, entry)| (entry.revision.digest, entry.content.memory())).collect();
            // A record may say anything: a sum that wrapped round would let in what does not fit.
            let wanted =
                by_content.values().fold(memory, |sum: usize, more| sum.saturating_add(*more));
            let most = self.most_pinned(whose);
            if wanted > most {
                return Err(NotChanged::TooMuchPinned { wanted, most });
            }
        }
        Ok(())
    }

    /// Brings what is held to what is pinned, as far as memory allows.
    pub(super) async fn hold_pins(&self) {
        let pinned = self.shared.registry.pinned();
        let mut wanted = HashSet::new();
        let mut left = HashMap::from([(None, self.most_pinned(None))]);
        for (tenant, entry) in &pinned {
            let (whose, digest) = (Some(*tenant), entry.revision.digest);
            if wanted.contains(&(*tenant, digest)) {
                continue;
            }
            let memory = entry.content.memory();
            let own = *left.entry(whose).or_insert_with(|| self.most_pinned(whose));
            // What others have pinned, too, is there once.
            let is_there = wanted.iter().any(|(_, held)| *held == digest);
            let all = if is_there { 0 } else { memory };
            if memory > own || all > left[&None] {
                tracing::warn!(name = %entry.revision.name, memory, "no memory is left to pin it");
                continue;
            }
            for (whose, bytes) in [(whose, memory), (None, all)] {
                left.entry(whose).and_modify(|left| *left -= bytes);
            }
            wanted.insert((*tenant, digest));
        }
        self.shared.pins.keep_only(&wanted);
        for (tenant, entry) in pinned {
            let key = (tenant, entry.revision.digest);
            if !wanted.contains(&key) || self.shared.pins.has(&key) {
                continue;
            }
            match self.hold(tenant, &entry).await {
                Ok(lease) => self.shared.pins.insert(key, lease),
                Err(error) => tracing::warn!(name = %entry.revision.name, %error, "not pinned yet"),
            }
        }
    }
}

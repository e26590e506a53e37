//! How things stand: what is in memory and what is waited for, and numbers of both.

use std::{cmp::Reverse, collections::HashSet, time::Instant};

use super::{Line, Owner};
use crate::lora::Digest;

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::adapter) struct Counts {
    /// Requests served at once.
    pub(in crate::adapter) hits: u64,
    /// Requests that had to wait, whatever came of it.
    pub(in crate::adapter) misses: u64,
    /// Loads begun.
    pub(in crate::adapter) loads: u64,
    /// Of these, the ones of what had been dropped a while ago.
    pub(in crate::adapter) reloads: u64,
    /// Loads that failed.
    pub(in crate::adapter) failures: u64,
    /// Adapters dropped to make room.
    pub(in crate::adapter) evictions: u64,
}

/// How things stand.
#[derive(Clone, Copy, Debug)]
pub(in crate::adapter) struct Standing {
    pub(in crate::adapter) resident: usize,
    pub(in crate::adapter) resident_bytes: usize,
    pub(in crate::adapter) leased: usize,
    pub(in crate::adapter) loading: usize,
    pub(in crate::adapter) loading_bytes: usize,
    pub(in crate::adapter) waiting: usize,
    pub(in crate::adapter) counts: Counts,
}

impl<V, W> Line<V, W> {
    /// Whether an adapter is in memory for this owner. Whether it is for others is not told.
    pub(in crate::adapter) fn holds(&self, owner: Owner, digest: &Digest) -> bool {
        self.resident.get(digest).is_some_and(|entry| entry.owners.contains(&owner))
    }

    /// Numbers for the operator.
    pub(in crate::adapter) fn standing(&self) -> Standing {
        Standing {
            resident: self.resident.len(),
            resident_bytes: self.resident_bytes,
            leased: self.resident.values().filter(|entry| entry.leases > 0).count(),
            loading: self.loading.len(),
            loading_bytes: self.reserved_bytes,
            waiting: self.waiting,
            counts: self.counts,
        }
    }

    /// What is in memory, those that are lent first and then those that would stay the longest; and what requests wait for,
    /// in the order in which they get it.
    pub(in crate::adapter) fn census(&self, now: Instant) -> (Vec<Digest>, Vec<Digest>) {
        let ranked = self
            .resident
            .iter()
            .map(|(digest, entry)| ((entry.leases > 0, self.rank(digest, entry, now)), *digest));
        let mut ranked: Vec<_> = ranked.collect();
        ranked.sort_unstable_by_key(|(rank, _)| Reverse(*rank));
        let resident: Vec<_> = ranked.into_iter().map(|(_, digest)| digest).collect();
        let loading = self.loading.iter().filter(|(_, loading)| !loading.waiters.is_empty());
        let held = self.held_up.iter().flat_map(|owner| &self.accounts[owner].held);
        let places = self.places.iter().map(|place| place.digest);
        let wanted = loading.map(|(digest, _)| *digest).chain(places);
        let mut seen = HashSet::new();
        let awaited = wanted
            .chain(held.map(|waiter| waiter.want.digest))
            .filter(|digest| !self.resident.contains_key(digest) && seen.insert(*digest));
        let awaited = awaited.collect();
        (resident, awaited)
    }
}

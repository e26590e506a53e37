//! How loads end, and for how long one that failed answers for the next.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Line, Loading, Orders, Resident, Waiter};
use crate::{adapter::LoadError, lora::Digest};

/// How long a failed load answers for the next ones: a storm of requests reads a broken file once in that time, not
/// once each.
pub(super) const FAILURE_MEMORY: Duration = Duration::from_secs(5);

/// The same where the next load may well succeed: the store does not answer, or memory is short. Long enough for the
/// requests that are there already, and too short for anybody to see that it is over later than it is.
pub(super) const SETBACK_MEMORY: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(super) struct Failed {
    error: Arc<LoadError>,
    until: Instant,
}

impl<V, W> Line<V, W> {
    /// A load that was ordered is done.
    pub(in crate::adapter) fn loaded(
        &mut self,
        digest: Digest,
        value: V,
        now: Instant,
    ) -> Orders<V, W> {
        let mut orders = Orders::none();
        let Loading { bytes, owners, waiters } = self.end_load(digest);
        let value = Arc::new(value);
        let leases = waiters.len();
        self.waiting -= leases;
        self.resident_bytes += bytes;
        if leases == 0 {
            self.idle_bytes += bytes;
        }
        for owner in &owners {
            self.touch(*owner, digest, now);
            let account = self.accounts.get_mut(owner).expect("it has a claim");
            account.resident += account.claims[&digest].bytes;
        }
        let answer = |w: Waiter<W>| (w.reply, w.want, Ok(Arc::clone(&value)));
        orders.answers.extend(waiters.into_iter().map(answer));
        self.failed.remove(&digest);
        self.resident.insert(digest, Resident { value, bytes, leases, owners });
        orders.dropped.extend(self.drop_forgotten(digest));
        self.go_on(now, &mut orders);
        orders
    }

    /// A load that was ordered came to nothing: so do the requests that wait for it, and no others.
    pub(in crate::adapter) fn failed(
        &mut self,
        digest: Digest,
        error: Arc<LoadError>,
        now: Instant,
    ) -> Orders<V, W> {
        let mut orders = Orders::none();
        let Loading { owners, waiters, .. } = self.end_load(digest);
        for owner in owners {
            self.give_up(owner, digest);
        }
        self.forgotten.remove(&digest);
        self.counts.failures += 1;
        self.waiting -= waiters.len();
        let answer = |w: Waiter<W>| (w.reply, w.want, Err(Arc::clone(&error)));
        orders.answers.extend(waiters.into_iter().map(answer));
        self.failed.retain(|_, failed| now < failed.until);
        if let Some(memory) = remembered(&error) {
            self.failed.insert(digest, Failed { error, until: now + memory });
        }
        self.go_on(now, &mut orders);
        orders
    }

    /// Its files are others than those that could not be loaded, or in another place.
    pub(in crate::adapter) fn retry(&mut self, digest: Digest) {
        self.failed.remove(&digest);
    }

    /// Why its last load failed, if that was a moment ago.
    pub(super) fn failure(&self, digest: &Digest, now: Instant) -> Option<Arc<LoadError>> {
        let failed = self.failed.get(digest).filter(|failed| now < failed.until)?;
        Some(Arc::clone(&failed.error))
    }

    fn end_load(&mut self, digest: Digest) -> Loading<W> {
        let loading = self.loading.remove(&digest).expect("each load that was ordered ends once");
        self.reserved_bytes -= loading.bytes;
        loading
    }
}

/// How long the failure answers for the next loads; `None` where whoever asks with the right size is served at once.
fn remembered(error: &LoadError) -> Option<Duration> {
    match error {
        LoadError::Memory { .. } => None,
        LoadError::Store(_) | LoadError::NoMemory { .. } | LoadError::BrokenOff => {
            Some(SETBACK_MEMORY)
        }
        LoadError::Gone
        | LoadError::Changed
        | LoadError::Damaged
        | LoadError::File(_)
        | LoadError::Adapter(_) => Some(FAILURE_MEMORY),
    }
}

//! Places for what takes time or memory while it is under way.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::tenant::TenantId;

/// So many in all, and so many of each tenant. Who wants more waits among its own, and so stands in the line of all only as
/// often as it may have places: where that is once, tenants take turns.
#[derive(Debug)]
pub(super) struct Places {
    all: Arc<Semaphore>,
    each: usize,
    own: Mutex<HashMap<TenantId, Weak<Semaphore>>>,
}

/// One of them; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _all: OwnedSemaphorePermit,
    _own: OwnedSemaphorePermit,
}

impl Places {
    /// `each` is at least 1.
    pub(super) fn new(all: usize, each: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), each, own: Mutex::default() }
    }

    /// Waits for a place, first among its tenant's own. Dropping the future leaves the line.
    pub(super) async fn take(&self, tenant: TenantId) -> Place {
        let own = acquire(&self.of(tenant)).await;
        Place { _all: acquire(&self.all).await, _own: own }
    }

    fn of(&self, tenant: TenantId) -> Arc<Semaphore> {
        let mut tenants = self.own.lock().expect("nothing that is done under it panics");
        // Those whose places nobody has or waits for.
        tenants.retain(|_, own| own.strong_count() > 0);
        let own = tenants.get(&tenant).and_then(Weak::upgrade);
        own.unwrap_or_else(|| {
            let own = Arc::new(Semaphore::new(self.each));
            tenants.insert(tenant, Arc::downgrade(&own));
            own
        })
    }

    /// Those that nobody has.
    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        self.all.available_permits()
    }
}

/// The next permit, in order of arrival.
pub(super) async fn acquire(permits: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    Arc::clone(permits).acquire_owned().await.expect("the semaphore is never closed")
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_tenant_has_its_own_and_leaves_the_rest() {
        let places = Places::new(3, 2);
        let take = |tenant| places.take(tenant).now_or_never();
        let (first, second) = (take(TenantId::DEFAULT).unwrap(), take(TenantId::DEFAULT).unwrap());
        assert!(take(TenantId::DEFAULT).is_none());
        let other = take(TenantId::OTHER).unwrap();
        assert!(take(TenantId::OTHER).is_none(), "all are taken");
        drop(first);
        assert_eq!(places.free(), 1);
        let first = take(TenantId::DEFAULT).unwrap();
        drop((first, second, other));
        assert!(places.own.lock().unwrap().values().all(|own| own.strong_count() == 0));
    }
}

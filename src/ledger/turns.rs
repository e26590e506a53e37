//! Who reads all sheets next: it takes memory, so few do so at once.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard},
};

use super::NO_PANIC;
use crate::tenant::TenantId;

/// Who asks for sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// Whom no tenant holds up.
    Operator,
    /// One that asks again waits for its own answer first, so that it takes no turns from others.
    Tenant(TenantId),
}

/// One of the operator and one of the tenants have a turn at a time.
#[derive(Debug, Default)]
pub(super) struct Turns {
    operator: tokio::sync::Mutex<()>,
    tenants: tokio::sync::Mutex<()>,
    /// Those that have a turn or wait for one.
    asking: Mutex<BTreeSet<TenantId>>,
}

/// Lasts until it is dropped.
pub(super) struct Turn<'a> {
    _held: tokio::sync::MutexGuard<'a, ()>,
    _place: Option<Place<'a>>,
}

/// A tenant's place among those that ask.
struct Place<'a> {
    turns: &'a Turns,
    tenant: TenantId,
}

impl Turns {
    /// Waits for a turn. `None` where this tenant asks already.
    pub(super) async fn take(&self, asker: Asker) -> Option<Turn<'_>> {
        Some(match asker {
            Asker::Operator => Turn { _held: self.operator.lock().await, _place: None },
            Asker::Tenant(tenant) => {
                let place = self.place(tenant)?;
                Turn { _held: self.tenants.lock().await, _place: Some(place) }
            }
        })
    }

    fn place(&self, tenant: TenantId) -> Option<Place<'_>> {
        let is_first = self.asking().insert(tenant);
        // Not made where it is not the first: dropped, it would give up the place of the one that is.
        is_first.then(|| Place { turns: self, tenant })
    }

    fn asking(&self) -> MutexGuard<'_, BTreeSet<TenantId>> {
        self.asking.lock().expect(NO_PANIC)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.turns.asking().remove(&self.tenant);
    }
}

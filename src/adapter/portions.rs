//! What tenants' quotas say of memory, as the cache has it.

use super::{
    Adapters,
    line::{Owner, Portion, Portions},
};
use crate::tenant::{Quota, TenantId};

impl From<TenantId> for Owner {
    fn from(tenant: TenantId) -> Self {
        Self(tenant.number())
    }
}

impl From<Quota> for Portion {
    fn from(quota: Quota) -> Self {
        let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let most = quota.resident_max_bytes.map_or(usize::MAX, bytes);
        Self { least: quota.resident_min_bytes.map_or(0, bytes), most }
    }
}

impl Adapters {
    /// Brings the cache to the quotas as they are. Quotas are all servers', memory is each server's own: where it is too
    /// small for what is to be kept for tenants, they all get as much less, and the operator is told.
    pub(super) fn divide(&self) {
        let mut known = self.shared.divided.lock().expect("nothing that is done under it panics");
        let Some((edition, quotas)) = self.shared.tenants.quotas_since(*known) else { return };
        *known = edition;
        let each = quotas.into_iter().map(|(tenant, quota)| (tenant.into(), quota.into()));
        let (portions, too_much) = Portions::of(self.shared.budget, each);
        if let Some(asked) = too_much {
            let most = self.shared.budget / Portions::KEPT;
            tracing::warn!(
                asked,
                most,
                "resident_min_bytes of all tenants is more than this server keeps for them: each gets its part of what it keeps"
            );
        }
        self.shared.cache.divide(portions);
    }

    /// How much of a tenant's adapters may be in memory.
    pub(super) fn most_resident(&self, tenant: TenantId) -> usize {
        Portion::from(self.shared.tenants.quota(tenant)).most.min(self.shared.budget)
    }
}

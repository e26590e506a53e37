//! What was used since the start, for as many series as can be watched.
//!
//! ```text
//! a tenant's base                one for each tenant
//! an adapter, all its versions   32 for a tenant, 256 in all: those that were used first
//! a tenant's other adapters      one for each tenant
//! all other tenants              one, behind the first 1024
//! ```
//!
//! Names of adapters are made by tenants, so one tenant takes an eighth of the room for them at most. Tenants are made by the
//! operator alone. Whoever has a series keeps it: a sum never falls.

use std::collections::BTreeMap;

use super::{Account, Spent};
use crate::tenant::TenantId;

/// Adapters that are told apart in all.
pub(super) const MOST_ADAPTERS: usize = 256;
/// Adapters of one tenant that are told apart.
pub(super) const MOST_OF_TENANT: usize = 32;
/// Tenants that are told apart.
const MOST_TENANTS: usize = 1024;

/// One of the sums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Total {
    /// `None` is all those that are too many to be told apart.
    pub tenant: Option<TenantId>,
    /// What of it.
    pub of: Part,
    /// How much.
    pub spent: Spent,
}

/// Which part of a tenant's usage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Without adapters.
    Base,
    /// All versions of the adapter of this name.
    Adapter(String),
    /// All that are too many to be told apart.
    Others,
}

#[derive(Debug, Default)]
pub(super) struct Totals {
    tenants: BTreeMap<TenantId, OfTenant>,
    /// How many adapters are told apart.
    adapters: usize,
    /// Of tenants that are too many.
    rest: Spent,
}

#[derive(Debug, Default)]
struct OfTenant {
    base: Spent,
    adapters: BTreeMap<String, Spent>,
    others: Spent,
}

impl Totals {
    pub(super) fn add(&mut self, account: &Account, spent: &Spent) {
        self.sum(account).add(spent);
    }

    /// The sum that this counts for.
    fn sum(&mut self, account: &Account) -> &mut Spent {
        if self.tenants.len() == MOST_TENANTS && !self.tenants.contains_key(&account.tenant) {
            return &mut self.rest;
        }
        let tenant = self.tenants.entry(account.tenant).or_default();
        let Some(used) = &account.adapter else { return &mut tenant.base };
        if !tenant.adapters.contains_key(&used.name) {
            if tenant.adapters.len() == MOST_OF_TENANT || self.adapters == MOST_ADAPTERS {
                return &mut tenant.others;
            }
            self.adapters += 1;
        }
        tenant.adapters.entry(used.name.clone()).or_default()
    }

    /// Those that are not zero.
    pub(super) fn list(&self) -> Vec<Total> {
        let of_tenant = |(tenant, sums): (&TenantId, &OfTenant)| {
            let named = |(name, spent): (&String, &Spent)| (Part::Adapter(name.clone()), *spent);
            let mut parts = vec![(Part::Base, sums.base)];
            parts.extend(sums.adapters.iter().map(named));
            parts.push((Part::Others, sums.others));
            let tenant = Some(*tenant);
            parts.into_iter().map(move |(of, spent)| Total { tenant, of, spent })
        };
        let rest = Total { tenant: None, of: Part::Others, spent: self.rest };
        let all = self.tenants.iter().flat_map(of_tenant).chain([rest]);
        all.filter(|total| total.spent != Spent::default()).collect()
    }
}

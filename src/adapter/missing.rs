//! Names that are not known here may be known to the store: how often it is asked.

use std::{
    num::NonZeroUsize,
    sync::Mutex,
    time::{Duration, Instant},
};

use lru::LruCache;

use super::AdapterName;
use crate::tenant::TenantId;

/// For so long a name that the store did not have is not asked for again.
const MEMORY: Duration = Duration::from_secs(1);
/// So many names are remembered.
const NAMES: NonZeroUsize = NonZeroUsize::new(1024).expect("not 0");
/// A tenant may ask so often in a row, and then once in each [`PAUSE`].
const BURST: u32 = 10;
const PAUSE: Duration = Duration::from_millis(200);
/// So many tenants' counts are kept.
const TENANTS: NonZeroUsize = NonZeroUsize::new(1024).expect("not 0");

/// Names that were asked for in vain, and how often each tenant has asked.
#[derive(Debug)]
pub(super) struct Missing(Mutex<State>);

#[derive(Debug)]
struct State {
    names: LruCache<(TenantId, AdapterName), Instant>,
    /// When all that a tenant has asked for is paid off, at one [`PAUSE`] each.
    paid: LruCache<TenantId, Instant>,
}

impl Missing {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State { names: LruCache::new(NAMES), paid: LruCache::new(TENANTS) }))
    }

    /// Whether the store is to be asked for a name now. True counts as having asked.
    pub(super) fn may_ask(&self, tenant: TenantId, name: &AdapterName, now: Instant) -> bool {
        let mut state = self.0.lock().expect("nothing here panics");
        let key = (tenant, name.clone());
        if state.names.get(&key).is_some_and(|asked| now < *asked + MEMORY) {
            return false;
        }
        let paid = state.paid.get(&tenant).map_or(now, |paid| now.max(*paid));
        if paid >= now + PAUSE * BURST {
            return false;
        }
        state.paid.put(tenant, paid + PAUSE);
        state.names.put(key, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: TenantId = TenantId::DEFAULT;

    fn name(text: &str) -> AdapterName {
        AdapterName::parse(text).unwrap()
    }

    #[test]
    fn a_name_is_asked_for_once_a_second() {
        let (missing, start) = (Missing::new(), Instant::now());
        assert!(missing.may_ask(ME, &name("sql"), start));
        assert!(!missing.may_ask(ME, &name("sql"), start + MEMORY / 2));
        assert!(missing.may_ask(TenantId::OTHER, &name("sql"), start), "names are a tenant's own");
        assert!(missing.may_ask(ME, &name("sql"), start + MEMORY));
    }

    #[test]
    fn a_tenant_that_tries_many_names_asks_at_a_rate() {
        let (missing, start) = (Missing::new(), Instant::now());
        let asked = |from: usize, now| {
            let names = (from..from + 5000).map(|n| name(&format!("n{n}")));
            names.filter(|name| missing.may_ask(ME, name, now)).count()
        };
        assert_eq!(asked(0, start), BURST as usize);
        assert_eq!(asked(5000, start), 0);
        assert_eq!(asked(10_000, start + 3 * PAUSE), 3);
        assert!(missing.may_ask(TenantId::OTHER, &name("sql"), start), "others are not held up");
    }
}

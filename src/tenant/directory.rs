//! All tenants and their keys.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, RwLock, Weak},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::sync::Mutex;

use super::{
    BadQuota, Caller, Key, KeyId, LOG, OverQuota, Permit, Quota, Rate, Right, TenantId, TenantName,
    key::KeyHash,
    permit::Meters,
    record::{Change, Record, Scope},
};
use crate::store::{Appended, Entry, Log, Outdated, Store, StoreError};

/// Knows every tenant and every key. Clones share it.
#[derive(Clone, Debug)]
pub struct Tenants {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: RwLock<State>,
    store: Store,
    /// Held while a change is decided and written.
    log: Mutex<Log<Record>>,
    outdated: Outdated,
    /// The operator's key where this server was given one; it counts beside the one in the records.
    operator: Option<KeyHash>,
    meters: Arc<Meters>,
}

/// What the records come to.
#[derive(Debug, Default)]
struct State {
    tenants: BTreeMap<TenantId, Tenant>,
    /// Who each key is. Looked up by a hash that nobody can choose, so the time that takes tells nothing of a key.
    keys: HashMap<KeyHash, TenantId>,
    operator: Option<KeyHash>,
    /// How often a quota was set.
    edition: u64,
}

#[derive(Debug)]
struct Tenant {
    name: TenantName,
    /// Unix seconds.
    created: u64,
    keys: BTreeMap<KeyId, TenantKey>,
    default_adapter: Option<String>,
    quota: Quota,
}

#[derive(Clone, Debug)]
struct TenantKey {
    hash: KeyHash,
    scope: Scope,
    created: u64,
    expires: Option<u64>,
}

/// What an operator sees of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantCard {
    /// Never given to another.
    pub id: TenantId,
    /// What it is called.
    pub name: TenantName,
    /// Unix time in seconds.
    pub created: u64,
    /// Those that are not revoked, by id.
    pub keys: Vec<KeyCard>,
    /// What `default` means as a model; the base where it is `None`.
    pub default_adapter: Option<String>,
    /// What it may use.
    pub quota: Quota,
}

/// What an operator sees of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyCard {
    /// Its name.
    pub id: KeyId,
    /// What it allows.
    pub scope: Scope,
    /// Unix time in seconds.
    pub created: u64,
    /// Unix time in seconds from which on it is none.
    pub expires: Option<u64>,
}

/// A new tenant.
#[derive(Clone, Debug)]
pub struct Created {
    /// As others see it.
    pub card: TenantCard,
    /// With the first tenant, where the server was given none: the operator's key. It is shown this once.
    pub operator: Option<Key>,
}

/// A request shows no key, or none that counts. The two are not told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no API key that counts")]
pub struct Unidentified;

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum NotDone {
    /// There is no such tenant.
    #[error("there is no tenant {0}")]
    NoTenant(TenantName),
    /// The tenant has no such key.
    #[error("the tenant has no key {0}")]
    NoKey(KeyId),
    /// The name is taken.
    #[error("there is a tenant {0} already")]
    Taken(TenantName),
    /// A key that is over before it begins.
    #[error("the key would have expired already")]
    Expired,
    /// The quota contradicts itself.
    #[error(transparent)]
    Quota(#[from] BadQuota),
    /// The store does not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why the lock is never poisoned.
const NO_PANIC: &str = "no look-up or change panics";

impl Tenants {
    /// Reads what the store has. `operator` is the operator's key, where this server is given one.
    ///
    /// From then on what other servers write is taken in each `refresh`, until the last handle is gone.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub async fn open(
        store: &Store,
        operator: Option<&Key>,
        refresh: Duration,
    ) -> Result<Self, StoreError> {
        let (log, entries) = Log::<Record>::open(store, LOG).await?;
        let mut state = State::default();
        // It is there without a record, so that a folder of adapters has an owner.
        let name = TenantName::parse(TenantName::DEFAULT).expect("a test parses it");
        state.tenants.insert(TenantId::DEFAULT, Tenant::new(name, 0));
        for entry in &entries {
            state.apply(entry);
        }
        let operator = operator.map(Key::hash);
        let meters = Arc::default();
        let (state, log, store) = (RwLock::new(state), Mutex::new(log), store.clone());
        let outdated = Outdated::default();
        let shared = Shared { state, store, log, outdated, operator, meters };
        let shared = Arc::new(shared);
        tokio::spawn(keep_up(Arc::downgrade(&shared), refresh));
        Ok(Self { shared })
    }

    /// There are no keys, and everybody may do everything.
    pub fn are_open(&self) -> bool {
        self.shared.operator.is_none() && self.with(|state| state.operator.is_none())
    }

    /// This server was given an operator's key, which no record ends.
    pub fn has_own_operator(&self) -> bool {
        self.shared.operator.is_some()
    }

    /// Who shows this key, at this time.
    pub fn identify(&self, key: Option<&str>, now: SystemTime) -> Result<Caller, Unidentified> {
        if self.are_open() {
            return Ok(Caller { tenant: TenantId::DEFAULT, right: Right::Open });
        }
        let hash = key.and_then(KeyHash::of).ok_or(Unidentified)?;
        let now = unix_seconds(now);
        self.with(|state| {
            let operators = [&self.shared.operator, &state.operator].into_iter().flatten();
            // All of them, so that the time does not tell which.
            if operators.fold(false, |found, operator| found | operator.is(&hash)) {
                return Ok(Caller { tenant: TenantId::DEFAULT, right: Right::Operator });
            }
            let tenant = *state.keys.get(&hash).ok_or(Unidentified)?;
            let id = hash.id();
            let known = state.tenants.get(&tenant).and_then(|tenant| tenant.keys.get(&id));
            let live = |key: &&TenantKey| {
                key.hash.is(&hash) && key.expires.is_none_or(|expires| now < expires)
            };
            let key = known.filter(live).ok_or(Unidentified)?;
            Ok(Caller { tenant, right: Right::Key(id, key.scope) })
        })
    }

    /// Whether somebody who was identified a while ago would be so now.
    pub fn still_counts(&self, caller: &Caller, now: SystemTime) -> bool {
        let now = unix_seconds(now);
        match &caller.right {
            Right::Open => self.are_open(),
            Right::Operator => true,
            Right::Key(id, _) => self.with(|state| {
                let key = state.tenants.get(&caller.tenant).and_then(|known| known.keys.get(id));
                key.is_some_and(|key| key.expires.is_none_or(|expires| now < expires))
            }),
        }
    }

    /// What a tenant is called.
    pub fn name(&self, tenant: TenantId) -> Option<TenantName> {
        self.with(|state| state.tenants.get(&tenant).map(|tenant| tenant.name.clone()))
    }

    /// What `default` means to a tenant as a model; the base where it is `None`.
    pub fn default_adapter(&self, tenant: TenantId) -> Option<String> {
        self.with(|state| state.tenants.get(&tenant)?.default_adapter.clone())
    }

    /// All tenants, by name.
    pub fn list(&self) -> Vec<TenantCard> {
        let mut cards: Vec<_> =
            self.with(|state| state.tenants.iter().map(|(id, tenant)| tenant.card(*id)).collect());
        cards.sort_by(|one, two| one.name.cmp(&two.name));
        cards
    }

    /// One tenant.
    pub fn card(&self, name: &TenantName) -> Option<TenantCard> {
        self.with(|state| {
            let (id, tenant) = state.find(name)?;
            Some(tenant.card(id))
        })
    }

    /// A new tenant. The first one ends open access.
    pub async fn create(&self, by: &str, name: &TenantName) -> Result<Created, NotDone> {
        let operator = if self.are_open() { Some(random()?) } else { None };
        let mut made = false;
        let decide = |state: &State| {
            if state.find(name).is_some() {
                return Err(NotDone::Taken(name.clone()));
            }
            // Another server may have been first.
            made = operator.is_some() && state.operator.is_none();
            let operator = operator.as_ref().filter(|_| made).map(Key::hash);
            Ok(Change::Created { name: name.clone(), operator })
        };
        self.change(by, decide).await?;
        let card = self.card(name).ok_or_else(|| NotDone::NoTenant(name.clone()))?;
        Ok(Created { card, operator: operator.filter(|_| made) })
    }

    /// A new key for a tenant. It is in what is returned, and nowhere else.
    pub async fn add_key(
        &self,
        by: &str,
        name: &TenantName,
        scope: Scope,
        expires: Option<u64>,
    ) -> Result<(Key, KeyCard), NotDone> {
        if expires.is_some_and(|expires| expires <= unix_seconds(SystemTime::now())) {
            return Err(NotDone::Expired);
        }
        let key = random()?;
        let hash = key.hash();
        let decide = |state: &State| {
            let (tenant, _) = state.find(name).ok_or_else(|| NotDone::NoTenant(name.clone()))?;
            Ok(Change::KeyAdded { tenant, key: hash, scope, expires })
        };
        self.change(by, decide).await?;
        let card = self
            .card(name)
            .and_then(|card| card.keys.into_iter().find(|card| card.id == hash.id()));
        Ok((key, card.ok_or_else(|| NotDone::NoKey(hash.id()))?))
    }

    /// A key is none any more, here at once and on other servers when they refresh.
    pub async fn revoke_key(
        &self,
        by: &str,
        name: &TenantName,
        key: &KeyId,
    ) -> Result<(), NotDone> {
        let decide = |state: &State| {
            let (tenant, known) =
                state.find(name).ok_or_else(|| NotDone::NoTenant(name.clone()))?;
            if !known.keys.contains_key(key) {
                return Err(NotDone::NoKey(key.clone()));
            }
            Ok(Change::KeyRevoked { tenant, key: key.clone() })
        };
        self.change(by, decide).await
    }

    /// A new key for the operator, in the place of the one that came with the first tenant; one that a server was given by
    /// its own operator goes on to count there.
    pub async fn replace_operator(&self, by: &str) -> Result<Key, NotDone> {
        let key = random()?;
        let hash = key.hash();
        self.change(by, |_| Ok(Change::OperatorReplaced { key: hash })).await?;
        Ok(key)
    }

    /// Says what `default` means to a tenant as a model.
    pub async fn set_default_adapter(
        &self,
        by: &str,
        name: &TenantName,
        adapter: Option<String>,
    ) -> Result<TenantCard, NotDone> {
        let decide = |state: &State| {
            let (tenant, _) = state.find(name).ok_or_else(|| NotDone::NoTenant(name.clone()))?;
            Ok(Change::DefaultAdapter { tenant, adapter: adapter.clone() })
        };
        self.change(by, decide).await?;
        self.card(name).ok_or_else(|| NotDone::NoTenant(name.clone()))
    }

    /// Says what a tenant may use from now on.
    pub async fn set_quota(
        &self,
        by: &str,
        name: &TenantName,
        quota: Quota,
    ) -> Result<TenantCard, NotDone> {
        quota.check()?;
        let decide = |state: &State| {
            let (tenant, _) = state.find(name).ok_or_else(|| NotDone::NoTenant(name.clone()))?;
            Ok(Change::Quota { tenant, quota })
        };
        self.change(by, decide).await?;
        self.card(name).ok_or_else(|| NotDone::NoTenant(name.clone()))
    }

    /// What a tenant may use.
    pub fn quota(&self, tenant: TenantId) -> Quota {
        self.with(|state| state.tenants.get(&tenant).map(|tenant| tenant.quota)).unwrap_or_default()
    }

    /// The quotas of all tenants and their edition, unless that is the one that is known; the first is 0, without any.
    pub fn quotas_since(&self, known: u64) -> Option<(u64, Vec<(TenantId, Quota)>)> {
        self.with(|state| {
            let quotas = state.tenants.iter().map(|(id, tenant)| (*id, tenant.quota));
            (state.edition != known).then(|| (state.edition, quotas.collect()))
        })
    }

    /// Lets one more upload of a tenant begin, within its quota; how that stands then, where there is one.
    pub fn admit_upload(&self, tenant: TenantId, now: Instant) -> Result<Option<Rate>, OverQuota> {
        self.shared.meters.admit_upload(tenant, &self.quota(tenant), now)
    }

    /// Lets one more request of a tenant run, within its quota.
    pub fn admit(&self, tenant: TenantId, now: Instant) -> Result<Permit, OverQuota> {
        self.shared.meters.admit(tenant, &self.quota(tenant), now)
    }

    /// The store that all of it is in.
    pub(super) fn store(&self) -> &Store {
        &self.shared.store
    }

    /// Takes in what other servers have written.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        let mut log = self.shared.log.lock().await;
        self.catch_up(&mut log).await
    }

    async fn catch_up(&self, log: &mut Log<Record>) -> Result<(), StoreError> {
        let entries = self.shared.outdated.note(log.catch_up().await)?;
        self.apply(&entries);
        Ok(())
    }

    /// The store has a record that this release does not understand: which keys and quotas count now is not known here.
    pub fn is_outdated(&self) -> bool {
        self.shared.outdated.holds()
    }

    fn with<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.shared.state.read().expect(NO_PANIC))
    }

    fn apply(&self, entries: &[Entry<Record>]) {
        let mut state = self.shared.state.write().expect(NO_PANIC);
        for entry in entries {
            state.apply(entry);
        }
    }

    /// Decides on the state that all records before make, and writes the record that comes of it as the next one.
    async fn change(
        &self,
        by: &str,
        mut decide: impl FnMut(&State) -> Result<Change, NotDone>,
    ) -> Result<(), NotDone> {
        let mut log = self.shared.log.lock().await;
        self.catch_up(&mut log).await?;
        loop {
            let change = self.with(|state| decide(state))?;
            let at = unix_seconds(SystemTime::now()).saturating_mul(1000);
            let record = Record { at, by: by.to_owned(), change };
            match self.shared.outdated.note(log.append(record.clone()).await)? {
                Appended::Overtaken(entries) => self.apply(&entries),
                Appended::Written(number) => {
                    tracing::info!(number, by, change = ?record.change, "tenants have changed");
                    self.apply(&[Entry { number, record }]);
                    return Ok(());
                }
            }
        }
    }
}

impl State {
    fn find(&self, name: &TenantName) -> Option<(TenantId, &Tenant)> {
        let mut tenants = self.tenants.iter();
        tenants.find(|(_, tenant)| tenant.name == *name).map(|(id, tenant)| (*id, tenant))
    }

    fn apply(&mut self, Entry { number, record }: &Entry<Record>) {
        let created = record.at / 1000;
        match &record.change {
            Change::Created { name, operator } => {
                let id = TenantId::of_record(*number);
                self.tenants.entry(id).or_insert_with(|| Tenant::new(name.clone(), created));
                self.operator = self.operator.or(*operator);
            }
            Change::OperatorReplaced { key } => self.operator = Some(*key),
            Change::KeyAdded { tenant, key, scope, expires } => {
                let Some(known) = self.tenants.get_mut(tenant) else { return };
                let added = TenantKey { hash: *key, scope: *scope, created, expires: *expires };
                known.keys.insert(key.id(), added);
                self.keys.insert(*key, *tenant);
            }
            Change::KeyRevoked { tenant, key } => {
                let known = self.tenants.get_mut(tenant);
                if let Some(gone) = known.and_then(|tenant| tenant.keys.remove(key)) {
                    self.keys.remove(&gone.hash);
                }
            }
            Change::Quota { tenant, quota } => {
                if let Some(tenant) = self.tenants.get_mut(tenant) {
                    tenant.quota = *quota;
                    self.edition += 1;
                }
            }
            Change::DefaultAdapter { tenant, adapter } => {
                if let Some(tenant) = self.tenants.get_mut(tenant) {
                    tenant.default_adapter.clone_from(adapter);
                }
            }
        }
    }
}

impl Tenant {
    fn new(name: TenantName, created: u64) -> Self {
        let (keys, quota) = (BTreeMap::new(), Quota::default());
        Self { name, created, keys, default_adapter: None, quota }
    }

    fn card(&self, id: TenantId) -> TenantCard {
        let key = |(id, key): (&KeyId, &TenantKey)| KeyCard {
            id: id.clone(),
            scope: key.scope,
            created: key.created,
            expires: key.expires,
        };
        TenantCard {
            id,
            name: self.name.clone(),
            created: self.created,
            keys: self.keys.iter().map(key).collect(),
            default_adapter: self.default_adapter.clone(),
            quota: self.quota,
        }
    }
}

/// Takes in what other servers write until nobody needs it any more.
async fn keep_up(tenants: Weak<Shared>, refresh: Duration) {
    let mut reachable = true;
    loop {
        tokio::time::sleep(refresh).await;
        let Some(shared) = tenants.upgrade() else { return };
        let refreshed = (Tenants { shared }).refresh().await;
        match &refreshed {
            // Said where it is noted.
            Err(StoreError::Damaged { .. }) => {}
            Err(error) if reachable => {
                tracing::error!(%error, "tenants' records cannot be read: keys that are revoked elsewhere count on");
            }
            Ok(()) if !reachable => tracing::info!("tenants' records can be read again"),
            _ => {}
        }
        reachable = refreshed.is_ok();
    }
}

fn random() -> Result<Key, StoreError> {
    Key::random().map_err(|error| StoreError::Unavailable {
        why: format!("the system gives no random numbers: {error}"),
    })
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;

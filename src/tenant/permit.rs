//! The right to one request, for as long as it takes.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use super::{
    TenantId,
    quota::{Bucket, Quota, Rate},
};

/// What each tenant has spent, on this server.
#[derive(Debug, Default)]
pub(super) struct Meters(Mutex<HashMap<TenantId, Meter>>);

#[derive(Debug, Default)]
struct Meter {
    requests: Bucket,
    tokens: Bucket,
    uploads: Bucket,
    running: u32,
}

/// What a tenant has too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scarce {
    /// Requests a minute.
    Requests,
    /// Tokens a minute.
    Tokens,
    /// Requests at once.
    Concurrent,
    /// Uploads a minute.
    Uploads,
}

/// A request is one too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", message(*.scarce, *.limit))]
pub struct OverQuota {
    /// Of what.
    pub scarce: Scarce,
    /// How much of it there is. Where that is 0 there is no use in asking again.
    pub limit: u32,
    /// When it is worth asking again.
    pub wait: Duration,
    /// How rates stand.
    pub rates: Rates,
}

/// How a tenant's rates stand; `None` where it has no quota of that, or what it asked for has nothing to do with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Of requests.
    pub requests: Option<Rate>,
    /// Of tokens.
    pub tokens: Option<Rate>,
    /// Of uploads.
    pub uploads: Option<Rate>,
}

fn message(scarce: Scarce, limit: u32) -> String {
    match (scarce, limit) {
        (Scarce::Requests, 0) => {
            "the tenant's quota allows no requests (requests_per_minute is 0)".to_owned()
        }
        (Scarce::Tokens, 0) => {
            "the tenant's quota allows no tokens (tokens_per_minute is 0)".to_owned()
        }
        (Scarce::Concurrent, 0) => {
            "the tenant's quota allows no requests (concurrent is 0)".to_owned()
        }
        (Scarce::Uploads, 0) => {
            "the tenant's quota allows no uploads (uploads_per_minute is 0)".to_owned()
        }
        (Scarce::Requests, _) => format!("the quota of {limit} requests per minute is used up"),
        (Scarce::Tokens, _) => format!("the quota of {limit} tokens per minute is used up"),
        (Scarce::Concurrent, _) => format!("{limit} requests of this tenant are running already"),
        (Scarce::Uploads, _) => format!("the quota of {limit} uploads per minute is used up"),
    }
}

/// Counts as one running request until it is dropped.
pub struct Permit {
    meters: Arc<Meters>,
    tenant: TenantId,
    /// How rates stood when it was given.
    pub rates: Rates,
}

/// How long somebody with too many requests at once is told to wait: until one ends, which nobody knows.
const PATIENCE: Duration = Duration::from_secs(1);
/// Why the lock is never poisoned.
const NO_PANIC: &str = "nothing that is done under it panics";

impl Meters {
    /// Lets one more request of a tenant run, within its quota.
    pub(super) fn admit(
        self: &Arc<Self>,
        tenant: TenantId,
        quota: &Quota,
        now: Instant,
    ) -> Result<Permit, OverQuota> {
        let mut meters = self.0.lock().expect(NO_PANIC);
        let meter = meters.entry(tenant).or_default();
        let over = |scarce, limit, wait: Duration, rates| {
            Err(OverQuota { scarce, limit, wait: wait.max(PATIENCE), rates })
        };
        let rates = meter.rates(quota, now);
        if let Some(limit) = quota.concurrent.filter(|limit| meter.running >= *limit) {
            return over(Scarce::Concurrent, limit, PATIENCE, rates);
        }
        for (scarce, limit, bucket) in [
            (Scarce::Requests, quota.requests_per_minute, &meter.requests),
            (Scarce::Tokens, quota.tokens_per_minute, &meter.tokens),
        ] {
            let Some(limit) = limit else { continue };
            let wait = bucket.wait(now);
            if limit == 0 || !wait.is_zero() {
                return over(scarce, limit, wait, rates);
            }
        }
        meter.running += 1;
        if quota.requests_per_minute.is_some() {
            meter.requests.spend(1, now);
        }
        let rates = meter.rates(quota, now);
        Ok(Permit { meters: Arc::clone(self), tenant, rates })
    }

    /// Lets one more upload of a tenant begin. How the rate stands then, where there is one.
    pub(super) fn admit_upload(
        &self,
        tenant: TenantId,
        quota: &Quota,
        now: Instant,
    ) -> Result<Option<Rate>, OverQuota> {
        let Some(limit) = quota.uploads_per_minute else { return Ok(None) };
        let mut meters = self.0.lock().expect(NO_PANIC);
        let uploads = meters.entry(tenant).or_default().uploads.heed(limit, now);
        let wait = uploads.wait(now);
        if limit == 0 || !wait.is_zero() {
            let rates = Rates { uploads: Some(uploads.rate(now)), ..Rates::default() };
            let wait = wait.max(PATIENCE);
            return Err(OverQuota { scarce: Scarce::Uploads, limit, wait, rates });
        }
        uploads.spend(1, now);
        Ok(Some(uploads.rate(now)))
    }

    /// At the rate that counts now, which may not be the one that counted when the request was let in.
    fn spend(&self, tenant: TenantId, tokens: u32, now: Instant) {
        let mut meters = self.0.lock().expect(NO_PANIC);
        meters.entry(tenant).or_default().tokens.spend(tokens, now);
    }
}

impl Meter {
    /// How the rates stand that requests are held against.
    fn rates(&mut self, quota: &Quota, now: Instant) -> Rates {
        let stands = |bucket: &mut Bucket, limit: Option<u32>| {
            limit.map(|limit| bucket.heed(limit, now).rate(now))
        };
        let requests = stands(&mut self.requests, quota.requests_per_minute);
        Rates { requests, tokens: stands(&mut self.tokens, quota.tokens_per_minute), uploads: None }
    }
}

impl Permit {
    /// Spends tokens, which have been computed: more than there are left, too.
    pub fn spend(&self, tokens: usize, now: Instant) {
        if self.rates.tokens.is_some() {
            let count = u32::try_from(tokens).unwrap_or(u32::MAX);
            self.meters.spend(self.tenant, count, now);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut meters = self.meters.0.lock().expect(NO_PANIC);
        if let Some(meter) = meters.get_mut(&self.tenant) {
            meter.running = meter.running.saturating_sub(1);
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: TenantId = TenantId::DEFAULT;

    fn refused(meters: &Arc<Meters>, quota: &Quota, now: Instant) -> Option<Scarce> {
        meters.admit(ME, quota, now).err().map(|over| over.scarce)
    }

    #[test]
    fn without_a_quota_everything_is_let_in() {
        let (meters, now) = (Arc::new(Meters::default()), Instant::now());
        let permits: Vec<_> = (0..1000).map(|_| meters.admit(ME, &Quota::default(), now)).collect();
        assert!(
            permits.iter().all(|permit| permit.as_ref().is_ok_and(|p| p.rates.requests.is_none()))
        );
    }

    #[test]
    fn requests_at_once_end_with_their_permits_and_are_each_tenants_own() {
        let (meters, now) = (Arc::new(Meters::default()), Instant::now());
        let quota = Quota { concurrent: Some(2), ..Quota::default() };
        let one = meters.admit(ME, &quota, now).unwrap();
        let two = meters.admit(ME, &quota, now).unwrap();
        assert_eq!(refused(&meters, &quota, now), Some(Scarce::Concurrent));
        meters.admit(TenantId::OTHER, &quota, now).unwrap();
        drop(one);
        let three = meters.admit(ME, &quota, now).unwrap();
        assert_eq!(refused(&meters, &quota, now), Some(Scarce::Concurrent));
        drop((two, three));
        assert_eq!(refused(&meters, &quota, now), None);
    }

    #[test]
    fn uploads_a_minute_are_counted_by_themselves() {
        let (meters, now) = (Arc::new(Meters::default()), Instant::now());
        let begin = |quota: &Quota, now| meters.admit_upload(ME, quota, now);
        assert_eq!(begin(&Quota::default(), now), Ok(None));
        let quota = Quota { uploads_per_minute: Some(2), ..Quota::default() };
        assert_eq!(begin(&quota, now).unwrap().unwrap().left, 1);
        begin(&quota, now).unwrap();
        let over = begin(&quota, now).unwrap_err();
        assert_eq!((over.scarce, over.limit, over.wait.as_secs()), (Scarce::Uploads, 2, 30));
        assert!(meters.admit_upload(TenantId::OTHER, &quota, now).is_ok());
        assert!(begin(&quota, now + over.wait).is_ok());
        let none = Quota { uploads_per_minute: Some(0), ..Quota::default() };
        assert!(begin(&none, now + Duration::from_hours(1)).is_err());
        assert!(meters.admit(ME, &quota, now).unwrap().rates.requests.is_none());
    }

    #[test]
    fn requests_and_tokens_a_minute_are_counted() {
        let (meters, now) = (Arc::new(Meters::default()), Instant::now());
        let quota = Quota { requests_per_minute: Some(3), ..Quota::default() };
        for left in [2, 1, 0] {
            assert_eq!(meters.admit(ME, &quota, now).unwrap().rates.requests.unwrap().left, left);
        }
        let over = meters.admit(ME, &quota, now).unwrap_err();
        assert_eq!((over.scarce, over.limit, over.wait.as_secs()), (Scarce::Requests, 3, 20));
        assert_eq!(refused(&meters, &quota, now + over.wait), None);
        let quota = Quota { tokens_per_minute: Some(100), ..Quota::default() };
        let permit = meters.admit(ME, &quota, now).unwrap();
        permit.spend(90, now);
        let second = meters.admit(ME, &quota, now).unwrap();
        assert_eq!(second.rates.tokens.unwrap().left, 10);
        second.spend(40, now);
        assert_eq!(refused(&meters, &quota, now), Some(Scarce::Tokens));
        let none = Quota { requests_per_minute: Some(0), ..Quota::default() };
        assert_eq!(refused(&meters, &none, now + Duration::from_hours(1)), Some(Scarce::Requests));
    }

    #[test]
    fn who_is_refused_is_told_how_its_rates_stand() {
        let (meters, now) = (Arc::new(Meters::default()), Instant::now());
        let (requests_per_minute, tokens_per_minute) = (Some(1), Some(100));
        let quota = Quota { requests_per_minute, tokens_per_minute, ..Quota::default() };
        meters.admit(ME, &quota, now).unwrap().spend(30, now);
        let Rates { requests, tokens, uploads } = meters.admit(ME, &quota, now).unwrap_err().rates;
        let left = |rate: Option<Rate>| rate.map(|rate| (rate.limit, rate.left));
        assert_eq!((left(requests), left(tokens)), (Some((1, 0)), Some((100, 70))));
        assert_eq!(uploads, None);
        let quota = Quota { concurrent: Some(0), ..quota };
        let over = meters.admit(ME, &quota, now).unwrap_err();
        assert_eq!((over.scarce, left(over.rates.tokens)), (Scarce::Concurrent, Some((100, 70))));
        assert!(over.to_string().contains("allows no requests"), "{over}");
    }

    #[test]
    fn what_a_request_cost_is_paid_at_the_quota_that_was_set_meanwhile() {
        let (meters, now) = (Arc::new(Meters::default()), Instant::now());
        let quota = |tokens| Quota { tokens_per_minute: Some(tokens), ..Quota::default() };
        let permit = meters.admit(ME, &quota(1), now).unwrap();
        permit.spend(36, now);
        assert_eq!(meters.admit(ME, &quota(1), now).unwrap_err().wait.as_secs(), 36 * 60);
        let raised = meters.admit(ME, &quota(1000), now).unwrap();
        permit.spend(1064, now);
        drop((permit, raised));
        // 100 above a minute's worth, and one to be spent.
        let over = meters.admit(ME, &quota(1000), now).unwrap_err();
        assert_eq!((over.wait.as_millis() + 5) / 10, 606);
    }
}

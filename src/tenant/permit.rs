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
    /// How much of it there is.
    pub limit: u32,
    /// When it is worth asking again.
    pub wait: Duration,
}

fn message(scarce: Scarce, limit: u32) -> String {
    match scarce {
        Scarce::Requests => format!("the quota of {limit} requests per minute is used up"),
        Scarce::Tokens => format!("the quota of {limit} tokens per minute is used up"),
        Scarce::Concurrent => format!("{limit} requests of this tenant are running already"),
        Scarce::Uploads => format!("the quota of {limit} uploads per minute is used up"),
    }
}

/// Counts as one running request until it is dropped.
pub struct Permit {
    meters: Arc<Meters>,
    tenant: TenantId,
    tokens_per_minute: Option<u32>,
    /// How rates stood when it was given, where there are quotas.
    pub requests: Option<Rate>,
    /// See [`Permit::requests`].
    pub tokens: Option<Rate>,
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
        if let Some(limit) = quota.concurrent.filter(|limit| meter.running >= *limit) {
            return Err(OverQuota { scarce: Scarce::Concurrent, limit, wait: PATIENCE });
        }
        for (scarce, limit, bucket) in [
            (Scarce::Requests, quota.requests_per_minute, &meter.requests),
            (Scarce::Tokens, quota.tokens_per_minute, &meter.tokens),
        ] {
            let Some(limit) = limit else { continue };
            let wait = bucket.wait(limit, now);
            if limit == 0 || !wait.is_zero() {
                return Err(OverQuota { scarce, limit, wait: wait.max(PATIENCE) });
            }
        }
        meter.running += 1;
        if let Some(limit) = quota.requests_per_minute {
            meter.requests.spend(limit, 1, now);
        }
        let requests = quota.requests_per_minute.map(|limit| meter.requests.rate(limit, now));
        let tokens = quota.tokens_per_minute.map(|limit| meter.tokens.rate(limit, now));
        let tokens_per_minute = quota.tokens_per_minute;
        Ok(Permit { meters: Arc::clone(self), tenant, tokens_per_minute, requests, tokens })
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
        let uploads = &mut meters.entry(tenant).or_default().uploads;
        let wait = uploads.wait(limit, now);
        if limit == 0 || !wait.is_zero() {
            return Err(OverQuota { scarce: Scarce::Uploads, limit, wait: wait.max(PATIENCE) });
        }
        uploads.spend(limit, 1, now);
        Ok(Some(uploads.rate(limit, now)))
    }

    fn spend(&self, tenant: TenantId, (limit, count): (u32, u32), now: Instant) {
        let mut meters = self.0.lock().expect(NO_PANIC);
        meters.entry(tenant).or_default().tokens.spend(limit, count, now);
    }
}

impl Permit {
    /// Spends tokens, which have been computed: more than there are left, too.
    pub fn spend(&self, tokens: usize, now: Instant) {
        if let Some(limit) = self.tokens_per_minute {
            let count = u32::try_from(tokens).unwrap_or(u32::MAX);
            self.meters.spend(self.tenant, (limit, count), now);
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
        assert!(permits.iter().all(|permit| permit.as_ref().is_ok_and(|p| p.requests.is_none())));
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
        assert!(meters.admit(ME, &quota, now).unwrap().requests.is_none());
    }

    #[test]
    fn requests_and_tokens_a_minute_are_counted() {
        let (meters, now) = (Arc::new(Meters::default()), Instant::now());
        let quota = Quota { requests_per_minute: Some(3), ..Quota::default() };
        for left in [2, 1, 0] {
            assert_eq!(meters.admit(ME, &quota, now).unwrap().requests.unwrap().left, left);
        }
        let over = meters.admit(ME, &quota, now).unwrap_err();
        assert_eq!((over.scarce, over.limit, over.wait.as_secs()), (Scarce::Requests, 3, 20));
        assert_eq!(refused(&meters, &quota, now + over.wait), None);
        let quota = Quota { tokens_per_minute: Some(100), ..Quota::default() };
        let permit = meters.admit(ME, &quota, now).unwrap();
        permit.spend(90, now);
        let second = meters.admit(ME, &quota, now).unwrap();
        assert_eq!(second.tokens.unwrap().left, 10);
        second.spend(40, now);
        assert_eq!(refused(&meters, &quota, now), Some(Scarce::Tokens));
        let none = Quota { requests_per_minute: Some(0), ..Quota::default() };
        assert_eq!(refused(&meters, &none, now + Duration::from_hours(1)), Some(Scarce::Requests));
    }
}

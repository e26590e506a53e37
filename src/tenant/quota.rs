//! How much a tenant may, and how much it has left.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

const MINUTE: Duration = Duration::from_mins(1);
/// Whoever owes more than an hour owes an hour.
const LONGEST: Duration = Duration::from_hours(1);

/// What a tenant may use; `None` is without bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// Requests for answers in a minute, of each server.
    pub requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers in a minute, of each server.
    pub tokens_per_minute: Option<u32>,
    /// Requests at once, of each server.
    pub concurrent: Option<u32>,
    /// Adapters in the store.
    pub adapters: Option<u32>,
    /// Bytes of all their versions.
    pub stored_bytes: Option<u64>,
    /// Bytes of memory that adapters of others leave to this tenant's loaded ones, of each server.
    pub resident_min_bytes: Option<u64>,
    /// Bytes of memory that its loaded adapters may take together, of each server.
    pub resident_max_bytes: Option<u64>,
    /// Uploads in a minute, of each server.
    pub uploads_per_minute: Option<u32>,
}

/// A quota contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "resident_min_bytes is {least} and resident_max_bytes {most}: a tenant cannot keep more than it may have"
)]
pub struct BadQuota {
    least: u64,
    most: u64,
}

impl Quota {
    /// Refuses one that contradicts itself.
    pub(super) fn check(&self) -> Result<(), BadQuota> {
        match (self.resident_min_bytes, self.resident_max_bytes) {
            (Some(least), Some(most)) if least > most => Err(BadQuota { least, most }),
            _ => Ok(()),
        }
    }
}

/// Pays for what was spent at an even rate: so many a minute, of which a minute's worth can be spent at once.
///
/// What a request spends may only be known when it is done, so more can be spent than is left; then nothing is until it is
/// paid. (GCRA, ITU-T I.371, with the theoretical arrival time as the moment at which all is paid.)
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bucket {
    /// So many a minute pay.
    limit: u32,
    paid: Option<Instant>,
}

/// How a rate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// A minute's worth.
    pub limit: u32,
    /// What can be spent at once now.
    pub left: u32,
    /// After so long the whole limit can.
    pub reset: Duration,
}

impl Bucket {
    /// From now on `limit` a minute pay. What is owed is so many and not so much time, so it is paid sooner at a higher rate.
    pub(super) fn heed(&mut self, limit: u32, now: Instant) -> &mut Self {
        let before = std::mem::replace(&mut self.limit, limit);
        if limit != before {
            let owed = self.debt(now).as_secs_f64() * f64::from(before.max(1));
            let time = (owed / f64::from(limit.max(1))).min(LONGEST.as_secs_f64());
            self.paid = Some(now + Duration::from_secs_f64(time));
        }
        self
    }

    /// How it stands.
    pub(super) fn rate(&self, now: Instant) -> Rate {
        let (limit, reset) = (self.limit, self.debt(now));
        let spent = reset.as_secs_f64() / MINUTE.as_secs_f64() * f64::from(limit);
        // Rounded so that the unit that has just been paid counts.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
        let left = (f64::from(limit) - spent + 1e-6).floor().clamp(0.0, f64::from(limit)) as u32;
        Rate { limit, left, reset }
    }

    /// How long until one can be spent.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        (self.debt(now) + self.cost(1)).saturating_sub(MINUTE)
    }

    /// Spends so many.
    pub(super) fn spend(&mut self, count: u32, now: Instant) {
        let from = self.paid.map_or(now, |paid| paid.max(now));
        self.paid = Some((from + self.cost(count)).min(now + LONGEST));
    }

    fn debt(&self, now: Instant) -> Duration {
        self.paid.map_or(Duration::ZERO, |paid| paid.saturating_duration_since(now))
    }

    fn cost(&self, count: u32) -> Duration {
        MINUTE * count / self.limit.max(1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn paying(limit: u32) -> Bucket {
        Bucket { limit, paid: None }
    }

    #[test]
    fn a_minutes_worth_can_be_spent_at_once_and_comes_back_evenly() {
        let (mut bucket, start) = (paying(60), Instant::now());
        assert_eq!(bucket.rate(start), Rate { limit: 60, left: 60, reset: Duration::ZERO });
        bucket.spend(60, start);
        assert_eq!(bucket.rate(start), Rate { limit: 60, left: 0, reset: MINUTE });
        assert_eq!(bucket.wait(start), SECOND);
        assert_eq!(bucket.rate(start + SECOND).left, 1);
        assert_eq!(bucket.wait(start + SECOND), Duration::ZERO);
        assert_eq!(bucket.rate(start + MINUTE).left, 60);
        assert_eq!(bucket.rate(start + 9 * MINUTE).left, 60, "no more than a minute's worth");
    }

    #[test]
    fn quotas_of_before_are_read_and_what_is_not_known_is_not() {
        let old = r#"{"requests_per_minute":2,"tokens_per_minute":null,"concurrent":null,"adapters":7,"stored_bytes":null}"#;
        let quota: Quota = serde_json::from_str(old).unwrap();
        let expected =
            Quota { requests_per_minute: Some(2), adapters: Some(7), ..Quota::default() };
        assert_eq!(quota, expected);
        let new: Quota = serde_json::from_str(r#"{"resident_max_bytes":9}"#).unwrap();
        assert_eq!(new.resident_max_bytes, Some(9));
        assert!(serde_json::from_str::<Quota>(r#"{"resident_bytes":9}"#).is_err());
    }

    #[test]
    fn nobody_keeps_more_than_it_may_have() {
        let quota = |least, most| Quota {
            resident_min_bytes: Some(least),
            resident_max_bytes: most,
            ..Quota::default()
        };
        assert_eq!(quota(2, Some(2)).check(), Ok(()));
        assert_eq!(quota(2, None).check(), Ok(()));
        assert_eq!(quota(2, Some(1)).check(), Err(BadQuota { least: 2, most: 1 }));
    }

    #[test]
    fn what_is_overspent_is_paid_first() {
        let (mut bucket, start) = (paying(60), Instant::now());
        bucket.spend(90, start);
        assert_eq!(bucket.rate(start).left, 0);
        assert_eq!(bucket.wait(start), 31 * SECOND);
        assert_eq!(bucket.rate(start + 31 * SECOND).left, 1);
        let mut bucket = paying(1);
        bucket.spend(u32::MAX, start);
        assert_eq!(bucket.rate(start).reset, 60 * MINUTE);
        bucket.heed(0, start).spend(1, start);
    }

    #[test]
    fn a_tenant_in_debt_is_helped_by_a_higher_quota() {
        let (mut bucket, start) = (paying(1), Instant::now());
        bucket.spend(36, start);
        assert_eq!(bucket.wait(start), 36 * MINUTE);
        let later = start + MINUTE;
        assert_eq!(bucket.heed(1_000_000, later).wait(later), Duration::ZERO);
        assert_eq!(bucket.rate(later).left, 1_000_000 - 35);
        // And a lower one makes no less of what is owed.
        assert_eq!(bucket.heed(5, later).wait(later).as_secs(), 31 * 12);
    }

    proptest! {
        /// Whatever is asked for when, no more is let in than the rate and one minute's worth allow.
        #[test]
        fn over_time_no_more_is_spent_than_the_rate(
            limit in 1_u32..500,
            pauses in prop::collection::vec(0_u64..2000, 1..400),
        ) {
            let (mut bucket, start) = (paying(limit), Instant::now());
            let (mut now, mut spent) = (start, 0_u32);
            for pause in pauses {
                now += Duration::from_millis(pause);
                if bucket.wait(now).is_zero() {
                    prop_assert!(bucket.rate(now).left > 0);
                    bucket.spend(1, now);
                    spent += 1;
                }
            }
            let allowed = f64::from(limit) * (1.0 + (now - start).as_secs_f64() / 60.0);
            prop_assert!(f64::from(spent) <= allowed + 1e-3, "{spent} of {allowed}");
        }

        /// Whatever the limit was when it was spent, what is owed is paid at the limit that there is.
        #[test]
        fn nobody_waits_longer_than_the_debt_takes_at_the_new_rate(
            turns in prop::collection::vec((1_u32..100_000, 0_u64..5000, 0_u32..2000), 1..60),
        ) {
            let (mut bucket, mut now) = (Bucket::default(), Instant::now());
            let mut owed = 0.0_f64;
            for (limit, pause, count) in turns {
                now += Duration::from_millis(pause);
                let rate = f64::from(bucket.limit.max(1)) / 60.0;
                owed = (owed - pause as f64 / 1000.0 * rate).max(0.0);
                bucket.heed(limit, now);
                let rate = f64::from(limit) / 60.0;
                let most = LONGEST.as_secs_f64() * rate;
                owed = owed.min(most);
                prop_assert!(bucket.wait(now).as_secs_f64() <= owed / rate + 1e-3);
                let paid_in = bucket.rate(now).reset.as_secs_f64();
                prop_assert!((paid_in - owed / rate).abs() <= 1e-3, "{paid_in} for {owed} at {rate}");
                bucket.spend(count, now);
                owed = (owed + f64::from(count)).min(most);
            }
        }
    }
}

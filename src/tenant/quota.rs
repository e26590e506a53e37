//! How much a tenant may, and how much it has left.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

const MINUTE: Duration = Duration::from_mins(1);

/// What a tenant may use; `None` is without bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
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
    /// How it stands at a rate of `limit` a minute.
    pub(super) fn rate(&self, limit: u32, now: Instant) -> Rate {
        let reset = self.debt(now);
        let spent = reset.as_secs_f64() / MINUTE.as_secs_f64() * f64::from(limit);
        // Rounded so that the unit that has just been paid counts.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
        let left = (f64::from(limit) - spent + 1e-6).floor().clamp(0.0, f64::from(limit)) as u32;
        Rate { limit, left, reset }
    }

    /// How long until one can be spent.
    pub(super) fn wait(&self, limit: u32, now: Instant) -> Duration {
        (self.debt(now) + cost(limit, 1)).saturating_sub(MINUTE)
    }

    /// Spends so many at a rate of `limit` a minute.
    pub(super) fn spend(&mut self, limit: u32, count: u32, now: Instant) {
        let from = self.paid.map_or(now, |paid| paid.max(now));
        // Whoever owes more than an hour owes an hour.
        let most = now + MINUTE * 60;
        self.paid = Some((from + cost(limit, count)).min(most));
    }

    fn debt(&self, now: Instant) -> Duration {
        self.paid.map_or(Duration::ZERO, |paid| paid.saturating_duration_since(now))
    }
}

fn cost(limit: u32, count: u32) -> Duration {
    MINUTE / limit.max(1) * count
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_minutes_worth_can_be_spent_at_once_and_comes_back_evenly() {
        let (mut bucket, start) = (Bucket::default(), Instant::now());
        assert_eq!(bucket.rate(60, start), Rate { limit: 60, left: 60, reset: Duration::ZERO });
        bucket.spend(60, 60, start);
        assert_eq!(bucket.rate(60, start), Rate { limit: 60, left: 0, reset: MINUTE });
        assert_eq!(bucket.wait(60, start), SECOND);
        assert_eq!(bucket.rate(60, start + SECOND).left, 1);
        assert_eq!(bucket.wait(60, start + SECOND), Duration::ZERO);
        assert_eq!(bucket.rate(60, start + MINUTE).left, 60);
        assert_eq!(bucket.rate(60, start + 9 * MINUTE).left, 60, "no more than a minute's worth");
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
        let (mut bucket, start) = (Bucket::default(), Instant::now());
        bucket.spend(60, 90, start);
        assert_eq!(bucket.rate(60, start).left, 0);
        assert_eq!(bucket.wait(60, start), 31 * SECOND);
        assert_eq!(bucket.rate(60, start + 31 * SECOND).left, 1);
        bucket.spend(1, u32::MAX, start);
        assert_eq!(bucket.rate(1, start).reset, 60 * MINUTE);
        bucket.spend(0, 1, start);
    }

    proptest! {
        /// Whatever is asked for when, no more is let in than the rate and one minute's worth allow.
        #[test]
        fn over_time_no_more_is_spent_than_the_rate(
            limit in 1_u32..500,
            pauses in prop::collection::vec(0_u64..2000, 1..400),
        ) {
            let (mut bucket, start) = (Bucket::default(), Instant::now());
            let (mut now, mut spent) = (start, 0_u32);
            for pause in pauses {
                now += Duration::from_millis(pause);
                if bucket.wait(limit, now).is_zero() {
                    prop_assert!(bucket.rate(limit, now).left > 0);
                    bucket.spend(limit, 1, now);
                    spent += 1;
                }
            }
            let allowed = f64::from(limit) * (1.0 + (now - start).as_secs_f64() / 60.0);
            prop_assert!(f64::from(spent) <= allowed + 1e-3, "{spent} of {allowed}");
        }
    }
}

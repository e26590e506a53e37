//! Until when a request may take: the server's limit, or the shorter one that the client sends.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, HeaderName};

use super::error::ApiError;

/// Seconds, with a fraction where one is wanted.
const HEADER: HeaderName = HeaderName::from_static("x-request-timeout");

/// No request takes longer, and clocks can count so far.
const LONGEST: Duration = Duration::from_hours(24);

/// The moment at which a request is given up, wherever it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deadline(Instant);

impl Deadline {
    /// Counts from now.
    pub(super) fn read(headers: &HeaderMap, limit: Duration) -> Result<Self, ApiError> {
        let Some(value) = headers.get(HEADER) else { return Ok(Self::after(limit)) };
        let seconds = value.to_str().ok().and_then(|text| text.trim().parse::<f64>().ok());
        match seconds {
            Some(seconds) if seconds > 0.0 && seconds.is_finite() => {
                // More than a duration can be is more than the limit.
                let asked = Duration::try_from_secs_f64(seconds).unwrap_or(limit);
                Ok(Self::after(asked.min(limit)))
            }
            _ => {
                let message = "X-Request-Timeout must be a positive number of seconds";
                Err(ApiError::invalid("X-Request-Timeout", message))
            }
        }
    }

    fn after(duration: Duration) -> Self {
        Self(Instant::now() + duration.min(LONGEST))
    }

    /// For the engine, which gives the job up by itself.
    pub(super) fn instant(self) -> Instant {
        self.0
    }

    /// What the future gives, unless time is over first.
    pub(super) async fn bound<T>(
        self,
        future: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        let timed = tokio::time::timeout_at(self.0.into(), future).await;
        timed.unwrap_or_else(|_| Err(ApiError::deadline()))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn seconds(value: &str) -> Option<u64> {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, HeaderValue::from_str(value).unwrap());
        let before = Instant::now();
        let deadline = Deadline::read(&headers, Duration::from_secs(100)).ok()?;
        Some((deadline.0 - before).as_secs())
    }

    #[test]
    fn the_shorter_of_the_two_counts() {
        assert_eq!(seconds("7"), Some(7));
        assert_eq!(seconds("2.5"), Some(2));
        assert_eq!(seconds("1e6"), Some(100));
        assert_eq!(seconds("1e30"), Some(100), "more than a duration can be");
        let default = Deadline::read(&HeaderMap::new(), Duration::from_secs(100)).unwrap();
        assert!(default.0 > Instant::now() + Duration::from_secs(99));
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for value in ["", "0", "-1", "NaN", "inf", "1e400", "soon", "1s", "0x1"] {
            assert_eq!(seconds(value), None, "{value}");
        }
    }

    #[tokio::test]
    async fn what_takes_longer_is_given_up() {
        let deadline = Deadline(Instant::now() + Duration::from_millis(5));
        let never = std::future::pending::<Result<(), ApiError>>();
        let error = deadline.bound(never).await.unwrap_err();
        assert_eq!(error.body().error.code, Some("deadline_exceeded"));
        assert!(Deadline(Instant::now()).bound(async { Ok(()) }).await.is_ok());
    }
}

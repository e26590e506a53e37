//! What a tenant has left, as OpenAI's headers say it.

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::tenant::{Permit, Rate};

/// Limit, what is left of it, and when all of it will be.
type Names = [HeaderName; 3];

const REQUESTS: Names = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const TOKENS: Names = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];
/// OpenAI has none for these: they are named after the others.
const UPLOADS: Names = [
    HeaderName::from_static("x-ratelimit-limit-uploads"),
    HeaderName::from_static("x-ratelimit-remaining-uploads"),
    HeaderName::from_static("x-ratelimit-reset-uploads"),
];

/// Writes how the rates stood when the request was let in; nothing where there are none.
pub(super) fn write(permit: &Permit, headers: &mut HeaderMap) {
    for (names, rate) in [(REQUESTS, permit.requests), (TOKENS, permit.tokens)] {
        write_rate(names, rate, headers);
    }
}

/// The same of uploads.
pub(super) fn write_uploads(rate: Option<Rate>, headers: &mut HeaderMap) {
    write_rate(UPLOADS, rate, headers);
}

fn write_rate(names: Names, rate: Option<Rate>, headers: &mut HeaderMap) {
    let Some(Rate { limit, left, reset }) = rate else { return };
    let [limit_name, left_name, reset_name] = names;
    headers.insert(limit_name, HeaderValue::from(limit));
    headers.insert(left_name, HeaderValue::from(left));
    let reset = format!("{:.3}s", reset.as_secs_f64());
    headers.insert(reset_name, HeaderValue::try_from(reset).expect("digits are allowed"));
}

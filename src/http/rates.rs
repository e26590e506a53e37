//! What a tenant has left, as OpenAI's headers say it.

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::tenant::{Rate, Rates};

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

/// Writes how the rates stood when a request was let in, or was not; nothing where there are none.
pub(super) fn write(rates: &Rates, headers: &mut HeaderMap) {
    let Rates { requests, tokens, uploads } = *rates;
    for (names, rate) in [(REQUESTS, requests), (TOKENS, tokens), (UPLOADS, uploads)] {
        write_rate(names, rate, headers);
    }
}

/// The same of uploads alone.
pub(super) fn write_uploads(uploads: Option<Rate>, headers: &mut HeaderMap) {
    write(&Rates { uploads, ..Rates::default() }, headers);
}

fn write_rate(names: Names, rate: Option<Rate>, headers: &mut HeaderMap) {
    let Some(Rate { limit, left, reset }) = rate else { return };
    let [limit_name, left_name, reset_name] = names;
    headers.insert(limit_name, HeaderValue::from(limit));
    headers.insert(left_name, HeaderValue::from(left));
    let reset = format!("{:.3}s", reset.as_secs_f64());
    headers.insert(reset_name, HeaderValue::try_from(reset).expect("digits are allowed"));
}

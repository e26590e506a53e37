//! What all chunks of an answer have in common.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::{
    http::{HeaderName, HeaderValue},
    response::Response,
};

use super::{request_id, select::Voice};

/// Who answered, as `NAME@vN;sha256=HEX` or `base`.
const ADAPTER: HeaderName = HeaderName::from_static("x-chorus-adapter");

/// The same on every chunk of one answer.
#[derive(Clone, Debug)]
pub(super) struct Envelope {
    pub(super) id: String,
    /// Unix time in seconds.
    pub(super) created: u64,
    /// The name that was asked for, to the letter.
    pub(super) model: String,
    pub(super) fingerprint: String,
    voice: Voice,
}

impl Envelope {
    /// `kind` begins the id, as each endpoint's ids do.
    pub(super) fn new(kind: &str, model: String, voice: Voice, base_digest: &str) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let fingerprint = voice.fingerprint(base_digest);
        let id = format!("{kind}{}", request_id::unique());
        Self { id, created: now.as_secs(), model, fingerprint, voice }
    }

    /// Adds the header that says who answered.
    pub(super) fn seal(&self, response: Response) -> Response {
        seal(&self.voice, response)
    }
}

/// Adds the header that says who answered.
pub(super) fn seal(voice: &Voice, mut response: Response) -> Response {
    let voice = HeaderValue::try_from(voice.to_string()).expect("names are ASCII");
    response.headers_mut().insert(ADAPTER, voice);
    response
}

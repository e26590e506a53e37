//! Names each request for the log and the client.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};
use tracing::Instrument;

use super::dialect::Dialect;

/// Ours, on every answer.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// What the client sent as `X-Request-Id`. It names nothing here: two clients may send the same.
const CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-client-request-id");
/// Ours under the name that Anthropic's clients read.
const MESSAGES_REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
/// The longest that is sent back.
const LONGEST: usize = 256;

static KEYS: LazyLock<[RandomState; 2]> =
    LazyLock::new(|| [RandomState::new(), RandomState::new()]);
static COUNT: AtomicU64 = AtomicU64::new(0);

/// 32 hexadecimal digits that were never given before and cannot be guessed from others.
pub(super) fn unique() -> String {
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let [high, low] = KEYS.each_ref().map(|key| key.hash_one(count));
    format!("{high:016x}{low:016x}")
}

/// An id that was never given before, behind what says of what kind it is.
pub(super) fn new(kind: &str) -> String {
    format!("{kind}{}", unique())
}

/// What tells this request from others: the id that the client has given it, or one that nobody has.
pub(super) fn of(headers: &HeaderMap) -> String {
    let theirs = headers.get(REQUEST_ID).filter(|value| value.len() <= LONGEST);
    theirs.and_then(|value| value.to_str().ok()).map_or_else(unique, str::to_owned)
}

/// What a request is called in the log and for its client.
#[derive(Clone, Debug)]
pub(super) struct RequestId(String);

impl RequestId {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Adds the headers to whatever answer the request gets, and the id to what is logged meanwhile.
pub(super) async fn layer(mut request: Request, next: Next) -> Response {
    let id = format!("req-{}", unique());
    request.extensions_mut().insert(RequestId(id.clone()));
    let span = tracing::info_span!("request", id);
    let own = HeaderValue::try_from(id).expect("hexadecimal digits");
    let theirs = request.headers().get(REQUEST_ID).filter(|value| value.len() <= LONGEST).cloned();
    let dialect = Dialect::of(request.method(), request.uri().path());
    let mut response = next.run(request).instrument(span).await;
    if dialect == Dialect::Anthropic {
        response.headers_mut().insert(MESSAGES_REQUEST_ID, own.clone());
    }
    response.headers_mut().insert(REQUEST_ID, own);
    if let Some(theirs) = theirs {
        response.headers_mut().insert(CLIENT_REQUEST_ID, theirs);
    }
    response
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use axum::{Router, body::Body, middleware, routing::get};
    use tower::ServiceExt;

    use super::*;

    #[test]
    fn ids_are_unique() {
        let ids: HashSet<_> = (0..1000).map(|_| unique()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.len() == 32));
    }

    #[tokio::test]
    async fn a_clients_own_id_comes_back_under_another_name() {
        let app = Router::new().route("/", get(|| async {})).layer(middleware::from_fn(layer));
        let ask = |id: &'static str| {
            let request = Request::get("/").header("x-request-id", id).body(Body::empty()).unwrap();
            app.clone().oneshot(request)
        };
        let (first, second) = (ask("mine").await.unwrap(), ask("mine").await.unwrap());
        assert_eq!(first.headers()["x-client-request-id"], "mine");
        assert!(first.headers()["x-request-id"].to_str().unwrap().starts_with("req-"));
        assert_ne!(first.headers()["x-request-id"], second.headers()["x-request-id"]);
    }
}

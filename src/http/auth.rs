//! Who is calling: the key of a request, and what needs which.

use std::time::SystemTime;

use axum::{
    extract::{FromRequestParts, Request, State},
    http::{HeaderMap, HeaderName, Method, header::AUTHORIZATION, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{
    app::App,
    console,
    error::ApiError,
    guard::{Door, Reach, is_direct},
    metrics::Detail,
    report::Report,
};
use crate::tenant::{Caller, Right, Scope};

/// Paths that say nothing about anybody: whoever watches the process needs no key.
const PUBLIC: [&str; 9] = [
    "/health",
    "/ping",
    "/ready",
    "/version",
    "/openapi.json",
    METRICS,
    console::STYLE,
    console::SCRIPT,
    console::ICON,
];
const METRICS: &str = "/metrics";
/// Where Anthropic's clients put the key, the key alone.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Finds out who is calling, or refuses.
pub(super) async fn layer(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let key = key(request.headers());
    match app.tenants().identify(key, SystemTime::now()) {
        Ok(caller) => {
            if let Some(report) = request.extensions().get::<Report>() {
                report.asked_by(&caller);
            }
            request.extensions_mut().insert(caller);
        }
        Err(_) if is_public(&request) => {}
        Err(_) => return ApiError::unidentified().into_response(),
    }
    next.run(request).await
}

fn is_public(request: &Request) -> bool {
    let path = request.uri().path();
    // What is posted to the console's path is a prompt.
    let page = path == console::PAGE && [Method::GET, Method::HEAD].contains(request.method());
    page || PUBLIC.contains(&path)
}

/// The key of `Authorization`, or else of `X-Api-Key`, which a gateway in front may have for itself.
fn key(headers: &HeaderMap) -> Option<&str> {
    bearer(headers).or_else(|| bare(headers))
}

/// The key of `X-Api-Key: KEY`. Of several none counts.
fn bare(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(API_KEY).iter();
    let (key, None) = (values.next()?.to_str().ok()?.trim(), values.next()) else { return None };
    (!key.is_empty()).then_some(key)
}

/// The key of `Authorization: Bearer KEY` (RFC 6750, section 2.1). Of several none counts.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (value, None) = (values.next()?.to_str().ok()?, values.next()) else { return None };
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// Whoever is calling.
#[derive(Debug)]
pub(super) struct By(pub(super) Caller);

impl FromRequestParts<App> for By {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        parts.extensions.get().cloned().map(Self).ok_or_else(ApiError::unidentified)
    }
}

/// Refuses a key that does not allow this.
pub(super) fn need(caller: &Caller, scope: Scope) -> Result<(), ApiError> {
    if caller.may(scope) {
        return Ok(());
    }
    Err(match caller.right {
        Right::Operator => ApiError::not_allowed(
            "the operator's key is no tenant's: make a key for one with `chorus tenant key new`",
        ),
        _ => ApiError::not_allowed(format!(
            "the API key does not allow this: a key of scope {} is needed",
            match scope {
                Scope::Infer => "infer",
                Scope::Upload => "upload",
                Scope::Admin => "admin",
            }
        )),
    })
}

/// The operator, or on a server without keys whoever sits at this machine.
#[derive(Debug)]
pub(super) struct Operator(pub(super) Caller);

impl FromRequestParts<App> for Operator {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let By(caller) = By::from_request_parts(parts, app).await?;
        let at_home = parts.extensions.get() == Some(&Reach::Loopback);
        match caller.right {
            Right::Operator => Ok(Self(caller)),
            Right::Open if at_home => Ok(Self(caller)),
            Right::Open => Err(ApiError::not_allowed(
                "a server that listens beyond its machine is administered with the key in its CHORUS_OPERATOR_KEY",
            )),
            Right::Key(..) => Err(ApiError::not_allowed("this needs the operator's key")),
        }
    }
}

/// Whoever may read the metrics, and how much of them. Those that name tenants are the operator's, where there is one; so are all
/// on the network, and behind a proxy on this machine, which anybody may be in front of. Whoever reaches the listener for watchers
/// was let into its network by the operator, and reads what names nobody without a key.
#[derive(Debug)]
pub(super) struct Watcher(pub(super) Detail);

impl FromRequestParts<App> for Watcher {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let caller: Option<&Caller> = parts.extensions.get();
        if app.settings().metrics_open || caller.is_some_and(Caller::is_operator) {
            return Ok(Self(Detail::Named));
        }
        let invited = parts.extensions.get() == Some(&Door::Watchers);
        let at_home = parts.extensions.get() == Some(&Reach::Loopback);
        if invited || at_home && is_direct(&parts.headers, &parts.uri) {
            return Ok(Self(Detail::Unnamed));
        }
        Err(match caller {
            None => ApiError::unidentified(),
            Some(_) => ApiError::not_allowed("this needs the operator's key, or --metrics-open"),
        })
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn sent(bearers: &[&'static str], bare: &[&'static str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in bearers {
            headers.append(AUTHORIZATION, HeaderValue::from_static(value));
        }
        for value in bare {
            headers.append(API_KEY, HeaderValue::from_static(value));
        }
        key(&headers).map(str::to_owned)
    }

    #[test]
    fn one_bearer_key_is_read() {
        assert_eq!(sent(&["Bearer abc"], &[]).as_deref(), Some("abc"));
        assert_eq!(sent(&["bearer  abc "], &[]).as_deref(), Some("abc"));
        for values in [&[][..], &["abc"], &["Basic abc"], &["Bearer"], &["Bearer a", "Bearer b"]] {
            assert_eq!(sent(values, &[]), None, "{values:?}");
        }
    }

    #[test]
    fn a_bare_key_is_read_where_there_is_no_other() {
        assert_eq!(sent(&[], &["abc"]).as_deref(), Some("abc"));
        assert_eq!(sent(&["Bearer abc"], &["xyz"]).as_deref(), Some("abc"));
        // A proxy's own.
        assert_eq!(sent(&["Basic eDp5"], &["abc"]).as_deref(), Some("abc"));
        assert_eq!(sent(&[], &["abc", "abc"]), None);
        assert_eq!(sent(&["Bearer abc"], &[""]).as_deref(), Some("abc"));
        assert_eq!(sent(&[], &[""]), None);
    }
}

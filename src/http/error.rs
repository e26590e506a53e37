//! Refusals: the only place where an error gets a status code.
//!
//! | what | status | type, code |
//! |---|---|---|
//! | malformed, wrong type or range, unsupported field | 400 | `invalid_request_error`, - |
//! | header and `model` name two adapters | 400 | `invalid_request_error`, `adapter_conflict` |
//! | prompt and answer exceed the context | 400 | `invalid_request_error`, `context_length_exceeded` |
//! | no API key, or none that counts | 401 | `invalid_request_error`, `invalid_api_key` |
//! | a key that does not allow this | 403 | `invalid_request_error`, `insufficient_scope` |
//! | foreign Host or Origin | 403 | `invalid_request_error`, `forbidden_origin` |
//! | unknown model or adapter, or another tenant's | 404 | `invalid_request_error`, `model_not_found` |
//! | unknown route, wrong method | 404, 405 | `invalid_request_error`, - |
//! | a route that the operator has not turned on; a folder that is not there or lies outside | 404 | `invalid_request_error`, `turned_off`, `path_not_found` |
//! | an adapter's version that is active, or was checked on another base; too much pinned | 409, not to be retried | `invalid_request_error`, `version_in_use`, `adapter_incompatible`, `too_much_pinned` |
//! | things do not stand as `If-Match` or `If-None-Match` expects | 412 | `invalid_request_error`, `precondition_failed` |
//! | an upload that is no adapter for this base | 422 | `invalid_request_error`, the rule |
//! | too many requests, tokens or uploads, per minute or at once; all memory of the tenant's quota in use; usage that is being summed for the tenant already | 429 and `Retry-After` | `requests` or `tokens`, `rate_limit_exceeded` |
//! | as many adapters, or as much stored, as the tenant may; an adapter larger than its quota of memory; a quota of 0 | 429, not to be retried | `insufficient_quota`, `insufficient_quota` |
//! | body not received in time, too large, not JSON | 408, 413, 415 | `invalid_request_error`, - |
//! | an adapter that cannot be loaded, or whose files the store has lost | 500, not to be retried | `server_error`, `adapter_unavailable` |
//! | anything of ours that broke | 500 | `server_error`, `internal_error` |
//! | queue full, no room for an adapter, shutting down | 503 and `Retry-After` | `server_error`, `overloaded` |
//! | the store has a record that this release does not understand | 503 and `Retry-After` | `server_error`, `outdated_server` |
//! | a part of the ledger that is not understood | 500, not to be retried | `server_error`, `ledger_unreadable` |
//! | the store of adapters does not answer | 503 and `Retry-After` | `server_error`, `store_unavailable` |
//! | the store, or the disk for uploads, is full | 507 | `server_error`, `store_full` |
//! | the request's own deadline | 504, not to be retried | `server_error`, `deadline_exceeded` |
//!
//! The deadline is 504 and not 408: clients retry both, and `x-should-retry: false` says that the time they gave is spent.
//! What a 5xx was caused by is never sent. It is logged here, at debug where it was logged before and a client could fill the log.

mod stored;

use std::time::Duration;

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};

use super::{
    rates,
    wire::error::{ErrorBody, ErrorDetail},
};
use crate::{
    engine::{Failure, Refused},
    tenant::{OverQuota, Rates, Scarce},
    text,
};

/// OpenAI's clients obey it over their own rules.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// Seconds after which an overloaded server may be asked again: a queue place or a lease frees within one answer.
const RETRY_SECONDS: u16 = 1;
/// Who is told more than a minute is given up by OpenAI's clients, which then wait as they see fit.
const MOST_RETRY_SECONDS: u64 = 60;
/// The code of what does not fit. It stands in the message, too: of some clients' errors the text is all that is looked at.
const TOO_LONG: &str = "context_length_exceeded";
/// The most characters of a client's own text that a message repeats.
const QUOTED: usize = 120;
/// The most characters of a whole message.
const MESSAGE: usize = 500;

/// Why a request is not answered, as the client is told.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
    retry: Retry,
    /// The type, where the status alone does not say it.
    kind: Option<&'static str>,
    /// How the tenant's rates stand, where they are why.
    rates: Option<Box<Rates>>,
}

/// What a client's retry loop is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retry {
    /// Nothing: the status says enough.
    Unsaid,
    /// The same request may succeed shortly.
    Soon,
    /// The same request may succeed after so many seconds.
    After(u64),
    /// The same request fails again.
    Never,
}

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let message = quote(&message.into(), MESSAGE);
        let (code, param, kind, rates) = (None, None, None, None);
        Self { status, code, param, message, retry: Retry::Unsaid, kind, rates }
    }

    fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    fn about(self, param: impl Into<String>) -> Self {
        Self { param: Some(quote(&param.into(), QUOTED)), ..self }
    }

    /// The request is not understood as a whole.
    pub(super) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// One field or header has a wrong type, range or combination.
    pub(super) fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self::malformed(message).about(param)
    }

    /// A field that is understood, would change the answer, and is not implemented.
    pub(super) fn unsupported(param: &str) -> Self {
        Self::invalid(param, format!("'{param}' is not supported by this server; leave it out"))
    }

    /// An answer of no tokens is asked for.
    pub(super) fn too_few(param: &str) -> Self {
        Self::invalid(param, format!("'{param}' must be at least 1"))
    }

    /// No such model, or not the caller's: the two must be the same bytes.
    pub(super) fn model_not_found(requested: &str) -> Self {
        let requested = quote(requested, QUOTED);
        let message = format!("The model `{requested}` does not exist or you have no access to it");
        Self::new(StatusCode::NOT_FOUND, message).about("model").with_code("model_not_found")
    }

    /// A response is to be gone on from, and none is kept.
    pub(super) fn no_previous_response() -> Self {
        let message = "no response is stored by this server: send the messages before in 'input' \
                       and leave 'previous_response_id' out";
        Self::invalid("previous_response_id", message).with_code("previous_response_not_found")
    }

    /// A response is asked for again, and none is kept.
    pub(super) fn no_response(id: &str) -> Self {
        let id = quote(id, QUOTED);
        let message = format!("no response is stored by this server, so there is no `{id}`");
        Self::new(StatusCode::NOT_FOUND, message).about("id")
    }

    /// Header and `model` contradict each other.
    pub(super) fn adapter_conflict(header: &str, model: &str) -> Self {
        let (header, model) = (quote(header, QUOTED), quote(model, QUOTED));
        let message = format!(
            "the adapter header names `{header}` and 'model' names `{model}`: send one of the two"
        );
        Self::invalid("model", message).with_code("adapter_conflict")
    }

    /// `adapters` and something else name different adapters.
    pub(super) fn mix_conflict(other: &str) -> Self {
        let message =
            format!("'adapters' and {other} name different adapters: send one of the two");
        Self::invalid("adapters", message).with_code("adapter_conflict")
    }

    /// Prompt and answer do not fit. Clients key on the code, on the first sentence, or on the code in the text.
    pub(super) fn too_long(prompt: usize, answer: usize, context: usize) -> Self {
        let message = format!(
            "This model's maximum context length is {context} tokens. However, you requested {} tokens \
             ({prompt} in the prompt, {answer} in the completion). Please shorten the prompt or the completion \
             ({TOO_LONG})",
            prompt.saturating_add(answer)
        );
        Self::malformed(message).with_code(TOO_LONG)
    }

    /// The prompt alone does not fit, as its length tells without encoding it.
    pub(super) fn far_too_long(least: usize, context: usize) -> Self {
        let message = format!(
            "This model's maximum context length is {context} tokens. However, your prompt has at least {least} tokens. \
             Please shorten the prompt ({TOO_LONG})"
        );
        Self::malformed(message).with_code(TOO_LONG)
    }

    /// No key, or none that counts: the two must be the same bytes.
    pub(super) fn unidentified() -> Self {
        let message =
            "a valid API key is needed: send it as Authorization: Bearer KEY, or as X-Api-Key: KEY";
        Self::new(StatusCode::UNAUTHORIZED, message).with_code("invalid_api_key")
    }

    /// The tenant has used up what it may.
    pub(super) fn over_quota(over: &OverQuota) -> Self {
        let kind = match over.scarce {
            Scarce::Tokens => "tokens",
            Scarce::Requests | Scarce::Concurrent | Scarce::Uploads => "requests",
        };
        // Rounded up: whoever obeys it is let in.
        let seconds = over.wait.as_secs() + u64::from(over.wait.subsec_nanos() > 0);
        let refused = match over.limit {
            0 => Self::no_room(over.to_string()),
            _ => Self::too_much(over.to_string(), kind, Retry::After(seconds)),
        };
        Self { rates: Some(Box::new(over.rates)), ..refused }
    }

    /// The tenant has to wait until there is some of its quota again.
    fn too_much(message: impl Into<String>, kind: &'static str, retry: Retry) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, message);
        Self { retry, kind: Some(kind), ..error.with_code("rate_limit_exceeded") }
    }

    /// The tenant has as much as it may, or asks for more.
    fn no_room(message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, message);
        let error = error.with_code("insufficient_quota");
        Self { retry: Retry::Never, kind: Some("insufficient_quota"), ..error }
    }

    /// The key does not allow this.
    pub(super) fn not_allowed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message).with_code("insufficient_scope")
    }

    /// A browser acts for a page that is not ours.
    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message).with_code("forbidden_origin")
    }

    /// Nothing is served under this path.
    pub(super) fn no_route(method: &str, path: &str) -> Self {
        let path = quote(path, QUOTED);
        Self::new(StatusCode::NOT_FOUND, format!("no such endpoint: {method} {path}"))
    }

    /// What could be served here is not, unless the operator says so.
    pub(super) fn turned_off(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message).with_code("turned_off")
    }

    /// The path of a folder leads to none that may be read.
    pub(super) fn no_folder(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message).about("lora_path").with_code("path_not_found")
    }

    /// The path exists, for other methods.
    pub(super) fn wrong_method(method: &str, path: &str) -> Self {
        let path = quote(path, QUOTED);
        Self::new(StatusCode::METHOD_NOT_ALLOWED, format!("{path} does not take {method}"))
    }

    /// The body did not arrive in time.
    pub(super) fn slow_body() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "the request's body did not arrive in time")
    }

    /// The body has more bytes than are accepted.
    pub(super) fn body_too_large(limit: usize) -> Self {
        let message = format!("the request's body has more than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    /// The text names no adapter.
    pub(super) fn bad_name(message: impl Into<String>) -> Self {
        Self::invalid("name", message).with_code("invalid_adapter_name")
    }

    /// The body is not declared as what it must be.
    pub(super) fn wrong_type(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message)
    }

    /// Try again shortly.
    pub(super) fn overloaded(message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, message).with_code("overloaded");
        Self { retry: Retry::Soon, ..error }
    }

    /// Another server, or this one after its restart, may do it.
    pub(super) fn stopping() -> Self {
        Self::overloaded("the server is shutting down")
    }

    /// A newer server may do it, or this one once it is upgraded.
    pub(super) fn outdated() -> Self {
        let message = "the store has a record that this release of chorus does not understand: upgrade this server";
        Self { code: Some("outdated_server"), ..Self::overloaded(message) }
    }

    /// The request's own time is over.
    pub(super) fn deadline() -> Self {
        let message = "the request's deadline passed before the answer was complete";
        let error = Self::new(StatusCode::GATEWAY_TIMEOUT, message).with_code("deadline_exceeded");
        Self { retry: Retry::Never, ..error }
    }

    /// Something of ours broke; the log has the cause.
    pub(super) fn internal() -> Self {
        let message = "the server could not complete this request";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message).with_code("internal_error")
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// What tells it from others.
    pub(super) fn word(&self) -> &'static str {
        self.code.unwrap_or_else(|| self.kind())
    }

    fn kind(&self) -> &'static str {
        let by_status =
            if self.status.is_server_error() { "server_error" } else { "invalid_request_error" };
        self.kind.unwrap_or(by_status)
    }

    /// What is sent: as a body, or as the last event of a stream that has begun; by some routes in the words of another
    /// [`Dialect`](super::dialect::Dialect).
    pub(super) fn body(&self) -> ErrorBody<'_> {
        let (kind, param, code) = (self.kind(), self.param.as_deref(), self.code);
        ErrorBody { error: ErrorDetail { message: &self.message, kind, param, code } }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(rates) = &self.rates {
            rates::write(rates, headers);
        }
        match self.retry {
            Retry::Unsaid => {}
            Retry::Soon => {
                headers.insert(RETRY_AFTER, HeaderValue::from(RETRY_SECONDS));
            }
            Retry::After(seconds) => {
                headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
            }
            Retry::Never => {
                headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
            }
        }
        response.extensions_mut().insert(self);
        response
    }
}

impl From<text::Error> for ApiError {
    fn from(error: text::Error) -> Self {
        Self::malformed(error.to_string())
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full { .. } => Self::overloaded("too many requests are waiting"),
            Refused::Slow { wait, most, .. } => {
                // Rounded up: half a second is none to whoever reads whole ones.
                let seconds = |time: Duration| time.as_secs() + u64::from(time.subsec_nanos() > 0);
                let message = format!(
                    "the request would wait for about {} s, and may for {} s at most: this server has too much to do",
                    seconds(wait),
                    most.as_secs_f64()
                );
                let busy = Self::overloaded(message);
                Self {
                    retry: Retry::After(
                        seconds(wait.saturating_sub(most)).clamp(1, MOST_RETRY_SECONDS),
                    ),
                    ..busy
                }
            }
            Refused::Stopping => Self::stopping(),
            Refused::TooLong { tokens, context } => Self::too_long(tokens, 0, context),
            Refused::BadPrompt { .. } => Self::invalid("prompt", refused.to_string()),
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Deadline => Self::deadline(),
            Failure::Stopping => Self::stopping(),
            Failure::Guide => Self::malformed(failure.to_string()),
            Failure::NotANumber => {
                tracing::error!(%failure, "an answer was given up");
                Self { retry: Retry::Never, ..Self::internal() }
            }
            Failure::Step => {
                tracing::error!(%failure, "an answer was given up");
                Self::internal()
            }
        }
    }
}

/// At most `limit` characters of a text that a client sent.
fn quote(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;

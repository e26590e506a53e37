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

use std::io;

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
    adapter::{LoadError, NotChanged, NotLent, NotMixable, Unfit, Unproved, Unreceived},
    engine::{Failure, Refused},
    ledger::NotSummed,
    store::StoreError,
    tenant::{NotDone, OverQuota, Rates, Scarce},
    text,
};

/// OpenAI's clients obey it over their own rules.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// Seconds after which an overloaded server may be asked again: a queue place or a lease frees within one answer.
const RETRY_SECONDS: u16 = 1;
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

    fn adapter_unavailable() -> Self {
        let message =
            "the adapter cannot be used: its operator finds the reason in the server's log";
        let error =
            Self::new(StatusCode::INTERNAL_SERVER_ERROR, message).with_code("adapter_unavailable");
        Self { retry: Retry::Never, ..error }
    }

    /// No adapter was lent to a request for `requested`.
    pub(super) fn not_lent(refusal: &NotLent, requested: &str) -> Self {
        match refusal {
            NotLent::Gone => Self::model_not_found(requested),
            NotLent::OtherBase => Self::incompatible(refusal.to_string()),
            NotLent::Failed(why) if matches!(**why, LoadError::Store(_)) => {
                Self::store_unavailable()
            }
            NotLent::Crowded { .. } | NotLent::TimedOut { .. } => {
                Self::overloaded("every place for adapters is in use")
            }
            NotLent::PortionInUse { .. } => {
                Self::too_much(refusal.to_string(), "requests", Retry::Soon)
            }
            NotLent::LargerThanPortion { .. } => Self::no_room(refusal.to_string()),
            NotLent::Failed(why) if matches!(**why, LoadError::NoMemory { .. }) => {
                Self::overloaded("the server has no memory for this adapter now")
            }
            // Said once for all, where it was found out: clients can ask as often as they like.
            NotLent::TooLarge { .. } | NotLent::Failed(_) => {
                tracing::debug!(adapter = requested, %refusal, "an adapter cannot be used");
                Self::adapter_unavailable()
            }
        }
    }

    /// The store may know a name, and cannot be asked.
    pub(super) fn unreachable(error: &StoreError) -> Self {
        tracing::debug!(%error, "a name could not be looked up");
        Self::store_unavailable()
    }

    /// The log of changes cannot be told.
    pub(super) fn unreadable_log(error: &StoreError) -> Self {
        tracing::error!(%error, "the log of changes cannot be read");
        match error {
            StoreError::Unavailable { .. } => Self::store_unavailable(),
            _ => Self::internal(),
        }
    }

    /// What was used is not told.
    pub(super) fn not_summed(error: &NotSummed) -> Self {
        match error {
            NotSummed::AskedAlready => Self::too_much(error.to_string(), "requests", Retry::Soon),
            NotSummed::Store(StoreError::Unavailable { .. }) => {
                tracing::debug!(%error, "usage cannot be summed");
                Self::store_unavailable()
            }
            NotSummed::Store(StoreError::Damaged { .. }) => {
                tracing::error!(%error, "usage cannot be summed");
                let message = "a part of the ledger is damaged, or of a newer release: its operator finds which in the server's log";
                let error = Self::new(StatusCode::INTERNAL_SERVER_ERROR, message);
                Self { retry: Retry::Never, ..error.with_code("ledger_unreadable") }
            }
            NotSummed::Store(_) => {
                tracing::error!(%error, "usage cannot be summed");
                Self::internal()
            }
        }
    }

    fn store_unavailable() -> Self {
        let message = "the store does not answer; adapters in memory are served";
        Self { code: Some("store_unavailable"), ..Self::overloaded(message) }
    }

    fn store_full() -> Self {
        let message = "the store of adapters is full: nothing was kept";
        let error = Self::new(StatusCode::INSUFFICIENT_STORAGE, message).with_code("store_full");
        Self { retry: Retry::Never, ..error }
    }

    /// The request and the state of things exclude each other; it will be no different the next time.
    fn conflict(message: impl Into<String>) -> Self {
        Self { retry: Retry::Never, ..Self::new(StatusCode::CONFLICT, message) }
    }

    /// Adapters of which there can be no sum.
    pub(super) fn not_mixable(not: &NotMixable) -> Self {
        Self::malformed(not.to_string()).with_code("adapter_not_mixable")
    }

    fn incompatible(message: impl Into<String>) -> Self {
        Self::conflict(message).with_code("adapter_incompatible")
    }

    /// An upload, or a part of it, is no adapter that can be served.
    pub(super) fn unfit(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, message).with_code(code)
    }

    /// Tenants or keys were not changed.
    pub(super) fn not_done(error: &NotDone) -> Self {
        let message = error.to_string();
        match error {
            NotDone::NoTenant(_) => {
                Self::new(StatusCode::NOT_FOUND, message).with_code("tenant_not_found")
            }
            NotDone::NoKey(_) => {
                Self::new(StatusCode::NOT_FOUND, message).with_code("key_not_found")
            }
            NotDone::Taken(_) => Self::conflict(message).with_code("tenant_exists"),
            NotDone::Expired => Self::invalid("expires", message),
            NotDone::Quota(_) => Self::invalid("resident_min_bytes", message),
            NotDone::Store(StoreError::Full { why }) => {
                tracing::error!(why, "the store is full");
                Self::store_full()
            }
            NotDone::Store(error @ StoreError::Unavailable { .. }) => {
                tracing::warn!(%error, "tenants were not changed");
                Self::store_unavailable()
            }
            NotDone::Store(StoreError::Damaged { .. }) => Self::outdated(),
            NotDone::Store(error) => {
                tracing::error!(%error, "tenants were not changed");
                Self::internal()
            }
        }
    }

    /// An adapter of this name was not changed.
    pub(super) fn not_changed(error: &NotChanged, name: &str) -> Self {
        let message = || error.to_string();
        match error {
            NotChanged::Unknown => Self::model_not_found(name),
            NotChanged::NoVersion(_) => {
                Self::new(StatusCode::NOT_FOUND, message()).with_code("version_not_found")
            }
            NotChanged::Stale { .. } => Self::new(StatusCode::PRECONDITION_FAILED, message())
                .with_code("precondition_failed"),
            NotChanged::NotActive => Self::conflict(message()).with_code("no_active_version"),
            NotChanged::InUse(_) => Self::conflict(message()).with_code("version_in_use"),
            NotChanged::OtherBase(_) => Self::incompatible(message()),
            NotChanged::TooMuchPinned { .. } => {
                Self::conflict(message()).with_code("too_much_pinned")
            }
            NotChanged::NoRoomForName(_) | NotChanged::NoRoomForBytes { .. } => {
                Self::no_room(message())
            }
            NotChanged::ActiveAlready(_) => Self::conflict(message()).with_code("version_active"),
            NotChanged::Unreceived(why) => Self::unreceived(why),
            NotChanged::Unfit(why) => Self::unfit_upload(why),
            NotChanged::Store(StoreError::Full { why }) => {
                tracing::error!(why, "the store is full");
                Self::store_full()
            }
            NotChanged::Store(why @ StoreError::Unavailable { .. }) => {
                tracing::warn!(%why, "an adapter was not changed");
                Self::store_unavailable()
            }
            // A change is decided on all records before it, and one of them is not understood.
            NotChanged::Store(StoreError::Damaged { .. }) => Self::outdated(),
            // The record is there, and a file that it refers to is not.
            NotChanged::Store(why @ StoreError::NotFound { .. }) => {
                tracing::error!(%why, name, "a file of an adapter is lost");
                Self::adapter_unavailable()
            }
        }
    }

    /// The files of an upload did not arrive as they should.
    pub(super) fn unreceived(why: &Unreceived) -> Self {
        let message = why.to_string();
        match why {
            Unreceived::Twice(_) => Self::malformed(message).with_code("repeated_file"),
            Unreceived::Missing(_) => Self::unfit("missing_file", message),
            Unreceived::TooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, message).with_code("file_too_large")
            }
            Unreceived::Spool(error) => {
                tracing::error!(%error, "an upload cannot be spooled");
                match error.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::store_full(),
                    _ => Self::internal(),
                }
            }
        }
    }

    fn unfit_upload(why: &Unfit) -> Self {
        let message = why.to_string();
        match why {
            Unfit::Refused(refusal) => Self::unfit(refusal.code(), message),
            Unfit::TooLarge { .. } => Self::unfit("adapter_too_large", message),
            Unfit::Unproved(Unproved::Template(_)) => Self::unfit("chat_template", message),
            Unfit::Smoke { .. } => Self::unfit("smoke_test_failed", message),
            Unfit::Unproved(Unproved::NoEffect) => Self::unfit("no_effect", message),
            Unfit::Unproved(Unproved::NotFinite) => Self::unfit("numbers_overflow", message),
            Unfit::Unproved(Unproved::NotNow(_)) | Unfit::NoMemory { .. } => {
                tracing::warn!(message, "an upload could not be tried");
                Self::overloaded("the server cannot try the adapter now")
            }
            Unfit::BrokenOff(_) => {
                tracing::error!(message, "an upload could not be checked");
                Self::internal()
            }
        }
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
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
        time::Duration,
    };

    use super::*;
    use crate::tenant::Rate;

    fn json(error: &ApiError) -> serde_json::Value {
        serde_json::to_value(error.body()).unwrap()
    }

    #[test]
    fn every_body_has_the_four_keys() {
        assert_eq!(
            json(&ApiError::malformed("no")),
            serde_json::json!({"error": {
                "message": "no", "type": "invalid_request_error", "param": null, "code": null
            }})
        );
        let deadline = json(&ApiError::deadline());
        assert_eq!(deadline["error"]["type"], "server_error");
        assert_eq!(deadline["error"]["code"], "deadline_exceeded");
    }

    #[test]
    fn the_context_message_has_the_sentence_that_clients_look_for() {
        let error = ApiError::too_long(9000, 16, 8192);
        assert!(error.message.contains("9016"), "{}", error.message);
        for error in [error, ApiError::far_too_long(9000, 8192)] {
            let sentence = "This model's maximum context length is 8192 tokens.";
            assert!(error.message.starts_with(sentence), "{}", error.message);
            assert!(error.message.contains("context_length_exceeded"), "{}", error.message);
            assert_eq!(error.code, Some("context_length_exceeded"));
        }
        let error = ApiError::from(Refused::TooLong { tokens: 9000, context: 8192 });
        assert!(error.message.contains("maximum context length is 8192 tokens"));
    }

    #[test]
    fn a_file_that_the_store_has_lost_is_no_bare_internal_error() {
        let lost = StoreError::NotFound { key: "blobs/ab.cd".to_owned() };
        let error = ApiError::not_changed(&NotChanged::Store(lost), "sql");
        assert_eq!((error.status.as_u16(), error.code), (500, Some("adapter_unavailable")));
        assert!(!error.message.contains("blobs"), "{}", error.message);
    }

    #[test]
    fn retries_are_asked_for_or_forbidden() {
        let busy = ApiError::from(Refused::Full { waiting: 9 }).into_response();
        assert_eq!(busy.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(busy.headers()[RETRY_AFTER], "1");
        let full = NotLent::Failed(LoadError::NoMemory { bytes: 1 << 40 }.into());
        let full = ApiError::not_lent(&full, "sql").into_response();
        assert_eq!(full.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(full.headers()[RETRY_AFTER], "1");
        let held = ApiError::not_lent(&NotLent::PortionInUse { most: 9 }, "sql");
        assert!(held.message.contains("resident_max_bytes"), "{}", held.message);
        let held = held.into_response();
        assert_eq!(
            (held.status().as_u16(), &held.headers()[RETRY_AFTER]),
            (429, &"1".parse().unwrap())
        );
        let large = NotLent::LargerThanPortion { bytes: 10, most: 9 };
        let large = ApiError::not_lent(&large, "sql");
        assert_eq!(large.code, Some("insufficient_quota"));
        assert_eq!(large.into_response().headers()[SHOULD_RETRY], "false");
        let twice = ApiError::not_summed(&NotSummed::AskedAlready).into_response();
        assert_eq!(
            (twice.status().as_u16(), &twice.headers()[RETRY_AFTER]),
            (429, &"1".parse().unwrap())
        );
        let late = ApiError::from(Failure::Deadline).into_response();
        assert_eq!(late.status(), StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(late.headers()[SHOULD_RETRY], "false");
        let broken = ApiError::from(Failure::NotANumber).into_response();
        assert_eq!(broken.headers()[SHOULD_RETRY], "false");
    }

    #[test]
    fn a_tenant_without_any_quota_is_not_asked_to_try_again() {
        let rate = Rate { limit: 3, left: 0, reset: Duration::from_millis(1500) };
        let rates = Rates { requests: Some(rate), ..Rates::default() };
        let over = |scarce, limit| {
            let over = OverQuota { scarce, limit, wait: Duration::from_millis(1200), rates };
            ApiError::over_quota(&over)
        };
        let used_up = over(Scarce::Requests, 3).into_response();
        let head = used_up.headers();
        assert_eq!((used_up.status().as_u16(), &head[RETRY_AFTER]), (429, &"2".parse().unwrap()));
        assert_eq!(head["x-ratelimit-limit-requests"], "3");
        assert_eq!(head["x-ratelimit-remaining-requests"], "0");
        assert_eq!(head["x-ratelimit-reset-requests"], "1.500s");
        assert!(!head.contains_key("x-ratelimit-limit-tokens"));
        for scarce in [Scarce::Requests, Scarce::Tokens, Scarce::Concurrent, Scarce::Uploads] {
            let none = over(scarce, 0);
            assert_eq!(none.code, Some("insufficient_quota"));
            assert!(none.message.contains("quota allows no"), "{}", none.message);
            let none = none.into_response();
            assert_eq!(
                (none.status().as_u16(), &none.headers()[SHOULD_RETRY]),
                (429, &"false".parse().unwrap())
            );
            assert!(!none.headers().contains_key(RETRY_AFTER));
        }
    }

    /// What an operator reads of the events in `act`.
    fn logged(act: impl FnOnce()) -> String {
        #[derive(Clone, Default)]
        struct Log(Arc<Mutex<Vec<u8>>>);
        impl io::Write for Log {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let log = Log::default();
        let writer = log.clone();
        let events = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(events, act);
        String::from_utf8(log.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn asking_for_a_broken_adapter_does_not_fill_the_log() {
        let log = logged(|| {
            let refusal = NotLent::TooLarge { bytes: 3, budget: 2 };
            for _ in 0..10 {
                assert_eq!(ApiError::not_lent(&refusal, "sql").code, Some("adapter_unavailable"));
            }
            assert_eq!(ApiError::from(Failure::Step).code, Some("internal_error"));
        });
        assert_eq!(log.lines().count(), 1, "{log}");
        assert!(log.contains("an answer was given up"), "{log}");
    }

    #[test]
    fn a_sheet_that_is_not_understood_is_not_a_store_that_does_not_answer() {
        let key = "sheets/usage/a.json".to_owned();
        let damaged = StoreError::Damaged { key, why: "unknown field".to_owned() };
        let log = logged(|| {
            let error = ApiError::not_summed(&NotSummed::Store(damaged));
            assert!(error.message.contains("damaged, or of a newer release"), "{}", error.message);
            assert!(!error.message.contains("sheets"), "{}", error.message);
            assert_eq!(error.into_response().status(), StatusCode::INTERNAL_SERVER_ERROR);
        });
        assert!(log.contains("sheets/usage/a.json"), "{log}");
        let silent = StoreError::Unavailable { why: "timed out".to_owned() };
        let error = ApiError::not_summed(&NotSummed::Store(silent));
        assert_eq!(error.code, Some("store_unavailable"));
    }

    #[test]
    fn a_clients_text_is_repeated_in_part_only() {
        let error = ApiError::model_not_found(&"\u{e4}".repeat(10_000));
        assert!(error.message.chars().count() < 250, "{}", error.message);
    }
}
